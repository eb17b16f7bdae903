"""`./dev` finds a Python and a uv by running them, whatever names a PATH claims to have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEV = Path(__file__).parent.parent / "dev"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with `dev`, a home without anything, and a PATH of plain system tools."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(DEV, folder)
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "dirname", "printf", "cat"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
    return folder


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)


def where(checkout: Path, **extra: str) -> dict[str, str]:
    home = checkout.parent / "home"
    environment = {"HOME": str(home), "PATH": str(checkout.parent / "bin"), **extra}
    done = subprocess.run(["./dev", "where"], cwd=checkout, env=environment, capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def test_a_python_on_path_is_named_by_its_full_path(checkout: Path) -> None:
    name = f"python3.{sys.version_info.minor}"
    program(checkout.parent / "bin" / name, f'exec "{sys.executable}" "$@"\n')
    assert where(checkout)["python"] == os.path.realpath(sys.executable) or where(checkout)["python"] == sys.executable


def test_a_shim_that_refuses_is_passed_over_for_a_pyenv_version(checkout: Path) -> None:
    program(checkout.parent / "bin" / "python3.14", "echo 'pyenv: python3.14: command not found' >&2; exit 127\n")
    hidden = checkout.parent / "home" / ".pyenv" / "versions" / f"3.{sys.version_info.minor}.9" / "bin" / "python"
    program(hidden, f'exec "{sys.executable}" "$@"\n')
    assert where(checkout)["python"] == sys.executable


def test_an_old_python_is_none(checkout: Path) -> None:
    program(checkout.parent / "bin" / "python3", "exit 1\n")
    assert where(checkout)["python"].startswith("none")


@pytest.mark.parametrize(
    ("script", "works"),
    [
        ("echo 'pyenv: uv: command not found' >&2; exit 127\n", False),
        ("echo 'uv 0.4.1'\n", False),
        ("echo 'uv 0.13.8 (x86_64-unknown-linux-gnu)'\n", True),
    ],
    ids=["a shim that refuses", "too old for the lock", "a good one"],
)
def test_a_uv_on_path_must_work(checkout: Path, script: str, works: bool) -> None:
    program(checkout.parent / "bin" / "uv", script)
    assert where(checkout)["uv"].startswith("none") is not works


@pytest.mark.parametrize("command", ["run", "demo"])
def test_a_command_works_in_the_folder_it_was_called_from(checkout: Path, command: str) -> None:
    """Also through a relative path, with CDPATH set, with a Python that PYTHONHOME would keep from starting."""
    program(checkout.parent / "bin" / "uv", "case $1 in --version) echo 'uv 0.13.8' ;; esac\n")
    program(checkout.parent / "bin" / "python3.13", f'[ -z "${{PYTHONHOME:-}}" ] && exec "{sys.executable}" "$@"\n')
    program(checkout / ".venv" / "bin" / "agentdyno", 'pwd; echo "$@"\n')
    (checkout.parent / "bin" / "mkdir").symlink_to(shutil.which("mkdir") or "/bin/mkdir")
    elsewhere = checkout.parent / "elsewhere"
    (elsewhere / "decoy" / "checkout").mkdir(parents=True)
    (elsewhere / "checkout").symlink_to(checkout)
    done = subprocess.run(
        ["checkout/dev", command, "--out", "a b"],
        cwd=elsewhere,
        env={"PATH": str(checkout.parent / "bin"), "CDPATH": str(elsewhere / "decoy"), "PYTHONHOME": "/nowhere"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder, arguments = done.stdout.splitlines()
    assert folder == str(elsewhere)
    assert arguments.endswith("--out a b")
    assert done.stderr == ""


def test_a_folder_that_is_no_environment_is_named(checkout: Path) -> None:
    program(checkout.parent / "bin" / "uv", "case $1 in --version) echo 'uv 0.13.8' ;; *) exit 2 ;; esac\n")
    (checkout.parent / "bin" / "mkdir").symlink_to(shutil.which("mkdir") or "/bin/mkdir")
    (checkout / ".venv").write_text("")
    done = subprocess.run(
        ["./dev", "sync"], cwd=checkout, env={"PATH": str(checkout.parent / "bin")}, capture_output=True, text=True
    )
    assert done.returncode == 3
    assert ".venv is no Python environment: remove it" in done.stderr


def test_an_unknown_command_is_answered_with_the_usage(checkout: Path) -> None:
    done = subprocess.run(
        ["./dev", "fly"], cwd=checkout, env={"PATH": str(checkout.parent / "bin")}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "usage: ./dev COMMAND" in done.stderr
