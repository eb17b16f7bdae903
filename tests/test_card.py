"""The card: front matter that the Hub reads, tables with percentiles, text spliced in, pictures that are pictures."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
import yaml

from curate.build import Source, build_sources
from curate.card import format_value, size_category
from curate.plot import mark_labels, short_number, short_time
from curate.recipe import Recipe
from curate.redact import Redactor
from curate.table import TABLES
from tests.sample_sessions import content_free_session, text_session

KEY = b"k" * 32


def built(sessions, out: Path, recipe: Recipe | None = None) -> tuple[dict, str]:
    source = Source(store_id="s", sessions=lambda _: iter(sessions), redactor=Redactor(key=KEY), rules="")
    build_sources([source], out, tokenizer="o200k_base", jobs=1, recipe=recipe)
    text = (out / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    out = tmp_path_factory.mktemp("card") / "d"
    recipe = Recipe(
        name="team",
        pretty_name='Team "week 12": <traces>',
        license="CC-BY-4.0",
        language=("en",),
        tags=("internal",),
        card="## Why\n\nBecause we can.\n",
    )
    sessions = [text_session(f"s{n}", turns=n + 1) for n in range(4)]
    front, body = built(sessions, out, recipe)
    return out, front, body


def test_front_matter(made: tuple[Path, dict, str]) -> None:
    _, front, _ = made
    assert front["license"] == "cc-by-4.0"
    assert front["pretty_name"] == 'Team "week 12": <traces>'
    assert front["language"] == ["en"]
    assert "internal" in front["tags"]
    assert front["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in front["configs"]] == ["sessions", "requests", "tool_calls"]
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/sessions/*.parquet"}]
    assert front["configs"][0]["default"] is True


def test_mixed_and_missing_licences_are_not_passed_off_as_one(tmp_path: Path) -> None:
    front, body = built([text_session(), content_free_session()], tmp_path / "mixed")
    assert (front["license"], front["license_name"]) == ("other", "mixed")
    assert "none stated" in body
    assert "may not be used by others until" in body
    assert "callanjfox/kv-cache-tester" in body
    front, _ = built([text_session()], tmp_path / "none")
    assert "license" not in front


def test_the_body_has_percentiles_columns_and_the_hand_text(made: tuple[Path, dict, str]) -> None:
    _, _, body = made
    assert "## Why\n\nBecause we can." in body
    assert "| min | p1 | p5 | p25 | p50 | p75 | p90 | p95 | p99 | max | mean |" in body
    assert "4 recorded sessions of coding agents (codex): 14 calls to models and 10 tool calls" in body
    for table in TABLES:
        for column in table.columns:
            assert f"| `{column.name}` | `" in body
    assert "Not measured here: " in body
    assert "4 read, 4 kept." in body
    assert "What it does not contain" in body
    assert "load_dataset(" in body


def test_pictures_are_png_of_card_width_twice_over(made: tuple[Path, dict, str]) -> None:
    out, _, body = made
    pictures = sorted((out / "plots").iterdir())
    assert [path.name for path in pictures] == ["context-growth.png", "lengths.png", "times.png"]
    for path in pictures:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert 1200 <= width <= 1800
        assert 400 <= height <= 900
        assert f"](plots/{path.name})" in body


def test_the_card_of_content_free_sessions_has_no_tool_table(tmp_path: Path) -> None:
    _, body = built([content_free_session(turns=1)], tmp_path / "d")
    assert "### Requests" in body
    assert "### Tool calls" not in body


@pytest.mark.parametrize(
    ("rows", "category"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**12, "n>1T")],
)
def test_size_categories_are_the_hubs(rows: int, category: str) -> None:
    assert size_category(rows) == category


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "µs", "–"),
        (0, "µs", "0 s"),
        (1500, "µs", "1.5 ms"),
        (90_000_000, "µs", "1.5 min"),
        (0.5, "share", "50 %"),
        (12_345, "tokens", "12.3k"),
        (0, "tokens", "0"),
    ],
)
def test_values_are_written_in_their_unit(value: float | None, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


def test_numbers_never_round_into_the_next_unit() -> None:
    assert short_number(999.9) == "1k"
    assert short_number(999_999) == "1M"
    assert short_time(59.99) == "1 min"
    assert short_time(0.0005) == "500 µs"
    assert short_time(3599) == "1 h"


def test_drawing_uses_no_display_and_leaves_pyplot_alone(made: tuple[Path, dict, str]) -> None:
    assert "matplotlib.pyplot" not in sys.modules


def test_close_percentiles_share_a_label() -> None:
    assert mark_labels([(100, 50), (9000, 90), (9100, 99)], 0.1) == [
        (pytest.approx(100), "50"),
        (pytest.approx((9000 * 9100) ** 0.5), "90, 99"),
    ]
    assert [label for _, label in mark_labels([(5, 50), (5, 90), (5, 99)], 0.1)] == ["50, 90, 99"]


def test_one_of_a_thing_is_no_plural(tmp_path: Path) -> None:
    _, body = built([content_free_session(turns=1)], tmp_path / "d")
    said = body[: body.index("## Columns")]
    assert "\n1 recorded session of coding agents (codex): 1 call to models, with" in said
    assert not [line for line in said.splitlines() if " 1 sessions" in f" {line}" or "median session" in line]


def test_the_card_says_of_text_and_tools_only_what_is_there(tmp_path: Path) -> None:
    front, body = built([content_free_session()], tmp_path / "free")
    assert [config["config_name"] for config in front["configs"]] == ["sessions", "requests"]
    assert "Content-free: " in body
    assert "`tool_calls` has no row here" in body
    assert '"tool_calls", split' not in body
    assert "Own token counts" not in body
    said = body[: body.index("## Columns")]
    assert "messages[answer_index]" not in said
    _, body = built([text_session()], tmp_path / "text")
    assert "content-free" not in body[: body.index("## Columns")]
    assert "messages[answer_index]" in body
    _, body = built([text_session(), content_free_session()], tmp_path / "both")
    assert "The text of 1 content-free session: " in body


@pytest.mark.parametrize(
    ("spdx", "front"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("GPL-3.0-only", {"license": "gpl-3.0"}),
        ("ODC-By-1.0", {"license": "odc-by"}),
        ("LicenseRef-Ours", {"license": "other", "license_name": "licenseref-ours", "license_link": "README.md"}),
    ],
)
def test_licences_are_named_as_the_hub_names_them(spdx: str, front: dict[str, str], tmp_path: Path) -> None:
    found, _ = built([text_session()], tmp_path / "d", Recipe(license=spdx))
    assert {key: value for key, value in found.items() if key.startswith("license")} == front
