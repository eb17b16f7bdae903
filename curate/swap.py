"""Many files of a dataset folder replaced as one.

The new files are made beside their places, in `.build/swap.draft`. Renaming that folder to `.build/swap` is the moment
from which the new state holds: whoever opens the folder next finishes a swap that was cut short. Before it, the old
state is untouched; during it, the folder has no manifest, so that nobody takes a mixture for a dataset.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"
WORK = ".build"
_DRAFT = "swap.draft"
_READY = "swap"
_REMOVED = "removed.json"


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
        (folder / MANIFEST).unlink(missing_ok=True)
        for name in json.loads((ready / _REMOVED).read_text(encoding="utf-8")):
            (folder / name).unlink(missing_ok=True)
        for path in sorted(ready.rglob("*")):
            place = folder / path.relative_to(ready)
            if path.is_file() and path.name != _REMOVED and path != ready / MANIFEST:
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        (ready / MANIFEST).replace(folder / MANIFEST)
    shutil.rmtree(ready)


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
    (folder / WORK).mkdir(mode=0o700, exist_ok=True)
    with (folder / WORK / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
