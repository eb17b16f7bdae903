"""How much a stretch of a text looks drawn by chance rather than written, in bits, over a whole text at C speed.

Every pair of letters speaks for chance or for writing by log2 of a uniform draw from 64 letters over how often code
and prose put the second after the first (`data/letter-pairs.tsv`, made by `bench/letter_pairs.py`). The evidence of a
stretch is the largest sum over it (Kadane's maximal subarray), so that `acme_live_` before a key takes nothing away.
A random key of 16 letters and digits has 48 bits on average, a name in code rarely 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    type _Array = np.ndarray[Any, np.dtype[Any]]

_PIECE = 1 << 15  # characters at a time: the sums then stay in 32 bits and in the processor's cache
_BREAK = -(1 << 15)  # what is no letter ends a stretch; thousands of letters of pure chance may outlive a few of these
_PER_BIT = 8  # units of the table
LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-+/"
_RUNS = bytes(code if code in LETTERS else 32 for code in range(256))


@cache
def _table() -> _Array:
    """Evidence for each pair of bytes, at 256 × first + second."""
    import numpy as np

    lines = (files("curate") / "data" / "letter-pairs.tsv").read_text(encoding="ascii").splitlines()
    letters = [ord(letter) for letter in lines[0].split("\t")[1:]]
    rows = {line[0]: [int(number) for number in line.split("\t")[1:]] for line in lines[1:]}
    table = np.full((256, 256), _BREAK, dtype=np.int16)
    table[:, letters] = rows["^"]
    for before in letters:
        table[before, letters] = rows[chr(before)]
    return table.ravel()


def evidence(data: bytes) -> Iterator[tuple[int, _Array]]:
    """Per piece of the text its offset and, for each letter of it, the evidence of the best stretch ending there."""
    import numpy as np

    table = _table()
    letters = np.frombuffer(data, dtype=np.uint8)
    total = 0
    before = 32
    for offset in range(0, len(letters), _PIECE):
        piece = letters[offset : offset + _PIECE]
        pair = np.empty(len(piece), dtype=np.uint16)
        pair[0] = before << 8
        np.left_shift(piece[:-1], 8, out=pair[1:], dtype=np.uint16)
        pair |= piece
        before = int(piece[-1])
        sums = np.cumsum(table.take(pair, mode="wrap"), dtype=np.int32)
        sums += total
        floor = np.minimum.accumulate(sums)
        np.minimum(floor, 0, out=floor)
        sums -= floor
        total = min(int(sums[-1]), -_BREAK)
        yield offset, sums


def spots(data: bytes, bits: int) -> list[tuple[int, int, int]]:
    """Unbroken runs of letters that hold a stretch of at least so many bits: begin, end, bits of the best stretch."""
    import numpy as np

    found: list[tuple[int, int, int]] = []
    runs = data.translate(_RUNS)
    for offset, sums in evidence(data):
        hits = np.flatnonzero(sums >= bits * _PER_BIT)
        at = 0
        while at < len(hits):
            place = int(hits[at])
            begin = runs.rfind(b" ", 0, place + offset) + 1
            end = runs.find(b" ", place + offset)
            end = len(data) if end < 0 else end
            if end <= place + offset:  # what a giant run left over
                at += 1
                continue
            most = int(sums[place : end - offset].max()) // _PER_BIT
            if found and found[-1][0] == begin:  # the run lies in two pieces
                most = max(most, found.pop()[2])
            found.append((begin, end, most))
            at = int(np.searchsorted(hits, end - offset))
    return found


def best_stretch(text: str) -> tuple[int, int, int]:
    """Begin, end and bits of the stretch of a short text with the most evidence."""
    data = text.encode("ascii", "replace")
    most, begin, end = 0, 0, 0
    for offset, sums in evidence(data):
        at = int(sums.argmax())
        if sums[at] > most:
            most, end = int(sums[at]), offset + at + 1
            zeros = (sums[:at] <= 0).nonzero()[0]
            begin = offset + int(zeros[-1]) + 1 if len(zeros) else begin if offset else 0
    return begin, end, most // _PER_BIT


def bits(text: str) -> int:
    """Evidence of the best stretch of a short text."""
    return best_stretch(text)[2]
