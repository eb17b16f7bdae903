"""Which agent made a call, and its version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from capture.call import Message

_AGENTS = (
    (re.compile(r"claude-(?:cli|code)(?:/([\w.+-]+))?", re.IGNORECASE), "claude-code"),
    (re.compile(r"codex[\w -]*?(?:/([\w.+-]+))", re.IGNORECASE), "codex"),
    (re.compile(r"opencode(?:/([\w.+-]+))?", re.IGNORECASE), "opencode"),
    (re.compile(r"(?:^|\s)pi(?:-coding-agent)?(?:/([\w.+-]+)|\s*\(|$)", re.IGNORECASE), "pi"),
    (re.compile(r"mini-?swe-?agent(?:/([\w.+-]+))?", re.IGNORECASE), "mini-swe-agent"),
    (re.compile(r"qwen-?code(?:/([\w.+-]+))?", re.IGNORECASE), "qwen-code"),
    (re.compile(r"gemini-?cli(?:-[\w-]+)?(?:/v?([\w.+-]+))?", re.IGNORECASE), "gemini-cli"),
    (re.compile(r"aider(?:/([\w.+-]+))?", re.IGNORECASE), "aider"),
)
_BY_PROMPT = (
    ("You are Claude Code", "claude-code"),
    ("Claude Agent SDK", "claude-code"),
    ("operating inside pi", "pi"),
    ("You are opencode", "opencode"),
    ("Codex CLI", "codex"),
)


def read_harness(headers: Mapping[str, str], head: Iterable[Message]) -> tuple[str, str | None]:
    """Which agent called, and its version: from the user agent, else the originator header, else its own prompt."""
    agent = headers.get("user-agent", "")
    originator = headers.get("originator", "")
    for text in (agent, originator):
        for pattern, name in _AGENTS:
            if found := pattern.search(text):
                return name, found[1]
    if originator.lower().startswith("codex"):
        return "codex", headers.get("version")
    for message in head:
        for words, name in _BY_PROMPT:
            if words in message.content[:4000]:
                return name, None
    return "unknown", None
