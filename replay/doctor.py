"""What this machine can do: found by looking, said in one table, nothing changed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from replay.power.source import DeviceState, PowerDevice

EXTRAS = {
    "capture": ("mitmproxy", "zstandard", "msgspec"),
    "curate": ("datasets", "polars", "pyarrow", "tiktoken", "matplotlib"),
    "replay": ("httpx", "httptools", "uvloop", "polars", "pynvml", "jinja2"),
    "engine": ("xllamacpp", "gguf", "tokenizers"),
}
ENOUGH_FILES = 4096  # an agent under replay holds one socket; a thousand agents and their files fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    state: Literal["yes", "no", "note"]
    detail: str


def look() -> tuple[Finding, ...]:
    """Look at this machine and return what was found, in the order of the pipeline."""
    return (*_extras(), *_agents(), *_encodings(), *_power(), *_limits())


def _finding(topic: str, good: bool, detail: str) -> Finding:
    return Finding(topic=topic, state="yes" if good else "no", detail=detail)


def _extras() -> list[Finding]:
    found = []
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        detail = f"missing {', '.join(missing)}: install agentdyno[{extra}]" if missing else "installed"
        found.append(_finding(f"extra {extra}", not missing, detail))
    return found


def _agents() -> list[Finding]:
    from capture.agents.survey import survey

    return [Finding(topic=seen.topic, state=seen.state, detail=seen.detail) for seen in survey(os.environ, Path.cwd())]


def _encodings() -> list[Finding]:
    if importlib.util.find_spec("tiktoken") is None:
        return [_finding("tokenizer", False, "tiktoken is not installed: install agentdyno[curate]")]
    from curate.tokens import EncodingUnavailable, ranks_sha256

    found = []
    for name in ("o200k_base", "cl100k_base"):
        try:
            found.append(_finding(f"tokenizer {name}", True, f"its ranks are here, sha256 {ranks_sha256(name)[:12]}…"))
        except EncodingUnavailable as fault:
            found.append(_finding(f"tokenizer {name}", False, str(fault)))
    return found


def _power() -> list[Finding]:
    if importlib.util.find_spec("pynvml") is None:
        return [_finding("power", False, "nvidia-ml-py is not installed: install agentdyno[replay]")]
    from replay.power.choice import parse_power
    from replay.power.source import PowerFault

    found = []
    for kind, topic in (("nvml", "GPU power (NVML)"), ("rapl", "CPU power (RAPL)")):
        try:
            source = parse_power(kind).open()
        except PowerFault as fault:
            found.append(_finding(topic, False, str(fault)))
            continue
        info = source.describe()
        source.close()
        states = {state.device: state for state in info.states}
        found.append(_finding(topic, True, ", ".join(_device(item, states.get(item.uid)) for item in info.devices)))
        found += [Finding(topic=topic, state="note", detail=note) for note in info.notes]
    return found


def _device(device: PowerDevice, state: DeviceState | None) -> str:
    """One device: its name, its limit, and what its energy counter covers and how often that changes."""
    words = [f"{device.name} {device.uid}"]
    if device.limit_w is not None:
        words.append(f"limit {device.limit_w:g} W")
    if state is not None and state.counter_scope is not None:
        latch = f" every {state.counter_latch_s * 1e3:.0f} ms" if state.counter_latch_s is not None else ""
        words.append(f"energy counter of {state.counter_scope} scope{latch}")
    return " · ".join(words)


def _limits() -> list[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clock = time.get_clock_info("monotonic")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        _finding("open files", soft >= ENOUGH_FILES, f"soft limit {soft}, hard limit {hard} (one socket an agent)"),
        _finding("clock", clock.monotonic, f"{clock.implementation}, resolution {clock.resolution * 1e9:.0f} ns"),
        Finding(
            topic="machine",
            state="note",
            detail=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        ),
        Finding(topic="python", state="note", detail=f"{platform.python_version()} in {Path(sys.prefix).name}"),
        Finding(topic="agentdyno", state="note", detail=importlib.metadata.version("agentdyno")),
    ]


def print_findings(*, as_json: bool) -> None:
    """Print what was found: a table, or a JSON list of {topic, state, detail}."""
    findings = look()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    marks = {"yes": "[green]✓[/]", "no": "[yellow]–[/]", "note": " "}
    for finding in findings:
        table.add_row(marks[finding.state], escape(finding.topic), escape(finding.detail))
    Console().print(table)
