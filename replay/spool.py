"""Records on their way to disk: encoded where they arise, written by a thread, read back when the trial is over.

A trial of an hour holds more records than memory should, and a disk that is slow for a second must not hold up the
loop that takes the answers. So the loop encodes (microseconds) and appends; the thread only writes, and the
interpreter's lock is free while it does.

The file: for each record a length (4 bytes, little-endian) and a MessagePack array of its fields in order.
"""

from __future__ import annotations

import dataclasses
import errno
import operator
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from replay.record import RequestRecord

WRITE_EVERY_S = 0.25
MOST_WAITING_BYTES = 256 * 1024 * 1024

_NAMES = tuple(field.name for field in dataclasses.fields(RequestRecord))
_values = operator.attrgetter(*_NAMES)


class Spool:
    """Takes records from one event loop and writes them to a file; one that a killed client left is begun anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._encode = msgspec.msgpack.Encoder().encode
        self._waiting: deque[bytes] = deque()  # its append and popleft need no lock
        self._queued_bytes = 0
        self._written_bytes = 0
        self._over = threading.Event()
        self._fault: OSError | None = None
        self._file = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        self._writer = threading.Thread(target=self._write, name="agentdyno-spool", daemon=True)
        self._writer.start()

    def append(self, record: RequestRecord) -> None:
        """Take one record; raises OSError where earlier ones could not be written, or the disk is far behind."""
        if self._fault is not None:
            raise self._fault
        data = self._encode(_values(record))
        self._queued_bytes += 4 + len(data)
        if self._queued_bytes - self._written_bytes > MOST_WAITING_BYTES:
            raise OSError(errno.EBUSY, "the disk takes records more slowly than they come", str(self.path))
        self._waiting.append(len(data).to_bytes(4, "little") + data)
        self.count += 1

    def _write(self) -> None:
        try:
            while not self._over.wait(WRITE_EVERY_S):
                self._write_waiting()
            self._write_waiting()
        except OSError as fault:
            fault.filename = str(self.path)
            self._fault = fault

    def _write_waiting(self) -> None:
        while self._waiting:
            parts = [self._waiting.popleft() for _ in range(min(256, len(self._waiting)))]
            data = memoryview(b"".join(parts))
            while data:
                written = os.write(self._file, data)
                self._written_bytes += written
                data = data[written:]

    def close(self) -> None:
        """Write what is left and end the thread; raises OSError where a record could not be written."""
        if self._file < 0:
            return
        self._over.set()
        self._writer.join()
        os.close(self._file)
        self._file = -1
        if self._fault is not None:
            raise self._fault


def read_spool(path: Path) -> Iterator[RequestRecord]:
    """The whole records of a spool; one that was cut short at the end, as a killed process leaves it, is left out."""
    decode = msgspec.msgpack.Decoder(list).decode
    with path.open("rb") as file:
        while len(head := file.read(4)) == 4:
            length = int.from_bytes(head, "little")
            data = file.read(length)
            if len(data) < length:
                return
            fields = dict(zip(_NAMES, decode(data), strict=True))
            fields["content_gaps_us"] = tuple(fields["content_gaps_us"])
            yield RequestRecord(**fields)
