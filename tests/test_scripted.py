"""The scripted model server, spoken to by plain HTTP and, where it is at hand, by OpenAI's own client."""

from __future__ import annotations

import gzip
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from capture.script import (
    HttpError,
    Script,
    ScriptedCall,
    ScriptedRequest,
    ScriptedUsage,
    Step,
    StreamBreak,
    read_script,
)
from capture.scripted import RequestLog, ScriptedServer

USAGE = ScriptedUsage(input_total=1000, cache_read=300, cache_write=100, output_total=50, reasoning=20)
WHOLE = Step(
    text="Here is a text — with a dash — of some length.",
    reasoning="First I think.",
    calls=(
        ScriptedCall(name="run", arguments='{"command": "ls /tmp"}'),
        ScriptedCall(name="run", arguments='{"command": "pwd"}'),
    ),
    usage=USAGE,
    first_content_ms=0,
    between_ms=0,
)
PATHS = {
    "anthropic.messages": "/v1/messages?beta=true",
    "openai.chat": "/v1/chat/completions",
    "openai.responses": "/v1/responses",
}
DIALECTS = tuple(PATHS)


def prompt(dialect: str, **extra: Any) -> dict[str, Any]:
    """A first request that offers the tool `run`."""
    match dialect:
        case "anthropic.messages":
            base: dict[str, Any] = {
                "model": "m",
                "max_tokens": 100,
                "messages": [{"role": "user", "content": "go"}],
                "tools": [{"name": "run", "input_schema": {"type": "object"}}],
            }
        case "openai.chat":
            base = {
                "model": "m",
                "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "go"}],
                "tools": [{"type": "function", "function": {"name": "run", "parameters": {}}}],
                "stream_options": {"include_usage": True},
            }
        case _:
            base = {"model": "m", "input": "go", "tools": [{"type": "function", "name": "run", "parameters": {}}]}
    return base | extra


def post(
    server: ScriptedServer, path: str, body: object, headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"content-type": "application/json"} | (headers or {}))
        response = connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


def events(stream: bytes) -> Iterator[dict[str, Any]]:
    for block in stream.decode().split("\n\n"):
        for line in block.split("\n"):
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line[6:])


def finished(server: ScriptedServer, count: int) -> tuple[RequestLog, ...]:
    """The log, once it holds `count` requests: the last line is written just after the client has its last byte."""
    until = time.monotonic() + 10
    while len(server.log) < count and time.monotonic() < until:
        time.sleep(0.002)
    return server.log


def test_anthropic_stream_has_text_thinking_calls_and_cumulative_usage() -> None:
    with ScriptedServer(lambda _: WHOLE) as server:
        _, body, headers = post(server, PATHS["anthropic.messages"], prompt("anthropic.messages", stream=True))
        (log,) = finished(server, 1)
    seen = list(events(body))
    assert [e["type"] for e in seen[:2]] == ["message_start", "ping"]
    assert seen[0]["message"]["usage"]["input_tokens"] == 600  # 1000 less what the cache held or took
    deltas = [e["delta"] for e in seen if e["type"] == "content_block_delta"]
    assert "".join(d.get("thinking", "") for d in deltas) == WHOLE.reasoning
    assert "".join(d.get("text", "") for d in deltas) == WHOLE.text
    assert "".join(d.get("partial_json", "") for d in deltas) == "".join(c.arguments for c in WHOLE.calls)
    starts = [e["content_block"] for e in seen if e["type"] == "content_block_start"]
    assert [s["type"] for s in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert [s["id"] for s in starts[2:]] == [call.call_id for call in log.calls]
    assert seen[-2]["delta"]["stop_reason"] == "tool_use"
    assert seen[-2]["usage"]["output_tokens"] == 50
    assert seen[-1] == {"type": "message_stop"}
    assert headers["request-id"].startswith("req_")


def test_chat_stream_ends_with_usage_and_done() -> None:
    with ScriptedServer(lambda _: WHOLE) as server:
        _, body, _ = post(server, PATHS["openai.chat"], prompt("openai.chat", stream=True))
        _, plain, _ = post(server, PATHS["openai.chat"], prompt("openai.chat", stream=True, stream_options=None))
    assert body.endswith(b"data: [DONE]\n\n")
    seen = list(events(body))
    assert seen[-1]["choices"] == []
    assert seen[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 300, "cache_write_tokens": 100}
    assert "usage" not in list(events(plain))[-1]
    deltas = [e["choices"][0]["delta"] for e in seen[:-1]]
    assert "".join(d.get("content") or "" for d in deltas) == WHOLE.text
    assert "".join(d.get("reasoning_content") or "" for d in deltas) == WHOLE.reasoning
    calls = [piece for d in deltas for piece in d.get("tool_calls", ())]
    for place, call in enumerate(WHOLE.calls):
        mine = [piece for piece in calls if piece["index"] == place]
        assert mine[0]["function"]["name"] == call.name
        assert "".join(piece["function"]["arguments"] for piece in mine) == call.arguments
    assert seen[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_responses_stream_numbers_its_events_and_completes() -> None:
    step = Step(text="x" * 50, reasoning="y", calls=(*WHOLE.calls, ScriptedCall(name="patch", arguments="*** free")))
    tools = [{"type": "function", "name": "run", "parameters": {}}, {"type": "custom", "name": "patch"}]
    with ScriptedServer(lambda _: step) as server:
        _, body, _ = post(server, PATHS["openai.responses"], prompt("openai.responses", stream=True, tools=tools))
    seen = list(events(body))
    assert [e["sequence_number"] for e in seen] == list(range(len(seen)))
    assert [e["type"] for e in seen[:2]] == ["response.created", "response.in_progress"]
    items = [e["item"] for e in seen if e["type"] == "response.output_item.done"]
    kinds = ["reasoning", "message", "function_call", "function_call", "custom_tool_call"]
    assert [item["type"] for item in items] == kinds
    assert items[-1]["input"] == "*** free"
    assert seen[-1]["type"] == "response.completed"
    assert seen[-1]["response"]["output"] == items
    assert b"[DONE]" not in body


@pytest.mark.parametrize("dialect", DIALECTS)
def test_json_and_stream_say_the_same(dialect: str) -> None:
    with ScriptedServer(lambda _: WHOLE, salt="00") as server:
        _, whole, headers = post(server, PATHS[dialect], prompt(dialect))
    assert headers["content-type"] == "application/json"
    answer = json.loads(whole)
    match dialect:
        case "anthropic.messages":
            calls = [(b["id"], json.dumps(b["input"])) for b in answer["content"] if b["type"] == "tool_use"]
        case "openai.chat":
            message = answer["choices"][0]["message"]
            calls = [(c["id"], c["function"]["arguments"]) for c in message["tool_calls"]]
        case _:
            calls = [(i["call_id"], i["arguments"]) for i in answer["output"] if i["type"] == "function_call"]
    prefix = "toolu_" if dialect == "anthropic.messages" else "call_"
    assert calls == [(f"{prefix}0000000100", '{"command": "ls /tmp"}'), (f"{prefix}0000000101", '{"command": "pwd"}')]


def answer_and_results(dialect: str, log: RequestLog, *, interleaved: bool) -> list[dict[str, Any]]:
    """What a client appends after an answer with calls: the calls echoed, and a result for each."""
    match dialect:
        case "anthropic.messages":
            return [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "tool_use", "id": c.call_id, "name": c.name, "input": json.loads(c.arguments)}
                        for c in log.calls
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": c.call_id,
                            "content": [{"type": "text", "text": "out"}],
                            "is_error": True,
                        }
                        for c in log.calls
                    ],
                },
            ]
        case "openai.chat":
            calls = [
                {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in log.calls
            ]
            return [
                {"role": "assistant", "content": "", "tool_calls": calls},
                *({"role": "tool", "tool_call_id": c.call_id, "content": "out"} for c in log.calls),
            ]
        case _:
            asked = [
                {"type": "function_call", "call_id": c.call_id, "name": c.name, "arguments": c.arguments}
                for c in log.calls
            ]
            given = [{"type": "function_call_output", "call_id": c.call_id, "output": "out"} for c in log.calls]
            if interleaved:
                return [item for pair in zip(asked, given, strict=True) for item in pair]
            return asked + given


@pytest.mark.parametrize("interleaved", [False, True], ids=["results last", "each result beside its call"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_prompt_says_which_step_is_due(dialect: str, interleaved: bool) -> None:
    script = Script(steps=(WHOLE, Step(text="second"), Step(text="third")))
    key = "input" if dialect == "openai.responses" else "messages"
    with ScriptedServer(script) as server:
        body = prompt(dialect)
        for _ in range(2):  # a retry of the first request gets the first step again
            post(server, PATHS[dialect], body)
        first = finished(server, 2)[1]
        start = [{"role": "user", "content": "go"}] if dialect == "openai.responses" else body[key]
        body[key] = start + answer_and_results(dialect, first, interleaved=interleaved)
        _, second, _ = post(server, PATHS[dialect], body)
        body[key] = body[key] + [{"role": "assistant", "content": "second"}, {"role": "user", "content": "more"}]
        _, third, _ = post(server, PATHS[dialect], body)
        _, side, _ = post(server, PATHS[dialect], body | {"tools": []})
        log = finished(server, 5)
    assert b"second" in second
    assert b"third" in third
    assert b"A scripted session" in side
    assert [entry.answered for entry in log] == [0, 0, 1, 2, 2]
    assert [result.call_id for result in log[2].tool_results] == [call.call_id for call in first.calls]
    assert {result.text for result in log[2].tool_results} == {"out"}
    assert [entry.number for entry in server.calls] == [1, 2, 3, 4]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_error_has_the_dialects_shape(dialect: str) -> None:
    step = Step(error=HttpError(status=529, kind="overloaded_error", message="busy", retry_after_s=2))
    with ScriptedServer(lambda _: step) as server:
        status, body, headers = post(server, PATHS[dialect], prompt(dialect, stream=True))
        (log,) = finished(server, 1)
    assert (status, headers["retry-after"]) == (529, "2")
    error = json.loads(body)["error"]
    assert (error["type"], error["message"]) == ("overloaded_error", "busy")
    assert (log.status, log.calls, log.first_content_ns) == (529, (), None)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_may_break_with_an_error_event(dialect: str) -> None:
    step = Step(text="x" * 240, broken=StreamBreak(after_content_events=3, how="error_event", message="broke"))
    with ScriptedServer(lambda _: step) as server:
        status, body, _ = post(server, PATHS[dialect], prompt(dialect, stream=True))
        (log,) = finished(server, 1)
    assert status == 200
    last = list(events(body))[-1]
    assert "broke" in json.dumps(last)
    assert log.content_events == 3


@pytest.mark.parametrize("stream", [True, False])
def test_a_cut_leaves_the_body_unfinished(stream: bool) -> None:
    step = Step(text="x" * 240, broken=StreamBreak(after_content_events=3, how="cut"))
    with ScriptedServer(lambda _: step) as server:
        with pytest.raises((http.client.IncompleteRead, http.client.RemoteDisconnected)):
            post(server, PATHS["openai.chat"], prompt("openai.chat", stream=stream))
        (log,) = finished(server, 1)
    assert log.last_byte_ns is None


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "identity"])
def test_encoded_request_bodies_are_read(encoding: str) -> None:
    plain = json.dumps(prompt("openai.responses")).encode()
    encoded = {
        "gzip": gzip.compress,
        "zstd": zstandard.ZstdCompressor().compress,
        "identity": bytes,
    }[encoding](plain)
    with ScriptedServer(lambda _: WHOLE) as server:
        status, _, _ = post(server, PATHS["openai.responses"], encoded, {"content-encoding": encoding})
        (log,) = finished(server, 1)
    assert status == 200
    assert (log.content_encoding, log.body_bytes, log.tool_names) == (encoding, len(encoded), ("run",))


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"not json", {}),
        (b"[1]", {}),
        (b'{"messages": [7]}', {}),
        (b"{}", {"content-encoding": "gzip"}),
        (b"{}", {"content-encoding": "rot13"}),
    ],
    ids=["no JSON", "no object", "no message", "not gzip", "unknown encoding"],
)
def test_a_body_that_cannot_be_read_is_refused(body: bytes, headers: dict[str, str]) -> None:
    with ScriptedServer(lambda _: WHOLE) as server:
        status, answer, _ = post(server, PATHS["anthropic.messages"], body, headers)
    assert status == 400
    assert "cannot be read" in json.loads(answer)["error"]["message"]


def test_what_is_no_model_call_gets_a_sane_answer() -> None:
    with ScriptedServer(lambda _: WHOLE, models=("one", "two")) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        answers: list[tuple[int, bytes]] = []
        for method, path in (("HEAD", "/api/hello"), ("GET", "/v1/models?limit=5"), ("POST", "/telemetry")):
            connection.request(method, path, b"{}" if method == "POST" else None)
            response = connection.getresponse()
            answers.append((response.status, response.read()))
        connection.close()
        status, counted, _ = post(server, "/v1/messages/count_tokens", prompt("anthropic.messages"))
        log = finished(server, 4)
    assert [status for status, _ in answers] == [200, 200, 200]
    assert (answers[0][1], answers[2][1]) == (b"", b"{}")
    assert [model["id"] for model in json.loads(answers[1][1])["data"]] == ["one", "two"]
    assert (status, json.loads(counted)["input_tokens"] > 0) == (200, True)
    assert [entry.connection for entry in log] == [1, 1, 1, 2]  # kept alive
    assert server.calls == ()


def test_times_follow_the_script_and_no_header_value_is_kept() -> None:
    step = Step(text="a" * 30, piece_chars=10, headers_ms=30, first_content_ms=60, between_ms=40)
    with ScriptedServer(lambda _: step) as server:
        before = time.monotonic_ns()
        post(server, PATHS["openai.chat"], prompt("openai.chat", stream=True), {"authorization": "Bearer very-secret"})
        (log,) = finished(server, 1)
    assert log.headers_written_ns is not None
    assert log.first_content_ns is not None
    assert log.last_content_ns is not None
    assert log.last_byte_ns is not None
    assert before <= log.received_headers_ns <= log.received_body_ns
    assert log.headers_written_ns - log.received_body_ns >= 30e6
    assert log.first_content_ns - log.headers_written_ns >= 60e6
    assert log.last_content_ns - log.first_content_ns >= 2 * 40e6
    assert log.last_content_ns <= log.last_byte_ns
    assert "authorization" in log.header_names
    assert "very-secret" not in repr(log)


def test_events_arrive_as_they_are_written() -> None:
    step = Step(text="ab", piece_chars=1, first_content_ms=0, between_ms=300)
    with ScriptedServer(lambda _: step) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            body = json.dumps(prompt("openai.chat", stream=True)).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            seen = b""
            while b'"content":"a"' not in seen:
                seen += client.recv(65536)
            assert b'"content":"b"' not in seen
            while not seen.endswith(b"0\r\n\r\n"):
                seen += client.recv(65536)
        finished(server, 1)


def test_a_client_that_leaves_is_in_the_log() -> None:
    step = Step(text="a" * 1000, piece_chars=1, first_content_ms=0, between_ms=5)
    with ScriptedServer(lambda _: step) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            body = json.dumps(prompt("openai.chat", stream=True)).encode()
            client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
            client.recv(1000)
        (log,) = finished(server, 1)
    assert log.client_left
    assert log.last_byte_ns is None


def test_chunked_bodies_and_expect_continue_are_read() -> None:
    body = json.dumps(prompt("openai.chat")).encode()
    with ScriptedServer(lambda _: WHOLE) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n"
                           b"expect: 100-continue\r\nconnection: close\r\n\r\n")  # fmt: skip
            assert client.recv(100).startswith(b"HTTP/1.1 100")
            for part in (body[:10], body[10:]):
                client.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            client.sendall(b"0\r\n\r\n")
            seen = b""
            while piece := client.recv(65536):
                seen += piece
        (log,) = finished(server, 1)
    assert seen.startswith(b"HTTP/1.1 200")
    assert log.body_bytes == len(body)


def test_what_is_not_http_is_refused_and_the_server_lives_on() -> None:
    with ScriptedServer(lambda _: WHOLE) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"hello\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 400")
        assert post(server, "/anything", b"")[0] == 200


def test_a_fault_of_the_script_reaches_the_caller() -> None:
    def broken(request: ScriptedRequest) -> Step:
        raise KeyError(request.model)

    with pytest.raises(KeyError), ScriptedServer(broken) as server:
        assert post(server, PATHS["openai.chat"], prompt("openai.chat"))[0] == 500


def test_a_taken_port_is_said_at_the_start() -> None:
    with ScriptedServer(lambda _: WHOLE) as server, pytest.raises(OSError, match="in use"):
        ScriptedServer(lambda _: WHOLE, port=server.port).__enter__()


def test_many_streams_at_once_keep_their_pace() -> None:
    step = Step(text="a" * 20, piece_chars=1, first_content_ms=5, between_ms=5)
    with ScriptedServer(lambda _: step) as server:
        threads = [
            threading.Thread(target=post, args=(server, PATHS["openai.chat"], prompt("openai.chat", stream=True)))
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log = finished(server, 16)
    assert [entry.content_events for entry in log] == [20] * 16
    assert len({entry.connection for entry in log}) == 16


def test_openais_own_client_reads_it() -> None:
    openai = pytest.importorskip("openai", reason="the openai package comes with mini-swe-agent")
    with ScriptedServer(lambda _: WHOLE) as server, openai.OpenAI(base_url=server.url + "/v1", api_key="x") as client:
        with client.responses.stream(model="m", input="go") as stream:
            final = stream.until_done().get_final_response()
        with client.chat.completions.stream(
            model="m", messages=[{"role": "user", "content": "go"}], stream_options={"include_usage": True}
        ) as chat:
            chatted = chat.until_done().get_final_completion()
        assert [model.id for model in client.models.list()] == ["scripted-model"]
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert (final.output_text, final.usage.input_tokens) == (WHOLE.text, 1000)
    assert chatted.choices[0].message.content == WHOLE.text
    assert chatted.usage.completion_tokens_details.reasoning_tokens == 20


def test_it_runs_as_a_process(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    call = {"name": "run", "arguments": {"command": "ls"}}
    script.write_text(
        json.dumps({"steps": [{"calls": [call], "usage": {"input_total": 9}}], "after": {"text": "over"}}),
        encoding="utf-8",
    )
    ready, log = tmp_path / "ready", tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "capture.scripted", script, "--ready-file", ready, "--log", log]
    with subprocess.Popen(command, cwd=Path(__file__).parent.parent) as process:
        try:
            until = time.monotonic() + 20
            while not ready.exists() and time.monotonic() < until:
                time.sleep(0.01)
            port = int(ready.read_text(encoding="utf-8").strip().rpartition(":")[2])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("POST", "/v1/messages", json.dumps(prompt("anthropic.messages")))
            answer = json.loads(connection.getresponse().read())
            connection.close()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert answer["content"][0]["input"] == {"command": "ls"}
    (line,) = log.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["calls"][0]["call_id"] == answer["content"][0]["id"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nope", "not JSON"),
        ("[]", "list named steps"),
        ('{"steps": [{"text": "fine"}, {"tekst": "x"}]}', "step 1"),
        ('{"steps": [{"calls": [{"name": "x"}]}]}', "step 0"),
    ],
)
def test_a_bad_script_names_the_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "script.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read_script(path)
