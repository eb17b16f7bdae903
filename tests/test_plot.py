"""Pictures are valid, alike each time, small, and leave out what nobody measured."""

from __future__ import annotations

import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curate.cache import ideal_cache
from curate.chart import bars, distribution_lines, log_histogram, mark_labels, repacked, side_by_side, to_png, to_svg
from curate.frames import frames_of, read_frames
from curate.manifest import read_manifest
from curate.plot import Plot, draw_plots
from curate.recipe import Recipe, Statistics
from curate.row import rows_of
from curate.stats import compute_stats
from curate.units import short_number
from tests.sample_sessions import content_free_session, make, text_session

SVG = "{http://www.w3.org/2000/svg}"
MAGIC = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Plot, ...]]:
    """Pictures of sessions with text, tools and times, and of one with block hashes."""
    out = tmp_path_factory.mktemp("plots") / "d"
    sessions = [*(text_session(f"s{n}", turns=n + 1) for n in range(8)), content_free_session()]
    make(sessions, out, problems=("gone",), recipe=Recipe(statistics=Statistics(plots=False)))
    manifest = read_manifest(out)
    frames = read_frames(out, manifest)
    cache = ideal_cache(frames)
    return out, draw_plots(frames, cache, compute_stats(frames, manifest, cache=cache), out)


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and the filtered rows; checks every chunk's sum."""
    assert png[:8] == MAGIC
    at, data, size, kinds = 8, b"", (0, 0), []
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        kinds.append(kind)
        if kind == b"IHDR":
            size = struct.unpack(">II", body[:8])
        data += body if kind == b"IDAT" else b""
        at += 12 + length
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    return *size, zlib.decompress(data)


def test_pictures_are_valid_and_of_card_width_twice_over(drawn: tuple[Path, tuple[Plot, ...]]) -> None:
    out, plots = drawn
    assert [plot.path for plot in plots] == [
        f"plots/{name}.png" for name in ("context-growth", "lengths", "times", "cache", "sessions", "contents")
    ]
    for plot in plots:
        png = (out / plot.path).read_bytes()
        width, height, rows = pixels(png)
        assert 1400 <= width <= 1900
        assert 200 <= height <= 1000
        assert len(rows) == height * (1 + 4 * width)
        assert len(png) < 150_000
        svg = (out / plot.svg).read_bytes()
        assert len(svg) < 150_000
        assert ET.fromstring(svg).tag == f"{SVG}svg"


def texts(path: Path) -> list[str]:
    return [element.text or "" for element in ET.parse(path).iter(f"{SVG}text")]


def test_pictures_say_what_they_show_and_who_counted(drawn: tuple[Path, tuple[Plot, ...]]) -> None:
    out, _ = drawn
    assert "9 sessions, counted by the provider" in texts(out / "plots/context-growth.svg")
    lengths = texts(out / "plots/lengths.svg")
    assert {"Input", "New input", "Output"} <= set(lengths)
    times = texts(out / "plots/times.svg")
    assert any(text.startswith("exec: 8 s (") for text in times)
    assert not any(text.startswith("human") for text in times)  # nobody measured any
    contents = texts(out / "plots/contents.svg")
    assert {"Languages", "python", "100.0 %", "Funnel", "read", "10", "after read", "9"} <= set(contents)


def test_the_same_data_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    program = """
import hashlib, sys
import numpy as np
from curate.chart import *
from curate.units import short_number
values = np.sort(np.random.default_rng(7).lognormal(5, 2, 400))
lines = {"b": values, "a": values * 3}
chart = side_by_side([
    distribution_lines("Title", "note", lines, of="rows", axis="tokens", label=short_number),
    bars("Bars", "note", {"z": 3.0, "a": 1.0}, label=short_number),
])
svg = to_svg(chart)
print(hashlib.sha256(to_png(svg) + svg.encode()).hexdigest())
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PATH": "/nowhere", "PYTHONPATH": str(Path(__file__).parent.parent)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    session = content_free_session(turns=1)
    bare = replace(
        session.requests[0],
        prompt_tokens=None,
        completion_tokens=None,
        block_hashes=None,
        t_send_us=None,
        t_end_us=None,
        t_first_token_us=None,
    )
    session = replace(session, requests=(bare,), duration_us=None, api_us=None, tool_us=None)
    make([content_free_session()], tmp_path / "d", recipe=Recipe(statistics=Statistics(plots=False)))
    manifest = read_manifest(tmp_path / "d")
    frames = frames_of([rows_of(session)])
    cache = ideal_cache(frames)
    plots = draw_plots(frames, cache, compute_stats(frames, manifest, cache=cache), tmp_path)
    assert [plot.path for plot in plots] == ["plots/sessions.png"]  # how many requests it made is known


def test_names_cannot_break_a_picture() -> None:
    values = np.array([1.0, 2.0])
    names = ["tab\tand\nline", 'a "quoted" name', "<b>&amp;</b>", "ünïcode 木", "'single'"]
    chart = side_by_side(
        [
            distribution_lines("A", "b", dict.fromkeys(names, values), of="rows", axis="", label=short_number),
            bars("A", "b", dict.fromkeys(names, 1.0), label=short_number),
        ]
    )
    said = [element.text or "" for element in ET.fromstring(to_svg(chart)).iter(f"{SVG}text")]
    assert "<b>&amp;</b>: 1.5 (2)" in said
    assert "ünïcode 木" in said
    assert "tab and line" in said


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0, 5.0], [1e9, 1e9]], ids=["one", "zeros", "alike"])
def test_odd_values_are_drawn(values: list[float]) -> None:
    ordered = np.array(values)
    chart = side_by_side(
        [
            log_histogram("A", "b", ordered, color="red", marks=[(ordered[-1], 50), (ordered[0], 99)]),
            distribution_lines("A", "b", {"x": ordered}, of="rows", axis="", label=short_number),
        ]
    )
    assert pixels(to_png(to_svg(chart)))[0] > 1000


def test_packing_keeps_the_pixels() -> None:
    rows = b"".join(b"\0" + bytes([n % 256] * 12) for n in range(4))
    head = struct.pack(">IIBBBBB", 3, 4, 8, 6, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    data = zlib.compress(rows, 0)
    png = MAGIC + b"".join(
        chunk(kind, body)
        for kind, body in (
            (b"IHDR", head),
            (b"tEXt", b"Author\0me"),
            (b"IDAT", data[:5]),
            (b"IDAT", data[5:]),
            (b"IEND", b""),
        )
    )
    packed = repacked(png)
    assert pixels(packed) == pixels(png) == (3, 4, rows)
    assert b"Author" not in packed


def test_close_percentiles_share_a_label() -> None:
    assert mark_labels([(100, 50), (9000, 90), (9100, 99)], 0.1) == [
        (pytest.approx(100), "50"),
        (pytest.approx((9000 * 9100) ** 0.5), "90, 99"),
    ]
    assert [label for _, label in mark_labels([(5, 50), (5, 90), (5, 99)], 0.1)] == ["50, 90, 99"]
