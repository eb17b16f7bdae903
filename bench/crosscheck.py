"""Our numbers beside a peer's: the same work on the same engine at one agent, run in turn.

    python bench/crosscheck.py agentperf-local --rounds 5
    python bench/crosscheck.py aiperf --aiperf ENVIRONMENT/bin/aiperf --sessions 5

`agentperf-local`: its eight recorded tasks (168 turns, read from the installed package), tool time waited, exact
lengths, one cache namespace a run; its own client and ours against one llama engine. Agreement means: the difference
between the median of its medians and that of ours lies inside the range of its own medians from run to run.

`aiperf`: our export of content-free Claude Code sessions in the Weka format, replayed by AIPerf, once through our
recorder and once without it; the second is timed, and what was recorded of the first (its words are the same, by its
seed) is replayed by us. (From the dataset itself we send token ids:
the server tokenises nothing then, and finds more of each prompt in its cache, since AIPerf's text is cut into other
tokens where blocks meet.) Requests are sorted by the prompt tokens that the server counted and cut into tenths;
agreement means that the median TTFT and ITL of each tenth lie within 10 % of each other.

The engine is llama.cpp with a made-up model on this machine's CPU: the numbers say whether two clients read the same
clock, nothing about a serving system. A table on stdout, ending with one JSON object.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENCODING = "o200k_base"
# tiktoken names a cached file by the SHA-1 of the address that it would fetch it from.
ENCODING_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
CONTEXT = 98_304
LONGEST_PROMPT = 80_000
GAP_S = 1  # between turns, at most
SAME_CACHE = 0.02  # of a prompt: cached tokens that may differ between the two
QUANTITIES = ("ttft_ms", "decode_tok_s", "end_to_end_ms")


@dataclass(frozen=True)
class Seen:
    """One answered request as a client timed it from its first byte sent; None where it has no such value."""

    prompt_tokens: int
    cached_tokens: int
    ttft_ms: float
    itl_ms: float | None
    decode_tok_s: float | None
    end_to_end_ms: float


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def agentdyno(*words: object) -> str:
    """Run a command of ours and return its standard output; a verdict of "no" (exit 1) is no failure here."""
    command = [sys.executable, "-m", "agentdyno", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


@contextlib.contextmanager
def engine() -> Iterator[tuple[str, str, Path]]:
    """Base URL, model and tokenizer folder of a llama engine with one slot."""
    sys.path.insert(0, str(ROOT))
    from replay.engine.llama import running_engine

    with running_engine(slots=1, slot_context=CONTEXT) as running:
        yield running.url, running.model, running.tokenizer_path


def ours(dataset: Path, url: str, model: str, out: Path, *options: object) -> list[Seen]:
    """One play of every session by one agent of ours."""
    shutil.rmtree(out, ignore_errors=True)
    agentdyno(
        *("replay", "run", dataset, "--url", url, "--model", model, "--agents", 1, "--once", "--duration", 3000),
        *("--isolation", "run", "--context-limit", CONTEXT, "--out", out, *options),
    )
    import polars

    rows = polars.read_parquet(out / "trials/1/records.parquet").to_dicts()
    failed = [row for row in rows if row["outcome"] != "ok"]
    if failed:
        raise SystemExit(f"{len(failed)} of our requests failed, the first: {failed[0]['error']}")
    return [_of_record(row) for row in rows]


def _of_record(row: dict[str, Any]) -> Seen:
    first, last, tokens = row["first_content_at_ns"], row["last_content_at_ns"], row["completion_tokens"]
    span_ms = (last - first) / 1e6
    return Seen(
        prompt_tokens=row["prompt_tokens"],
        cached_tokens=row["cached_tokens"] or 0,
        ttft_ms=(first - row["sent_at_ns"]) / 1e6,
        itl_ms=span_ms / (tokens - 1) if tokens > 1 else None,
        decode_tok_s=(tokens - 1) / (span_ms / 1e3) if tokens > 1 and span_ms else None,
        end_to_end_ms=(row["end_at_ns"] - row["sent_at_ns"]) / 1e6,
    )


def encoding_cache(folder: Path) -> Path:
    """A cache folder of tiktoken's that holds the encoding, so that nothing is fetched."""
    from curate.tokens import load_encoding

    folder.mkdir(exist_ok=True)
    ranks = sorted(load_encoding(ENCODING)._mergeable_ranks.items(), key=lambda item: item[1])
    name = hashlib.sha1(ENCODING_ADDRESS.encode(), usedforsecurity=False).hexdigest()
    (folder / name).write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks))
    return folder


# -- agentperf-local


def agentperf_local(url: str, model: str, out: Path, cache: Path) -> list[Seen]:
    """One run of the peer's own command."""
    shutil.rmtree(out, ignore_errors=True)
    command = [
        *(str(Path(sys.executable).with_name("agentperf-local")), "run", "--base-url", f"{url}/v1", "--model", model),
        *("--output-dir", str(out), "--tool-mode", "fixed_delay", "--no-power", "--no-progress"),
        *("--sampling", "custom", "--temperature", "0"),
    ]
    environment = {**os.environ, "TIKTOKEN_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"agentperf-local: exit {done.returncode}\n{done.stderr[-2000:]}")
    turns = [json.loads(line) for line in (out / "turns.jsonl").read_text().splitlines()]
    failed = [turn for turn in turns if not turn["success"]]
    if failed:
        raise SystemExit(f"{len(failed)} of agentperf-local's turns failed, the first: {failed[0]['error']}")
    return [_of_turn(turn) for turn in turns]


def _of_turn(turn: dict[str, Any]) -> Seen:
    timing, tokens = turn["timing"], turn["tokens"]["server_output_tokens"]
    span_ms = timing["generation_ms"]
    return Seen(
        prompt_tokens=turn["tokens"]["server_prompt_tokens"],
        cached_tokens=turn["tokens"]["server_cached_prompt_tokens"] or 0,
        ttft_ms=timing["time_to_first_token_ms"],
        itl_ms=span_ms / (tokens - 1) if tokens > 1 else None,
        decode_tok_s=(tokens - 1) / (span_ms / 1e3) if tokens > 1 and span_ms else None,
        end_to_end_ms=timing["e2e_latency_ms"],
    )


def medians(seen: list[Seen]) -> dict[str, float]:
    values = {name: [getattr(item, name) for item in seen if getattr(item, name) is not None] for name in QUANTITIES}
    return {name: statistics.median(known) for name, known in values.items()}


def compare_agentperf_local(folder: Path, rounds: int) -> dict[str, Any]:
    from curate.tokens import load_encoding  # noqa: F401 - fails early where the package is not installed

    agentdyno("capture", "import", "agentperf-local", "--store", folder / "store")
    agentdyno("curate", "build", "--store", folder / "store", "--out", folder / "dataset")
    cache = encoding_cache(folder / "encodings")
    theirs_runs, our_runs = [], []
    turns = 0
    for number in range(rounds):
        for who in ("agentperf-local", "agentdyno") if number % 2 == 0 else ("agentdyno", "agentperf-local"):
            with engine() as (url, model, _):  # a fresh one: neither may find the other's prompts in its cache
                if who == "agentdyno":
                    seen = ours(folder / "dataset", url, model, folder / "ours")
                    our_runs.append(medians(seen))
                else:
                    seen = agentperf_local(url, model, folder / "theirs", cache)
                    theirs_runs.append(medians(seen))
            turns = len(seen)
            say(f"round {number + 1}, {who}: {work(seen)}, {_words(medians(seen))}")
    rows = {}
    print(f"{rounds} runs each of {turns} turns; medians of the runs' medians")
    print(
        "| | agentperf-local | its range over runs | agentdyno | its range over runs | difference | inside its range |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in QUANTITIES:
        their_values, our_values = [run[name] for run in theirs_runs], [run[name] for run in our_runs]
        theirs, mine = statistics.median(their_values), statistics.median(our_values)
        reach = max(their_values) - min(their_values)
        inside = abs(mine - theirs) <= reach
        rows[name] = {
            "peer": theirs,
            "peer_low": min(their_values),
            "peer_high": max(their_values),
            "ours": mine,
            "ours_low": min(our_values),
            "ours_high": max(our_values),
            "inside": inside,
        }
        print(
            f"| {name} | {theirs:.2f} | {min(their_values):.2f} – {max(their_values):.2f} | {mine:.2f} "
            f"| {min(our_values):.2f} – {max(our_values):.2f} | {mine - theirs:+.2f} | {'yes' if inside else 'no'} |"
        )
    return {"bench": "crosscheck", "peer": "agentperf-local", "rounds": rounds, "turns": turns, "rows": rows}


def work(seen: list[Seen]) -> str:
    """How many prompt tokens the server counted, and how many of them it had in its cache."""
    prompt, cached = sum(item.prompt_tokens for item in seen), sum(item.cached_tokens for item in seen)
    return f"{len(seen)} requests, {prompt:,} prompt tokens, {cached / prompt:.1%} of them cached"


def _words(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())


# -- AIPerf


def exported(folder: Path, sessions: int) -> Path:
    """The shortest sessions of the committed dataset, as files in the Weka format."""
    from curate.dataset import Dataset

    whole = Dataset.open(ROOT / "datasets/weka-claude-code")
    longest = {
        trajectory.session_id: max(request.prompt_tokens or 0 for request in trajectory.requests)
        for trajectory in whole.trajectories()
        if trajectory.num_subagents == 0
    }
    chosen = [name for name in sorted(longest, key=longest.__getitem__) if longest[name] <= LONGEST_PROMPT][:sessions]
    agentdyno("curate", "export", ROOT / "datasets/weka-claude-code", "--format", "weka", "--out", folder / "all")
    (folder / "weka").mkdir()
    for name in chosen:
        shutil.copy(folder / "all" / f"{name}.json", folder / "weka")
    return folder / "weka"


@contextlib.contextmanager
def recorder(upstream: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Base URL and store of our recorder in front of the engine."""
    ready, store = folder / "recorder.url", folder / "recorded"
    words = ["capture", "serve", "--upstream", upstream, "--store", str(store), "--ready-file", str(ready)]
    process = subprocess.Popen([sys.executable, "-m", "agentdyno", *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise SystemExit("the recorder did not start")
            time.sleep(0.1)
        yield ready.read_text().strip(), store
    finally:
        process.terminate()  # a job in the background may ignore SIGINT
        process.wait(60)


def aiperf_sessions(command: Path, url: str, model: str, tokenizer: Path, files: Path, out: Path) -> list[Seen]:
    """AIPerf replays the files, a process for each: while a session waits, it would begin the next one on the slot."""
    seen: list[Seen] = []
    for path in sorted(files.glob("*.json")):
        alone = out / path.stem / "input"
        alone.mkdir(parents=True)
        shutil.copy(path, alone)
        seen += _aiperf_once(command, url, model, tokenizer, alone, out / path.stem / "artifacts")
    return seen


def _aiperf_once(command: Path, url: str, model: str, tokenizer: Path, files: Path, out: Path) -> list[Seen]:
    requests = sum(len(json.loads(path.read_text())["requests"]) for path in files.glob("*.json"))
    words = [
        *(str(command), "profile", "-m", model, "--url", url, "--endpoint-type", "chat", "--streaming"),
        *("--input-file", str(files), "--custom-dataset-type", "weka_trace", "--tokenizer", str(tokenizer)),
        *("--concurrency", "1", "--inter-turn-delay-cap-seconds", str(GAP_S), "--use-server-token-count"),
        *("--random-seed", "1", "--output-artifact-dir", str(out), "--no-gpu-telemetry", "--no-server-metrics"),
        *("--ui", "none", "--export-level", "records", "--dataset-sampling-strategy", "sequential"),
        *("--request-count", str(requests)),  # it would stop after ten
        # llama.cpp announces keep-alive and closes after each stream, which AIPerf counts as failed requests.
        *("--connection-reuse-strategy", "never"),
    ]

    # It resolves a folder as a tokenizer only where the hub is not declared to be offline.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HOME": str(out.parent)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    records = out / "profile_export.jsonl"
    if done.returncode or not records.exists():
        raise SystemExit(f"aiperf: exit {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    failed = [line for line in lines if line.get("error")]
    if failed:
        raise SystemExit(f"{len(failed)} of AIPerf's requests failed, the first: {failed[0]['error']}")
    return [_of_aiperf(line["metrics"]) for line in lines]


def _of_aiperf(metrics: dict[str, Any]) -> Seen:
    def at(name: str) -> float | None:
        return metrics[name]["value"] if name in metrics else None

    itl = at("inter_token_latency")
    prompt, ttft, whole = at("usage_prompt_tokens"), at("time_to_first_token"), at("request_latency")
    assert prompt is not None
    assert ttft is not None
    assert whole is not None
    return Seen(
        prompt_tokens=int(prompt),
        cached_tokens=int(at("usage_prompt_cache_read_tokens") or 0),
        ttft_ms=ttft,
        itl_ms=itl,
        decode_tok_s=1000 / itl if itl else None,
        end_to_end_ms=whole,
    )


def same_requests(theirs: list[Seen], mine: list[Seen]) -> list[tuple[Seen, Seen]]:
    """Pairs of one request each, in order of prompt length, where the engine had as much of both in its cache.

    The engine drops a prefix now and then, for either client; such a request is other work.
    """
    ordered = (sorted(seen, key=lambda item: item.prompt_tokens) for seen in (theirs, mine))
    pairs = list(zip(*ordered, strict=True))
    return [
        (left, right)
        for left, right in pairs
        if abs(left.cached_tokens - right.cached_tokens) <= SAME_CACHE * left.prompt_tokens
    ]


def tenths(pairs: list[tuple[Seen, Seen]]) -> list[list[tuple[Seen, Seen]]]:
    return [pairs[len(pairs) * part // 10 : len(pairs) * (part + 1) // 10] for part in range(10)]


def compare_aiperf(folder: Path, aiperf: Path, sessions: int) -> dict[str, Any]:
    files = exported(folder, sessions)
    with engine() as (url, model, tokenizer), recorder(url, folder) as (recorded_url, store):
        aiperf_sessions(aiperf, recorded_url, model, tokenizer.parent, files, folder / "recorded-aiperf")
    # Timed by itself: the recorder would take CPU from the engine, which is on the same cores.
    with engine() as (url, model, tokenizer):
        theirs = aiperf_sessions(aiperf, url, model, tokenizer.parent, files, folder / "aiperf")
    say(f"aiperf: {work(theirs)}")
    agentdyno("curate", "build", "--store", store, "--out", folder / "dataset")
    with engine() as (url, model, _):
        mine = ours(folder / "dataset", url, model, folder / "ours")
    say(f"agentdyno: {work(mine)}")
    pairs = same_requests(theirs, mine)
    rows = []
    print(
        f"{sessions} sessions; AIPerf: {work(theirs)}; agentdyno: {work(mine)}; medians by tenth of the {len(pairs)} "
        "requests of which the engine had as much in its cache"
    )
    print("| prompt tokens: AIPerf | ours | TTFT ms: AIPerf | ours | ratio | ITL ms: AIPerf | ours | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for part_pairs in tenths(pairs):
        if not part_pairs:
            continue
        left, right = ([pair[side] for pair in part_pairs] for side in (0, 1))
        row = {}
        for who, part in (("peer", left), ("ours", right)):
            itls = [item.itl_ms for item in part if item.itl_ms is not None]
            row |= {
                f"{who}_prompt_tokens": statistics.median(item.prompt_tokens for item in part),
                f"{who}_ttft_ms": statistics.median(item.ttft_ms for item in part),
                f"{who}_itl_ms": statistics.median(itls) if itls else float("nan"),
            }
        rows.append(row)
        cells = [f"{row['peer_prompt_tokens']:,.0f}", f"{row['ours_prompt_tokens']:,.0f}"]
        for name, digits in (("ttft_ms", 1), ("itl_ms", 3)):
            left_value, right_value = row[f"peer_{name}"], row[f"ours_{name}"]
            cells += [f"{left_value:.{digits}f}", f"{right_value:.{digits}f}", f"{right_value / left_value:.3f}"]
        print(f"| {' | '.join(cells)} |")
    return {"bench": "crosscheck", "peer": "aiperf", "sessions": sessions, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["agentperf-local", "aiperf"])
    parser.add_argument("--quick", action="store_true", help="One round, one session.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=5, help="How many of the shortest sessions AIPerf replays.")
    parser.add_argument("--aiperf", type=Path, help="AIPerf's command, in an environment of its own.")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(prefix="crosscheck-") as name:
        if options.peer == "agentperf-local":
            result = compare_agentperf_local(Path(name), 1 if options.quick else options.rounds)
        else:
            if options.aiperf is None:
                raise SystemExit("name AIPerf's command with --aiperf: it is installed into an environment of its own")
            result = compare_aiperf(Path(name), options.aiperf, 1 if options.quick else options.sessions)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
