"""From calls to sessions.

The law of this file, in five sentences:

1. Every call lands in exactly one session and on exactly one chain of it; nothing is dropped, a failed attempt
   included, because it loaded a server. (What two recorders in a row saw is one call: `twice`.)
2. A prompt is told by spans of the session's pool, and the messages under the spans are exactly the messages sent,
   after those that the provider puts before them where a request names a previous response.
3. Time on a chain is cut without rest: a call's own time, then the gap to the next send, which belongs to the tools if
   results came back, to the human if new words came or a question was answered, to the client otherwise (`gap` splits
   it further).
4. The same calls give the same session ids and the same order, whatever arrives after them.
5. Evidence is per link: `link` names the best thing that shows which earlier call this one belongs to, and
   `link_confidence` how sure that is (`chain` has the ladder); where only the times tell, `link` is what put the call
   into the session.

How it goes: `grouping` sorts calls into sessions by a ladder of evidence, `chain` lays each session's calls on linear
chains, `agent_path` names them, and this module turns chains into the `Trajectory`: times from the first send, pool,
tool calls, totals.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from capture.agent_path import build_chains
from capture.axis import Axis, clock_jump_us
from capture.call import Message, ModelCall, Tool
from capture.canonical import canonical_hash, human_text, notifies
from capture.chain import Chain, Step
from capture.gap import split_gaps
from capture.grouping import Group, group_calls
from capture.intervals import union_length
from capture.node import made_calls
from capture.pool import MessagePool
from capture.tool_kind import asks_human
from capture.tool_results import added_messages, read_tool_calls
from capture.trajectory import COMPACTION, CaptureQuality, GapKind, Request, TokenSource, Trajectory
from capture.twice import counted_once

_ERROR_CHARACTERS = 500
_WRITERS = 8  # calls before a compacted prompt among which its summary is looked for


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
    return [_Session(group, origin).trajectory(key) for group in group_calls(counted_once(calls))]


def contributor_id(key: bytes, name: str) -> str:
    """The id under which a store names a person: 16 hex digits, keyed like those of its sessions."""
    return session_id(key, f"contributor:{name}")[:16]


def _native_id(name: str, origin: Origin) -> str:
    return name if origin is WIRE else f"{origin.source}:{name}"


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
        self.native_id = group.native_id
        self.axis = Axis([node.call for node in group.nodes])
        self.nodes = sorted(
            (
                replace(
                    node,
                    send_us=self.axis.send_us(node.call),
                    end_us=self.axis.at_us(node.call, node.call.t_end_ns),
                )
                for node in group.nodes
            ),
            key=lambda node: node.send_us,
        )
        self.chains = build_chains(self.nodes)
        self.by_position: dict[int, tuple[Chain, Step]] = {
            step.position: (chain, step) for chain in self.chains for step in chain.steps
        }
        self.superseded = {step.retry_of for chain in self.chains for step in chain.steps if step.retry_of is not None}
        self.summarisers = self._find_summarisers()
        self.pool = MessagePool()
        self.tool_sets: dict[tuple[Tool, ...], int] = {}

    def trajectory(self, key: bytes) -> Trajectory:
        calls = [node.call for node in self.nodes]
        requests = tuple(self._request(*self.by_position[position]) for position in range(len(calls)))
        tool_calls, ran = read_tool_calls(self.chains, requests, self.axis)
        spent = [span for request in requests if (span := request.call_span) is not None]
        last = max([request.sent_us for request in requests] + [end for _, end in spent])
        main = [chain for chain in self.chains if chain.path == "main"]
        contributor = calls[0].contributor
        trajectory = Trajectory(
            session_id=session_id(key, _native_id(self.native_id or calls[0].exchange_id, self.origin)),
            source=self.origin.source,
            source_ref=calls[0].exchange_id,
            harness=_most_common(call.harness for call in calls if call.harness != "unknown") or "unknown",
            harness_version=_most_common(call.harness_version for call in calls if call.harness_version),
            t0_utc_us=self.axis.zero_utc_us,
            models=tuple(dict.fromkeys(call.model for call in calls if call.model)),
            pool=self.pool.messages,
            tool_sets=tuple(self.tool_sets),
            requests=requests,
            tool_calls=tool_calls,
            duration_us=last,
            api_us=union_length(spent),
            tool_us=union_length(
                span for request in requests if request.gap_kind == "tool" and (span := request.gap_span) is not None
            ),
            human_us=None,
            num_user_messages=sum(self._human_messages(step) for chain in main for step in chain.steps),
            num_subagents=sum(
                chain.path.startswith("main/") and chain.steps[0].relation != "fork" for chain in self.chains
            ),
            num_compactions=sum(request.context_event == "compaction" for request in requests),
            hash_scope=None,
            token_source=self.origin.token_source,
            tokenizer=self.origin.tokenizer,
            license=self.origin.license,
            quality=self._quality(requests),
            mode=_most_common(call.mode for call in calls),
            contributor=None if contributor is None else contributor_id(key, contributor),
            consent=next((call.consent for call in calls if call.consent is not None), None),
        )
        return split_gaps(trajectory, ran)

    def _quality(self, requests: Sequence[Request]) -> CaptureQuality:
        calls = [node.call for node in self.nodes]
        gaps = sum(call.gaps for call in calls)
        resumed = {step.previous for chain in self.chains for step in chain.steps}
        # A break that the agent got over is the provider's; the recording lacks nothing as long as it saw the end.
        whole = all(
            call.complete
            or position in self.superseded
            or (call.status is not None and call.status >= 400)
            or (position in resumed and call.t_end_ns is not None)
            for position, call in enumerate(calls)
        )
        missing = sum(not node.call.messages or node.history_missing for node in self.nodes)
        jumps = [abs(request.clock_jump_us) for request in requests if request.clock_jump_us is not None]
        return CaptureQuality(
            complete=whole and not gaps and not missing,
            gaps=gaps,
            # Only the recorder watches its wall clock; a log's stamps are what they are.
            clock_err_us=max(jumps, default=0) if self.origin is WIRE else None,
            body_missing=missing,
        )

    def _previous(self, step: Step) -> Step | None:
        return None if step.previous is None else self.by_position[step.previous][1]

    def _find_summarisers(self) -> frozenset[int]:
        """Calls that wrote the summary of a context: by the agent's word, or because a compacted prompt carries it."""
        found = {position for position, node in enumerate(self.nodes) if node.call.compaction is not None}
        for chain in self.chains:
            for step in chain.steps:
                if step.event != "compaction" or step.previous is None:
                    continue
                for position in range(step.position - 1, max(-1, step.position - _WRITERS - 1), -1):
                    writer = self.nodes[position]
                    if step.node.carries(writer.summary, by_model=writer.asks_for_summary):
                        found.add(position)
        return frozenset(found)

    def _human_texts(self, step: Step, added: Sequence[Message]) -> list[Message]:
        """Of what a call brought, the words that a human said only now."""
        if step.retry_of is not None or step.position in self.summarisers:
            return []
        spoken = [message for message in added if human_text(message)]
        if step.event != "compaction" or not spoken:
            return spoken
        # A compacted context repeats what the human had said, and holds the summary in the human's role.
        previous = self._previous(step)
        known = set() if previous is None else set(previous.node.talk)
        before = self.nodes[max(0, step.position - _WRITERS) : step.position]
        summaries = [node.summary for node in before if node.summary is not None]
        return [
            message
            for message in spoken
            if canonical_hash(message) not in known and not any(summary in message.content for summary in summaries)
        ]

    def _human_messages(self, step: Step) -> int:
        return len(self._human_texts(step, added_messages(step, self._previous(step))))

    def _gap(self, chain: Chain, step: Step, send_us: int) -> tuple[int | None, GapKind]:
        """(gap, its kind) before a call."""
        previous = self._previous(step)
        if previous is None:
            return None, "spawn" if chain.spawned and step.position else "none"
        end = previous.node.end_us
        gap = None if end is None else max(0, send_us - end)
        if step.retry_of is not None:
            return gap, "client"
        added = added_messages(step, previous)
        results = {message.tool_call_id for message in added if message.role == "tool"}
        answer = previous.node.call.answer
        answered = [use for use in answer.tool_calls if use.id in results] if answer is not None else []
        if answered:
            return gap, "human" if all(asks_human(use.name) for use in answered) else "tool"
        if self._human_texts(step, added):
            return gap, "human"
        if step.position in self.summarisers and previous.node.answer_ids:
            return gap, "tool"  # their results are sent behind the summary
        # Nobody spoke and nothing was asked for: what was awaited worked in the background.
        background = results or any(notifies(message) for message in added)
        return gap, "tool" if background and step.event != "compaction" else "client"

    def _request(self, chain: Chain, step: Step) -> Request:
        call, at_us = step.node.call, self.axis.at_us
        send_us, end_us = step.node.send_us, step.node.end_us
        previous = self._previous(step)
        gap_us, gap_kind = self._gap(chain, step, send_us)
        spans = self.pool.add_prompt(call.messages, agent_path=chain.path, request_index=step.position, t_us=send_us)
        answer_index = None
        if call.answer is not None:
            came = end_us if end_us is not None else at_us(call, call.t_last_content_ns)
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
            link=step.link,
            link_confidence=step.confidence,
            relation=step.relation,
            api=call.api,
            model=call.model,
            stream=call.stream,
            transport=call.transport,
            status=call.status,
            error=call.error[:_ERROR_CHARACTERS] if call.error else None,
            retry_of=step.retry_of,
            t_send_us=send_us,
            t_headers_us=at_us(call, call.t_headers_ns),
            t_first_byte_us=at_us(call, call.t_first_byte_ns),
            t_first_token_us=at_us(call, call.t_first_content_ns),
            t_first_text_us=at_us(call, call.t_first_text_ns),
            t_first_thinking_us=at_us(call, call.t_first_thinking_ns),
            t_first_tool_call_us=at_us(call, call.t_first_tool_call_ns),
            t_last_token_us=at_us(call, call.t_last_content_ns),
            t_end_us=end_us,
            gap_us=gap_us,
            gap_kind=gap_kind,
            think_us=None,
            clock_jump_us=clock_jump_us(None if previous is None else previous.node.call, call),
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
            new_input=_kinds(added_messages(step, previous)),
            tool_call_ids=tuple(use.id for use in made_calls(call)),
            block_size=None,
            block_hashes=None,
            bytes_up=call.bytes_up,
            bytes_down=call.bytes_down,
            sse_events=call.events if call.stream else None,
            itl_us=tuple((later - earlier) // 1000 for earlier, later in pairwise(times)) if len(times) > 1 else None,
            exchange_id=call.exchange_id,
            tools_index=tools_index,
            kind="auxiliary" if chain.side else call.kind,
            new_output=_output_kinds(call.answer),
            agent_type=call.agent_type or (COMPACTION if step.position in self.summarisers else None),
        )


def _most_common(values: Iterable[str | None]) -> str | None:
    counted = Counter(value for value in values if value)
    return counted.most_common(1)[0][0] if counted else None
