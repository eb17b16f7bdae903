"""Plain OpenAI chat conversations: `{"messages": […]}` per line of JSONL, or per row of a Parquet file.

A row is a session, and each of its assistant messages is a call whose prompt is what stands before it. Optional
beside `messages`: `tools` (also as JSON text), an id (`session_id`, `conversation_id`, `trajectory_id`, `instance_id`,
`id`), `model`. The format keeps no clock and no token counts: both stay unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from capture.assemble import Origin, assemble
from capture.call import Message, ModelCall, SessionHint, Usage
from capture.dialects.openai_chat import read_message, read_tools
from capture.dialects.reading import Json, as_list, as_object, as_text, read_json
from capture.importers.clockless import STEP_NS, without_clock
from capture.importers.documents import files_under, parse_document, read_text
from capture.importers.imported import Imported, ImportFault, native_id
from capture.importers.log_calls import log_call
from capture.trajectory import Trajectory

SOURCE = "messages"
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".jsonl.zst")
_IDS = ("session_id", "conversation_id", "trajectory_id", "instance_id", "id")
_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
_NOTE = "conversations of messages keep no times and no token counts: both are unknown (null)"


def import_messages(paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None) -> Imported:
    """Conversations of the files under `paths`; ImportFault when any row of any file is bad."""
    found: dict[str, Trajectory] = {}
    without_answer = 0
    for path in files_under(paths, _SUFFIXES):
        if on_file is not None:
            on_file(path)
        for number, row in _rows(path):
            place = f"{path}: row {number}"
            name = next((str(row[field]) for field in _IDS if isinstance(row.get(field), str | int)), None)
            name = name or f"{path.name}:{number}"
            calls = _calls(row, name, place)
            if not calls:
                without_answer += 1
                continue
            if name in found:
                raise ImportFault(f"{place}: the session {name!r} stands twice in this import")
            (trajectory,) = assemble(calls, key, Origin(source=SOURCE, token_source="none"))  # noqa: S106 - a word
            found[name] = replace(without_clock(trajectory), source_ref=f"{path.name}:{number}")
    notes = [_NOTE]
    if without_answer:
        notes.append(f"{without_answer} conversations without an assistant message were left out")
    return Imported(
        trajectories=tuple(found.values()),
        native_ids=tuple(native_id(SOURCE, name) for name in found),
        notes=tuple(notes),
    )


def _rows(path: Path) -> Iterator[tuple[int, Json]]:
    """(number from 1, row) of a file."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet_rows(path), 1)
    elif path.suffix == ".json":
        yield from _json_rows(path)
    else:
        yield from _json_lines(path)


def _json_lines(path: Path) -> Iterator[tuple[int, Json]]:
    from capture.importers.log_lines import read_log_file

    log = read_log_file(path)
    if log.torn is not None:
        raise ImportFault(f"{path}:{log.torn}: the last line is cut off: fetch the file again")
    for line in log.lines:
        yield line.number, line.data


def _json_rows(path: Path) -> Iterator[tuple[int, Json]]:
    value = parse_document(path, read_text(path))
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        if not isinstance(row, dict):
            raise ImportFault(f"{path}: row {number}: no JSON object")
        yield number, row


def _parquet_rows(path: Path) -> Iterator[Json]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as fault:
        raise ImportFault(f"{path}: reading Parquet needs the extra `agentdyno[curate]`") from fault
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as fault:
        raise ImportFault(f"{path}: no readable Parquet file: {fault}") from fault


def _calls(row: Json, name: str, place: str) -> list[ModelCall]:
    entries = _as_json(row.get("messages"), f"{place}: messages")
    if not isinstance(entries, list) or not entries:
        what = "is no list of messages" if "messages" in row else f"is missing (it has {', '.join(sorted(row)[:8])})"
        raise ImportFault(f"{place}: `messages` {what}: this format is OpenAI's chat shape")
    messages = [_message(entry, f"{place}: messages[{number}]") for number, entry in enumerate(entries)]
    tools = tuple(read_tools({"tools": _as_json(row.get("tools"), f"{place}: tools")}))
    head = next((at for at, message in enumerate(messages) if message.role not in ("system", "developer")), 0)
    return [
        replace(
            log_call(
                exchange_id=f"{name}#{at:06d}",
                api="openai.chat",
                harness=as_text(row.get("harness")) or as_text(row.get("agent")) or "unknown",
                harness_version=None,
                model=as_text(row.get("model")),
                hints=(SessionHint(session=name, evidence="source"),),
                system=tuple(messages[:head]),
                messages=tuple(messages[:at]),
                answer=message,
                usage=Usage(),
                t_send_ns=at * STEP_NS,
                t_end_ns=None,
                complete=True,
            ),
            tools=tools,
        )
        for at, message in enumerate(messages)
        if message.role == "assistant"
    ]


def _as_json(value: Any, place: str) -> Any:
    """The value, decoded where a table holds it as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError as fault:
        raise ImportFault(f"{place}: no valid JSON: {fault}") from fault


def _message(entry: Any, place: str) -> Message:
    role = as_text(as_object(entry).get("role"))
    if role not in _ROLES:
        raise ImportFault(f"{place}: role {role!r} is none of {', '.join(sorted(_ROLES))}")
    # Parquet fills every struct with all its fields; what is null was not there.
    known = {key: value for key, value in as_object(entry).items() if value is not None}
    if "tool_calls" in known:
        known["tool_calls"] = [call for call in as_list(known["tool_calls"]) if call]
    return read_message(known)
