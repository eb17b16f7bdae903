"""Claude Code: base URL by environment, or by `--settings` where its settings files would win over the environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from capture.agents.agent import (
    Agent,
    Change,
    Situation,
    Target,
    Telling,
    member,
    parse_json,
    read_json,
    text_member,
)
from capture.agents.environment import ANTHROPIC, PUBLIC
from capture.atomic import write_atomically

_MANAGED = (
    Path("/etc/claude-code/managed-settings.json"),
    Path("/Library/Application Support/ClaudeCode/managed-settings.json"),
)
_OTHER_CLOUDS = {
    "CLAUDE_CODE_USE_BEDROCK": "Bedrock",
    "CLAUDE_CODE_USE_VERTEX": "Vertex AI",
    "CLAUDE_CODE_USE_FOUNDRY": "Foundry",
}


def _config(situation: Situation) -> Path:
    return Path(situation.environment.get("CLAUDE_CONFIG_DIR") or situation.home / ".claude")


def _own_settings(situation: Situation) -> Any:
    """What the user's own `--settings` says: JSON, or the name of a file."""
    own = situation.option("--settings")
    if own is None:
        return None
    return parse_json(own) if own.lstrip().startswith("{") else read_json(situation.folder / own)


def _settings_environment(situation: Situation) -> dict[str, str]:
    """The `env` blocks of its settings, which win over the process's environment; the nearest wins."""
    found: dict[str, str] = {}
    config = _config(situation)
    files = (config / "settings.json", *(situation.folder / ".claude" / f"settings{it}.json" for it in ("", ".local")))
    for settings in (*map(read_json, files), _own_settings(situation), *map(read_json, _MANAGED)):
        block = member(settings, "env")
        if isinstance(block, dict):
            found.update({name: value for name, value in block.items() if isinstance(value, str)})
    return found


def _environment(situation: Situation) -> dict[str, str]:
    return {**situation.environment, **_settings_environment(situation)}


def _targets(situation: Situation) -> dict[str, Target]:
    url = _environment(situation).get("ANTHROPIC_BASE_URL")
    return {ANTHROPIC: Target(url=url, source="ANTHROPIC_BASE_URL") if url else PUBLIC[ANTHROPIC]}


def _tell(situation: Situation, telling: Telling) -> Change:
    told = {"CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1", **telling.environment}
    if ANTHROPIC in telling.bases:
        told["ANTHROPIC_BASE_URL"] = telling.bases[ANTHROPIC]
    block = _settings_environment(situation)
    hidden = {name: value for name, value in told.items() if block.get(name, value) != value}
    command = _with_settings(situation, hidden, telling.work) if hidden else situation.command
    return Change(environment=told, command=command)


def _with_settings(situation: Situation, block: dict[str, str], work: Path) -> tuple[str, ...]:
    """By a file of ours: settings may hold keys, and every user of the machine can read a command line."""
    own = _own_settings(situation)
    merged = {**own, "env": {**(member(own, "env") or {}), **block}} if isinstance(own, dict) else {"env": block}
    kept = list(situation.arguments)
    for index, word in reversed(list(enumerate(kept))):
        if word == "--settings":
            del kept[index : index + 2]
        elif word.startswith("--settings="):
            del kept[index]
    path = work / "settings.json"
    write_atomically(path, json.dumps(merged).encode(), mode=0o600)
    return (*situation.command[: situation.at + 1], "--settings", str(path), *kept)


def _unrecordable(situation: Situation) -> str | None:
    environment = _environment(situation)
    for name, cloud in _OTHER_CLOUDS.items():
        if environment.get(name, "").lower() not in ("", "0", "false"):
            return (
                f"Claude Code is set to {cloud} ({name}), whose streams are not read here; "
                "run it without the recorder, then `agentdyno capture import claude-code ~/.claude/projects`"
            )
    return None


def _bypasses(_: Situation) -> str | None:
    for path in _MANAGED:
        if text_member(read_json(path), "env", "ANTHROPIC_BASE_URL"):
            return f"ANTHROPIC_BASE_URL in {path}, which nothing can override"
    return None


def _has_telemetry(situation: Situation) -> str | None:
    environment = _environment(situation)
    return next(
        (name for name in environment if name.startswith("OTEL_") or name == "CLAUDE_CODE_ENABLE_TELEMETRY"), None
    )


CLAUDE_CODE = Agent(
    name="claude-code",
    title="Claude Code",
    programs=("claude",),
    packages=("@anthropic-ai/claude-code",),
    targets=_targets,
    tell=_tell,
    unrecordable=_unrecordable,
    bypasses=_bypasses,
    has_telemetry=_has_telemetry,
    exports_tool_times=True,
    declares_tool_times=True,
    advice="a managed settings file may name another base URL (`agentdyno doctor` shows it); try `--mode forward`",
)
