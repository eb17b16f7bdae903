"""What is asked of a run: the server, the rules by which sessions become requests, and how sure the answer must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from replay.delay import DelayPolicy
from replay.endpoint import Endpoint
from replay.power.choice import PowerChoice
from replay.protocol import CLASSES, QUICK_RULES, ClassRules, Protocol, RunClass
from replay.rules import ContextPolicy, History, Isolation, LengthPolicy, Retries
from replay.runfolder import Against
from replay.slo import Slo
from replay.system import System

IDLE_S: dict[RunClass, float] = {"screen": 20.0, "standard": 60.0, "record": 60.0}
QUICK_IDLE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRules:
    """How recorded sessions become requests. `context.limit` is the server's where it is None and the server says."""

    seed: int = 0
    once: bool = False
    delay: DelayPolicy = field(default_factory=DelayPolicy)
    length: LengthPolicy = field(default_factory=LengthPolicy)
    context: ContextPolicy = field(default_factory=ContextPolicy)
    isolation: Isolation = "play"
    share_head: bool = False
    history: History = "recorded"
    retries: Retries = "drop"
    token_ids: tuple[int, int] | None = (
        None  # of synthetic prompts, end excluded; None: as the server's vocabulary says
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What is asked of a run. A `score` searches from `agents`; a `run` is one trial of so many."""

    kind: Literal["score", "run"]
    endpoint: Endpoint
    dataset_digest: str
    rules: PlanRules
    slos: tuple[Slo, ...]
    protocol: Protocol
    system: System
    power: tuple[PowerChoice, ...]
    agents: int
    maximum_agents: int | None
    out: Path
    resume: bool
    run_class: RunClass | None = None  # of a score
    quick: bool = False
    dataset_match: dict[str, Any] | None = None
    workers: int = 1
    client_limit: int | None = None  # agents that this machine can drive, as the user knows; None: tried out
    restart_words: tuple[str, ...] | None = None  # the command that restarts the server
    against: Against | None = None
    idle_s: float | None = None  # seconds of idle power before and after; None: as its class asks

    @property
    def idle_seconds(self) -> float:
        """How long power is read before the first trial and after the last; 0 where nothing but nameplates is asked."""
        if all(choice.kind == "declared" for choice in self.power):
            return 0.0
        if self.idle_s is not None:
            return self.idle_s
        if self.run_class is None:
            return 0.0
        return QUICK_IDLE_S if self.quick else IDLE_S[self.run_class]

    @property
    def confirmation(self) -> ClassRules:
        """How its class confirms an answer."""
        return QUICK_RULES if self.quick else CLASSES[self.run_class or "screen"]
