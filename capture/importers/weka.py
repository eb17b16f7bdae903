"""Weka traces, version 1: content-free sessions of Claude Code from kv-cache-tester and its relatives.

One JSON object per conversation, or JSON lines of them; seconds and tokens. The format leaves two things open that
change every time in a session, so they are decided once per import, by evidence, and reported:

- Nested `t` counts from the sub-agent's start (kv-cache-tester) or from the conversation's (SemiAnalysis corpora).
- A sub-agent entry's own `t` is its start, as the format's text says, or its end. In the kv-cache-tester data it is
  the end: `t − duration_ms` falls within a second after the end of the request that called the sub-agent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from capture.assemble import session_id
from capture.chain import relation_of
from capture.importers.imported import Imported, ImportFault, json_fault, native_id
from capture.intervals import union_length
from capture.trajectory import CaptureQuality, ContextEvent, Relation, Request, Trajectory

SOURCE = "weka"

type NestedTimes = Literal["relative", "absolute"]
type EntryTime = Literal["start", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One request of a trace, times in microseconds."""

    t_us: int
    model: str
    stream: bool
    tokens_in: int | None
    tokens_out: int | None
    blocks: tuple[int, ...] | None
    input_types: tuple[str, ...]
    output_types: tuple[str, ...] | None
    stop: str | None
    api_us: int | None
    think_us: int | None
    ttft_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _SubAgent:
    t_us: int
    duration_us: int | None
    calls: tuple[_Call, ...]
    tool_tokens: int | None
    system_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trace:
    place: str  # file, and line where the file holds several
    path: Path
    trace_id: str
    block_size: int
    hash_scope: Literal["session", "release"]
    tool_tokens: int | None
    system_tokens: int | None
    calls: tuple[_Call, ...]
    sub_agents: tuple[_SubAgent, ...]


def import_weka(paths: Iterable[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None) -> Imported:
    """Read trace files, or folders of them, as one import; ImportFault names the first bad place."""
    traces: dict[str, _Trace] = {}
    for path in trace_files(paths):
        if on_file is not None:
            on_file(path)
        for trace in _read_file(path):
            if (other := traces.get(trace.trace_id)) is not None:
                raise ImportFault(
                    f"{trace.place}: the trace {trace.trace_id!r} is already in {other.place}: name only one of them"
                )
            traces[trace.trace_id] = trace
    notes: list[str] = []
    entry = _entry_time(traces.values(), notes)
    nested = _nested_times(traces.values(), entry, notes)
    notes.extend(_block_notes(traces.values()))
    licenses = {path.parent: _license_beside(path) for path in {trace.path for trace in traces.values()}}
    return Imported(
        trajectories=tuple(
            _trajectory(trace, key, nested, entry, licenses[trace.path.parent]) for trace in traces.values()
        ),
        native_ids=tuple(native_id(SOURCE, trace_id) for trace_id in traces),
        notes=tuple(notes),
    )


def trace_files(paths: Iterable[Path]) -> list[Path]:
    """The trace files among paths and in folders, in order, each once."""
    files: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.suffix in (".json", ".jsonl"))
            if not inside:
                raise ImportFault(f"{path}: the folder holds no .json or .jsonl file")
            files.update(dict.fromkeys(inside))
        else:
            files[path] = None
    return list(files)


# ---- reading


def _read_file(path: Path) -> list[_Trace]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as fault:
        raise ImportFault(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    except UnicodeDecodeError as fault:
        raise ImportFault(f"{path}: not UTF-8 text at byte {fault.start}: is this a Weka trace?") from fault
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ImportFault(f"{path}: the file is empty: fetch it again")
    # JSON lines: more than one line, each a whole object by itself.
    if len(lines) > 1 and lines[0].lstrip().startswith("{") and lines[0].rstrip().endswith("}"):
        numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [
            _read_trace(_parse(line, f"{path}, line {number}"), f"{path}, line {number}", path)
            for number, line in numbered
        ]
    return [_read_trace(_parse(text, str(path)), str(path), path)]


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as fault:
        raise ImportFault(f"{place}: nested too deeply to be a Weka trace") from fault
    except ValueError as fault:
        raise json_fault(place, text, fault) from fault


def _read_trace(value: Any, place: str, path: Path) -> _Trace:
    if not isinstance(value, dict) or not isinstance(value.get("requests"), list):
        raise ImportFault(f"{place}: no list `requests`: is this a Weka trace, version 1?")
    trace_id = value.get("id")
    if not isinstance(trace_id, str) or not trace_id:
        raise ImportFault(f"{place}: `id` is missing or no text")
    block_size = _whole(value, "block_size", place)
    if not block_size:
        raise ImportFault(f"{place}: `block_size` is missing or 0")
    scope = value.get("hash_id_scope", "local")
    if scope not in ("local", "global"):
        raise ImportFault(f"{place}: `hash_id_scope` is {scope!r}, known are local and global")
    calls: list[_Call] = []
    sub_agents: list[_SubAgent] = []
    for number, entry in enumerate(value["requests"]):
        where = f"{place}: requests[{number}]"
        if not isinstance(entry, dict):
            raise ImportFault(f"{where} is no JSON object")
        if entry.get("type") == "subagent":
            sub_agents.append(_read_sub_agent(entry, where))
        else:
            calls.append(_read_call(entry, where))
    if not calls and not sub_agents:
        raise ImportFault(f"{place}: `requests` is empty")
    return _Trace(
        place=place,
        path=path,
        trace_id=trace_id,
        block_size=block_size,
        hash_scope="session" if scope == "local" else "release",
        tool_tokens=_whole(value, "tool_tokens", place),
        system_tokens=_whole(value, "system_tokens", place),
        calls=tuple(calls),
        sub_agents=tuple(sub_agents),
    )


def _read_sub_agent(entry: Mapping[str, Any], where: str) -> _SubAgent:
    nested = entry.get("requests")
    if not isinstance(nested, list):
        raise ImportFault(f"{where}: a sub-agent without a list `requests`")
    calls = []
    for number, inner in enumerate(nested):
        place = f"{where}.requests[{number}]"
        if not isinstance(inner, dict):
            raise ImportFault(f"{place} is no JSON object")
        if inner.get("type") == "subagent":
            raise ImportFault(f"{place}: a sub-agent inside a sub-agent, which version 1 does not have")
        calls.append(_read_call(inner, place))
    duration = _number(entry, "duration_ms", where)
    return _SubAgent(
        t_us=_moment(entry, where),
        duration_us=None if duration is None else round(duration * 1000),
        calls=tuple(calls),
        tool_tokens=_whole(entry, "tool_tokens", where),
        system_tokens=_whole(entry, "system_tokens", where),
    )


def _read_call(entry: Mapping[str, Any], where: str) -> _Call:
    kind = entry.get("type")
    if kind not in ("s", "n"):
        raise ImportFault(f"{where}.type is {kind!r}, known are s, n and subagent")
    blocks = entry.get("hash_ids")
    if blocks is not None and not (
        isinstance(blocks, list) and all(isinstance(block, int) and not isinstance(block, bool) for block in blocks)
    ):
        raise ImportFault(f"{where}.hash_ids is no list of whole numbers")
    outputs = entry.get("output_types")
    return _Call(
        t_us=_moment(entry, where),
        model=entry["model"] if isinstance(entry.get("model"), str) else "",
        stream=kind == "s",
        tokens_in=_whole(entry, "in", where),
        tokens_out=_whole(entry, "out", where),
        blocks=None if blocks is None else tuple(blocks),
        input_types=_words(entry.get("input_types")),
        output_types=None if outputs is None else _words(outputs),
        stop=entry["stop"] if isinstance(entry.get("stop"), str) and entry["stop"] else None,
        api_us=_duration(entry, "api_time", where),
        think_us=_duration(entry, "think_time", where),
        ttft_us=_duration(entry, "ttft", where),
    )


def _words(value: Any) -> tuple[str, ...]:
    return tuple(word for word in value if isinstance(word, str)) if isinstance(value, list) else ()


def _number(entry: Mapping[str, Any], name: str, where: str) -> float | None:
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise ImportFault(f"{where}.{name} is {value!r}, not a number from 0 on")
    return value


def _whole(entry: Mapping[str, Any], name: str, where: str) -> int | None:
    value = _number(entry, name, where)
    if value is None:
        return None
    if int(value) != value:
        raise ImportFault(f"{where}.{name} is {value!r}, not a whole number")
    return int(value)


def _duration(entry: Mapping[str, Any], name: str, where: str) -> int | None:
    seconds = _number(entry, name, where)
    return None if seconds is None else round(seconds * 1e6)


def _moment(entry: Mapping[str, Any], where: str) -> int:
    moment = _duration(entry, "t", where)
    if moment is None:
        raise ImportFault(f"{where}: `t` is missing")
    return moment


# ---- what the corpus means by its times


def _entry_time(traces: Iterable[_Trace], notes: list[str]) -> EntryTime:
    """Whether a sub-agent entry's `t` is its start or its end: nearer to the end of a call that wanted a tool."""
    votes: Counter[EntryTime] = Counter()
    for trace in traces:
        ends = [call.t_us + call.api_us for call in trace.calls if call.api_us is not None and call.stop != "end_turn"]
        for agent in trace.sub_agents:
            if agent.duration_us is None or not ends:
                continue
            as_start = min((agent.t_us - end for end in ends if end <= agent.t_us), default=None)
            start = agent.t_us - agent.duration_us
            # Whole seconds of `t` in the main chain: half a second before the end is still after it.
            as_end = min((abs(start - end) for end in ends if end <= start + 1_000_000), default=None)
            if as_start is None or as_end is None:
                votes["start" if as_end is None else "end"] += 1
            else:
                votes["end" if as_end < as_start else "start"] += 1
    if not votes:
        return "start"
    meaning = votes.most_common(1)[0][0]
    notes.append(f"`t` of a sub-agent entry read as its {meaning} ({votes[meaning]} of {votes.total()} entries say so)")
    return meaning


def _start_of(agent: _SubAgent, entry: EntryTime) -> int:
    """When a sub-agent began. An end without a duration leaves only the end itself."""
    if entry == "start" or agent.duration_us is None:
        return agent.t_us
    return max(0, agent.t_us - agent.duration_us)


def _nested_times(traces: Iterable[_Trace], entry: EntryTime, notes: list[str]) -> NestedTimes:
    votes: Counter[NestedTimes] = Counter()
    for trace in traces:
        for agent in trace.sub_agents:
            start = _start_of(agent, entry)
            if agent.calls and start > 1_000_000:
                votes["relative" if agent.calls[0].t_us < start // 2 else "absolute"] += 1
    if not votes:
        return "relative"
    meaning = votes.most_common(1)[0][0]
    since = "the sub-agent's start" if meaning == "relative" else "the conversation's start"
    notes.append(f"nested `t` read as {meaning}, from {since} ({votes[meaning]} of {votes.total()} sub-agents say so)")
    return meaning


def _block_notes(traces: Iterable[_Trace]) -> Iterable[str]:
    odd = 0
    for trace in traces:
        for call in (*trace.calls, *(call for agent in trace.sub_agents for call in agent.calls)):
            if call.blocks is not None and call.tokens_in is not None:
                whole, rest = divmod(call.tokens_in, trace.block_size)
                odd += not whole <= len(call.blocks) <= whole + bool(rest)
    if odd:
        yield f"{odd} requests have more or fewer block hashes than their `in` asks for: kept as they are"


def _license_beside(path: Path) -> str | None:
    """SPDX id of a licence file in the same folder, where it is one that we know."""
    for candidate in sorted(path.parent.glob("LICENSE*")):
        try:
            head = candidate.read_text(encoding="utf-8", errors="replace")[:2000]
        except OSError:
            continue
        if "Apache License" in head and "Version 2.0" in head:
            return "Apache-2.0"
    return None


# ---- to a trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """A call at its place in the session."""

    call: _Call
    path: str
    send_us: int
    previous: int | None  # source order number of the call before it on its chain
    parent: int | None
    tool_tokens: int | None
    system_tokens: int | None


def _place(trace: _Trace, nested: NestedTimes, entry: EntryTime) -> list[_Placed]:
    """All calls with absolute times, main chain first; `previous` and `parent` are positions in this list."""
    placed: list[_Placed] = []
    for number, call in enumerate(trace.calls):
        before = number - 1 if number else None
        placed.append(
            _Placed(call=call, path="main", send_us=call.t_us, previous=before, parent=before,
                    tool_tokens=trace.tool_tokens, system_tokens=trace.system_tokens)
        )  # fmt: skip
    for number, agent in enumerate(trace.sub_agents, 1):
        start = _start_of(agent, entry)
        base = start if nested == "relative" else 0
        # The call whose answer started it: the last one sent before.
        parent = max((at for at, call in enumerate(trace.calls) if call.t_us <= start), default=None)
        previous: int | None = None
        for call in agent.calls:
            placed.append(
                _Placed(call=call, path=f"main/{number}", send_us=base + call.t_us, previous=previous,
                        parent=parent if previous is None else previous,
                        tool_tokens=agent.tool_tokens, system_tokens=agent.system_tokens)
            )  # fmt: skip
            previous = len(placed) - 1
    return placed


def _event(before: Sequence[int] | None, now: Sequence[int] | None) -> ContextEvent:
    """What happened to the context, by block hashes: equal hash means equal prefix."""
    if before is None or now is None:
        return "append"
    shared = shared_blocks(before, now)
    # The last block may change when a cache mark moves, although nothing was edited.
    if shared >= len(before) - 1:
        return "append"
    if shared == 0:
        return "reset"
    return "compaction" if 2 * len(now) < len(before) else "edit"


def shared_blocks(before: Sequence[int], now: Sequence[int]) -> int:
    """Number of leading blocks that two prompts share."""
    for at, (one, other) in enumerate(zip(before, now, strict=False)):
        if one != other:
            return at
    return min(len(before), len(now))


def _trajectory(trace: _Trace, key: bytes, nested: NestedTimes, entry: EntryTime, license_id: str | None) -> Trajectory:
    placed = _place(trace, nested, entry)
    order = sorted(range(len(placed)), key=lambda at: (placed[at].send_us, at))
    index_of = {at: index for index, at in enumerate(order)}
    zero = placed[order[0]].send_us
    requests = tuple(_request(placed, at, index_of, trace.block_size, zero) for at in order)
    spent = [span for request in requests if (span := request.call_span) is not None]
    models = tuple(dict.fromkeys(request.model for request in requests if request.model))
    return Trajectory(
        session_id=session_id(key, native_id(SOURCE, trace.trace_id)),
        source=SOURCE,
        source_ref=f"{trace.path.name}: {trace.trace_id}",
        # The format is made from Claude Code's calls; it does not say which version.
        harness="claude-code" if models and all(model.startswith("claude") for model in models) else "unknown",
        harness_version=None,
        t0_utc_us=None,
        models=models,
        pool=(),
        tool_sets=(),
        requests=requests,
        tool_calls=(),
        duration_us=max([request.sent_us for request in requests] + [end for _, end in spent]),
        api_us=union_length(spent) if spent else None,
        tool_us=None,
        human_us=None,
        num_user_messages=None,
        num_subagents=len(trace.sub_agents),
        num_compactions=sum(request.context_event == "compaction" for request in requests),
        hash_scope=trace.hash_scope,
        token_source="tokenizer",  # noqa: S106 - a word, no secret
        tokenizer="cl100k_base",  # the format counts with tiktoken's encoding for gpt-4
        license=license_id,
        quality=CaptureQuality(complete=True, gaps=0, clock_err_us=None, body_missing=0),
    )


def _request(placed: Sequence[_Placed], at: int, index_of: Mapping[int, int], block_size: int, zero: int) -> Request:
    own = placed[at]
    call = own.call
    before = None if own.previous is None else placed[own.previous]
    send_us = own.send_us - zero
    gap_us = None
    if before is not None:
        gap_us = call.think_us
        if gap_us is None and before.call.api_us is not None:
            gap_us = max(0, own.send_us - before.send_us - before.call.api_us)
    if before is not None:
        gap_kind: Literal["unsplit", "none", "spawn"] = "unsplit"
    else:
        gap_kind = "none" if own.path == "main" else "spawn"
    event: ContextEvent = "append" if before is None else _event(before.call.blocks, call.blocks)
    first: Relation = "start" if own.parent is None else "subagent"
    return Request(
        request_index=index_of[at],
        agent_path=own.path,
        parent_request_index=None if own.parent is None else index_of[own.parent],
        link="source",
        api="anthropic.messages",
        model=call.model,
        stream=call.stream,
        status=None,
        error=None,
        retry_of=None,
        t_send_us=send_us,
        t_headers_us=None,
        t_first_byte_us=None,
        t_first_token_us=None if call.ttft_us is None else send_us + call.ttft_us,
        t_last_token_us=None,
        t_end_us=None if call.api_us is None else send_us + call.api_us,
        gap_us=gap_us,
        gap_kind=gap_kind,
        think_us=None,
        prompt_spans=None,
        answer_index=None,
        context_event=event,
        relation=first if before is None else relation_of(event),
        link_confidence=None if own.parent is None else "certain",
        prompt_tokens=call.tokens_in,
        cache_read_tokens=None,
        cache_write_tokens=None,
        completion_tokens=call.tokens_out,
        reasoning_tokens=None,
        system_tokens=own.system_tokens,
        tools_tokens=own.tool_tokens,
        max_tokens=None,
        temperature=None,
        effort=None,
        stop=call.stop,
        new_input=call.input_types,
        tool_call_ids=(),
        block_size=block_size if call.blocks is not None else None,
        block_hashes=call.blocks,
        bytes_up=None,
        bytes_down=None,
        sse_events=None,
        itl_us=None,
        exchange_id=None,
        tools_index=None,
        new_output=call.output_types,
    )
