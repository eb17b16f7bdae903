"""One thread of Codex, line by line: what its history holds at each moment, its calls and its tools' times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from capture.call import Message, ModelCall, SessionHint, ToolTime, Usage
from capture.canonical import human_text
from capture.dialects import openai_responses
from capture.dialects.reading import Json, as_count, as_object, as_text, compact_json, error_text
from capture.importers.codex_tools import ToolClock
from capture.importers.imported import ImportFault
from capture.importers.log_calls import log_call, stamp_ns, stamp_of_ms
from capture.importers.log_lines import LogFile
from capture.importers.log_session import HumanWait

_NOT_SENT = frozenset(("ghost_snapshot", "other", ""))  # items of the log that no request holds
_REPLAY_NS = 1_000_000_000  # history that a fork replays is written at once
_COUNTS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_output_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadMeta:
    """What the head of a log says about its thread. Ids are empty where it does not tell."""

    thread: str
    session: str = ""
    parent: str = ""
    fork_of: str = ""
    base_thread: str = ""  # whose log holds the beginning of this one's history …
    base_end: int | None = None  # … up to this line
    created_ns: int | None = None
    version: str | None = None
    agent_type: str | None = None
    instructions: str = ""


def read_meta(payload: Json) -> ThreadMeta:
    """Read the head of a log, old or new."""
    thread = as_text(payload.get("id"))
    instructions = payload.get("base_instructions", payload.get("instructions"))
    source = as_object(payload.get("source")).get("subagent")
    spawn = as_object(as_object(source).get("thread_spawn"))
    base = as_object(payload.get("history_base"))
    role = source if isinstance(source, str) else as_text(spawn.get("agent_role")) or as_text(payload.get("agent_role"))
    return ThreadMeta(
        thread=thread,
        session=as_text(payload.get("session_id")),
        parent=as_text(payload.get("parent_thread_id")) or as_text(spawn.get("parent_thread_id")),
        fork_of=as_text(payload.get("forked_from_id")),
        base_thread=as_text(base.get("thread_id")),
        base_end=as_count(base.get("end_ordinal_exclusive")),
        created_ns=_minted_ns(thread) or stamp_ns(payload.get("timestamp")),
        version=as_text(payload.get("cli_version")) or None,
        agent_type=role or None,
        instructions=as_text(as_object(instructions).get("text")) or as_text(instructions),
    )


def unwrap(line: Json) -> tuple[str, Json, int | None]:
    """(type, payload, stamp) of a line; the bare lines of 2025 become items."""
    at_ns = stamp_ns(line.get("timestamp"))
    if isinstance(line.get("payload"), dict):
        return as_text(line.get("type")), as_object(line["payload"]), at_ns
    if "record_type" in line or "payload" in line:
        return "", {}, at_ns
    return ("response_item" if "type" in line else "session_meta"), line, at_ns


def _minted_ns(name: str) -> int | None:
    """When a UUID of version 7 was made: its first 48 bits are milliseconds."""
    digits = name.replace("-", "")
    try:
        return stamp_of_ms(int(digits[:12], 16)) if len(digits) == 32 and digits[12] == "7" else None
    except ValueError:
        return None


@dataclass(slots=True)
class _Open:
    """A call whose items are being logged."""

    place: str
    prompt: tuple[Message, ...]
    sent_ns: int | None
    items: list[tuple[Json, int | None]] = field(default_factory=list)
    compacts: bool = False


class Thread:
    """Takes the lines of a thread in order."""

    def __init__(self, meta: ThreadMeta, hint: SessionHint) -> None:
        self.meta = meta
        self.hint = hint
        self.notes: list[str] = []
        self.waits: list[HumanWait] = []
        self.base_missing = False
        self._calls: list[ModelCall] = []
        self._messages: list[Message] = []
        self._marks: list[int] = []  # where each turn of the person begins
        self._open: _Open | None = None
        self._total: tuple[int | None, ...] | None = None  # of all tokens so far, as the log counts
        self._uncounted = False  # the last call still waits for its usage
        self._replaying = bool(meta.fork_of) and not meta.base_thread
        self._seen: set[int] = set()
        self._model = ""
        self._effort: str | None = None
        self._input_ns: int | None = None  # stamp of the last thing that a prompt would hold
        self._last_ns: int | None = meta.created_ns
        self._turn: tuple[int | None, int] = (None, 0)  # when it started, and how many calls were before it
        self._idle_ns: int | None = None  # the turn ended, nothing was said since
        self._compactions = 0
        self._fresh_compaction = False
        self._item_started: dict[str, int] = {}
        self._tools = ToolClock()

    def inherit(self, parent: Thread) -> None:
        """Begin with another thread's history and counters."""
        self._messages = list(parent._messages)
        self._total = parent._total
        self._marks = list(parent._marks)
        self.base_missing = self.base_missing or parent.base_missing

    def take(self, log: LogFile) -> None:
        """Read a file of the thread; what an earlier file of it already held is passed over."""
        fingerprints = [hash(compact_json(line.data)) for line in log.lines]
        for line, fingerprint in zip(log.lines, fingerprints, strict=True):
            kind, payload, at_ns = unwrap(line.data)
            if fingerprint in self._seen and at_ns is not None:
                continue
            self._last_ns = at_ns if at_ns is not None else self._last_ns
            if self._replaying and self._own_again(kind, payload, at_ns):
                self._close(None, complete=True)  # still history
                self._replaying = False
            if kind == "session_meta":
                self._head(payload)
            elif kind == "turn_context":
                self._context(payload, at_ns)
            elif kind == "response_item":
                self._item(payload, at_ns, log.place(line), as_object(line.data.get("metadata")))
            elif kind == "compacted":
                self._compacted(payload, at_ns)
            elif kind == "token_usage_record" and not self._replaying:
                self._usage_record(payload, at_ns, log.place(line))
            elif kind == "event_msg":
                self._event(payload, at_ns, log.place(line))
        self._seen.update(fingerprints)

    def finish(self) -> None:
        """The log is over."""
        self._close(None, complete=False)

    def finished_calls(self) -> list[ModelCall]:
        """The calls, in order."""
        return self._calls

    def _own_again(self, kind: str, payload: Json, at_ns: int | None) -> bool:
        """Whether a fork's own life begins: its turns are minted after it, replayed ones keep their old ids."""
        created = self.meta.created_ns
        if created is None:
            return kind == "turn_context"
        turn = _minted_ns(as_text(payload.get("turn_id")))
        if turn is not None and (kind == "turn_context" or payload.get("type") in ("task_started", "turn_started")):
            return turn >= created
        return turn is None and at_ns is not None and at_ns > created + _REPLAY_NS

    def _head(self, payload: Json) -> None:
        meta = read_meta(payload)
        if meta.thread and meta.thread != self.meta.thread:
            # The parent's own head: from here on it is the parent's history, replayed.
            self._replaying = not self._calls
        elif meta.version:
            self.meta = replace(self.meta, version=meta.version)

    def _context(self, payload: Json, at_ns: int | None) -> None:
        self._model = as_text(payload.get("model")) or self._model
        settings = as_object(as_object(payload.get("collaboration_mode")).get("settings"))
        self._effort = as_text(payload.get("effort")) or as_text(settings.get("reasoning_effort")) or None
        self._heard(at_ns)

    def _heard(self, at_ns: int | None) -> None:
        self._input_ns = at_ns if at_ns is not None else self._input_ns

    def _item(self, item: Json, at_ns: int | None, place: str, metadata: Json) -> None:
        if as_text(item.get("type")) in _NOT_SENT and not item.get("role"):
            return
        if not _by_model(item):
            self._close(None, complete=True)
            said = list(openai_responses.read_items([item]))
            if any(human_text(message) for message in said):
                self._marks.append(len(self._messages))
                self._person_spoke(at_ns)
            self._messages.extend(said)
            self._heard(at_ns)
            return
        if self._open is None:
            self._open = _Open(place=place, prompt=tuple(self._messages), sent_ns=self._input_ns)
        self._open.items.append((item, at_ns))
        self._open.compacts |= metadata.get("compaction_output") is True
        if call_id := as_text(item.get("call_id")):
            self._tools.emitted(call_id, at_ns)

    def _person_spoke(self, at_ns: int | None) -> None:
        if self._idle_ns is not None and at_ns is not None and at_ns >= self._idle_ns and not self._replaying:
            self.waits.append(HumanWait(started_utc_us=self._idle_ns // 1000, ended_utc_us=at_ns // 1000))
        self._idle_ns = None

    def _close(
        self,
        ended_ns: int | None,
        *,
        complete: bool,
        usage: Usage | None = None,
        response_id: str | None = None,
        error: str | None = None,
    ) -> None:
        """End the open call, if there is one; its answer becomes history."""
        opened, self._open = self._open, None
        if opened is None:
            return
        answer = next(iter(openai_responses.read_items([item for item, _ in opened.items])))
        self._messages.append(answer)
        if self._replaying:
            return
        stamps = [at for _, at in opened.items if at is not None]
        emitted = {as_text(item.get("call_id")) or as_text(item.get("id")): at for item, at in opened.items}
        answer = replace(
            answer, tool_calls=tuple(replace(use, t_emitted_ns=emitted.get(use.id)) for use in answer.tool_calls)
        )
        first = as_text(opened.items[0][0].get("id"))
        end = ended_ns if ended_ns is not None else max(stamps, default=None)
        self._add(
            opened.place,
            opened.prompt,
            answer,
            usage,
            sent_ns=opened.sent_ns if opened.sent_ns is not None else min(stamps, default=None),
            ended_ns=end,
            first_ns=self._item_started.get(first),
            complete=complete,
            response_id=response_id,
            error=error,
            compacts=opened.compacts,
            notes=("the words that ask for the summary are not in the log",) if opened.compacts else (),
        )

    def _add(
        self,
        place: str,
        prompt: tuple[Message, ...],
        answer: Message | None,
        usage: Usage | None,
        *,
        sent_ns: int | None,
        ended_ns: int | None,
        first_ns: int | None = None,
        complete: bool = True,
        response_id: str | None = None,
        error: str | None = None,
        compacts: bool = False,
        notes: tuple[str, ...] = (),
    ) -> None:
        sent_ns = sent_ns if sent_ns is not None else self._last_ns
        if sent_ns is None:
            raise ImportFault(f"{place}: neither this line nor one before it carries a time")
        instructions = self.meta.instructions
        system = (Message(role="system", content=instructions),) if instructions else ()
        if self.base_missing:
            notes = (*notes, "the beginning of the prompt stands in a log that is not at hand")
        call = log_call(
            exchange_id=place,
            api=openai_responses.API,
            harness="codex",
            harness_version=self.meta.version,
            model=self._model,
            hints=(self.hint,),
            system=system,
            messages=(*system, *prompt),
            answer=answer,
            usage=usage or Usage(),
            t_send_ns=sent_ns,
            t_end_ns=ended_ns,
            complete=complete,
            error=error,
            response_id=response_id,
            t_first_content_ns=first_ns,
            notes=notes,
        )
        self._calls.append(
            replace(
                call,
                effort=self._effort,
                agent_type=self.meta.agent_type,
                request_class="compaction" if compacts else "subagent" if self.hint.agent else None,
                compaction="unknown" if compacts else None,
                context_compacted=self._fresh_compaction,
                context_generation=self._compactions,
            )
        )
        self._fresh_compaction = False
        self._uncounted = usage is None

    def _count(self, usage: Usage, at_ns: int | None, place: str, *, response_id: str | None = None) -> None:
        """A usage belongs to the open call, else to the last one without, else to a call that left no items."""
        if self._open is not None:
            self._close(at_ns, complete=True, usage=usage, response_id=response_id)
        elif self._uncounted and self._calls:
            self._calls[-1] = replace(self._calls[-1], usage=usage, response_id=response_id, complete=True)
        else:
            self._add(
                place,
                tuple(self._messages),
                None,
                usage,
                sent_ns=self._input_ns,
                ended_ns=at_ns,
                response_id=response_id,
                notes=("the log holds its token counts alone",),
            )
        self._uncounted = False

    def _usage_record(self, payload: Json, at_ns: int | None, place: str) -> None:
        if as_text(payload.get("thread_id")) not in ("", self.meta.thread):
            return
        self._total = _counts(as_object(payload.get("thread_token_usage"))) or self._total
        response_id = as_text(payload.get("response_id")) or None
        if any(response_id and call.response_id == response_id for call in self._calls):
            return
        self._count(_usage(as_object(payload.get("usage"))), at_ns, place, response_id=response_id)

    def _token_count(self, info: Json, at_ns: int | None, place: str) -> None:
        total = _counts(as_object(info.get("total_token_usage")))
        last = as_object(info.get("last_token_usage"))
        before, self._total = self._total, total or self._total
        if self._replaying or (total is not None and total == before):
            return  # repeated: at the start of a turn, after a compaction, with new rate limits alone
        counts = _counts(last)
        if counts is None and total is not None:
            # Only totals: what they grew by, or all of it where they began anew.
            grown = before is not None and all((new or 0) >= (old or 0) for new, old in zip(total, before, strict=True))
            counts = tuple(
                None if new is None else new - (old or 0) if grown else new
                for new, old in zip(total, before or (None,) * len(total), strict=True)
            )
            last = {name: value for name, value in zip(_COUNTS, counts, strict=True) if value is not None}
        if counts is not None and any(counts):
            self._count(_usage(last), at_ns, place)

    def _event(self, event: Json, at_ns: int | None, place: str) -> None:
        kind = as_text(event.get("type"))
        if kind == "token_count":
            self._token_count(as_object(event.get("info")), at_ns, place)
        elif kind in ("task_started", "turn_started"):
            self._close(None, complete=True)
            self._heard(at_ns)
            self._turn = (at_ns, len(self._calls))
        elif kind in ("task_complete", "turn_complete"):
            self._turn_over(event, at_ns, place)
        elif kind == "turn_aborted":
            self._close(None, complete=False, error=f"turn aborted: {as_text(event.get('reason')) or 'unknown'}")
            self._idle_ns = at_ns
        elif kind == "thread_rolled_back":
            self._roll_back(as_count(event.get("num_turns")) or 0)
        elif kind == "item_completed":
            self._item_completed(event)
        elif not self._replaying:
            self._tools.take_event(kind, event, at_ns)

    def _turn_over(self, event: Json, at_ns: int | None, place: str) -> None:
        error = error_text(event["error"]) if event.get("error") else None
        if error is not None and self._open is None and not self._replaying and len(self._calls) == self._turn[1]:
            self._add(
                place,
                tuple(self._messages),
                None,
                Usage(),
                sent_ns=self._input_ns,
                ended_ns=at_ns,
                complete=False,
                error=error,
                notes=("the last attempt of a failed turn: the log does not tell how many there were",),
            )
        self._close(None, complete=error is None, error=error)
        started, before = self._turn
        first = as_count(event.get("time_to_first_token_ms"))
        if first is not None and started is not None and before < len(self._calls):
            call = self._calls[before]
            at = started + first * 1_000_000
            if call.t_first_content_ns is None and call.t_send_ns <= at <= (call.t_end_ns or at) and call.answer:
                self._calls[before] = replace(call, t_first_content_ns=at)
        self._turn = (None, len(self._calls))
        self._idle_ns = at_ns

    def _roll_back(self, turns: int) -> None:
        """The person took back the last turns: history ends before them."""
        self._close(None, complete=True)
        for _ in range(min(turns, len(self._marks))):
            del self._messages[self._marks.pop() :]

    def _compacted(self, payload: Json, at_ns: int | None) -> None:
        self._close(None, complete=True)
        summary = as_text(payload.get("message"))
        history = payload.get("replacement_history")
        if isinstance(history, list):
            self._messages = list(openai_responses.read_items(map(as_object, history)))
        else:
            # Older logs leave it to the reader: what the user said, then the summary.
            kept = [message for message in self._messages if message.role in ("user", "developer", "system")]
            self._messages = [*kept, Message(role="user", content=summary)]
            self.notes.append("a prompt after a compaction is rebuilt: this Codex version does not log what it kept")
        self._marks = [at for at in self._marks if at < len(self._messages)]
        if self._replaying:
            return
        last = self._calls[-1] if self._calls else None
        said = last.answer.content.strip() if last is not None and last.answer is not None else ""
        named = as_text(payload.get("compaction_response_id"))
        if last is not None and last.compaction is None and (
            (named and last.response_id == named) or (said and said in summary) or last.answer is None
        ):  # fmt: skip
            self._calls[-1] = replace(last, compaction="unknown", request_class="compaction")
        self._compactions += 1
        self._fresh_compaction = True
        self._heard(at_ns)

    def _item_completed(self, event: Json) -> None:
        item = as_object(event.get("item"))
        name = as_text(item.get("id"))
        started, ended = stamp_of_ms(event.get("started_at_ms")), stamp_of_ms(event.get("completed_at_ms"))
        if as_text(event.get("thread_id")) not in ("", self.meta.thread) or self._replaying:
            return
        if as_text(item.get("type")) in ("AgentMessage", "Reasoning"):
            if started is not None:
                self._item_started[name] = started
        else:
            self._tools.take_item(item, started, ended)

    def tool_times(self) -> Iterator[ToolTime]:
        """What the log says of each tool."""
        return self._tools.times()


def _by_model(item: Json) -> bool:
    kind = as_text(item.get("type"))
    if kind in ("message", ""):
        return item.get("role") == "assistant"
    return not kind.endswith("_output")


def _counts(usage: Json) -> tuple[int | None, ...] | None:
    counts = tuple(as_count(usage.get(name)) for name in _COUNTS)
    return counts if any(count is not None for count in counts) else None


def _usage(usage: Json) -> Usage:
    """Codex's own shape of a usage; its input includes what was read from cache, its output the reasoning."""
    return Usage(
        input_total=as_count(usage.get("input_tokens")),
        cache_read=as_count(usage.get("cached_input_tokens")),
        cache_write=as_count(usage.get("cache_write_input_tokens")),
        output_total=as_count(usage.get("output_tokens")),
        reasoning=as_count(usage.get("reasoning_output_tokens")),
        raw=compact_json(usage),
    )
