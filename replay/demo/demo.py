"""The demo: one pass through every stage, on this machine, with nothing left running behind it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console

from capture.fault import EnvironmentFault
from capture.importers.read import read_imported
from capture.scripted import ScriptedServer
from capture.shelf import Shelf
from capture.store import Store
from curate.build import build
from curate.dataset import Dataset
from replay.delay import DelayPolicy
from replay.demo.scenario import MODEL, TASKS, choose
from replay.endpoint import Endpoint
from replay.engine.llama import Engine, running_engine
from replay.live import LiveWatcher
from replay.plan import ContextPolicy, LengthPolicy
from replay.power.choice import PowerChoice, parse_power
from replay.power.source import PowerFault
from replay.protocol import Protocol
from replay.report import write_report
from replay.request import PlanRules, RunRequest
from replay.runfolder import RunFolder
from replay.score import run
from replay.slo import Slo, Term
from replay.summary import summary_lines
from replay.system import Accelerator, System
from replay.verify import verify

SESSIONS = Path(__file__).parent / "sessions"  # content-free Claude Code sessions, see NOTICE
PROTOCOL = Protocol(
    name="demo",
    ramp_per_s=16.0,
    settle_s=1.0,
    min_measure_s=5.0,
    min_trajectories=0,
    min_trajectories_per_agent=0,
    max_phase_s=30.0,
    start_offset_turns=5,
    request_timeout_s=30.0,
)
SERVICE_LEVEL = Slo(
    name="demo/180",
    version="1",
    terms=(
        Term(quantity="output_tok_s", percentile=25.0, limit=180.0),
        # Wide, because the client may be as late as a fiftieth of it, and it shares the cores with the engine.
        Term(quantity="ttft_s", percentile=95.0, limit=10.0),
    ),
    protocol=PROTOCOL,
    note="a level of the demo's own, for an engine that shares its machine with the client",
)
# A CPU serves short contexts only, and nobody should wait for recorded pauses: both rules print in the result.
RULES = PlanRules(
    delay=DelayPolicy(unsplit="capped:0.5"),
    length=LengthPolicy(cap=200),
    context=ContextPolicy(scale=0.2),
)
SLOTS, SLOT_CONTEXT = 16, 12_288
FIRST, LARGEST = 4, 64  # levels at which the search starts and ends
EXAMPLE_POWER = "declared:65W"  # a desktop processor's nameplate, for machines whose counters are not readable
EXAMPLE_NOTE = (
    "no power counter is readable here: 65 W is an example figure, not this machine's; state yours by --power"
)
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Talk:
    """Steps on stderr with the time each took; stdout belongs to the result."""

    console: Console
    began_ns: int
    step: int = 0

    def begin(self, text: str) -> None:
        self.step += 1
        seconds = (time.monotonic_ns() - self.began_ns) / 1e9
        self.console.print(f"[bold]{self.step}/6[/] {text} [dim]({seconds:.0f} s)[/]", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(f"    {text}", highlight=False, markup=False, soft_wrap=True)


def run_demo(*, out: Path | None, power: str | None, as_json: bool) -> None:
    """Run the whole path and print the score; the results stay in `out`, which must be new.

    Raises click's exceptions: exit code 2 for a folder that exists, 3 for a missing part, 130 after Ctrl-C.
    """
    folder = (out or Path(f"agentdyno-demo-{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    if folder.exists():
        raise click.UsageError(f"{folder} exists already: name a new folder with --out")
    try:
        choice, note = _power(power)
    except ValueError as fault:
        raise click.UsageError(str(fault)) from fault
    except PowerFault as fault:
        raise EnvironmentFault(str(fault)) from fault
    talk = Talk(console=Console(stderr=True), began_ns=time.monotonic_ns())
    folder.mkdir(parents=True)
    try:
        with _terminate_like_interrupt():
            score = _path(folder, choice, note, talk)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # the terminal may be what went away
            talk.console.print("interrupted: everything is stopped, nothing is left behind")
        raise click.exceptions.Exit(130) from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if as_json:
        click.echo(json.dumps(score, indent=1))
    else:
        click.echo("\n".join(summary_lines(score)))
        click.echo(f"report   {folder / 'run' / 'report.html'}")
        click.echo(f"dataset  {folder / 'dataset'}  (its card: README.md)")
        click.echo(f"again    {shlex.join([_own_command(), 'replay', 'verify', str(folder / 'run')])}")


def _own_command() -> str:
    """How to call the command that runs now: an environment's own, which need not be the first on PATH."""
    own = Path(sys.executable).with_name("agentdyno")
    return str(own) if own.exists() else "agentdyno"


def _path(folder: Path, power: PowerChoice, note: str | None, talk: Talk) -> dict[str, Any]:
    store = folder / "store"
    talk.begin(f"record: {len(TASKS)} tasks of a small agent, through the recorder")
    _record(store, talk)
    talk.begin("import: sessions of Claude Code that others recorded (token counts and hashes, no text)")
    _import(store, talk)
    talk.begin("curate: redact, count tokens, write Parquet, statistics, card and plots")
    built = build([store], folder / "dataset")
    dataset = Dataset.open(folder / "dataset")
    redactions = sum(built.redactions.values())
    talk.say(f"{len(dataset.session_ids)} sessions, {redactions} redactions, digest {dataset.digest[:12]}")
    talk.begin("serve: llama.cpp with a made-up model (made once, then cached)")
    with running_engine(slots=SLOTS, slot_context=SLOT_CONTEXT) as engine:
        talk.say(engine.label)
        if note is not None:
            talk.say(note)
        talk.begin(f"score: search the largest number of agents within {SERVICE_LEVEL.name}")
        score = _score(folder / "run", dataset, engine, power, note)
    talk.begin("verify: recompute everything from the records, write the report")
    run_folder = RunFolder(path=folder / "run")
    differences = verify(run_folder)
    if differences:
        raise click.ClickException(f"the score does not follow from its records: {differences[0]}")
    write_report(run_folder)
    return score


def _record(store: Path, talk: Talk) -> None:
    """Run the built-in agent on every task, side by side, behind a recorder in a process of its own."""
    Store.open(store, create=True)
    with ScriptedServer(choose) as model, _recorder(model.url, store) as url, ThreadPoolExecutor(len(TASKS)) as pool:
        for words in pool.map(lambda task: _work(url, task), TASKS):
            talk.say(f"agent: {words}")


@contextlib.contextmanager
def _recorder(upstream: str, store: Path) -> Iterator[str]:
    """`agentdyno capture serve` in a process of its own, as a user would start it; yields its base URL."""
    ready = store.parent / f".ready-{secrets.token_hex(4)}"
    command = [sys.executable, "-P", "-m", "agentdyno", "capture", "serve", "--upstream", upstream]
    command += ["--store", str(store), "--ready-file", str(ready), "--stop-with-stdin"]
    # In a session of its own: Ctrl-C reaches us alone, and we stop it in order. Its stdin ends with us in any case.
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if child.poll() is not None or time.monotonic() > deadline:
                child.kill()
                _, errors = child.communicate()
                raise EnvironmentFault(f"the recorder did not start: {errors.decode(errors='replace')[-300:]}")
            time.sleep(0.02)
        yield ready.read_text().strip()
    finally:
        child.terminate()
        try:
            child.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
        ready.unlink(missing_ok=True)


def _work(url: str, task: str) -> str:
    command = [sys.executable, "-P", "-m", "replay.demo.agent", "--base-url", f"{url}/v1"]
    command += ["--model", MODEL, "--task", task]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise EnvironmentFault(f"the demo's agent failed: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def _import(store: Path, talk: Talk) -> None:
    opened = Store.open(store)
    imported = read_imported("weka", sorted(SESSIONS.glob("*.json")), opened.key)
    Shelf(store).put_all(imported.trajectories)
    requests = sum(len(trajectory.requests) for trajectory in imported.trajectories)
    talk.say(f"{len(imported.trajectories)} sessions, {requests} requests")


def _score(folder: Path, dataset: Dataset, engine: Engine, power: PowerChoice, note: str | None) -> dict[str, Any]:
    request = RunRequest(
        kind="score",
        run_class="screen",
        endpoint=Endpoint(engine.url, engine.model),
        dataset_digest=dataset.digest,
        rules=RULES,
        slos=(SERVICE_LEVEL,),
        protocol=PROTOCOL,
        quick=True,
        client_limit=LARGEST,  # nobody waits for a self-test of so small a load
        system=_system(engine, note),
        power=(power,),
        agents=FIRST,
        maximum_agents=LARGEST,
        out=folder,
        resume=False,
    )
    with LiveWatcher() as watcher:
        return run(request, dataset.trajectories, watcher)


def _system(engine: Engine, note: str | None) -> System:
    return System(
        name="this machine's CPU",
        accelerators=(Accelerator(name=f"CPU, {engine.threads} thread(s)", kind="cpu"),),
        engine="llama.cpp",
        engine_version=f"xllamacpp {importlib.metadata.version('xllamacpp')}",
        model=engine.model,
        weights="made-up",
        precision="f16",
        kv_dtype="f16",
        moe=False,
        speculation="none",
        parallelism="none",
        tuned_by="the demo",
        run_by="the demo",
        notes="; ".join(filter(None, [engine.label, note])),
    )


def _power(text: str | None) -> tuple[PowerChoice, str | None]:
    """The power source that was asked for; else CPU counters; else an example figure, and the note that says so."""
    if text is not None:
        return parse_power(text), None
    choice = parse_power("rapl")
    try:
        choice.open().close()
    except PowerFault:
        return parse_power(EXAMPLE_POWER), EXAMPLE_NOTE
    return choice, None


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does, so that everything is stopped in order."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        # The same route, not only the same end: a running event loop takes SIGINT in order, and an exception that
        # is raised in the middle of one of its callbacks does not.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background, which must end all the same
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    # Under nohup SIGHUP is ignored, and stays so.
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
