"""Lines of a text that comes in pieces: bounded, numbered, and none after the first that is wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from curate.words import printable
from replay.power.source import PowerFault, PowerSample

_QUOTED = 60


class LineReader(ABC):
    """Reads from bytes as they come, cut anywhere; what a line means is the subclass's."""

    def __init__(self, place: str) -> None:
        """`place` stands in front of a fault."""
        self.line = 0  # that was read last
        self._place = place
        self._rest = b""
        self._dead = False

    def feed(self, data: bytes, *, now_unix_ns: int | None = None) -> Iterator[PowerSample]:
        """The readings that these bytes complete, each as soon as it is read; `t_ns` counts from the Unix epoch.

        With `now_unix_ns` the lines are read as they are made: one without a time gets this one, and none may be of the
        future. Raises PowerFault naming the line; after it nothing more is read.
        """
        if self._dead:
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        try:
            for line in lines:
                yield from self._numbered(line, now_unix_ns)
            if len(self._rest) > self._longest():
                self.line += 1
                raise self.fault("is too long")
        except PowerFault:
            self._dead = True
            raise

    def finish(self) -> Iterator[PowerSample]:
        """The readings of a last line without a line end; raises PowerFault where it is cut short, or nothing came."""
        yield from self.feed(b"\n")
        self._dead = True
        if not self._begun():
            raise PowerFault(f"{self._place} is empty: {self._wanted()}")

    def fault(self, what: str, quoted: bytes | str = "") -> PowerFault:
        """Names the line that was read last, with the beginning of what is wrong in it."""
        text = quoted[:_QUOTED].decode("utf-8", "replace") if isinstance(quoted, bytes) else quoted[:_QUOTED]
        shown = f": {printable(text)}" if text else ""
        return PowerFault(f"{self._place}: line {self.line} {printable(what)}{shown}")

    def _numbered(self, line: bytes, now_unix_ns: int | None) -> Iterator[PowerSample]:
        self.line += 1
        line = line.strip()
        if len(line) > self._longest():
            raise self.fault("is too long")
        if line:
            yield from self._read(line, now_unix_ns)

    @abstractmethod
    def _longest(self) -> int:
        """Bytes that the next line may have."""

    @abstractmethod
    def _begun(self) -> bool:
        """Whether the first line was read."""

    @abstractmethod
    def _wanted(self) -> str:
        """What the first line reads."""

    @abstractmethod
    def _read(self, line: bytes, now_unix_ns: int | None) -> Iterator[PowerSample]:
        """The readings of one line that is not blank; raises PowerFault."""
