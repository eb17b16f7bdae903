"""Damage in SQLite's write-ahead log, which SQLite itself ends at without a word.

Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER, _FRAME = 32, 24
_MAGIC_LITTLE, _MAGIC_BIG = 0x377F0682, 0x377F0683
_MASK = 0xFFFFFFFF


def lost_wal_bytes(path: Path) -> int:
    """Bytes at the log's end that were written but cannot be replayed; 0 for a whole or missing log."""
    try:
        log = path.read_bytes()
    except FileNotFoundError:
        return 0
    if not log:
        return 0
    if len(log) < _HEADER:
        return len(log)
    magic, _, page, _, salt, salt_2, first, second = struct.unpack(">8I", log[:_HEADER])
    if magic not in (_MAGIC_LITTLE, _MAGIC_BIG):
        return len(log)
    order = "<" if magic == _MAGIC_LITTLE else ">"
    sums = _checksum(log[:24], order, (0, 0))
    if sums != (first, second) or page < 512:
        return len(log)
    at, length = _HEADER, _FRAME + page
    while at < len(log):
        frame = log[at : at + length]
        if len(frame) < _FRAME:
            return len(frame)
        _, _, frame_salt, frame_salt_2, first, second = struct.unpack(">6I", frame[:_FRAME])
        if _is_earlier(frame_salt, salt):
            return 0  # frames of an earlier round of the log, already in the database
        if len(frame) < length or (frame_salt, frame_salt_2) != (salt, salt_2):
            return len(log) - at
        sums = _checksum(frame[_FRAME:], order, _checksum(frame[:8], order, sums))
        if sums != (first, second):
            # SQLite writes a frame's head, then its page. A writer that was killed in between has committed nothing by
            # it, and leaves frames of an earlier round behind it: behind damage stand frames of this one, or the end.
            following = log[at + length : at + length + _FRAME]
            torn = len(following) == _FRAME and _is_earlier(struct.unpack(">I", following[8:12])[0], salt)
            return 0 if torn else len(log) - at
        at += length
    return 0


def _is_earlier(frame_salt: int, salt: int) -> bool:
    """Whether a frame is of an earlier round of the log: each round counts the first salt up."""
    return frame_salt != salt and (salt - frame_salt) & _MASK < 1 << 31


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    one, two = sums
    for first, second in struct.iter_unpack(f"{order}2I", data):
        one = (one + first + two) & _MASK
        two = (two + second + one) & _MASK
    return one, two
