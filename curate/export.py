"""Writes a dataset in a format that other tools read."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from capture.trajectory import Trajectory
from curate.exports.carried import dropped_fields
from curate.exports.one_line import one_line

if TYPE_CHECKING:
    from curate.tokens import TokenCounter

type Format = Literal["weka", "openai", "mooncake", "atif", "otel", "agentperf-local", "claude-code"]
type Json = dict[str, Any]
type Make = Callable[[Trajectory], tuple[Json | None, int, Counter[str]]]
"""(document, requests in it, what was left out by reason); None when no request is left."""
FORMATS: tuple[str, ...] = get_args(Format.__value__)
_WITH_PROVENANCE = ("weka", "mooncake")  # their readers take load, and some of them refuse unknown keys
_FOLDERS = ("agentperf-local", "claude-code")  # never one file
PROJECT = "agentdyno"  # folder of Claude Code's logs: one per project


class ExportFault(ValueError):
    """The export cannot be made; the sentence says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written, and what the format could not hold, by reason."""

    format: str
    path: Path
    sessions: int
    requests: int
    left_out: dict[str, int]
    not_carried: tuple[str, ...]  # fields of what was written that the format has no place for, as `request.itl_us`


def export(
    dataset: Path | str | Iterable[Trajectory],
    format_name: str,
    out: Path | str,
    *,
    with_messages: bool = False,
    sessions: Iterable[str] | None = None,
    on_session: Callable[[int], None] | None = None,
) -> ExportReport:
    """Write a dataset folder, or trajectories, in a format to a path that must be new.

    weka, atif, otel: a folder with a JSON file per session, or one JSON Lines file if the path ends in `.jsonl`.
    openai, mooncake: a JSON Lines file. agentperf-local, claude-code: a folder in the format's own layout. What the
    sessions of weka and mooncake came from goes to `<path>.provenance.json`, beside the export. openai, atif,
    agentperf-local, claude-code and mooncake `with_messages` hold text. `sessions` names those to write, `on_session`
    hears how many were read. Files are the owner's alone. Raises ExportFault, and DatasetFault for a session that the
    dataset does not have.
    """
    out = Path(out)
    if format_name not in FORMATS:
        raise ExportFault(f"unknown format {format_name!r}; known: {', '.join(FORMATS)}")
    if with_messages and format_name != "mooncake":
        raise ExportFault(f"--with-messages is for mooncake; {format_name} has one shape only")
    if format_name in _FOLDERS and out.suffix == ".jsonl":
        raise ExportFault(f"{format_name} is a folder of files; name a folder for --out")
    provenance = out.with_name(f"{out.name}.provenance.json")
    for path in (out, provenance) if format_name in _WITH_PROVENANCE else (out,):
        if path.exists() or path.is_symlink():
            raise ExportFault(f"{path} exists; name a new path for --out")
    if not out.absolute().parent.is_dir():
        raise ExportFault(f"{out.absolute().parent} is no folder; create it first")
    digest = None
    if isinstance(dataset, str | Path):
        from curate.dataset import Dataset

        opened = Dataset.open(Path(dataset))
        digest = opened.digest
        dataset = opened.trajectories(sessions)
    elif sessions is not None:
        wanted = frozenset(sessions)
        dataset = (trajectory for trajectory in dataset if trajectory.session_id in wanted)
    written = _Written()
    dataset = written.watched(dataset, on_session)
    match format_name:
        case "weka":
            _export_documents(dataset, out, written, _weka_maker(written))
        case "mooncake":
            _export_mooncake(dataset, out, written, with_messages=with_messages)
        case "openai":
            _export_openai(dataset, out, written)
        case "atif":
            from curate.exports.atif import atif_document

            other = "; content-free sessions export as weka, mooncake or otel"
            _export_documents(dataset, out, written, atif_document, advice=other)
        case "agentperf-local":
            _export_replay(dataset, out, written)
        case "claude-code":
            _export_claude_code(dataset, out, written)
        case _:
            from curate.exports.otel import otel_trace

            _export_documents(dataset, out, written, otel_trace)
    left_out = dict(sorted(written.left_out.items()))
    if format_name in _WITH_PROVENANCE:
        about = {"format": format_name, "dataset_digest": digest, "left_out": left_out, **written.about}
        _write(provenance, about | {"sessions": written.sources})
    return ExportReport(
        format=format_name,
        path=out,
        sessions=written.sessions,
        requests=written.requests,
        left_out=left_out,
        not_carried=dropped_fields(format_name, with_messages=with_messages, text=written.with_text),
    )


@dataclass(slots=True)
class _Written:
    """What an export has done so far."""

    sessions: int = 0
    requests: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    sources: list[Json] = field(default_factory=list)
    about: Json = field(default_factory=dict)
    with_text: bool = False

    def watched(
        self, trajectories: Iterable[Trajectory], on_session: Callable[[int], None] | None
    ) -> Iterator[Trajectory]:
        """The sessions as they are read."""
        for number, trajectory in enumerate(trajectories, 1):
            self.with_text = self.with_text or bool(trajectory.pool)
            if on_session is not None:
                on_session(number)
            yield trajectory

    def some(self, advice: str = "") -> None:
        """ExportFault where nothing came out."""
        if not self.sessions:
            raise ExportFault(f"nothing to export: {_reasons(self.left_out)}{advice}")

    def source(self, trajectory: Trajectory, counter: TokenCounter) -> None:
        """Note what a session came from, and who counted its tokens."""
        with_text = bool(trajectory.pool)
        self.sources.append(
            {
                "id": trajectory.session_id,
                "source": trajectory.source,
                "source_ref": trajectory.source_ref,
                "license": trajectory.license,
                "in_counted_by": counter.encoding_name if with_text else trajectory.tokenizer,
                "in_ranks_sha256": counter.sha if with_text else None,
                "out_counted_by": trajectory.token_source,
            }
        )


def _export_documents(
    trajectories: Iterable[Trajectory], out: Path, written: _Written, make: Make, *, advice: str = ""
) -> None:
    """A JSON file per session, or a line per session where the path says so."""
    as_lines = out.suffix == ".jsonl"
    with _draft(out, folder=not as_lines) as draft:
        for trajectory in trajectories:
            document, requests, dropped = make(trajectory)
            written.left_out += dropped
            if document is None:
                written.left_out["sessions without a request that the format can hold"] += 1
                continue
            written.sessions += 1
            written.requests += requests
            _write(draft if as_lines else draft / _file_name(trajectory.session_id), document, unicode_only=True)
        written.some(advice)


def _weka_maker(written: _Written) -> Make:
    from curate.exports.weka import weka_trace
    from curate.tokens import DEFAULT_ENCODING, TokenCounter

    counter = TokenCounter(DEFAULT_ENCODING)

    def make(trajectory: Trajectory) -> tuple[Json | None, int, Counter[str]]:
        trace, dropped = weka_trace(trajectory, counter)
        if trace is None:
            return None, 0, dropped
        written.source(trajectory, counter)
        return trace, sum(len(entry.get("requests", (None,))) for entry in trace["requests"]), dropped

    return make


def _export_mooncake(trajectories: Iterable[Trajectory], out: Path, written: _Written, *, with_messages: bool) -> None:
    from curate.exports.mooncake import BLOCK_SIZE, MooncakeRows
    from curate.tokens import DEFAULT_ENCODING, TokenCounter

    counter = TokenCounter(DEFAULT_ENCODING)
    rows = MooncakeRows(counter, with_messages=with_messages)
    starts: list[int | None] = []
    # (session, microseconds since its start, place of the row in a file that is not in order yet, its length)
    places: list[tuple[int, int, int, int]] = []
    with _draft(out, folder=False) as draft, tempfile.TemporaryFile(dir=draft.parent) as unsorted:
        for trajectory in trajectories:
            found, dropped = rows.rows(trajectory)
            written.left_out += dropped
            if not found:
                written.left_out["sessions without a request that the format can hold"] += 1
                continue
            for at_us, row in found:
                data = _encode(row)
                places.append((len(starts), at_us, unsorted.tell(), len(data)))
                unsorted.write(data)
            starts.append(trajectory.t0_utc_us)
            written.sessions += 1
            written.requests += len(found)
            written.source(trajectory, counter)
        written.some()
        known = [start for start in starts if start is not None]
        # Sessions of unknown date begin with the first one.
        offsets = [0 if start is None else start - min(known) for start in starts]
        ordered = sorted((offsets[session] + at_us, place, length) for session, at_us, place, length in places)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            for at_us, place, length in ordered:
                unsorted.seek(place)
                timestamp = json.dumps((at_us - ordered[0][0]) / 1000).encode()
                file.write(b'{"timestamp":' + timestamp + b"," + unsorted.read(length)[1:] + b"\n")
    for source, offset, start in zip(written.sources, offsets, starts, strict=True):
        source |= {"begins_at_ms": (offset - ordered[0][0]) / 1000, "date_known": start is not None}
    written.about = {} if with_messages else {"block_size": BLOCK_SIZE}


def _export_openai(trajectories: Iterable[Trajectory], out: Path, written: _Written) -> None:
    from curate.exports.openai import openai_session

    with _draft(out, folder=False) as draft:
        for trajectory in trajectories:
            line, dropped = openai_session(trajectory)
            written.left_out += dropped
            if line is None:
                written.left_out["sessions without text"] += 1
                continue
            written.sessions += 1
            written.requests += len(line["requests"])
            _write(draft, line)
        written.some("; content-free sessions export as weka")


def _export_replay(trajectories: Iterable[Trajectory], out: Path, written: _Written) -> None:
    from curate.exports.agentperf_local import manifest, replay_task
    from curate.exports.claude_code import file_stem
    from curate.tokens import DEFAULT_ENCODING, TokenCounter

    counter = TokenCounter(DEFAULT_ENCODING)
    tasks: list[Json] = []
    with _draft(out, folder=True) as draft:
        (draft / "traces").mkdir(mode=0o700)
        for trajectory in trajectories:
            file = f"traces/{file_stem(trajectory.session_id)}.jsonl"
            task, rows, dropped = replay_task(trajectory, counter, file)
            written.left_out += dropped
            if task is None:
                written.left_out["sessions without a request that the format can hold"] += 1
                continue
            _write(draft / file, *rows)
            tasks.append(task)
            written.sessions += 1
            written.requests += len(rows)
        written.some("; content-free sessions export as weka, mooncake or otel")
        _write(draft / "manifest.json", manifest(tasks, out.name))


def _export_claude_code(trajectories: Iterable[Trajectory], out: Path, written: _Written) -> None:
    from curate.exports.claude_code import claude_code_files

    with _draft(out, folder=True) as draft:
        for trajectory in trajectories:
            files, requests, dropped = claude_code_files(trajectory)
            written.left_out += dropped
            if not files:
                written.left_out["sessions without a request that the format can hold"] += 1
                continue
            for name, lines in files.items():
                path = draft / PROJECT / name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(path, *lines)
            written.sessions += 1
            written.requests += requests
        written.some("; content-free sessions export as weka, mooncake or otel")


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in left_out.most_common()) or "the dataset is empty"


def _file_name(session_id: str) -> str:
    return re.sub(r"[^\w.-]", "_", session_id).lstrip(".") + ".json"


def _write(path: Path, *values: Json, unicode_only: bool = False) -> None:
    """Append JSON values, a line each, to a file that only the owner can read."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "wb") as file:
        for value in values:
            file.write(_encode(value, unicode_only=unicode_only) + b"\n")


def _encode(value: Json, *, unicode_only: bool = False) -> bytes:
    # Escapes are left out unless the text has lone surrogates, which UTF-8 cannot hold, and some readers neither.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return one_line(text.encode())
    except UnicodeEncodeError:
        if unicode_only:
            return one_line(text.encode("utf-8", "replace"))
        return json.dumps(value, separators=(",", ":")).encode()


@contextmanager
def _draft(out: Path, *, folder: bool) -> Iterator[Path]:
    """A path beside `out` that takes its name when all went well, and is gone otherwise."""
    work = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
    try:
        draft = work / "draft"
        if folder:
            draft.mkdir(mode=0o700)
        yield draft
        draft.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
