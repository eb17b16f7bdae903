"""Trials on a virtual clock: agents that work in a loop against a server whose behaviour is a function.

Every number here is *simulated*. A behaviour takes what an honest server would have sent and changes it.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from replay.measure import Measure, measure
from replay.protocol import FULL
from replay.record import RequestOutcome, RequestRecord
from replay.slo import Slo, Term
from replay.void import LateWindow
from replay.window import Window

SETTLE_S = 20.0


def level(speed: float = 25.0, ttft: float = 5.0) -> Slo:
    return Slo(
        name="test",
        version="1",
        terms=(
            Term(quantity="output_tok_s", percentile=25.0, limit=speed),
            Term(quantity="ttft_s", percentile=95.0, limit=ttft),
        ),
        protocol=FULL,
        note="",
    )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as the server sees it."""

    number: int
    at_s: float
    tokens: int
    prompt_tokens: int
    fresh_tokens: int


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server sends: when each content event is read, on the trial's clock."""

    content_s: tuple[float, ...]
    events_per_read: bool = True
    completion_tokens: int | None
    prompt_tokens: int
    outcome: RequestOutcome = "ok"
    status: int = 200
    error: str | None = None
    distinct_share: float = 0.6
    bytes_per_event: int = 4


type Behaviour = Callable[[Asked, Reply], Reply]


def honest(asked: Asked, reply: Reply) -> Reply:
    return reply


@dataclass(kw_only=True)
class VirtualTrial:
    """Agents in a loop: a turn, a delay, the next turn; contexts grow, sessions end and new ones begin."""

    behaviour: Behaviour = honest
    agents: int = 12
    measure_s: float = 300.0
    speed: float = 40.0  # of every stream, on average
    seed: int = 1
    records: list[RequestRecord] = field(default_factory=list)

    @property
    def phase(self) -> Window:
        return Window(start_ns=round(SETTLE_S * 1e9), end_ns=round((SETTLE_S + self.measure_s) * 1e9))

    def run(self) -> list[RequestRecord]:
        end_s = SETTLE_S + self.measure_s
        start = random.Random(self.seed)
        due = [(start.uniform(0, 10), agent, 0, start.randrange(8), 0.0) for agent in range(self.agents)]
        heapq.heapify(due)
        while due:
            at_s, agent, play, turn, delay_s = heapq.heappop(due)
            if at_s >= end_s:
                continue
            # Of the request, not of its order: another behaviour sees the same ones.
            draw = random.Random(f"{self.seed}/{agent}/{play}/{turn}")
            fresh = draw.randint(200, 2000) if turn else 6000
            asked = Asked(
                number=len(self.records) + 1,
                at_s=at_s,
                tokens=min(600, max(16, round(draw.lognormvariate(4.5, 0.8)))),
                prompt_tokens=6000 + 1100 * turn,
                fresh_tokens=fresh,
            )
            reply = self.behaviour(asked, self._reply(asked, draw))
            record = self._record(asked, reply, agent, play, turn, delay_s)
            self.records.append(record)
            if record.end_at_ns is None:
                continue
            done_s = record.end_at_ns / 1e9 + (0 if record.outcome == "ok" else 1)
            delay_s = draw.expovariate(1 / 2.0)
            turn += 1
            if turn == 12:
                play, turn = play + 1, 0
            heapq.heappush(due, (done_s + delay_s, agent, play, turn, delay_s))
        return self.records

    def _reply(self, asked: Asked, draw: random.Random) -> Reply:
        first = asked.at_s + 0.2 + asked.fresh_tokens / 5000 * draw.lognormvariate(0, 0.3)
        pace = draw.lognormvariate(0, 0.1) / self.speed
        times = [first]
        for _ in range(asked.tokens - 1):
            times.append(times[-1] + pace * draw.uniform(0.6, 1.4))
        return Reply(content_s=tuple(times), completion_tokens=asked.tokens, prompt_tokens=asked.prompt_tokens)

    def _record(self, asked: Asked, reply: Reply, agent: int, play: int, turn: int, delay_s: float) -> RequestRecord:
        end_s = SETTLE_S + self.measure_s
        content = [round(at * 1e9) for at in reply.content_s]
        last_s = reply.content_s[-1] if content else asked.at_s + 0.1
        values: dict[str, Any] = {"outcome": reply.outcome, "completion_tokens": reply.completion_tokens}
        values["end_at_ns"] = round(last_s * 1e9)
        if last_s >= end_s:
            content = [at for at in content if at < round(end_s * 1e9)]
            values = {"outcome": "stopped", "completion_tokens": None, "end_at_ns": None}
        sent_ns = round(asked.at_s * 1e9)
        return RequestRecord(
            agent=agent,
            play=play,
            session_id=f"s{agent}",
            request_index=turn,
            turn=turn,
            salt="",
            intended_at_ns=sent_ns,
            sent_at_ns=sent_ns,
            written_at_ns=sent_ns,
            headers_at_ns=sent_ns,
            first_byte_at_ns=content[0] if content else None,
            first_content_at_ns=content[0] if content else None,
            last_content_at_ns=content[-1] if content else None,
            status=reply.status,
            error=reply.error,
            reused_connection=True,
            recorded_prompt_tokens=asked.prompt_tokens,
            planned_prompt_tokens=asked.prompt_tokens,
            prompt_tokens=reply.prompt_tokens,
            cached_tokens=asked.prompt_tokens - asked.fresh_tokens,
            planned_output_tokens=asked.tokens,
            reasoning_tokens=None,
            finish_reason="length",
            delay_us=round(delay_s * 1e6),
            delay_kind="tool",
            bytes_up=4 * asked.prompt_tokens,
            bytes_down=200 * len(content),
            reads=len(set(content)),
            events=len(content) + 2,
            content_events=len(content),
            content_gaps_us=tuple((b - a) // 1000 for a, b in itertools.pairwise(content)),
            ideal_cached_share=1 - asked.fresh_tokens / asked.prompt_tokens,
            distinct_share=reply.distinct_share,
            content_bytes=reply.bytes_per_event * len(content),
            **values,
        )

    def judge(self, slo: Slo | None = None, **changes: Any) -> Measure:
        """The measure of the trial; runs it first."""
        records = self.records or self.run()
        values: dict[str, Any] = {
            "agents": self.agents,
            "slos": (slo or level(),),
            "exact_length": True,
            "longest_delay_s": None,
            **changes,
        }
        return measure(records, self.phase, **values)


def late(trial: VirtualTrial, start_s: float, end_s: float, by_s: float) -> tuple[list[RequestRecord], LateWindow]:
    """The trial as a client saw it that was late by so much between two moments, and the window that says so."""

    def seen(at_ns: int | None) -> int | None:
        inside = at_ns is not None and start_s <= at_ns / 1e9 < end_s
        return at_ns + round(by_s * 1e9) if inside and at_ns is not None else at_ns

    records = [
        replace(
            record,
            sent_at_ns=seen(record.sent_at_ns) or record.sent_at_ns,
            first_content_at_ns=seen(record.first_content_at_ns),
            last_content_at_ns=seen(record.last_content_at_ns),
        )
        for record in trial.records or trial.run()
    ]
    window = LateWindow(
        start_ns=round(start_s * 1e9), end_ns=round(end_s * 1e9), why=f"loop lag {1000 * by_s:.0f} ms (99th percentile)"
    )
    return records, window
