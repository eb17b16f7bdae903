"""A context that a secret stands in, and the harmless lines around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from curate.corpus.kind import Form, Planted

ONE_LINE: frozenset[Form] = frozenset({"token", "password", "url", "connection", "phrase"})
ONE_WORD: frozenset[Form] = frozenset({"token", "password", "url"})
ANY: frozenset[Form] = ONE_LINE | {"block"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """How a value comes to stand in a transcript."""

    name: str
    forms: frozenset[Form]  # of values that one meets there
    build: Callable[[Planted, Random], str]


def context(name: str, forms: frozenset[Form]) -> Callable[[Callable[[Planted, Random], str]], Context]:
    """Make a context of a function that writes the text."""
    return lambda build: Context(name=name, forms=forms, build=build)


SETTINGS = (
    ("LOG_LEVEL", "info"),
    ("PORT", "8080"),
    ("NODE_ENV", "production"),
    ("REGION", "eu-central-1"),
    ("FEATURE_FLAGS", "search,export"),
    ("CACHE_TTL_SECONDS", "300"),
    ("WORKERS", "4"),
    ("TZ", "Europe/Berlin"),
    ("PUBLIC_URL", "https://shop.example.com"),
    ("MAX_UPLOAD_MB", "25"),
    ("QUEUE_NAME", "orders-high"),
    ("ENABLE_METRICS", "true"),
)
PLAIN_LINES = (
    "import os",
    "def load(path):",
    "    return os.path.join(base, path)",
    "# how often the worker asks for new jobs",
    "for name in sorted(names):",
    "    total += sizes[name]",
    "assert total >= 0",
    "class Orders:",
    "    retries = 3",
)
DONE = (
    "Done. 3 files changed.",
    "All 41 tests passed in 2.3 s.",
    "Server listening on port 8080.",
    "The build finished without warnings.",
)


def settings(draw: Random, count: int) -> list[tuple[str, str]]:
    """Some harmless settings."""
    return draw.sample(SETTINGS, count)


def among(draw: Random, lines: list[str], others: list[str]) -> list[str]:
    """Lines kept together, at a random place among others."""
    at = draw.randint(0, len(others))
    return others[:at] + lines + others[at:]


def quoted(text: str) -> str:
    """In double quotes, as shells and many config languages write it."""
    return json.dumps(text, ensure_ascii=False)
