"""Exports that we have no importer of, read off their files as far as they tell the fields of a session."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.exported_fields import Facts, Numbers, Values, json_value, occurrence


def lines(path: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, path.read_bytes().splitlines())


def read_mooncake(path: Path) -> list[Facts]:
    found: dict[str, Facts] = {}
    starts: dict[str, float] = {}
    paths: dict[str, Numbers] = {}
    for row in lines(path):
        play = row["play_id"]
        one = found.setdefault(play, Facts(session={"session.session_id": play}))
        start = starts.setdefault(play, row["timestamp"])
        told: Values = {
            "request.t_send_us": round((row["timestamp"] - start) * 1000),
            "request.model": row["model"],
            "request.completion_tokens": row["output_length"],
            "request.request_index": len(one.requests),
        }
        if "messages" in row:
            told |= {
                "request.agent_path": paths.setdefault(play, Numbers()).of(row["session_id"]),
                "request.prompt_spans": len(row["messages"]),
                "request.tools_index": len(row.get("tools", ())),
                "request.temperature": row.get("extra", {}).get("temperature"),
            }
            one.prompts.append([read_openai_message(message) for message in row["messages"]])
            one.tools.append([read_openai_tool(tool) for tool in row.get("tools", ())])
        else:
            told["request.prompt_tokens"] = row["input_length"]
        one.requests.append(told)
    return list(found.values())


def read_openai_message(message: dict[str, Any]) -> Values:
    uses = [
        (use["id"], use["function"]["name"], json_value(use["function"]["arguments"]))
        for use in message.get("tool_calls", ())
    ]
    names = ("role", "content", "reasoning_content", "name", "tool_call_id")
    return {
        f"message.{name}": message.get(name) or (None if name == "reasoning_content" else message.get(name))
        for name in names
    } | {"message.tool_calls": uses}


def read_openai_tool(tool: dict[str, Any]) -> Values:
    function = tool["function"]
    return {
        "tool.name": function["name"],
        "tool.description": function["description"],
        "tool.parameters": function.get("parameters"),
    }


def read_openai(path: Path) -> list[Facts]:
    found = []
    for line in lines(path):
        one = Facts(session={f"session.{name}": line[name] for name in ("session_id", "harness", "license")})
        one.session["session.models"] = tuple(line["models"])  # of all that was sent; here all of it is there
        paths = Numbers()
        requests = sorted(line["requests"], key=lambda one: (one["t_send_us"] or 0, one["request_index"]))
        zero = requests[0]["t_send_us"] or 0
        for number, request in enumerate(requests):
            holder = line if not request["conversation"] else line["conversations"][request["conversation"] - 1]
            told = {f"request.{name}": value for name, value in request.items()}
            for name in ("request.t_send_us", "request.t_end_us"):
                told[name] = None if told[name] is None else told[name] - zero
            told |= {
                "request.request_index": number,
                "request.agent_path": paths.of(request["agent_path"]),
                "request.prompt_spans": request["message_count"],
                "request.tools_index": len(holder["tools"]),
            }
            one.requests.append(told)
            one.prompts.append([read_openai_message(item) for item in holder["messages"][: request["message_count"]]])
            one.tools.append([read_openai_tool(tool) for tool in holder["tools"]])
        found.append(one)
    return found


def read_otel(path: Path) -> list[Facts]:
    """Calls and tools of the spans; their attributes are told by `curate.exports.otel`."""
    found = []
    for file in sorted(path.iterdir()):
        (resource,) = json.loads(file.read_text())["resourceSpans"]
        (scope,) = resource["scopeSpans"]
        about = attributes(resource["resource"])
        one = Facts()
        spans = [(span, attributes(span)) for span in scope["spans"]]
        calls = [
            (span, told) for span, told in spans if told.get("gen_ai.operation.name") in ("chat", "generate_content")
        ]
        calls.sort(key=lambda item: (int(item[0]["startTimeUnixNano"]), item[1]["agentdyno.request.index"]))
        one.session = {
            "session.session_id": calls[0][1]["gen_ai.conversation.id"],
            "session.harness": about.get("service.name"),
            "session.harness_version": about.get("service.version"),
            "session.source": about.get("agentdyno.source"),
            "session.token_source": about.get("agentdyno.token_source"),
            "session.license": about.get("agentdyno.license"),
        }
        zero = int(calls[0][0]["startTimeUnixNano"])
        rank = {told["agentdyno.request.index"]: number for number, (_, told) in enumerate(calls)}
        paths = Numbers()
        for number, (span, told) in enumerate(calls):
            start, end = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
            first = told.get("agentdyno.time_to_first_token") if told.get("gen_ai.request.stream") else None
            one.requests.append({
                "request.request_index": number,
                "request.agent_path": paths.of(span["parentSpanId"]),
                "request.t_send_us": (start - zero) // 1000,
                "request.t_end_us": None if told.get("agentdyno.incomplete") else (end - zero) // 1000,
                "request.t_first_token_us": None if first is None else (start - zero) // 1000 + round(first * 1e6),
                "request.model": told.get("gen_ai.request.model", ""),
                "request.max_tokens": told.get("gen_ai.request.max_tokens"),
                "request.temperature": told.get("gen_ai.request.temperature"),
                "request.stream": told.get("gen_ai.request.stream"),
                "request.stop": next(iter(told.get("gen_ai.response.finish_reasons", ())), None),
                "request.prompt_tokens": told.get("gen_ai.usage.input_tokens"),
                "request.cache_read_tokens": told.get("gen_ai.usage.cache_read.input_tokens"),
                "request.cache_write_tokens": told.get("gen_ai.usage.cache_creation.input_tokens"),
                "request.completion_tokens": told.get("gen_ai.usage.output_tokens"),
                "request.reasoning_tokens": told.get("gen_ai.usage.reasoning.output_tokens"),
                "request.status": told.get("http.response.status_code"),
                "request.kind": told["agentdyno.request.kind"],
                "request.relation": told["agentdyno.relation"],
                "request.context_event": told["agentdyno.context_event"],
                "request.retry_of": rank.get(told.get("agentdyno.retry_of", -1)),
                "request.gap_kind": told["agentdyno.gap.kind"],
                "request.gap_us": micro(told.get("agentdyno.gap_ms")),
                "request.think_us": micro(told.get("agentdyno.gap.human_ms")),
                "request.permission_us": micro(told.get("agentdyno.gap.permission_ms")),
                "request.client_us": micro(told.get("agentdyno.gap.client_ms")),
            })  # fmt: skip
        for span, told in spans:
            if told.get("gen_ai.operation.name") == "execute_tool":
                one.calls[occurrence(one, told["gen_ai.tool.call.id"])] = {
                    "tool_call.tool_call_id": told["gen_ai.tool.call.id"],
                    "tool_call.name": told["gen_ai.tool.name"],
                    "tool_call.kind": told["agentdyno.tool.kind"],
                    "tool_call.agent_path": paths.of(span["parentSpanId"]),
                    "tool_call.wall_us": micro(told.get("agentdyno.tool.wall_ms")),
                    "tool_call.exit_code": told.get("agentdyno.tool.exit_code"),
                    "tool_call.timed_out": told.get("agentdyno.tool.timed_out"),
                    "tool_call.result_bytes": told.get("agentdyno.tool.result_bytes"),
                    "tool_call.internal_source": told.get("agentdyno.tool.time_source"),
                    "tool_call.is_error": told.get("error.type") == "tool_error",
                }
        found.append(one)
    return found


def micro(milliseconds: float | None) -> int | None:
    return None if milliseconds is None else round(milliseconds * 1000)


def attributes(holder: dict[str, Any]) -> dict[str, Any]:
    def value(one: dict[str, Any]) -> Any:
        ((kind, told),) = one.items()
        if kind == "arrayValue":
            return [value(item) for item in told["values"]]
        return int(told) if kind == "intValue" else told

    return {one["key"]: value(one["value"]) for one in holder["attributes"]}
