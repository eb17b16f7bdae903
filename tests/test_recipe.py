"""A recipe says all of a build; what it says wrongly is named by file, table and key before anything is read."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest

import curate.recipe as module
from curate.recipe import Filters, Recipe, Sample, Splits, read_recipe


def test_a_whole_recipe_reads_as_what_it_says(tmp_path: Path) -> None:
    example = "\n".join(line.removeprefix("    ") for line in (module.__doc__ or "").splitlines() if line[:4] == "    ")
    tomllib.loads(example)
    (tmp_path / "week.toml").write_text(example)
    (tmp_path / "card.md").write_text("Recorded in spring.\n")
    found = read_recipe(tmp_path / "week.toml")
    assert found.stores == (tmp_path / "../traces",)
    assert found.labels == tmp_path / "labels.jsonl"
    recipe = found.recipe
    assert (recipe.name, recipe.card) == ("team-week-12", "Recorded in spring.\n")
    assert recipe.filters == Filters(min_turns=2, harnesses=("claude-code", "codex"), complete=True)
    assert recipe.sample.shares == (0.3, 0.5, 0.2)
    assert recipe.splits == Splits(by="contributor", shares={"train": 0.9, "test": 0.1})
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe  # as a manifest holds it


def test_an_empty_recipe_drops_nothing_and_is_named_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text("")
    found = read_recipe(tmp_path / "plain.toml")
    assert found.recipe == Recipe(name="plain")
    assert found.stores == ()
    assert found.labels is None
    assert found.recipe.filters == Filters()
    assert all(not getattr(Filters(), each.name) for each in fields(Filters))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("licence = 'MIT'", "unknown key 'licence'; known are .*license"),
        ("license = 3", "license must be a text, not a whole number"),
        ("tags = 'x'", "tags must be a list, not a text"),
        ("card = 'none.md'", "card text .*none.md cannot be read"),
        ("name = ", "Invalid value"),
        ("stores = 'a'", "stores must be a list of folders"),
        ("labels = 1", "labels must be the name of a file"),
        ("filters = 1", r"filters must be a table: \[filters\]"),
        ("[filters]\nmin_turn = 1", r"\[filters\] unknown key 'min_turn'; known are .*min_turns"),
        ("[filters]\nmin_turns = '2'", "filters.min_turns must be a whole number, not a text"),
        ("[filters]\nmin_turns = -1", r"\[filters\] min_turns must be 0 or more"),
        ("[filters]\nmax_duration_s = nan", r"\[filters\] max_duration_s must be 0 or more"),
        ("[filters]\nmax_error_share = 2", "max_error_share is a share"),
        ("[filters]\nmin_turns = 5\nmax_turns = 4", "no session holds min_turns = 5 and max_turns = 4"),
        ("[filters]\noutcomes = ['solved']", "outcome 'solved' is none of success, failure"),
        ("[filters]\nlanguages = ['Python3']", "language 'Python3' is unknown; known are .*python, r"),
        ("[filters]\nmin_language_share = 0.5", "min_language_share needs `languages`"),
        ("[duplicates]\nnear = 'delete'", "duplicates.near is one of keep, mark, drop, not 'delete'"),
        ("[duplicates]\nsimilarity = 0", r"similarity lies in \(0, 1\]"),
        ("[truncate]\nmessage_bytes = 10", "message_bytes must be at least 1000"),
        ("[truncate]\ncontext_tokens = 0", "context_tokens must be at least 1"),
        ("[sample]\nsessions = 0", "sessions must be at least 1"),
        ("[sample]\nshares = [1]", "need `by`"),
        ("[sample]\nby = 'color'", "cannot spread by 'color'; columns are .*context_tokens_max"),
        ("[sample]\nby = 'harness'", "needs the values of harness"),
        ("[sample]\nby = 'num_requests'\nvalues = ['1']\nshares = [1]", "num_requests is a number: it takes edges"),
        ("[sample]\nby = 'model'\nedges = [1, 2]\nshares = [1]", "model is a text: it takes values"),
        ("[sample]\nby = 'num_requests'\nedges = [1, 2]\nvalues = ['1']\nshares = [1]", "not both"),
        ("[sample]\nby = 'num_requests'\nedges = [1, 2, 3]\nshares = [1]", "1 shares for 2 bins"),
        ("[sample]\nby = 'num_requests'\nedges = [2, 1]\nshares = [1]", "edges must be numbers that rise"),
        ("[sample]\nby = 'num_requests'\nedges = [1, inf]\nshares = [1]", "edges must be numbers that rise"),
        ("[sample]\nby = 'num_requests'\nedges = [1, 2, 3]\nshares = [0.5, 0.4]", "shares must sum to 1"),
        ("[sample]\nby = 'num_requests'\nedges = [1, 2, 3]\nshares = [1.5, -0.5]", r"each share lies in \[0, 1\]"),
        ("[sample]\nby = 'harness'\nvalues = ['a', 'a']\nshares = [0.5, 0.5]", "a value stands twice"),
        ("[splits]\nby = 'day'", "splits.by is one of session, contributor, task_id, harness, not 'day'"),
        ("[splits]\nshares = { train = 0.9 }", "shares must sum to 1"),
        ("[splits]\nshares = { train = nan }", r"each share lies in \(0, 1\]"),
        ("[splits]\nshares = { Train = 1 }", "lower-case letters"),
        ("[redaction]\nvalues = ['']", "values must not hold an empty text"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence) as raised:
        read_recipe(path)
    assert str(raised.value).startswith(f"recipe {path}: ")
    assert "\n" not in str(raised.value).partition(": ")[0]


def test_a_recipe_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name, why in (("none.toml", "cannot be read: No such file or directory"), ("bytes.toml", "is no UTF-8 text")):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name} {why}")):
            read_recipe(tmp_path / name)


@pytest.mark.parametrize("by", ["num_requests", "context_tokens_max", "duration_us", "harness", "model", "language"])
def test_a_sample_may_be_spread_by_numbers_and_texts(tmp_path: Path, by: str) -> None:
    number = by.startswith(("num", "context", "duration"))
    bins = "edges = [0, 10, 100]" if number else "values = ['a', 'b']"
    (tmp_path / "r.toml").write_text(f"[sample]\nby = '{by}'\n{bins}\nshares = [0.25, 0.75]\n")
    sample = read_recipe(tmp_path / "r.toml").recipe.sample
    assert sample == Sample(
        by=by, edges=(0, 10, 100) if number else (), values=() if number else ("a", "b"), shares=(0.25, 0.75)
    )
