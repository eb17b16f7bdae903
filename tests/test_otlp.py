"""Telemetry of agents as tool times: real exports, hand-made ones, and hostile bytes."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from capture.call import ToolTime
from capture.exchange import Exchange
from capture.otlp import (
    Telemetry,
    agent_environment,
    agent_overrides,
    is_telemetry,
    times_of,
)
from tests.exchanges import exchange
from tests.otlp_receiver import export

SAMPLES = Path(__file__).parent / "otlp"
START = 1_790_000_000_000_000  # UTC microseconds
MS = 1000


def gathered(exports: Sequence[Exchange]) -> dict[str, ToolTime]:
    telemetry = Telemetry()
    for one in exports:
        telemetry.add(one)
    assert telemetry.unreadable == 0
    return {time.tool_call_id: time for _, _, time in telemetry.tool_times()}


def sample(agent: str, suffix: str = ".pb") -> list[Exchange]:
    found = []
    for file in sorted((SAMPLES / agent).glob(f"*{suffix}")):
        headers = [("content-type", "application/json" if "json" in suffix else "application/x-protobuf")]
        if suffix.endswith(".gz"):
            headers.append(("content-encoding", "gzip"))
        path = f"/v1/{file.name.partition('.')[0].partition('-')[2]}"
        found.append(export(path, file.read_bytes(), headers=tuple(headers)))
    assert found
    return found


def attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    kinds: dict[type, str] = {str: "stringValue", bool: "boolValue", int: "intValue", float: "doubleValue"}
    return [{"key": key, "value": {kinds[type(value)]: value}} for key, value in values.items()]


def span(
    name: str,
    start_ms: int,
    end_ms: int,
    values: dict[str, Any],
    *,
    own: str = "aa",
    parent: str = "",
    trace: str = "01",
) -> dict[str, Any]:
    """A span as OTLP's JSON has it: ids in hex, 64-bit numbers as text."""
    return {
        "name": name,
        "traceId": trace * 16,
        "spanId": own * 8,
        "parentSpanId": parent * 8,
        "startTimeUnixNano": str((START + start_ms * MS) * 1000),
        "endTimeUnixNano": str((START + end_ms * MS) * 1000),
        "attributes": attributes(values),
    }


def event(at_ms: int, values: dict[str, Any]) -> dict[str, Any]:
    return {"timeUnixNano": str((START + at_ms * MS) * 1000), "attributes": attributes(values)}


def traces(*spans: dict[str, Any]) -> Exchange:
    body = {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}
    return export("/otlp/v1/traces", json.dumps(body).encode(), headers=(("content-type", "application/json"),))


def logs(*records: dict[str, Any]) -> Exchange:
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": list(records)}]}]}
    return export("/otlp/v1/logs", json.dumps(body).encode(), headers=(("content-type", "application/json"),))


def codex(name: str, **values: Any) -> dict[str, Any]:
    return {"event.name": f"codex.{name}", "conversation.id": "thread", "call_id": "call_1"} | values


# ---- real exports ----


@pytest.mark.parametrize(
    ("agent", "suffix"), [("claude-code", ".pb"), ("codex", ".pb"), ("codex", ".json.gz")], ids=lambda value: str(value)
)
def test_real_exports_tell_how_long_each_command_took(agent: str, suffix: str) -> None:
    times = gathered(sample(agent, suffix))
    stamps = json.loads((SAMPLES / agent / "stamps.json").read_text(encoding="utf-8"))
    assert set(times) == {stamp["tool_call_id"] for stamp in stamps}
    for stamp in stamps:
        time = times[stamp["tool_call_id"]]
        assert time.source == "otel"
        assert time.internal_us is not None
        assert 0 <= time.internal_us - (stamp["ended_us"] - stamp["started_us"]) < 40_000
        assert time.permission_us == 0  # the configuration allowed it
        assert time.started_utc_us is not None
        assert time.ended_utc_us is not None
        assert time.started_utc_us - 1000 <= stamp["started_us"] <= stamp["ended_us"] <= time.ended_utc_us + 1000


@pytest.mark.parametrize("agent", ["claude-code", "codex"])
def test_each_signal_alone_and_any_order_tell_about_the_same(agent: str) -> None:
    whole = gathered(sample(agent))
    assert gathered(list(reversed(sample(agent)))) == whole
    assert gathered([*sample(agent), *sample(agent)]) == whole
    alone = gathered([one for one in sample(agent) if one.path.endswith("logs")])
    assert set(alone) == set(whole)
    for call, time in alone.items():
        assert time.internal_us is not None
        assert abs(time.internal_us - (whole[call].internal_us or 0)) <= 1000  # whole milliseconds
        assert time.permission_us == 0


def test_real_exports_name_the_calls() -> None:
    telemetry = Telemetry()
    for one in sample("claude-code"):
        telemetry.add(one)
    assert [(call.attempt, call.request_id[:4]) for call in telemetry.calls] == [(1, "req_")] * 3
    assert all(0 < (call.ttft_us or 0) < (call.duration_us or 0) for call in telemetry.calls)


def test_no_sample_names_a_machine_or_a_person() -> None:
    for file in SAMPLES.glob("*/*.pb"):
        data = file.read_bytes()
        assert re.search(rb"[\w.+-]+@[\w-]+\.\w", data) is None
        assert not any(word in data for word in (b"/home/", b"/Users/", b"/tmp/", b"/root/"))


# ---- what only a person at the keyboard brings about ----


def test_a_permission_wait_comes_from_a_span_without_a_tool_id() -> None:
    tool = {"tool_use_id": "toolu_1", "session.id": "s", "gen_ai.operation.name": "execute_tool"}
    waited = span("claude_code.tool.blocked_on_user", 0, 7000, {"source": "user_temporary"}, own="bb", parent="aa")
    ran = span("claude_code.tool.execution", 7000, 9500, {"tool_use_id": "toolu_1", "session.id": "s"}, own="cc")
    whole = span("claude_code.tool", 0, 9500, tool, own="aa")
    expected = ToolTime(
        tool_call_id="toolu_1",
        source="otel",
        internal_us=2_500_000,
        permission_us=7_000_000,
        started_utc_us=START + 7_000_000,
        ended_utc_us=START + 9_500_000,
    )
    # Children end first, so the wait comes in an export before that of its parent.
    assert gathered([traces(waited), traces(ran, whole)]) == {"toolu_1": expected}
    assert gathered([traces(whole, ran), traces(waited)]) == {"toolu_1": expected}
    by_rule = span("claude_code.tool.blocked_on_user", 0, 12, {"source": "config"}, own="bb", parent="aa")
    assert gathered([traces(by_rule, ran, whole)])["toolu_1"].permission_us == 0
    other = span("claude_code.tool.blocked_on_user", 0, 12, {"source": "user"}, own="bb", parent="aa", trace="02")
    assert gathered([traces(other, ran, whole)])["toolu_1"].permission_us is None


def test_codex_counts_an_approval_into_the_tool_and_it_is_taken_out() -> None:
    result = event(10_000, codex("tool_result", duration_ms="9000"))
    asked = event(5000, codex("tool_decision", decision="approved", source="User"))
    time = gathered([logs(asked, result)])["call_1"]
    assert (time.permission_us, time.internal_us) == (4_000_000, 5_000_000)
    assert (time.started_utc_us, time.ended_utc_us) == (START + 5_000_000, START + 10_000_000)
    twice = gathered([logs(asked, event(6000, codex("tool_decision", source="User")), result)])["call_1"]
    assert (twice.permission_us, twice.internal_us) == (None, None)
    # A clock that was set back makes no negative wait.
    early = gathered([logs(event(500, codex("tool_decision", source="User")), result)])["call_1"]
    assert (early.permission_us, early.internal_us) == (0, 9_000_000)


def test_codex_traces_hold_the_same_as_span_events() -> None:
    holder = span("dispatch_tool_call_with_state", 0, 10_000, {})
    holder["events"] = [
        event(0, codex("tool_decision", source="Config")) | {"name": "event otel/src/x.rs:1"},
        event(9000, codex("tool_result", duration_ms=8500)) | {"name": "event otel/src/x.rs:2"},
    ]
    time = gathered([traces(holder)])["call_1"]
    assert (time.internal_us, time.permission_us, time.ended_utc_us) == (8_500_000, 0, START + 9_000_000)


def test_the_conventions_of_opentelemetry_are_enough() -> None:
    values = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "x", "gen_ai.conversation.id": "c"}
    time = gathered([traces(span("execute_tool grep", 5, 30, values))])["x"]
    assert (time.internal_us, time.permission_us, time.started_utc_us) == (25_000, None, START + 5000)


def test_where_only_the_whole_is_told_the_wait_is_taken_out_of_it() -> None:
    values = {"tool.call_id": "c", "session.id": "ses_1"}
    # As opencode nests them: the question stands under a span of the tool's own.
    question = span("Permission.ask", 1000, 5000, {}, own="cc", parent="bb")
    around = span("ShellTool.ask", 990, 5010, {}, own="bb", parent="aa")
    time = gathered([traces(question), traces(around, span("Tool.execute", 0, 10_000, values, own="aa"))])["c"]
    assert (time.internal_us, time.permission_us) == (6_000_000, 4_000_000)
    assert (time.started_utc_us, time.ended_utc_us) == (START + 4_000_000, START + 10_000_000)
    # Claude Code's execution span was lost on the way.
    tool = {"tool_use_id": "toolu_1", "gen_ai.operation.name": "execute_tool"}
    waited = span("claude_code.tool.blocked_on_user", 0, 30, {"source": "config"}, own="bb", parent="aa")
    time = gathered([traces(waited, span("claude_code.tool", 0, 100, tool, own="aa"))])["toolu_1"]
    assert (time.internal_us, time.permission_us) == (70_000, 0)
    # Spans that go round in a circle end nowhere.
    circle = span("Permission.ask", 0, 5, {}, own="bb", parent="cc"), span("x.ask", 0, 5, {}, own="cc", parent="bb")
    assert gathered([traces(*circle)]) == {}


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        ("12.5", 12_500),
        (3, 3000),
        (0.25, 250),
        ("-1", None),
        ("nan", None),
        ("1e300", None),
        ("soon", None),
        (True, None),
    ],
)
def test_durations_come_as_text_and_numbers_and_sometimes_as_nonsense(duration: Any, expected: int | None) -> None:
    record = event(100, {"event.name": "tool_result", "tool_use_id": "t", "duration_ms": duration})
    assert gathered([logs(record)])["t"].internal_us == expected


def test_a_span_that_ends_before_it_starts_tells_nothing() -> None:
    values = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": "x"}
    assert gathered([traces(span("execute_tool x", 30, 5, values))])["x"] == ToolTime(tool_call_id="x", source="otel")


def test_a_record_without_its_own_time_uses_the_observed_or_the_written_one() -> None:
    record = event(0, codex("tool_result", duration_ms=1))
    observed = {"observedTimeUnixNano": record.pop("timeUnixNano"), **record}
    assert gathered([logs(observed)])["call_1"].ended_utc_us == START
    record["attributes"] += attributes({"event.timestamp": "2026-09-21T14:13:20.500Z"})
    assert gathered([logs(record)])["call_1"].ended_utc_us == START + 500_000


# ---- whose times they are ----


def test_equal_call_ids_of_two_sessions_are_told_apart_by_the_session_or_not_at_all() -> None:
    telemetry = Telemetry()
    for name, took in (("one", 10), ("two", 20)):
        record = event(0, {"event.name": "tool_result", "session.id": name, "call_id": "same", "duration_ms": took})
        telemetry.add(logs(record))
    lone = event(0, {"event.name": "tool_result", "session.id": "one", "call_id": "other", "duration_ms": 5})
    telemetry.add(logs(lone))
    told = telemetry.by_contributor()[None]
    owner = {"one": "session-1", "two": "session-2"}.get
    (own,) = times_of(told, ["same"], "session-2", owner)
    assert own.internal_us == 20_000
    assert times_of(told, ["same", "missing"], "session-3", owner) == []
    # A sub-agent may export under an id of its own: a call id that nobody else has is enough,
    assert [time.internal_us for time in times_of(told, ["other"], "session-3", {}.get)] == [5000]
    # but not where the export names another recorded session.
    assert times_of(told, ["other"], "session-3", owner) == []


def test_only_exports_to_the_recorder_itself_are_telemetry() -> None:
    assert is_telemetry(export("/v1/traces", b""))
    assert not is_telemetry(exchange("/v1/traces", b""))
    telemetry = Telemetry()
    telemetry.add(export("/otlp/v1/metrics", b"\xff\xff"))
    telemetry.add(replace(traces(), method="GET"))
    assert (telemetry.unreadable, list(telemetry.tool_times())) == (0, [])


# ---- hostile bytes ----

_NAMES = ["resourceSpans", "scopeSpans", "spans", "resourceLogs", "scopeLogs", "logRecords", "attributes", "key"]
_NAMES += ["value", "stringValue", "intValue", "name", "traceId", "spanId", "startTimeUnixNano", "events"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "resourceSpans",
                    "scopeSpans",
                    "spans",
                    "resourceLogs",
                    "scopeLogs",
                    "logRecords",
                    "attributes",
                    "key",
                    "value",
                    "stringValue",
                    "intValue",
                    "name",
                    "traceId",
                    "spanId",
                    "startTimeUnixNano",
                    "endTimeUnixNano",
                    "events",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@given(
    path=st.sampled_from(["/v1/traces", "/otlp/v1/logs?x=1", "/v1/metrics", "/v1/"]),
    body=st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()),
    kind=st.sampled_from(["application/json", "application/x-protobuf", "", "text/plain"]),
    encoding=st.sampled_from(["", "gzip", "zstd", "br", "rot13"]),
)
def test_no_bytes_raise(path: str, body: bytes, kind: str, encoding: str) -> None:
    telemetry = Telemetry()
    telemetry.add(export(path, body, headers=(("content-type", kind), ("content-encoding", encoding))))
    list(telemetry.tool_times())


@given(data=st.data())
def test_a_damaged_export_never_raises(data: st.DataObject) -> None:
    one = data.draw(st.sampled_from([*sample("claude-code"), *sample("codex")]))
    body = bytearray(one.request_body)
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=6)):
        body[place] = data.draw(st.integers(0, 255))
    telemetry = Telemetry()
    telemetry.add(replace(one, request_body=bytes(body[: data.draw(st.integers(0, len(body)))])))
    assert telemetry.unreadable in (0, 1)
    for _, _, time in telemetry.tool_times():
        assert (time.internal_us or 0) >= 0
        assert (time.permission_us or 0) >= 0


@given(stamp=st.integers(0, 2**64 - 1), later=st.integers(0, 2**64 - 1), value=st.integers(-(2**63), 2**63 - 1))
def test_no_number_raises_or_makes_a_negative_time(stamp: int, later: int, value: int) -> None:
    spans, records = ExportTraceServiceRequest(), ExportLogsServiceRequest()
    one = spans.resource_spans.add().scope_spans.add().spans.add(name="claude_code.tool.execution")
    one.start_time_unix_nano, one.end_time_unix_nano = stamp, later
    one.attributes.add(key="tool_use_id").value.string_value = "t"
    record = records.resource_logs.add().scope_logs.add().log_records.add(event_name="codex.tool_result")
    record.time_unix_nano = stamp
    record.attributes.add(key="call_id").value.string_value = "c"
    record.attributes.add(key="duration_ms").value.int_value = value
    times = gathered([export("/v1/traces", spans.SerializeToString()), export("/v1/logs", records.SerializeToString())])
    assert all((time.internal_us or 0) >= 0 for time in times.values())


def test_deep_and_bulky_json_is_unreadable_not_fatal() -> None:
    telemetry = Telemetry()
    deep = b'{"resourceSpans":' + b"[" * 100_000
    telemetry.add(export("/v1/traces", deep, headers=(("content-type", "application/json"),)))
    packed = gzip.compress(b"\xff" * 1_000_000)
    telemetry.add(export("/v1/logs", packed, headers=(("content-encoding", "gzip"),)))
    assert telemetry.unreadable == 2


# ---- what the launcher sets ----


def test_only_claude_code_takes_variables_and_only_codex_options() -> None:
    endpoint = "http://127.0.0.1:9/otlp"
    environment = agent_environment("claude-code", endpoint)
    assert environment["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "http://127.0.0.1:9/otlp/v1/traces"
    assert environment["OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"] == "http://127.0.0.1:9/otlp/v1/logs"
    # Nothing that would put prompts, tool contents or raw bodies into the export, or send metrics.
    assert not any(name.startswith(("OTEL_LOG_", "OTEL_METRICS")) for name in environment)
    assert agent_environment("codex", endpoint) == agent_environment("pi", endpoint) == {}
    assert agent_overrides(endpoint) == [
        "-c",
        'otel.exporter={otlp-http={endpoint="http://127.0.0.1:9/otlp/v1/logs",protocol="binary"}}',
    ]
