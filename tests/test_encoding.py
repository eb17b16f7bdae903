"""Content encodings: undone in any pieces, stacked, and never beyond a bound."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.encoding import BodyDecoder


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda body: brotli.compress(body, quality=1),
    "zstd": zstandard.ZstdCompressor().compress,
}


def decode(encoding: str, data: bytes, sizes: tuple[int, ...] = (), **named: int) -> tuple[bytes, str | None]:
    """The decoded body, fed in pieces of the given sizes and then whole."""
    decoder = BodyDecoder(encoding, **named)
    out = b""
    for size in sizes:
        out += decoder.feed(data[:size])
        data = data[size:]
    return out + decoder.feed(data), decoder.fault


@given(
    body=st.binary(max_size=3000),
    names=st.lists(st.sampled_from(sorted(ENCODE)), max_size=3),
    sizes=st.lists(st.integers(0, 40), max_size=30).map(tuple),
)
@settings(max_examples=60, deadline=None)
def test_any_stack_of_encodings_in_any_pieces_gives_the_body(
    body: bytes, names: list[str], sizes: tuple[int, ...]
) -> None:
    data = body
    for name in names:
        data = ENCODE[name](data)
    assert decode(", ".join(names), data, sizes) == (body, None)


@given(data=st.binary(max_size=300), name=st.sampled_from(sorted(ENCODE)), cut=st.integers(0, 60))
@settings(max_examples=80, deadline=None)
def test_garbage_and_cut_bodies_never_raise(data: bytes, name: str, cut: int) -> None:
    decode(name, data)
    whole = ENCODE[name](data)
    out, fault = decode(name, whole[:cut])
    assert fault is None
    assert data.startswith(out)


@pytest.mark.parametrize("name", [*ENCODE, "bare deflate", "gzip of gzip"])
def test_a_bomb_is_refused_before_it_fills_the_memory(name: str) -> None:
    body = bytes(96 * 1024 * 1024)
    inner = bare_deflate(body) if name == "bare deflate" else ENCODE[name.partition(" ")[0]](body)
    bomb = gzip.compress(inner) if name == "gzip of gzip" else inner
    header = {"bare deflate": "deflate", "gzip of gzip": "gzip, gzip"}.get(name, name)
    del body, inner
    tracemalloc.start()
    try:
        out, fault = decode(header, bomb, limit=1024 * 1024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert out == b""
    assert fault is not None
    assert "more than 1048576 bytes" in fault
    assert peak < 48 * 1024 * 1024


def test_the_bound_itself_is_allowed_and_counts_over_pieces() -> None:
    data = gzip.compress(b"x" * 1000)
    assert decode("gzip", data, (5, 5), limit=1000) == (b"x" * 1000, None)
    assert decode("gzip", data, (5, 5), limit=999)[1] is not None


def test_members_in_a_row_and_names_in_any_case() -> None:
    assert decode("GZip", gzip.compress(b"one") + gzip.compress(b"two")) == (b"onetwo", None)
    assert decode("x-gzip, identity", gzip.compress(b"one")) == (b"one", None)
    frames = ENCODE["zstd"](b"one") + ENCODE["zstd"](b"two")
    assert decode("zstd", frames, (3,)) == (b"onetwo", None)


def test_an_unknown_encoding_says_its_name() -> None:
    out, fault = decode("gzip, rot13", b"abc")
    assert (out, "rot13" in str(fault)) == (b"", True)
