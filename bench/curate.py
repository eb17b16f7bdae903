"""How fast curation counts and redacts: ratios and rates from one run, medians of interleaved rounds.

tokens_x: wall time of encoding each request of a 100-turn session whole with tiktoken ÷ that of `TokenCounter`, which
counts each message once; both give the same numbers, which is asserted. The baseline gets its texts ready made.
tokens_fresh_x: the same where every request brings its messages as new strings, as when they are read off the wire.
redact_mb_s: UTF-8 megabytes of clean code (the Python standard library) per second of one core (CPU time);
redact_session_mb_s: of the messages of the 100-turn session; redact_seen_mb_s: clean code, looking for three
credentials seen on the wire too.
findings_per_mb: what redaction takes for a secret in that clean code; `--show` prints each.

With `--build` instead: the same sessions of coding agents (made on the spot, `--gigabytes` of nested JSON lines)
through `curate build`, through a naive `datasets.map` pipeline and, where `--dataclaw-python` names an interpreter that
has it, through DataClaw, which reads them as Claude Code logs; each with two processes. build_s, naive_s, dataclaw_s:
wall seconds; *_peak_mb: the most memory of all processes of one at one time; build_vs_*_x: theirs ÷ ours.

    python bench/curate.py [--quick] [--show]
    python bench/curate.py --build [--gigabytes 1] [--dataclaw-python PATH] [--folder DIR] [--no-naive]
"""

from __future__ import annotations

# ruff: noqa: E402
import sys
from pathlib import Path

# A script's own folder comes first on the path, and there this file would be the package `curate`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import gc
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import tiktoken

from bench.sessions import clean_code
from capture.call import Message, Tool, ToolUse
from capture.secret import SecretFilter
from curate.redact import Redactor, merge
from curate.tokens import DEFAULT_ENCODING, END, START, TokenCounter, load_encoding, render

TURNS = 100
KEY = b"bench key of thirty-two bytes..."


def session(texts: list[str]) -> tuple[list[Message], list[Tool]]:
    """A coding session: a long system prompt, ten tools, a hundred turns of reasoning, a tool call and its result."""
    chooser = random.Random(7)
    code = "\n".join(texts)

    def excerpt(length: int) -> str:
        at = chooser.randrange(len(code) - length)
        return code[at : at + length]

    schema = json.dumps({"type": "object", "properties": {name: {"type": "string"} for name in ("path", "command")}})
    tools = [Tool(name=f"tool_{number}", description=excerpt(2500), parameters=schema) for number in range(10)]
    messages = [Message(role="system", content=excerpt(12_000)), Message(role="user", content=excerpt(400))]
    for turn in range(TURNS):
        arguments = json.dumps({"path": f"src/part_{turn}.py", "command": excerpt(200)})
        call = ToolUse(id=f"call_{turn}", name="tool_1", arguments=arguments)
        messages.append(
            Message(role="assistant", content=excerpt(150), reasoning_content=excerpt(300), tool_calls=(call,))
        )
        messages.append(Message(role="tool", tool_call_id=call.id, content=excerpt(chooser.randrange(200, 4000))))
    return messages, tools


def timed(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> tuple[float, object]:
    """Seconds and result of one run."""
    gc.collect()
    start = clock()
    result = run()
    return clock() - start, result


def bench_tokens(texts: list[str], rounds: int) -> dict[str, float]:
    messages, tools = session(texts)
    prompts = [messages[: 2 + 2 * turn] for turn in range(TURNS)]
    base = load_encoding(DEFAULT_ENCODING)
    whole = tiktoken.Encoding(
        "chatml",
        pat_str=base._pat_str,
        mergeable_ranks=base._mergeable_ranks,
        special_tokens={START: base.max_token_value + 1, END: base.max_token_value + 2},
    )
    rendered = [render(prompt, tools) for prompt in prompts]

    def baseline() -> list[int]:
        return [len(whole.encode(text, allowed_special={START, END})) for text in rendered]

    def once(given: list[list[Message]]) -> list[int]:
        counter = TokenCounter(DEFAULT_ENCODING)  # nothing remembered
        return [counter.request(prompt, tools) for prompt in given]

    # New string objects, as a JSON reader makes them: `str` would hand back the same ones.
    fresh = [
        [replace(one, content="".join((one.content[:1], one.content[1:]))) for one in prompt] for prompt in prompts
    ]
    times: dict[str, list[float]] = {"baseline": [], "once": [], "fresh": []}
    for _ in range(rounds):
        for name, run in (("baseline", baseline), ("once", lambda: once(prompts)), ("fresh", lambda: once(fresh))):
            seconds, counts = timed(run)
            times[name].append(seconds)
            if name == "baseline":
                expected = counts
            assert counts == expected, f"{name} counts differ"
    medians = {name: statistics.median(values) for name, values in times.items()}
    once_x, fresh_x = medians["baseline"] / medians["once"], medians["baseline"] / medians["fresh"]
    sent = sum(len(text.encode()) for text in rendered)
    print(
        f"tokens ({DEFAULT_ENCODING}): {TURNS} requests, {sent / 1e6:.1f} MB sent, last prompt "
        f"{len(rendered[-1].encode()) / 1e3:.0f} kB\n"
        f"  each request whole, tiktoken  {medians['baseline'] * 1e3:9.1f} ms\n"
        f"  each message once             {medians['once'] * 1e3:9.1f} ms   {once_x:.1f} ×\n"
        f"  … from new strings each time  {medians['fresh'] * 1e3:9.1f} ms   {fresh_x:.1f} ×"
    )
    return {"tokens_x": round(once_x, 1), "tokens_fresh_x": round(fresh_x, 1)}


def redact_all(redactor: Redactor, texts: list[str]) -> None:
    for text in texts:
        redactor.text(text)


def bench_redaction(texts: list[str], rounds: int, show: bool) -> dict[str, float]:
    wire = SecretFilter(KEY)
    for length in (36, 51, 108):
        wire.header("x-api-key", "".join(random.Random(length).choices("abcdefghijklmnop0123456789", k=length)))
    seen = tuple(wire.take_new())
    messages = [message.content for message in session(texts)[0]]
    work = {
        "clean code": (texts, lambda: Redactor(key=KEY)),
        "… with three seen credentials": (texts, lambda: Redactor(seen=seen, key=KEY)),
        "messages of a session": (messages, lambda: Redactor(key=KEY)),
    }
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, (given, make) in work.items():
            redactor = make()
            run = partial(redact_all, redactor, given)
            seconds, _ = timed(run, time.process_time)
            rates[name].append(sum(len(text.encode()) for text in given) / 1e6 / seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("redaction, CPU time of one core")
    for name, rate in medians.items():
        print(f"  {name:30} {rate:6.1f} MB/s")
    counts: Counter[str] = Counter()
    redactor = Redactor(key=KEY)
    for text in texts:
        for finding in merge(redactor.find(text)):
            counts[finding.kind] += 1
            if show:
                before = text[max(0, finding.start - 40) : finding.start].replace("\n", "⏎")
                print(f"    {finding.kind}: {before}[{text[finding.start : finding.end][:60]}]")
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"  findings in {megabytes:.1f} MB of clean code: {dict(counts) or 'none'}")
    plain, with_seen, of_session = medians.values()
    return {
        "redact_mb_s": round(plain, 1),
        "redact_seen_mb_s": round(with_seen, 1),
        "redact_session_mb_s": round(of_session, 1),
        "findings_per_mb": round(counts.total() / megabytes, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and less text; at most a minute")
    parser.add_argument("--show", action="store_true", help="print each finding in clean code")
    parser.add_argument("--build", action="store_true", help="build datasets and compare with other tools")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="with --build: size of the sessions")
    parser.add_argument("--dataclaw-python", type=Path, help="with --build: an interpreter with dataclaw installed")
    parser.add_argument("--folder", type=Path, help="with --build: where to work; about seven times the size is used")
    parser.add_argument("--no-naive", action="store_true", help="with --build: without datasets.map, which takes long")
    options = parser.parse_args()
    if options.build:
        from bench.build import bench_build

        found = bench_build(options.gigabytes, options.dataclaw_python, options.folder, naive=not options.no_naive)
        print(json.dumps(found), flush=True)
        return
    texts = clean_code(3 if options.quick else 12)
    rounds = 3 if options.quick else 7
    result = bench_tokens(texts, rounds) | bench_redaction(texts, rounds, options.show)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
