"""What a run asks of the world outside: probe a server, drive a trial, restart it. Tests put a simulation here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from replay import loop
from replay.canary import CanaryResult, run_canary
from replay.plan import Plan
from replay.power.domain import lack_sentences, overlap_sentence
from replay.power.meter import Meter
from replay.power.source import PowerFault
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

    def idle(self, folder: Path, *, seconds: float) -> None:
        """Reads power for so long with no request under way and writes the folder; nothing where none is measured."""

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
    """Drives the real thing; the power meter runs from the beginning to the end."""

    def __init__(self, request: RunRequest, say: Callable[[str], None] = lambda _: None) -> None:
        self._request = request
        self._say = say
        self._meter = Meter(request.power, request.system)

    def __enter__(self) -> Self:
        """Opens the meter and says what it lacks; raises PowerFault for a source, or for two devices that overlap."""
        self._meter.__enter__()
        scopes = self._meter.scopes
        for scope, found in scopes.items():
            # A GPU shows its module's power unasked: where modules are not stated, that is no total, and no fault.
            if found.overlaps and (scope != "module" or len(scopes) == 1):
                self._meter.close()
                raise PowerFault(overlap_sentence(found))
            for lack in lack_sentences(found):
                self._say(lack)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meter.close()

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

    def idle(self, folder: Path, *, seconds: float) -> None:
        from replay.idle import take_idle
        from replay.scrape import Scraper

        if any(info.measured for info in self._meter.infos):
            take_idle(self._meter, Scraper(self._request.endpoint), folder, seconds=seconds)

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
            meter=self._meter,
            folder=folder,
            workers=self._request.workers,
            restart=restart,
            earlier=records_since_restart(folder.parent, order.trial) if shares else (),
            on_progress=on_progress,
            keep_interrupted=order.purpose == "run",
        )
