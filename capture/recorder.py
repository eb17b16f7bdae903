"""The recorder: a mitmproxy addon that hands timed bytes to a journal and changes nothing.

Fail open: the stream callable gives back the very object it was given, whatever happens inside; a fault costs one
exchange its recording, leaves a gap mark, and the agent never learns of it. (An exception in a stream callable would
make mitmproxy drop that chunk from the agent's stream.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mitmproxy import connection, http
from mitmproxy.version import VERSION as MITMPROXY_VERSION

from capture.counters import Counters
from capture.exchange import Outcome
from capture.journal import FROM_AGENT, FROM_UPSTREAM, JournalWriter
from capture.rotation import Journals
from capture.store import Store

RECORDER_VERSION = "2"
"""Counts changes in what a recording means, not releases. 2: forward mode, telemetry, people."""

PASSAGE = "agentdyno"
"""Where a flow's metadata hold its `Passage`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """How a request came through the gate; a flow without one is recorded as mitmproxy shows it."""

    route: str  # for the counters; empty: an answer of the recorder's own, not counted
    host: str | None = None  # host:port as the agent meant it, where that is not where the request goes
    path: str | None = None  # likewise
    contributor: str | None = None
    consent: str | None = None
    person_label: str | None = None  # for the counters
    recorded: bool = True


_PLAIN = Passage(route="any")
_ABNORMAL_CLOSURE = 1006


@dataclass(slots=True, eq=False)
class _Open:
    """An exchange that has not ended."""

    journal: JournalWriter  # it stays in this one, whichever is the current one later
    number: int  # 0: the journal does not know it
    client_id: str
    route: str
    sent: bool = False
    off: bool = True  # not recorded, or not any more: relayed only
    received: int = 0  # bytes of the response
    status: int | None = None


@dataclass(slots=True)
class _Guard:
    """The outermost place before mitmproxy: a fault inside costs the exchange its recording and goes no further."""

    recorder: Recorder
    entry: _Open | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: object) -> bool:
        if not isinstance(fault, Exception):
            return False
        self.recorder.lose(self.entry)
        return True


class Recorder:
    """The addon. Its hooks only stamp and enqueue; `done` closes the journal."""

    def __init__(self, journals: Journals, counters: Counters | None = None) -> None:
        self._journals = journals
        self._counters = counters if counters is not None else Counters()
        self._open: dict[str, _Open] = {}

    @property
    def in_flight(self) -> int:
        """Exchanges that have not ended."""
        return len(self._open)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """The request's headers are in: the exchange begins."""
        at_ns = time.monotonic_ns()
        with _Guard(self):
            passage: Passage = flow.metadata.get(PASSAGE, _PLAIN)
            entry = _Open(self._journals.current, 0, flow.client_conn.id, passage.route)
            self._open[flow.id] = entry
            self._counters.in_flight += 1
            if passage.person_label is not None:
                self._counters.by_person[passage.person_label] += 1
            if not passage.recorded:
                return
            entry.number = self._send(entry.journal, flow, passage, at_ns)
            if entry.number:
                entry.off = False
            else:
                self._counters.passed["paused"] += 1

    def request(self, flow: http.HTTPFlow) -> None:
        """The request is complete."""
        at_ns = time.monotonic_ns()
        entry = self._open.get(flow.id)
        if entry is None:
            return
        entry.sent = True
        if entry.off:
            return
        with _Guard(self, entry):
            body = flow.request.raw_content or b""
            self._counters.request_bytes += len(body)
            entry.journal.sent(entry.number, at_ns=at_ns, body=body)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """The response's headers are in; its body will be streamed."""
        at_ns = time.monotonic_ns()
        entry = self._open.get(flow.id)
        response = flow.response
        if response is None:
            return
        if entry is None or entry.off:
            response.stream = True  # even what is not recorded must not be held
            if entry is not None:
                entry.status = response.status_code
            return
        response.stream = self._tap(entry)
        entry.status = response.status_code
        with _Guard(self, entry):
            entry.journal.headers(
                entry.number, at_ns=at_ns, status=response.status_code, headers=response.headers.fields
            )

    def response(self, flow: http.HTTPFlow) -> None:
        """The response is complete."""
        at_ns = time.monotonic_ns()
        entry = self._open.get(flow.id)
        if entry is None:
            return
        with _Guard(self, entry):
            content = flow.response.raw_content if flow.response is not None else None
            if content and not entry.off:  # not streamed: an answer of our own, such as 404
                entry.journal.read(entry.number, at_ns, content)
        if flow.websocket is None:
            self._end(flow.id, at_ns, "complete", None)

    def error(self, flow: http.HTTPFlow) -> None:
        """The exchange was cut."""
        at_ns = time.monotonic_ns()
        message = flow.error.msg if flow.error is not None else None
        self._end(flow.id, at_ns, self._blame(flow, message), message)

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        """A WebSocket message passed; mitmproxy would keep every one in memory."""
        at_ns = time.monotonic_ns()
        if flow.websocket is None or not flow.websocket.messages:
            return
        message = flow.websocket.messages[-1]
        flow.websocket.messages.clear()
        entry = self._open.get(flow.id)
        if entry is None or entry.off:
            return
        with _Guard(self, entry):
            kind = FROM_AGENT if message.from_client else FROM_UPSTREAM
            if message.from_client:
                self._counters.request_bytes += len(message.content)
            else:
                entry.received += len(message.content)
            entry.journal.read(entry.number, at_ns, message.content, kind)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        """The WebSocket is closed: in order, or by a side that was simply gone (close code 1006, RFC 6455 7.1.5)."""
        at_ns = time.monotonic_ns()
        socket = flow.websocket
        if socket is None or socket.close_code != _ABNORMAL_CLOSURE:
            self._end(flow.id, at_ns, "complete", None)
        elif socket.closed_by_client:
            self._end(flow.id, at_ns, "client_aborted", "WebSocket: Client disconnected.")
        else:
            self._end(flow.id, at_ns, "upstream_cut", "WebSocket: the upstream closed the connection")

    def client_disconnected(self, client: connection.Client) -> None:
        """The agent's connection is gone; whatever of it is still open will get no other hook."""
        at_ns = time.monotonic_ns()
        for flow_id in [key for key, entry in self._open.items() if entry.client_id == client.id]:
            self._end(flow_id, at_ns, "client_aborted", "Client disconnected.")

    def done(self) -> None:
        """mitmproxy shuts down; what still runs is cut by it, not by its own sides."""
        at_ns = time.monotonic_ns()
        for entry in self._open.values():
            with _Guard(self):
                if not entry.off:
                    entry.journal.gap(entry.number, at_ns=at_ns, kind="killed", lost_bytes=None)
        self._journals.close()

    @staticmethod
    def _send(journal: JournalWriter, flow: http.HTTPFlow, passage: Passage, at_ns: int) -> int:
        request = flow.request
        host = passage.host or f"{request.host}:{request.port}"
        path = request.path if passage.path is None else passage.path
        if passage.contributor is None:
            return journal.send(
                at_ns=at_ns,
                connection=flow.client_conn.id,
                method=request.method,
                host=host,
                path=path,
                headers=request.headers.fields,
            )
        return journal.send(
            at_ns=at_ns,
            connection=flow.client_conn.id,
            method=request.method,
            host=host,
            path=path,
            headers=request.headers.fields,
            contributor=passage.contributor,
            consent=passage.consent,
        )

    def _tap(self, entry: _Open) -> Callable[[bytes], bytes]:
        read, now, number = entry.journal.read, time.monotonic_ns, entry.number

        def tap(data: bytes) -> bytes:
            if data and not entry.off:
                try:
                    read(number, now(), data)
                    entry.received += len(data)
                except Exception:  # noqa: BLE001 - an exception would drop this chunk from the agent's stream
                    self.lose(entry, len(data))
            return data

        return tap

    def _blame(self, flow: http.HTTPFlow, message: str | None) -> Outcome:
        entry = self._open.get(flow.id)
        gone = not flow.client_conn.state & connection.ConnectionState.CAN_READ
        if gone or (message or "").startswith("Client disconnected") or (entry is not None and not entry.sent):
            return "client_aborted"
        if flow.response is None and flow.server_conn.timestamp_tcp_setup is None:
            return "upstream_refused"
        return "upstream_cut"

    def _end(self, flow_id: str, at_ns: int, outcome: Outcome, error: str | None) -> None:
        entry = self._open.pop(flow_id, None)
        if entry is None:
            return
        with _Guard(self, entry):
            self._counters.in_flight -= 1
            if entry.route:
                self._counters.ended(entry.route, entry.status, outcome)
            self._counters.response_bytes += entry.received
            if entry.number:
                entry.journal.end(entry.number, at_ns=at_ns, outcome=outcome, error=error)

    def lose(self, entry: _Open | None, lost_bytes: int | None = None) -> None:
        """Mark a gap and record no more of this exchange; never raises."""
        try:
            if entry is not None:
                entry.off = True
            number = (entry.number or None) if entry is not None else None
            journal = entry.journal if entry is not None else self._journals.current
            journal.gap(number, at_ns=time.monotonic_ns(), kind="recorder_error", lost_bytes=lost_bytes)
        except Exception:  # noqa: BLE001, S110 - nothing is left to tell it to; relaying goes on
            pass


def open_journals(store: Store, *, mode: str, on_fault: Callable[[str], None], **meta: str) -> Journals:
    """New journals in `store` that say how they were recorded. OSError where none can be begun."""
    return Journals(
        store,
        meta={"recorder": RECORDER_VERSION, "mitmproxy": MITMPROXY_VERSION, "mode": mode, **meta},
        on_fault=on_fault,
    )


def recorder_for(path: Path) -> Recorder:
    """A recorder into the store at `path`, made if missing, for a mitmproxy that somebody else runs."""

    def loud(sentence: str) -> None:
        import logging

        logging.getLogger(__name__).error("recording stopped, relaying goes on: %s", sentence)

    return Recorder(open_journals(Store.open(path, create=True), mode="script", on_fault=loud))
