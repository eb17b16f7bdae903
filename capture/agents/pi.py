"""pi: an extension given on its command line overrides base URLs; no file of the user's is touched.

`pi.registerProvider(name, {baseUrl})` keeps a provider's models and logins and changes only where its calls go (the
package's docs/custom-provider.md). It sets one URL for all models of a provider, so providers whose models live at
several addresses need forward mode.
"""

from __future__ import annotations

import json
from pathlib import Path

from capture.agents.agent import Agent, Change, Situation, Target, Telling, insert, member, read_json, text_member

# Base URLs of its built-in providers, from dist/models.generated.js of pi-ai 0.74.2.
_BUILT_IN = {
    "anthropic": Target(url="https://api.anthropic.com"),
    "cerebras": Target(url="https://api.cerebras.ai/v1", suffix="/v1"),
    "deepseek": Target(url="https://api.deepseek.com"),
    "fireworks": Target(url="https://api.fireworks.ai/inference"),
    "google": Target(url="https://generativelanguage.googleapis.com/v1beta", suffix="/v1beta"),
    "groq": Target(url="https://api.groq.com/openai/v1", suffix="/v1"),
    "huggingface": Target(url="https://router.huggingface.co/v1", suffix="/v1"),
    "kimi-coding": Target(url="https://api.kimi.com/coding"),
    "minimax": Target(url="https://api.minimax.io/anthropic"),
    "minimax-cn": Target(url="https://api.minimaxi.com/anthropic"),
    "mistral": Target(url="https://api.mistral.ai"),
    "moonshotai": Target(url="https://api.moonshot.ai/v1", suffix="/v1"),
    "moonshotai-cn": Target(url="https://api.moonshot.cn/v1", suffix="/v1"),
    "openai": Target(url="https://api.openai.com/v1", suffix="/v1"),
    "openai-codex": Target(url="https://chatgpt.com/backend-api"),
    "openrouter": Target(url="https://openrouter.ai/api/v1", suffix="/v1"),
    "together": Target(url="https://api.together.ai/v1", suffix="/v1"),
    "vercel-ai-gateway": Target(url="https://ai-gateway.vercel.sh"),
    "xai": Target(url="https://api.x.ai/v1", suffix="/v1"),
    "zai": Target(url="https://api.z.ai/api/coding/paas/v4"),
}
_UNREAD = frozenset({"amazon-bedrock", "google-vertex"})


def _agent_folder(situation: Situation) -> Path:
    named = situation.environment.get("PI_CODING_AGENT_DIR")
    return situation.folder / named.replace("~", str(situation.home), 1) if named else situation.home / ".pi" / "agent"


def _targets(situation: Situation) -> dict[str, Target]:
    found = dict(_BUILT_IN)
    providers = member(read_json(_agent_folder(situation) / "models.json"), "providers")
    for name, provider in providers.items() if isinstance(providers, dict) else ():
        built_in = found.pop(name, None)
        url = text_member(provider, "baseUrl") or (built_in.url if built_in is not None else None)
        if url is None or _own_urls(provider) - {url}:
            continue  # several addresses: one override would send all its models to one
        suffix = built_in.suffix if built_in is not None else "/v1" if url.rstrip("/").endswith("/v1") else ""
        found[name] = Target(url=url, suffix=suffix)
    return found


def _own_urls(provider: object) -> set[str]:
    models = member(provider, "models")
    urls = [text_member(model, "baseUrl") for model in models] if isinstance(models, list) else []
    return {url for url in urls if url is not None}


def _provider(situation: Situation) -> str | None:
    """The provider that the command line or the settings name; pi may switch to another later."""
    model = situation.option("--model") or ""
    named = situation.option("--provider") or (model.partition("/")[0] if "/" in model else None)
    return named or text_member(read_json(_agent_folder(situation) / "settings.json"), "defaultProvider")


def _tell(situation: Situation, telling: Telling) -> Change:
    if not telling.bases:
        return Change(environment=telling.environment, command=situation.command)
    extension = telling.work / "agentdyno-recorder.js"
    calls = "".join(
        f"  pi.registerProvider({json.dumps(name)}, {json.dumps({'baseUrl': url})});\n"
        for name, url in telling.bases.items()
    )
    extension.write_text(f"export default function (pi) {{\n{calls}}}\n")
    return Change(environment=telling.environment, command=insert(situation, "-e", str(extension)))


def _needs_forward(situation: Situation) -> str | None:
    name = _provider(situation)
    if name is None or name in _targets(situation) or name in _UNREAD:
        return None
    return f"pi's provider {name} has several addresses, or one that is not known here"


def _unrecordable(situation: Situation) -> str | None:
    name = _provider(situation)
    if name in _UNREAD:
        return (
            f"pi's provider {name} is not read here; run it without the recorder, then "
            "`agentdyno capture import pi ~/.pi/agent/sessions`"
        )
    return None


PI = Agent(
    name="pi",
    title="pi",
    programs=("pi",),
    packages=("@earendil-works/pi-coding-agent", "@mariozechner/pi-coding-agent"),
    targets=_targets,
    tell=_tell,
    needs_forward=_needs_forward,
    unrecordable=_unrecordable,
    advice="a provider that an extension of yours registers is not redirected; try `--mode forward`",
)
