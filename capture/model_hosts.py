"""Which hosts are model providers: a forward proxy decrypts and records these and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MODEL_HOSTS = (
    "api.anthropic.com",
    "api.openai.com",
    "chatgpt.com",  # Codex with a ChatGPT login: /backend-api/codex
    "generativelanguage.googleapis.com",
    "cloudcode-pa.googleapis.com",  # Gemini CLI and Antigravity with a Google login
    "daily-cloudcode-pa.sandbox.googleapis.com",
    "aiplatform.googleapis.com",
    ".aiplatform.googleapis.com",
    "-aiplatform.googleapis.com",  # europe-west4-aiplatform.googleapis.com: a region is a prefix, not a subdomain
    ".openai.azure.com",
    ".services.ai.azure.com",
    "openrouter.ai",
    "api.mistral.ai",
    "codestral.mistral.ai",
    "api.deepseek.com",
    "api.x.ai",
    "api.groq.com",
    "api.cerebras.ai",
    "api.together.xyz",
    "api.together.ai",
    "api.fireworks.ai",
    "api.moonshot.ai",
    "api.moonshot.cn",
    "api.kimi.com",
    "api.z.ai",
    "open.bigmodel.cn",
    "api.minimax.io",
    "api.minimaxi.com",
    "ai-gateway.vercel.sh",
    "dashscope.aliyuncs.com",
    "dashscope-intl.aliyuncs.com",
    "router.huggingface.co",
    "integrate.api.nvidia.com",
    "api.githubcopilot.com",
    ".githubcopilot.com",
    "opencode.ai",  # opencode's own gateway
)
"""Hosts of model APIs. One that starts with `.` or `-` stands for every host that ends so."""


class HostError(ValueError):
    """A host is not usable. The sentence names it."""


def parse_host(text: str) -> str:
    """A host for `ModelHosts`: `HOST`, `HOST:PORT`, `.SUFFIX`; lower case. HostError for a URL or nonsense."""
    name = text.strip().lower()
    bare, colon, port = name.rpartition(":")
    if not colon:
        bare, port = name, ""
    if "/" in name or not bare.strip(".-") or (colon and not port.isdecimal()) or " " in name:
        raise HostError(f"host {text!r}: write a name such as llm.example.com, llm.example.com:8443 or .example.com")
    return name


@dataclass(frozen=True, slots=True)
class ModelHosts:
    """The providers' hosts and those that a person added."""

    exact: frozenset[str]
    suffixes: tuple[str, ...]

    @classmethod
    def of(cls, added: Iterable[str] = ()) -> ModelHosts:
        """The known providers and `added` ones (see `parse_host`)."""
        every = (*MODEL_HOSTS, *added)
        return cls(
            frozenset(host for host in every if host[0] not in ".-"), tuple(host for host in every if host[0] in ".-")
        )

    def __contains__(self, address: tuple[str, int]) -> bool:
        host = address[0].lower().rstrip(".")
        return (
            host in self.exact
            or f"{host}:{address[1]}" in self.exact
            or host.endswith(self.suffixes)
            or f"{host}:{address[1]}".endswith(self.suffixes)
        )
