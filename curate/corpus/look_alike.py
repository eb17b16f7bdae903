"""Text that looks like a secret and is none: what redaction must leave as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAlike:
    """A class of harmless text; the function gives a passage and the part of it that must stay."""

    name: str
    build: Callable[[Random], tuple[str, str]]


def look_alike(name: str) -> Callable[[Callable[[Random], tuple[str, str]]], LookAlike]:
    """Make a class of a function that writes the passage."""
    return lambda build: LookAlike(name=name, build=build)
