"""A small coding agent, real in everything but its model: it asks for the next step, runs it, and asks again.

usage: python -m replay.demo.agent --base-url http://127.0.0.1:PORT/v1 --model NAME --task TEXT

It speaks OpenAI chat completions over SSE, offers one tool, `shell`, and runs what the model calls for in a
temporary folder of its own, several calls of one answer side by side. It stops when an answer holds no call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

MAX_TURNS = 40
COMMAND_TIMEOUT_S = 30.0
OUTPUT_LIMIT = 8_000  # characters of a command's output that go back to the model
SYSTEM = (
    "You are a careful coding agent working in a small Python project. Use the shell tool to read files, to run "
    "the tests and to make the smallest change that fixes what fails. Say in one sentence what you did when done."
)
SHELL = {
    "type": "function",
    "function": {
        "name": "shell",
        "description": "Run a command with sh in the project's folder and return what it prints.",
        "parameters": {
            "type": "object",
            "properties": {"command": {"type": "string", "description": "The command line."}},
            "required": ["command"],
        },
    },
}
PROJECT = {
    "prices.py": (
        '"""Prices in cents."""\n\n\ndef total(prices, discount_percent=0):\n'
        "    gross = sum(prices)\n    return gross - gross * discount_percent // 10\n"
    ),
    "test_prices.py": (
        "import unittest\n\nfrom prices import total\n\n\nclass Total(unittest.TestCase):\n"
        "    def test_no_discount(self):\n        self.assertEqual(total([100, 250]), 350)\n\n"
        "    def test_ten_percent(self):\n        self.assertEqual(total([1000], 10), 900)\n\n\n"
        'if __name__ == "__main__":\n    unittest.main()\n'
    ),
    "README.md": "# prices\n\nAdds up prices in cents. Run the tests with `python3 -m unittest`.\n",
}


@dataclass(slots=True)
class Answer:
    """What the model streamed: text and tool calls, put together from their fragments."""

    content: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)

    def take(self, delta: dict[str, Any]) -> None:
        """Add one chunk's delta."""
        self.content += delta.get("content") or ""
        for part in delta.get("tool_calls") or ():
            call = self.calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] += part.get("id") or ""
            function = part.get("function") or {}
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""

    def message(self) -> dict[str, Any]:
        """Return the answer as the message that goes back with the next request."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for call in self.calls.values()
            ]
        return message


def data_lines(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a chat completion stream."""
    for line in response.iter_lines():
        if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
            yield json.loads(data)


def ask(client: httpx.Client, model: str, messages: list[dict[str, Any]]) -> Answer:
    """Send the whole conversation and return the model's next step."""
    body = {
        "model": model,
        "messages": messages,
        "tools": [SHELL],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = Answer()
    with client.stream("POST", "chat/completions", json=body) as response:
        response.raise_for_status()
        for event in data_lines(response):
            for choice in event.get("choices") or ():
                answer.take(choice.get("delta") or {})
    return answer


def run_shell(folder: Path, arguments: str) -> str:
    """Run one command in the folder and return what it printed, with its exit code if that is not 0."""
    command = json.loads(arguments)["command"]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"[stopped after {COMMAND_TIMEOUT_S:g} s]"
    text = done.stdout.decode("utf-8", "replace")[:OUTPUT_LIMIT]
    return text if done.returncode == 0 else f"{text}\n[exit code {done.returncode}]"


def work(client: httpx.Client, *, model: str, task: str, folder: Path) -> str:
    """Work on a task until the model calls no tool, and return its last words."""
    for name, text in PROJECT.items():
        (folder / name).write_text(text)
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task}]
    with ThreadPoolExecutor(max_workers=4) as pool:
        for _ in range(MAX_TURNS):
            answer = ask(client, model, messages)
            messages.append(answer.message())
            if not answer.calls:
                return answer.content
            calls = list(answer.calls.values())
            outputs = pool.map(lambda call: run_shell(folder, call["arguments"]), calls)
            messages += [
                {"role": "tool", "tool_call_id": call["id"], "content": output}
                for call, output in zip(calls, outputs, strict=True)
            ]
    return f"stopped after {MAX_TURNS} turns"


def main() -> None:
    """Run one task from the command line and print the model's last words."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", required=True)
    options = parser.parse_args()
    headers = {
        "user-agent": "agentdyno-demo-agent/1",
        "authorization": "Bearer " + os.environ.get("DEMO_AGENT_KEY", "none"),
    }
    with (
        tempfile.TemporaryDirectory(prefix="agentdyno-agent-") as folder,
        httpx.Client(base_url=options.base_url, headers=headers, timeout=60.0, trust_env=False) as client,
    ):
        sys.stdout.write(work(client, model=options.model, task=options.task, folder=Path(folder)) + "\n")


if __name__ == "__main__":
    main()
