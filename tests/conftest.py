"""Fixtures that several test files share."""

from __future__ import annotations

import signal
import tarfile
from pathlib import Path

import pytest
from hypothesis import settings

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def weka_traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 35 Weka trace files, unpacked once per test run."""
    folder = tmp_path_factory.mktemp("weka")
    with tarfile.open(DATA / "weka-traces.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


# An example that a busy machine held up for a moment is no finding.
settings.register_profile("agentdyno", deadline=None)
settings.load_profile("agentdyno")


def pytest_configure(config: pytest.Config) -> None:
    """Give signals their usual meaning back: a job in the background or under `nohup` ignores some, and so would
    every program that a test starts and interrupts on purpose.
    """
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: side by side, the longest one would otherwise be alone at the end."""
    long = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("engine")}
    items.sort(key=lambda item: item.path not in long)
