"""What the demo's scripted model says: three short tasks whose commands really run, in the agent's own folder."""

from __future__ import annotations

import json

from capture.script import ScriptedCall, ScriptedRequest, Step

MODEL = "scripted-model"

COMPILE_ALL = """python3 - <<'PY'
import ast, pathlib
for path in sorted(pathlib.Path().glob("*.py")):
    ast.parse(path.read_text())
    print(path, "compiles")
PY"""
ADD_FUNCTION = """cat >> prices.py <<'PY'


def euros(cents):
    return f"{cents // 100},{cents % 100:02d} EUR"
PY
tail -4 prices.py"""
ADD_TEST = """python3 - <<'PY'
import pathlib
path = pathlib.Path("test_prices.py")
text = path.read_text().replace("import total", "import euros, total")
test = '    def test_euros(self):\\n        self.assertEqual(euros(1205), "12,05 EUR")\\n\\n\\n'
path.write_text(text.replace("if __name__", test + "if __name__"))
PY
grep -n euros *.py"""


def _step(text: str, *commands: str, first_content_ms: float = 120.0) -> Step:
    calls = tuple(ScriptedCall(name="shell", arguments=json.dumps({"command": command})) for command in commands)
    return Step(text=text, calls=calls, first_content_ms=first_content_ms, between_ms=6.0)


# One task a recorded session. A final step without a command ends it.
TASKS: dict[str, tuple[Step, ...]] = {
    "The test for a ten percent discount fails. Find out why and fix it.": (
        _step("I look at the project first.", "ls -l", "cat README.md"),
        _step("Now the code and its tests.", "cat prices.py", "cat test_prices.py"),
        _step("I run the tests to see the failure.", "python3 -m unittest 2>&1"),
        _step(
            "The discount is divided by 10, but it is given in percent: it must be divided by 100.",
            "sed -i.orig 's|// 10$|// 100|' prices.py && diff prices.py.orig prices.py; rm prices.py.orig",
        ),
        _step("I run the tests again.", "python3 -m unittest 2>&1"),
        _step("Fixed: the discount is now divided by 100, and all tests pass."),
    ),
    "How much code is here, and does it compile? Measure, do not guess.": (
        _step("Counting lines.", "wc -l *.py", "grep -c def *.py"),
        _step(
            "Compiling every file in memory.",
            COMPILE_ALL,
        ),
        _step("One slow look, to be sure that nothing changes meanwhile.", "cksum *.py; sleep 0.8; cksum *.py"),
        _step("Two Python files, about twenty lines; both compile and did not change."),
    ),
    "Add a function that formats cents as euros, with a test.": (
        _step("Reading what is there.", "cat prices.py"),
        _step(
            "Adding the function.",
            ADD_FUNCTION,
        ),
        _step("Adding a test beside the others.", ADD_TEST),
        _step("Running the new test alone.", "python3 -m unittest -k euros 2>&1"),
        _step("A slower check of everything.", "sleep 0.4; python3 -m unittest -v 2>&1"),
        _step('Done: euros(1205) gives "12,05 EUR", and a test says so.'),
    ),
}


def choose(request: ScriptedRequest) -> Step:
    """Return the step that is due: the task names the script, the answers in the prompt say how far it is."""
    steps = TASKS.get(request.last_user_text, ())
    return steps[request.answered] if request.answered < len(steps) else Step(text="I have nothing left to do.")
