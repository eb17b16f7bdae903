"""A pool of parts: request bodies cut at JSON elements, so that what every turn repeats is stored once.

Two laws. Cuts are only a matter of size: whatever the offsets, the parts joined in order are the body, byte for
byte. Work follows what is new: the part of a body that equals an earlier body is neither parsed nor hashed again.
"""

from __future__ import annotations

import hashlib
import itertools
import json.scanner
import struct
from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import zstandard

from capture.layout import LARGEST_BYTES

DIGEST_BYTES = 16
# These two store a 150-turn session smallest: a moved `cache_control` then costs its neighbours, not a message.
CONTAINER_BYTES = 1024  # an array or object of at least this size is cut inside
VALUE_BYTES = 256  # smaller values stay together, up to a container's size: a part costs about 20 bytes
LEAD_BYTES = 32  # that much before a value (keys, brackets) becomes a part of its own
SCANS = 12  # times its length that a body is scanned at most: real ones nest seven deep, others keep larger parts
REMEMBERED_BODIES = 8
REMEMBERED_BYTES = 32 << 20
KNOWN_PARTS = (
    1 << 17
)  # numbers remembered in each of two generations, about 25 MB both: a forgotten part is stored again
PACK_BYTES = 4 << 20  # new parts are compressed together, this much at most

MOST_PARTS = 1 << 22  # of one body
CACHE_BYTES = 256 << 20  # of packs that a reader keeps unpacked
_LARGEST_SHIFT = 63

type _Scan = Callable[[str, int], tuple[object, int]]
# Scans one JSON value in C: (text, offset) → (value, offset of its end). Public as json.scanner.make_scanner.
_make_scanner = cast(
    "Callable[[json.JSONDecoder], Callable[[str, int], tuple[object, int]]]", json.scanner.make_scanner
)
_scan_once = _make_scanner(json.JSONDecoder(strict=False))
_SPACE = " \t\r\n"


def cut_points(text: str) -> list[int]:
    """Offsets at which to cut JSON text, or a piece of it that starts between two values; increasing, ends excluded.

    `text` holds one character per byte (latin-1). What cannot be scanned stays whole from there on.
    """
    cuts: list[int] = []
    at, last, size = 0, 0, len(text)
    left = SCANS * size
    try:
        while at < size and left > 0:
            character = text[at]
            if character in ",:]}" or character in _SPACE:
                at += 1
                continue
            _, end = _scan_once(text, at)
            length = end - at
            left -= length
            if length >= CONTAINER_BYTES and character in "[{":
                at += 1
                continue
            if (length >= VALUE_BYTES or end - last >= CONTAINER_BYTES) and text[end : end + 1] != ":":
                if at - last >= LEAD_BYTES and length >= VALUE_BYTES:
                    cuts.append(at)
                cuts.append(end)
                last = end
            at = end
    except (StopIteration, ValueError, RecursionError):
        pass  # no JSON, or cut short: one part from the last cut on
    if cuts and cuts[-1] == size:
        cuts.pop()
    return cuts


def encode_runs(numbers: list[int]) -> bytes:
    """Part numbers as runs of consecutive ones: (zigzag step from the end of the last run, length) as varints."""
    out = bytearray()
    expected = index = 0
    count = len(numbers)
    while index < count:
        start = numbers[index]
        stop = index + 1
        while stop < count and numbers[stop] == start + stop - index:
            stop += 1
        step = start - expected
        for value in ((step << 1) if step >= 0 else ((-step << 1) - 1), stop - index):
            rest = value
            while rest > 127:
                out.append((rest & 127) | 128)
                rest >>= 7
            out.append(rest)
        expected = start + stop - index
        index = stop
    return bytes(out)


def decode_runs(data: bytes) -> list[int]:
    """Part numbers from `encode_runs`. ValueError where the bytes end inside a number, or stand for too many."""
    values: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 127) << shift
        if byte & 128:
            shift += 7
            if shift > _LARGEST_SHIFT:
                raise ValueError("a recipe holds a number too large")
        else:
            values.append(value)
            value = shift = 0
    if shift or len(values) % 2:
        raise ValueError("a recipe ends inside a number")
    numbers: list[int] = []
    expected = 0
    for step, length in zip(values[::2], values[1::2], strict=True):
        start = expected + ((step >> 1) if step & 1 == 0 else -((step + 1) >> 1))
        expected = start + length
        if len(numbers) + length > MOST_PARTS:
            raise ValueError("a recipe stands for more parts than a body has")
        numbers.extend(range(start, expected))
    return numbers


def digest_of(part: bytes) -> bytes:
    """The address of a part: BLAKE2b of its bytes, 16 bytes long."""
    return hashlib.blake2b(part, digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """New parts of one commit, compressed together; they are numbered on from `first_part`."""

    first_part: int
    sizes: bytes  # array of u32, little endian
    digests: bytes
    data: bytes  # zstd with checksum

    def unpack(self) -> list[bytes]:
        """The parts in order. ValueError where size or digest says that the bytes are damaged."""
        try:
            sizes = [size for (size,) in struct.iter_unpack("<I", self.sizes)]
            if sum(sizes) > LARGEST_BYTES or zstandard.frame_content_size(self.data) != sum(sizes):
                raise ValueError(f"parts from number {self.first_part} have another size than was written")
            joined = zstandard.ZstdDecompressor().decompress(self.data)
        except (zstandard.ZstdError, struct.error) as fault:
            raise ValueError(f"parts from number {self.first_part} cannot be decompressed") from fault
        parts: list[bytes] = []
        at = 0
        for size in sizes:
            parts.append(joined[at : at + size])
            at += size
        digests = [self.digests[i : i + DIGEST_BYTES] for i in range(0, len(self.digests), DIGEST_BYTES)]
        if [digest_of(part) for part in parts] != digests:
            raise ValueError(f"parts from number {self.first_part} are not what was written")
        return parts


class PartReader:
    """The reader's side of the pool: parts by number. `fetch` gives the last pack that begins at a number or below."""

    def __init__(self, fetch: Callable[[int], Pack | None]) -> None:
        self._fetch = fetch
        self._first_parts: list[int] = []  # of the packs at hand, increasing
        self._packs: dict[int, list[bytes]] = {}  # the one read longest ago first
        self._bytes = 0

    def part(self, number: int) -> bytes:
        """One part; ValueError, KeyError or IndexError where it is damaged or missing."""
        at = bisect_right(self._first_parts, number) - 1
        if at >= 0:
            first = self._first_parts[at]
            parts = self._packs[first]
            if number - first < len(parts):
                return parts[number - first]
        pack = self._fetch(number)
        if pack is None or pack.first_part in self._packs:
            raise KeyError(f"part {number} is missing")
        parts = pack.unpack()
        self._packs[pack.first_part] = parts
        insort(self._first_parts, pack.first_part)
        self._bytes += sum(map(len, parts))
        while self._bytes > CACHE_BYTES and len(self._packs) > 1:
            oldest = next(iter(self._packs))
            self._first_parts.remove(oldest)
            self._bytes -= sum(map(len, self._packs.pop(oldest)))
        return parts[number - pack.first_part]

    def body(self, recipe: bytes, size: int) -> bytes:
        """The body of a recipe, `size` bytes long; ValueError, KeyError or IndexError where it cannot be had."""
        parts: list[bytes] = []
        left = size
        for number in decode_runs(recipe) if size <= LARGEST_BYTES else ():
            parts.append(self.part(number))
            left -= len(parts[-1])
            if left < 0:
                break
        if left:
            raise ValueError("the body has another length than was written")
        return b"".join(parts)


@dataclass(slots=True, eq=False)
class _Remembered:
    body: bytes
    ends: list[int]  # where each part ends in the body
    numbers: list[int]


class PartPool:
    """The writer's side of the pool: gives each body a recipe and collects parts not seen before."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._older: dict[bytes, int] = {}
        self._next = 1
        self._new: list[bytes] = []
        self._new_digests: list[bytes] = []
        self._new_bytes = 0
        self._packs: list[Pack] = []
        self._remembered: list[_Remembered] = []
        self._remembered_bytes = 0
        self._compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)

    def number(self, part: bytes) -> int:
        """The number of a part, given now if its bytes are new."""
        digest = digest_of(part)
        known = self._numbers.get(digest)
        if known is not None:
            return known
        if len(self._numbers) >= KNOWN_PARTS:
            self._older, self._numbers = self._numbers, {}
        known = self._older.get(digest)
        if known is not None:
            self._numbers[digest] = known
            return known
        number = self._numbers[digest] = self._next
        self._next += 1
        self._new.append(part)
        self._new_digests.append(digest)
        self._new_bytes += len(part)
        if self._new_bytes >= PACK_BYTES:
            self._close_pack()
        return number

    def recipe(self, body: bytes) -> bytes:
        """The recipe of a body; its new parts come out of `take_packs`."""
        size = len(body)
        if size < CONTAINER_BYTES:
            return encode_runs([self.number(body)]) if size else b""
        head, tail, before = self._overlap(body)
        ends: list[int] = []
        numbers: list[int] = []
        start, stop = 0, size
        if before is not None:
            ends, numbers = before.ends[:head], before.numbers[:head]
            start = ends[-1] if ends else 0
            stop = size - (len(before.body) - before.ends[tail - 1]) if tail else 0
        if start < stop:
            middle = body[start:stop]
            cuts = [0, *cut_points(middle.decode("latin-1")), stop - start]
            for left, right in itertools.pairwise(cuts):
                numbers.append(self.number(middle[left:right]))
                ends.append(start + right)
        if before is not None:
            shift = size - len(before.body)
            ends += [end + shift for end in before.ends[tail:]]
            numbers += before.numbers[tail:]
        self._remember(body, ends, numbers, before)
        return encode_runs(numbers)

    def take_packs(self) -> list[Pack]:
        """Packs of all parts that are new since the last call."""
        self._close_pack()
        packs, self._packs = self._packs, []
        return packs

    def _close_pack(self) -> None:
        if not self._new:
            return
        self._packs.append(
            Pack(
                first_part=self._next - len(self._new),
                sizes=struct.pack(f"<{len(self._new)}I", *map(len, self._new)),
                digests=b"".join(self._new_digests),
                data=self._compressor.compress(b"".join(self._new)),
            )
        )
        self._new, self._new_digests, self._new_bytes = [], [], 0

    def _overlap(self, body: bytes) -> tuple[int, int, _Remembered | None]:
        """The remembered body that starts most like this one: (equal parts at its head, index of its equal tail)."""
        best: tuple[int, int, _Remembered | None] = (0, 0, None)
        best_bytes = 0
        for remembered in reversed(self._remembered):
            ends, old = remembered.ends, remembered.body
            low, high = 0, len(ends)
            while low < high:  # parts [0, low) are equal
                middle = (low + high + 1) // 2
                start, end = (ends[low - 1] if low else 0), ends[middle - 1]
                if end <= len(body) and body[start:end] == old[start:end]:
                    low = middle
                else:
                    high = middle - 1
            if (ends[low - 1] if low else 0) <= best_bytes:
                continue
            best_bytes = ends[low - 1]
            room = min(len(body), len(old)) - best_bytes
            first, last = low, len(ends)
            while first < last:  # parts [last, end) are equal, seen from the end
                middle = (first + last) // 2
                length = len(old) - ends[middle - 1] if middle else len(old)
                if length <= room and body.endswith(old[len(old) - length :]):
                    last = middle
                else:
                    first = middle + 1
            best = (low, last, remembered)
        return best

    def _remember(self, body: bytes, ends: list[int], numbers: list[int], before: _Remembered | None) -> None:
        if before is not None and _is_later_turn(before, numbers):
            # The next turn takes the place of the one it continues, so that parallel sessions stay remembered.
            self._remembered.remove(before)
            self._remembered_bytes -= len(before.body)
        self._remembered.append(_Remembered(body, ends, numbers))
        self._remembered_bytes += len(body)
        while len(self._remembered) > REMEMBERED_BODIES or self._remembered_bytes > REMEMBERED_BYTES:
            self._remembered_bytes -= len(self._remembered.pop(0).body)


def _is_later_turn(before: _Remembered, numbers: list[int]) -> bool:
    shared = len(set(before.numbers) & set(numbers))
    return 2 * shared >= len(before.numbers)
