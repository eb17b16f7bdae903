"""One session as the page shows it: chains in reading order, texts with their findings, times for the charts.

The page gets an outline first and texts as it scrolls, in stretches counted in characters (code points) of this side.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.manifest import Manifest
from curate.review.facts import Fact, facts_of
from curate.review.finding import Found, Group, findings
from curate.review.leftovers import WHY
from curate.row import Row
from curate.table import REQUESTS, SESSIONS, TABLES, TOOL_CALLS

HEAD = 3_000  # characters of a text that are shown at first
FOLD_FROM = 4_500  # a text up to this long is shown whole
MOST_FINDINGS = 20_000
MOST_HITS = 1_000
DEEPEST = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One text of an entry, without the text itself."""

    label: str  # content | reasoning | arguments | description | parameters | error
    length: int  # characters
    findings: int  # that a reviewer steps through: secrets and suspicions


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the reading: a message, a request without an answer, or a tool that was offered; None: not known."""

    kind: str  # message | request | tool
    role: str
    path: str  # of its chain
    texts: tuple[int, ...]  # positions in `Outline.texts`
    request: int | None = None
    answer: bool = False
    name: str | None = None
    tools: tuple[str, ...] = ()  # names of the tools called, one per text labelled arguments
    call: int | None = None  # position in `Outline.calls` of the call that this answers
    tokens: int | None = None
    is_error: bool | None = None
    omitted_bytes: int | None = None
    truncated_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A run of entries that belong to one chain."""

    path: str
    title: str
    depth: int
    start: int  # entries [start, stop)
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A model call, for the charts; times in microseconds since the session's start."""

    index: int
    path: str
    model: str
    turn: bool
    send_us: int | None
    first_us: int | None
    end_us: int | None
    prompt_tokens: int | None
    estimated: bool  # prompt_tokens is our own count
    cached_tokens: int | None
    completion_tokens: int | None
    human_us: int | None  # before the send
    gap_us: int | None
    gap_kind: str
    error: str | None
    event: str
    entry: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRun:
    """A tool call, for the charts."""

    name: str
    kind: str
    path: str
    start_us: int | None
    end_us: int | None
    wall_us: int | None
    is_error: bool | None
    exit_code: int | None
    entry: int | None  # of its result


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of finding, with why it is shown."""

    kind: str
    group: Group
    why: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """All of a session but its texts."""

    session_id: str
    facts: tuple[Fact, ...]
    kinds: tuple[Kind, ...]
    entries: tuple[Entry, ...]
    chains: tuple[Chain, ...]
    texts: tuple[Text, ...]
    calls: tuple[ToolRun, ...]
    requests: tuple[Call, ...]
    findings: tuple[tuple[int, int, int, int], ...]  # text, start, end, kind; in reading order
    more_findings: int  # beyond MOST_FINDINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of a text, all of it one finding or none."""

    text: str
    kind: int | None = None  # position in `Outline.kinds`
    same: int | None = None  # findings of this session that read the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Part of a text, cut so that no finding is."""

    text: int
    start: int
    end: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRows:
    """The rows of one session, as they lie in the tables."""

    session: Row
    requests: list[Row]
    tool_calls: list[Row]


def read_rows(folder: Path, manifest: Manifest, session_id: str) -> SessionRows:
    """Rows of one session; raises KeyError for a session that the dataset has not."""
    shard = next((s for s in manifest.shards if any(e.session_id == session_id for e in s.sessions)), None)
    if shard is None:
        raise KeyError(session_id)
    rows = {
        table.name: _rows(folder / shard.files[table.name].path, session_id) if table.name in shard.files else []
        for table in TABLES
    }
    sessions = rows[SESSIONS.name]
    return SessionRows(
        session=sessions[0] if sessions else {"session_id": session_id},
        requests=sorted(rows[REQUESTS.name], key=lambda row: row["request_index"]),
        tool_calls=rows[TOOL_CALLS.name],
    )


def _rows(path: Path, session_id: str) -> list[Row]:
    table = pq.read_table(path, filters=pc.field("session_id") == session_id, partitioning=None)
    if "t0_utc" in table.column_names:  # an integer again: a datetime would need a time zone database
        position = table.column_names.index("t0_utc")
        table = table.set_column(position, "t0_utc", table.column(position).cast(pa.int64()))
    rows: list[Row] = table.to_pylist()
    return rows


@dataclass(slots=True)
class _Reading:
    """Entries and texts in the order in which they are read."""

    entries: list[Entry] = field(default_factory=list)
    chains: list[Chain] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def text(self, label: str, text: str | None) -> tuple[int, ...]:
        if not text:
            return ()
        self.texts.append(text)
        self.labels.append(label)
        return (len(self.texts) - 1,)

    def add(self, entry: Entry, title: str, depth: int) -> int:
        position = len(self.entries)
        self.entries.append(entry)
        last = self.chains[-1] if self.chains else None
        if last is not None and last.path == entry.path:
            self.chains[-1] = Chain(path=last.path, title=last.title, depth=depth, start=last.start, stop=position + 1)
        else:
            self.chains.append(Chain(path=entry.path, title=title, depth=depth, start=position, stop=position + 1))
        return position


class SessionView:
    """One session, its outline and its texts. Does not change."""

    def __init__(self, rows: SessionRows) -> None:
        reading = _Reading()
        entry_of_answer: dict[int, int] = {}
        entry_of_result: dict[tuple[str, str], int] = {}
        _read_session(rows, reading, entry_of_answer, entry_of_result)
        self._texts = reading.texts
        self._found = [findings(text) for text in reading.texts]
        kinds = Counter((found.group, found.kind) for each in self._found for found in each)
        order = sorted(kinds, key=lambda key: (("leftover", "secret", "identity").index(key[0]), -kinds[key], key[1]))
        self._kind = {key: position for position, key in enumerate(order)}
        self._same = Counter(
            text[found.start : found.end] for text, each in zip(self._texts, self._found, strict=True) for found in each
        )
        every = [
            (position, found.start, found.end, self._kind[found.group, found.kind])
            for position, each in enumerate(self._found)
            for found in each
        ]
        self.outline = Outline(
            session_id=rows.session["session_id"],
            facts=facts_of(rows.session, rows.requests),
            kinds=tuple(
                Kind(kind=kind, group=group, why=_why(group, kind), n=kinds[group, kind]) for group, kind in order
            ),
            entries=tuple(reading.entries),
            chains=tuple(reading.chains),
            texts=tuple(
                Text(label=label, length=len(text), findings=sum(found.group != "identity" for found in each))
                for label, text, each in zip(reading.labels, self._texts, self._found, strict=True)
            ),
            calls=tuple(_tool_run(row, entry_of_result) for row in rows.tool_calls),
            requests=tuple(_call(row, entry_of_answer) for row in rows.requests),
            findings=tuple(every[:MOST_FINDINGS]),
            more_findings=max(0, len(every) - MOST_FINDINGS),
        )

    def stretch(self, text: int, start: int, end: int) -> Stretch:
        """A part of a text, made longer so that it cuts no finding; IndexError for a text that is not there."""
        if text < 0:
            raise IndexError(text)
        whole, found = self._texts[text], self._found[text]
        start, end = max(0, min(start, len(whole))), max(0, min(end, len(whole)))
        first = bisect_right(found, start, key=lambda one: one.end)
        if first < len(found) and found[first].start < start:
            start = found[first].start
        last = bisect_left(found, end, key=lambda one: one.start)
        if last and found[last - 1].end > end:
            end = found[last - 1].end
        return Stretch(
            text=text, start=start, end=end, pieces=tuple(self._pieces(whole, found[first:last], start, end))
        )

    def heads(self, first: int, last: int) -> list[Stretch]:
        """The beginnings of all texts of the entries [first, last)."""
        return [
            self.stretch(text, 0, length if (length := self.outline.texts[text].length) <= FOLD_FROM else HEAD)
            for entry in self.outline.entries[max(0, first) : max(0, last)]
            for text in entry.texts
        ]

    def search(self, words: str) -> tuple[list[tuple[int, int, int]], int]:
        """Where a text occurs, whatever its case: up to MOST_HITS as text, start, end; and how often it does."""
        hits: list[tuple[int, int, int]] = []
        n = 0
        pattern = re.compile(re.escape(words), re.IGNORECASE)
        for position, text in enumerate(self._texts):
            for match in pattern.finditer(text):
                n += 1
                if n <= MOST_HITS:
                    hits.append((position, match.start(), match.end()))
        return hits, n

    def _pieces(self, text: str, found: Sequence[Found], start: int, end: int) -> Iterator[Piece]:
        position = start
        for each in found:
            if each.start > position:
                yield Piece(text=text[position : each.start])
            shown = text[each.start : each.end]
            yield Piece(text=shown, kind=self._kind[each.group, each.kind], same=self._same[shown])
            position = each.end
        if position < end:
            yield Piece(text=text[position:end])


def _why(group: Group, kind: str) -> str:
    if group == "leftover":
        return f"not taken out, but looks like {WHY[kind]}"
    return f"taken out by the rule {kind}" if group == "secret" else f"replaced by a pseudonym, rule {kind}"


def _read_session(
    rows: SessionRows,
    reading: _Reading,
    entry_of_answer: dict[int, int],
    entry_of_result: dict[tuple[str, str], int],
) -> None:
    """Put the chains in order: each sub-agent stands where it was started, side calls stand at the end."""
    session = rows.session
    messages: dict[str, list[Row]] = {}
    for message in session.get("messages") or ():
        messages.setdefault(message["agent_path"], []).append(message)
    requests: dict[str, list[Row]] = {}
    for request in rows.requests:
        requests.setdefault(request["agent_path"], []).append(request)
    answered = {message["request_index"] for each in messages.values() for message in each if message["answer"]}
    started: dict[int, list[str]] = {}  # by the request that started them
    path_of = {request["request_index"]: request["agent_path"] for request in rows.requests}
    for path, own in requests.items():
        parent = own[0]["parent_request_index"]
        if parent is not None and path_of.get(parent) != path:
            started.setdefault(parent, []).append(path)
    runs = {(row["agent_path"], row["tool_call_id"]): position for position, row in enumerate(rows.tool_calls)}
    errors = {row["request_index"]: row["error"] for row in rows.requests}
    done: set[str] = set()

    def chain(path: str, depth: int) -> None:
        if path in done or depth > DEEPEST:
            return
        done.add(path)
        title = _title(path, requests.get(path, ()))
        pending = [row for row in requests.get(path, ()) if row["request_index"] not in answered]

        def unanswered(before: int | None) -> None:
            while pending and (before is None or pending[0]["request_index"] < before):
                row = pending.pop(0)
                index = row["request_index"]
                entry = Entry(
                    kind="request",
                    role="request",
                    path=path,
                    request=index,
                    texts=reading.text("error", row["error"]),
                    is_error=row["error"] is not None,
                )
                entry_of_answer[index] = reading.add(entry, title, depth)
                for child in started.get(index, ()):
                    chain(child, depth + 1)

        for message in messages.get(path, ()):
            unanswered(message["request_index"])
            run = runs.get((path, message["tool_call_id"])) if message["role"] == "tool" else None
            error = errors.get(message["request_index"]) if message["answer"] else None
            position = reading.add(_message(message, reading, run, error), title, depth)
            if message["role"] == "tool" and message["tool_call_id"]:
                entry_of_result.setdefault((path, message["tool_call_id"]), position)
            if message["answer"]:
                entry_of_answer[message["request_index"]] = position
                for child in started.get(message["request_index"], ()):
                    chain(child, depth + 1)
        unanswered(None)

    every = dict.fromkeys((*requests, *messages))
    for path in sorted(every, key=lambda path: (path != "main", path.startswith("side"))):
        if path.partition("/")[0] != path and path.rpartition("/")[0] in every:
            continue  # stands inside its parent, or below
        chain(path, 0)
    for path in every:  # those whose place nobody knows
        chain(path, 1)
    for tool in session.get("tools") or ():
        texts = reading.text("description", tool["description"]) + reading.text("parameters", tool["parameters"])
        reading.add(
            Entry(kind="tool", role="tool definition", path="tools offered", name=tool["name"], texts=texts),
            "tools offered",
            0,
        )


def _title(path: str, requests: Sequence[Row]) -> str:
    said = next((row["agent_type"] for row in requests if row.get("agent_type")), None)
    if path == "main":
        return "main chain"
    if path.startswith("side"):
        return f"call beside the chains · {said or path}"
    return f"sub-agent {path}{f' · {said}' if said else ''}"


def _message(message: Row, reading: _Reading, run: int | None, error: str | None) -> Entry:
    uses = message["tool_calls"] or ()
    texts = reading.text("reasoning", message["reasoning_content"]) + reading.text("content", message["content"])
    for use in uses:
        # An empty text too: the tools of an entry pair with its arguments.
        texts += reading.text("arguments", use["function"]["arguments"] or "{}")
    texts += reading.text("error", error)
    return Entry(
        kind="message",
        role=message["role"],
        path=message["agent_path"],
        texts=texts,
        request=message["request_index"],
        answer=bool(message["answer"]),
        name=message["name"],
        tools=tuple(use["function"]["name"] for use in uses),
        call=run,
        tokens=message["tokens"],
        is_error=message["is_error"],
        omitted_bytes=message["omitted_bytes"] or None,
        truncated_bytes=message["truncated_bytes"] or None,
    )


def _call(row: Row, entry_of_answer: dict[int, int]) -> Call:
    known = row["prompt_tokens"] is not None
    return Call(
        index=row["request_index"],
        path=row["agent_path"],
        model=row["model"],
        turn=row["kind"] == "turn",
        send_us=row["t_send_us"],
        first_us=row["t_first_token_us"],
        end_us=row["t_end_us"],
        prompt_tokens=row["prompt_tokens"] if known else row["prompt_tokens_est"],
        estimated=not known,
        cached_tokens=row["cache_read_tokens"],
        completion_tokens=row["completion_tokens"],
        human_us=row["think_us"],
        gap_us=row["gap_us"],
        gap_kind=row["gap_kind"],
        error=row["error"],
        event=row["context_event"],
        entry=entry_of_answer.get(row["request_index"]),
    )


def _tool_run(row: Row, entry_of_result: dict[tuple[str, str], int]) -> ToolRun:
    end, wall = row["t_result_us"], row["wall_us"]
    return ToolRun(
        name=row["name"],
        kind=row["kind"],
        path=row["agent_path"],
        start_us=None if end is None or wall is None else end - wall,
        end_us=end,
        wall_us=row["internal_us"] if row["internal_us"] is not None else wall,
        is_error=row["is_error"],
        exit_code=row["exit_code"],
        entry=entry_of_result.get((row["agent_path"], row["tool_call_id"])),
    )
