"""A run's folder: what was asked stands in it first, the score last, so that an unfinished run can be continued.

`plan.json` · `run.json` (inputs) · `canary.json` · `idle/before/` · `trials/N/` (facts) · `idle/after/` ·
`score.json` (judgement, last) · `report.html`. Added later: `meters/N/`, each with the score from before it,
`score.before-N.json`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from curate.manifest import write_json
from replay.added_meter import AddedMeter, read_meter
from replay.canary import CanaryResult
from replay.idle import Idle, Moment, read_idle
from replay.plan import PlanFile, load_plan
from replay.protocol import Protocol, RunClass
from replay.search import SearchRules
from replay.sentence import short
from replay.slo import Slo, slo_from_json
from replay.trial import TrialFault, read_facts

RUN_VERSION = 3


class RunFault(ValueError):
    """A run's folder cannot be used as asked; the sentence names the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointInputs:
    """Where requests go, without a key or the name of its variable."""

    urls: tuple[str, ...]
    model: str
    affinity_headers: tuple[str, ...]
    proxy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """The run that this one is compared with: it takes that run's rules and seed, and the other order of its trials."""

    plan_digest: str
    started_unix_us: int
    order: Literal["forward", "reversed"]  # of this run's confirmation trials


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """`run.json`: everything that was asked. Two runs with the same inputs but for the start time are one run."""

    version: int
    methodology_version: str
    agentdyno_version: str
    kind: Literal["score", "run"]
    run_class: RunClass | None  # of a score
    quick: bool
    started_unix_us: int
    endpoint: EndpointInputs
    workers: int  # client processes
    restarts: bool  # the server is restarted before every trial around the answer
    dataset_digest: str
    dataset_match: dict[str, Any] | None
    plan_digest: str
    slos: tuple[dict[str, Any], ...]
    protocol: Protocol  # under which the trials run
    start_agents: int  # as asked; of a single run: its agents
    maximum_agents: int | None  # as asked
    rules: SearchRules | None  # of a score
    maximum_why: str
    against: Against | None
    system: dict[str, Any]
    power: tuple[str, ...]
    idle_s: float  # power is read so long before the first trial and after the last, with no request under way
    probe: dict[str, Any]
    client_limit: dict[str, Any] | None  # how many agents this machine can drive, where that was tried

    @property
    def levels(self) -> tuple[Slo, ...]:
        """The service levels; raises KeyError, TypeError or ValueError where the file was altered."""
        return tuple(slo_from_json(slo) for slo in self.slos)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryPair:
    """`canary.json`: the quality canary's facts before the first trial and after the last."""

    before: CanaryResult
    after: CanaryResult | None


class _Version(msgspec.Struct):
    version: int


SEEN = ("started_unix_us", "probe", "client_limit", "rules", "maximum_why")
"""Fields of run.json that are seen rather than asked, or follow from what was seen: a continued run keeps its first."""


SERVER_KEPT = ("engine", "engine_version", "context_tokens", "vocabulary_tokens", "ignore_eos")
"""What the probe must say again before a run is continued: trials of two servers are no one search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def inputs_path(self) -> Path:
        return self.path / "run.json"

    @property
    def plan_path(self) -> Path:
        return self.path / "plan.json"

    @property
    def score_path(self) -> Path:
        return self.path / "score.json"

    @property
    def canary_path(self) -> Path:
        return self.path / "canary.json"

    def trial_path(self, trial: int) -> Path:
        return self.path / "trials" / str(trial)

    def idle_path(self, moment: Moment) -> Path:
        return self.path / "idle" / moment

    def meter_path(self, meter: int) -> Path:
        return self.path / "meters" / str(meter)

    def former_score_path(self, meter: int) -> Path:
        """The score as it stood before a meter was added."""
        return self.path / f"score.before-{meter}.json"

    def check_new(self) -> None:
        """Raises RunFault unless nothing is there, or only what a run leaves that was killed before it had begun."""
        if self.path.is_symlink() or (self.path.exists() and not self._unbegun()):
            raise RunFault(
                f"{self.path} exists already: name a new folder, or continue an unfinished run with --resume"
            )

    def check_resumable(self) -> bool:
        """Whether a run has begun there; raises RunFault where none can be continued."""
        if self.score_path.exists():
            raise RunFault(f"{self.path} is finished: its score.json stands; name a new folder for another run")
        if self.inputs_path.is_file() and self.plan_path.is_file():
            return True
        if not self.path.exists() or not self._unbegun():
            raise RunFault(f"{self.path} holds no unfinished run: leave --resume out to start one")
        return False

    def _unbegun(self) -> bool:
        """Nothing is there but a plan: run.json is written after it, and trials after that."""
        return self.path.is_dir() and all(
            entry.name == self.plan_path.name or entry.name.startswith(".") for entry in self.path.iterdir()
        )

    def begin(self, inputs: RunInputs, plan: PlanFile) -> None:
        """Makes the folder; the plan stands in it before the inputs do."""
        self.path.mkdir(parents=True, exist_ok=True)
        plan.dump(self.plan_path)
        write_json(self.inputs_path, inputs)

    def canary(self) -> CanaryPair | None:
        """The quality canary's facts; raises RunFault."""
        try:
            return msgspec.json.decode(self.canary_path.read_bytes(), type=CanaryPair)
        except FileNotFoundError:
            return None
        except (msgspec.DecodeError, RecursionError, OSError) as error:
            raise RunFault(f"{self.canary_path} is not readable: {error}") from error

    def idle(self, moment: Moment) -> Idle | None:
        """Idle readings, None where none were taken; raises TrialFault."""
        return read_idle(self.idle_path(moment))

    def meters(self) -> tuple[AddedMeter, ...]:
        """Meters that were added after the run, in order; raises RunFault or TrialFault."""
        return tuple(read_meter(self.meter_path(number)) for number in self.meter_numbers())

    def meter_numbers(self) -> tuple[int, ...]:
        """Of the added meters, ascending; raises RunFault when one between them is missing."""
        return self._numbers("meters")

    def inputs(self) -> RunInputs:
        """What was asked; raises RunFault."""
        try:
            raw = self.inputs_path.read_bytes()
            version = msgspec.json.decode(raw, type=_Version).version
            if version != RUN_VERSION:
                raise RunFault(
                    f"{self.inputs_path} has version {version}; this agentdyno reads version {RUN_VERSION}: use the "
                    "one that wrote it"
                )
            return msgspec.json.decode(raw, type=RunInputs)
        except FileNotFoundError as error:
            raise RunFault(f"{self.inputs_path} is missing: {self.path} is no run folder") from error
        except (msgspec.DecodeError, RecursionError, OSError) as error:
            raise RunFault(f"{self.inputs_path} is not readable: {error}") from error

    def plan(self) -> PlanFile:
        """What was planned; raises RunFault."""
        try:
            return load_plan(self.plan_path)
        except FileNotFoundError as error:
            raise RunFault(f"{self.plan_path} is missing: the run is not whole") from error
        except ValueError as error:
            raise RunFault(str(error)) from error

    def trial_numbers(self) -> tuple[int, ...]:
        """Finished trials, ascending; raises RunFault when one between them is missing."""
        return self._numbers("trials")

    def _numbers(self, name: str) -> tuple[int, ...]:
        folder = self.path / name
        numbers = sorted(
            int(entry.name) for entry in (folder.iterdir() if folder.is_dir() else ()) if entry.name.isdecimal()
        )
        if numbers != list(range(1, len(numbers) + 1)):
            missing = min(set(range(1, len(numbers) + 1)) - set(numbers))
            raise RunFault(f"{folder / str(missing)} is missing: the run is not whole")
        return tuple(numbers)

    def check_same(self, asked: RunInputs) -> None:
        """Raises RunFault naming the first input in which an unfinished run differs from what is asked now."""
        before = self.inputs()
        for field in dataclasses.fields(RunInputs):
            if field.name in SEEN:
                continue
            old, new = getattr(before, field.name), getattr(asked, field.name)
            if msgspec.json.encode(old) != msgspec.json.encode(new):
                raise RunFault(
                    f"{self.path} was started with another {field.name} ({short(old, 60)}, now {short(new, 60)}): "
                    "give the same inputs, or name a new folder"
                )
        for name in SERVER_KEPT:
            was, now = before.probe.get(name), asked.probe.get(name)
            if was != now:
                raise RunFault(
                    f"{self.path} was started on a server with another {name} "
                    f"({short(was, 60)}, now {short(now, 60)}): "
                    "start that one again, or name a new folder"
                )
        for number in self.trial_numbers():
            try:
                read_facts(self.trial_path(number))
            except TrialFault as error:
                raise RunFault(f"{error}; remove {self.trial_path(number)} to run that trial again") from error
