"""Gemini CLI: one variable for API keys, another for Google logins, which go to the Code Assist server."""

from __future__ import annotations

from pathlib import Path

from capture.agents.agent import Agent, Change, Situation, Target, Telling, read_dotenv, read_json, text_member
from capture.agents.environment import GEMINI, PUBLIC

_CODE_ASSIST = "code-assist"
_BASE_URL, _ENDPOINT = "GOOGLE_GEMINI_BASE_URL", "CODE_ASSIST_ENDPOINT"


def _environment(situation: Situation) -> dict[str, str]:
    # It reads the first of these files only, and never replaces what the environment has.
    places = [
        folder / name for folder in (situation.folder, *situation.folder.parents) for name in (".gemini/.env", ".env")
    ]
    places += [situation.home / ".gemini/.env", situation.home / ".env"]
    first = next((path for path in places if path.is_file()), None)
    return {**(read_dotenv(first) if first is not None else {}), **situation.environment}


def _login(situation: Situation, environment: dict[str, str]) -> str:
    """The kind of login, by the settings first, as the program's own auth type names it."""
    for path in (situation.folder / ".gemini/settings.json", situation.home / ".gemini/settings.json"):
        chosen = text_member(read_json(Path(path)), "security", "auth", "selectedType")
        if chosen is not None:
            return chosen
    if environment.get("GOOGLE_GENAI_USE_GCA") == "true":
        return "oauth-personal"
    if environment.get("GOOGLE_GENAI_USE_VERTEXAI") == "true":
        return "vertex-ai"
    if environment.get(_BASE_URL):
        return "gateway"
    return "gemini-api-key" if environment.get("GEMINI_API_KEY") else "oauth-personal"


def _targets(situation: Situation) -> dict[str, Target]:
    environment = _environment(situation)
    return {
        GEMINI: Target(url=environment.get(_BASE_URL) or PUBLIC[GEMINI].url),
        _CODE_ASSIST: Target(url=environment.get(_ENDPOINT) or "https://cloudcode-pa.googleapis.com"),
    }


def _tell(situation: Situation, telling: Telling) -> Change:
    told = dict(telling.environment)
    if _CODE_ASSIST in telling.bases:
        told[_ENDPOINT] = telling.bases[_CODE_ASSIST]
    if GEMINI in telling.bases and _login(situation, _environment(situation)) in ("gemini-api-key", "gateway"):
        told[_BASE_URL] = telling.bases[GEMINI]  # with a Google login it would change the kind of login
    return Change(environment=told, command=situation.command)


def _unrecordable(situation: Situation) -> str | None:
    if _login(situation, _environment(situation)) == "vertex-ai":
        return "Gemini CLI is set to Vertex AI, whose calls are not read here; use an API key or a Google login"
    return None


GEMINI_CLI = Agent(
    name="gemini-cli",
    title="Gemini CLI",
    programs=("gemini",),
    packages=("@google/gemini-cli",),
    targets=_targets,
    tell=_tell,
    unrecordable=_unrecordable,
    advice="a base URL in its settings wins over the environment; try `--mode forward`",
)
