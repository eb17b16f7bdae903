"""Agents that take their base URLs from the environment: any program, and those built on litellm.

OpenHands and SWE-agent were never run by us: their rows are made from litellm's source and their documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from capture.agents.agent import Agent, Change, Situation, Target, Telling, read_dotenv, read_json, text_member

ANTHROPIC, OPENAI, GEMINI = "anthropic", "openai", "gemini"
PUBLIC = {
    ANTHROPIC: Target(url="https://api.anthropic.com"),
    OPENAI: Target(url="https://api.openai.com/v1", suffix="/v1"),
    GEMINI: Target(url="https://generativelanguage.googleapis.com"),
}
VARIABLES = {
    ANTHROPIC: ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_BASE"),
    OPENAI: ("OPENAI_BASE_URL", "OPENAI_API_BASE"),
    GEMINI: ("GOOGLE_GEMINI_BASE_URL", "GEMINI_API_BASE"),
}


def targets_of(environment: Mapping[str, str]) -> dict[str, Target]:
    """Where the three providers' calls go by an environment, else the public addresses."""
    found = {}
    for provider, public in PUBLIC.items():
        name = next((name for name in VARIABLES[provider] if environment.get(name)), None)
        found[provider] = (
            Target(url=environment[name], suffix=public.suffix, source=name) if name is not None else public
        )
    return found


def variables_for(bases: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    """Base URL variables. Secondary names only where set, or where a library reads them first."""
    told = {}
    for provider, url in bases.items():
        main, other = VARIABLES[provider]
        told[main] = url
        if other in inherited or provider == OPENAI:
            told[other] = url
    return told


def _targets(situation: Situation) -> dict[str, Target]:
    return targets_of(situation.environment)


def _tell(situation: Situation, telling: Telling) -> Change:
    told = {**telling.environment, **variables_for(telling.bases, situation.environment)}
    # The command may be a script around Claude Code: by default it declares tool times to its own provider only.
    told.setdefault("CLAUDE_CODE_GATEWAY_HINT_HEADERS", "1")
    return Change(environment=told, command=situation.command)


def _litellm_tell(situation: Situation, telling: Telling) -> Change:
    told = {**telling.environment}
    for provider, url in telling.bases.items():
        told.update(dict.fromkeys(VARIABLES[provider], url))
    return Change(environment=told, command=situation.command)


def _mini_targets(situation: Situation) -> dict[str, Target]:
    # Its global configuration is a dotenv file that never replaces what the environment has.
    folder = situation.environment.get("MSWEA_GLOBAL_CONFIG_DIR")
    path = (situation.config_home() / "mini-swe-agent" if not folder else situation.folder / folder) / ".env"
    return targets_of({**read_dotenv(path), **situation.environment})


def _aider_environment(situation: Situation) -> dict[str, str]:
    # Its dotenv files replace the environment, the nearest last; its options replace both.
    found = dict(situation.environment)
    for folder in (situation.home, _repository(situation), situation.folder):
        found.update(read_dotenv(folder / ".env"))
    if own := situation.option("--env-file"):
        found.update(read_dotenv(situation.folder / own))
    if own := situation.option("--openai-api-base") or situation.environment.get("AIDER_OPENAI_API_BASE"):
        found["OPENAI_API_BASE"] = found["OPENAI_BASE_URL"] = own
    return found


def _repository(situation: Situation) -> Path:
    for folder in (situation.folder, *situation.folder.parents):
        if (folder / ".git").exists():
            return folder
    return situation.folder


def _aider_targets(situation: Situation) -> dict[str, Target]:
    return targets_of(_aider_environment(situation))


def _aider_tell(situation: Situation, telling: Telling) -> Change:
    change = _litellm_tell(situation, telling)
    if OPENAI not in telling.bases:
        return change
    command = _with_option(situation, "--openai-api-base", telling.bases[OPENAI])
    return Change(environment=change.environment, command=command)


def _with_option(situation: Situation, name: str, value: str) -> tuple[str, ...]:
    """The command with an option of ours in the place of the user's own."""
    kept = list(situation.arguments)
    for index, word in reversed(list(enumerate(kept))):
        if word == name:
            del kept[index : index + 2]
        elif word.startswith(f"{name}="):
            del kept[index]
    return (*situation.command[: situation.at + 1], name, value, *kept)


def _aider_bypasses(situation: Situation) -> str | None:
    found = _aider_environment(situation)
    for provider in (ANTHROPIC, GEMINI):
        for name in VARIABLES[provider]:
            if found.get(name) != situation.environment.get(name):
                return f"{name} in a .env file, which Aider prefers to the environment"
    return None


_LLM_BASE_URL = "LLM_BASE_URL"
_API_BASE = "--agent.model.api_base"


def _provider_of(model: str) -> str:
    """Whose API litellm speaks for a model's name."""
    return next(
        (name for name in (ANTHROPIC, GEMINI) if model.startswith((f"{name}/", f"litellm_proxy/{name}/"))), OPENAI
    )


def _openhands_targets(situation: Situation) -> dict[str, Target]:
    found = targets_of(situation.environment)
    if url := situation.environment.get(_LLM_BASE_URL):
        provider = _provider_of(situation.environment.get("LLM_MODEL", ""))
        found[provider] = Target(url=url, suffix=PUBLIC[provider].suffix, source=_LLM_BASE_URL)
    return found


def _openhands_tell(situation: Situation, telling: Telling) -> Change:
    change = _litellm_tell(situation, telling)
    provider = _provider_of(situation.environment.get("LLM_MODEL", ""))
    if not situation.environment.get(_LLM_BASE_URL) or provider not in telling.bases:
        return change
    return Change(environment={**change.environment, _LLM_BASE_URL: telling.bases[provider]}, command=change.command)


def _openhands_bypasses(situation: Situation) -> str | None:
    path = situation.home / ".openhands" / "agent_settings.json"
    return (
        f"base_url in {path}, which wins over the environment"
        if text_member(read_json(path), "llm", "base_url")
        else None
    )


def _swe_agent_targets(situation: Situation) -> dict[str, Target]:
    found = targets_of({**read_dotenv(situation.folder / ".env"), **situation.environment})
    if url := situation.option(_API_BASE):
        provider = _provider_of(situation.option("--agent.model.name") or "")
        found[provider] = Target(url=url, suffix=PUBLIC[provider].suffix, source=_API_BASE)
    return found


def _swe_agent_tell(situation: Situation, telling: Telling) -> Change:
    change = _litellm_tell(situation, telling)
    provider = _provider_of(situation.option("--agent.model.name") or "")
    if situation.option(_API_BASE) is None or provider not in telling.bases:
        return change
    kept = list(situation.command)
    for index, word in enumerate(kept):
        if word == _API_BASE:
            kept[index + 1] = telling.bases[provider]
        elif word.startswith(f"{_API_BASE}="):
            kept[index] = f"{_API_BASE}={telling.bases[provider]}"
    return Change(environment=change.environment, command=tuple(kept))


ANY = Agent(
    name="",
    title="this command",
    programs=(),
    packages=(),
    targets=_targets,
    tell=_tell,
    advice="does it read ANTHROPIC_BASE_URL, OPENAI_BASE_URL or GOOGLE_GEMINI_BASE_URL? If not, try `--mode forward`",
)
MINI_SWE_AGENT = Agent(
    name="mini-swe-agent",
    title="mini-swe-agent",
    programs=("mini", "mini-swe-agent", "mini-extra", "mini-e"),
    packages=("mini-swe-agent", "minisweagent"),
    targets=_mini_targets,
    tell=_litellm_tell,
    advice="an `api_base` in its YAML configuration wins over the environment; else try `--mode forward`",
)
AIDER = Agent(
    name="aider",
    title="Aider",
    programs=("aider",),
    packages=("aider-chat", "aider"),
    targets=_aider_targets,
    tell=_aider_tell,
    bypasses=_aider_bypasses,
    advice="for providers other than OpenAI, Anthropic and Gemini use `--mode forward`",
)
OPENHANDS = Agent(
    name="openhands",
    title="OpenHands",
    programs=("openhands",),
    packages=("openhands-ai", "openhands"),
    targets=_openhands_targets,
    tell=_openhands_tell,
    bypasses=_openhands_bypasses,
    advice="a base URL in its own settings wins over the environment, and a container has another loopback; "
    "then try `--mode forward`",
)
SWE_AGENT = Agent(
    name="swe-agent",
    title="SWE-agent",
    programs=("sweagent",),
    packages=("sweagent", "swe-agent"),
    targets=_swe_agent_targets,
    tell=_swe_agent_tell,
    advice="an `api_base` in its configuration file wins over the environment; then try `--mode forward`",
)
