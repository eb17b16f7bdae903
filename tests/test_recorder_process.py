"""The launcher's recorder: kept alive, replaced when it cannot be, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import capture.recorder_process
from capture.agents.table import AGENTS
from capture.reader import JournalReader
from capture.recorder_process import RecorderFault, RecorderProcess
from capture.run_summary import summarise
from capture.store import Store
from capture.upstream import Routes
from capture.upstream import Upstream as Target
from tests.sse_upstream import Upstream, agentdyno, running_upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as server:
        yield server


def process(tmp_path: Path, url: str, options: list[str] | None = None) -> RecorderProcess:
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return RecorderProcess(
        options=options if options is not None else ["--upstream", url],
        routes=Routes(default=Target.parse(url)),
        store=Store.open(tmp_path / "store", create=True),
        label="label-1",
        work=work,
        notes={"agent": "claude-code"},
    )


def ask(url: str, within_s: float = 30.0) -> bytes:
    deadline = time.monotonic() + within_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/v1/messages", data=b"{}", timeout=20) as answer:
                return bytes(answer.read())
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def kill_child(recorder: RecorderProcess) -> None:
    assert recorder._process is not None
    os.kill(recorder._process.pid, signal.SIGKILL)
    recorder._process.wait()


def test_what_cannot_be_started_again_is_relayed_and_the_gap_is_marked(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture.recorder_process, "_PAUSES_S", (0.0,))
    options = ["--upstream", upstream.url]
    recorder = process(tmp_path, upstream.url, options)
    with recorder:
        recorder.keep_alive()
        first = ask(recorder.url)
        options[:] = ["--no-such-option"]
        kill_child(recorder)
        assert ask(recorder.url) == first
        assert ask(recorder.url) == first
    assert recorder.relayed == 2
    assert recorder.restarts == 0
    assert "No such option" in recorder.words[0]
    store = Store.open(tmp_path / "store")
    summary = summarise(store, "label-1", AGENTS[0], before=(), relayed=recorder.relayed)
    assert "2 requests passed unrecorded" in summary.warnings[0]
    assert "1 gap;" in summary.head
    with JournalReader(store.journals()[0]) as reader:
        assert reader.meta["agent"] == "claude-code"


def test_a_recorder_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RecorderFault, match="No such option"):
        process(tmp_path, "http://127.0.0.1:1", ["--no-such-option"]).__enter__()


def test_a_port_that_somebody_else_took_ends_in_words(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture.recorder_process, "_PAUSES_S", ())

    def in_use(*_: object) -> None:
        raise OSError(98, "in use")

    monkeypatch.setattr("capture.bare_relay.BareRelay.start", in_use)
    recorder = process(tmp_path, upstream.url)
    with recorder:
        recorder.keep_alive()
        kill_child(recorder)
        assert recorder._watch is not None
        recorder._watch.join(20)
    assert "no relay either" in recorder.words[0]
    assert recorder.relayed is None


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc; elsewhere only the recorder ends by itself")
def test_neither_recorder_nor_agent_outlives_a_killed_launcher(tmp_path: Path) -> None:
    agent = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    launcher = subprocess.Popen(
        agentdyno(
            *("capture", "run", "--store", str(tmp_path / "store"), "--upstream", "http://127.0.0.1:1"),
            *("--", sys.executable, "-c", agent),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # what a killed launcher leaves lying
    )
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert str(pid) in children
    assert len(children) == 2
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    deadline = time.monotonic() + 30
    while any(_alive(int(child)) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)
