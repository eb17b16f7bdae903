"""What a run looks like while it goes on: a line per trial on stderr, and a few that move."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from curate.words import printable
from replay.judge import Judged
from replay.labels import scope_words
from replay.protocol import Progress, Protocol
from replay.runfolder import RunInputs
from replay.score import Watcher, search_trials
from replay.sentence import count, share, value
from replay.trial import TrialOrder

PURPOSES = {
    "bracket": "doubling to bracket the answer",
    "bisect": "closing in on the answer",
    "confirm": "confirming around the answer",
    "holdout": "holding out the certified level",
    "run": "one trial",
}
REFRESH_S = 0.5  # drawing takes the measuring loop's time
LINE_EVERY_S = 60.0  # of a trial that goes on, where the output is no terminal
_STYLES = {"met": "green", "missed": "yellow", "invalid": "red"}


class LiveWatcher(Watcher):
    """Talks on stderr. Where that is no terminal: a line a trial, and one a minute while it goes on."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._live = Live(console=self._console, transient=True, auto_refresh=False)
        self._protocol: Protocol | None = None
        self._order: TrialOrder | None = None
        self._ahead: tuple[int, int] | None = None  # trials of the whole search, at least and at most
        self._done = 0
        self._took_s: list[float] = []
        self._began_s = 0.0
        self._shown_s = -math.inf

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._show(Text(""))
        self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(Text(printable(text)), soft_wrap=True)

    def run_begins(self, inputs: RunInputs) -> None:
        self._ahead = search_trials(inputs.rules, len(inputs.slos)) if inputs.rules is not None else None

    def trial_begins(self, order: TrialOrder, protocol: Protocol) -> None:
        self._order, self._protocol, self._began_s = order, protocol, self._clock()
        if not self._live.is_started:
            self._shown_s = self._began_s
        self._show(Text(self._title()))

    def progress(self, progress: Progress) -> None:
        protocol = self._protocol
        if protocol is None or self._order is None:
            return
        moves = self._live.is_started
        if self._clock() - self._shown_s < (REFRESH_S if moves else LINE_EVERY_S):
            return
        phase, part = phase_of(protocol, progress)
        numbers = [
            f"speed P25 {value(progress.p25_output_tok_s, 'tok/s')}" if progress.p25_output_tok_s is not None else None,
            f"first token P95 {value(progress.p95_ttft_s, 's')}" if progress.p95_ttft_s is not None else None,
            value(progress.watts, "W") if progress.watts is not None else None,
            f"{progress.in_flight:,} in flight",
            count(progress.requests, "request"),
            count(progress.finished_trajectories, "trajectory", "trajectories"),
        ]
        left = self._left(protocol, progress)
        if not moves:
            self._shown_s = self._clock()
            self.say(" · ".join((self._title(), phase, *(text for text in numbers if text), left)))
            return
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=1, completed=part, width=28), Text(phase))
        self._show(
            Group(
                Text(self._title(), style="bold"),
                bar,
                Text(" · ".join(text for text in numbers if text)),
                Text(left, style="dim"),
            )
        )

    def trial_ends(self, judged: Judged, reused: bool) -> None:
        self._done += 1
        if not reused:
            self._took_s.append(self._clock() - self._began_s)
        numbers = judged.measure
        line = Text(f"trial {judged.trial}, {judged.purpose}: {count(judged.agents, 'agent')} ")
        verdicts = [(result.slo, result.verdict) for result in numbers.slos] or [("", numbers.verdict)]
        for place, (slo, verdict) in enumerate(verdicts):
            name = f" {slo}" if len(verdicts) > 1 else ""
            line.append(f"{', ' if place else ''}{verdict}{name}", _STYLES.get(verdict, ""))
        line.append(
            f" · {count(numbers.requests, 'request')} in {numbers.window_s:.0f} s · speed P25 "
            f"{value(numbers.speed_tok_s.p25, 'tok/s')} · first token P95 {value(numbers.ttft_s.p95, 's')}"
            f" · agents wait {share(numbers.duty_cycle)}{_power_words(judged)}{' · reused' if reused else ''}"
        )
        self._console.print(line, soft_wrap=True)
        reasons = [*numbers.invalid_reasons, *(reason for result in numbers.slos for reason in result.reasons)]
        for reason in dict.fromkeys(reasons):
            self._console.print(Text(printable(f"  {reason}")), soft_wrap=True)

    def _show(self, what: Text | Group) -> None:
        if self._live.is_started:
            self._shown_s = self._clock()
            self._live.update(what, refresh=True)

    def _title(self) -> str:
        order = self._order
        assert order is not None
        number = f"trial {order.trial}"
        if self._ahead is not None:
            number += f" of {max(order.trial, self._ahead[0])} to {max(order.trial, self._ahead[1])}"
        return f"{number} · {count(order.agents, 'agent')} · {PURPOSES[order.purpose]}"

    def _left(self, protocol: Protocol, progress: Progress) -> str:
        assert self._order is not None
        if protocol.name == "once":
            return f"{progress.elapsed_s:.0f} s so far"
        expected_s = protocol.shortest_s(self._order.agents)
        rest_s = max(0.0, expected_s - progress.elapsed_s)
        trial = f"about {duration(rest_s)} left of this trial" if rest_s > 0 else "waiting for the trial's minimums"
        if self._ahead is None:
            return trial
        each_s = sum(self._took_s) / len(self._took_s) if self._took_s else expected_s
        fewest, most = (max(0, number - self._done - 1) * each_s + rest_s for number in self._ahead)
        return f"{trial}; of the search {duration(fewest)} to {duration(most)}"


def _power_words(judged: Judged) -> str:
    """Mean power of the first scope; where it is not known, that it is not, since no score per megawatt follows."""
    if not judged.power:
        return ""
    total = judged.power[0]
    scope = scope_words(total.scope)
    if not total.valid:
        return f" · no power of {scope}: {printable(total.reasons[0] if total.reasons else 'unknown')}"
    pm = f" ± {value(total.power_u_w)}" if total.power_u_w else ""
    return f" · {value(total.power_w)}{pm} W {scope}{'' if total.measured else ', declared'}"


def phase_of(protocol: Protocol, progress: Progress) -> tuple[str, float]:
    """Where a trial stands, in words and as a share of its shortest length."""
    part = min(1.0, progress.elapsed_s / max(1e-9, protocol.shortest_s(progress.agents)))
    if progress.measured_s > 0:
        if protocol.name == "once":
            return f"measured {progress.measured_s:.0f} s", part
        return f"measured {progress.measured_s:.0f} of {protocol.min_measure_s:.0f} s", part
    started = min(progress.agents, 1 + math.floor(progress.elapsed_s * protocol.ramp_per_s))
    if started < progress.agents:
        return f"starting agents, {started} of {progress.agents}", part
    return f"settling, {progress.elapsed_s:.0f} s since the start", part


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
