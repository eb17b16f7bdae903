"""Makes sessions of coding agents, the same ones every time, in two shapes: Claude Code's logs and JSON lines.

A session is a task, then turns of thoughts, a tool call and its result (mostly code of the standard library), at times
a sub-agent of its own turns. Tasks repeat; one session in thirty repeats another's words. There are e-mails and home
paths in it, and no secret.
"""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

PER_PROJECT = 50
_START = datetime(2026, 3, 1, tzinfo=UTC)
_MODELS = ("claude-opus-4-6", "claude-sonnet-4-5")

type Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What was written."""

    sessions: int
    requests: int
    json_lines: Path
    json_bytes: int
    logs: Path
    log_bytes: int


def clean_code(megabytes: float) -> list[str]:
    """Files of the standard library, in a fixed random order, up to a size."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    random.Random(20261120).shuffle(files)
    texts: list[str] = []
    size = 0
    for path in files:
        if size >= megabytes * 1e6:
            break
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        size += len(texts[-1].encode())
    return texts


def write_sessions(folder: Path, gigabytes: float) -> Made:
    """Write sessions to `folder` until their JSON lines have that size."""
    code = "\n".join(clean_code(24))
    json_lines, logs = folder / "sessions.jsonl", folder / "home" / ".claude" / "projects"
    logs.mkdir(parents=True)
    sessions = requests = json_bytes = log_bytes = 0
    with json_lines.open("wb") as out:
        while json_bytes < gigabytes * 1e9:
            # A session's words depend on its seed, so a seed that comes again is a session said again.
            seed = sessions - 7 if sessions % 30 == 29 else sessions
            session = _Session(sessions, random.Random(seed), code)
            line = json.dumps(session.nested(), ensure_ascii=False).encode() + b"\n"
            out.write(line)
            json_bytes += len(line)
            project = logs / f"-home-user-project-{sessions // PER_PROJECT:04d}"
            log_bytes += session.write_log(project)
            sessions += 1
            requests += sum(len(chain.requests) for chain in session.chains)
    return Made(
        sessions=sessions,
        requests=requests,
        json_lines=json_lines,
        json_bytes=json_bytes,
        logs=logs,
        log_bytes=log_bytes,
    )


@dataclass(slots=True)
class _Chain:
    """The main conversation or a sub-agent's."""

    agent: str | None
    tool: str | None  # the call that started it
    messages: list[Json] = field(default_factory=list)
    requests: list[Json] = field(default_factory=list)
    lines: list[Json] = field(default_factory=list)


class _Session:
    def __init__(self, number: int, chooser: random.Random, code: str) -> None:
        self.id = f"{number:08x}-0000-4000-8000-{number:012x}"
        self.chooser = chooser
        self.code = code
        self.model = chooser.choice(_MODELS)
        self.now_us = number * 600_000_000
        self.start_us = self.now_us
        self.count = 0
        self.chains: list[_Chain] = []
        task = f"Task {chooser.randrange(200)}: see why this fails, and mend it.\n{self._excerpt(600)}"
        self._play(_Chain(None, None), task, min(150, max(8, int(chooser.lognormvariate(3.5, 0.6)))))

    def _excerpt(self, length: int) -> str:
        at = self.chooser.randrange(len(self.code) - length)
        return self.code[at : at + length]

    def _play(self, chain: _Chain, task: str, turns: int) -> None:
        self.chains.append(chain)
        self._say(chain, "user", {"content": task})
        chain.messages.append({"role": "user", "content": task, "tool_calls": [], "tool_call_id": None})
        for turn in range(turns):
            last = turn == turns - 1
            self.count += 1
            call = f"toolu_{self.id[:8]}{self.count:06d}"
            sent_us = self.now_us
            self.now_us += self.chooser.randrange(2_000_000, 15_000_000)
            text, thought = (
                self._excerpt(self.chooser.randrange(60, 400)),
                self._excerpt(self.chooser.randrange(80, 600)),
            )
            spawns = chain.agent is None and not last and self.chooser.random() < 0.02
            name, given, output = self._tool(spawns)
            self._answer(chain, text, thought, None if last else (call, name, given), sent_us)
            if spawns:
                agent = _Chain(f"a{self.id[:8]}{self.count:08d}", call)
                self._play(agent, given["prompt"], self.chooser.randrange(4, 16))
                output = agent.messages[-1]["content"]
            if not last:
                self.now_us += self.chooser.randrange(50_000, 9_000_000)
                result = {"type": "tool_result", "tool_use_id": call, "content": output, "is_error": False}
                self._say(chain, "user", {"content": [result]})
                chain.messages.append({"role": "tool", "content": output, "tool_calls": [], "tool_call_id": call})

    def _tool(self, spawns: bool) -> tuple[str, Json, str]:
        """(name, input, output) of a call."""
        if spawns:
            prompt = f"Find all places of it and list them. {self._excerpt(300)}"
            return "Task", {"description": "Search", "prompt": prompt, "subagent_type": "Explore"}, ""
        path = f"/home/user/project/src/part_{self.chooser.randrange(400)}.py"
        size = (
            self.chooser.randrange(200, 4000) if self.chooser.random() < 0.9 else self.chooser.randrange(4000, 30_000)
        )
        found = self._excerpt(size)
        match self.chooser.randrange(4):
            case 0:
                return "Bash", {"command": f"cd /home/user/project && git log --author=dev@example.org {path}"}, found
            case 1:
                numbered = "\n".join(f"{number:6}\t{line}" for number, line in enumerate(found.split("\n"), 1))
                return "Read", {"file_path": path}, numbered
            case 2:
                return "Edit", {"file_path": path, "old_string": found[:300], "new_string": found[100:500]}, "Edited."
            case _:
                return "Grep", {"pattern": "def \\w+", "path": path}, found

    def _answer(self, chain: _Chain, text: str, thought: str, call: tuple[str, str, Json] | None, sent_us: int) -> None:
        blocks: list[Json] = [
            {"type": "thinking", "thinking": thought, "signature": ""},
            {"type": "text", "text": text},
        ]
        calls = []
        if call is not None:
            call_id, name, given = call
            blocks.append({"type": "tool_use", "id": call_id, "name": name, "input": given})
            calls.append({"id": call_id, "name": name, "arguments": json.dumps(given, ensure_ascii=False)})
        context = sum(len(message["content"]) for message in chain.messages) // 4
        out = (len(text) + len(thought)) // 4
        usage = {"input_tokens": context // 20, "cache_read_input_tokens": context, "output_tokens": out}
        for number, block in enumerate(blocks):
            said = {
                "id": f"msg_{self.id[:8]}{self.count:06d}",
                "type": "message",
                "model": self.model,
                "content": [block],
                "stop_reason": "tool_use" if calls else "end_turn",
                "usage": usage,
            }
            self._say(chain, "assistant", said, requestId=f"req_{self.id[:8]}{self.count:06d}", apiBlockIndex=number)
        chain.requests.append(
            {
                "message_count": len(chain.messages),
                "model": self.model,
                "t_send_us": sent_us - self.start_us,
                "t_end_us": self.now_us - self.start_us,
                "completion_tokens": out,
            }
        )
        chain.messages.append({"role": "assistant", "content": text, "tool_calls": calls, "tool_call_id": None})

    def _say(self, chain: _Chain, kind: str, message: Json, **more: Any) -> None:
        line: Json = {
            "parentUuid": chain.lines[-1]["uuid"] if chain.lines else None,
            "isSidechain": chain.agent is not None,
            "type": kind,
            "message": {"role": kind, **message},
            "uuid": f"{self.id[:8]}-{self.chains.index(chain):04d}-{len(chain.lines):08d}",
            "timestamp": (_START + timedelta(microseconds=self.now_us)).isoformat().replace("+00:00", "Z"),
            "cwd": "/home/user/project",
            "sessionId": self.id,
            "version": "2.0.14",
        }
        if chain.agent is not None:
            line["agentId"] = chain.agent
        chain.lines.append(line | more)

    def nested(self) -> Json:
        """The session as one JSON value."""
        main, *agents = (
            {"messages": chain.messages, "requests": chain.requests, "agent": chain.agent or "main"}
            for chain in self.chains
        )
        return {"session_id": self.id, **main, "agents": agents}

    def write_log(self, project: Path) -> int:
        """Write the session as Claude Code does; gives the bytes."""
        size = 0
        for chain in self.chains:
            path = project / f"{self.id}.jsonl"
            if chain.agent is not None:
                path = project / self.id / "subagents" / f"agent-{chain.agent}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in chain.lines).encode()
            path.write_bytes(data)
            size += len(data)
            if chain.agent is not None:
                meta = {"agentType": "Explore", "toolUseId": chain.tool}
                path.with_suffix(".meta.json").write_text(json.dumps(meta))
        return size


def projects(made: Made) -> Iterator[Path]:
    """The folders of logs, one after the other."""
    yield from sorted(made.logs.iterdir())
