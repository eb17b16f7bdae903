"""What the devices draw with the engine up and no request under way: before the first trial, and after the last.

A folder `idle/before` or `idle/after` holds the facts: `power.parquet`, `server.parquet` (whether the engine was at
work for somebody else) and `idle.json`. What they mean is computed from them.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from capture.atomic import write_atomically
from curate.manifest import file_sha256
from replay.power.domain import Scope
from replay.power.energy import PowerTotal
from replay.power.source import PowerSample, SourceInfo
from replay.scrape import ServerSample, server_metrics
from replay.trial import POWER, SERVER, TrialFault, read_rows, samples_frame, server_frame, write_rows
from replay.window import Window

if TYPE_CHECKING:
    from replay.judge import Judged
    from replay.power.meter import Meter
    from replay.scrape import Scraper

IDLE_VERSION = 1
FACTS = "idle.json"
SETTLE_SHARE, SETTLE_MOST_S = 0.2, 2.0  # let a power average of a second and an aborted request run out first
DRIFT = 0.10  # idle power after that differs by more is flagged: the devices, or what runs on them, changed
BARELY_WORKED = 1.2  # times idle: a load that draws less was hardly there, or somewhere else
OVER_LIMIT = 1.05  # times the enforced power limit: no device holds that; the reading or the limit is wrong

type Moment = Literal["before", "after"]
MOMENTS: tuple[Moment, ...] = ("before", "after")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleFacts:
    """`idle.json`. The window is [0, end_ns); `*_ns` count from its start."""

    version: int
    zero_unix_us: int
    end_ns: int
    power_sources: tuple[SourceInfo, ...]
    power_sha256: str
    server_sha256: str

    @property
    def window(self) -> Window:
        """All of it."""
        return Window(start_ns=0, end_ns=self.end_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """Idle readings as their folder holds them."""

    facts: IdleFacts
    samples: tuple[PowerSample, ...]
    server: tuple[ServerSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleReading:
    """Mean power of every measured scope over an idle window; `reasons` say why it may not be believed."""

    started_unix_us: int
    seconds: float
    power: tuple[PowerTotal, ...]
    reasons: tuple[str, ...]

    def watts(self, scope: str) -> float | None:
        """Of one scope, in W; None where it was not measured, or a request was under way."""
        if self.reasons:
            return None
        return next((total.power_w for total in self.power if total.scope == scope and total.valid), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleDrift:
    """Idle power of one scope after the run against before it."""

    scope: str
    before_w: float
    after_w: float
    change: float  # share of before
    flagged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IdlePower:
    """Idle power before and after a run, and how far it moved between them."""

    before: IdleReading | None
    after: IdleReading | None
    drift: tuple[IdleDrift, ...]

    def watts(self, scope: str) -> float | None:
        """The lower of both, in W: what a load adds to it is then never less than it was. None unless both are known.

        Without the other reading nobody knows whether the one still held when the run was over.
        """
        found = [None if reading is None else reading.watts(scope) for reading in (self.before, self.after)]
        known = [watts for watts in found if watts is not None]
        return min(known) if len(known) == len(found) else None

    def highest_w(self, scope: str) -> float | None:
        """The higher of what is known, in W: what a run is held against that seems not to have worked."""
        found = [None if reading is None else reading.watts(scope) for reading in (self.before, self.after)]
        return max((watts for watts in found if watts is not None), default=None)

    @property
    def words(self) -> tuple[str, ...]:
        """What is wrong with it, a sentence each. What neither reading has, the trials lack as well and say why."""
        said = [
            f"idle power {moment} the run is not known: {reason}"
            for moment, reading in self._readings()
            for reason in reading.reasons
        ]
        said += [
            f"idle power of {total.scope.replace('_', ' ')} {moment} the run is not known: {reason}"
            for moment, reading in self._readings()
            for total in reading.power
            if not total.valid and self.highest_w(total.scope) is not None
            for reason in total.reasons[:1]
        ]
        said += [
            f"idle power of {row.scope.replace('_', ' ')} moved by {row.change:+.0%} during the run, from "
            f"{row.before_w:.0f} W to {row.after_w:.0f} W"
            for row in self.drift
            if row.flagged
        ]
        return tuple(said)

    def _readings(self) -> tuple[tuple[Moment, IdleReading], ...]:
        both = zip(MOMENTS, (self.before, self.after), strict=True)
        return tuple((moment, reading) for moment, reading in both if reading is not None)


def take_idle(meter: Meter, scraper: Scraper, folder: Path, *, seconds: float) -> Idle:
    """Reads the meter for so many seconds with no request of ours under way, and writes `folder` in one step.

    Raises TrialFault or OSError where the disk takes no more, KeyboardInterrupt after Ctrl-C: then nothing is left.
    """
    time.sleep(min(SETTLE_MOST_S, SETTLE_SHARE * seconds))
    with scraper:
        start_ns, zero_unix_us = time.monotonic_ns(), time.time_ns() // 1000
        time.sleep(seconds)
        end_ns = time.monotonic_ns()
    samples = meter.collect(start_ns, end_ns)
    return write_idle(
        Idle(
            facts=IdleFacts(
                version=IDLE_VERSION,
                zero_unix_us=zero_unix_us,
                end_ns=end_ns - start_ns,
                power_sources=meter.infos,
                power_sha256="",
                server_sha256="",
            ),
            samples=tuple(dataclasses.replace(sample, t_ns=sample.t_ns - start_ns) for sample in samples),
            server=tuple(dataclasses.replace(sample, t_ns=sample.t_ns - start_ns) for sample in scraper.samples),
        ),
        folder,
    )


def write_idle(idle: Idle, folder: Path) -> Idle:
    """Writes the three files beside `folder` and renames them into place; returns them with the digests."""
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    write_rows(samples_frame(idle.samples), partial / POWER)
    write_rows(server_frame(idle.server), partial / SERVER)
    facts = dataclasses.replace(
        idle.facts, power_sha256=file_sha256(partial / POWER), server_sha256=file_sha256(partial / SERVER)
    )
    write_atomically(partial / FACTS, msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
    os.replace(partial, folder)  # noqa: PTH105 - Path.replace says less about a folder
    return dataclasses.replace(idle, facts=facts)


def read_idle(folder: Path) -> Idle | None:
    """Idle readings, None where none were taken; raises TrialFault. Digests are `verify`'s."""
    path = folder / FACTS
    if not folder.exists():
        return None
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=IdleFacts)
    except FileNotFoundError as error:
        raise TrialFault(f"{path} is missing: the run is not whole") from error
    except (msgspec.DecodeError, RecursionError, OSError) as error:
        raise TrialFault(f"{path} does not hold idle readings of agentdyno: {error}") from error
    if facts.version != IDLE_VERSION:
        raise TrialFault(f"{path} has version {facts.version}; this agentdyno reads version {IDLE_VERSION}")
    if facts.end_ns <= 0:
        raise TrialFault(f"{path}: end_ns must be above 0")
    return Idle(
        facts=facts,
        samples=read_rows(folder / POWER, PowerSample),
        server=read_rows(folder / SERVER, ServerSample),
    )


def idle_reading(idle: Idle, power: Sequence[PowerTotal]) -> IdleReading:
    """What idle readings say, with the totals of their own window; stated watts are no reading."""
    window = idle.facts.window
    return IdleReading(
        started_unix_us=idle.facts.zero_unix_us,
        seconds=window.seconds,
        power=tuple(total for total in power if total.measured),
        reasons=tuple(_at_work(idle.server, window)),
    )


def _at_work(server: Sequence[ServerSample], window: Window) -> list[str]:
    """Why an idle window was none, by the server's own metrics."""
    metrics = server_metrics(server, window)
    if metrics is None:
        return []
    total = metrics.total
    if total.running is not None and total.running.peak > 0:
        return [f"the server was at work: up to {total.running.peak:.0f} requests ran"]
    if total.generation_tokens:
        return [f"the server was at work: it made {total.generation_tokens:,.0f} tokens"]
    return []


def idle_power(before: IdleReading | None, after: IdleReading | None) -> IdlePower | None:
    """Both readings and their drift; None where neither was taken."""
    if before is None or after is None:
        return None if before is after else IdlePower(before=before, after=after, drift=())
    rows = []
    for scope in (total.scope for total in before.power):
        first, last = before.watts(scope), after.watts(scope)
        if first and last is not None:
            change = last / first - 1
            rows.append(
                IdleDrift(scope=scope, before_w=first, after_w=last, change=change, flagged=abs(change) > DRIFT)
            )
    return IdlePower(before=before, after=after, drift=tuple(rows))


def load_flags(trials: Sequence[Judged], idle: IdlePower | None) -> list[str]:
    """What the mean power of these trials' accelerators shows to be implausible, a sentence each.

    Of those that serve, where others are idle: these would hide in the mean whatever the first do.
    """
    found = []
    for item in trials:
        totals = {total.scope: total for total in item.power if total.measured and total.power_w}
        total = totals.get("accelerator_engaged") or totals.get("accelerator")
        if total is None or total.power_w is None:
            continue
        count = len(total.devices)
        place = f"trial {item.trial}: {total.power_w / count:.0f} W per accelerator"
        idle_w = idle.highest_w(total.scope) if idle is not None else None
        if idle_w is not None and total.power_w < BARELY_WORKED * idle_w:
            found.append(
                f"{place} is below {BARELY_WORKED:g} times idle ({idle_w / count:.0f} W): they hardly worked, or "
                "other devices did the work"
            )
        found += _idle_ones_at_work(item.trial, totals, idle)
        limit_w = item.limits_w.get(total.scope)
        if limit_w is not None and total.power_w > OVER_LIMIT * limit_w:
            found.append(
                f"{place} is above {OVER_LIMIT:g} times the power limit ({limit_w / count:.0f} W): the reading or the "
                "limit is wrong"
            )
    return found


def _idle_ones_at_work(trial: int, totals: Mapping[Scope, PowerTotal], idle: IdlePower | None) -> list[str]:
    """Whether accelerators that the system file calls idle, which `engaged` leaves out, drew more than at rest."""
    every, engaged = totals.get("accelerator"), totals.get("accelerator_engaged")
    if every is None or engaged is None or idle is None or every.power_w is None or engaged.power_w is None:
        return []
    rest_w, engaged_rest_w = (idle.highest_w(total.scope) for total in (every, engaged))
    if rest_w is None or engaged_rest_w is None:
        return []
    drawn_w, before_w, count = every.power_w - engaged.power_w, rest_w - engaged_rest_w, len(every.devices)
    if drawn_w <= BARELY_WORKED * before_w:
        return []
    each = max(1, count - len(engaged.devices))
    return [
        f"trial {trial}: accelerators that the system file calls idle drew {drawn_w / each:.0f} W each, and "
        f"{before_w / each:.0f} W at rest: they worked, and those that serve are not all that did"
    ]
