"""A run's folder: what was asked stands in it first, the score last, so that an unfinished run can be continued.

`run.json` (inputs) · `plan.json` · `trials/N/` (facts) · `score.json` (judgement, last) · `report.html`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from replay.plan import PlanFile, load_plan
from replay.protocol import Protocol
from replay.trial import TrialFault, read_facts

RUN_VERSION = 1


class RunFault(ValueError):
    """A run's folder cannot be used as asked; the sentence names the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """`run.json`: everything that was asked. Two runs with the same inputs but for the start time are one run."""

    version: int
    methodology_version: str
    agentdyno_version: str
    kind: Literal["score", "run"]
    started_unix_us: int
    url: str
    model: str
    dataset_digest: str
    plan_digest: str
    slo: dict[str, Any] | None
    protocol: Protocol  # under which the trials run
    quick: bool
    system: dict[str, Any]
    power: tuple[str, ...]
    start_agents: int  # of the search; of a single run: its agents
    maximum_agents: int
    maximum_why: str
    probe: dict[str, Any]


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

    def trial_path(self, trial: int) -> Path:
        return self.path / "trials" / str(trial)

    def check_new(self) -> None:
        """Raises RunFault unless nothing is there."""
        if self.path.is_symlink() or (self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))):
            raise RunFault(
                f"{self.path} exists already: name a new folder, or continue an unfinished run with --resume"
            )

    def check_resumable(self) -> None:
        """Raises RunFault unless an unfinished run is there."""
        if not self.inputs_path.is_file() or not self.plan_path.is_file():
            raise RunFault(f"{self.path} holds no unfinished run: leave --resume out to start one")
        if self.score_path.exists():
            raise RunFault(f"{self.path} is finished: its score.json stands; name a new folder for another run")

    def inputs(self) -> RunInputs:
        """What was asked; raises RunFault."""
        try:
            inputs = msgspec.json.decode(self.inputs_path.read_bytes(), type=RunInputs)
        except FileNotFoundError as error:
            raise RunFault(f"{self.inputs_path} is missing: {self.path} is no run folder") from error
        except (msgspec.DecodeError, OSError) as error:
            raise RunFault(f"{self.inputs_path} is not readable: {error}") from error
        if inputs.version != RUN_VERSION:
            raise RunFault(f"{self.inputs_path} has version {inputs.version}; this agentdyno reads {RUN_VERSION}")
        return inputs

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
        folder = self.path / "trials"
        numbers = sorted(
            int(entry.name) for entry in (folder.iterdir() if folder.is_dir() else ()) if entry.name.isdecimal()
        )
        if numbers != list(range(1, len(numbers) + 1)):
            missing = min(set(range(1, len(numbers) + 1)) - set(numbers))
            raise RunFault(f"{self.trial_path(missing)} is missing: the run is not whole")
        return tuple(numbers)

    def check_same(self, asked: RunInputs) -> None:
        """Raises RunFault naming the first input in which an unfinished run differs from what is asked now."""
        before = self.inputs()
        for field in dataclasses.fields(RunInputs):
            if field.name in ("started_unix_us", "probe"):
                continue
            old, new = getattr(before, field.name), getattr(asked, field.name)
            if msgspec.json.encode(old) != msgspec.json.encode(new):
                raise RunFault(
                    f"{self.path} was started with another {field.name} ({_short(old)}, now {_short(new)}): "
                    "give the same inputs, or name a new folder"
                )
        for number in self.trial_numbers():
            try:
                read_facts(self.trial_path(number))
            except TrialFault as error:
                raise RunFault(f"{error}; remove {self.trial_path(number)} to run that trial again") from error


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "…"
