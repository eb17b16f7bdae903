"""An agent's log file, line by line: JSON objects, plain or zstd, with a torn end where the agent still writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from capture.dialects.reading import Json, read_json
from capture.importers.imported import ImportFault, json_fault

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a log: a JSON object and where it stands."""

    number: int  # from 1
    data: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFile:
    """A log read whole."""

    path: Path
    lines: tuple[LogLine, ...]
    torn: int | None  # number of a last line that is cut off; None where the end is whole

    def place(self, line: LogLine) -> str:
        """Where a line stands, for audits: the name of the file says which, folders are the machine's own."""
        return f"{self.path.name}:{line.number:08d}"


def read_log_file(path: Path) -> LogFile:
    """Read all lines; ImportFault naming file and line where one is no JSON object.

    A last line without an end that is no JSON is the agent's own torn write, and no fault.
    """
    lines: list[LogLine] = []
    try:
        for number, raw, last in _raw_lines(path):
            if not raw.strip(b" \t\r\n\0"):
                continue
            try:
                value = read_json(raw)
            except (ValueError, UnicodeDecodeError) as fault:
                if last:
                    return LogFile(path=path, lines=tuple(lines), torn=number)
                raise json_fault(f"{path}:{number}", raw.decode("utf-8", "replace"), fault) from fault
            if not isinstance(value, dict):
                raise ImportFault(f"{path}:{number}: a line of a log is a JSON object, this one is none")
            lines.append(LogLine(number=number, data=value))
    except OSError as fault:
        raise ImportFault(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    return LogFile(path=path, lines=tuple(lines), torn=None)


def first_lines(path: Path, count: int = 20) -> list[Json]:
    """The first objects of a file, for a look at what it is; empty where it is no log at all."""
    found: list[Json] = []
    try:
        for _, raw, _ in _raw_lines(path):
            if not raw.strip():
                continue
            value = read_json(raw)
            if not isinstance(value, dict):
                break
            found.append(value)
            if len(found) >= count:
                break
    except (OSError, ValueError, ImportFault):
        return found
    return found


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """(number, bytes, whether it is the last and has no end of line)."""
    with path.open("rb") as file:
        if file.read(len(_ZSTD_MAGIC)) != _ZSTD_MAGIC:
            file.seek(0)
            yield from _numbered(file)
            return
        file.seek(0)
        import zstandard

        try:
            with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
                yield from _numbered(_split(stream))
        except zstandard.ZstdError as fault:
            raise ImportFault(f"{path}: no valid zstd: {fault}") from fault


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes, bool]]:
    for number, raw in enumerate(lines, 1):
        yield number, raw, not raw.endswith(b"\n")


def _split(stream: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends, as iterating a file gives them."""
    pieces: list[bytes] = []
    while block := stream.read(1 << 20):
        *whole, rest = block.split(b"\n")
        for line in whole:
            yield b"".join((*pieces, line, b"\n"))
            pieces = []
        if rest:
            pieces.append(rest)
    if pieces:
        yield b"".join(pieces)
