"""What an agent waits for between turns: one rule for tools, one for people, one for gaps that tell neither apart."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from capture.trajectory import GapKind

type DelayMode = Literal["recorded", "scaled", "capped", "sampled", "none"]

MODES: tuple[DelayMode, ...] = ("recorded", "scaled", "capped", "sampled", "none")

GRAMMAR = "recorded, scaled:FACTOR, capped:SECONDS, sampled, sampled:SECONDS (drawn, at most so long) or none"

LONGEST_US = 10**15
"""About thirty years: a wait that is longer is a fault of its source, and would not fit the clock's arithmetic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayRule:
    """How one kind of recorded time is waited for; `value` is a factor (scaled) or seconds (capped, sampled)."""

    mode: DelayMode
    value: float | None = None

    @property
    def text(self) -> str:
        """The rule as it is written in a plan and on the command line."""
        return self.mode if self.value is None else f"{self.mode}:{self.value:g}"

    @property
    def short(self) -> str:
        """The rule inside a policy's id."""
        if self.mode == "none":
            return "0"
        if self.mode == "capped":
            return f"{self.value:g}"
        return self.mode if self.value is None else f"{self.mode}{self.value:g}"

    def wait_us(self, recorded_us: int) -> int:
        """Microseconds to wait for a recorded time, or for one that was drawn in its place."""
        recorded_us = min(max(0, recorded_us), LONGEST_US)
        if self.mode == "none":
            return 0
        if self.mode == "scaled":
            return min(round(recorded_us * (self.value or 0.0)), LONGEST_US)
        if self.value is None:
            return recorded_us
        return min(recorded_us, round(min(self.value, LONGEST_US / 1e6) * 1e6))


@functools.cache
def parse_delay_rule(text: str) -> DelayRule:
    """A rule from its text; raises ValueError with the grammar."""
    name, colon, number = text.strip().partition(":")
    mode = next((mode for mode in MODES if mode == name), None)
    try:
        value = float(number) if colon else None
    except ValueError:
        value = math.nan
    takes = {"scaled": True, "capped": True, "sampled": value is not None}.get(name, False)
    if mode is None or takes != (value is not None):
        raise ValueError(f"a delay is {GRAMMAR}; not {text!r}")
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"a delay's number must be 0 or more, and finite; not {number!r} in {text!r}")
    return DelayRule(mode=mode, value=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Recorded time before a request, split into its parts, in microseconds."""

    kind: GapKind
    tool_us: int = 0  # tools ran, the client worked, a sub-agent started
    human_us: int = 0
    unsplit_us: int = 0  # tools or a human: the source does not tell
    tools: tuple[str, ...] = ()  # names of the tools whose results the request brings
    offset: bool = False  # the time since a dispatch, not since an end: nothing that a tool takes


def gap_of(gap_us: int, kind: GapKind, think_us: int | None, tools: tuple[str, ...] = ()) -> Gap:
    """A recorded gap in parts; `think_us` is the human part of one that holds both."""
    if kind == "none" or gap_us <= 0:
        return Gap(kind=kind)
    if kind == "unsplit":
        return Gap(kind=kind, unsplit_us=gap_us)
    human_us = gap_us if kind == "human" else 0
    if think_us is not None:
        human_us = min(max(think_us, 0), gap_us)
    return Gap(kind=kind, tool_us=gap_us - human_us, human_us=human_us, tools=tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """What a turn waits, in microseconds, and under which rules."""

    tool_us: int  # unsplit gaps included
    human_us: int
    rule: str  # mode of the rule, or `tool rule+human rule` where a gap holds both

    @property
    def total_us(self) -> int:
        return self.tool_us + self.human_us


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayPolicy:
    """One rule each for human time, tool time and gaps that the source does not split; texts of `parse_delay_rule`.

    The default waits for no human, for tools as recorded up to 300 s, and for unsplit gaps up to 10 s. Time in which
    the client worked or started a sub-agent counts as tool time.
    """

    human: str = "none"
    tool: str = "capped:300"
    unsplit: str = "capped:10"

    def __post_init__(self) -> None:
        for name in ("human", "tool", "unsplit"):
            try:
                rule = parse_delay_rule(getattr(self, name))
            except ValueError as fault:
                raise ValueError(f"{name} delay: {fault}") from None
            object.__setattr__(self, name, rule.text)  # one spelling, so that equal policies have equal digests

    @property
    def policy_id(self) -> str:
        """Short name that stands beside every N; results under unlike policies never compare."""
        human, tool, unsplit = (parse_delay_rule(text).short for text in (self.human, self.tool, self.unsplit))
        return f"human{human}-tool{tool}-unsplit{unsplit}"

    @property
    def samples(self) -> bool:
        """Whether any rule draws from the dataset's own distribution."""
        return any(parse_delay_rule(text).mode == "sampled" for text in (self.human, self.tool, self.unsplit))

    def delay(self, gap: Gap, drawn: Gap | None = None) -> Delay:
        """The wait for a recorded gap; `drawn` holds the times that stand in for those under a sampled rule."""
        if gap.kind == "none":
            return Delay(tool_us=0, human_us=0, rule="none")
        if gap.kind == "unsplit":
            rule = parse_delay_rule(self.unsplit)
            source = drawn if drawn is not None and rule.mode == "sampled" else gap
            return Delay(tool_us=rule.wait_us(source.unsplit_us), human_us=0, rule=rule.mode)
        tool, human = parse_delay_rule(self.tool), parse_delay_rule(self.human)
        if gap.offset:
            # The time since a dispatch is the model's and the client's own: none of it can be drawn from tools.
            waited = gap.tool_us if tool.mode == "sampled" else tool.wait_us(gap.tool_us)
            return Delay(tool_us=waited, human_us=0, rule="recorded" if tool.mode == "sampled" else tool.mode)
        tool_source = drawn if drawn is not None and tool.mode == "sampled" else gap
        human_source = drawn if drawn is not None and human.mode == "sampled" else gap
        modes = [tool.mode] if gap.tool_us or (gap.kind != "human" and not gap.human_us) else []
        modes += [human.mode] if gap.human_us or not modes else []
        return Delay(
            tool_us=tool.wait_us(tool_source.tool_us),
            human_us=human.wait_us(human_source.human_us),
            rule="+".join(modes),
        )


@dataclass(slots=True)
class Durations:
    """The dataset's own distribution of tool, human and unsplit times; draws from it are made by name and seed.

    A tool's durations are the tool parts of the gaps in which it ran alone. Where tools ran side by side each is drawn
    from its own durations and the longest counts; a tool that never ran alone is drawn from all tools' durations, and
    a gap without a known tool from those of its kind. No draw is made from an empty distribution: the recorded time
    stays.
    """

    seed: int
    _times: dict[str, list[int]] = field(default_factory=dict)
    _sorted: bool = True

    def add(self, gaps: Iterable[Gap]) -> None:
        """Take in recorded gaps; the order does not matter."""
        for gap in gaps:
            if gap.offset:
                continue
            if gap.unsplit_us:
                self._put("unsplit", gap.unsplit_us)
            if gap.human_us:
                self._put("human", gap.human_us)
            if gap.tool_us:
                if len(gap.tools) == 1:
                    self._put(f"tool {gap.tools[0]}", gap.tool_us)
                self._put("tool" if gap.tools else f"kind {gap.kind}", gap.tool_us)

    def _put(self, name: str, time_us: int) -> None:
        self._times.setdefault(name, []).append(time_us)
        self._sorted = False

    def draw(self, gap: Gap, session_id: str, request_index: int) -> Gap:
        """A gap of the same parts with drawn times: the same for the same seed, session and request."""
        if not self._sorted:
            for times in self._times.values():
                times.sort()
            self._sorted = True
        chance = random.Random(f"{self.seed}:delay:{session_id}:{request_index}")
        tool_us, human_us, unsplit_us = gap.tool_us, gap.human_us, gap.unsplit_us
        if tool_us:
            names = [f"tool {name}" for name in gap.tools] or [f"kind {gap.kind}"]
            tool_us = max(self._one(chance, name, "tool", tool_us) for name in names)
        if human_us:
            human_us = self._one(chance, "human", "human", human_us)
        if unsplit_us:
            unsplit_us = self._one(chance, "unsplit", "unsplit", unsplit_us)
        return Gap(kind=gap.kind, tool_us=tool_us, human_us=human_us, unsplit_us=unsplit_us, tools=gap.tools)

    def _one(self, chance: random.Random, name: str, otherwise: str, recorded_us: int) -> int:
        times = self._times.get(name) or self._times.get(otherwise)
        return chance.choice(times) if times else recorded_us
