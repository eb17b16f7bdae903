"""Makes the golden recordings anew: one call of each real agent, with what it is known to say.

python -m tests.recordings.make [AGENT…]    (from the root of the checkout; needs npm for all but mini-swe-agent)
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from capture.encoding import BodyDecoder
from capture.exchange import Exchange
from capture.script import Script, ScriptedUsage
from capture.scripted import RequestLog, ScriptedServer
from capture.store import Store
from tests import real_agents
from tests.real_agents import AGENTS, Agent, Unavailable
from tests.recorder_process import recorder

FOLDER = Path(__file__).parent
LONGEST_TEXT = 60  # characters that stay of any text in a request: the prompts are their makers' own
SALT = "c0ffee"
KEPT = 1  # the call to keep: it carries a tool's result, and its answer has reasoning, text and two calls
COMMANDS = (("echo one",), ("echo two", "echo three"))
USAGE = ScriptedUsage(input_total=12_000, cache_read=9_000, cache_write=1_000, output_total=180, reasoning=40)
NO_ID = "00000000-0000-0000-0000-000000000000"


def main(names: list[str]) -> int:
    """Records every named agent (all, without a name); 1 where one could not be had."""
    missing = 0
    for agent in AGENTS:
        if names and agent.name not in names:
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                write(agent, *record(agent, Path(folder)))
        except Unavailable as reason:
            print(f"{agent.name}: {reason}", file=sys.stderr)
            missing += 1
    return 1 if missing else 0


def record(agent: Agent, folder: Path) -> tuple[Exchange, RequestLog, Script, Path]:
    """Runs the agent once and gives the kept call."""
    plain = agent.script(COMMANDS)
    kept = replace(plain.steps[KEPT], reasoning="Two commands — side by side: naïve, but quick.", usage=USAGE)
    script = replace(plain, steps=(*plain.steps[:KEPT], kept, *plain.steps[KEPT + 1 :]))
    with ScriptedServer(script, models=(agent.model,), salt=SALT) as server, recorder(server.url, folder) as url:
        done = real_agents.run(agent, url, folder)
    if done.returncode != 0:
        raise RuntimeError(f"{agent.name} failed: {done.stdout}{done.stderr}")
    exchanges = [exchange for exchange in Store.open(folder / "store").exchanges() if exchange.method == "POST"]
    wanted = server.calls[KEPT]
    (exchange,) = [one for one in exchanges if one.reads and answer_id(one) == wanted.number]
    return exchange, wanted, script, folder


def answer_id(exchange: Exchange) -> int | None:
    """Number of the scripted answer, from the request id that the server gave it."""
    named = exchange.response_header("request-id") or exchange.response_header("x-request-id") or ""
    found = re.fullmatch(rf"req_{SALT}(\d{{6}})", named)
    return int(found[1]) if found else None


def write(
    agent: Agent, exchange: Exchange, log: RequestLog, script: Script, folder: Path, target: Path | None = None
) -> None:
    """Writes the three files of a recording into `target`; None: the folder that bears the agent's name."""
    target = target or FOLDER / agent.name
    target.mkdir(exist_ok=True)
    response = b"".join(read.data for read in exchange.reads)
    (target / ("response.sse" if agent.streams else "response.json")).write_bytes(response)
    decoder = BodyDecoder(exchange.request_header("content-encoding"))
    body = clean(json.loads(decoder.feed(exchange.request_body)), folder)
    start = exchange.t_send_ns
    kept_headers = [
        (name, clean_text(value, folder))
        for name, value in exchange.request_headers
        # The body is written anew, so what described its bytes no longer holds.
        if name not in ("content-length", "content-encoding", "host")
    ]
    exchange_json = {
        "method": exchange.method,
        "path": exchange.path,
        "request_headers": [[name, replace_ids(value)] for name, value in kept_headers],
        "request_body": body,
        "status": exchange.status,
        "response_headers": [list(pair) for pair in exchange.response_headers],
        "t_sent_us": None if exchange.t_sent_ns is None else (exchange.t_sent_ns - start) // 1000,
        "t_headers_us": None if exchange.t_headers_ns is None else (exchange.t_headers_ns - start) // 1000,
        "t_end_us": None if exchange.t_end_ns is None else (exchange.t_end_ns - start) // 1000,
        "outcome": exchange.outcome,
        "reads": [[(read.at_ns - start) // 1000, len(read.data)] for read in exchange.reads],
    }
    dump(target / "exchange.json", exchange_json)
    step = script.steps[KEPT]
    nameless = agent.api == "google.gemini"  # it gives its tool calls no ids
    assert log.first_content_ns is not None
    assert log.last_byte_ns is not None
    dump(
        target / "expected.json",
        {
            "api": agent.api,
            "harness": agent.harness,
            "model": agent.model,
            "stream": agent.streams,
            "tool_names": list(log.tool_names),
            "notes": ["context_management asks for clear_thinking_20251015"] if agent.name == "claude-code" else [],
            "tool_result_ids": None if nameless else [result.call_id for result in log.tool_results],
            "text": step.text,
            "reasoning": step.reasoning,
            "calls": [[None if nameless else call.call_id, call.name, call.arguments] for call in log.calls],
            "usage": {
                "input_total": USAGE.input_total,
                "cache_read": USAGE.cache_read,
                "cache_write": None if nameless else USAGE.cache_write,  # nor a count of what it wrote to its cache
                "output_total": USAGE.output_total,
                # Anthropic's usage holds no count of reasoning.
                "reasoning": None if agent.api == "anthropic.messages" else USAGE.reasoning,
            },
            "content_events": log.content_events if agent.streams else None,
            "server_first_content_ms": round((log.first_content_ns - log.received_headers_ns) / 1e6, 3),
            "server_end_ms": round((log.last_byte_ns - log.received_headers_ns) / 1e6, 3),
        },
    )
    print(f"{target.name}: {len(response)} bytes of answer, {len(exchange.reads)} reads")


def dump(path: Path, value: object) -> None:
    """JSON that a person can read in a diff."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def clean(value: Any, folder: Path) -> Any:
    """A request with long texts cut, and with nothing that names the machine."""
    if isinstance(value, dict):
        whole = {name: NO_ID for name in value if name.endswith("installation-id")}
        # Codex puts a head of 110 characters before what a command wrote.
        whole |= {name: clean_text(text, folder) for name, text in value.items() if name == "output"}
        return {name: clean(inner, folder) for name, inner in value.items()} | whole
    if isinstance(value, list):
        return [clean(inner, folder) for inner in value]
    if isinstance(value, str):
        text = replace_ids(clean_text(value, folder))
        # Ids in JSON inside a text must stay readable, so only what is prose is cut.
        if len(text) > LONGEST_TEXT and not text.startswith("{"):
            return f"{text[:LONGEST_TEXT]}… [{len(text) - LONGEST_TEXT} characters cut]"
        return text
    return value


def clean_text(text: str, folder: Path) -> str:
    """Text without the paths of the run and the names of the system it ran on."""
    text = text.replace(str(folder.resolve()), "/run").replace(str(folder), "/run")
    text = text.replace(str(real_agents.ROOT), "/checkout").replace(f"{Path.home()}/", "/home/")
    text = re.sub(r"OS Version: .*", "OS Version: Linux", text)
    text = re.sub(r"\((?:Debian|Ubuntu|Mac OS|Linux|Alpine|Fedora)[^)]*\)", "(Linux; x86_64)", text)
    return re.sub(r"Linux \d+\.\d+\.[\w.-]+", "Linux", text)


def replace_ids(text: str) -> str:
    """Text in which ids of the installation are zeros; ids of the session stay, since they tie calls together."""
    text = re.sub(r'("(?:installation_id|account_uuid)": ?")[0-9a-f-]{36}"', rf'\g<1>{NO_ID}"', text)
    return re.sub(r'(\\?"device_id\\?": ?\\?")[0-9a-f]{64}', r"\g<1>" + "0" * 64, text)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
