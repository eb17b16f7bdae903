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
from typing import NoReturn

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


def run_provisioned(missing: tuple[str, ...]) -> NoReturn:
    """Become the same command in an environment with every extra.

    This process is replaced, so that a signal meant for the demo reaches the demo and not a parent that only waits.
    Raises EnvironmentFault where uv or this distribution's origin is unknown, or uv cannot make the environment.
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
    command = [uv, "tool", "run", "--python", sys.executable, "--from", requirement]
    command += ["python", "-P", "-c", "import sys; print(sys.executable)"]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if made.returncode != 0:
        raise EnvironmentFault(f"uv could not take them into its cache (see above). {remedy}")
    python = made.stdout.strip()
    os.execve(python, [python, "-P", "-m", "agentdyno", *sys.argv[1:]], {**os.environ, GUARD: "1"})  # noqa: S606
