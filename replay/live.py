"""What a run looks like while it goes on: a line per trial on stderr, and one that moves."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from replay.judge import Judged
from replay.protocol import Progress, Protocol
from replay.score import Watcher
from replay.summary import value


class LiveWatcher(Watcher):
    """Talks on stderr. Where that is no terminal, only finished lines are printed."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, transient=True, refresh_per_second=5)
        self._protocol: Protocol | None = None
        self._trial = 0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.update(Text(""))
        self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def trial_begins(self, trial: int, agents: int, protocol: Protocol) -> None:
        self._protocol, self._trial = protocol, trial
        self._live.update(Text(f"trial {trial}: {agents} agents"))

    def progress(self, progress: Progress) -> None:
        protocol = self._protocol
        assert protocol is not None
        if progress.measured_s > 0:
            phase = f"measured {progress.measured_s:.0f} s"
            if protocol.name != "once":
                phase += f" of {protocol.min_measure_s:.0f} s"
        elif progress.elapsed_s * protocol.ramp_per_s < progress.agents - 1:
            phase = f"starting agents, {progress.elapsed_s:.0f} s"
        else:
            phase = f"settling, {progress.elapsed_s:.0f} s"
        self._live.update(
            Text(
                f"trial {self._trial}: {progress.agents} agents · {phase} · {progress.requests} requests, "
                f"{progress.in_flight} in flight · {progress.finished_trajectories} trajectories done"
            )
        )

    def trial_ends(self, judged: Judged, reused: bool) -> None:
        numbers = judged.measure
        style = {"met": "green", "missed": "yellow", "invalid": "red"}[numbers.verdict]
        line = Text.assemble(
            f"trial {judged.trial}: {judged.agents} agents ",
            (numbers.verdict, style),
            f" · {numbers.requests} requests in {numbers.window_s:.0f} s · speed P25 "
            f"{value(numbers.speed_tok_s.p25, 'tok/s')} · first token P95 {value(numbers.ttft_s.p95, 's')}",
            " · reused" if reused else "",
        )
        self._console.print(line, soft_wrap=True)
        for reason in numbers.reasons:
            self._console.print(Text(f"  {reason}"), soft_wrap=True)
