"""Mooncake traces: JSON Lines of requests; read by AIPerf, Dynamo, SGLang, vLLM's tools and others.

A row is {timestamp, input_length, output_length, hash_ids}: milliseconds since the first request of the file, tokens,
and one id per 512 tokens of the prompt, the last and shorter block included. Equal ids: equal prefixes up to and
including the block, in the whole file. Blocks of other sizes are put together to 512, which the format's readers assume
where nobody tells them.

Further keys are those of agentic Mooncake, for readers that wait for what a request waited for: request_id, wait_for
(requests that have to be complete), then `delay` + `tool_wait_ms` milliseconds, prefix_reset (the context starts over);
play_id names the session, and model the model. There is no `session_id` on purpose: where rows share one, AIPerf takes
each prompt for what is new since the row before, and would send every history twice.

With messages a row is {timestamp, session_id, messages, tools, output_length, delay, extra} instead, as AIPerf reads:
whole prompts word for word, so `session_id` (one per chain of a session) and `delay` say what follows what. `extra` has
parameters that AIPerf adds to the request. The keys of agentic Mooncake stand beside them.

Source: kvcache-ai/Mooncake, mooncake_trace.jsonl; ai-dynamo/aiperf 0.13, dataset/loader/models.py; ai-dynamo/dynamo,
lib/data-gen/src/mooncake.rs.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from capture.trajectory import Request, Trajectory
from curate.blocks import BlockNumbers, PromptBlocks, prompt_blocks
from curate.exports.fit import unfit, unfit_chat
from curate.exports.openai import openai_message, openai_tool
from curate.tokens import TokenCounter

BLOCK_SIZE = 512
_NO_OUTPUT = "requests without output (AIPerf refuses a file that has one)"

type Json = dict[str, Any]


class MooncakeRows:
    """Rows of one file: block ids count on from session to session."""

    def __init__(self, counter: TokenCounter, *, with_messages: bool = False) -> None:
        self._counter = counter
        self._numbers = BlockNumbers()
        self._with_messages = with_messages

    def rows(self, trajectory: Trajectory) -> tuple[list[tuple[int, Json]], Counter[str]]:
        """(microseconds since the session's first send, row without its timestamp), and what was left out, by reason.

        Lengths and blocks of a session with text are those of the counter, its output the provider's where it told.
        """
        left_out: Counter[str] = Counter()
        if self._with_messages:
            return self._chats(trajectory, left_out), left_out
        kept: list[tuple[Request, PromptBlocks]] = []
        for request, counted in prompt_blocks(
            trajectory, self._counter, BLOCK_SIZE, numbers=self._numbers, with_tail=True
        ):
            reason = unfit(request, counted)
            blocks = counted
            if reason is None and blocks is None:
                blocks, reason = self._own_blocks(trajectory, request)
            elif reason is None and blocks is not None and not blocks.tokens:
                reason = "requests without input"
            if reason is None and self._output(trajectory, request) == 0:
                reason = _NO_OUTPUT
            if reason is not None:
                left_out[reason] += 1
                continue
            assert blocks is not None
            kept.append((request, blocks))
        kept.sort(key=lambda one: one[0].sent_us)
        found: list[tuple[int, Json]] = []
        sent: dict[int, Request] = {}  # what stands in the file, by index
        last: dict[str, Request] = {}  # of it, the last of each chain
        for request, blocks in kept:
            waits = _waits(trajectory, request, sent, last)
            found.append((request.sent_us, self._row(trajectory, request, blocks, waits)))
            sent[request.request_index] = last[request.agent_path] = request
        return found, left_out

    def _chats(self, trajectory: Trajectory, left_out: Counter[str]) -> list[tuple[int, Json]]:
        """Rows with whole prompts."""
        kept: list[Request] = []
        for request in trajectory.requests:
            reason = unfit_chat(request)
            if reason is None and self._output(trajectory, request) == 0:
                reason = _NO_OUTPUT
            if reason is None:
                kept.append(request)
            else:
                left_out[reason] += 1
        kept.sort(key=lambda one: one.sent_us)
        messages = [openai_message(pooled.message) for pooled in trajectory.pool]
        tools = [[openai_tool(tool) for tool in known] for known in trajectory.tool_sets]
        found: list[tuple[int, Json]] = []
        sent: dict[int, Request] = {}
        last: dict[str, Request] = {}
        for request in kept:
            row: Json = {
                "session_id": f"{trajectory.session_id}:{request.agent_path}",
                "messages": [messages[at] for start, end in request.prompt_spans or () for at in range(start, end)],
                "output_length": self._output(trajectory, request),
            }
            if request.tools_index is not None and tools[request.tools_index]:
                row["tools"] = tools[request.tools_index]
            if request.temperature is not None:
                row["extra"] = {"temperature": request.temperature}
            before = last.get(request.agent_path)
            waits = _waits(trajectory, request, sent, last)
            links = _links(trajectory, request, waits)
            row |= {key: value for key, value in links.items() if key not in ("delay", "tool_wait_ms")}
            if before is not None and before.t_end_us is not None:  # whole, since the chain's own last row
                row["delay"] = max(0, request.sent_us - before.t_end_us) / 1000
            found.append((request.sent_us, row))
            sent[request.request_index] = last[request.agent_path] = request
        return found

    def _output(self, trajectory: Trajectory, request: Request) -> int | None:
        if request.completion_tokens is None and request.answer_index is not None:
            return self._counter.message(trajectory.pool[request.answer_index].message)
        return request.completion_tokens

    def _own_blocks(self, trajectory: Trajectory, request: Request) -> tuple[PromptBlocks | None, str | None]:
        """The blocks of a content-free request as blocks of 512 tokens, or why there are none."""
        size, hashes, tokens = request.block_size, request.block_hashes, request.hashed_tokens
        if not size or hashes is None or not tokens:
            return None, "requests of unknown blocks"
        if BLOCK_SIZE % size:
            return None, f"requests whose blocks do not make up {BLOCK_SIZE} tokens"
        if len(hashes) not in (tokens // size, -(-tokens // size)):
            return None, "requests whose blocks do not cover their input"
        scope = "" if trajectory.hash_scope == "release" else trajectory.session_id
        per = BLOCK_SIZE // size
        ids = [self._numbers.of((scope, value)) for value in hashes[per - 1 : tokens // BLOCK_SIZE * per : per]]
        if tokens % BLOCK_SIZE:
            # What no block covers may be anything: then it is like nothing else.
            whole = len(hashes) * size >= tokens
            ids.append(self._numbers.of((scope, hashes[-1], tokens)) if whole else self._numbers.fresh())
        return PromptBlocks(tokens=tokens, ids=tuple(ids)), None

    def _row(self, trajectory: Trajectory, request: Request, blocks: PromptBlocks, waits: list[Request]) -> Json:
        return {
            "input_length": blocks.tokens,
            "output_length": self._output(trajectory, request),
            "hash_ids": list(blocks.ids),
        } | _links(trajectory, request, waits)


def _links(trajectory: Trajectory, request: Request, waits: list[Request]) -> Json:
    """The keys of agentic Mooncake: what a request is, and what it waited for."""
    row: Json = {
        "request_id": _name(trajectory, request),
        "play_id": trajectory.session_id,
        "model": request.model,
    }
    if request.context_event in ("compaction", "reset"):
        row["prefix_reset"] = True
    if waits:
        row["wait_for"] = [_name(trajectory, one) for one in waits]
        wait_us = max(0, request.sent_us - max(one.t_end_us or 0 for one in waits))
        tool_us = 0
        if request.gap_kind == "tool":
            others = (request.think_us, request.permission_us, request.client_us)
            tool_us = max(0, wait_us - sum(share or 0 for share in others))
        row["delay"] = (wait_us - tool_us) / 1000
        row["tool_wait_ms"] = tool_us / 1000
    return row


def _name(trajectory: Trajectory, request: Request) -> str:
    return f"{trajectory.session_id}:{request.request_index}"


def _waits(
    trajectory: Trajectory, request: Request, sent: dict[int, Request], last: dict[str, Request]
) -> list[Request]:
    """Requests of the file that had to be complete before this one; none where the recording does not tell."""
    before = last.get(request.agent_path)
    if before is None and request.parent_request_index is not None:
        before = sent.get(request.parent_request_index)  # that started this chain
    if before is None or before.t_end_us is None:
        return []
    started = {
        call.request_index
        for call in trajectory.tool_calls
        if call.kind == "subagent" and call.result_request_index == request.request_index
    }
    joined = [
        one
        for path, one in last.items()
        if path.startswith(f"{request.agent_path}/")
        and one.t_end_us is not None
        and before.t_end_us < one.t_end_us <= request.sent_us
        and any(other.agent_path == path and other.parent_request_index in started for other in sent.values())
    ]
    return [before, *joined]
