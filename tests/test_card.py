"""The card: front matter that the Hub reads, tables with percentiles, text spliced in, pictures that are pictures."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from curate.card import card, write_papers
from curate.front_matter import size_category
from curate.manifest import Drop, read_manifest
from curate.measured import FORMAT, MeasuredRedaction, PerMegabyte, Rate
from curate.recipe import Recipe, RedactionPolicy, Splits, Statistics
from curate.stats import Redaction, read_stats
from curate.table import TABLES
from curate.units import format_value, short_number, short_time
from tests.sample_sessions import content_free_session, make, text_session

NO_PLOTS = Statistics(plots=False)


def parted(text: str) -> tuple[dict, str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def built(sessions, out: Path, recipe: Recipe | None = None, *, plots: bool = False) -> tuple[dict, str]:
    make(sessions, out, recipe=recipe, plots=plots)
    return parted((out / "README.md").read_text())


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
    front, body = built(sessions, out, recipe, plots=True)
    return out, front, body


def test_front_matter(made: tuple[Path, dict, str]) -> None:
    _, front, _ = made
    assert front["license"] == "cc-by-4.0"
    assert front["pretty_name"] == 'Team "week 12": <traces>'
    assert front["language"] == ["en"]
    assert "internal" in front["tags"]
    assert front["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in front["configs"]] == ["sessions", "requests", "tool_calls"]
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/sessions/train-*.parquet"}]
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
    assert "| min | p5 | p25 | p50 | p75 | p90 | p95 | p99 | max | mean |" in body
    assert "4 recorded sessions of coding agents (codex): 14 calls to models and 10 tool calls" in body
    for table in TABLES:
        for column in table.columns:
            assert f"| `{column.name}` | `" in body
    assert "Not known here: " in body
    assert "Prompt, cache reads included (by the provider)" in body
    assert "Prompt, cache reads included (our count, o200k_base)" in body
    assert "4 read, 4 kept." in body
    assert "What it does not contain" in body
    assert "load_dataset(" in body


def test_pictures_stand_in_the_card_and_link_to_their_drawing(made: tuple[Path, dict, str]) -> None:
    out, _, body = made
    linked = re.findall(r"\[!\[[^]]+\]\((plots/[a-z-]+\.png)\)\]\((plots/[a-z-]+\.svg)\)", body)
    assert linked
    assert {name for pair in linked for name in pair} == {f"plots/{path.name}" for path in (out / "plots").iterdir()}
    assert {entry.path for entry in read_manifest(out).papers} >= {name for pair in linked for name in pair}


def test_a_card_without_pictures_leaves_none_behind(tmp_path: Path) -> None:
    make([text_session()], tmp_path / "d", plots=True)
    assert list((tmp_path / "d" / "plots").iterdir())
    manifest = read_manifest(tmp_path / "d")
    papers = write_papers(tmp_path / "d", replace(manifest, recipe=Recipe(statistics=NO_PLOTS)))
    assert sorted(path.name for path in papers) == ["README.md", "stats.json"]
    assert not (tmp_path / "d" / "plots").exists()
    assert "plots/" not in (tmp_path / "d" / "README.md").read_text()


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


def test_one_of_a_thing_is_no_plural(tmp_path: Path) -> None:
    _, body = built([content_free_session(turns=1)], tmp_path / "d")
    said = body[: body.index("## Columns")]
    assert "\n1 recorded session of coding agents (codex): 1 call to models, with" in said
    assert not [line for line in said.splitlines() if " 1 sessions" in f" {line}" or "median session" in line]


def test_the_opening_says_whose_contexts_it_counts(tmp_path: Path) -> None:
    told = [replace(content_free_session(), session_id=f"told{n}") for n in range(2)]
    silent = tuple(replace(each, prompt_tokens=None, completion_tokens=None) for each in told[0].requests)
    untold = replace(told[0], session_id="untold", requests=silent, token_source="none")
    _, body = built([*told, untold], tmp_path / "some")
    assert "The median of the longest contexts of the 2 sessions that the provider counted is " in body
    assert "The longest context of the 2 sessions that the provider counted has " in body
    assert "Nobody counted them in 1 session of `weka`: there they are null." in body
    _, body = built(told, tmp_path / "all")
    assert "The median of the longest contexts of the sessions is " in body
    assert "The longest context has " in body
    assert "Nobody counted" not in body


def test_the_card_says_of_text_and_tools_only_what_is_there(tmp_path: Path) -> None:
    front, body = built([content_free_session()], tmp_path / "free")
    assert [config["config_name"] for config in front["configs"]] == ["sessions", "requests"]
    assert "content-free" in front["tags"]
    assert "Its sessions came without text" in body
    assert "`tool_calls` has no row here" in body
    assert '"tool_calls", split' not in body
    assert "Own token counts" not in body
    said = body[: body.index("## Columns")]
    assert "messages[answer_index]" not in said
    front, body = built([text_session()], tmp_path / "text")
    assert "content-free" not in front["tags"]
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
    found, _ = built([text_session()], tmp_path / "d", Recipe(license=spdx, statistics=NO_PLOTS))
    assert {key: value for key, value in found.items() if key.startswith("license")} == front


def test_every_split_with_rows_is_a_split_of_its_config(tmp_path: Path) -> None:
    """`load_dataset` refuses a split whose files hold no row."""
    recipe = Recipe(splits=Splits(shares={"train": 0.5, "test": 0.5}), statistics=NO_PLOTS)
    front, body = built([text_session(f"s{n}", turns=1) for n in range(12)], tmp_path / "d", recipe)
    for config in front["configs"]:
        assert [file["split"] for file in config["data_files"]] == ["train", "test"]
        for file in config["data_files"]:
            assert list((tmp_path / "d").glob(file["path"]))
    assert "| `train` |" in body


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "d"
    make([text_session(f"s{n}") for n in range(3)], out)
    return out


@pytest.mark.parametrize(
    ("tier", "said", "unsaid"),
    [
        ("full", "the full tier", "content-free tier"),
        ("text", "the text tier: what people and models wrote is in it", "content-free tier"),
        ("content-free", "the content-free tier: lengths, times and keyed hashes, and nothing", "`messages[answer"),
    ],
)
def test_the_tier_is_said_plainly(plain: Path, tier: str, said: str, unsaid: str) -> None:
    stats = replace(read_stats(plain), tier=tier, sessions_with_text=0 if tier == "content-free" else 3)
    front, body = parted(card(stats, (), Recipe()))
    assert said in body
    assert unsaid not in body
    assert ("content-free" in front["tags"]) == (tier == "content-free")
    assert ("| `messages` |" in body) == (tier != "content-free")


def test_the_funnel_stands_with_its_stages_and_reasons(plain: Path) -> None:
    manifest = read_manifest(plain)
    drops = (
        Drop(stage="filter", reason="fewer than 2 turns", n=5),
        Drop(stage="duplicate", reason="the same words as another", n=2),
        Drop(stage="withdrawn", reason="withdrawn", n=1),
    )
    from curate.frames import read_frames
    from curate.stats import compute_stats

    stats = compute_stats(read_frames(plain, manifest), replace(manifest, drops=drops))
    body = card(stats, (), Recipe())
    assert "11 read, 3 kept." in body
    assert "| filter | fewer than 2 turns | 5 | 6 |" in body
    assert "| duplicate | the same words as another | 2 | 4 |" in body
    assert "1 session withdrawn so far." in body


def measured(rules: str) -> MeasuredRedaction:
    rate = Rate(found=985, n=1000, value=0.985, low=0.975, high=0.991)
    clean = PerMegabyte(findings=20, megabytes=16.0, value=1.25, low=0.76, high=1.93)
    return MeasuredRedaction(
        format=FORMAT,
        rules=rules,
        corpus="corpus-7",
        seed=1,
        unseen=rate,
        tuned=replace(rate, found=1000, value=1.0, low=0.996, high=1.0),
        by_family={},
        by_context={},
        held_out_families=(),
        held_out_contexts=(),
        clean_source="the standard library",
        clean=clean,
        clean_identity=clean,
        mb_per_s=21.0,
        where_time_goes={},
        first_met={"passwords of cats": 0.425, "purrs": 0.64},
    )


def test_redaction_is_measured_for_these_rules_or_not_at_all(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(plain)
    rules = read_stats(plain).redaction.policies[0]
    assert (
        "not measured for these rules" in (plain / "README.md").read_text()
        or "Measured on corpus" in (plain / "README.md").read_text()
    )
    from curate import stats as module
    from curate.frames import read_frames

    monkeypatch.setattr(module, "measured_for", lambda name: measured(rules) if name == rules else None)
    body = card(module.compute_stats(read_frames(plain, manifest), manifest), (), Recipe())
    assert "| 985 of 1,000 | 98.5 % | 97.5 to 99.1 % |" in body
    assert "| 20 in 16 MB | 1.25 / MB | 0.76 to 1.93 |" in body
    assert "Measured on corpus `corpus-7`" in body
    assert "these were found with: passwords of cats 42.5 %, purrs 64.0 %." in body
    monkeypatch.setattr(module, "measured_for", lambda _: None)
    body = card(module.compute_stats(read_frames(plain, manifest), manifest), (), Recipe())
    assert "not measured for these rules" in body


@pytest.mark.parametrize("policy", ["own-2+scan-1+identity-1+seen", "own-2+scan-1+identity-1+seen+values+allow"])
def test_what_a_recorder_saw_is_no_other_rule(plain: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from curate import stats as module

    asked = []
    monkeypatch.setattr(module, "measured_for", lambda name: asked.append(name))
    module._redaction(module.pl.DataFrame({"redaction_policy": [policy]}), read_manifest(plain))
    assert asked == ["own-2+scan-1+identity-1"]


def test_what_redaction_leaves_is_said(plain: Path) -> None:
    stats = read_stats(plain)
    stats = replace(stats, redaction=Redaction(policies=("own-2",), sessions=3, counts={"key": 7}, measured=None))
    body = card(stats, (), Recipe())
    assert "| `key` | 7 |" in body
    assert "stand as consistent pseudonyms" in body
    off = card(stats, (), Recipe(redaction=RedactionPolicy(identity=False, scanner=False)))
    assert "Names, paths and e-mail addresses of people were not searched for." in off
    assert "scanner was switched off" in off


def test_nothing_of_this_machine_is_on_a_card(made: tuple[Path, dict, str]) -> None:
    out, _, body = made
    assert str(out) not in body
    assert "/home/" not in body
    assert str(Path.home()) not in (out / "stats.json").read_text()
    assert len(body.splitlines()) < 500
