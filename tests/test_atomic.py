from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from capture.atomic import write_atomically


def test_a_file_appears_whole_and_private_whatever_lies_beside_it(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"before")
    (tmp_path / f".file.{os.getpid()}").symlink_to(victim)  # planted in a folder that others write to
    (tmp_path / "file").symlink_to(victim)
    write_atomically(tmp_path / "file", b"data", mode=0o600)
    assert victim.read_bytes() == b"before"
    assert (tmp_path / "file").read_bytes() == b"data"
    state = (tmp_path / "file").lstat()
    assert stat.S_ISREG(state.st_mode)
    assert stat.S_IMODE(state.st_mode) == 0o600


def test_what_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_atomically(tmp_path / "folder", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
