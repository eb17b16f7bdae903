"""Many files of a dataset folder replaced as one.

The new files are made beside their places, in `.build/swap.draft`. Renaming that folder to `.build/swap` is the moment
from which the new state holds: whoever opens the folder next finishes a swap that was cut short. Before it, the old
state is untouched; during it, the folder has no manifest, so that nobody takes a mixture for a dataset.

A folder may come from somebody else, and opening it finishes its swap: nothing outside of the folder is ever written
or removed, neither by a name with `..` nor through a link.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

MANIFEST = "manifest.json"
WORK = ".build"
_DRAFT = "swap.draft"
_READY = "swap"
_REMOVED = "removed.json"


class ForeignSwap(ValueError):
    """A swap that no process of ours left: it would reach out of its folder."""


def is_inside(path: str) -> bool:
    """Whether a path of a manifest names a file of the dataset: below the folder, and no work or private part of it."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and path == "/".join(parts)
        and "\\" not in path
        and "\0" not in path
        and not any(part.startswith(".") for part in parts)
    )


@contextmanager
def swapping(folder: Path) -> Iterator[Path]:
    """Give an empty folder for the new files, by their later paths; nobody else swaps meanwhile.

    BlockingIOError where another process is at work in the folder.
    """
    with _locked(folder, wait=False):
        _finish(folder)
        draft = folder / WORK / _DRAFT
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            _tidy(folder)


def commit(folder: Path, draft: Path, removed: Iterable[str]) -> None:
    """Put the files of a draft, `manifest.json` last, in their places and remove the named ones."""
    (draft / _REMOVED).write_text(json.dumps(sorted(removed)), encoding="utf-8")
    _sync(draft)
    draft.rename(folder / WORK / _READY)
    _finish(folder)


def finish_swap(folder: Path) -> None:
    """Finish a swap that a killed process left; does nothing where there is none."""
    if (folder / WORK / _READY).is_dir():
        with _locked(folder, wait=True):
            _finish(folder)
            _tidy(folder)


def _finish(folder: Path) -> None:
    ready = folder / WORK / _READY
    if not ready.is_dir():
        return
    if (ready / MANIFEST).is_file():
        removed, moved = _removed(ready), _moved(ready)
        for name in (*removed, *moved):
            _refuse_links(folder, name)
        (folder / MANIFEST).unlink(missing_ok=True)
        for name in removed:
            (folder / name).unlink(missing_ok=True)
        for name in moved:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (ready / name).replace(folder / name)
        (ready / MANIFEST).replace(folder / MANIFEST)
    shutil.rmtree(ready)


def _removed(ready: Path) -> list[str]:
    """Names of the files that go."""
    try:
        names = json.loads((ready / _REMOVED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise ForeignSwap(_foreign(ready / _REMOVED)) from fault
    if not isinstance(names, list) or not all(isinstance(name, str) and is_inside(name) for name in names):
        raise ForeignSwap(_foreign(ready / _REMOVED))
    return names


def _moved(ready: Path) -> list[str]:
    """Names of the files that come, but for the manifest."""
    names = []
    for path in sorted(ready.rglob("*")):
        name = path.relative_to(ready).as_posix()
        if path.is_symlink() or not is_inside(name):
            raise ForeignSwap(_foreign(path))
        if path.is_file() and name not in (_REMOVED, MANIFEST):
            names.append(name)
    return names


def _refuse_links(folder: Path, name: str) -> None:
    """A folder that is a link leads to files that are not the dataset's."""
    for parent in PurePosixPath(name).parents:
        if (folder / parent).is_symlink() and parent != PurePosixPath():
            raise ForeignSwap(_foreign(folder / parent))


def _foreign(path: Path) -> str:
    return f"{path} was not left by a command of ours, and nothing was changed; fetch or build the dataset again"


def _sync(draft: Path) -> None:
    """Have the new files on the disk before anything old goes."""
    for path in (*draft.rglob("*"), draft):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _tidy(folder: Path) -> None:
    """Remove `.build/` where a swap alone made it."""
    work = folder / WORK
    if {path.name for path in work.iterdir()} <= {"lock"}:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock that a build of this folder holds as well."""
    work = folder / WORK
    if work.is_symlink():
        raise ForeignSwap(_foreign(work))
    work.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(work / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
