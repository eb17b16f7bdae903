"""A real Prometheus server that scrapes pages of ours (Debian's package `prometheus`)."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PROGRAM = shutil.which("prometheus")
PATIENCE_S = 30
INTERVAL_S = 0.2


@contextlib.contextmanager
def prometheus(folder: Path, targets: Mapping[str, str]) -> Iterator[str]:
    """Its URL while it scrapes each target (job → host:port) five times a second.

    Without the program the test is skipped.
    """
    if PROGRAM is None:
        pytest.skip("no Prometheus server: install Debian's package `prometheus` to test against a real one")
    config = folder / "prometheus.yml"
    jobs = [
        f"  - job_name: {job}\n    static_configs: [{{targets: ['{target}']}}]\n" for job, target in targets.items()
    ]
    config.write_text(
        f"global:\n  scrape_interval: {INTERVAL_S * 1000:.0f}ms\n  scrape_timeout: {INTERVAL_S * 1000:.0f}ms\n"
        "scrape_configs:\n" + "".join(jobs)
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(PROGRAM, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"),
    ]
    url = f"http://127.0.0.1:{port}"
    with (folder / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until = time.monotonic() + PATIENCE_S
            while not _scrapes(url, len(targets)):
                waits = server.poll() is None and time.monotonic() < until
                assert waits, (folder / "prometheus.log").read_text()[-2000:]
                time.sleep(0.05)
            yield url
        finally:
            server.terminate()
            server.wait(PATIENCE_S)


def _scrapes(url: str, targets: int) -> bool:
    """Whether every target has been scraped; the server finds them some seconds after it starts."""
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?query=sum(up)", timeout=5) as answer:
            result = json.load(answer)["data"]["result"]
    except (urllib.error.URLError, OSError):
        return False
    return bool(result) and result[0]["value"][1] == str(targets)
