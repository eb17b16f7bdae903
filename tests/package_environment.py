"""Other people's packages in environments of their own, kept from run to run.

In the folder that the environment variable AGENTDYNO_TEST_CACHE names, else in the user's cache.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest


def python_with(*requirements: str) -> Path:
    """An interpreter that has these packages; skips the test, with the reason, where they do not install."""
    root = os.environ.get("AGENTDYNO_TEST_CACHE")
    cache = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentdyno-tests"
    name = "-".join(requirements).replace("=", "").replace("<", "").replace(">", "")
    folder = cache / f"{name}-python{sys.version_info.major}.{sys.version_info.minor}"
    ready = folder / "ready"
    python = folder / "bin" / "python"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            uv = shutil.which("uv") or shutil.which("uv", path=Path(sys.executable).parent)
            venv.EnvBuilder(with_pip=uv is None, symlinks=True).create(folder)
            install = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
            try:
                done = subprocess.run(
                    [*install, "--quiet", *requirements], capture_output=True, text=True, timeout=600, check=False
                )
            except subprocess.TimeoutExpired:
                pytest.skip(f"{', '.join(requirements)} did not install in ten minutes")
            if done.returncode:
                said = (done.stderr.strip() or done.stdout.strip()).splitlines()
                pytest.skip(f"{', '.join(requirements)} does not install: {said[-1] if said else done.returncode}")
            ready.write_text("\n".join(requirements))
    return python
