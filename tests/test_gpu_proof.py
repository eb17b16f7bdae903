"""What carries a proof to a machine with a GPU: a library without the code of other chips, the pack, the figures."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from replay.power.choice import parse_power
from replay.score import run
from tests.sample_sessions import text_session
from tests.simulated_run import SimulatedDriver, simulated_request

BENCH = Path(__file__).parent.parent / "bench"
PTX, MACHINE = 1, 2


def entry(kind: int, architecture: int, payload: bytes) -> bytes:
    return struct.pack("<HHIQ12xI32x", kind, 0x101, 64, len(payload), architecture) + payload


def library(*containers: list[bytes], name: bytes = b".nv_fatbin") -> bytes:
    """A 64-bit ELF file with one section of these containers, eight bytes of padding between them."""
    body = b""
    for entries in containers:
        content = b"".join(entries)
        body += struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content
        body += bytes(-len(body) % 8 + 8)
    names = b"\0" + name + b"\0.shstrtab\0"
    start = 64 + len(body) + len(names)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, start, 0, 64, 56, 0, 64, 3, 2)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, 64, len(body), 0, 0, 8, 0)
    sections += struct.pack("<IIQQQQIIQQ", 2 + len(name), 3, 0, 0, 64 + len(body), len(names), 0, 0, 1, 0)
    return head + body + names + sections


def prune(path: Path, *keep: int) -> Any:
    return runpy.run_path(str(BENCH / "fatbin.py"))["prune"](path, keep)


def test_the_code_of_other_chips_is_zeros_and_everything_else_stays(tmp_path: Path) -> None:
    old, own, other, ptx = (letter * 40 for letter in (b"a", b"b", b"c", b"d"))
    path = tmp_path / "library.so"
    before = library(
        [entry(MACHINE, 80, old), entry(MACHINE, 90, own), entry(PTX, 80, ptx)], [entry(MACHINE, 100, other)]
    )
    path.write_bytes(before)
    done = prune(path, 90)
    after = path.read_bytes()
    assert len(after) == len(before)
    assert own in after
    for gone in (old, other, ptx):
        assert gone not in after
        before = before.replace(gone, bytes(40))
    assert after == before
    assert done.code == {"ptx 80": 40, "sm 80": 40, "sm 90": 40, "sm 100": 40}
    assert done.blanked == 120


@pytest.mark.parametrize(
    "content",
    [
        library([entry(MACHINE, 80, b"a" * 40)]),  # nothing in it for this chip: its PTX or nothing
        library([entry(MACHINE, 90, b"a" * 40)], name=b".text"),
        library([entry(MACHINE, 90, b"a" * 40) + struct.pack("<HHIQ12xI32x", 2, 0, 64, 1 << 40, 80)]),
        library([entry(MACHINE, 90, b"a" * 40)])[:-64],
        library([]).replace(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 0), struct.pack("<IHHQ", 0xBA55ED50, 1, 0, 0)),
        b"#!/bin/sh\n" + bytes(200),
        b"",
    ],
    ids=[
        *("other chips", "no section", "an entry beyond its container", "cut short", "a container of no size"),
        *("no library", "empty"),
    ],
)
def test_what_does_not_read_as_gpu_code_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(content)
    assert prune(path, 90).blanked == 0
    assert path.read_bytes() == content


def proof(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(BENCH / "gpu_proof.sh"), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


def test_a_pack_that_is_not_whole_or_for_another_python_starts_nothing(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    piece = pack / "own.tar.xz.00"
    piece.write_bytes(b"pieces")
    own = [{"file": piece.name, "sha256": hashlib.sha256(b"others").hexdigest()}]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    facts: dict[str, Any] = {"python": version, "engine": "vllm", "torch": "2", "pieces": {"own": own}}
    (pack / "pack.json").write_text(json.dumps(facts))
    done = proof(pack, tmp_path / "out")
    assert done.returncode == 3
    assert "own.tar.xz.00 is missing or not what was packed" in done.stderr
    (pack / "pack.json").write_text(json.dumps(facts | {"python": "3.1"}))
    done = proof(pack, tmp_path / "out")
    assert done.returncode == 3
    assert "the pack is for Python 3.1" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
    done = proof(pack)
    assert done.returncode == 2
    assert "bench/gpu_proof.sh PACK OUT" in done.stdout


def test_only_what_was_checked_is_unpacked_and_no_key_is_kept(tmp_path: Path) -> None:
    pack, work, out = (tmp_path / name for name in ("pack", "work", "out"))
    pack.mkdir()
    with tarfile.open(pack / "own.tar.xz.00", "w:xz") as archive:
        archive.add(BENCH / "fatbin.py", "own.py")
    (pack / "own.tar.xz.01").write_bytes(b"left over of a larger pack")
    own = [{"file": "own.tar.xz.00", "sha256": hashlib.sha256((pack / "own.tar.xz.00").read_bytes()).hexdigest()}]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (pack / "pack.json").write_text(json.dumps({"python": version, "pieces": {"own": own}}))
    (work / "own").mkdir(parents=True)
    (work / "own" / "mine").touch()
    done = proof(pack, out, WORK=str(work))
    assert "own is not of an earlier call: name another folder in WORK" in done.stderr
    assert (work / "own" / "mine").exists()
    shutil.rmtree(work)
    done = proof(pack, out, WORK=str(work), ENGINE_COMMAND="serve --api-key s3cret")
    assert done.returncode == 3
    assert (work / "own" / "own.py").exists()
    assert "holds a key" in done.stderr
    assert "s3cret" not in done.stderr + "".join(path.read_text() for path in out.iterdir())


def test_the_figures_are_those_of_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sessions = [text_session(f"session-{number}", turns=4) for number in range(3)]
    request = simulated_request(folder, idle_s=5.0, power=(parse_power("nvml"),))
    score = run(request, lambda: sessions, driver=SimulatedDriver(measured=True))
    done = subprocess.run(
        [sys.executable, BENCH / "gpu_figures.py", folder], capture_output=True, check=True, timeout=60
    )
    found = json.loads(done.stdout)
    assert found["verdict"]["agents"] == score["results"][0]["agents"]
    assert found["trial"]["power"][0]["power_w"] == pytest.approx(1400.0)
    assert [item["power"][0]["power_w"] for item in (found["idle"]["before"], found["idle"]["after"])] == pytest.approx(
        [240.0, 240.0]
    )
    assert [device["uid"] for device in found["sources"][0]["devices"]] == ["GPU-0", "GPU-1"]
    assert {row["id"] for row in found["denominators"]} == {"accelerator_count", "accelerator"}
