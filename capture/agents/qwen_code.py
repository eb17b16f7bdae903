"""Qwen Code: base URLs by the environment, below a model list of its settings that names addresses of its own.

Run by hand with an OpenAI base URL (0.15.10); not in the test suite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from capture.agents.agent import Agent, Change, Situation, Target, Telling, member, read_dotenv, read_json, text_member
from capture.agents.environment import ANTHROPIC, OPENAI, PUBLIC

_OPTIONS = ("--openai-base-url", "--openaiBaseUrl")
_VARIABLES = {OPENAI: "OPENAI_BASE_URL", ANTHROPIC: "ANTHROPIC_BASE_URL"}


def _settings(situation: Situation) -> list[Any]:
    """Its settings files, the nearest first."""
    return [read_json(folder / ".qwen/settings.json") for folder in (situation.folder, situation.home)]


def _environment(situation: Situation) -> dict[str, str]:
    # Like Gemini CLI, which it was made from: the first of these files only, and the environment wins.
    folders = (situation.folder, *situation.folder.parents, situation.home)
    places = [Path(folder) / name for folder in folders for name in (".qwen/.env", ".env")]
    first = next((path for path in places if path.is_file()), None)
    found: dict[str, str] = {}
    for settings in reversed(_settings(situation)):
        block = member(settings, "env")
        found |= {name: text for name, text in (block or {}).items() if isinstance(text, str)}
    return {**found, **(read_dotenv(first) if first is not None else {}), **situation.environment}


def _targets(situation: Situation) -> dict[str, Target]:
    environment = _environment(situation)
    found = {}
    for provider, name in _VARIABLES.items():
        url = environment.get(name)
        suffix = PUBLIC[provider].suffix
        found[provider] = Target(url=url, suffix=suffix, source=name) if url else PUBLIC[provider]
    if own := situation.option(*_OPTIONS):
        found[OPENAI] = Target(url=own, suffix=PUBLIC[OPENAI].suffix, source=_OPTIONS[0])
    return found


def _tell(situation: Situation, telling: Telling) -> Change:
    told = dict(telling.environment)
    for provider, name in _VARIABLES.items():
        if provider in telling.bases:
            told[name] = telling.bases[provider]
    command = situation.command
    if OPENAI in telling.bases and situation.option(*_OPTIONS):
        # Its own option wins over the environment, and the last of two wins.
        command = (*command, f"{_OPTIONS[0]}={telling.bases[OPENAI]}")
    return Change(environment=told, command=command)


def _needs_forward(situation: Situation) -> str | None:
    chosen = next(
        (kind for it in _settings(situation) if (kind := text_member(it, "security", "auth", "selectedType"))), None
    )
    environment = _environment(situation)
    keys = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", *_VARIABLES.values())
    with_key = any(environment.get(name) for name in keys) or situation.option("--openai-api-key", "--openaiApiKey")
    if (situation.option("--auth-type") or chosen or ("" if with_key else "qwen-oauth")) == "qwen-oauth":
        return "its Qwen login, whose address no base URL changes"
    return None


def _bypasses(situation: Situation) -> str | None:
    for settings in _settings(situation):
        for models in (member(settings, "modelProviders") or {}).values():
            if isinstance(models, list) and any(text_member(model, "baseUrl") for model in models):
                return "a baseUrl under modelProviders in its settings, which wins over the environment"
    return None


QWEN_CODE = Agent(
    name="qwen-code",
    title="Qwen Code",
    programs=("qwen",),
    packages=("@qwen-code/qwen-code",),
    targets=_targets,
    tell=_tell,
    needs_forward=_needs_forward,
    bypasses=_bypasses,
    advice="a provider in its settings wins over the environment; try `--mode forward`",
)
