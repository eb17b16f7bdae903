"""The tool calls of a session's chains, each with the request that brought its result and what is told of its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from capture.axis import Axis
from capture.call import Message, ToolTime, ToolUse
from capture.canonical import human_text
from capture.chain import Chain, Step
from capture.node import made_calls, since_last_answer
from capture.tool_kind import exit_code, timed_out, tool_kind
from capture.trajectory import Request, ToolCall

type Ran = dict[tuple[int, str], tuple[int, int]]


def added_messages(step: Step, previous: Step | None) -> Sequence[Message]:
    """Messages that a call brought and the call before it on the chain did not have."""
    if previous is None:
        return [message for message in step.node.call.messages if message.role not in ("system", "developer")]
    new = since_last_answer(step.node.call.messages)
    if step.retry_of is None and previous.node.call.answer is not None:
        return new
    known = set(since_last_answer(previous.node.call.messages))
    return [message for message in new if message not in known]


def read_tool_calls(
    chains: Sequence[Chain], requests: Sequence[Request], axis: Axis
) -> tuple[tuple[ToolCall, ...], Ran]:
    """(tool calls in order of their requests, when those ran of which a request's body tells it)."""
    found: list[ToolCall] = []
    ran: Ran = {}
    group = 0
    for chain in chains:
        steps = {step.position: step for step in chain.steps}
        places = _Results(chain)
        for order, step in enumerate(chain.steps):
            answer = step.node.call.answer
            if answer is None or not answer.tool_calls or step.node.call.kind == "auxiliary":
                continue
            made = [(use, *(places.of(use.id, order) or (None, None))) for use in made_calls(step.node.call)]
            in_header = _in_headers([(use, carrier) for use, carrier, _ in made])
            for use, carrier, message in made:
                told = _told(carrier, use.id)
                internal = in_header.get(use.id)
                mixed = carrier is not None and any(
                    human_text(new)
                    for new in added_messages(carrier, None if carrier.previous is None else steps[carrier.previous])
                )
                found.append(
                    _tool_call(
                        chain.path, step, use, carrier, message, requests, axis, group, told, internal, mixed=mixed
                    )
                )
                if told is not None and told.started_utc_us is not None and told.ended_utc_us is not None:
                    ran[step.position, use.id] = (told.started_utc_us, told.ended_utc_us)
            group += 1
    return tuple(sorted(found, key=lambda call: (call.request_index, call.t_emitted_us or 0))), ran


def _tool_call(
    path: str,
    step: Step,
    use: ToolUse,
    carrier: Step | None,
    message: Message | None,
    requests: Sequence[Request],
    axis: Axis,
    group: int,
    told: ToolTime | None,
    internal_us: int | None,
    *,
    mixed: bool,
) -> ToolCall:
    kind = tool_kind(use.name)
    t_result = None if carrier is None else requests[carrier.position].t_send_us
    end = requests[step.position].t_end_us
    text = None if message is None else message.content
    in_body = None if told is None else told.internal_us
    return ToolCall(
        tool_call_id=use.id,
        agent_path=path,
        request_index=step.position,
        result_request_index=None if carrier is None else carrier.position,
        name=use.name,
        kind=kind,
        t_emitted_us=axis.at_us(step.node.call, use.t_emitted_ns),
        t_result_us=t_result,
        wall_us=None if t_result is None or end is None else t_result - end,
        internal_us=in_body if internal_us is None else internal_us,
        parallel_group=group,
        result_bytes=None
        if message is None
        else len(message.content.encode("utf-8", "replace")) + message.omitted_bytes,
        is_error=None if message is None else message.is_error,
        exit_code=exit_code(text) if text is not None and kind == "exec" else None,
        timed_out=timed_out(text) if text is not None and kind == "exec" else None,
        mixed=mixed,
        internal_source="header" if internal_us is not None else None if in_body is None else "body",
        permission_us=None if told is None else told.permission_us,
    )


class _Results:
    """Where the results of a chain's tool calls stand."""

    def __init__(self, chain: Chain) -> None:
        self.steps = chain.steps
        self.fresh: dict[str, list[tuple[int, Message]]] = {}
        for order, step in enumerate(chain.steps):
            new: dict[str, Message] = {
                message.tool_call_id: message
                for message in since_last_answer(step.node.call.messages)
                if message.role == "tool" and message.tool_call_id
            }
            for tool_id, message in new.items():
                self.fresh.setdefault(tool_id, []).append((order, message))

    def of(self, tool_id: str, asked: int) -> tuple[Step, Message] | None:
        """The first later call that carries a tool's result; the asking call is given by its order on the chain."""
        # New results follow the model's last word; scripted servers reuse ids, so an old result proves nothing.
        for order, message in self.fresh.get(tool_id, ()):
            if order > asked:
                return self.steps[order], message
        old = None
        for step in self.steps[asked + 1 :]:
            if tool_id not in step.node.result_ids:
                continue
            old = set(self.steps[asked].node.call.messages) if old is None else old
            for message in reversed(step.node.call.messages):
                if message.role == "tool" and message.tool_call_id == tool_id and message not in old:
                    return step, message
        return None


def _told(carrier: Step | None, tool_id: str) -> ToolTime | None:
    """What the body of the call that carries a result tells of its time."""
    times: Mapping[str, ToolTime] = (
        {} if carrier is None else {time.tool_call_id: time for time in carrier.node.call.tool_times}
    )
    return times.get(tool_id)


def _in_headers(carried: Sequence[tuple[ToolUse, Step | None]]) -> dict[str, int]:
    """Durations by call id, in microseconds, that the agent declares by tool name for the results of one answer.

    It lists them in order of completion, and a busy machine stretches a gap as one call after the other would: of
    several calls of one tool nobody can say which took how long.
    """
    found: dict[str, int] = {}
    for carrier in {id(carrier): carrier for _, carrier in carried if carrier is not None}.values():
        declared = carrier.node.call.tool_durations_ms
        for name, milliseconds in declared:
            uses = [use for use, by in carried if by is carrier and use.name == name]
            if len(uses) == 1 and sum(tool == name for tool, _ in declared) == 1:
                found[uses[0].id] = 1000 * milliseconds
    return found
