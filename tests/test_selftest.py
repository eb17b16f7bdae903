"""How many agents this machine drives: the search on made-up machines, and once, small, on this one."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from replay import selftest as module
from replay.commands.selftest import selftest as command
from replay.selftest import Level, find_limit, selftest


def level(
    agents: int, *, held: bool, cpu_share: float = 0.9, source_cpu: float = 0.3, source_late: bool = False
) -> Level:
    return Level(
        agents=agents,
        held=held,
        source_late=source_late,
        ttft_error_ms=1.0,
        gap_error_ms=1.0,
        loop_lag_ms=1.0,
        source_late_ms=0.1,
        source_cpu_share=source_cpu,
        cpu_share=cpu_share,
        cpu_us_per_event=9.0,
        events=1000,
        memory_mb=80.0,
    )


def machine(capacity: int, **options: float):
    """A machine whose client keeps up with so many agents, at a share of a core in proportion."""
    return lambda agents: level(agents, held=agents <= capacity, cpu_share=agents / capacity, **options)


@pytest.mark.parametrize("capacity", [1, 7, 127, 128, 900, 3000])
def test_the_limit_is_found_within_a_tenth(capacity: int) -> None:
    levels, why = find_limit(machine(capacity), most=16_384, workers=1, time_left=lambda: True)
    found = max((each.agents for each in levels if each.held), default=0)
    assert capacity / 1.1 - 1 <= found <= capacity
    assert why == "the client was late"
    assert len(levels) < 30


def test_nothing_above_what_was_asked_is_tried() -> None:
    levels, why = find_limit(machine(3000), most=200, workers=1, time_left=lambda: True)
    assert max(each.agents for each in levels) == 200
    assert why == "as asked"


def test_one_bad_moment_is_no_limit() -> None:
    tried: list[int] = []

    def measure(agents: int) -> Level:
        tried.append(agents)
        return level(agents, held=len(tried) != 1)

    levels, why = find_limit(measure, most=100, workers=1, time_left=lambda: True)
    assert tried == [100, 100]
    assert [each.held for each in levels] == [False, True]
    assert why == "as asked"


def test_without_time_one_level_is_measured() -> None:
    levels, why = find_limit(machine(50), most=16_384, workers=1, time_left=lambda: False)
    assert [each.agents for each in levels] == [128]
    assert why == "no time left"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"source_late": True, "source_cpu": 0.95}, "the source was late"),
        ({"source_cpu": 0.95}, "the client was late"),
        ({"cpu_share": 0.2, "source_cpu": 0.1, "source_late": True}, "something else took the CPU"),
    ],
)
def test_who_was_late_is_said(options: dict[str, float], why: str) -> None:
    levels, found = find_limit(
        lambda agents: level(agents, held=agents <= 3, **options),  # type: ignore[arg-type]
        most=16_384,
        workers=1,
        time_left=lambda: True,
    )
    assert found == why
    assert max(each.agents for each in levels if each.held) == 3


def test_a_small_one_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEASURE_S", 0.4)
    monkeypatch.setattr(module, "RAMP_S", 0.1)
    monkeypatch.setattr(module, "SETTLE_S", 0.1)
    seen: list[Level] = []
    found = selftest(
        tok_s=100.0, prompt_bytes=5_000, seconds=0.1, ttft_s=0.05, most=4, prompt_cost=True, on_level=seen.append
    )
    (only,) = found.levels
    assert seen == [only]
    assert only.agents == 4
    # Four agents at 100 tokens a second for 0.6 s, less the first 0.05 s; a busy machine gives fewer.
    assert 10 < only.events < 400
    assert only.ttft_error_ms is not None
    assert only.gap_error_ms is not None
    assert found.agents == (4 if only.held else 0)
    assert found.why == ("as asked" if only.held else "no time left")
    assert found.limit is None
    assert found.prompt_cost is not None
    assert found.prompt_cost.cpu_ms_per_mb > 0
    assert "at 100 tokens a second" in found.sentence()


def test_the_command_prints_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = module.SelfTest(
        agents=900,
        at_least=False,
        why="the client was late",
        workers=1,
        tok_s=50.0,
        ttft_s=0.2,
        prompt_bytes=108_000,
        streams_per_core=1100.0,
        cpu_us_per_event=9.0,
        prompt_cost=None,
        levels=(level(900, held=True),),
    )
    asked: dict[str, object] = {}

    def fake(**options: object) -> module.SelfTest:
        asked.update(options)
        return found

    monkeypatch.setattr(module, "selftest", fake)
    result = CliRunner().invoke(command, ["--speed", "20", "--prompt-tokens", "1000", "--workers", "2"])
    assert result.exit_code == 0
    assert "drives 900 agents" in result.stdout
    assert (asked["tok_s"], asked["prompt_bytes"], asked["workers"]) == (20.0, 4000, 2)
    result = CliRunner().invoke(command, ["--json"])
    assert json.loads(result.stdout)["agents"] == 900
