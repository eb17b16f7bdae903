"""Fixtures that several test files share."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def weka_traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 35 Weka trace files, unpacked once per test run."""
    folder = tmp_path_factory.mktemp("weka")
    with tarfile.open(DATA / "weka-traces.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder
