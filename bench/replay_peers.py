"""Our replay client beside AIPerf and guidellm: the same source, the same number of streams, in the same run.

    python bench/replay_peers.py --install DIR            # installs the peers there (6 GB, guidellm brings torch), once
    python bench/replay_peers.py --aiperf DIR/aiperf/bin/aiperf --guidellm DIR/guidellm/bin/guidellm
    python bench/replay_peers.py --aiperf … --streams 100 --seconds 15

Everybody works through four-turn sessions whose prompts grow by 200 tokens a turn, 128 tokens an answer. AIPerf runs
in trace mode: Mooncake sessions with `--fixed-schedule`, two workers, the server's token counts (its plain concurrency
mode spins a core, and to beat that would prove nothing). guidellm has no pause between turns and keeps live answers
as history. CPU is that of all processes of a tool, over the stretch in which the source served, so that start-up and
the final report are in nobody's number; an event is a token. Latencies are of requests sent 5 s after the first or
later, in ms above the truth (200 ms, 20 ms). ITL is the gap between chunks, but for guidellm, which keeps a request's
mean only. MB is the peak of the proportional set size of all processes. `source` and `foreign` are as in
`bench/replay.py`, and a run in which the source was late is repeated. Ends stdout with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # run as a file, this one would hide the package `replay`

from bench.hand_plan import PAUSE_S, TOKENS, TURNS  # noqa: E402
from bench.replay_clients import quantile  # noqa: E402
from bench.source import FOREIGN_CORES, MODEL, Machine, Source, cpu_s, favour, serving, was_late  # noqa: E402
from bench.watch import proportional_bytes, tree  # noqa: E402

AIPERF, GUIDELLM = "aiperf==0.13.0", "guidellm==0.8.1"
TTFT_MS, ITL_MS = 200.0, 20.0
TURN_S = TTFT_MS / 1000 + (TOKENS - 1) * ITL_MS / 1000 + PAUSE_S
RAMP_S = 2.0
SETTLE_S = 5.0
TRIES = 3
GOAL_SHARE = 0.2
"""Of AIPerf's CPU per event: at most a fifth."""

type Row = dict[str, Any]


@dataclass
class Latencies:
    """What a tool wrote down, in ms."""

    ttft_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)
    failed: int = 0


@dataclass(frozen=True)
class Peer:
    """How a tool is started in a folder, and how its results are read there."""

    name: str
    command: Callable[[Source, Path], list[str]]
    read: Callable[[Path, str], Latencies]


def message(session: int, turn: int) -> str:
    """What the user says in a turn."""
    return f"session {session} turn {turn} " + "word " * 200


def ours(streams: int, seconds: float) -> Peer:
    """Our whole driver."""

    def command(source: Source, folder: Path) -> list[str]:
        del folder
        words = [sys.executable, "-m", "bench.replay_clients", "ours", "--url", source.url]
        return [*words, "--streams", str(streams), "--seconds", str(seconds)]

    def read(folder: Path, out: str) -> Latencies:
        del folder
        told = json.loads(out.splitlines()[-1])
        return Latencies([told["ttft_p99_ms"]], [told["itl_p99_ms"]], told["failed"])

    return Peer("agentdyno", command, read)


def aiperf(program: Path, streams: int, seconds: float) -> Peer:
    """AIPerf in trace mode."""

    def command(source: Source, folder: Path) -> list[str]:
        turns = round(seconds / TURN_S)
        with (folder / "sessions.jsonl").open("w") as file:
            for turn in range(turns):
                for session in range(streams):
                    history = [{"role": "user", "content": message(session, past)} for past in range(turn % TURNS + 1)]
                    row: Row = {"session_id": f"s{session}", "messages": history, "output_length": TOKENS}
                    if turn:
                        row["delay"] = PAUSE_S * 1000
                    else:
                        row["timestamp"] = session / streams * RAMP_S * 1000
                    file.write(json.dumps(row) + "\n")
        write_tokenizer(folder / "tokenizer")
        return [
            *(str(program), "profile", "--model", MODEL, "--tokenizer", str(folder / "tokenizer"), "--url", source.url),
            *("--endpoint-type", "chat", "--streaming", "--use-server-token-count"),
            *("--input-file", str(folder / "sessions.jsonl"), "--custom-dataset-type", "mooncake_trace"),
            *("--fixed-schedule", "--workers-max", "2", "--artifact-dir", str(folder / "out")),
            *("--export-level", "records", "--ui", "none", "--no-gpu-telemetry", "--no-server-metrics"),
        ]

    def read(folder: Path, out: str) -> Latencies:
        del out
        rows = [json.loads(line) for line in (folder / "out" / "profile_export.jsonl").read_text().splitlines()]
        begun = min(row["metadata"]["request_start_ns"] for row in rows)
        found = Latencies(failed=sum("time_to_first_token" not in row["metrics"] for row in rows))
        for row in rows:
            settled = row["metadata"]["request_start_ns"] >= begun + SETTLE_S * 1e9
            if settled and "time_to_first_token" in row["metrics"]:
                found.ttft_ms.append(row["metrics"]["time_to_first_token"]["value"])
                found.gap_ms += row["metrics"]["inter_chunk_latency"]["value"]
        return found

    return Peer("AIPerf", command, read)


def guidellm(program: Path, streams: int, seconds: float) -> Peer:
    """guidellm with a fixed concurrency."""

    def command(source: Source, folder: Path) -> list[str]:
        with (folder / "sessions.jsonl").open("w") as file:
            for session in range(int(streams * (seconds / TURN_S / TURNS + 2))):
                row: Row = {f"prompt_{turn}": message(session, turn) for turn in range(TURNS)}
                row |= {f"output_tokens_count_{turn}": TOKENS for turn in range(TURNS)}
                file.write(json.dumps(row) + "\n")
        write_tokenizer(folder / "tokenizer")
        return [
            *(str(program), "run", "--backend", f"kind=openai_http,target={source.url},model={MODEL}"),
            *("--profile", f"kind=concurrent,streams={streams}"),
            *("--constraint", f"kind=max_duration,seconds={seconds:g}"),
            *("--tokenizer", f"kind=huggingface_auto,model={folder / 'tokenizer'}"),
            *("--data", f"kind=json_file,path={folder / 'sessions.jsonl'}"),
            *("--output", f"kind=json,path={folder / 'out.json'}", "--disable-console"),
        ]

    def read(folder: Path, out: str) -> Latencies:
        del out
        found = Latencies()
        requests = json.loads((folder / "out.json").read_text())["benchmarks"][0]["requests"]
        found.failed = len(requests["errored"] or ())
        rows = requests["successful"] or ()
        begun = min((row["request_start_time"] for row in rows), default=0.0)
        for row in rows:
            if row["request_start_time"] >= begun + SETTLE_S:
                found.ttft_ms.append(row["time_to_first_token_ms"])
                found.gap_ms.append(row["inter_token_latency_ms"])
        return found

    return Peer("guidellm", command, read)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer that splits at spaces: the peers want one, and nothing here is counted by it."""
    folder.mkdir()
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "word": 1, "turn": 2}, "unk_token": "[UNK]"}
    text = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    names = ("truncation", "padding", "normalizer", "post_processor", "decoder")
    (folder / "tokenizer.json").write_text(json.dumps(text | dict.fromkeys(names)))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


class Watch(threading.Thread):
    """Follows a tool's processes and the source: CPU over the stretch in which tokens flowed, and the most memory."""

    def __init__(self, pid: int, source: Source) -> None:
        super().__init__()
        self.pid, self.source = pid, source
        self.over = threading.Event()
        self.peak_mb = 0.0
        self.processes = 0
        self._spent: dict[int, float] = {}
        self.marks: list[tuple[float, int, float]] = []  # time, tokens served, CPU; while tokens flow

    def run(self) -> None:
        """Look three times a second until told that it is over."""
        before = 0
        while not self.over.wait(0.33):
            pids = tree(self.pid)
            for pid in pids:
                self._spent[pid] = max(self._spent.get(pid, 0.0), cpu_s(pid, children=False))
            tokens = self.source.log()["tokens"]
            if tokens > before:
                self.marks.append((time.monotonic(), tokens, sum(self._spent.values())))
            before = tokens
            self.peak_mb = max(self.peak_mb, sum(map(proportional_bytes, pids)) / 1e6)
            self.processes = max(self.processes, len(pids))


def run_once(peer: Peer) -> Row:
    """One tool against a fresh source."""
    run = serving(ttft_ms=TTFT_MS, itl_ms=ITL_MS)
    with tempfile.TemporaryDirectory(prefix="agentdyno-peer-") as name, run as source:
        folder = Path(name)
        # AIPerf takes a folder as a tokenizer only where the hub is not declared to be offline.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
        machine = Machine()
        source_before_s, own_before_s = cpu_s(source.pid), time.process_time()
        with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as error:
            tool = subprocess.Popen(
                peer.command(source, folder),
                cwd=ROOT if peer.name == "agentdyno" else folder,
                env=kept | {"HOME": str(folder), "OPENBLAS_NUM_THREADS": "1"},
                stdout=out,
                stderr=error,
            )
        favour(tool.pid)
        watch = Watch(tool.pid, source)
        watch.start()
        _, status, usage = os.wait4(tool.pid, 0)
        tool.returncode = os.waitstatus_to_exitcode(status)
        watch.over.set()
        watch.join()
        said = (folder / "out.txt").read_text() + (folder / "err.txt").read_text()
        if tool.returncode or len(watch.marks) < 3:
            sys.exit(f"{peer.name} ended with {tool.returncode}:\n{said[-3000:]}")
        log = source.log()
        bench_s = cpu_s(source.pid) - source_before_s + time.process_time() - own_before_s
        foreign = machine.foreign(usage.ru_utime + usage.ru_stime + bench_s)
        seen = peer.read(folder, (folder / "out.txt").read_text())
    (begun, first, spent), (ended, last, spent_then) = watch.marks[0], watch.marks[-1]
    ttft, gap = quantile(seen.ttft_ms, 0.99), quantile(seen.gap_ms, 0.99)
    return {
        "events_per_s": (last - first) / (ended - begun),
        "us_per_event": (spent_then - spent) / (last - first) * 1e6,
        "ttft_over_ms": None if ttft is None else ttft - TTFT_MS,
        "itl_over_ms": None if gap is None else gap - ITL_MS,
        "peak_mb": watch.peak_mb,
        "processes": watch.processes,
        "failed": seen.failed,
        "source_late_p99_ms": log["late_p99_us"] / 1000,
        "source_late": was_late(log),
        "foreign": foreign,
    }


def run_row(peer: Peer) -> Row | None:
    """The same, repeated while the source was late; None when it always was."""
    for _ in range(TRIES):
        row = run_once(peer)
        if not row["source_late"]:
            return row
        print(f"{peer.name}: the source was late (p99 {row['source_late_p99_ms']:.1f} ms): again", file=sys.stderr)
    return None


def number(value: float | None) -> str:
    """Milliseconds above the truth."""
    return "-" if value is None else f"{value:+.1f}"


def install(folder: Path) -> None:
    """Put each peer into an environment of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for requirement in (AIPERF, GUIDELLM):
        home = folder / requirement.split("==")[0]
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        python = str(home / "bin" / "python")
        install_by = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
        subprocess.run([*install_by, "--quiet", requirement], check=True)
        print(home / "bin" / requirement.split("==")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", type=Path, metavar="DIR", help="install the peers there and stop")
    parser.add_argument("--aiperf", type=Path, help=f"its program; made for {AIPERF}")
    parser.add_argument("--guidellm", type=Path, help=f"its program; made for {GUIDELLM}")
    parser.add_argument("--streams", type=int, nargs="*", default=[100, 400])
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    if options.install is not None:
        install(options.install.absolute())
        return
    if options.aiperf is None and options.guidellm is None:
        parser.error("name --aiperf or --guidellm, or both; --install DIR installs them")
    print(f"{AIPERF} in trace mode, {GUIDELLM}")
    print(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print(
        f"{'client':<12}{'streams':>8}{'events/s':>10}{'us/event':>10}{'x ours':>8}{'TTFT p99':>10}{'ITL p99':>9}"
        f"{'MB':>7}{'procs':>7}{'failed':>8}{'source':>8}{'foreign':>9}"
    )
    result: Row = {"peers": [AIPERF, GUIDELLM]}
    for streams in options.streams:
        peers = [ours(streams, options.seconds)]
        peers += [aiperf(options.aiperf.absolute(), streams, options.seconds)] if options.aiperf else []
        peers += [guidellm(options.guidellm.absolute(), streams, options.seconds)] if options.guidellm else []
        rows: dict[str, Row] = {}
        for peer in peers:
            row = run_row(peer)
            if row is None:
                print(f"{peer.name:<12}{streams:>8}  not reported: the source was late every time", flush=True)
                continue
            rows[peer.name] = row
            base = rows.get("agentdyno")
            times = "-" if base is None else f"{row['us_per_event'] / base['us_per_event']:.1f}"
            print(
                f"{peer.name:<12}{streams:>8}{row['events_per_s']:>10.0f}{row['us_per_event']:>10.1f}{times:>8}"
                f"{number(row['ttft_over_ms']):>10}{number(row['itl_over_ms']):>9}{row['peak_mb']:>7.0f}"
                f"{row['processes']:>7}{row['failed']:>8}{row['source_late_p99_ms']:>8.2f}{row['foreign']:>8.2f}"
                f"{'!' if row['foreign'] > FOREIGN_CORES else ' '}",
                flush=True,
            )
        result[str(streams)] = {
            name: {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
            for name, row in rows.items()
        }
        if {"agentdyno", "AIPerf"} <= rows.keys():
            share = rows["agentdyno"]["us_per_event"] / rows["AIPerf"]["us_per_event"]
            result[str(streams)]["share_of_aiperf"] = round(share, 3)
            met = "met" if share <= GOAL_SHARE else "missed"
            print(f"ours takes {share:.3f} of AIPerf's CPU per event; the goal, at most {GOAL_SHARE}, is {met}\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
