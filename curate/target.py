"""Where a release goes: what publishing needs of a place, be it the Hub, a folder or an object store."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from curate.manifest import MANIFEST


class PublishRefused(ValueError):
    """The place holds something that this release must not touch, or moved meanwhile; the text names the next step."""


class PlaceUnreachable(ValueError):
    """The place cannot be reached, or does not let us in; the text names the next step."""


def without_credentials(text: str) -> str:
    """A text whose URLs name no user and no password: what is said, shown and kept of a place."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a place takes."""

    file_bytes: int
    files: int
    folder_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedFile:
    """A file as the place lists it; a digest is None where the place does not tell it."""

    bytes: int
    sha256: str | None
    git_sha1: str | None = None  # git's blob id


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceState:
    """What a place holds at one moment."""

    exists: bool
    head: str | None  # names this state: a later change of it means that somebody else published
    files: Mapping[str, PlacedFile] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)  # tag → head
    unfinished: frozenset[str] = frozenset()  # paths that a killed upload of ours may have left
    notes: tuple[str, ...] = ()  # what the publisher should know, such as other branches

    @property
    def has_release(self) -> bool:
        """Whether something that may be ours was published here."""
        return MANIFEST in self.files


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a place should be, beyond its files; None: as it is."""

    private: bool | None = None
    gated: str | None = None  # auto | manual


type OnFile = Callable[[str, int], None]
"""Told of each file that was sent or checked: its path and its bytes."""


class Target(Protocol):
    """A place for a release. Methods raise PlaceUnreachable; `send` also PublishRefused when it lost a race."""

    name: str
    folder: Path | None  # where it lies on this machine; None: elsewhere

    def state(self) -> PlaceState:
        """What is there now."""

    def files(self, head: str) -> Mapping[str, PlacedFile]:
        """What is there as of a head."""

    def read(self, path: str, head: str | None) -> bytes:
        """A small file as of a head."""

    def fetch(self, path: str, head: str | None, to: Path) -> None:
        """A file as of a head, from the place itself and not from a cache."""

    def send(
        self,
        folder: Path,
        additions: Collection[str],
        deletions: Collection[str],
        *,
        state: PlaceState,
        wish: Wish,
        message: str,
        on_file: OnFile,
    ) -> str:
        """Put files there and remove others, all or nothing as far as the place can; gives the new head."""

    def tag(self, name: str, head: str) -> None:
        """Name a head; a tag that names it already is fine."""
