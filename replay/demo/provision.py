"""Bring the demo's libraries to an installation that has only the base package.

`uv tool install` of the plain wheel installs no stage's libraries. uv is there in that case, and the wheel's own
address is on record, so the demo runs itself once more in a cached environment that has every extra.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import click

from capture.fault import EnvironmentFault

# One module of each extra that the demo cannot do without.
NEEDED = (
    "mitmproxy",
    "zstandard",
    "polars",
    "pyarrow",
    "tiktoken",
    "matplotlib",
    "httpx",
    "httptools",
    "xllamacpp",
    "gguf",
)
GUARD = "AGENTDYNO_DEMO_PROVISIONED"


def missing_parts() -> tuple[str, ...]:
    """Return the modules that the demo needs and this environment lacks, without importing any."""
    return tuple(name for name in NEEDED if importlib.util.find_spec(name) is None)


def run_provisioned(missing: tuple[str, ...]) -> int:
    """Run the same command in an environment with every extra, and return its exit code.

    Raises EnvironmentFault where uv or this distribution's origin is unknown.
    """
    names = ", ".join(missing)
    remedy = f"The demo needs {names}: install agentdyno with its extra [all]."
    uv = shutil.which("uv")
    if os.environ.get(GUARD) or uv is None:
        raise EnvironmentFault(remedy)
    requirement = "agentdyno[all]"
    origin = importlib.metadata.distribution("agentdyno").read_text("direct_url.json")
    if origin is not None:
        requirement += f" @ {json.loads(origin)['url']}"
    click.echo("agentdyno: this installation has no stage libraries; taking them into uv's cache once …", err=True)
    command = [uv, "tool", "run", "--python", sys.executable, "--from", requirement, "agentdyno", *sys.argv[1:]]
    try:
        return subprocess.run(command, env={**os.environ, GUARD: "1"}, check=False).returncode
    except KeyboardInterrupt:
        return 130
