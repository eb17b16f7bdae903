"""GitHub Copilot CLI: a provider of the user's own (BYOK) by base URL, GitHub's models in forward mode only.

Run by hand with providers of type openai and anthropic (1.0.102); not in the test suite, and never by us with GitHub's
own models. Offline (COPILOT_OFFLINE) it exports no telemetry.
"""

from __future__ import annotations

from capture.agents.agent import Agent, Change, Situation, Target, Telling
from capture.agents.environment import ANTHROPIC, OPENAI, PUBLIC

_BASE_URL = "COPILOT_PROVIDER_BASE_URL"  # as `copilot help environment` names it, with _TYPE and COPILOT_MODEL
_GITHUB = "github-copilot"


def _provider(situation: Situation) -> str:
    return ANTHROPIC if situation.environment.get("COPILOT_PROVIDER_TYPE") == "anthropic" else OPENAI


def _targets(situation: Situation) -> dict[str, Target]:
    url = situation.environment.get(_BASE_URL)
    if not url:
        return {_GITHUB: Target(url="https://api.githubcopilot.com")}
    provider = _provider(situation)
    return {provider: Target(url=url, suffix=PUBLIC[provider].suffix, source=_BASE_URL)}


def _tell(situation: Situation, telling: Telling) -> Change:
    told = dict(telling.environment)
    provider = _provider(situation)
    if provider in telling.bases:
        told[_BASE_URL] = telling.bases[provider]
    return Change(environment=told, command=situation.command)


def _needs_forward(situation: Situation) -> str | None:
    if situation.environment.get(_BASE_URL):
        return None
    return f"GitHub's models, whose address no base URL changes ({_BASE_URL} is not set)"


def _has_telemetry(situation: Situation) -> str | None:
    return next((name for name in situation.environment if name.startswith(("OTEL_", "COPILOT_OTEL_"))), None)


COPILOT_CLI = Agent(
    name="copilot-cli",
    title="GitHub Copilot CLI",
    programs=("copilot",),
    packages=("@github/copilot",),
    targets=_targets,
    tell=_tell,
    needs_forward=_needs_forward,
    has_telemetry=_has_telemetry,
    exports_tool_times=True,
    advice=f"base URL mode needs {_BASE_URL} and COPILOT_MODEL; without them use `--mode forward`",
)
