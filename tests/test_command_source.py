"""A command that prints power lines: what it prints is read, and every way in which it fails has a name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replay.power import command as power_command
from replay.power.choice import parse_power
from replay.power.command import CommandSource
from replay.power.meter import Meter
from replay.power.source import PowerFault, PowerSample

HEADER = '{"agentdyno_power": 1, "period_s": 0.1, "devices": [{"uid": "n1", "domain": "node"}]}'
READING = '{"device": "n1", "power_w": 500}'


@contextmanager
def running(script: str) -> Iterator[CommandSource]:
    source = CommandSource(["sh", "-c", script])
    try:
        yield source
    finally:
        source.close()


def until(source: CommandSource, seen: Callable[[list[PowerSample]], bool]) -> list[PowerSample]:
    """All readings until these are enough."""
    samples: list[PowerSample] = []
    end = time.monotonic() + 20
    while not seen(samples):
        assert time.monotonic() < end, samples
        samples += source.read()
        time.sleep(0.01)
    return samples


def is_lost(samples: list[PowerSample]) -> bool:
    return any(sample.flag == "lost" for sample in samples)


def test_what_it_prints_is_read_as_it_is_printed() -> None:
    stamped = f'{{"t_unix_ns": {time.time_ns() - 1_000_000_000}, "device": "n1", "energy_j": 7.5, "read_us": 12}}'
    with running(f"echo '{HEADER}'; echo '{READING}'; echo '{stamped}'; exec sleep 60") as source:
        info = source.describe()
        assert (info.kind, info.name, info.period_s, info.measured) == ("command", "command:sh", 0.1, True)
        began_ns = time.monotonic_ns()
        found = until(source, lambda samples: len(samples) == 2)
    assert [(item.kind, item.value, item.flag) for item in found] == [("power_w", 500.0, "ok"), ("energy_j", 7.5, "ok")]
    assert abs(found[0].t_ns - began_ns) < 5_000_000_000  # when it came
    assert 0.5e9 < found[0].t_ns - found[1].t_ns < 20e9  # when it says


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 3", "command:sh is no power source with exit code 3$"),
        ("echo nothing here >&2; exit 3", "with exit code 3; it says: nothing here"),
        ("kill -9 $$", "by signal 9"),
        ("echo hello", "line 1 is not {.*: hello"),
        ("echo '{\"agentdyno_power\": 1}'", "missing required field `devices`"),
        ("exec 1>&-; exec sleep 60", "it closed its output"),
        ("exec sleep 60", r"printed no first power line within 0\.5 s: try it by hand"),
        ("exec cat /dev/zero", "is too long|it prints more than is read"),
    ],
)
def test_one_that_does_not_start_is_one_sentence(script: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_command, "STOP_S", 0.2)
    began = time.monotonic()
    with pytest.raises(PowerFault, match=says):
        CommandSource(["sh", "-c", script], start_s=0.5 if "printed no" in says else 20)
    assert time.monotonic() - began < 15


def test_what_cannot_be_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PowerFault, match="command:nowhere does not exist"):
        CommandSource(["/nowhere/nowhere", "--key", "s3cret"])
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(PowerFault, match="command:folder cannot be run: Permission denied"):
        CommandSource([str(folder)])


@pytest.mark.parametrize(
    ("then", "note"),
    [
        ("exit 5", "command:sh is ended with exit code 5"),
        ("kill -9 $$", "command:sh is ended by signal 9"),
        ("echo K3Y=s3cret; sleep 60", "command:sh is garbled: line 3 is no power line"),
        ("exec cat /dev/zero", "command:sh is garbled: line 3 is no power line"),
        ("yes ''", "command:sh is flooded: it prints more than is read"),
    ],
)
def test_one_that_fails_later_is_lost_once_with_its_reason(
    then: str, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power_command, "SILENT_S", 60.0)
    opened = tmp_path / "opened"
    waiting = f"until [ -e '{opened}' ]; do sleep 0.02; done"
    with running(f"echo '{HEADER}'; echo '{READING}'; {waiting}; {then}") as source:
        opened.touch()
        found = until(source, is_lost)
        assert [(item.kind, item.value, item.flag) for item in found] == [
            ("power_w", 500.0, "ok"),
            ("power_w", None, "lost"),
        ]
        assert source.read() == []
        assert source.describe().notes == (note,)


def test_the_reason_reaches_the_run(tmp_path: Path) -> None:
    script = tmp_path / "meter.sh"
    script.write_text(f"echo '{HEADER}'; echo '{READING}'; sleep 0.2; exit 7\n")
    with Meter([parse_power(f"command:sh {script} --key s3cret")]) as meter:
        assert meter.infos[0].name == "command:sh"
        end = time.monotonic() + 20
        while not meter.infos[0].notes:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert meter.infos[0].notes == ("command:sh is ended with exit code 7",)
        assert "s3cret" not in repr(meter.infos)


def test_readings_that_nobody_takes_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_command, "MOST_WAITING", 100)
    with running(
        f"echo '{HEADER}'; for i in $(seq 400); do echo '{READING}'; done; sleep 1; echo '{READING}'"
    ) as source:
        end = time.monotonic() + 20
        while not source.describe().notes:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert "flooded" in source.describe().notes[0]
        assert is_lost(source.read())


def test_silence_is_an_error_and_no_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(power_command, "SILENT_S", 0.5)
    go = tmp_path / "go"
    os.mkfifo(go)
    with running(f"echo '{HEADER}'; echo '{READING}'; read line < '{go}'; echo '{READING}'; exec sleep 60") as source:
        found = until(source, lambda samples: any(item.flag == "error" for item in samples))
        assert [item.flag for item in found] == ["ok", "error"]
        assert source.describe().notes == ("command:sh is silent",)
        assert source.read() == []  # said once
        go.write_text("go\n")
        assert [item.value for item in until(source, bool)] == [500.0]
        assert source.describe().notes == ()


def test_one_that_will_not_end_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_command, "STOP_S", 0.2)
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 300 & echo $! $$ > '{pids}'; echo '{HEADER}'; while :; do wait; done"
    with running(script):
        numbers = [int(word) for word in pids.read_text().split()]
    assert len(numbers) == 2
    for number in numbers:
        end = time.monotonic() + 10
        while is_alive(number):
            assert time.monotonic() < end
            time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
