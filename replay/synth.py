"""Token-exact prompts for sessions that hold no text: token ids with the recorded block-sharing structure.

A prompt is its hashed blocks followed by a tail that no hash covers. Each block becomes token ids that depend on
nothing but (key, hash, position), so equal prefixes stay equal and unlike keys share nothing; each tail depends on
the request. Block `i` covers the tokens from `floor(i·b·s)` to `floor((i+1)·b·s)` for block size `b` and scale `s`: a
rule of the position alone, so that scaling keeps prefixes shared even where `b·s` is no whole number.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

type Words = NDArray[np.uint64]

# SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014): its increment and the
# multipliers of its finaliser. Uniform and quick in numpy; nothing here needs a cryptographic stream.
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def scope_key(*parts: str) -> int:
    """64-bit key of a salt scope; unlike parts give unlike keys, however they are split."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return int.from_bytes(digest.digest(), "little")


def planned_length(recorded_tokens: int | None, blocks: int, block_size: int, scale: float) -> int:
    """Tokens of the prompt after scaling: the recorded count, or what the blocks cover where none was recorded."""
    recorded = blocks * block_size if recorded_tokens is None else recorded_tokens
    return max(1, math.ceil(recorded * scale - 1e-9))


def covered_length(blocks: int, block_size: int, scale: float) -> int:
    """Tokens that the first `blocks` blocks cover after scaling."""
    return math.floor(blocks * block_size * scale + 1e-9)


def check_scale(block_size: int, scale: float) -> None:
    """Refuse a scale that would leave blocks without a token, since prefixes would then merge."""
    if block_size < 1:
        raise ValueError(f"block size is {block_size}; it must be at least 1 token")
    if block_size * scale < 1:
        raise ValueError(
            f"context scale {scale:g} leaves less than one token of a block of {block_size}; "
            f"use at least {1 / block_size:g}"
        )


def prompt_ids(
    hashes: Sequence[int] | Words,
    *,
    length: int,
    block_size: int,
    scale: float,
    key: int,
    tail_key: int,
    token_ids: tuple[int, int],
    head_blocks: int = 0,
    head_key: int = 0,
) -> Words:
    """Exactly `length` token ids in `[low, high)`: the blocks in order, then the tail.

    The first `head_blocks` blocks depend on `head_key` instead of `key`: all that have that key share them.
    Where the hashes cover more than `length` tokens (a source that counts a partial last block, or one that
    contradicts itself) the length wins and the surplus is cut, which keeps shared prefixes shared up to the cut.
    """
    low, high = token_ids
    if not 0 <= low < high:
        raise ValueError(f"token ids [{low}, {high}) are no range")
    check_scale(block_size, scale)
    blocks = np.asarray(hashes, dtype=np.uint64)
    edges = _edges(len(blocks), block_size, scale)
    covered = min(length, int(edges[-1]))
    words = np.empty(length, dtype=np.uint64)
    if covered:
        used = int(np.searchsorted(edges, covered, side="left"))
        widths = np.diff(edges[: used + 1])
        position = np.arange(used, dtype=np.uint64)
        keys = np.where(position < np.uint64(head_blocks), np.uint64(head_key), np.uint64(key))
        seeds = _mix(_mix(blocks[:used] + keys) ^ (position * _STEP))
        offset = np.arange(int(edges[used]), dtype=np.uint64) - np.repeat(edges[:used].astype(np.uint64), widths)
        words[:covered] = _mix(np.repeat(seeds, widths) + (offset + np.uint64(1)) * _STEP)[:covered]
    if covered < length:
        offset = np.arange(length - covered, dtype=np.uint64)
        words[covered:] = _mix(np.uint64(tail_key) + (offset + np.uint64(1)) * _STEP)
    # The high half of a word times the width, shifted back: unbiased enough, and no division per token.
    return np.uint64(low) + (((words >> np.uint64(32)) * np.uint64(high - low)) >> np.uint64(32))


def encode_ids(ids: Words) -> bytes:
    """JSON list of token ids.

    Numbers stand in columns of equal width, padded by spaces (JSON allows them), because that is one table lookup
    for the whole prompt: ten times faster than writing the numbers one by one.
    """
    if not len(ids):
        return b"[]"
    width = len(str(int(ids.max()))) + 1
    table = _columns(width)
    return b"[" + table[ids].tobytes()[:-1] + b"]"


_COLUMNS: dict[int, NDArray[np.void]] = {}


def _columns(width: int) -> NDArray[np.void]:
    """Every number of fewer than `width` digits as `width` bytes that end in a comma; made once a width."""
    if width not in _COLUMNS:
        if width > 7:
            raise ValueError("token ids above 999999 are not supported")
        numbers = np.arange(10 ** (width - 1))
        text = np.full((len(numbers), width), ord(","), dtype=np.uint8)
        for place in range(width - 1):
            power = 10 ** (width - 2 - place)
            digit = (numbers // power) % 10 + ord("0")
            leading = (numbers < power) & (power > 1)
            text[:, place] = np.where(leading, ord(" "), digit)
        _COLUMNS[width] = np.ascontiguousarray(text).view(np.dtype((np.void, width))).ravel()
    return _COLUMNS[width]


def _edges(blocks: int, block_size: int, scale: float) -> NDArray[np.int64]:
    exact = np.arange(blocks + 1, dtype=np.float64) * block_size * scale
    # 0.1 * 30 is a hair below 3 in binary: the nudge, here and above, keeps floor at the number that was meant.
    return np.floor(exact + 1e-9).astype(np.int64)


def _mix(words: Words) -> Words:
    """SplitMix64's finaliser, element by element, modulo 2^64."""
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * _FIRST
        words = (words ^ (words >> np.uint64(27))) * _SECOND
        return words ^ (words >> np.uint64(31))
