"""Makes the samples of this folder again: `python -m tests.otlp.make`, where the agents of tests/agents can be had."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import certifi
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from capture.exchange import Exchange
from capture.otlp import agent_environment, agent_overrides
from capture.scripted import ScriptedServer
from tests import real_agents
from tests.otlp_receiver import OtlpReceiver, numbered
from tests.real_agents import AGENTS, Agent, Launch

HERE = Path(__file__).parent
GROUPS = (("first 0.6",), ("left 0.4", "right 0.2"))
# Stamps itself: EPOCHREALTIME is bash's clock with microseconds, read without starting a program.
TIMED = """\
started=$EPOCHREALTIME
sleep "$2"
echo "$1 $started $EPOCHREALTIME" >> times.txt
echo "$1 is done"
"""
# Facts about the machine and its user; everything else is the same on every machine.
MACHINE = {"user.id", "host.name", "host.arch", "os.type", "os.version", "terminal.type", "thread.id", "env"}
NOISE = {"codex.sse_event", "codex.startup_phase"}  # one per event of the stream, and nothing about tools


def telling(agent: Agent, endpoint: str) -> Agent:
    """The agent with telemetry to `endpoint`."""

    def launch(programs: Path, base_url: str, home: Path) -> Launch:
        plain = agent.launch(programs, base_url, home)
        environment = plain.environment | agent_environment(agent.name, endpoint)
        if agent.name != "codex":
            return Launch(command=plain.command, environment=environment)
        # Codex's exporter does not start where it finds no certificate at all, http or not.
        environment["SSL_CERT_FILE"] = certifi.where()
        return Launch(command=[*plain.command, *agent_overrides(endpoint)], environment=environment)

    return replace(agent, launch=launch)


def record(agent: Agent, folder: Path) -> tuple[list[Exchange], list[dict[str, object]]]:
    """What an agent exports in one short session, and each tool call's own stamps."""
    work = folder / "work"
    work.mkdir(parents=True)
    (work / "timed.sh").write_text(TIMED, encoding="utf-8")
    script = agent.script(tuple(tuple(f"bash timed.sh {command}" for command in group) for group in GROUPS))
    with OtlpReceiver() as receiver, ScriptedServer(script, models=(agent.model,)) as server:
        done = real_agents.run(telling(agent, receiver.endpoint), server.url, folder)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [call.call_id for entry in server.log for call in entry.calls]
    stamps = read_stamps(work)
    names = [command.split()[0] for group in GROUPS for command in group]
    return receiver.exchanges, [
        {"tool_call_id": call, "name": name, "started_us": stamps[name][0], "ended_us": stamps[name][1]}
        for call, name in zip(made, names, strict=True)
    ]


def read_stamps(work: Path) -> dict[str, tuple[int, int]]:
    """When each command began and ended, as it wrote it down itself: UTC microseconds by name."""
    stamps = {}
    for line in (work / "times.txt").read_text(encoding="utf-8").splitlines():
        name, began, ended = line.split()
        stamps[name] = (round(float(began) * 1e6), round(float(ended) * 1e6))
    return stamps


def scrubbed(exchange: Exchange) -> Exchange:
    """The same export without facts about the machine, and without Codex's record per event of a stream."""
    if exchange.path.endswith("/traces"):
        traces = ExportTraceServiceRequest.FromString(exchange.request_body)
        resources = list(traces.resource_spans)
        places = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
        message: ExportTraceServiceRequest | ExportLogsServiceRequest = traces
    else:
        logs = ExportLogsServiceRequest.FromString(exchange.request_body)
        for resource in logs.resource_logs:
            for scope in resource.scope_logs:
                kept = [record for record in scope.log_records if not _is_noise(record)]
                del scope.log_records[:]
                scope.log_records.extend(kept)
        resources = list(logs.resource_logs)
        places = [record for resource in resources for scope in resource.scope_logs for record in scope.log_records]
        message = logs
    for place in [*(resource.resource for resource in resources), *places]:
        for attribute in place.attributes:
            if attribute.key in MACHINE:
                attribute.value.string_value = "scrubbed"
    return replace(exchange, request_body=message.SerializeToString())


def _is_noise(record: object) -> bool:
    return any(attribute.value.string_value in NOISE for attribute in record.attributes)  # type: ignore[attr-defined]


def main() -> None:
    """Record each agent that exports, and write its folder anew."""
    for agent in AGENTS:
        if agent.name not in ("claude-code", "codex"):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            exchanges, stamps = record(agent, Path(temporary) / "run")
        folder = HERE / agent.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, exchange in numbered([scrubbed(exchange) for exchange in exchanges]):
            (folder / f"{name}.pb").write_bytes(exchange.request_body)
            if agent.name == "codex":
                message = ExportLogsServiceRequest.FromString(exchange.request_body)
                text = json_format.MessageToJson(message, indent=None)
                (folder / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        (folder / "stamps.json").write_text(json.dumps(stamps, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
