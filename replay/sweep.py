"""The same score at several power caps. A cap is set by a command of the user's, never by this program.

`OUT/sweep-inputs.json` (what was asked) · `OUT/cap-400w/` (one run folder per cap) · `OUT/sweep.json` (last).
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from curate.manifest import write_json
from replay.compare import compare
from replay.judge import read_score
from replay.runfolder import RunFault, RunFolder
from replay.sentence import UNKNOWN, denominator_name, headline_rows, value
from replay.trial import read_facts
from replay.user_command import program_name, run_command

SWEEP_VERSION = 1
CAPS_MOST = 32
COMMAND_TIMEOUT_S = 300.0
PLACE = "{watts}"
LIMIT_AGREES_W = 1.0  # drivers round a limit to whole watts

type RunAt = Callable[[float, Path, bool, RunFolder | None], dict[str, Any]]
"""(cap in watts, run folder, continue it, the first cap's finished run) → the contents of its score.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOrder:
    """What was asked. `set_words` hold `{watts}`; without `restore_words` the last cap stays."""

    caps_w: tuple[float, ...]
    set_words: tuple[str, ...]
    restore_words: tuple[str, ...] | None
    out: Path
    resume: bool

    @property
    def score_path(self) -> Path:
        return self.out / "sweep.json"

    def folder(self, cap_w: float) -> RunFolder:
        """The run folder of one cap."""
        return RunFolder(path=self.out / f"cap-{cap_w:g}w")


def parse_caps(text: str) -> tuple[float, ...]:
    """`400,500,600` in watts, each once, in this order; raises ValueError with a sentence."""
    found: list[float] = []
    for word in text.split(","):
        try:
            watts = float(word)
        except ValueError:
            watts = math.nan
        if not (math.isfinite(watts) and 0 < watts < 1e6):
            raise ValueError(f"--sweep-power-cap: {word.strip()!r} is not a number of watts; write 400,500,600")
        if watts in found:
            raise ValueError(f"--sweep-power-cap names {watts:g} W twice")
        found.append(watts)
    if len(found) > CAPS_MOST:
        raise ValueError(f"--sweep-power-cap names {len(found)} caps; at most {CAPS_MOST} in one sweep")
    return tuple(found)


def check_place(words: Sequence[str]) -> None:
    """Raises ValueError where the command has no place for the watts."""
    if not any(PLACE in word for word in words[1:]):
        raise ValueError(f"--power-cap-cmd needs the word {PLACE} where the number of watts goes")


def sweep(order: SweepOrder, run_at: RunAt, say: Callable[[str], None]) -> dict[str, Any]:
    """Sets each cap, runs a score under it, restores, and returns the contents of sweep.json.

    What was finished before is used again. However it ends, by Ctrl-C too, the restore command is run once a cap was
    set. Raises RunFault for the folder, EnvironmentFault where a command fails, and whatever a run raises.
    """
    _begin(order)
    scores: list[dict[str, Any]] = []
    with _interruptible(), contextlib.ExitStack() as stack:
        touched = False
        for cap_w in order.caps_w:
            folder = order.folder(cap_w)
            if folder.score_path.is_file():
                say(f"{cap_w:g} W: finished before")
                scores.append(_finished(folder, cap_w))
                continue
            if not touched:
                stack.callback(_restore, order, say)
                touched = True
            say(f"{cap_w:g} W: setting the cap with {program_name(order.set_words)}")
            run_command(
                [word.replace(PLACE, f"{cap_w:g}") for word in order.set_words],
                "power cap",
                timeout_s=COMMAND_TIMEOUT_S,
            )
            first = order.folder(order.caps_w[0]) if scores else None
            scores.append(run_at(cap_w, folder.path, folder.inputs_path.is_file(), first))
    found = summary(order, scores)
    write_json(order.score_path, found)
    return found


def _begin(order: SweepOrder) -> None:
    asked = {
        "sweep_version": SWEEP_VERSION,
        "caps_w": list(order.caps_w),
        "command": program_name(order.set_words),  # the rest may hold a key
        "restores": order.restore_words is not None,
    }
    inputs = order.out / "sweep-inputs.json"
    if order.score_path.exists():
        raise RunFault(f"{order.out} is finished: its sweep.json stands; name a new folder for another sweep")
    if order.resume and inputs.is_file():
        try:
            before = msgspec.json.decode(inputs.read_bytes())
        except (msgspec.DecodeError, RecursionError) as error:
            raise RunFault(f"{inputs} is not readable: {error}") from error
        if before != asked:
            raise RunFault(f"{order.out} was started with other caps or commands: give the same, or name a new folder")
        return
    if order.out.is_symlink() or (order.out.exists() and (not order.out.is_dir() or any(order.out.iterdir()))):
        raise RunFault(f"{order.out} exists already: name a new folder, or continue an unfinished sweep with --resume")
    order.out.mkdir(parents=True, exist_ok=True)
    write_json(inputs, asked)


def _finished(folder: RunFolder, cap_w: float) -> dict[str, Any]:
    score = read_score(folder.score_path)
    if score["system"].get("power_cap_w") != cap_w:
        raise RunFault(f"{folder.score_path} is of another cap than its folder says")
    return score


def _restore(order: SweepOrder, say: Callable[[str], None]) -> None:
    if order.restore_words is None:
        say("the last cap stays: no --power-cap-restore-cmd was given")
        return
    say(f"restoring with {program_name(order.restore_words)}")
    with _deaf():
        run_command(order.restore_words, "power cap restore", timeout_s=COMMAND_TIMEOUT_S)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A polite kill and a closed terminal end a sweep as Ctrl-C does, so that the cap is restored then too."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handlers(interrupt, ("SIGTERM", "SIGHUP")):
        yield


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C does not leave a device half restored."""
    # A handler, not SIG_IGN: the restore command, and what it starts, would inherit that.
    with _handlers(lambda *_: None, ("SIGINT", "SIGTERM", "SIGHUP")):
        yield


@contextlib.contextmanager
def _handlers(handler: Any, names: Sequence[str]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    kept = {
        number: signal.signal(number, handler) for name in names if (number := getattr(signal, name, None)) is not None
    }
    try:
        yield
    finally:
        for number, before in kept.items():
            signal.signal(number, before)


# -- what came out


def summary(order: SweepOrder, scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The contents of sweep.json. Each cap is compared with the first; where that is refused, it says why."""
    first = order.folder(order.caps_w[0])
    rows = []
    for cap_w, score in zip(order.caps_w, scores, strict=True):
        folder = order.folder(cap_w)
        found = compare(first, folder) if cap_w != order.caps_w[0] else None
        limits_w = device_limits(folder)
        rows.append(
            {
                "cap_w": cap_w,
                "folder": folder.path.name,
                "limits_w": limits_w,
                "cap_seen": None if not limits_w else all(abs(at - cap_w) <= LIMIT_AGREES_W for at in limits_w),
                "verdict": score["verdict"],
                "results": [
                    {
                        key: result[key]
                        for key in (
                            *("slo", "verdict", "reasons", "agents", "interval", "certified"),
                            *("goodput_agents", "reference_trial", "denominators"),
                        )
                    }
                    for result in score["results"]
                ],
                "not_comparable_with_first": list(found.reasons) if found is not None else [],
                "against_first": [msgspec.to_builtins(ratio) for ratio in found.ratios] if found is not None else [],
            }
        )
    return {"sweep_version": SWEEP_VERSION, "caps_w": list(order.caps_w), "rows": rows, "notes": _notes(rows)}


def device_limits(folder: RunFolder) -> list[float]:
    """The limits that accelerators stated when the first trial's sources were opened, in watts, ascending."""
    numbers = folder.trial_numbers()
    if not numbers:
        return []
    devices = [
        device
        for source in read_facts(folder.trial_path(numbers[0])).power_sources
        if source.measured
        for device in source.devices
    ]
    return sorted({device.limit_w for device in devices if device.domain == "accelerator" and device.limit_w})


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    notes = []
    for row in rows:
        if row["cap_seen"] is False:
            limits = ", ".join(f"{limit:g} W" for limit in row["limits_w"])
            notes.append(f"{row['cap_w']:g} W was asked for, and the devices stated a limit of {limits}")
        if row["cap_seen"] is None:
            notes.append(f"{row['cap_w']:g} W: no device stated its limit, so nothing shows that the cap was set")
        notes += [
            f"{row['cap_w']:g} W does not compare with {rows[0]['cap_w']:g} W: {reason}"
            for reason in row["not_comparable_with_first"]
        ]
    return notes


def sweep_lines(found: dict[str, Any]) -> list[str]:
    """The sweep as a table for each service level, and what must stand beside it."""
    lines: list[str] = []
    names = list(dict.fromkeys(result["slo"] for row in found["rows"] for result in row["results"]))
    for name in names:
        table = [["cap", "limit seen", "verdict", "agents", "95 % interval", "certified", "per MW of"]]
        for row in found["rows"]:
            result = next(result for result in row["results"] if result["slo"] == name)
            table += _lines_of(row, result)
        lines += [*([""] if lines else []), name, *_aligned(table)]
    return [*lines, *(f"! {note}" for note in found["notes"])]


def _lines_of(row: dict[str, Any], result: dict[str, Any]) -> list[list[str]]:
    interval = result["interval"]
    own = [
        value(row["cap_w"], "W"),
        ", ".join(value(limit, "W") for limit in row["limits_w"]) or UNKNOWN,
        result["verdict"],
        value(result["agents"]),
        f"{interval['low']:.3g} to {interval['high']:.3g}" if interval else UNKNOWN,
        value(result["certified"]),
    ]
    per = [
        f"{denominator_name(item)} ({item['basis']}): {item['agents']:,.0f}, {value(item['watts_per_agent'], 'W')} each"
        for item in headline_rows(result["denominators"])
    ] or [UNKNOWN]
    return [[*own, per[0]], *([*[""] * len(own), each] for each in per[1:])]


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table]
