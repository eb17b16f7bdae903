"""A recipe: the few things about a dataset that its sessions cannot tell, as a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a recipe file may set; every key is optional.

    Example: `name = "team-week-12"`, `pretty_name = "Team traces, week 12"`, `license = "CC-BY-4.0"`,
    `card = "card.md"` (beside the recipe), `tokenizer = "o200k_base"`, `language = ["en"]`, `tags = ["internal"]`.
    """

    name: str | None = None
    pretty_name: str | None = None
    license: str | None = None  # SPDX id for sessions that bring none
    tokenizer: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    card: str | None = None  # text spliced into the card


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; raises ValueError naming the file and the key that is wrong."""
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as fault:
        raise ValueError(f"recipe {path}: {fault}") from fault
    known = {field.name for field in fields(Recipe)}
    unknown = sorted(found.keys() - known)
    if unknown:
        raise ValueError(f"recipe {path}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    for key, value in found.items():
        if key in ("language", "tags"):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"recipe {path}: {key} must be a list of texts")
            found[key] = tuple(value)
        elif not isinstance(value, str):
            raise ValueError(f"recipe {path}: {key} must be a text")
    if "card" in found:
        card = path.parent / found["card"]
        try:
            found["card"] = card.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as fault:
            raise ValueError(f"recipe {path}: card text {card} cannot be read: {fault}") from fault
    return Recipe(**{"name": path.stem, **found})
