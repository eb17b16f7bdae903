"""What a session says as keys that compare: exact, by its heads, and by MinHash. They hold no text.

Two halves. With text: what people, models and tools said; `heads` and `minhash` leave out system prompts and what the
harness puts into a person's messages, which all sessions of an agent share and which name the day. Without text: how
long each request and its answer were and how much each shares with its parent; fewer than `LEAST_REQUESTS` of known
lengths prove nothing, so such a session is like no other.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from capture.call import Message
from capture.canonical import canonical_arguments, human_text
from capture.trajectory import Trajectory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from curate.row import Row

type Hashes = NDArray[np.uint64]

PERMUTATIONS = 128
SHINGLE_WORDS = 5
SHINGLE_REQUESTS = 3
LEAST_SHINGLES = 50  # fewer say too little for an estimate
LEAST_REQUESTS = 4
HEAD_BYTES = 8
_CHUNK = 1 << 18  # bytes hashed at once: the arrays of a chunk stay in a processor's cache


def exact_key(trajectory: Trajectory, requests: Sequence[Row]) -> str:
    """Digest (hex) of all that was said, in order, without ids and times; of the lengths where there is no text."""
    digest = hashlib.blake2b(digest_size=16)
    if trajectory.pool:
        for pooled in trajectory.pool:
            message = pooled.message
            uses = [(use.name, use.arguments) for use in message.tool_calls]
            said = message.role, message.content, message.reasoning_content, message.is_error, uses
            digest.update(msgspec.json.encode(said))
    elif sum(map(_measured, requests)) >= LEAST_REQUESTS:
        for row in requests:
            digest.update(msgspec.json.encode((row["agent_path"], row["kind"], *_lengths(row))))
    else:
        digest.update(trajectory.session_id.encode())
    return digest.hexdigest()


def heads(trajectory: Trajectory, requests: Sequence[Row]) -> bytes:
    """`HEAD_BYTES` for each answer of the main chain: a digest of the conversation up to it.

    A session that another begins with has its last head among the other's.
    """
    found = []
    digest = hashlib.blake2b(digest_size=HEAD_BYTES)
    if trajectory.pool:
        for pooled in trajectory.pool:
            message = pooled.message
            said = _said(message).strip()
            if pooled.agent_path != "main" or not (said or message.tool_calls):
                continue
            uses = [(use.name, canonical_arguments(use.arguments)) for use in message.tool_calls]
            digest.update(msgspec.json.encode((message.role, said, uses)))
            if message.role == "assistant":
                found.append(digest.digest())
    else:
        measured = 0
        for row in requests:
            if row["agent_path"] != "main":
                continue
            digest.update(msgspec.json.encode(_lengths(row)))
            measured += _measured(row)
            if measured >= LEAST_REQUESTS:
                found.append(digest.digest())
    return b"".join(found)


def minhash(trajectory: Trajectory, requests: Sequence[Row]) -> bytes | None:
    """128 little-endian 32-bit minima over shingles: five words of what was said, or three requests' lengths.

    One permutation split into bins, empty bins filled by fixed probes (A. Shrivastava, "Optimal densification for fast
    and accurate minwise hashing", ICML 2017): the share of equal places estimates the Jaccard similarity as 128
    permutations do, at the cost of one. None with fewer than `LEAST_SHINGLES` (a quarter of it without text).
    """
    if trajectory.pool:
        shingles = _shingles(_words("\n".join(_text(pooled.message) for pooled in trajectory.pool)), SHINGLE_WORDS)
        return _minima(shingles, LEAST_SHINGLES)
    lengths = [
        int.from_bytes(hashlib.blake2b(msgspec.json.encode(_lengths(row)), digest_size=8).digest(), "little")
        for row in requests
        if _measured(row)
    ]
    words = np.array(lengths, dtype=np.uint64)
    return _minima(_shingles(iter([words]), SHINGLE_REQUESTS), LEAST_SHINGLES // 4)


def _lengths(row: Row) -> tuple[Any, ...]:
    return row["prompt_tokens"], row["completion_tokens"], row["lcp_tokens"]


def _measured(row: Row) -> bool:
    return row["prompt_tokens"] is not None and row["completion_tokens"] is not None


def _said(message: Message) -> str:
    """The words of a message that are this session's own."""
    match message.role:
        case "system" | "developer":
            return ""
        case "user":
            return human_text(message)
        case _:
            return message.content


def _text(message: Message) -> str:
    return "\n".join((_said(message), *(f"{use.name}\n{use.arguments}" for use in message.tool_calls)))


# Hashing, vectorised. All arithmetic is modulo 2**64, so the same on every machine. ---------------------------------


def _mixed(values: Hashes) -> Hashes:
    """Each value spread over all 64 bits (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _random(start: int, count: int) -> Hashes:
    return _mixed(np.arange(start, start + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1))


@functools.cache
def _tables() -> tuple[NDArray[np.bool_], Hashes, Hashes, Hashes]:
    """(bytes of words, a number for each byte, powers of an odd base, powers of its inverse)."""
    word = np.array([byte >= 128 or chr(byte).isalnum() or byte == ord("_") for byte in range(256)])
    base = 0x9E3779B97F4A7C15
    powers = np.cumprod(np.full(_CHUNK + 1, base, dtype=np.uint64), dtype=np.uint64)
    inverse = np.cumprod(np.full(_CHUNK + 1, pow(base, -1, 1 << 64), dtype=np.uint64), dtype=np.uint64)
    return word, _random(1, 256), powers, inverse


def _words(text: str) -> Iterator[Hashes]:
    """Hashes of the words of a text, in order: runs of letters, digits and underscores."""
    is_word, numbers, powers, inverse = _tables()
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    done = 0
    while done < len(data):
        chunk = data[done : done + _CHUNK]
        inside = is_word[chunk]
        if done + len(chunk) < len(data):  # end behind a word, if there is one to end behind
            border = len(chunk) - int(np.argmin(inside[::-1]))
            chunk, inside = chunk[:border], inside[:border]
        done += len(chunk)
        edges = np.flatnonzero(np.diff(inside.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
        sums = np.zeros(len(chunk) + 1, dtype=np.uint64)
        np.cumsum(numbers[chunk] * powers[: len(chunk)], out=sums[1:])
        starts, ends = edges[::2], edges[1::2]
        yield (sums[ends] - sums[starts]) * inverse[starts]


def _shingles(words: Iterator[Hashes], length: int) -> Iterator[Hashes]:
    """Hashes of every so many words in a row."""
    weights = _random(1000, length) | np.uint64(1)
    carry = np.empty(0, dtype=np.uint64)
    for part in words:
        row = np.concatenate((carry, part))
        count = len(row) - length + 1
        carry = row[max(0, count) :]
        if count > 0:
            total = np.zeros(count, dtype=np.uint64)
            for place, weight in enumerate(weights):
                total += row[place : place + count] * weight
            yield _mixed(total)


@functools.cache
def _probes() -> NDArray[np.int64]:
    """For each bin, the bins that an empty one takes its value from, best first; every bin is among them."""
    order = _random(5000, PERMUTATIONS * PERMUTATIONS).reshape(PERMUTATIONS, PERMUTATIONS)
    return np.argsort(order, axis=1, kind="stable")


def _minima(shingles: Iterator[Hashes], least: int) -> bytes | None:
    bits = PERMUTATIONS.bit_length() - 1
    empty = np.uint64(1 << 32)
    minima = np.full(PERMUTATIONS, empty, dtype=np.uint64)
    count = 0
    for part in shingles:
        values = (part >> np.uint64(32 - bits)) & np.uint64(0xFFFFFFFF)
        np.minimum.at(minima, (part >> np.uint64(64 - bits)).astype(np.intp), values)
        count += len(part)
    if count < least:
        return None
    filled = minima != empty
    first = np.argmax(filled[_probes()], axis=1)
    source = np.where(filled, np.arange(PERMUTATIONS), _probes()[np.arange(PERMUTATIONS), first])
    return minima[source].astype("<u4").tobytes()
