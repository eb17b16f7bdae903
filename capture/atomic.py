"""Files that appear whole or not at all: written beside their place and renamed into it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write by rename, so that no reader ever sees half a file; `mode` as for open(2), less the umask."""
    draft = write_draft(path, data, mode=mode)
    try:
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def write_once(path: Path, data: bytes, *, mode: int) -> bool:
    """Write a file that is not there yet; False where another process was first, whose file then stays."""
    draft = write_draft(path, data, mode=mode)
    try:
        path.hardlink_to(draft)  # unlike a rename, a link never replaces the other's file
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def write_draft(path: Path, data: bytes, *, mode: int) -> Path:
    """A new file beside `path`, to be renamed into its place."""
    # The folder may be one that others write to: a name nobody can guess, and never a file that is already there.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
            file.write(data)
    except OSError as fault:
        draft.unlink(missing_ok=True)
        fault.filename = str(path)  # a full disk names no file, and nobody knows the draft
        raise
    return draft


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Be the only process that changes what a file of the folder says by what it said; waits for its turn."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
