"""What happened to one request on the wire, where it went, and how long each of its phases may take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import httpx

CONNECT_TIMEOUT_S = 10.0
MOST_KEPT_BYTES = 32 * 1024 * 1024
"""Of an answer that is kept whole: a list of 100,000 models has 10 MB."""
MOST_READ_BYTES = 256 * 1024 * 1024
"""Of an answer that is read on its way: the longest that models give, an event for each token, is a fifth of it."""


class Wire:
    """What happened to one request on the wire; times are absolute monotonic ns, None while not reached.

    The transport fills it while the request runs and leaves it alone afterwards. After a redial the stamps are
    those of the second sending; `redialled_from_ns` keeps the first one's.

    A `reader` is given the body of an answer with status 200 while it comes, a hundred reads at a time: `reads` then
    holds only what it has not been given, so that a thousand long answers do not have to fit memory.
    """

    __slots__ = (
        "_bytes_read",
        "_first_byte_at_ns",
        "_last_at_ns",
        "_read_count",
        "asked_at_ns",
        "bytes_up",
        "data",
        "data_at_ns",
        "end_at_ns",
        "headers",
        "headers_at_ns",
        "reader",
        "redialled_from_ns",
        "reused_connection",
        "sent_at_ns",
        "status",
        "written_at_ns",
    )

    def __init__(self, reader: Callable[[Iterable[tuple[int, bytes]]], None] | None = None) -> None:
        self.asked_at_ns: int | None = None  # the transport was given the request; a fresh connection is dialled after
        self.sent_at_ns: int | None = None  # first byte handed to the socket
        self.written_at_ns: int | None = None  # last byte handed to the kernel
        self.headers_at_ns: int | None = None
        self.end_at_ns: int | None = None  # last byte read, or the moment at which it failed
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []  # of the response, names as they came
        # Body bytes and when each was read, HTTP framing taken off; one read may give several. Two lists, since a
        # tuple for each would be one more object for the garbage collector to walk, times all agents.
        self.data: list[bytes] = []
        self.data_at_ns: list[int] = []
        self.reader = reader
        self.reused_connection = False
        self.redialled_from_ns: int | None = None
        self.bytes_up = 0  # of the body
        self._first_byte_at_ns: int | None = None
        self._bytes_read = 0  # by the reader
        self._read_count = 0
        self._last_at_ns: int | None = None

    @property
    def reads(self) -> list[tuple[int, bytes]]:
        """Body bytes that no reader was given, each with its time."""
        return list(zip(self.data_at_ns, self.data, strict=True))

    @property
    def most_bytes(self) -> int:
        """How long the answer may be, framing included: a server must not fill our memory."""
        is_read = self.reader is not None and self.status == 200
        return MOST_READ_BYTES if is_read else MOST_KEPT_BYTES

    def hand_over(self, most: int | None = None) -> None:
        """Give the reader what has come, at most so many pieces, and forget them."""
        assert self.reader is not None
        if not self.data:
            return
        # Deleted from, not replaced: the connection appends to these very lists.
        data, at_ns = self.data[:most], self.data_at_ns[:most]
        del self.data[:most], self.data_at_ns[:most]
        if self._first_byte_at_ns is None:
            self._first_byte_at_ns = at_ns[0]
        self._bytes_read += sum(map(len, data))
        self._read_count += len(set(at_ns)) - (at_ns[0] == self._last_at_ns)
        self._last_at_ns = at_ns[-1]
        self.reader(zip(at_ns, data, strict=True))

    def first_byte_at_ns(self) -> int | None:
        """When the first byte of the response body was read."""
        if self._first_byte_at_ns is not None:
            return self._first_byte_at_ns
        return self.data_at_ns[0] if self.data_at_ns else None

    def bytes_down(self) -> int:
        """Size of the response body as far as it came."""
        return self._bytes_read + sum(map(len, self.data))

    def body(self) -> bytes:
        """The response body as far as it came, where no reader was given any of it."""
        return b"".join(self.data)

    def read_count(self) -> int:
        """How many reads of the socket brought body bytes."""
        more = len(set(self.data_at_ns))
        return self._read_count + more - (more > 0 and self.data_at_ns[0] == self._last_at_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a request goes and what its head says, but for the length of its body."""

    scheme: bytes
    host: bytes
    port: int
    method: str
    head: bytes  # request line and headers, the last line end included

    @classmethod
    def of(cls, request: httpx.Request) -> Target:
        """The target of an httpx request."""
        url = request.url
        lines = [b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), url.raw_path)]
        for name, value in request.headers.raw:
            # We announce the length ourselves, and reads that a server compressed could not be told apart by event.
            if name.lower() not in (b"accept-encoding", b"content-length", b"transfer-encoding"):
                lines.append(b"%b: %b\r\n" % (name, value))
        lines.append(b"accept-encoding: identity\r\n")
        return cls(
            scheme=url.raw_scheme,
            host=url.raw_host,
            port=url.port or (443 if url.scheme == "https" else 80),
            method=request.method,
            head=b"".join(lines),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long the phases of a request may take, in seconds; None bounds nothing."""

    connect_s: float = CONNECT_TIMEOUT_S  # until a connection stands, a proxy's tunnel and TLS included
    first_byte_s: float | None = None  # from the first byte sent until the first byte of the answer's body
    idle_s: float | None = None  # between two reads of the body
    total_s: float | None = None  # from the first byte sent until the last byte read

    def due(self, wire: Wire, last_read_at_ns: int | None) -> tuple[int, float, str] | None:
        """When a request that is under way is over time next (monotonic ns), by which limit, and the words for it.

        None: never.
        """
        assert wire.sent_at_ns is not None
        limits = [(wire.sent_at_ns, self.total_s, "the answer was not complete after {:g} s (total time-out)")]
        if last_read_at_ns is None:
            limits.append((wire.sent_at_ns, self.first_byte_s, "no answer began within {:g} s (first-byte time-out)"))
        else:
            limits.append((last_read_at_ns, self.idle_s, "the answer stood still for {:g} s (idle time-out)"))
        due = [(start + int(limit * 1e9), limit, words) for start, limit, words in limits if limit is not None]
        return min(due, default=None)
