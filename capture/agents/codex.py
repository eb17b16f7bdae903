"""Codex: a provider of our own on its command line, or the user's own provider with another base URL."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from capture.agents.agent import Agent, Change, Situation, Target, Telling, member, read_json, text_member
from capture.agents.environment import OPENAI, PUBLIC

CHATGPT = "https://chatgpt.com/backend-api/codex"
_OWN = "agentdyno"


def _home(situation: Situation) -> Path:
    return Path(situation.environment.get("CODEX_HOME") or situation.home / ".codex")


def _config(situation: Situation) -> dict[str, Any]:
    """The configuration as Codex merges it: its file, a profile's part of it, then `-c` options."""
    try:
        with (_home(situation) / "config.toml").open("rb") as file:
            config = tomllib.load(file)
    except (OSError, ValueError):
        config = {}
    profile = situation.option("-p", "--profile") or text_member(config, "profile")
    if profile is not None and isinstance(part := member(config, "profiles", profile), dict):
        config.update(part)
    for key, value in _overrides(situation):
        at = config
        *parents, name = key.split(".")
        for parent in parents:
            below = at.setdefault(parent, {})
            if not isinstance(below, dict):
                break
            at = below
        else:
            at[name] = value
    return config


def _overrides(situation: Situation) -> list[tuple[str, Any]]:
    found = []
    words = situation.arguments
    for index, word in enumerate(words):
        text = None
        if word in ("-c", "--config") and index + 1 < len(words):
            text = words[index + 1]
        elif word.startswith(("--config=", "-c=")):
            text = word.partition("=")[2]
        if text is None:
            continue
        key, equals, value = text.partition("=")
        if equals:
            try:
                found.append((key.strip(), tomllib.loads(f"x = {value}")["x"]))
            except ValueError:
                found.append((key.strip(), value.strip()))
    return found


def _chosen(config: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The provider of the user's own that the configuration chooses; None for the built-in ones."""
    name = text_member(config, "model_provider")
    provider = member(config, "model_providers", name) if name is not None else None
    if name is None or not isinstance(provider, dict) or not isinstance(provider.get("base_url"), str):
        return None
    return name, provider


def _uses_chatgpt(situation: Situation) -> bool:
    """Whether Codex would talk to ChatGPT's backend: it is logged in there, not with an API key."""
    login = read_json(_home(situation) / "auth.json")
    if situation.environment.get("CODEX_API_KEY") or not isinstance(login, dict):
        return False
    return bool(login.get("tokens")) and not login.get("OPENAI_API_KEY")


def _targets(situation: Situation) -> dict[str, Target]:
    config = _config(situation)
    own = _chosen(config)
    if own is not None:
        url = own[1]["base_url"]
    else:
        url = text_member(config, "openai_base_url") or situation.environment.get("OPENAI_BASE_URL") or ""
        url = url or (CHATGPT if _uses_chatgpt(situation) else PUBLIC[OPENAI].url)
    return {OPENAI: Target(url=url, suffix="/v1")}


def _tell(situation: Situation, telling: Telling) -> Change:
    config = _config(situation)
    own = _chosen(config)
    url = telling.bases.get(OPENAI) or _targets(situation)[OPENAI].url
    settings: dict[str, Any] = {}
    if own is not None:
        name = own[0]
        settings[f"model_providers.{name}.base_url"] = url
        settings[f"model_providers.{name}.supports_websockets"] = situation.websocket
    else:
        provider: dict[str, Any] = {
            "name": "OpenAI",
            "base_url": url,
            "wire_api": "responses",
            "supports_websockets": situation.websocket,
        }
        login = read_json(_home(situation) / "auth.json")
        if situation.environment.get("OPENAI_API_KEY") and not isinstance(login, dict):
            provider["env_key"] = "OPENAI_API_KEY"
        else:
            provider["requires_openai_auth"] = True
        settings["model_provider"] = _OWN
        settings.update({f"model_providers.{_OWN}.{name}": value for name, value in provider.items()})
    # A JSON string or boolean is also TOML, which is what -c takes.
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={json.dumps(value)}")]
    at = situation.at + 1 + _end_of_overrides(situation.arguments)
    command = (*situation.command[:at], *words, *telling.arguments, *situation.command[at:])
    return Change(environment=telling.environment, command=command)


def _end_of_overrides(words: tuple[str, ...]) -> int:
    """Where ours go: after the user's own, before or after the subcommand, because the last one of a key wins."""
    end = 0
    for index, word in enumerate(words):
        if word in ("-c", "--config"):
            end = min(index + 2, len(words))
        elif word.startswith(("--config=", "-c=")):
            end = index + 1
    return end


def _unrecordable(situation: Situation) -> str | None:
    if text_member(_config(situation), "model_provider") == "amazon-bedrock":
        return (
            "Codex is set to Bedrock, whose streams are not read here; run it without the recorder, then "
            "`agentdyno capture import codex ~/.codex/sessions`"
        )
    return None


def _bypasses(situation: Situation) -> str | None:
    if "--oss" in situation.arguments:
        return "--oss, which talks to a local server by a provider that cannot be redirected"
    return None


def _has_telemetry(situation: Situation) -> str | None:
    return "otel in config.toml" if member(_config(situation), "otel") else None


CODEX = Agent(
    name="codex",
    title="Codex",
    programs=("codex",),
    packages=("@openai/codex",),
    targets=_targets,
    tell=_tell,
    unrecordable=_unrecordable,
    bypasses=_bypasses,
    has_telemetry=_has_telemetry,
    exports_tool_times=True,
    advice="a profile or `-c` that names another model provider goes past the recorder; try `--mode forward`",
)
