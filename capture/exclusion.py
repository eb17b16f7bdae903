"""Repositories whose sessions are not recorded: by folder, or by the address of a git remote.

The launcher asks for the folder that it starts in. A recorder that serves several agents reads where each request says
that its agent works; agents state that in their first messages (`<cwd>…</cwd>`, "Working directory: …") or headers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

from capture.atomic import changing, write_atomically

FILE_NAME = "excluded.json"

# What may stand before a folder, in prose of a prompt or as a JSON key, itself perhaps inside a JSON string.
_NEEDLES = (b"orking dir", b"orking in the", b"cwd", b"workdir", b"working_dir", b"workspace")
_REMOTE_NEEDLES = (b"associated_remote_urls", b"repository_url")
_PLACE = rb"""(?:\\n|[\s:=\[{>*`'"(,-]|\\")*
    (?P<folder>(?:/|[A-Za-z]:(?:\\\\|/))(?:[^"<>\n`\\]|\\(?!["n]))*)"""
_FOLDER = re.compile(
    rb"""(?:orking[ _]director(?:y|ies)|orking\ in\ the\ (?:following\ )?director(?:y|ies)|<cwd>|cwd|workdir|working_dir
      |workspaces?(?:[_ ](?:roots?|folders?|path|dir(?:ectory)?))?)
      (?:\ is|\ path)?"""
    + _PLACE,
    re.VERBOSE,
)
_NEXT_FOLDER = re.compile(_PLACE, re.VERBOSE)
_REMOTE = re.compile(rb"""(?:https?://|ssh://|git://|[\w.-]+@)[\w.@:/~+%-]+""")
_LISTED = 16  # folders that one list names
_PLACES = 4096  # in one text: a tool's output may hold any word any number of times
_SPAN = 2048  # bytes after a needle in which its folder stands
_SCP_LIKE = re.compile(r"(?:[\w.-]+@)?([\w.-]+\.[\w-]+|localhost):(?!//)(.+)$")


class ExclusionError(ValueError):
    """The list cannot be read or changed. The sentence names the place and the next step."""


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Folders (absolute, with `/`) and remotes (`host/path`) whose sessions are not recorded."""

    folders: tuple[str, ...] = ()
    remotes: tuple[str, ...] = ()
    _known: dict[str, str | None] = field(default_factory=dict, compare=False, repr=False)

    def __bool__(self) -> bool:
        return bool(self.folders or self.remotes)

    def entry_for(self, folder: str) -> str | None:
        """The entry that excludes work in `folder`, None if it is recorded."""
        if folder not in self._known:
            if len(self._known) > 1024:
                self._known.clear()
            self._known[folder] = self._find(folder)
        return self._known[folder]

    def entry_for_remote(self, address: str) -> str | None:
        """The entry that excludes a repository with this remote."""
        plain = plain_remote(address)
        return plain if plain in self.remotes else None

    def entry_in(self, *texts: bytes) -> str | None:
        """The entry that excludes what a request's headers or body state as the agent's folder or repository."""
        for text in texts:
            for folder in stated_folders(text):
                if (entry := self.entry_for(folder)) is not None:
                    return entry
            if self.remotes:
                for address in stated_remotes(text):
                    if (entry := self.entry_for_remote(address)) is not None:
                        return entry
        return None

    def _find(self, folder: str) -> str | None:
        places = {plain_folder(folder), plain_folder(_resolved(folder))}
        for entry in self.folders:
            if any(_at_or_below(place, entry) for place in places):
                return entry
        repository = _repository(Path(folder))
        if repository is None:
            return None
        if (main := plain_folder(str(repository.parent))) in self.folders:  # another worktree of that repository
            return main
        return next((plain for plain in _remotes_of(repository) if plain in self.remotes), None)


def excluded(store_path: Path | str, folder: Path | str) -> str | None:
    """The entry of the store's list that excludes work in `folder`; None if it is recorded. ExclusionError."""
    return read_exclusions(Path(store_path)).entry_for(str(Path(folder).absolute()))


def read_exclusions(store_path: Path) -> Exclusions:
    """The list of a store, empty if it has none; ExclusionError where it is damaged."""
    path = store_path / FILE_NAME
    try:
        found = json.loads(path.read_text())
        folders, remotes = found["folders"], found["remotes"]
        _ = "".join((*folders, *remotes))  # TypeError where an entry is no text
    except (FileNotFoundError, NotADirectoryError):
        return Exclusions()
    except (OSError, ValueError, TypeError, KeyError) as fault:
        raise ExclusionError(f"{path} cannot be read ({fault}): remove it and exclude anew") from fault
    return Exclusions(tuple(folders), tuple(remotes))


def add(store_path: Path, text: str) -> str:
    """Exclude a folder or a remote; returns the entry as it is kept. ExclusionError where it is neither, OSError."""
    entry = entry_of(text)
    with changing(store_path):
        old = read_exclusions(store_path)
        folders, remotes = set(old.folders), set(old.remotes)
        (folders if _is_folder(entry) else remotes).add(entry)
        _write(store_path, folders, remotes)
    return entry


def remove(store_path: Path, text: str) -> str:
    """Record a folder or a remote again; ExclusionError when it is not on the list, OSError."""
    with changing(store_path):
        old = read_exclusions(store_path)
        entry = next((known for known in (text, entry_of(text)) if known in old.folders + old.remotes), None)
        if entry is None:
            raise ExclusionError(f"{text!r} is not excluded in {store_path}: `capture exclude list` shows what is")
        _write(store_path, set(old.folders) - {entry}, set(old.remotes) - {entry})
    return entry


def entry_of(text: str) -> str:
    """A folder or remote as the list keeps it. ExclusionError for what is neither."""
    if not text.strip():
        raise ExclusionError("name a folder, or a remote such as github.com/owner/repository")
    looks_remote = "://" in text or _SCP_LIKE.match(text) or re.match(r"[\w-]+(?:\.[\w-]+)+/[^/]", text)
    if looks_remote and not re.match(r"[A-Za-z]:[\\/]", text) and not Path(text).exists():
        return plain_remote(text)
    return plain_folder(text if _is_folder(plain_folder(text)) else _resolved(text))


def plain_folder(folder: str) -> str:
    """A folder with `/` between names and none at its end; a Windows drive in lower case."""
    plain = folder.strip().replace("\\", "/")
    if plain[1:2] == ":":
        plain = plain.lower()
    return plain.rstrip("/") or "/"


def plain_remote(address: str) -> str:
    """`host/path` of a git remote's address, whatever its scheme, user and ending."""
    scp = _SCP_LIKE.match(address.strip())
    plain = f"{scp[1]}/{scp[2]}" if scp and "://" not in address else re.sub(r"^[\w+]+://", "", address.strip())
    host, _, path = plain.partition("/")
    host = host.rpartition("@")[2].partition(":")[0].lower()
    return f"{host}/{path.strip('/').removesuffix('.git').lower()}"


def stated_folders(text: bytes) -> Iterator[str]:
    """Folders that a request names as where its agent works, each once. `text` is JSON, or the value of a header."""
    seen: set[bytes] = set()
    for place in _places(text, _NEEDLES):
        stop = place + _SPAN
        # What a needle is part of begins at it, or one byte before or behind it.
        starts = (place, max(0, place - 1), place + 1)
        found = next((match for at in starts if (match := _FOLDER.match(text, at, stop)) is not None), None)
        for _ in range(_LISTED):
            if found is None:
                break
            if found["folder"] not in seen:
                seen.add(found["folder"])
                yield _unescaped(found["folder"])
            found = _NEXT_FOLDER.match(text, found.end(), stop)


def stated_remotes(text: bytes) -> Iterator[str]:
    """Addresses of repositories that a request names, as Codex does in its turn's metadata."""
    for place in islice(_places(text, _REMOTE_NEEDLES), _LISTED):
        for found in _REMOTE.finditer(text, place, place + _SPAN):
            yield found[0].decode("latin-1")


def _places(text: bytes, needles: tuple[bytes, ...]) -> Iterator[int]:
    for needle in needles:
        at = text.find(needle)
        for _ in range(_PLACES):
            if at < 0:
                break
            yield at
            at = text.find(needle, at + len(needle))


def _unescaped(folder: bytes) -> str:
    try:
        text = json.loads(b'"' + folder + b'"')
    except ValueError:
        text = folder.decode("utf-8", "replace")
    return str(text).strip()


def _at_or_below(place: str, entry: str) -> bool:
    """Also where prose goes on behind the folder's name: rather one session too few than one too many."""
    rest = place[len(entry) :]
    return place.startswith(entry) and (not rest or entry == "/" or not re.match(r"[\w.-]", rest))


def _is_folder(entry: str) -> bool:
    return entry.startswith("/") or entry[1:2] == ":"


def _resolved(folder: str) -> str:
    try:
        return str(Path(folder).expanduser().resolve())
    except (OSError, RuntimeError, ValueError):
        return folder


def _repository(folder: Path) -> Path | None:
    """The git folder that all worktrees of the repository around `folder` share; None where there is none."""
    try:
        for place in (folder, *folder.parents):
            git = place / ".git"
            if git.is_dir():
                return git
            if git.is_file():
                own = (place / git.read_text().partition("gitdir:")[2].strip()).resolve()
                common = own / "commondir"
                return (own / common.read_text().strip()).resolve() if common.is_file() else own
    except (OSError, ValueError):
        pass
    return None


@lru_cache(maxsize=256)
def _remotes_of(repository: Path) -> tuple[str, ...]:
    try:
        lines = (repository / "config").read_text(errors="replace").splitlines()
    except OSError:
        return ()
    found = [line.partition("=")[2].strip() for line in lines if re.match(r"\s*(?:push)?url\s*=", line, re.IGNORECASE)]
    return tuple(plain_remote(address) for address in found)


def _write(store_path: Path, folders: Iterable[str], remotes: Iterable[str]) -> None:
    data = json.dumps({"folders": sorted(folders), "remotes": sorted(remotes)}, indent=1).encode() + b"\n"
    write_atomically(store_path / FILE_NAME, data, mode=0o600)
