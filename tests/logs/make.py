"""Makes the golden logs anew: real sessions of real agents, as the agents log them, and what the server knows of them.

python -m tests.logs.make [AGENT…]    (from the root of the checkout; needs npm)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from capture.script import HttpError, ScriptedCall, ScriptedRequest, ScriptedUsage, Step
from capture.scripted import RequestLog, ScriptedServer
from tests.real_agents import AGENTS, GEMINI_CLI, Agent

FOLDER = Path(__file__).parent
LONGEST_TEXT = 170  # characters that stay of any text: the prompts are their makers' own
SALT = "golden"
TASK = "SUBTASK: count the files in this folder."
FINDING = "The sub-agent found three files."
# Long enough to be told from chance, and said by nobody else.
SUMMARY = "Summary: two commands ran, one of them failed, a sub-agent counted files, and nothing is left to do."
_ID = re.compile(r"[0-9a-f]{64}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[a-z]+_[0-9a-z-]+")


def timed(name: str, seconds: float, then: str = "") -> str:
    """A command that says when it began and ended, by the machine's own clock."""
    return f'echo "{name} $EPOCHREALTIME"; sleep {seconds}; echo "{name} $EPOCHREALTIME"{then}'


def usage(input_total: int, cache_read: int, output_total: int, *, write: int = 0, reasoning: int = 0) -> ScriptedUsage:
    return ScriptedUsage(
        input_total=input_total,
        cache_read=cache_read,
        cache_write=write,
        output_total=output_total,
        reasoning=reasoning,
    )


class Play:
    """What the model says: parallel commands, a sub-agent, a refusal, and an end for each later prompt."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.refused = False

    def spawn(self) -> ScriptedCall:
        if self.agent.name == "gemini-cli":
            return ScriptedCall(name="invoke_agent", arguments=json.dumps({"agent_name": "generalist", "prompt": TASK}))
        return self.agent.spawn(TASK)

    def __call__(self, request: ScriptedRequest) -> Step:
        answered, said = request.answered, request.last_user_text
        if request.purpose == "summary":
            return Step(text=SUMMARY, usage=usage(2_100, 1_900, 33))
        if not request.tool_names:
            return Step(text="A scripted session")
        if TASK in request.opening_text and "Run the steps." not in request.opening_text:
            command = self.agent.call(timed("sub", 0.2))
            if answered == 0:
                return Step(text="The sub-agent looks.", calls=(command,), usage=usage(500, 0, 20))
            if self.agent.name == "gemini-cli":
                told = ScriptedCall(name="complete_task", arguments=json.dumps({"result": {"response": FINDING}}))
                return Step(text="It found them.", calls=(told,), usage=usage(620, 480, 15))
            return Step(text=FINDING, usage=usage(620, 480, 15))
        if "After the compaction" in said:
            return Step(text="It goes on.", usage=usage(700, 0, 8))
        two = (self.agent.call(timed("one", 0.3)), self.agent.call(timed("two", 0.1, "; exit 3")))
        steps = [
            Step(text="First two.", reasoning="Two at once.", calls=two, usage=usage(1_000, 100, 100, reasoning=40)),
            Step(text="Now a sub-agent.", calls=(self.spawn(),), usage=usage(1_200, 900, 60, write=200)),
        ]
        if self.agent.wait_tool is not None:
            steps.append(
                Step(text="I wait.", calls=self.agent.wait(request.tool_results), usage=usage(1_300, 1_200, 14))
            )
        if answered == len(steps) and not self.refused:
            self.refused = True
            return Step(error=HttpError(status=529, kind="overloaded_error", message="Overloaded", retry_after_s=1))
        steps.append(Step(text="All is done.", usage=usage(1_400, 1_100, 12)))
        if answered < len(steps):
            return steps[answered]
        return Step(text=f"Answer {answered + 1}.", usage=usage(1_500 + answered, 1_400, 9))


def command(agent: Agent, url: str, folder: Path, *words: str, prompt: str) -> str:
    """Runs an agent with further words on its command line, its log kept; gives what it said, on either stream."""
    home, work = folder / "home", folder / "work"
    home.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    launch = agent.launch(agent.find(), url, home)
    line = [word for word in launch.command if word != "--ephemeral"]
    if agent.name == "codex":
        at = line.index("exec") + 1
        line[at:at] = words
    elif agent.name == "gemini-cli":
        line[1:1] = words
    else:
        line += words
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "dumb"}
    environment |= {"SHELL": shutil.which("bash") or "/bin/sh", "TMPDIR": str(folder), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [*line, *prompt.split("\0")],
        cwd=work,
        env=environment | launch.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{agent.name} failed: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def play_claude_code(agent: Agent, url: str, folder: Path) -> Path:
    """A session, resumed, forked, compacted and gone on with."""
    projects = folder / "home" / ".claude" / "projects"
    command(agent, url, folder, prompt="Run the steps.")
    (log,) = projects.glob("*/*.jsonl")
    command(agent, url, folder, "--resume", log.stem, prompt="Go on.")
    command(agent, url, folder, "--resume", log.stem, "--fork-session", prompt="Take another way.")
    command(agent, url, folder, "--resume", log.stem, prompt="/compact")
    command(agent, url, folder, "--resume", log.stem, prompt="After the compaction, once more.")
    return projects


def play_codex(agent: Agent, url: str, folder: Path) -> Path:
    """The same; it compacts by itself once its limit is low."""
    said = command(agent, url, folder, prompt="Run the steps.")
    found = re.search(r"session id: (\S+)", said)
    assert found is not None, said
    command(agent, url, folder, "resume", prompt=found[1] + "\0Go on.")
    command(agent, url, folder, "fork", prompt=found[1] + "\0Take another way.")
    low = "model_auto_compact_token_limit=1400"
    command(agent, url, folder, "resume", "-c", low, prompt=found[1] + "\0After the compaction, once more.")
    return folder / "home" / ".codex" / "sessions"


def play_gemini_cli(agent: Agent, url: str, folder: Path) -> Path:
    """A session, gone on with."""
    command(agent, url, folder, prompt="Run the steps.")
    command(agent, url, folder, "--resume", "latest", prompt="Go on.")
    return folder / "home" / ".gemini" / "tmp"


def scrub(value: Any, folder: Path) -> Any:
    """The value with long texts cut, schemas left out and paths of the machine replaced."""
    if isinstance(value, str):
        text = value.replace(str(folder), "/home/user").replace(str(folder).replace("/", "-"), "-home-user")
        return text if len(text) <= LONGEST_TEXT or _ID.fullmatch(text) else text[:LONGEST_TEXT] + "…"
    if isinstance(value, list):
        return [scrub(item, folder) for item in value]
    if isinstance(value, dict):
        return {
            key: {} if key in ("input_schema", "schema", "state") else scrub(item, folder)
            for key, item in value.items()
        }
    return value


def _known(call: RequestLog, offset_us: int) -> dict[str, Any]:
    """What the server knows of a call, on the wall clock."""

    def wall(at_ns: int | None) -> int | None:
        return None if at_ns is None else at_ns // 1000 + offset_us

    counts = None
    if call.usage is not None:
        counts = {name: getattr(call.usage, name) for name in ("input_total", "cache_read", "output_total")}
    return {
        "number": call.number,
        "status": call.status,
        "purpose": call.purpose,
        "response_id": call.response_id,
        "text": call.text,
        "tool_call_ids": [made.call_id for made in call.calls],
        "tools_offered": len(call.tool_names),
        "received_utc_us": wall(call.received_body_ns),
        "first_content_utc_us": wall(call.first_content_ns),
        "last_byte_utc_us": wall(call.last_byte_ns),
        "usage": counts,
    }


def main(names: list[str]) -> int:
    """Plays every named agent (all, without a name)."""
    plays = {"claude-code": play_claude_code, "codex": play_codex, "gemini-cli": play_gemini_cli}
    for agent in (*AGENTS, GEMINI_CLI):
        if agent.name not in plays or (names and agent.name not in names):
            continue
        target = FOLDER / agent.name
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made).resolve()
            play = Play(agent)
            with ScriptedServer(play, models=(agent.model,), salt=SALT) as server:
                logs = plays[agent.name](agent, server.url, folder)
                served = [entry for entry in server.log if entry.dialect is not None]
            offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000
            for path in sorted(logs.rglob("*")):
                if path.is_dir() or ".json" not in path.name:
                    continue
                place = target / Path(*(part.replace(str(folder).replace("/", "-"), "-home-user")
                                        for part in path.relative_to(logs).parts))  # fmt: skip
                place.parent.mkdir(parents=True, exist_ok=True)
                with path.open(encoding="utf-8") as lines, place.open("w", encoding="utf-8") as scrubbed:
                    for line in lines:
                        scrubbed.write(json.dumps(scrub(json.loads(line), folder), ensure_ascii=False) + "\n")
        known = [_known(call, offset_us) for call in served]
        (target / "served.json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
