"""opencode: inline configuration in OPENCODE_CONFIG_CONTENT, which it merges over the user's own files by itself."""

from __future__ import annotations

import json
import re
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

_VARIABLE = "OPENCODE_CONFIG_CONTENT"
# Providers whose calls need nothing but another base URL, and the variables that switch each on. A provider that is
# named in the configuration counts as switched on, so only those that the user has are named.
_KNOWN = {
    "anthropic": (Target(url="https://api.anthropic.com/v1", suffix="/v1"), ("ANTHROPIC_API_KEY",)),
    "openai": (Target(url="https://api.openai.com/v1", suffix="/v1"), ("OPENAI_API_KEY",)),
    "google": (
        Target(url="https://generativelanguage.googleapis.com/v1beta", suffix="/v1beta"),
        ("GOOGLE_GENERATIVE_AI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    "openrouter": (Target(url="https://openrouter.ai/api/v1", suffix="/v1"), ("OPENROUTER_API_KEY",)),
    "deepseek": (Target(url="https://api.deepseek.com"), ("DEEPSEEK_API_KEY",)),
    "groq": (Target(url="https://api.groq.com/openai/v1", suffix="/v1"), ("GROQ_API_KEY",)),
    "mistral": (Target(url="https://api.mistral.ai/v1", suffix="/v1"), ("MISTRAL_API_KEY",)),
    "xai": (Target(url="https://api.x.ai/v1", suffix="/v1"), ("XAI_API_KEY",)),
    "cerebras": (Target(url="https://api.cerebras.ai/v1", suffix="/v1"), ("CEREBRAS_API_KEY",)),
    "togetherai": (Target(url="https://api.together.xyz/v1", suffix="/v1"), ("TOGETHER_API_KEY",)),
    "moonshotai": (Target(url="https://api.moonshot.ai/v1", suffix="/v1"), ("MOONSHOT_API_KEY",)),
    "opencode": (Target(url="https://opencode.ai/zen/v1", suffix="/v1"), ("OPENCODE_API_KEY",)),
}
_ALWAYS_ON = frozenset({"opencode"})  # its free models need no key
_UNREAD = frozenset({"amazon-bedrock", "google-vertex", "google-vertex-anthropic"})


def _configurations(situation: Situation) -> list[Any]:
    """The configuration files in the order in which they are merged, then the inline one."""
    folder = situation.config_home() / "opencode"
    paths = [folder / name for name in ("config.json", "opencode.json", "opencode.jsonc")]
    if own := situation.environment.get("OPENCODE_CONFIG"):
        paths.append(situation.folder / own)
    if not situation.environment.get("OPENCODE_DISABLE_PROJECT_CONFIG"):
        for parent in reversed((situation.folder, *situation.folder.parents)):
            paths += [parent / name for name in ("opencode.json", "opencode.jsonc")]
            paths += [parent / ".opencode" / name for name in ("opencode.json", "opencode.jsonc")]
    if own := situation.environment.get("OPENCODE_CONFIG_DIR"):
        paths += [situation.folder / own / name for name in ("opencode.json", "opencode.jsonc")]
    found = [read_json(path) for path in paths]
    return [*found, parse_json(situation.environment.get(_VARIABLE, ""))]


def _logins(situation: Situation) -> dict[str, Any]:
    inline = situation.environment.get("OPENCODE_AUTH_CONTENT")
    login = parse_json(inline) if inline else read_json(situation.data_home() / "opencode" / "auth.json")
    return login if isinstance(login, dict) else {}


def _targets(situation: Situation) -> dict[str, Target]:
    environment = situation.environment
    logins = _logins(situation)
    configured: dict[str, str | None] = {}
    for configuration in _configurations(situation):
        providers = member(configuration, "provider")
        for name, provider in providers.items() if isinstance(providers, dict) else ():
            url = text_member(provider, "options", "baseURL") or text_member(provider, "api")
            configured[name] = _expanded(url, environment) if url else configured.get(name)
    found = {}
    for name, (target, variables) in _KNOWN.items():
        if name in _ALWAYS_ON or name in configured or name in logins or any(environment.get(it) for it in variables):
            found[name] = target
    # The SDKs of these two read a variable where the configuration names no URL.
    for name, variable in (("anthropic", "ANTHROPIC_BASE_URL"), ("openai", "OPENAI_BASE_URL")):
        if name in found and (url := environment.get(variable)):
            found[name] = Target(url=url, suffix="/v1")
    for name, own in configured.items():
        if own is not None:
            found[name] = Target(url=own, suffix="/v1" if own.rstrip("/").endswith("/v1") else "")
    return found


def _expanded(url: str, environment: Any) -> str:
    return re.sub(r"\{env:([^}]+)\}", lambda match: environment.get(match[1], ""), url)


def _tell(situation: Situation, telling: Telling) -> Change:
    if not telling.bases:
        return Change(environment=telling.environment, command=situation.command)
    own = parse_json(situation.environment.get(_VARIABLE, ""))
    configuration: dict[str, Any] = own if isinstance(own, dict) else {}
    providers = {**(member(configuration, "provider") or {})}
    for name, url in telling.bases.items():
        provider = {**(providers.get(name) or {})}
        provider["options"] = {**(provider.get("options") or {}), "baseURL": url}
        providers[name] = provider
    told = {**telling.environment, _VARIABLE: json.dumps({**configuration, "provider": providers})}
    return Change(environment=told, command=situation.command)


def _needs_forward(situation: Situation) -> str | None:
    for name, login in _logins(situation).items():
        if member(login, "type") == "oauth":
            return f"opencode's login to {name} sends calls to an address of its own"
    model = situation.option("-m", "--model") or next(
        (text for it in reversed(_configurations(situation)) if (text := text_member(it, "model"))), ""
    )
    provider = model.partition("/")[0]
    if provider and provider not in _UNREAD and provider not in _targets(situation):
        return f"the address of opencode's provider {provider} is not known here"
    return None


def _unrecordable(situation: Situation) -> str | None:
    provider = (situation.option("-m", "--model") or "").partition("/")[0]
    if provider in _UNREAD:
        return (
            f"opencode's provider {provider} is not read here; run it without the recorder, then "
            "`agentdyno capture import opencode` its database"
        )
    return None


def _bypasses(_: Situation) -> str | None:
    managed = Path("/etc/opencode")
    for name in ("opencode.json", "opencode.jsonc"):
        if isinstance(member(read_json(managed / name), "provider"), dict):
            return f"providers in {managed / name}, which nothing can override"
    return None


OPENCODE = Agent(
    name="opencode",
    title="opencode",
    programs=("opencode",),
    packages=("opencode-ai",),
    targets=_targets,
    tell=_tell,
    unrecordable=_unrecordable,
    needs_forward=_needs_forward,
    bypasses=_bypasses,
    advice="a provider that is added while it runs is not redirected; try `--mode forward`",
)
