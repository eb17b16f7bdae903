"""Trajectories survive the way into rows, through Arrow, and back."""

from __future__ import annotations

import dataclasses
import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from capture.call import Message
from capture.trajectory import Trajectory
from curate.language import language_mix
from curate.published import published
from curate.row import rows_of, trajectory_of
from curate.table import REQUESTS, SESSIONS, TABLES, TOOL_CALLS
from curate.tally import tally
from tests.sample_sessions import any_of, content_free_session, pooled, request, text_session


class WordCounter:
    """Counts words: makes expected numbers readable."""

    encoding_name = "words"
    sha = "0" * 64

    def message(self, message: Message) -> int:
        return 1 + self.text(message.content) + self.text(message.reasoning_content or "")

    def tools(self, tools) -> int:
        return sum(self.text(tool.description) for tool in tools)

    def text(self, text: str) -> int:
        return len(text.split())


def through_arrow(rows, *, without_session: bool = False, without=frozenset()) -> Trajectory:
    def pass_on(table, values):
        columns = [column.name for column in table.columns if column.name not in without]
        arrow = pa.Table.from_pylist(values, schema=table.schema).select(columns)
        if "t0_utc" in columns:
            at = columns.index("t0_utc")
            arrow = arrow.set_column(at, "t0_utc", arrow.column(at).cast(pa.int64()))
        return arrow.to_pylist()

    session = None if without_session else pass_on(SESSIONS, [rows.session])[0]
    return trajectory_of(session, pass_on(REQUESTS, rows.requests), pass_on(TOOL_CALLS, rows.tool_calls))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(any_of(Trajectory))
def test_any_trajectory_comes_back_as_it_was_published(trajectory: Trajectory) -> None:
    expected = published(trajectory)
    if not expected.pool and not expected.tool_sets:  # nothing of a prompt is left that these could point to
        expected = dataclasses.replace(
            expected,
            requests=tuple(
                dataclasses.replace(request, prompt_spans=None, answer_index=None, tools_index=None)
                for request in expected.requests
            ),
        )
    assert through_arrow(rows_of(trajectory)) == expected


@pytest.mark.parametrize("session", [text_session(), content_free_session()], ids=["text", "content-free"])
def test_sessions_come_back_with_counts_filled_in(session: Trajectory) -> None:
    counts = tally(session, WordCounter())
    back = through_arrow(rows_of(session, counts))
    filled = tuple(
        dataclasses.replace(
            request,
            system_tokens=count.system_tokens,
            tools_tokens=count.tools_tokens,
            prompt_tokens_est=count.prompt_tokens_est,
        )
        for request, count in zip(published(session).requests, counts.requests, strict=True)
    )
    assert back == dataclasses.replace(published(session), requests=filled)


def test_what_stays_in_the_store_is_in_no_row() -> None:
    rows = rows_of(text_session())
    said = json.dumps([rows.session, rows.requests, rows.tool_calls])
    assert "journal-1/" not in said
    assert "/home/somebody" not in said
    assert "exchange_id" not in said
    assert rows.session["source_ref"] == "journal-1.sqlite"


def test_lone_surrogates_become_replacement_characters() -> None:
    session = dataclasses.replace(text_session(), pool=(pooled(Message(role="user", content="a\ud800b"), 0),))
    session = dataclasses.replace(session, requests=(request(0, prompt_spans=((0, 1),), answer_index=None),))
    assert through_arrow(rows_of(session)).pool[0].message.content == "a�b"


def test_counts_of_a_text_session() -> None:
    session = text_session()
    counts = tally(session, WordCounter())
    rows = rows_of(session, counts)
    # system 6, user 4, then each turn: answer 3 and result 5; the tools are 3 + 3 words
    assert counts.messages[:4] == (6, 4, 3, 5)
    assert [row["prompt_tokens_est"] for row in rows.requests] == [16, 24, 32, 12]
    assert [row["lcp_tokens"] for row in rows.requests] == [0, 16, 24, 0]
    assert [row["system_tokens"] for row in rows.requests] == [6, 6, 6, 5]
    assert [row["tools_tokens"] for row in rows.requests] == [6, 6, 6, 3]
    assert [row["msg_upto"] for row in rows.requests] == [2, 4, 6, None]
    assert [(row["args_tokens"], row["result_tokens"]) for row in rows.tool_calls] == [(5, 5)] * 3
    assert rows.session["context_tokens_first"] == 1000
    assert rows.session["context_tokens_last"] == rows.session["context_tokens_max"] == 3000
    assert rows.session["prompt_tokens_total"] == 6000
    assert rows.session["cached_tokens_total"] == 3000
    assert rows.session["reasoning_tokens_total"] is None
    assert rows.session["sent_at"] == "2025-10-09T08:53:20.123456Z"
    assert rows.session["prompt"] == "Fix the build. "
    assert language_mix(session) == [("python", 1.0)]


def test_counts_of_a_content_free_session() -> None:
    rows = rows_of(content_free_session(), tally(content_free_session(), WordCounter()))
    assert [row["lcp_tokens"] for row in rows.requests] == [0, 3 * 64, 5 * 64]
    assert [row["prompt_tokens_est"] for row in rows.requests] == [None] * 3
    assert rows.session["messages"] is None
    assert rows.session["tokenizer"] is None


def test_the_same_session_has_the_same_digest_and_another_has_not() -> None:
    assert rows_of(text_session()).digest == rows_of(text_session()).digest
    assert rows_of(text_session()).digest != rows_of(text_session(turns=4)).digest


def test_text_columns_may_be_missing() -> None:
    rows = rows_of(text_session())
    back = through_arrow(rows, without=SESSIONS.text_columns)
    assert back.pool == ()
    assert back.tool_sets == ()
    assert all(request.prompt_spans is None and request.answer_index is None for request in back.requests)
    assert back.harness == "codex"
    assert back.tool_calls == text_session().tool_calls


def test_requests_and_tool_calls_stand_alone() -> None:
    session = text_session()
    back = through_arrow(rows_of(session), without_session=True)
    assert back.session_id == session.session_id
    assert back.models == session.models
    assert back.harness == "unknown"
    assert back.duration_us == 22_000_000  # the last end
    assert back.api_us == 6_500_000  # the sub-agent's two seconds overlap the first request by a second and a half
    assert back.tool_us == 16_000_000
    assert back.num_subagents == 1
    assert [request.t_send_us for request in back.requests] == [request.t_send_us for request in session.requests]


def test_every_column_has_a_sentence_and_every_row_every_column() -> None:
    rows = rows_of(text_session())
    for table, row in zip(TABLES, (rows.session, rows.requests[0], rows.tool_calls[0]), strict=True):
        assert set(row) == {column.name for column in table.columns}
        assert len({column.name for column in table.columns}) == len(table.columns)
        for column in table.columns:
            assert column.sentence.endswith("."), column.name
