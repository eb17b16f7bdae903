"""Languages of a session come from the names of the files that its tool calls touch, in every agent's own shape."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.call import Message, ToolUse
from capture.importers.agentperf_local import import_agentperf_local
from curate.language import HEADER, LANGUAGES, NAMES, SUFFIXES, language_mix, language_of, paths_of
from tests.sample_sessions import content_free_session, pooled, text_session

PATCH = "*** Begin Patch\n*** Update File: src/a.rs\n@@\n-cat b.py\n+cat c.go\n*** Add File: web/d.tsx\n*** End Patch"
DIFF = "--- a/lib/old name.rb\n+++ b/lib/new.rb\n@@ -1 +1 @@\n-x\n+y"


def languages(arguments: Any) -> set[str]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {language for path in paths_of(text) if (language := language_of(path))}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"file_path": "/home/u/w/src/main.rs", "offset": 1, "limit": 200}, {"rust"}),
        ({"file_path": "/w/a.ts", "old_string": "see b.py", "new_string": "see c.go"}, {"typescript"}),
        ({"file_path": "/w/a.css", "edits": [{"old_string": "x.py", "new_string": "y.rb"}]}, {"css"}),
        ({"notebook_path": "/w/a.ipynb", "new_source": "open('b.csv')"}, {"jupyter"}),
        ({"pattern": "foo.c", "path": "src/x.zig"}, {"zig"}),
        ({"command": "cat src/app.py", "description": "Look at b.rs"}, {"python"}),
        ({"cmd": "sed -n '1,200p' src/x.rs", "workdir": "/w"}, {"rust"}),
        ({"command": ["bash", "-lc", "sed -n 1,20p src/x.go && rg 'a b.py' -g '*.ml'"]}, {"go", "ocaml"}),
        ({"command": ["cat", "a.kt", "--since=b.py"]}, {"kotlin"}),
        ({"input": PATCH}, {"rust", "typescript"}),
        (PATCH, {"rust", "typescript"}),
        ({"command": ["apply_patch", PATCH]}, {"rust", "typescript"}),
        ({"cmd": f"apply_patch <<'EOF'\n{PATCH}\nEOF\ncargo test"}, {"rust", "typescript"}),
        ({"patchText": DIFF}, {"ruby"}),
        ({"filePath": "C:\\w\\Program.cs", "oldString": "x.py"}, {"c#"}),
        ({"absolute_path": "/w/lib/main.dart"}, {"dart"}),
        ({"paths": ["src/**/*.ts", "docs/a.md"]}, {"typescript", "markdown"}),
        ({"path": "lib/app.ex", "oldText": "a.py", "newText": "b.py"}, {"elixir"}),
        ({"command": "view", "path": "/testbed/Makefile", "view_range": [1, 9]}, {"make"}),
        ({"tool_calls": [{"tool": "read", "parameters": {"filePath": "/w/a.swift"}}]}, {"swift"}),
        ({"command": "cat <<'EOF' > gen.py\nopen('x.rs')\nEOF\npython gen.py | tee out.json"}, {"python", "json"}),
        ({"command": "cat > a.sh << EOF\nrun b.rb\nEOF"}, {"shell"}),
        ({"command": "python - <<'PY'\nopen('x.rs')\nPY"}, set()),
        ({"command": "grep x <<< 'a.py' b.cpp"}, {"c++", "python"}),
        ({"command": "pytest tests/test_a.py::test_b -k 'not c.rs or d'"}, {"python"}),
        ({"command": "git show HEAD:src/a.java | head # not b.py"}, {"java"}),
        ({"command": "vim src/a.scala:12:3; gcc -o a a.c"}, {"scala", "c"}),
        ({"command": 'docker exec box bash -c "cat /w/a.lua; ls"'}, {"lua"}),
        ({"command": "git commit -m 'use node.js and b.py'"}, set()),
        ({"command": "curl https://example.com/install.sh -o x"}, set()),
        ({"command": "ssh me@host.rs; npm i @scope/pkg"}, set()),
        ({"command": "git clone git@example.com:me/tool.py"}, set()),
        ({"command": "FILE=a.php ./run"}, {"php"}),
        ({"command": "echo 'open quote b.py"}, set()),
        ({"path": None, "command": 3, "paths": [1, {"path": "a.jl"}]}, {"julia"}),
        ("not json, look at a.nim", {"nim"}),
        ('"cat a.pl"', {"perl"}),
        ("[]", set()),
        ("", set()),
    ],
)
def test_file_names_are_found_in_every_agents_arguments(arguments: Any, found: set[str]) -> None:
    assert languages(arguments) == found


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a/b.PY", "python"),
        ("Dockerfile", "dockerfile"),
        ("Dockerfile.dev", "dockerfile"),
        ("x.dockerfile", "dockerfile"),
        ("sub/CMakeLists.txt", "cmake"),
        ("include/x.h", HEADER),
        ("x.bzl", "starlark"),
        ("/tmp/repo/a.rs", "rust"),
        ("README", None),
        (".py", None),
        ("", None),
        ("package-lock.json", None),
        ("web/pnpm-lock.yaml", None),
        ("Cargo.lock", None),
        ("dist/app.min.js", None),
        ("node_modules/x/index.js", None),
        ("/w/.venv/lib/python3.13/site-packages/x.py", None),
        (".git/hooks/a.sh", None),
        ("/proc/self/a.c", None),
        ("/usr/include/stdio.h", None),
        ("a.exe", None),
    ],
)
def test_a_name_tells_the_language_of_files_that_people_work_on(path: str, language: str | None) -> None:
    assert language_of(path) == language


def test_the_table_says_each_thing_once() -> None:
    suffixes = [suffix for each in SUFFIXES.values() for suffix in each.split()]
    names = [name for each in NAMES.values() for name in each.split()]
    assert len(suffixes) == len(set(suffixes))
    assert len(names) == len(set(names))
    assert len(LANGUAGES) >= 60
    for language, each in SUFFIXES.items():
        assert all(language_of(f"x.{suffix}") == language for suffix in each.split())


def session_of(*arguments: dict[str, Any]):  # type: ignore[no-untyped-def]
    uses = tuple(ToolUse(id=str(n), name="t", arguments=json.dumps(each)) for n, each in enumerate(arguments))
    answer = pooled(Message(role="assistant", content="", tool_calls=uses), 0, answer=True)
    return replace(text_session(), pool=(answer,))


def test_a_call_counts_once_for_each_language_it_touches() -> None:
    session = session_of({"path": "a.py"}, {"command": "cat a.py b.py c.rs"}, {"path": "d.py"}, {"path": "LICENSE"})
    assert language_mix(session) == [("python", 0.75), ("rust", 0.25)]


@pytest.mark.parametrize(
    ("others", "mix"),
    [
        ([], [("c", 1.0)]),
        (["a.c"], [("c", 1.0)]),
        (["a.cpp"], [("c++", 1.0)]),
        (["a.m"], [("objective-c", 1.0)]),
        (["a.cu"], [("c++", 0.5), ("cuda", 0.5)]),
        (["a.c", "b.cc"], [("c++", 2 / 3), ("c", 1 / 3)]),
    ],
)
def test_a_header_is_of_the_language_beside_it(others: list[str], mix: list[tuple[str, float]]) -> None:
    assert language_mix(session_of({"path": "x.h"}, *({"path": other} for other in others))) == mix


def test_nobody_can_tell_without_text_or_files() -> None:
    assert language_mix(content_free_session()) is None
    assert language_mix(session_of({"command": "make test"})) is None


def test_real_tasks_have_the_languages_that_they_are_about() -> None:
    tasks = {each.source_ref: language_mix(each) for each in import_agentperf_local(None, b"k" * 32).trajectories}
    assert {name: mix[0][0] for name, mix in tasks.items() if mix} == {
        "task_meeting_council_budget": "markdown",
        "task_meeting_council_votes": "markdown",
        "task_k8s_debugging": "yaml",
        "task_meeting_searchable_index": "markdown",
        "task_skill_search": "json",
        "django__django-15851": "python",
        "django__django-14500": "python",
        "sphinx-doc__sphinx-10614": "python",
    }


@given(st.one_of(st.text(), st.recursive(st.text() | st.none() | st.integers(), st.lists).map(json.dumps)))
def test_no_arguments_break_it(arguments: str) -> None:
    languages(arguments)
    languages({"command": arguments, "path": arguments, "input": arguments})


@pytest.mark.parametrize("text", ['"\\"' * 200_000, "<<A\n" * 200_000, "--- a/" + " " * 500_000, "'\" " * 200_000])
def test_no_arguments_are_gone_over_again_and_again(text: str) -> None:
    languages({"command": text})  # what looks back at every quote would run into the suite's time limit


def test_deep_arguments_are_no_trap() -> None:
    assert languages("[" * 100_000) == set()
    assert languages('{"a":' * 50 + '{"path": "x.py"}' + "}" * 50) == set()
