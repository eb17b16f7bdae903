"""A paused store: its recorders relay and write nothing but a mark. A file in the store says so, until when."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from capture.atomic import write_atomically

FILE_NAME = "paused.json"
LOOK_S = 0.5
"""How often a recorder looks for the file: what is sent later than that after `pause` is not written."""


@dataclass(frozen=True, slots=True)
class Pause:
    """In force until `until_utc_us`, or until it is taken back where that is None."""

    until_utc_us: int | None


_looked: dict[Path, tuple[float, bool]] = {}


def pause(store_path: Path, for_s: float | None = None) -> Pause:
    """Pause the store, for a time or until `resume`. OSError where the file cannot be written."""
    made = Pause(None if for_s is None else time.time_ns() // 1000 + round(for_s * 1e6))
    write_atomically(
        store_path / FILE_NAME, json.dumps({"until_utc_us": made.until_utc_us}).encode() + b"\n", mode=0o600
    )
    _looked.pop(store_path, None)
    return made


def resume(store_path: Path) -> bool:
    """Record again; whether the store was paused. OSError where the file cannot be removed."""
    was = read_pause(store_path) is not None
    (store_path / FILE_NAME).unlink(missing_ok=True)
    _looked.pop(store_path, None)
    return was


def read_pause(store_path: Path) -> Pause | None:
    """The pause that is in force now. A file that cannot be understood pauses: somebody wanted nothing written."""
    try:
        data = (store_path / FILE_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return Pause(None)
    try:
        until_us = json.loads(data)["until_utc_us"]
    except (ValueError, TypeError, KeyError):
        return Pause(None)
    if not isinstance(until_us, int):
        return Pause(None)
    return Pause(until_us) if until_us > time.time_ns() // 1000 else None


def is_paused(store_path: Path) -> bool:
    """Whether nothing is to be written now; looks at the file at most every `LOOK_S`."""
    now_s = time.monotonic()
    looked = _looked.get(store_path)
    if looked is None or now_s - looked[0] >= LOOK_S:
        looked = _looked[store_path] = (now_s, read_pause(store_path) is not None)
    return looked[1]
