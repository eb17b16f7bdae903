"""`curate export` on the command line: what it says, where, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from capture.importers.claude_code import import_claude_code
from curate.command import curate
from curate.commands.export import NAMES
from curate.export import FORMATS
from curate.exports.carried import dropped_fields
from tests.sample_sessions import KEY, make, text_session


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "dataset"
    make([text_session("session-a"), text_session("session-b", turns=2)], folder)
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(curate, ["export", *map(str, arguments)])


@pytest.mark.parametrize("name", NAMES)
def test_every_format_says_what_it_does_not_carry(name: str, dataset: Path, tmp_path: Path) -> None:
    found = run(dataset, "--format", name, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.stderr
    assert found.stdout == f"{tmp_path / 'out'}\n"
    assert found.stderr.startswith("2 sessions, ")
    said = [line for line in found.stderr.splitlines() if line.startswith("not carried by this format: ")]
    told = {
        f"{what.replace(' ', '_')}.{field}"
        for line in said
        for what, _, fields in [line.removeprefix("not carried by this format: ").partition(": ")]
        for field in fields.split(", ")
    }
    assert told == set(dropped_fields("openai" if name == "messages" else name, text=True))


def test_every_format_can_be_named() -> None:
    assert set(NAMES) == {*FORMATS, "messages"}


def test_json_tells_the_same(dataset: Path, tmp_path: Path) -> None:
    found = run(dataset, "--format", "agentperf-local", "--out", tmp_path / "out", "--json")
    told = json.loads(found.stdout)
    assert (told["format"], told["sessions"], told["requests"]) == ("agentperf-local", 2, 5)
    assert told["path"] == str(tmp_path / "out")
    assert told["left_out"] == {"requests of sub-agents and branches (a task is one conversation)": 2}
    assert told["not_carried"] == list(dropped_fields("agentperf-local", text=True))


def test_only_the_named_sessions(dataset: Path, tmp_path: Path) -> None:
    found = run(dataset, "--format", "claude-code", "--out", tmp_path / "out", "--session", "session-b")
    assert found.exit_code == 0
    (session,) = import_claude_code([tmp_path / "out"], KEY).trajectories
    assert session.source_ref.startswith("session-b.jsonl")
    found = run(dataset, "--format", "weka", "--out", tmp_path / "none", "--session", "session-b", "--session", "x")
    assert found.exit_code == 2
    assert "has no session 'x'" in found.stderr
    assert not (tmp_path / "none").exists()


def test_messages_for_mooncake(dataset: Path, tmp_path: Path) -> None:
    found = run(dataset, "--format", "mooncake", "--with-messages", "--out", tmp_path / "rows.jsonl")
    assert found.exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_bytes().splitlines()]
    assert len(rows) == 7
    assert all(row["messages"] for row in rows)
    found = run(dataset, "--format", "weka", "--with-messages", "--out", tmp_path / "weka")
    assert found.exit_code == 2
    assert "--with-messages is for mooncake" in found.stderr
