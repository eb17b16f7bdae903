"""What the recorder's hooks put into a journal's queue, in the order in which it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from capture.exchange import Outcome

type RawHeaders = tuple[tuple[bytes, bytes], ...]
type MarkKind = Literal["queue_full", "recorder_error", "disk", "paused", "excluded", "credential", "killed"]


@dataclass(slots=True)
class Send:
    """An exchange begins."""

    number: int
    at_ns: int
    connection: str
    method: str
    host: str
    path: str
    headers: RawHeaders
    contributor: str | None
    consent: str | None

    def header(self, name: bytes) -> str | None:
        """First value of a header (lower-case name)."""
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == name), None)


@dataclass(slots=True)
class Sent:
    """The request is complete. `body` is None where it is not kept, `decoded` where it is kept as it was sent."""

    number: int
    at_ns: int
    body: bytes | None
    decoded: bytes | None = None


@dataclass(slots=True)
class Headers:
    """The response's headers are in."""

    number: int
    at_ns: int
    status: int
    headers: RawHeaders


@dataclass(slots=True)
class ReadBytes:
    """Bytes of the response body, or a WebSocket message."""

    number: int
    at_ns: int
    data: bytes
    kind: int


@dataclass(slots=True)
class End:
    """The exchange is over."""

    number: int
    at_ns: int
    outcome: Outcome
    error: str | None


@dataclass(slots=True)
class Mark:
    """Something is not written here; of the recorder as a whole where `number` is None."""

    number: int | None
    at_ns: int
    kind: MarkKind
    lost_bytes: int | None
    unused: int | None = None  # a number under which nothing is written


type Queued = Item | tuple[int, int, bytes, int]
"""In the queue a read is the fields of `ReadBytes` alone: a tuple costs the hook a fifth of an object."""

type Item = Send | Sent | Headers | ReadBytes | End | Mark
