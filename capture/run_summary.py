"""What a run recorded, in a few lines, and what in it looks wrong."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from capture.agents.agent import Agent
from capture.call import ModelCall
from capture.exchange import Exchange
from capture.otlp import is_telemetry
from capture.reader import JournalReader
from capture.store import Store

_READ_S = 5.0  # longer than this nobody waits for a summary
_LONG_NS = 1_500_000_000  # a stream that took this long and had its content within a twentieth of it was held back
_MANY_EVENTS = 20
_JUMP_US = 2_000_000

_FORWARD_ADVICE = (
    "does it heed HTTPS_PROXY (Node.js before 22.21 does not by itself), and is its model host a known one? "
    "`--host HOST` adds one, and `--mode reverse` needs no proxy"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Counts and sentences."""

    head: str
    warnings: tuple[str, ...]
    journals: tuple[Path, ...]

    def lines(self, *, quiet: bool) -> tuple[str, ...]:
        """What to say: quiet, only what looks wrong."""
        return self.warnings if quiet else (self.head, *self.warnings)


def summarise(
    store: Store, label: str, agent: Agent, *, before: Collection[Path], restarts: int = 0, relayed: int | None = None
) -> RunSummary:
    """Look at the journals that carry a label; none of those that were there `before` does."""
    look = Look(agent)
    journals = list(_journals(store, label, before))
    deadline = time.monotonic() + _READ_S
    whole = True
    for path in journals:
        with JournalReader(path) as reader:
            look.forward = reader.meta.get("launch_mode") == "forward"
            tally = reader.tally()
            look.gaps += tally.gaps
            look.skipped += tally.skipped
            for exchange in reader.exchanges():
                look.take(exchange)
                if time.monotonic() > deadline:
                    whole = False
                    break
            look.problems += reader.problems
    return RunSummary(
        head=look.head(store, whole=whole),
        warnings=tuple(_restart_words(restarts, relayed) + look.warnings()),
        journals=tuple(journals),
    )


def _journals(store: Store, label: str, before: Collection[Path]) -> Iterator[Path]:
    # Of a store with thousands of journals only the last few are opened. By name: the clock may be set meanwhile.
    for path in sorted({*store.journals()}.difference(before)):
        with JournalReader(path) as reader:
            if reader.meta.get("label") == label:
                yield path


def _restart_words(restarts: int, relayed: int | None) -> list[str]:
    words = []
    if restarts:
        words.append(
            f"the recorder was started again {count(restarts, 'time')}; calls under way just then are incomplete"
        )
    if relayed is not None:
        words.append(
            f"the recorder could not be started again: from then on {count(relayed, 'request')} passed unrecorded; "
            "the gap is marked"
        )
    return words


class Look:
    """Counts while exchanges go by."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.forward = False
        self.exchanges = self.gaps = self.skipped = 0
        self.problems: list[str] = []
        self._calls: list[ModelCall] = []
        self._unread: Counter[str] = Counter()
        self._paths: Counter[str] = Counter()
        self._refused_sockets = 0
        self._telemetry = 0
        self._failed = 0
        self._offsets: list[int] = []

    def take(self, exchange: Exchange) -> None:
        from capture.dialect import read_calls, why_unread

        if is_telemetry(exchange):
            self._telemetry += 1
            return
        self.exchanges += 1
        self._paths[exchange.path.partition("?")[0]] += 1
        self._offsets.append(exchange.wall_offset_us)
        if (exchange.request_header("upgrade") or "").lower() == "websocket" and exchange.status != 101:
            self._refused_sockets += 1
            return
        calls = read_calls(exchange)
        self._calls += calls
        if not calls and (reason := why_unread(exchange)) is not None:
            self._unread[reason] += 1

    def head(self, store: Store, *, whole: bool) -> str:
        from capture.assemble import assemble

        models = Counter(call.model for call in self._calls)
        apis = Counter(call.api for call in self._calls)
        names = ", ".join(f"{name or 'no model named'} {number}" for name, number in models.most_common(4))
        sessions = f" in {count(len(assemble(self._calls, store.key)), 'session')}" if self._calls else ""
        by = f" ({names}; {', '.join(apis)})" if self._calls else ""
        part = "" if whole else " among the first of a long recording"
        return (
            f"{count(self.exchanges, 'exchange')}, {count(len(self._calls), 'model call')}{sessions}{by}{part}, "
            f"{count(self.gaps, 'gap')}; store {store.path}"
        )

    def warnings(self) -> list[str]:
        """What looks wrong, the worst first."""
        found = list(self.problems)
        if not self._calls:
            found.append(self._no_calls())
        if self.gaps:
            found.append(f"{count(self.gaps, 'gap')}: parts of the recording are missing and marked so")
        if self.skipped:
            found.append(f"{count(self.skipped, 'request')} not written, because recording was paused or excluded them")
        for reason, number in self._unread.most_common(2):
            found.append(f"{count(number, 'exchange')} kept but not read: {reason}")
        held = [call for call in self._calls if _is_held(call)]
        if held:
            found.append(
                f"{len(held)} of {len(self._calls)} answers came in one piece at their end: something upstream "
                "buffers the stream, and times to first token are not the model's"
            )
        if self._refused_sockets:
            found.append(
                f"{count(self._refused_sockets, 'WebSocket')} refused by the upstream; the agent went on by HTTP"
                if self._calls
                else f"{count(self._refused_sockets, 'WebSocket')} refused by the upstream"
            )
        failed = Counter(str(call.status or "no answer") for call in self._calls if call.error is not None)
        if failed:
            kinds = ", ".join(f"{status} {number}" for status, number in failed.most_common(3))
            found.append(f"{count(failed.total(), 'call')} failed ({kinds}); retries of them are marked")
        if any(abs(later - before) > _JUMP_US for before, later in zip(self._offsets, self._offsets[1:], strict=False)):
            found.append("the wall clock jumped, by sleep or by hand: times between calls around it are flagged")
        if self._lacks_tool_times():
            found.append(
                f"{self.agent.title} declared no tool times: they are gaps on the wire then (it does so since 2.1.273)"
            )
        return found

    def _no_calls(self) -> str:
        advice = _FORWARD_ADVICE if self.forward else self.agent.advice
        listed = [path for path in self._paths if path.endswith("/models")]
        if listed:
            return f"only a list of models was asked for, no model call came: {advice}"
        return f"no model call passed the recorder: {advice}"

    def _lacks_tool_times(self) -> bool:
        if not self.agent.declares_tool_times or self._telemetry:
            return False
        # Its first request of a prompt declares none, so one request with results proves nothing.
        carried = [call for call in self._calls if any(it.role == "tool" for it in call.messages[-1:])]
        return len(carried) > 1 and not any(call.tool_durations_ms or call.tool_times for call in self._calls)


def _is_held(call: ModelCall) -> bool:
    """Whether a streamed answer of some length had all its content in its last moments."""
    if not call.stream or call.t_end_ns is None or call.t_first_content_ns is None or call.t_last_content_ns is None:
        return False
    took = call.t_end_ns - call.t_send_ns
    return (
        took > _LONG_NS
        and len(call.content_at_ns) >= _MANY_EVENTS
        and call.t_last_content_ns - call.t_first_content_ns < took // 20
    )


def count(number: int, noun: str) -> str:
    """`1 gap`, `2 gaps`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
