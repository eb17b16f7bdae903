"""The docs say what the code does now."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_generated_pages_are_up_to_date() -> None:
    code = "import generate; print([path.name for path, text in generate.pages().items() if path.read_text() != text])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = ['docs', '.']; {code}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", "run: python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:capture|curate|replay|tests|bench|docs)/[\w/.-]+\.(?:py|md|sqlite))`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_a_page_is_python(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        ast.parse(block)


def test_the_example_files_are_read_and_name_every_key(tmp_path: Path) -> None:
    from replay.protocol import FULL
    from replay.provisioned import read_provisioned
    from replay.slo import load_slos
    from replay.system import Accelerator, Meter, Node, Prices, Rack, System, load_system

    page = (ROOT / "docs" / "FORMATS.md").read_text()
    system, level = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    (descriptor,) = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    for name, text in (("system.toml", system), ("level.toml", level), ("system_power.json", descriptor)):
        (tmp_path / name).write_text(text)
    found = load_system(tmp_path / "system.toml")
    assert found.accelerator_count == 8
    assert read_provisioned(found.provisioned).power_w == 1.5 * (2 * 350 + 8 * 700 + 4 * 300)
    assert replace(load_slos(str(tmp_path / "level.toml"))[0].protocol, name=FULL.name) == FULL
    for kind, text in ((kind, system) for kind in (System, Accelerator, Node, Rack, Meter, Prices)):
        assert [field.name for field in fields(kind) if not re.search(rf"\b{field.name}\b", text)] == []


def test_the_page_of_recipes_names_every_key_and_its_examples_are_read(tmp_path: Path) -> None:
    from curate.recipe import TABLES, Recipe, read_recipe

    page = (ROOT / "docs" / "RECIPE.md").read_text()
    keys = {field.name for kind in (Recipe, *TABLES.values()) for field in fields(kind)}
    assert sorted(key for key in keys if f"`{key}`" not in page and f"`[{key}]`" not in page) == []
    examples = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) >= 3
    for text in examples:
        (tmp_path / "recipe.toml").write_text(text)
        read_recipe(tmp_path / "recipe.toml")


def test_the_table_of_series_in_the_docs_is_read(tmp_path: Path) -> None:
    from replay.power.series import read_table

    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "POWER.md").read_text(), flags=re.DOTALL)
    (tmp_path / "series.toml").write_text(text)
    assert read_table(tmp_path / "series.toml")


def test_the_methodology_has_the_version_that_results_carry() -> None:
    from replay.score import METHODOLOGY_VERSION

    assert f"# Methodology, version {METHODOLOGY_VERSION}" in (ROOT / "docs" / "METHODOLOGY.md").read_text()
