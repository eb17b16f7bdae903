"""Goose: host and path in two variables, or a base URL in one; the environment wins over its configuration file.

Made from its source (crates/goose/src/providers) and documentation; never run by us.
"""

from __future__ import annotations

import re

from capture.agents.agent import Agent, Change, Situation, Target, Telling
from capture.agents.environment import ANTHROPIC, OPENAI

_HOST, _BASE_URL, _ANTHROPIC_HOST = "OPENAI_HOST", "OPENAI_BASE_URL", "ANTHROPIC_HOST"
_NAMES = (_HOST, _BASE_URL, _ANTHROPIC_HOST, "GOOSE_PROVIDER")
_ENTRY = re.compile(r"^([A-Z_]+):\s*[\"']?([^\"'#\s]+)", re.MULTILINE)


def _settings(situation: Situation) -> dict[str, str]:
    """What its configuration file says of these names, the environment above it."""
    try:
        text = (situation.config_home() / "goose" / "config.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = ""
    found = {name: value for name, value in _ENTRY.findall(text) if name in _NAMES}
    return {**found, **{name: situation.environment[name] for name in _NAMES if situation.environment.get(name)}}


def _openai_name(situation: Situation, settings: dict[str, str]) -> str:
    # The host in the environment goes first, then the base URL, then the host of the configuration.
    by_host = situation.environment.get(_HOST) or not settings.get(_BASE_URL)
    return _HOST if by_host else _BASE_URL


def _targets(situation: Situation) -> dict[str, Target]:
    settings = _settings(situation)
    name = _openai_name(situation, settings)
    suffix = "" if name == _HOST else "/v1"  # behind the host comes OPENAI_BASE_PATH, which has the version
    return {
        OPENAI: Target(url=settings.get(name) or "https://api.openai.com", suffix=suffix, source=name),
        ANTHROPIC: Target(url=settings.get(_ANTHROPIC_HOST) or "https://api.anthropic.com", source=_ANTHROPIC_HOST),
    }


def _tell(situation: Situation, telling: Telling) -> Change:
    told = dict(telling.environment)
    if OPENAI in telling.bases:
        told[_openai_name(situation, _settings(situation))] = telling.bases[OPENAI]
    if ANTHROPIC in telling.bases:
        told[_ANTHROPIC_HOST] = telling.bases[ANTHROPIC]
    return Change(environment=told, command=situation.command)


def _needs_forward(situation: Situation) -> str | None:
    provider = _settings(situation).get("GOOSE_PROVIDER")
    if provider is None or provider in (OPENAI, ANTHROPIC):
        return None
    return f"its provider {provider}, whose address neither {_HOST} nor {_ANTHROPIC_HOST} names"


GOOSE = Agent(
    name="goose",
    title="Goose",
    programs=("goose",),
    packages=("goose-ai",),
    targets=_targets,
    tell=_tell,
    needs_forward=_needs_forward,
    advice="base URLs are told to its providers openai and anthropic only; for others use `--mode forward`",
)
