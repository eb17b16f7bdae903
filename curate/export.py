"""Writes a dataset in a format that other tools read."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from capture.trajectory import Trajectory

type Format = Literal["weka", "openai"]
FORMATS: tuple[str, ...] = get_args(Format.__value__)


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


def export(dataset: Path | str | Iterable[Trajectory], format_name: str, out: Path | str) -> ExportReport:
    """Write a dataset folder, or trajectories, as `weka` or `openai` to a path that must be new.

    weka: a folder with a JSON file per session, or one JSON Lines file if the path ends in `.jsonl`; what the sessions
    came from goes to `<path>.provenance.json`, beside the export, because readers of the format refuse unknown keys.
    openai: a JSON Lines file. Files are the owner's alone. Raises ExportFault.
    """
    out = Path(out)
    if format_name not in FORMATS:
        raise ExportFault(f"unknown format {format_name!r}; known: {', '.join(FORMATS)}")
    provenance = out.with_name(f"{out.name}.provenance.json")
    for path in (out, provenance) if format_name == "weka" else (out,):
        if path.exists() or path.is_symlink():
            raise ExportFault(f"{path} exists; name a new path for --out")
    if not out.absolute().parent.is_dir():
        raise ExportFault(f"{out.absolute().parent} is no folder; create it first")
    digest = None
    if isinstance(dataset, str | Path):
        from curate.dataset import Dataset

        opened = Dataset.open(Path(dataset))
        digest = opened.digest
        dataset = opened.trajectories()
    return _export_weka(dataset, digest, out, provenance) if format_name == "weka" else _export_openai(dataset, out)


def _export_weka(trajectories: Iterable[Trajectory], digest: str | None, out: Path, provenance: Path) -> ExportReport:
    from curate.exports.weka import weka_trace
    from curate.tokens import DEFAULT_ENCODING, TokenCounter

    counter = TokenCounter(DEFAULT_ENCODING)
    left_out: Counter[str] = Counter()
    sources: list[dict[str, Any]] = []
    requests = 0
    as_lines = out.suffix == ".jsonl"
    with _draft(out, folder=not as_lines) as draft:
        for trajectory in trajectories:
            trace, dropped = weka_trace(trajectory, counter)
            left_out += dropped
            if trace is None:
                left_out["sessions without a request that the format can hold"] += 1
                continue
            requests += sum(len(entry.get("requests", (None,))) for entry in trace["requests"])
            with_text = bool(trajectory.pool)
            sources.append(
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
            _write(draft if as_lines else draft / _file_name(trajectory.session_id), trace)
        if not sources:
            raise ExportFault(f"nothing to export: {_reasons(left_out)}")
    _write(
        provenance,
        {"format": "weka", "dataset_digest": digest, "left_out": dict(sorted(left_out.items())), "sessions": sources},
    )
    return ExportReport(
        format="weka", path=out, sessions=len(sources), requests=requests, left_out=dict(sorted(left_out.items()))
    )


def _export_openai(trajectories: Iterable[Trajectory], out: Path) -> ExportReport:
    from curate.exports.openai import openai_session

    left_out: Counter[str] = Counter()
    sessions = requests = 0
    with _draft(out, folder=False) as draft:
        for trajectory in trajectories:
            line, dropped = openai_session(trajectory)
            left_out += dropped
            if line is None:
                left_out["sessions without text"] += 1
                continue
            sessions += 1
            requests += len(line["requests"])
            _write(draft, line)
        if not sessions:
            raise ExportFault(f"nothing to export: {_reasons(left_out)}; content-free sessions export as weka")
    return ExportReport(
        format="openai", path=out, sessions=sessions, requests=requests, left_out=dict(sorted(left_out.items()))
    )


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in left_out.most_common()) or "the dataset is empty"


def _file_name(session_id: str) -> str:
    return re.sub(r"[^\w.-]", "_", session_id).lstrip(".") + ".json"


def _write(path: Path, value: dict[str, Any]) -> None:
    """Append a JSON value and a new line to a file that only the owner can read."""
    # Escapes are left out unless the text has lone surrogates, which UTF-8 cannot hold.
    try:
        data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        data = json.dumps(value, separators=(",", ":")).encode()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data + b"\n")


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
