"""From calls to sessions.

The law of this file, in four sentences:

1. Every call lands in exactly one session and on exactly one chain of it; nothing is dropped, a failed attempt
   included, because it loaded a server.
2. A prompt is told by spans of the session's pool, and the messages under the spans are exactly the messages sent,
   after those that the provider puts before them where a request names a previous response.
3. Time on a chain is cut without rest: a call's own time, then the gap to the next send, which belongs to the tools if
   results came back, to the human if new words came, to the client otherwise.
4. The same calls give the same session ids and the same order, whatever arrives after them.

How it goes: `grouping` sorts calls into sessions by a ladder of evidence, `chain` lays each session's calls on linear
chains, and this module turns chains into the `Trajectory`: times from the first send, pool, tool calls, totals.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from capture.call import Message, ModelCall, Tool
from capture.canonical import human_text
from capture.chain import Chain, Step, build_chains
from capture.grouping import Group, group_calls
from capture.intervals import union_length
from capture.pool import MessagePool
from capture.tool_kind import exit_code, timed_out, tool_kind
from capture.trajectory import CaptureQuality, GapKind, Request, TokenSource, ToolCall, Trajectory

_ERROR_CHARACTERS = 500


def session_id(key: bytes, native_id: str) -> str:
    """The id under which a store names a session: 32 hex digits of HMAC-SHA256 over the native id."""
    return hmac.new(key, native_id.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where calls come from, when it is not the wire: an importer reads a log into calls and says so here."""

    source: str  # of the trajectory; also the prefix of the native id, so that log and wire get unlike session ids
    token_source: TokenSource
    tokenizer: str | None = None
    license: str | None = None


WIRE = Origin(source="wire", token_source="provider")  # noqa: S106 - a word, no secret


def assemble(calls: Iterable[ModelCall], key: bytes, origin: Origin = WIRE) -> list[Trajectory]:
    """Sessions in order of their first send; `key` is the store's."""
    return [_Session(group, origin).trajectory(key) for group in group_calls(calls)]


def _native_id(name: str, origin: Origin) -> str:
    return name if origin is WIRE else f"{origin.source}:{name}"


def _since_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """What the client added after the model's last word; all but the system prompt where it has not spoken."""
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].role == "assistant":
            return messages[at + 1 :]
    return [message for message in messages if message.role not in ("system", "developer")]


def _kinds(messages: Iterable[Message]) -> tuple[str, ...]:
    kinds: list[str] = []
    for message in messages:
        kinds.append("tool_result" if message.role == "tool" else "text")
        if message.omitted_bytes and message.role in ("tool", "user"):
            kinds.append("image")
    return tuple(dict.fromkeys(kinds))


def _output_kinds(answer: Message | None) -> tuple[str, ...] | None:
    if answer is None:
        return None
    found = (
        ("thinking", answer.reasoning_content is not None),
        ("text", bool(answer.content)),
        ("tool_use", bool(answer.tool_calls)),
    )
    return tuple(kind for kind, there in found if there)


class _Session:
    """One group on its way to a trajectory; all times in microseconds since its first send."""

    def __init__(self, group: Group, origin: Origin) -> None:
        self.origin = origin
        self.nodes = group.nodes
        self.native_first = group.nodes[0].call.hints[0].session if group.nodes[0].call.hints else None
        self.zero_us = group.nodes[0].send_us
        self.chains = build_chains(group.nodes)
        self.by_position: dict[int, tuple[Chain, Step]] = {
            step.position: (chain, step) for chain in self.chains for step in chain.steps
        }
        self.superseded = {step.retry_of for chain in self.chains for step in chain.steps if step.retry_of is not None}
        self.pool = MessagePool()
        self.tool_sets: dict[tuple[Tool, ...], int] = {}

    def _at(self, call: ModelCall, at_ns: int | None) -> int | None:
        return None if at_ns is None else call.wall_anchor_us + at_ns // 1000 - self.zero_us

    def trajectory(self, key: bytes) -> Trajectory:
        calls = [node.call for node in self.nodes]
        requests = tuple(self._request(*self.by_position[position]) for position in range(len(calls)))
        tool_calls = self._tool_calls(requests)
        spent = [(request.t_send_us, request.t_end_us) for request in requests if request.t_end_us is not None]
        last = max([request.t_send_us for request in requests] + [end for _, end in spent])
        waits = [request.think_us for request in requests if request.think_us is not None]
        main = [chain for chain in self.chains if chain.path == "main"]
        return Trajectory(
            session_id=session_id(key, _native_id(self.native_first or calls[0].exchange_id, self.origin)),
            source=self.origin.source,
            source_ref=calls[0].exchange_id,
            harness=_most_common(call.harness for call in calls if call.harness != "unknown") or "unknown",
            harness_version=_most_common(call.harness_version for call in calls if call.harness_version),
            t0_utc_us=self.zero_us,
            models=tuple(dict.fromkeys(call.model for call in calls if call.model)),
            pool=self.pool.messages,
            tool_sets=tuple(self.tool_sets),
            requests=requests,
            tool_calls=tool_calls,
            duration_us=last,
            api_us=union_length(spent),
            tool_us=union_length(
                (request.t_send_us - request.gap_us, request.t_send_us)
                for request in requests
                if request.gap_kind == "tool" and request.gap_us is not None
            ),
            human_us=sum(waits) if waits else None,
            num_user_messages=sum(self._human_messages(step) for chain in main for step in chain.steps),
            num_subagents=sum(chain.path.startswith("main/") for chain in self.chains),
            num_compactions=sum(request.context_event == "compaction" for request in requests),
            hash_scope=None,
            token_source=self.origin.token_source,
            tokenizer=self.origin.tokenizer,
            license=self.origin.license,
            quality=self._quality(),
        )

    def _quality(self) -> CaptureQuality:
        calls = [node.call for node in self.nodes]
        gaps = sum(call.gaps for call in calls)
        whole = all(
            call.complete or position in self.superseded or (call.status is not None and call.status >= 400)
            for position, call in enumerate(calls)
        )
        missing = sum(not node.call.messages or node.history_missing for node in self.nodes)
        return CaptureQuality(
            complete=whole and not gaps and not missing, gaps=gaps, clock_err_us=None, body_missing=missing
        )

    def _previous(self, step: Step) -> Step | None:
        return None if step.previous is None else self.by_position[step.previous][1]

    def _added(self, step: Step) -> Sequence[Message]:
        """Messages that this call brought and the call before it on the chain did not have."""
        previous = self._previous(step)
        if previous is None:
            return [message for message in step.node.call.messages if message.role not in ("system", "developer")]
        new = _since_last_answer(step.node.call.messages)
        known = set(_since_last_answer(previous.node.call.messages))
        repeated = step.retry_of is not None or previous.node.call.answer is None
        return [message for message in new if message not in known] if repeated else new

    def _human_messages(self, step: Step) -> int:
        if step.event == "compaction" or step.retry_of is not None:
            return 0
        return sum(bool(human_text(message)) for message in self._added(step))

    def _gap(self, chain: Chain, step: Step, send_us: int) -> tuple[int | None, GapKind, int | None]:
        """(gap, its kind, human time in it) before a call."""
        previous = self._previous(step)
        if previous is None:
            return None, "none" if step.position == 0 or not chain.spawned else "spawn", None
        call = previous.node.call
        end = self._at(call, call.t_end_ns)
        gap = None if end is None else max(0, send_us - end)
        if step.retry_of is not None:
            return gap, "client", 0
        asked = previous.node.answer_ids
        added = self._added(step)
        human = step.event != "compaction" and any(human_text(message) for message in added)
        if asked and any(message.tool_call_id in asked for message in added):
            if not human:
                return gap, "tool", 0
            # Both in one gap: only what the agent declares for its tools lets the rest be told as human time.
            declared = [milliseconds for _, milliseconds in step.node.call.tool_durations_ms]
            if gap is None or not declared:
                return gap, "tool", None
            return gap, "tool", max(0, gap - 1000 * sum(declared))
        return (gap, "human", gap) if human else (gap, "client", 0)

    def _request(self, chain: Chain, step: Step) -> Request:
        call = step.node.call
        send_us = step.node.send_us - self.zero_us
        end_us = self._at(call, call.t_end_ns)
        gap_us, gap_kind, think_us = self._gap(chain, step, send_us)
        spans = self.pool.add_prompt(call.messages, agent_path=chain.path, request_index=step.position, t_us=send_us)
        answer_index = None
        if call.answer is not None:
            came = end_us if end_us is not None else self._at(call, call.t_last_content_ns)
            answer_index = self.pool.add_answer(
                call.answer,
                agent_path=chain.path,
                request_index=step.position,
                t_us=send_us if came is None else came,
            )
        tools_index = self.tool_sets.setdefault(call.tools, len(self.tool_sets)) if call.tools else None
        times = call.content_at_ns
        return Request(
            request_index=step.position,
            agent_path=chain.path,
            parent_request_index=step.parent,
            link=step.node.evidence,
            api=call.api,
            model=call.model,
            stream=call.stream,
            status=call.status,
            error=call.error[:_ERROR_CHARACTERS] if call.error else None,
            retry_of=step.retry_of,
            t_send_us=send_us,
            t_headers_us=self._at(call, call.t_headers_ns),
            t_first_byte_us=self._at(call, call.t_first_byte_ns),
            t_first_token_us=self._at(call, call.t_first_content_ns),
            t_last_token_us=self._at(call, call.t_last_content_ns),
            t_end_us=end_us,
            gap_us=gap_us,
            gap_kind=gap_kind,
            think_us=think_us,
            prompt_spans=spans,
            answer_index=answer_index,
            context_event=step.event,
            prompt_tokens=call.usage.input_total,
            cache_read_tokens=call.usage.cache_read,
            cache_write_tokens=call.usage.cache_write,
            completion_tokens=call.usage.output_total,
            reasoning_tokens=call.usage.reasoning,
            system_tokens=None,
            tools_tokens=None,
            max_tokens=call.max_tokens,
            temperature=call.temperature,
            effort=call.effort,
            stop=call.stop,
            new_input=_kinds(self._added(step)),
            tool_call_ids=tuple(use.id for use in call.answer.tool_calls) if call.answer else (),
            block_size=None,
            block_hashes=None,
            bytes_up=call.bytes_up,
            bytes_down=call.bytes_down,
            sse_events=call.events if call.stream else None,
            itl_us=tuple((later - earlier) // 1000 for earlier, later in pairwise(times)) if len(times) > 1 else None,
            exchange_id=call.exchange_id,
            tools_index=tools_index,
            kind=call.kind,
            new_output=_output_kinds(call.answer),
        )

    def _tool_calls(self, requests: Sequence[Request]) -> tuple[ToolCall, ...]:
        found: list[ToolCall] = []
        group = 0
        for chain in self.chains:
            for order, step in enumerate(chain.steps):
                answer = step.node.call.answer
                if answer is None or not answer.tool_calls or step.node.call.kind == "auxiliary":
                    continue
                later = chain.steps[order + 1 :]
                taken: set[int] = set()
                for use in answer.tool_calls:
                    carried = _result_of(use.id, step, later)
                    found.append(self._tool_call(chain, step, use.id, carried, requests, group, taken))
                group += 1
        return tuple(sorted(found, key=lambda call: (call.request_index, call.t_emitted_us or 0)))

    def _tool_call(
        self,
        chain: Chain,
        step: Step,
        use_id: str,
        carried: tuple[Step, Message] | None,
        requests: Sequence[Request],
        group: int,
        taken: set[int],
    ) -> ToolCall:
        call = step.node.call
        assert call.answer is not None
        use = next(use for use in call.answer.tool_calls if use.id == use_id)
        kind = tool_kind(use.name)
        result_step, message = carried if carried is not None else (None, None)
        t_result = requests[result_step.position].t_send_us if result_step is not None else None
        end = requests[step.position].t_end_us
        text = message.content if message is not None else None
        return ToolCall(
            tool_call_id=use.id,
            agent_path=chain.path,
            request_index=step.position,
            result_request_index=None if result_step is None else result_step.position,
            name=use.name,
            kind=kind,
            t_emitted_us=self._at(call, use.t_emitted_ns),
            t_result_us=t_result,
            wall_us=None if t_result is None or end is None else t_result - end,
            internal_us=_declared(result_step, use.name, taken),
            parallel_group=group,
            result_bytes=None if message is None else len(message.content.encode()) + message.omitted_bytes,
            is_error=None if message is None else message.is_error,
            exit_code=exit_code(text) if text is not None and kind == "exec" else None,
            timed_out=timed_out(text) if text is not None and kind == "exec" else None,
            mixed=result_step is not None and any(human_text(new) for new in self._added(result_step)),
        )


def _result_of(tool_id: str, holder: Step, later: Sequence[Step]) -> tuple[Step, Message] | None:
    """The first later call of the chain that carries a tool's result."""
    for step in later:
        # New results follow the model's last word; scripted servers reuse ids, so an old result proves nothing.
        for message in reversed(_since_last_answer(step.node.call.messages)):
            if message.role == "tool" and message.tool_call_id == tool_id:
                return step, message
    old = set(holder.node.call.messages)
    for step in later:
        for message in reversed(step.node.call.messages):
            if message.role == "tool" and message.tool_call_id == tool_id and message not in old:
                return step, message
    return None


def _declared(step: Step | None, name: str, taken: set[int]) -> int | None:
    """The duration that the agent declares for the next result of this tool, in microseconds."""
    if step is None:
        return None
    for position, (tool, milliseconds) in enumerate(step.node.call.tool_durations_ms):
        if tool == name and position not in taken:
            taken.add(position)
            return milliseconds * 1000
    return None


def _most_common(values: Iterable[str | None]) -> str | None:
    counted = Counter(value for value in values if value)
    return counted.most_common(1)[0][0] if counted else None
