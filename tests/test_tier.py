"""What leaves without text: no word that somebody wrote, whatever column it stands in, and no column by default."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import curate.tier
from curate.disposition import Calls, Pseudonyms, error_class, models, public_model, public_tool
from curate.manifest import MANIFEST, DatasetFault, Drop, file_entry, read_manifest, write_json
from curate.staging import stage
from curate.table import TABLES, Table
from curate.tier import DISPOSITIONS
from tests.released import CODE_NAME, built

CANARY = "kanarienvogel hier/../x@y.example"
ROOT = Path(__file__).parent.parent
# Ids of our own making and statements that are made to be read; a word of somebody else's cannot come to stand there.
OURS = {"session_id", "agent_path", "split", "license", "consent"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("built") / "dataset")


@pytest.fixture
def dataset(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "dataset"))


def holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(holds_text(field.type) for field in kind)
    if pa.types.is_list(kind):
        return holds_text(kind.value_type)
    return bool(pa.types.is_string(kind))


def planted(kind: pa.DataType) -> Any:
    """A value that says the canary wherever a text can stand."""
    if pa.types.is_struct(kind):
        return {field.name: planted(field.type) for field in kind}
    if pa.types.is_list(kind):
        return [planted(kind.value_type)]
    return CANARY if pa.types.is_string(kind) else None


def plant(folder: Path) -> None:
    """Put the canary into every text column of every row but those of our own making."""
    manifest = read_manifest(folder)
    shards = []
    for shard in manifest.shards:
        files = {}
        for table in TABLES:
            path = folder / shard.files[table.name].path
            rows = pq.read_table(path)
            for position, field in enumerate(rows.schema):
                if holds_text(field.type) and field.name not in OURS:
                    values = pa.array([planted(field.type)] * len(rows), field.type)
                    rows = rows.set_column(position, field, values)
            path.unlink()  # it has a second name in .private/
            pq.write_table(rows, path)
            files[table.name] = file_entry(folder, path, rows=len(rows))
        shards.append(replace(shard, files=files))
    drop = Drop(stage="read", reason=f"'{CANARY}' is no JSON, nor is kanarienvogel/log.jsonl", n=1)
    write_json(folder / MANIFEST, replace(manifest, shards=tuple(shards), drops=(*manifest.drops, drop)))


def said(folder: Path) -> str:
    tables = [str(pq.read_table(path).to_pylist()) for path in folder.rglob("*.parquet")]
    return "\n".join((*tables, *(path.read_text("utf-8", "replace") for path in folder.rglob("*") if path.is_file())))


def test_no_planted_word_leaves_in_any_column(dataset: Path, tmp_path: Path) -> None:
    plant(dataset)
    assert said(dataset).count("kanarienvogel") > 100
    manifest = stage(dataset, "content-free", tmp_path / "staged")
    assert "kanarienvogel" not in said(tmp_path / "staged")
    assert "kanarienvogel" not in msgspec.json.encode(manifest).decode()
    assert CODE_NAME not in msgspec.json.encode(manifest).decode()
    assert manifest.rows == read_manifest(dataset).rows


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_column_has_a_disposition_and_every_text_column_a_rule(table: Table) -> None:
    known = DISPOSITIONS[table.name]
    assert set(known) == {column.name for column in table.columns}
    for column in table.columns:
        found = known[column.name].content_free
        if holds_text(column.type) and column.name not in ("license", "consent"):
            assert found.action == "removed" or found.change is not None or found.renumbered, column.name
        if column.name in table.text_columns:
            assert found.action == "removed"


def test_a_column_that_nobody_decided_on_stops_everything(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tier in ("content-free", "text"):
        kept = {name: both for name, both in DISPOSITIONS["requests"].items() if name != "hash_scope"}
        monkeypatch.setattr(curate.tier, "DISPOSITIONS", {**DISPOSITIONS, "requests": kept})
        with pytest.raises(DatasetFault, match="'hash_scope' of requests has no disposition"):
            stage(dataset, tier, tmp_path / tier)  # type: ignore[arg-type]


@pytest.mark.parametrize("tier", ["content-free", "text"])
def test_staging_is_deterministic(dataset: Path, tmp_path: Path, tier: Any) -> None:
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    one, two = stage(dataset, tier, tmp_path / "one"), stage(copy, tier, tmp_path / "two")
    assert one == two
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_names_of_a_key_are_pseudonyms_of_that_key_alone(dataset: Path, tmp_path: Path) -> None:
    stage(dataset, "content-free", tmp_path / "one")
    (dataset / ".private/release.key").write_bytes(b"another key of thirty-two bytes.")
    stage(dataset, "content-free", tmp_path / "two")

    def names(folder: Path) -> set[str]:
        return set(pq.read_table(folder / "data/requests")["model"].to_pylist())

    assert all(name.startswith("model-") for name in names(tmp_path / "one"))  # `model-a` is nobody's public model
    assert names(tmp_path / "one").isdisjoint(names(tmp_path / "two"))


def test_a_model_that_nobody_named_gets_no_pseudonym() -> None:
    names = Pseudonyms(b"a key of thirty-two bytes, or so.")
    assert models(["", None, "claude-opus-4-6"], names) == ["", None, "claude-opus-4-6"]


def test_calls_of_all_tables_are_numbered_alike(dataset: Path, tmp_path: Path) -> None:
    stage(dataset, "content-free", tmp_path / "staged")
    requests = pq.read_table(tmp_path / "staged/data/requests").to_pylist()
    calls = pq.read_table(tmp_path / "staged/data/tool_calls").to_pylist()
    asked = {(row["session_id"], name) for row in requests for name in row["tool_call_ids"]}
    assert asked == {(row["session_id"], row["tool_call_id"]) for row in calls}
    assert ("session-0", "call-0001") in asked


def test_times_of_day_are_coarse_in_both_tiers(dataset: Path, tmp_path: Path) -> None:
    for tier in ("content-free", "text"):
        stage(dataset, tier, tmp_path / tier)  # type: ignore[arg-type]
        rows = pq.read_table(tmp_path / tier / "data/sessions").to_pylist()
        assert {(row["t0_utc"].minute, row["t0_utc"].second) for row in rows if row["t0_utc"]} == {(0, 0)}
        assert {row["source_ref"] for row in rows} == {None}
        assert {row["sent_at"] for row in rows} == ({None, "2025-10-09T08:00:00Z"} if tier == "text" else {None})


@pytest.mark.parametrize(
    "name",
    [
        *("claude-opus-4-6", "claude-sonnet-4-5-20250929", "claude-opus-4-5[1m]", "gpt-5.1-codex", "o4-mini"),
        *("us.anthropic.claude-opus-4-20250514-v1:0", "gemini-3-pro-preview", "zai-org/GLM-4.6", "openai/gpt-oss-120b"),
        *("Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8", "deepseek-ai/DeepSeek-V3.1", "moonshotai/Kimi-K2-Instruct-0905"),
        *("MiniMaxAI/MiniMax-M2", "mistralai/Mixtral-8x7B", "<synthetic>"),
    ],
)
def test_names_of_public_models_are_kept(name: str) -> None:
    assert public_model(name)


@pytest.mark.parametrize(
    "name",
    [
        *("ft:gpt-4o-mini:acme::9f3a", "/models/llama", "acme-coder-7b", "gpt-4o-acme", "12345678"),
        *("arn:aws:bedrock:us-east-1:123456789012:model/x", "qwen3-project-falcon", "gpt-4\u043e"),
    ],
)
def test_names_that_may_be_private_are_not(name: str) -> None:
    assert not public_model(name)


def test_tools_are_kept_when_an_agent_brings_them() -> None:
    assert all(map(public_tool, ("Bash", "apply_patch", "TodoWrite", "run_shell_command", "AskUserQuestion")))
    assert not any(map(public_tool, ("mcp__jira__search", "deploy_acme", "mcp_x", "")))


@given(st.text(), st.binary(min_size=32, max_size=32))
def test_a_failure_becomes_a_word_of_ours(text: str, key: bytes) -> None:
    found = error_class(text, Pseudonyms(key))
    assert len(found) <= 16
    assert found == text or found not in (text, "")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("HTTP 503", "HTTP 503"),
        ("rate_limit_error: Number of tokens for /home/me", "rate-limit"),
        ("prompt is too long: 250000 tokens", "context-length"),
        ("the answer ended before its own end", "cut"),
        ("Kanarienvogel", "other"),
    ],
)
def test_kinds_of_failure(text: str, kind: str) -> None:
    assert error_class(text, Pseudonyms(b"k")) == kind


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.text(max_size=3), max_size=3)), max_size=6))
def test_numbers_of_calls_are_one_to_one_within_a_session(asked: list[tuple[str, list[str]]]) -> None:
    calls = Calls()
    found = calls.renumber([session for session, _ in asked], [ids for _, ids in asked])
    pairs = {
        (session, old, new)
        for (session, ids), numbers in zip(asked, found, strict=True)
        for old, new in zip(ids, numbers, strict=True)
    }
    assert len(pairs) == len({(session, old) for session, old, _ in pairs}) == len({(s, new) for s, _, new in pairs})
