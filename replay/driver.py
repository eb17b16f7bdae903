"""What a run asks of the world outside: probe a server, drive a trial, restart it. Tests put a simulation here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from replay import loop
from replay.canary import CanaryResult, run_canary
from replay.plan import Plan
from replay.power.source import PowerSource
from replay.probe import ProbeReport, probe
from replay.protocol import Progress
from replay.protocol import Protocol as TrialProtocol
from replay.restart import restart
from replay.trial import Restart, TrialOrder, records_since_restart, run_trial

if TYPE_CHECKING:
    from replay.request import RunRequest
    from replay.selftest import SelfTest


class Driver(Protocol):
    """Everything of a run that touches a server, a clock or a power meter."""

    def probe(self) -> ProbeReport:
        """What the server honours; raises EndpointError."""

    def client_limit(self, *, tok_s: float, prompt_bytes: int, most: int) -> SelfTest | None:
        """How many agents, up to so many, this machine drives at such a speed and prompt size; None: not tried."""

    def canary(self) -> CanaryResult | None:
        """The quality canary's facts now; None where it is not run."""

    def restart(self) -> Restart | None:
        """Restarts the server, where a command for it was given; raises EnvironmentFault."""

    def trial(
        self,
        plan: Plan,
        order: TrialOrder,
        folder: Path,
        *,
        protocol: TrialProtocol,
        restart: Restart | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Runs one trial and writes its folder in one step; raises KeyboardInterrupt after Ctrl-C."""


class LiveDriver:
    """Drives the real thing; power sources are open from the beginning to the end."""

    def __init__(self, request: RunRequest) -> None:
        self._request = request
        self._stack = contextlib.ExitStack()
        self._sources: tuple[PowerSource, ...] = ()

    def __enter__(self) -> Self:
        system = self._request.system
        with contextlib.ExitStack() as stack:
            sources = []
            for choice in self._request.power:
                source = choice.open(uuids=system.gpu_uuids, accelerators=system.gpu_count)
                stack.callback(source.close)
                sources.append(source)
            self._sources = tuple(sources)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def probe(self) -> ProbeReport:
        return loop.run(probe(self._request.endpoint))

    def client_limit(self, *, tok_s: float, prompt_bytes: int, most: int) -> SelfTest | None:
        from replay.selftest import selftest

        return selftest(tok_s=tok_s, prompt_bytes=prompt_bytes, most=most, workers=self._request.workers)

    def canary(self) -> CanaryResult | None:
        return loop.run(self._canary())

    async def _canary(self) -> CanaryResult:
        async with self._request.endpoint.connect() as caller:
            return await run_canary(caller)

    def restart(self) -> Restart | None:
        words = self._request.restart_words
        return restart(words, self._request.endpoint) if words is not None else None

    def trial(
        self,
        plan: Plan,
        order: TrialOrder,
        folder: Path,
        *,
        protocol: TrialProtocol,
        restart: Restart | None,
        on_progress: Callable[[Progress], None],
    ) -> None:
        shares = (plan.isolation in ("run", "none") or plan.share_head) and restart is None
        run_trial(
            plan,
            self._request.endpoint,
            order=order,
            protocol=protocol,
            sources=self._sources,
            folder=folder,
            workers=self._request.workers,
            restart=restart,
            earlier=records_since_restart(folder.parent, order.trial) if shares else (),
            on_progress=on_progress,
            keep_interrupted=order.purpose == "run",
        )
