"""One HTTP exchange as it went over the wire: the facts, before any dialect is read into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

type Outcome = Literal["complete", "client_aborted", "upstream_refused", "upstream_cut", "open"]
"""How an exchange ended. `open`: the recorder was killed (or still runs) before the end was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Bytes of the response body as one read handed them over, and when."""

    at_ns: int  # monotonic, on the recorder's clock
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A place where the recorder itself lost something, so that nobody takes the rest for whole."""

    at_ns: int
    kind: Literal["queue_full", "recorder_error", "disk", "killed", "paused", "excluded", "credential"]
    lost_bytes: int | None  # None where the amount is unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketMessage:
    """A WebSocket message, after the handshake that the exchange itself describes."""

    at_ns: int  # monotonic, on the recorder's clock; whole message received
    from_agent: bool
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its response, byte-exact, with monotonic times in nanoseconds.

    Header names are lower case. Credentials of the connection (authorization headers, cookies, key-like
    query parameters) are never in here: the recorder replaces each by `<redacted>` before it writes.
    """

    exchange_id: str  # unique in a store: journal id and row number
    connection_id: str  # the agent's connection; a tie-break only, one connection is not one session
    wall_anchor_us: int  # UTC of monotonic zero of this journal: wall time = wall_anchor_us + at_ns // 1000
    method: str
    host: str  # upstream host:port as the agent would have reached it
    path: str  # with query; key-like parameters redacted
    request_headers: tuple[tuple[str, str], ...]
    request_body: bytes  # as sent, still content-encoded unless `request_decoded`
    t_send_ns: int  # request headers parsed
    t_sent_ns: int | None  # last byte of the request body received; None while it has not
    status: int | None
    response_headers: tuple[tuple[str, str], ...]
    t_headers_ns: int | None  # response headers parsed
    reads: tuple[Read, ...]  # response body as received, still content-encoded
    t_end_ns: int | None  # last byte, or the moment at which it was cut
    outcome: Outcome
    error: str | None
    gaps: tuple[Gap, ...] = ()
    messages: tuple[SocketMessage, ...] = ()  # both directions in order of time; empty unless status is 101
    mode: str | None = None  # how the agent reached the recorder: reverse | forward | script
    contributor: str | None = None  # whose token it carried; None on a recorder without tokens
    consent: str | None = None  # what that person agreed to, in the recorder's configuration
    request_decoded: bool = False  # the journal keeps an encoded body decoded, so that equal parts are stored once
    request_bytes: int | None = None  # length of the body on the wire
    wall_offset_us: int = 0  # how far the wall clock had moved against the anchor at `t_send_ns`: sleep, or a new time
    wall_offset_end_us: int | None = None  # the same at `t_end_ns`
    agent: str | None = None  # that `capture run` started behind this recorder
    agent_version: str | None = None

    def request_header(self, name: str) -> str | None:
        """First value of a request header (lower-case name)."""
        return next((value for key, value in self.request_headers if key == name), None)

    def response_header(self, name: str) -> str | None:
        """First value of a response header (lower-case name)."""
        return next((value for key, value in self.response_headers if key == name), None)
