"""Trajectories written by hand, with and without text, and datasets built from them."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from capture.call import Message, Tool, ToolUse
from capture.trajectory import CaptureQuality, PooledMessage, Request, ToolCall, Trajectory
from curate.build import BuildProgress, BuildReport, build_sources
from curate.labels import Label
from curate.recipe import Recipe, Statistics
from curate.redact import Redactor
from curate.source import Source


def any_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an annotation as the border types use them; integers fit 31 bits, floats are finite."""
    if isinstance(kind, typing.TypeAliasType):
        return any_of(kind.__value__)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{field.name: any_of(hints[field.name]) for field in dataclasses.fields(kind)})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(any_of(argument) for argument in arguments))
    if origin is collections.abc.Sequence or (origin is tuple and arguments[-1] is Ellipsis):
        return st.lists(any_of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(any_of(argument) for argument in arguments))
    return {
        int: st.integers(0, 2**31 - 1),
        str: st.text(max_size=12),
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        types.NoneType: st.none(),
    }[kind]


def pooled(message: Message, request_index: int, *, path: str = "main", answer: bool = False) -> PooledMessage:
    return PooledMessage(
        message=message, agent_path=path, request_index=request_index, t_us=request_index * 1_000_000, answer=answer
    )


def request(index: int, **changes: Any) -> Request:
    """A successful request of the main chain, two seconds long, sent every ten seconds."""
    values: dict[str, Any] = {
        "request_index": index,
        "agent_path": "main",
        "parent_request_index": index - 1 if index else None,
        "link": "echo" if index else "none",
        "api": "openai.chat",
        "model": "model-a",
        "stream": True,
        "status": 200,
        "error": None,
        "retry_of": None,
        "t_send_us": index * 10_000_000,
        "t_headers_us": index * 10_000_000 + 100_000,
        "t_first_byte_us": index * 10_000_000 + 110_000,
        "t_first_token_us": index * 10_000_000 + 200_000,
        "t_last_token_us": index * 10_000_000 + 1_900_000,
        "t_end_us": index * 10_000_000 + 2_000_000,
        "gap_us": 8_000_000 if index else None,
        "gap_kind": "tool" if index else "none",
        "think_us": 0 if index else None,
        "prompt_spans": None,
        "answer_index": None,
        "context_event": "append",
        "prompt_tokens": 1000 * (index + 1),
        "cache_read_tokens": 1000 * index,
        "cache_write_tokens": None,
        "completion_tokens": 50,
        "reasoning_tokens": None,
        "system_tokens": None,
        "tools_tokens": None,
        "max_tokens": 4096,
        "temperature": 0.7,
        "effort": None,
        "stop": "tool_calls",
        "new_input": ("text",),
        "tool_call_ids": (),
        "block_size": None,
        "block_hashes": None,
        "bytes_up": 4000,
        "bytes_down": 900,
        "sse_events": 20,
        "itl_us": (20_000, 21_000),
        "exchange_id": f"journal-1/{index}",
        "tools_index": 0,
    }
    return Request(**{**values, **changes})


TOOLS = (
    Tool(name="bash", description="Run a command", parameters='{"type": "object"}'),
    Tool(name="task", description="Start a sub-agent", parameters='{"type": "object"}'),
)


def text_session(session_id: str = "session-a", *, secret: str = "", turns: int = 3) -> Trajectory:
    """A main chain of some turns with a sub-agent of one, tools and text."""
    system = Message(role="system", content="You are a coding agent.")
    pool = [pooled(system, 0), pooled(Message(role="user", content=f"Fix the build. {secret}"), 0)]
    requests, calls = [], []
    for turn in range(turns):
        call_id = f"call-{turn}"
        prompt_end = len(pool)
        arguments = f'{{"command": "make {turn}", "path": "src/part{turn}.py"}}'
        use = ToolUse(id=call_id, name="bash", arguments=arguments, t_emitted_ns=5)
        answer = Message(role="assistant", content="", reasoning_content="Look first.", tool_calls=(use,))
        requests.append(
            request(
                turn,
                prompt_spans=((0, prompt_end),),
                answer_index=prompt_end,
                tool_call_ids=(call_id,),
                new_input=("text",) if turn == 0 else ("tool_result",),
                new_output=("thinking", "tool_use"),
            )
        )
        pool.append(pooled(answer, turn, answer=True))
        result = Message(
            role="tool", tool_call_id=call_id, content=f"error in part {turn} {secret}", is_error=turn == 1
        )
        pool.append(pooled(result, turn + 1))
        last = turn == turns - 1
        calls.append(
            ToolCall(
                tool_call_id=call_id,
                agent_path="main",
                request_index=turn,
                result_request_index=None if last else turn + 1,
                name="bash",
                kind="exec",
                t_emitted_us=turn * 10_000_000 + 1_950_000,
                t_result_us=None if last else (turn + 1) * 10_000_000,
                wall_us=None if last else 8_000_000,
                internal_us=7_500_000 if turn == 0 else None,
                parallel_group=turn,
                result_bytes=20,
                is_error=turn == 1,
                exit_code=2 if turn == 1 else 0,
                timed_out=False,
                mixed=False,
            )
        )
    start = len(pool)
    pool.append(pooled(Message(role="system", content="You are a sub-agent."), turns, path="main/1"))
    pool.append(pooled(Message(role="user", content="Search the tree."), turns, path="main/1"))
    pool.append(pooled(Message(role="assistant", content="Found it."), turns, path="main/1", answer=True))
    requests.append(
        request(
            turns,
            agent_path="main/1",
            parent_request_index=0,
            model="model-b",
            gap_kind="spawn",
            gap_us=None,
            t_send_us=500_000,
            t_headers_us=600_000,
            t_first_byte_us=610_000,
            t_first_token_us=700_000,
            t_last_token_us=2_400_000,
            t_end_us=2_500_000,
            prompt_spans=((start, start + 2),),
            answer_index=start + 2,
            tools_index=1,
            context_event="branch",
            prompt_tokens=None,
            cache_read_tokens=None,
        )
    )
    return Trajectory(
        session_id=session_id,
        source="wire",
        source_ref="/home/somebody/store/journal-1.sqlite",
        harness="codex",
        harness_version="1.2.3",
        t0_utc_us=1_760_000_000_123_456,
        models=("model-a", "model-b"),
        pool=tuple(pool),
        tool_sets=(TOOLS, (TOOLS[0],)),
        requests=tuple(requests),
        tool_calls=tuple(calls),
        duration_us=turns * 10_000_000,
        api_us=turns * 2_000_000,
        tool_us=(turns - 1) * 8_000_000,
        human_us=0,
        num_user_messages=1,
        num_subagents=1,
        num_compactions=0,
        hash_scope=None,
        token_source="provider",
        tokenizer=None,
        license=None,
        quality=CaptureQuality(complete=True, gaps=0, clock_err_us=40, body_missing=0),
    )


def content_free_session(session_id: str = "session-f", *, turns: int = 3) -> Trajectory:
    """A session of block hashes, each prompt two blocks longer than the one before."""
    requests = tuple(
        request(
            turn,
            block_size=64,
            block_hashes=tuple(range(1, 2 * turn + 4)),
            prompt_tokens=64 * (2 * turn + 3) + 5,
            cache_read_tokens=None,
            system_tokens=70,
            tools_tokens=30,
            tools_index=None,
            exchange_id=None,
            itl_us=None,
        )
        for turn in range(turns)
    )
    return dataclasses.replace(
        text_session(session_id),
        source="weka",
        source_ref="trace_0001.json",
        license="Apache-2.0",
        models=("model-a",),
        pool=(),
        tool_sets=(),
        requests=requests,
        tool_calls=(),
        hash_scope="session",
        num_subagents=0,
        num_user_messages=None,
        human_us=None,
        t0_utc_us=None,
    )


KEY = b"k" * 32
NO_PLOTS = Recipe(statistics=Statistics(plots=False))


def source(
    sessions: Iterable[Trajectory], problems: tuple[str, ...] = (), store_id: str = "store-a", key: bytes = KEY
) -> Source:
    def read(found: list[str]) -> Iterator[Trajectory]:
        yield from sessions
        found.extend(problems)

    return Source(store_id=store_id, key=key, sessions=read, redactor=Redactor(key=key), rules="rules")


def make(
    sessions: Iterable[Trajectory],
    out: Path,
    *,
    problems: tuple[str, ...] = (),
    jobs: int = 1,
    store_id: str = "store-a",
    tokenizer: str = "o200k_base",
    on_progress: Callable[[BuildProgress], None] | None = None,
    recipe: Recipe | None = None,
    previous: Path | None = None,
    labels: Mapping[str, Label] | None = None,
    plots: bool = False,
) -> BuildReport:
    """Build a dataset; without plots unless asked for, since they take most of the time."""
    recipe = recipe or Recipe()
    recipe = dataclasses.replace(recipe, statistics=dataclasses.replace(recipe.statistics, plots=plots))
    return build_sources(
        [source(sessions, problems, store_id)],
        out,
        tokenizer=tokenizer,
        jobs=jobs,
        on_progress=on_progress,
        recipe=recipe,
        previous=previous,
        labels=labels,
    )


def seven() -> list[Trajectory]:
    return [text_session(f"session-{n}", turns=n + 1) for n in range(6)] + [content_free_session()]
