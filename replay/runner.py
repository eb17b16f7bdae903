"""One play of one agent: its turns in the order of the plan, each request sent, timed and turned into its record."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from replay.answer import Answer, AnswerReader, error_message
from replay.endpoint import Caller
from replay.health import HealthWatch
from replay.plan import Play
from replay.recent import Recent
from replay.record import RequestOutcome, RequestRecord
from replay.rules import History
from replay.script import Turn
from replay.spool import Spool
from replay.window import BACK_OFF_NS
from replay.wire import Timeouts, Wire

READS_PER_SLICE = 256
"""An answer is read in slices of about a quarter of a millisecond, so that other answers' reads are stamped in time."""
LEAD_NS = 100_000_000
"""How long before its intended time a body is prepared."""
PREPARE_AFTER_S = 0.02


class Prepared(Protocol):
    """A request body that is ready to be sent."""

    @property
    def path(self) -> str: ...
    @property
    def body(self) -> bytes: ...


class Script(Protocol):
    """The turns of one session, in order, and their bodies."""

    @property
    def turns(self) -> Sequence[Turn]: ...
    def request(self, turn: Turn, *, salt: str, model: str, said: Mapping[int, str] | None = None) -> Prepared: ...


class Replayable(Protocol):
    """What the driver needs of a plan."""

    def plays(
        self, agent: int, *, agents: int | None = None, start_offset_turns: int = 0, trial: int = 0, draw: int = 0
    ) -> Iterator[Play]: ...
    def script(self, session_id: str) -> Script: ...


@dataclass(slots=True, kw_only=True)
class Track:
    """What all plays of one drive share: the way to the server, the clock, and where records go."""

    caller: Caller
    timeouts: Timeouts
    zero_ns: int
    watch: HealthWatch
    spool: Spool
    trial: int = 0
    worker: int = 0
    history: History = "recorded"
    in_flight: int = 0
    recent: Recent = field(default_factory=Recent)

    def now(self) -> int:
        """Monotonic ns since the trial's zero."""
        return time.monotonic_ns() - self.zero_ns

    async def sleep_until(self, at_ns: int) -> None:
        """Sleep until a time since the trial's zero; never returns early."""
        while (left_ns := at_ns - self.now()) > 0:  # noqa: ASYNC110 - a clock has no event to wait for
            await asyncio.sleep(left_ns / 1e9)


class PlayRunner:
    """One play: sends each turn once everything that it waits for has happened and its delay is over.

    What a turn waits for is the completion of others, or their dispatch: then it goes out while they are in flight.
    """

    def __init__(self, track: Track, play: Play, script: Script, not_before_ns: int) -> None:
        self.track = track
        self.play = play
        self.script = script
        self.turns = script.turns
        self.first = min(play.first_turn, len(self.turns) - 1)
        # Of the play and nothing else, so that a router can tell plays apart and knows no more.
        name = f"{track.trial}:{play.salt}:{play.agent}:{play.play}"
        self.affinity = hashlib.sha256(name.encode()).hexdigest()[:32]
        self.started_at_ns = track.now()
        self.sent = 0
        self.failed = 0
        self.said: dict[int, str] = {}  # what the model answered, by request index; only of a live history
        self.dependents: list[list[int]] = [[] for _ in self.turns]  # on its completion
        self.followers: list[list[int]] = [[] for _ in self.turns]  # on its dispatch
        self.missing = [0] * len(self.turns)  # predecessors of which it still waits for something
        self.ready_at_ns = [self.started_at_ns] * len(self.turns)  # when the last of that happened
        self.triggers = ["start"] * len(self.turns)  # and what it was
        self.not_before_ns = [not_before_ns] * len(self.turns)  # after a failure
        self.back_off_until_ns = 0
        position_of = {turn.request_index: position for position, turn in enumerate(self.turns)}
        for position, turn in enumerate(self.turns):
            for waiting, indices in ((self.dependents, turn.wait_for), (self.followers, turn.wait_for_dispatch)):
                for request_index in indices:
                    before = position_of.get(request_index)
                    if before is None or before >= position:
                        raise ValueError(
                            f"session {play.session_id}: turn {position} waits for request {request_index}, "
                            "which no earlier turn of its script sends"
                        )
                    if before >= self.first:  # what lies before the start counts as done
                        waiting[before].append(position)
                        self.missing[position] += 1

    async def run(self) -> None:
        """Play to the end."""
        roots = [position for position in range(self.first, len(self.turns)) if not self.missing[position]]
        try:
            async with asyncio.TaskGroup() as group:
                for position in roots[1:]:
                    group.create_task(self._chain(position, group))
                await self._chain(roots[0], group)
        except BaseExceptionGroup as faults:
            raise faults.exceptions[0] from None  # one is enough to stop the run, and says where

    async def _chain(self, position: int, group: asyncio.TaskGroup) -> None:
        prepared: Prepared | None = None
        while True:
            successors = self.dependents[position]
            # A turn that follows at once is prepared while its predecessor's answer is under way.
            following = next(
                (
                    successor
                    for successor in successors
                    if self.missing[successor] == 1 and self.turns[successor].delay_us * 1000 < LEAD_NS
                ),
                None,
            )
            if self.track.history == "live":
                following = None  # its prompt will hold the answer
            ahead = _Ahead(self, following)
            try:
                await self._turn(position, prepared, ahead, group)
            finally:
                ahead.cancel()
            ready = [successor for successor in successors if self._nothing_more(successor)]
            if not ready:
                return
            if following in ready:
                ready.remove(following)
                ready.insert(0, following)
            for successor in ready[1:]:
                group.create_task(self._chain(successor, group))
            position = ready[0]
            prepared = ahead.prepared if position == following else None

    def _nothing_more(self, position: int) -> bool:
        """Count one thing that a turn waited for; whether it was the last."""
        self.missing[position] -= 1
        return not self.missing[position]

    def prepare(self, position: int) -> Prepared:
        """The request body of a turn."""
        model = self.track.caller.endpoint.model
        said = self.said if self.track.history == "live" else None
        return self.script.request(self.turns[position], salt=self.play.salt, model=model, said=said)

    async def _turn(self, position: int, prepared: Prepared | None, ahead: _Ahead, group: asyncio.TaskGroup) -> None:
        track, turn = self.track, self.turns[position]
        # An agent that starts in mid-session starts now: nobody waits for a tool that ran before the trial.
        waited = position != self.first
        delay_us = turn.delay_us if waited else 0
        intended_at_ns = max(self.ready_at_ns[position] + delay_us * 1000, self.not_before_ns[position])
        if prepared is None:
            # Not earlier: a thousand agents that wait for their tools would hold a thousand prompts in memory.
            await track.sleep_until(intended_at_ns - LEAD_NS)
            prepared = self.prepare(position)
        await track.sleep_until(intended_at_ns)
        request = _Request(self, position, intended_at_ns, waited=waited)
        track.in_flight += 1
        ahead.start()
        sent_at_ns = track.now()
        for follower in self.followers[position]:
            self._happened(follower, sent_at_ns, "dispatch")
            if self._nothing_more(follower):
                group.create_task(self._chain(follower, group))
        try:
            record = await request.send(prepared)
        except asyncio.CancelledError:
            stopped = request.stopped()
            if stopped is not None:
                track.spool.append(stopped)
            raise
        finally:
            track.in_flight -= 1
        track.spool.append(record)
        track.recent.note(record)
        self.sent += 1
        if request.said is not None:
            self.said[turn.request_index] = request.said
        end_at_ns = record.end_at_ns if record.end_at_ns is not None else track.now()
        if record.outcome != "ok":
            self.failed += 1
            self.back_off_until_ns = end_at_ns + BACK_OFF_NS
        for successor in self.dependents[position]:
            self._happened(successor, end_at_ns, "completion")
            if record.outcome != "ok":
                self.not_before_ns[successor] = max(self.not_before_ns[successor], self.back_off_until_ns)

    def _happened(self, position: int, at_ns: int, trigger: str) -> None:
        """Note one thing that a turn waited for."""
        if self.triggers[position] == "start" or at_ns >= self.ready_at_ns[position]:
            self.ready_at_ns[position] = at_ns
            self.triggers[position] = trigger


class _Ahead:
    """Prepares a body a moment after the request before it has gone out, so as not to hold that one up."""

    def __init__(self, runner: PlayRunner, position: int | None) -> None:
        self._runner = runner
        self._position = position
        self._timer: asyncio.TimerHandle | None = None
        self.prepared: Prepared | None = None

    def start(self) -> None:
        if self._position is not None:
            self._timer = asyncio.get_running_loop().call_later(PREPARE_AFTER_S, self._prepare, self._position)

    def _prepare(self, position: int) -> None:
        # A fault of the plan is raised when the turn's own time comes, where somebody listens.
        with contextlib.suppress(Exception):
            self.prepared = self._runner.prepare(position)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class _Request:
    """One request on its way: sends it and turns what happened into its record."""

    def __init__(self, runner: PlayRunner, position: int, intended_at_ns: int, *, waited: bool) -> None:
        self.runner = runner
        self.server = runner.track.caller.endpoint.server_of(runner.play.agent)
        self.position = position
        self.intended_at_ns = intended_at_ns
        self.waited = waited  # its recorded delay
        self.reader = AnswerReader(keep_text=runner.track.history == "live")
        self.said: str | None = None  # the answer's text, whole and kept
        self.wire = Wire(self.reader.feed)
        self.outcome: RequestOutcome = "ok"
        self.error: str | None = None

    async def send(self, prepared: Prepared) -> RequestRecord:
        track, wire = self.runner.track, self.wire
        track.watch.dispatched(self.intended_at_ns, track.now())
        outcome: RequestOutcome = "ok"
        error: str | None = None
        try:
            await track.caller.collect(
                prepared.path,
                prepared.body,
                wire,
                lane=self.runner.play.agent,
                server=self.server,
                affinity=self.runner.affinity,
                timeouts=track.timeouts,
            )
        except httpx.ConnectError as fault:
            outcome, error = "refused", str(fault)
        except httpx.TimeoutException as fault:
            outcome, error = "timeout", str(fault)
        except httpx.TransportError as fault:
            outcome, error = "cut", str(fault)
        else:
            if wire.status != 200:
                outcome, error = "http_error", error_message(wire.body()) or f"HTTP {wire.status} without a reason"
            elif any(name.lower() == b"content-encoding" for name, _ in wire.headers):
                outcome, error = "stream_error", "the server compressed its answer, though asked not to"
        self.outcome, self.error = outcome, error
        answer = None
        if wire.status == 200:
            answer = await self._read_answer()
            if outcome == "ok":
                self.outcome, self.error = _verdict(answer)
            if self.outcome == "ok":
                self.said = answer.text
        return self._record(answer)

    async def _read_answer(self) -> Answer:
        wire = self.wire
        while wire.data:  # what came since the transport last handed over
            wire.hand_over(READS_PER_SLICE)
            if wire.data:
                await asyncio.sleep(0)
        return self.reader.close()

    def stopped(self) -> RequestRecord | None:
        """The record after a cancellation; None when the transport had not been given the request yet.

        A request that still waited for its connection was due: left out, a server that accepts nobody would look fast.
        """
        wire = self.wire
        if wire.asked_at_ns is None:
            return None
        if wire.end_at_ns is None:
            self.outcome, self.error = "stopped", None
        answer = None
        if wire.status == 200:
            wire.hand_over()
            answer = self.reader.close()
        if answer is not None and self.outcome == "ok":
            self.outcome, self.error = _verdict(answer)  # it was complete; only its reading was interrupted
        return self._record(answer)

    def _record(self, answer: Answer | None) -> RequestRecord:
        wire, play, turn = self.wire, self.runner.play, self.runner.turns[self.position]
        zero_ns = self.runner.track.zero_ns

        def since_zero(at_ns: int | None) -> int | None:
            return None if at_ns is None else at_ns - zero_ns

        sent_at_ns = wire.sent_at_ns if wire.sent_at_ns is not None else wire.asked_at_ns
        if wire.redialled_from_ns is not None:
            # From the first sending on: a server that takes a request, waits and hangs up is not faster for it.
            sent_at_ns = wire.redialled_from_ns
        end_at_ns = wire.end_at_ns
        if end_at_ns is None and self.outcome != "stopped":
            end_at_ns = time.monotonic_ns()
        assert sent_at_ns is not None
        return RequestRecord(
            agent=play.agent,
            play=play.play,
            session_id=play.session_id,
            request_index=turn.request_index,
            turn=self.position,
            salt=play.salt,
            intended_at_ns=self.intended_at_ns,
            sent_at_ns=sent_at_ns - zero_ns,
            written_at_ns=since_zero(wire.written_at_ns),
            headers_at_ns=since_zero(wire.headers_at_ns),
            first_byte_at_ns=since_zero(wire.first_byte_at_ns()),
            first_content_at_ns=since_zero(answer.first_content_at_ns) if answer else None,
            last_content_at_ns=since_zero(answer.last_content_at_ns) if answer else None,
            end_at_ns=since_zero(end_at_ns),
            status=wire.status,
            outcome=self.outcome,
            error=None if self.error is None else self.runner.track.caller.quoted(self.error),
            reused_connection=wire.reused_connection,
            recorded_prompt_tokens=turn.recorded_prompt_tokens,
            planned_prompt_tokens=turn.planned_prompt_tokens,
            prompt_tokens=answer.prompt_tokens if answer else None,
            cached_tokens=answer.cached_tokens if answer else None,
            planned_output_tokens=turn.output_tokens,
            completion_tokens=answer.completion_tokens if answer else None,
            reasoning_tokens=answer.reasoning_tokens if answer else None,
            finish_reason=answer.finish_reason if answer else None,
            delay_us=turn.delay_us if self.waited else 0,
            delay_kind=turn.delay_kind,
            tool_delay_us=turn.tool_delay_us if self.waited else 0,
            human_delay_us=turn.human_delay_us if self.waited else 0,
            delay_rule=turn.delay_rule if self.waited else "none",
            trigger=self.runner.triggers[self.position],
            distinct_share=answer.distinct_share if answer else None,
            content_bytes=answer.content_bytes if answer else None,
            bytes_up=wire.bytes_up,
            bytes_down=wire.bytes_down(),
            reads=wire.read_count(),
            events=answer.events if answer else 0,
            content_events=answer.content_events if answer else 0,
            content_gaps_us=answer.content_gaps_us if answer else (),
            redialled=wire.redialled_from_ns is not None,
            server=self.server,
            worker=self.runner.track.worker,
        )


def _verdict(answer: Answer) -> tuple[RequestOutcome, str | None]:
    if answer.error is not None:
        return "stream_error", answer.error
    if not answer.events:
        return "stream_error", "the answer is not an event stream"
    if not answer.ended:
        return "cut", "the stream ended without a finish reason or [DONE]"
    return "ok", None
