"""The addon alone, without a proxy around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mitmproxy import flow as mitmproxy_flow
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketMessage
from wsproto.frame_protocol import Opcode

from capture.exchange import Exchange
from capture.recorder import Recorder, open_journals
from capture.rotation import Journals
from capture.store import Store


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journals]:
    store = Store.open(tmp_path / "store", create=True)
    writer = open_journals(store, mode="reverse", on_fault=pytest.fail)
    yield writer
    writer.close()


def recorded(tmp_path: Path, recorder: Recorder) -> list[Exchange]:
    recorder.done()
    return list(Store.open(tmp_path / "store").exchanges())


def request(recorder: Recorder) -> http.HTTPFlow:
    flow = tflow.tflow(resp=False)
    flow.client_conn.state = ConnectionState.OPEN
    recorder.requestheaders(flow)
    recorder.request(flow)
    return flow


def answer(recorder: Recorder, flow: http.HTTPFlow) -> http.Response:
    flow.response = http.Response.make(200, b"", {"content-type": "text/event-stream"})
    flow.response.data.content = None
    recorder.responseheaders(flow)
    return flow.response


def test_the_tap_returns_the_very_object_it_was_given(journal: Journals, tmp_path: Path) -> None:
    recorder = Recorder(journal)
    flow = request(recorder)
    tap = answer(recorder, flow).stream
    assert callable(tap)
    chunks = [b"data: 1\n\n", b"\x00\xff" * 10, b""]
    assert [tap(chunk) is chunk for chunk in chunks] == [True, True, True]
    recorder.response(flow)
    assert recorder.in_flight == 0
    (exchange,) = recorded(tmp_path, recorder)
    assert [read.data for read in exchange.reads] == chunks[:2]
    assert exchange.outcome == "complete"
    assert exchange.request_body == b"content"


def test_a_fault_inside_costs_the_recording_and_no_chunk(
    journal: Journals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(journal)
    flow = request(recorder)
    calls = []

    def failing(number: int, at_ns: int, data: bytes, kind: int = 0) -> None:
        calls.append(data)
        raise RuntimeError("a bug")

    monkeypatch.setattr(journal.current, "read", failing)
    tap = answer(recorder, flow).stream
    assert callable(tap)
    chunks = [b"%d" % number for number in range(30)]
    assert [tap(chunk) for chunk in chunks] == chunks
    recorder.response(flow)
    assert len(calls) == 1  # switched off after the first
    (exchange,) = recorded(tmp_path, recorder)
    assert [(gap.kind, gap.lost_bytes) for gap in exchange.gaps] == [("recorder_error", 1)]
    assert exchange.outcome == "complete"


def test_even_a_journal_that_refuses_everything_holds_nobody_up(
    journal: Journals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError("no")

    for name in ("send", "sent", "headers", "read", "end", "gap"):
        monkeypatch.setattr(journal.current, name, refuse)
    recorder = Recorder(journal)
    flow = request(recorder)
    response = answer(recorder, flow)
    assert response.stream is True  # not recorded, still streamed
    recorder.response(flow)
    recorder.error(flow)


def test_an_answer_of_the_proxys_own_is_recorded_too(journal: Journals, tmp_path: Path) -> None:
    recorder = Recorder(journal)
    flow = request(recorder)
    flow.response = http.Response.make(404, b"no route")
    recorder.responseheaders(flow)
    recorder.response(flow)
    (exchange,) = recorded(tmp_path, recorder)
    assert (exchange.status, b"".join(read.data for read in exchange.reads)) == (404, b"no route")


def test_websocket_messages_are_recorded_and_not_kept_in_memory(journal: Journals, tmp_path: Path) -> None:
    recorder = Recorder(journal)
    flow = tflow.twebsocketflow(messages=False)
    recorder.requestheaders(flow)
    recorder.request(flow)
    recorder.responseheaders(flow)
    recorder.response(flow)
    assert flow.websocket is not None
    for number in range(5):
        flow.websocket.messages.append(WebSocketMessage(Opcode.TEXT, number % 2 == 0, b"message %d" % number))
        recorder.websocket_message(flow)
        assert flow.websocket.messages == []
    assert recorder.in_flight == 1
    recorder.websocket_end(flow)
    (exchange,) = recorded(tmp_path, recorder)
    assert (exchange.status, exchange.outcome) == (101, "complete")
    assert [message.data for message in exchange.messages] == [b"message %d" % number for number in range(5)]
    assert [message.from_agent for message in exchange.messages] == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("answered", "connected", "client_state", "message", "outcome"),
    [
        (False, None, ConnectionState.OPEN, "[Errno 111] Connect call failed", "upstream_refused"),
        (False, 5.0, ConnectionState.OPEN, "server disconnected", "upstream_cut"),
        (True, 5.0, ConnectionState.OPEN, "HTTP/1 protocol error: peer closed", "upstream_cut"),
        (True, 5.0, ConnectionState.OPEN, "Client disconnected.", "client_aborted"),
        (True, 5.0, ConnectionState.CLOSED, "anything", "client_aborted"),
    ],
    ids=["refused", "cut before headers", "cut in the body", "client says so", "client is gone"],
)
def test_who_cut(
    journal: Journals,
    tmp_path: Path,
    answered: bool,
    connected: float | None,
    client_state: ConnectionState,
    message: str,
    outcome: str,
) -> None:
    recorder = Recorder(journal)
    flow = request(recorder)
    if answered:
        answer(recorder, flow)
    flow.server_conn.timestamp_tcp_setup = connected
    flow.client_conn.state = client_state
    flow.error = mitmproxy_flow.Error(message)
    recorder.error(flow)
    (exchange,) = recorded(tmp_path, recorder)
    assert (exchange.outcome, exchange.error) == (outcome, message)


def test_a_connection_that_goes_away_ends_what_was_open_on_it(journal: Journals, tmp_path: Path) -> None:
    recorder = Recorder(journal)
    flow, other = request(recorder), request(recorder)
    other.client_conn.id = flow.client_conn.id + "-other"
    recorder.client_disconnected(flow.client_conn)
    assert recorder.in_flight == 1
    assert [exchange.outcome for exchange in recorded(tmp_path, recorder)] == ["client_aborted", "open"]
