"""Golden recordings of real agents, read by the dialects: real bytes in, known facts out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capture.call import ModelCall
from capture.dialect import read_call
from capture.exchange import Exchange, Read

FOLDERS = sorted(path.parent for path in (Path(__file__).parent / "recordings").glob("*/exchange.json"))
START_NS = 1_000_000_000


def read_exchange(folder: Path, *, one_read_per_byte: bool = False) -> Exchange:
    """The exchange as the recorder had it: the response cut into the reads that it came in."""
    raw = json.loads((folder / "exchange.json").read_text(encoding="utf-8"))
    response = next(folder.glob("response.*")).read_bytes()
    reads, place = [], 0
    for at_us, size in raw["reads"]:
        data = response[place : place + size]
        pieces = [data[i : i + 1] for i in range(size)] if one_read_per_byte else [data]
        reads += [Read(at_ns=START_NS + at_us * 1000, data=piece) for piece in pieces]
        place += size
    assert place == len(response)

    def at(name: str) -> int | None:
        return None if raw[name] is None else START_NS + raw[name] * 1000

    return Exchange(
        exchange_id="golden/1",
        connection_id="1",
        wall_anchor_us=0,
        method=raw["method"],
        host="127.0.0.1",
        path=raw["path"],
        request_headers=tuple((name, value) for name, value in raw["request_headers"]),
        request_body=json.dumps(raw["request_body"], ensure_ascii=False).encode(),
        t_send_ns=START_NS,
        t_sent_ns=at("t_sent_us"),
        status=raw["status"],
        response_headers=tuple((name, value) for name, value in raw["response_headers"]),
        t_headers_ns=at("t_headers_us"),
        reads=tuple(reads),
        t_end_ns=at("t_end_us"),
        outcome=raw["outcome"],
        error=None,
    )


def read(folder: Path, *, one_read_per_byte: bool = False) -> ModelCall:
    call = read_call(read_exchange(folder, one_read_per_byte=one_read_per_byte))
    assert call is not None
    return call


def expected(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return found


def test_there_are_recordings() -> None:
    assert {folder.name for folder in FOLDERS} >= {"claude-code", "codex", "pi"}
    assert sum(file.stat().st_size for folder in FOLDERS for file in folder.iterdir()) < 300_000


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_nothing_private_is_in_a_recording(folder: Path) -> None:
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8")
        for word in ("/root/", "/Users/", "/tmp/", "sk-scripted", "Bearer "):
            assert word not in text, f"{file.name} holds {word}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_recording_reads_as_what_was_said(folder: Path) -> None:
    call, known = read(folder), expected(folder)
    assert (call.api, call.harness, call.model, call.stream) == (
        known["api"],
        known["harness"],
        known["model"],
        known["stream"],
    )
    assert (call.status, call.error, call.complete, call.kind) == (200, None, True, "turn")
    assert call.notes == tuple(known["notes"])
    assert [tool.name for tool in call.tools] == known["tool_names"]
    if known["tool_result_ids"] is not None:  # Gemini's calls have no ids that the dialect could find again
        assert [message.tool_call_id for message in call.messages if message.role == "tool"] == known["tool_result_ids"]
    assert call.answer is not None
    assert call.answer.role == "assistant"
    assert call.answer.content == known["text"]
    assert call.answer.reasoning_content == known["reasoning"]
    calls = [
        [use.id if known_id is not None else None, use.name, use.arguments]
        for use, (known_id, _, _) in zip(call.answer.tool_calls, known["calls"], strict=True)
    ]
    if call.api in ("anthropic.messages", "google.gemini"):
        # Clients echo these arguments as an object, so the dialect writes both in one way to keep them comparable.
        for listed in (calls, known["calls"]):
            listed[:] = [[call_id, name, json.loads(arguments)] for call_id, name, arguments in listed]
    assert calls == known["calls"]
    usage = {name: getattr(call.usage, name) for name in known["usage"]}
    assert usage == known["usage"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_prompt_echoes_the_call_that_its_result_answers(folder: Path) -> None:
    call = read(folder)
    echoed = {use.id: use for message in call.messages for use in message.tool_calls}
    for message in call.messages:
        if message.role == "tool":
            assert message.tool_call_id in echoed
            assert "one" in message.content
    assert call.messages[0].role in ("system", "developer")
    assert any(message.role == "user" and "Run the steps." in message.content for message in call.messages)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_times_are_those_of_the_reads(folder: Path) -> None:
    call, known = read(folder), expected(folder)
    exchange = read_exchange(folder)
    assert call.t_send_ns == START_NS
    assert call.t_first_byte_ns == exchange.reads[0].at_ns
    assert call.t_first_content_ns is not None
    assert call.t_end_ns is not None
    assert abs((call.t_first_content_ns - START_NS) / 1e6 - known["server_first_content_ms"]) < 50
    assert abs((call.t_end_ns - START_NS) / 1e6 - known["server_end_ms"]) < 50
    if known["content_events"] is not None:
        assert len(call.content_at_ns) >= known["content_events"]
        assert list(call.content_at_ns) == sorted(call.content_at_ns)
        assert call.answer is not None
        emitted = [use.t_emitted_ns for use in call.answer.tool_calls]
        assert all(at is not None and call.t_first_content_ns <= at <= call.t_end_ns for at in emitted)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_how_the_bytes_were_cut_changes_nothing_but_times(folder: Path) -> None:
    whole, bytewise = read(folder), read(folder, one_read_per_byte=True)
    assert whole == bytewise
