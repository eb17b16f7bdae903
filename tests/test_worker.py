"""Several client processes as one, and the spool that records wait in."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import signal
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.atomic import write_atomically
from replay import crew as crew_module
from replay import trial
from replay.crew import Crew
from replay.drive import Drive, drive
from replay.endpoint import Endpoint
from replay.health import HealthWatch, merge_health
from replay.loop import run
from replay.record import RequestRecord
from replay.spool import Spool, read_spool
from replay.trial import TrialFault
from tests.fake_server import FakeServer, serving
from tests.test_drive import SHORT, WHOLE, HandPlan, HandScript, chain, plan, play_it


def children_of(process: int) -> list[int]:
    """Worker processes that a process has started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes()
            except (OSError, ValueError, IndexError):
                continue
            if parent == process and b"replay.worker" in command:
                found.append(int(folder.name))
    return sorted(found)


def test_two_workers_are_one_client(tmp_path: Path) -> None:
    scripts = {f"s{number}": HandScript(chain(4, tokens=10)) for number in range(6)}
    seen = []
    with serving(ttft_ms=20, itl_ms=5) as server:
        result = play_it(
            server,
            HandPlan(scripts),
            agents=3,
            protocol=dataclasses.replace(WHOLE, ramp_per_s=20.0),
            workers=2,
            folder=tmp_path,
            on_progress=seen.append,
        )
        arrived = [served.arrived_at_ns - result.zero_monotonic_ns for served in server.log]
    assert result.stop_reason == "plays_done"
    assert len(result.records) == len(arrived) == 24
    assert {(record.agent, record.worker) for record in result.records} == {(0, 0), (1, 1), (2, 0)}
    assert [record.outcome for record in result.records] == ["ok"] * 24
    sent = [record.sent_at_ns for record in result.records]
    assert sent == sorted(sent)
    # One clock: what either worker stamped agrees with the server's own.
    assert all(0 <= there - here < 250e6 for here, there in zip(sent, sorted(arrived), strict=True))
    assert [play.session_id for play in sorted(result.finished_plays, key=lambda play: (play.agent, play.play))] == [
        "s0", "s3", "s1", "s4", "s2", "s5",
    ]  # fmt: skip
    assert [health.worker for health in result.health.workers] == [0, 1]
    assert result.health.fault is None
    assert all(window.workers == 2 for window in result.health.windows)
    assert seen[-1].finished_trajectories == 6
    assert seen[-1].requests == 24
    assert not list(tmp_path.iterdir())
    assert not children_of(os.getpid())


def test_a_killed_worker_voids_the_trial_and_says_so(tmp_path: Path) -> None:
    async def main(server: FakeServer) -> Drive:
        endpoint = Endpoint(server.url, "fake-model")
        driving = asyncio.create_task(
            drive(plan(*chain(200), once=False), endpoint, agents=4, protocol=WHOLE, workers=2, folder=tmp_path)
        )
        while len(server.log) < 12:  # noqa: ASYNC110 - the server runs in a thread
            await asyncio.sleep(0.02)
        os.kill(children_of(os.getpid())[0], signal.SIGKILL)
        return await driving

    with serving(ttft_ms=10, itl_ms=2) as server:
        result = run(main(server))
    assert result.stop_reason == "client_failed"
    assert result.phase_end_ns < 15e9  # at once, not when the phase would have been over
    assert "of 2 ended by SIGKILL" in (result.health.fault or "")
    assert result.records  # what the other one did is kept
    assert not children_of(os.getpid())


def test_a_crew_that_is_interrupted_keeps_its_records() -> None:
    async def main(server: FakeServer) -> Drive:
        endpoint = Endpoint(server.url, "fake-model")
        driving = asyncio.create_task(
            drive(plan(*chain(50), once=False), endpoint, agents=2, protocol=WHOLE, workers=2)
        )
        while len(server.log) < 4:  # noqa: ASYNC110 - the server runs in a thread
            await asyncio.sleep(0.02)
        driving.cancel()
        return await driving

    with serving(ttft_ms=10, itl_ms=2) as server:
        result = run(main(server))
    assert result.stop_reason == "interrupted"
    assert {record.agent for record in result.records} == {0, 1}
    assert result.health.fault is None


def test_the_plan_is_its_owners_alone_and_gone_once_the_workers_run(tmp_path: Path) -> None:
    path, seen = tmp_path / "job.pickle", []
    path.write_bytes(b"left by a client that was killed")
    path.chmod(0o666)
    start = crew_module._start

    async def look(job: int, number: int) -> asyncio.subprocess.Process:
        seen.append(os.fstat(job).st_mode & 0o777)
        return await start(job, number)

    with pytest.MonkeyPatch.context() as patch, serving(ttft_ms=5, itl_ms=1) as server:
        patch.setattr(crew_module, "_start", look)
        patch.setattr(crew_module.Crew, "_all_ready", not_there(path, crew_module.Crew._all_ready))
        result = play_it(server, HandPlan({"s": HandScript(chain(1)), "t": HandScript(chain(1))}), agents=2,
                         protocol=WHOLE, workers=2, folder=tmp_path)  # fmt: skip
    assert seen == [0o600, 0o600]
    assert len(result.records) == 2


def not_there(path: Path, ready: Callable[[Crew], Awaitable[None]]) -> Callable[[Crew], Awaitable[None]]:
    def all_ready(crew: Crew) -> Awaitable[None]:
        assert not path.exists()
        return ready(crew)

    return all_ready


def test_a_plan_at_fault_is_named_across_processes() -> None:
    broken = HandPlan({"s": HandScript(chain(3), broken_at=1), "t": HandScript(chain(3))}, once=False)
    with serving() as server, pytest.raises(ValueError, match="request 1 has no text"):
        play_it(server, broken, agents=2, protocol=SHORT, workers=2)
    assert not children_of(os.getpid())


def test_workers_that_do_not_start_are_an_environment_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(job: int, number: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *("sh", "-c", "exit 7"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    monkeypatch.setattr(crew_module, "_start", broken)
    with serving() as server, pytest.raises(Exception, match="client process 1 of 2 ended by exit status 7 before"):
        play_it(server, plan(*chain(1)), agents=2, workers=2)


numbers = st.one_of(st.none(), st.integers(min_value=0, max_value=2**62))
VALUES = {
    "int": st.integers(min_value=0, max_value=2**62),
    "int | None": numbers,
    "str": st.text(max_size=20),
    "str | None": st.one_of(st.none(), st.text(max_size=20)),
    "bool": st.booleans(),
    "float | None": st.one_of(st.none(), st.floats(allow_nan=False)),
    "tuple[int, ...]": st.lists(st.integers(min_value=0, max_value=2**40), max_size=8).map(tuple),
    "RequestOutcome": st.just("ok"),
}
records = st.builds(
    RequestRecord,
    **{field.name: VALUES[str(field.type)] for field in dataclasses.fields(RequestRecord)},  # type: ignore[arg-type]
)


@given(st.lists(records, max_size=4), st.integers(min_value=0, max_value=40))
def test_a_spool_gives_back_what_it_took_and_a_cut_one_its_whole_records(
    tmp_path_factory: pytest.TempPathFactory, written: list[RequestRecord], cut: int
) -> None:
    path = tmp_path_factory.mktemp("spool") / "records.spool"
    spool = Spool(path)
    for record in written:
        spool.append(record)
    spool.close()
    assert list(read_spool(path)) == written
    if written and cut:
        path.write_bytes(path.read_bytes()[:-cut])
        assert list(read_spool(path)) == written[:-1]


def test_a_disk_that_is_full_ends_the_trial(tmp_path: Path) -> None:
    """`/dev/full` takes nothing: as good as a full disk."""
    (tmp_path / "records.0.spool").symlink_to("/dev/full")
    with serving() as server, pytest.raises(OSError, match="No space left") as fault:
        play_it(server, plan(*chain(3)), folder=tmp_path)
    assert "records.0.spool" in str(fault.value)


def test_a_disk_that_is_full_at_the_end_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TrialFault, match=r"/dev/full cannot be written: .*No space left"):
        trial.write_rows(polars.DataFrame({"a": list(range(100_000))}), Path("/dev/full"))
    open_file = os.open
    monkeypatch.setattr("os.open", lambda *_: open_file("/dev/full", os.O_WRONLY))
    with pytest.raises(OSError, match="No space left") as fault:
        write_atomically(tmp_path / "plan.json", b"x")
    assert fault.value.filename == str(tmp_path / "plan.json")


def a_record() -> RequestRecord:
    with serving(ttft_ms=1, itl_ms=0) as server:
        return play_it(server, plan(*chain(1))).records[0]


def test_a_disk_that_hangs_does_not_hold_up_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, goes_on, write = a_record(), threading.Event(), os.write

    def stuck(descriptor: int, data: bytes) -> int:
        assert goes_on.wait(30)
        return write(descriptor, data)

    monkeypatch.setattr("replay.spool.os.write", stuck)
    path = tmp_path / "records.spool"
    spool = Spool(path)
    for _ in range(1000):
        spool.append(record)
    assert (spool.count, path.stat().st_size) == (1000, 0)  # all are taken, none is written
    monkeypatch.setattr("replay.spool.MOST_WAITING_BYTES", 100)
    with pytest.raises(OSError, match="more slowly than they come"):
        spool.append(record)
    goes_on.set()
    spool.close()
    assert list(read_spool(path)) == [record] * 1000


def watched(lags: list[tuple[int, int]]) -> HealthWatch:
    """A watch that has seen samples: (due, lag) in ms."""
    watch = HealthWatch(0)
    for due_ms, lag_ms in lags:
        watch._sampled_at_ns.append(due_ms * 1_000_000)
        watch._lag_ns.append(lag_ms * 1_000_000)
        watch._cpu_ns.append(due_ms * 500_000)
    return watch


def test_the_worst_worker_counts_in_every_window() -> None:
    on_time = [(due, 1) for due in range(0, 10_000, 10)]
    late_in_second = [(due, 80 if due >= 5_000 else 1) for due in range(0, 10_000, 10)]
    parts = [watched(lags).judge(0, 10_000_000_000) for lags in (on_time, late_in_second)]
    merged = merge_health(parts)
    late = [window.start_ns >= 5_000_000_000 for window in merged.windows]
    assert [window.late for window in merged.windows] == late
    assert [window.loop_lag_p99_ms for window in merged.windows] == [80 if each else 1 for each in late]
    assert [worker.late_windows for worker in merged.workers] == [0, sum(late)]
    assert 0 < sum(late) < len(late)
    assert merged.cpu_seconds == pytest.approx(sum(part.cpu_seconds for part in parts))
    assert merged.loop_lag_max_ms == 80
    assert merge_health(parts[:1]) is parts[0]


def test_one_long_stall_is_not_one_sample_among_many() -> None:
    async def main() -> HealthWatch:
        watch = HealthWatch(0, lambda sockets: sockets * 10)
        watch.start()
        await asyncio.sleep(0.05)
        end = asyncio.get_running_loop().time() + 0.3
        while asyncio.get_running_loop().time() < end:
            pass
        await asyncio.sleep(0.05)
        watch.stop()
        return watch

    watch = run(main())
    lags = sorted(watch._lag_ns, reverse=True)
    assert lags[0] > 250e6
    assert all(before - after < 21e6 for before, after in itertools.pairwise(lags[:20]))  # one sample in 20 ms
    first, last = watch._sampled_at_ns[0], watch._sampled_at_ns[-1]
    health = watch.judge(first, last + 1)
    assert health.late
    assert health.socket_backlog_max_bytes == 320
