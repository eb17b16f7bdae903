"""AIPerf's own loaders take what is exported for it, and see as many conversations and turns as there are.

AIPerf is installed into an environment of its own; where it does not install, the tests are skipped and say why.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from capture.importers.weka import import_weka
from capture.trajectory import Trajectory
from curate.export import ExportReport, export
from curate.tokens import load_encoding, ranks_sha256
from tests.package_environment import python_with
from tests.sample_sessions import KEY, make, text_session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DRIVER = Path(__file__).with_name("aiperf_driver.py")
_RANKS = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"  # its digest names the cached file


@pytest.fixture(scope="module")
def aiperf() -> Path:
    return python_with("aiperf==0.13.0")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of tiktoken's with the ranks of AIPerf's built-in tokenizer, so that it asks no network."""
    folder = tmp_path_factory.mktemp("ranks")
    known = load_encoding("o200k_base")._mergeable_ranks
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in sorted(known.items(), key=lambda one: one[1]))
    data = b"".join(lines)
    assert hashlib.sha256(data).hexdigest() == ranks_sha256("o200k_base")
    (folder / hashlib.sha1(_RANKS.encode(), usedforsecurity=False).hexdigest()).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def weka_sessions(weka_traces: Path) -> list[Trajectory]:
    return list(import_weka([weka_traces], KEY).trajectories)


@pytest.fixture(scope="module")
def text_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions with text, as a built folder."""
    out = tmp_path_factory.mktemp("aiperf") / "dataset"
    make([text_session("session-a", turns=40), text_session("session-b", turns=3)], out)
    return out


@dataclass(frozen=True)
class Exported:
    """What was exported, and what AIPerf made of it."""

    report: ExportReport
    found: dict[str, Any]


@pytest.fixture(scope="module")
def exported(
    aiperf: Path,
    ranks: Path,
    weka_sessions: list[Trajectory],
    text_dataset: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Exported]:
    """Every export by name, read by AIPerf in one process: starting it takes longer than reading."""
    folder = tmp_path_factory.mktemp("exported")
    reports = {
        "traces": export(weka_sessions, "weka", folder / "traces"),
        "text": export(text_dataset, "weka", folder / "text"),
        "hashes.jsonl": export(text_dataset, "mooncake", folder / "hashes.jsonl"),
        "messages.jsonl": export(text_dataset, "mooncake", folder / "messages.jsonl", with_messages=True),
        "some.jsonl": export(some_of(weka_sessions), "mooncake", folder / "some.jsonl"),
    }
    done = subprocess.run(
        [str(aiperf), str(DRIVER), *(str(folder / name) for name in reports)],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            "TIKTOKEN_CACHE_DIR": str(ranks),
            "HF_HUB_OFFLINE": "1",
            "AIPERF_DATASET_WEKA_PARALLEL_WORKERS": "1",
        },
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
        cwd=ranks,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("told:")]
    return {
        name: Exported(report=report, found=found) for (name, report), found in zip(reports.items(), told, strict=True)
    }


def some_of(sessions: list[Trajectory]) -> list[Trajectory]:
    """The short ones, two sub-agents among them: AIPerf writes the words of every prompt."""
    return sorted(sessions, key=lambda session: len(session.requests))[:12]


def test_all_weka_traces(exported: dict[str, Exported], weka_sessions: list[Trajectory]) -> None:
    found, report = exported["traces"].found, exported["traces"].report
    assert found["takes"]
    assert (found["loaded"], found["turns"], report.requests) == (35, 1811, 1811)
    # A conversation per agent, and more where it finds that calls of one agent overlap.
    agents = sum(len({request.agent_path for request in session.requests}) for session in weka_sessions)
    assert agents <= found["conversations"] <= agents + 20


def test_weka_traces_of_a_dataset_with_text(exported: dict[str, Exported]) -> None:
    found, report = exported["text"].found, exported["text"].report
    assert found["takes"]
    assert (found["loaded"], found["conversations"], found["turns"]) == (2, 4, report.requests)
    assert report.requests == 45


def test_mooncake_rows_of_both_kinds(exported: dict[str, Exported]) -> None:
    hashes, messages = exported["hashes.jsonl"].found, exported["messages.jsonl"].found
    assert hashes["takes"]
    assert messages["takes"]
    # Each row with hashes is a conversation of its own; with messages the rows of an agent are the turns of one.
    assert hashes["loaded"] == hashes["conversations"] == hashes["turns"] == 45
    assert messages["loaded"] == messages["turns"] == messages["raw"] == 45
    assert exported["hashes.jsonl"].report.requests == exported["messages.jsonl"].report.requests == 45
    assert messages["conversations"] == 4
    assert messages["delays"] == 41  # all but the first turn of each


def test_mooncake_rows_of_weka_sessions(exported: dict[str, Exported], weka_sessions: list[Trajectory]) -> None:
    found, report = exported["some.jsonl"].found, exported["some.jsonl"].report
    assert found["takes"]
    assert found["loaded"] == found["turns"] == report.requests
    requests = sum(len(session.requests) for session in some_of(weka_sessions))
    assert report.requests == requests - sum(report.left_out.values())
