"""What scenarios ask of the scripted server: attempts, several scripts, compaction, Gemini, TLS, identity."""

from __future__ import annotations

import datetime
import http.client
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from capture.script import (
    HttpError,
    Script,
    ScriptedCall,
    ScriptedRequest,
    ScriptedUsage,
    Scripts,
    Step,
    StreamBreak,
    growing_usage,
    read_script,
)
from capture.scripted import ScriptedServer
from tests.test_scripted import PATHS, events, finished, post, prompt
from tests.websocket_client import WebSocketClient

CALL = ScriptedCall(name="run", arguments='{"command": "ls"}')


@pytest.mark.parametrize("dialect", PATHS)
def test_a_step_fails_its_first_attempts_and_then_succeeds(dialect: str) -> None:
    error = HttpError(status=529, kind="overloaded_error", retry_after_s=1, attempts=2)
    broken = StreamBreak(after_content_events=1, how="error_event", attempts=1)
    script = Script(steps=(Step(text="well " * 20, error=error, broken=broken, calls=(CALL,)),))
    with ScriptedServer(script) as server:
        statuses = [post(server, PATHS[dialect], prompt(dialect, stream=True))[0] for _ in range(4)]
        other = prompt(dialect, stream=True)
        other["messages" if "messages" in other else "input"] = [{"role": "user", "content": "another session"}]
        statuses.append(post(server, PATHS[dialect], other)[0])
        log = finished(server, 5)
    assert statuses == [529, 529, 200, 200, 529]
    assert [(entry.attempt, entry.fault) for entry in log] == [
        (0, "HTTP 529"),
        (1, "HTTP 529"),
        (2, "error_event"),
        (3, None),
        (0, "HTTP 529"),
    ]
    assert {entry.step for entry in log} == {"steps[0]"}
    assert log[3].usage is not None
    assert log[2].usage is None


def test_scripts_are_chosen_by_task_system_and_identity() -> None:
    scripts = Scripts(
        by_task={"child job": Script(steps=(Step(text="child"),)), "big job": Script(steps=(Step(text="parent"),))},
        by_system={"be brief": Script(steps=(Step(text="brief"),))},
        by_identity={"agent-7": Script(steps=(Step(text="seventh"),))},
    )

    def ask(text: str, headers: dict[str, str] | None = None, system: str = "") -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        body = prompt("openai.chat", messages=messages)
        answer = json.loads(post(server, PATHS["openai.chat"], body, headers)[1])
        return str(answer["choices"][0]["message"]["content"])

    with ScriptedServer(scripts) as server:
        assert ask("do the big job") == "parent"
        assert ask("do the child job") == "child"
        assert ask("what", system="be brief") == "brief"
        headers = {"x-claude-code-agent-id": "agent-7", "x-claude-code-session-id": "s", "x-api-key": "secret-value"}
        assert ask("do the big job", headers) == "seventh"
        assert ask("what") == "The script is over."
        log = finished(server, 5)
    labels = ["big job/steps[0]", "child job/steps[0]", "be brief/steps[0]", "agent-7/steps[0]", "after"]
    assert [entry.step for entry in log] == labels
    assert log[3].identity == (("x-claude-code-agent-id", "agent-7"), ("x-claude-code-session-id", "s"))
    assert "secret-value" not in repr(log)
    assert log[1].opening_text == "do the child job"


def test_after_a_summary_the_compacted_steps_begin() -> None:
    steps = growing_usage((Step(calls=(CALL,)), Step(calls=(CALL,))), first_input_tokens=100, input_tokens_per_step=50)
    summary = Step(text="SUMMARY: two commands were run.")
    script = Script(steps=steps, summary=summary, compacted=(Step(text="c0", calls=(CALL,)), Step(text="c1")))

    def turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
        body = prompt("openai.chat", messages=messages)
        message: dict[str, Any] = json.loads(post(server, PATHS["openai.chat"], body)[1])["choices"][0]["message"]
        return message

    def with_result(answer: dict[str, Any]) -> list[dict[str, Any]]:
        return [answer, {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "out"}]

    with ScriptedServer(script) as server:
        task = {"role": "user", "content": "go"}
        first = with_result(turn([task]))
        second = with_result(turn([task, *first]))
        asks = {"role": "user", "content": "Create a detailed summary of the conversation so far."}
        told = turn([task, *first, *second, asks])
        carries = {"role": "user", "content": f"Earlier: {told['content']}"}
        kept = [carries, *second]  # some agents keep the last messages behind the summary
        third = turn(kept)
        fourth = turn([*kept, *with_result(third)])
        log = finished(server, 5)
    assert (told["content"], third["content"], fourth["content"]) == (summary.text, "c0", "c1")
    assert [entry.step for entry in log] == ["steps[0]", "steps[1]", "summary", "compacted[0]", "compacted[1]"]
    assert [entry.purpose for entry in log] == ["turn", "turn", "summary", "turn", "turn"]
    assert [entry.answered for entry in log] == [0, 1, 2, 1, 2]
    usages = [entry.usage.input_total for entry in log[:2] if entry.usage]
    assert usages == [100, 150]


def test_responses_compact_gives_one_opaque_item_and_takes_it_back() -> None:
    script = Script(steps=(Step(text="s0"),), summary=Step(text="SUMMARY-1"), compacted=(Step(text="c0"),))
    history = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "s0"}]
    with ScriptedServer(script) as server:
        _, body, _ = post(server, "/v1/responses/compact", {"model": "m", "input": history, "instructions": "be brief"})
        compacted = json.loads(body)
        given = [*compacted["output"], {"role": "user", "content": "more"}]
        _, after, _ = post(server, "/v1/responses", prompt("openai.responses", input=given))
        trigger = prompt("openai.responses", input=[*history, {"type": "compaction_trigger"}], stream=True)
        _, triggered, _ = post(server, "/v1/responses", trigger)
        _, counted, _ = post(server, "/v1/responses/input_tokens", prompt("openai.responses"))
        log = finished(server, 4)
    assert compacted["object"] == "response.compaction"
    assert [item["type"] for item in compacted["output"]] == ["message", "compaction"]
    assert compacted["output"][-1]["encrypted_content"] == "SUMMARY-1"
    assert b"c0" in after
    items = [event["item"]["type"] for event in events(triggered) if event["type"] == "response.output_item.done"]
    assert items == ["compaction"]
    assert json.loads(counted)["input_tokens"] > 0
    assert [entry.step for entry in log] == ["summary", "compacted[0]", "summary", ""]


def test_a_call_names_the_namespace_of_its_tool() -> None:
    tools = [
        {"type": "namespace", "name": "agents", "tools": [{"type": "function", "name": "spawn", "parameters": {}}]},
        {"type": "function", "name": "run", "parameters": {}},
    ]
    step = Step(calls=(ScriptedCall(name="spawn", arguments="{}"), CALL))
    with ScriptedServer(lambda _: step) as server:
        _, body, _ = post(server, "/v1/responses", prompt("openai.responses", tools=tools))
        (log,) = finished(server, 1)
    assert log.tool_names == ("spawn", "run")
    assert [item.get("namespace") for item in json.loads(body)["output"]] == ["agents", None]


def test_a_response_may_go_on_from_an_earlier_one_over_http() -> None:
    script = Script(steps=(Step(text="s0"), Step(text="s1")))
    with ScriptedServer(script) as server:
        first = json.loads(post(server, "/v1/responses", prompt("openai.responses"))[1])
        second = prompt("openai.responses", input="more", previous_response_id=first["id"])
        assert b"s1" in post(server, "/v1/responses", second)[1]
        status, body, _ = post(server, "/v1/responses", second | {"previous_response_id": "resp_x"})
    assert (status, json.loads(body)["error"]["code"]) == (400, "previous_response_not_found")


GEMINI = {
    "contents": [{"role": "user", "parts": [{"text": "go"}]}],
    "systemInstruction": {"parts": [{"text": "be brief"}]},
    "tools": [{"functionDeclarations": [{"name": "run", "parameters": {"type": "object"}}]}],
}
USAGE = ScriptedUsage(input_total=1000, cache_read=300, output_total=50, reasoning=20)
GEMINI_STEP = Step(text="Here it is.", reasoning="First I think.", calls=(CALL, CALL), usage=USAGE, piece_chars=6)


@pytest.mark.parametrize("wrapped", [False, True], ids=["api", "code assist"])
@pytest.mark.parametrize("how", ["sse", "array", "whole"])
def test_gemini_answers_in_chunks_in_an_array_or_whole(how: str, wrapped: bool) -> None:
    method = {"sse": "streamGenerateContent?alt=sse", "array": "streamGenerateContent", "whole": "generateContent"}[how]
    path = f"/v1internal:{method}" if wrapped else f"/v1beta/models/gemini-3-pro:{method}"
    body = {"model": "gemini-3-pro", "request": GEMINI | {"session_id": "s1"}, "user_prompt_id": "u1"}
    with ScriptedServer(lambda _: GEMINI_STEP) as server:
        _, answer, headers = post(server, path, body if wrapped else GEMINI)
        (log,) = finished(server, 1)
    chunks = list(events(answer)) if how == "sse" else json.loads(answer) if how == "array" else [json.loads(answer)]
    if wrapped:
        chunks = [chunk["response"] for chunk in chunks]
    parts = [part for chunk in chunks for part in chunk["candidates"][0]["content"]["parts"]]
    assert "".join(p["text"] for p in parts if p.get("thought")) == "First I think."
    assert "".join(p["text"] for p in parts if "text" in p and not p.get("thought")) == "Here it is."
    assert [p["functionCall"]["name"] for p in parts if "functionCall" in p] == ["run", "run"]
    usage = chunks[-1]["usageMetadata"]
    assert (usage["promptTokenCount"], usage["candidatesTokenCount"], usage["thoughtsTokenCount"]) == (1000, 30, 20)
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"
    assert headers["content-type"].startswith("text/event-stream" if how == "sse" else "application/json")
    assert (log.dialect, log.model, log.tool_names) == ("google.gemini", "gemini-3-pro", ("run",))
    assert log.content_events == (0 if how == "whole" else 7)
    if wrapped:
        assert dict(log.identity) == {"body.session_id": "s1", "body.user_prompt_id": "u1"}


def test_gemini_counts_answers_errors_and_tokens() -> None:
    script = Script(steps=(GEMINI_STEP, Step(text="second", error=HttpError(status=429, attempts=1))))
    model = {"role": "model", "parts": [{"text": "Here."}, {"functionCall": {"name": "run", "args": {}}}]}
    results = {"role": "user", "parts": [{"functionResponse": {"name": "run", "response": {"output": "out"}}}]}
    path = "/v1beta/models/g:generateContent"
    with ScriptedServer(script, models=("g",)) as server:
        body = GEMINI | {"contents": [*GEMINI["contents"], model, results]}  # type: ignore[misc]
        status, refused, _ = post(server, path, body)
        _, second, _ = post(server, path, body)
        _, counted, _ = post(server, "/v1beta/models/g:countTokens", GEMINI)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", "/v1beta/models")
        listed = json.loads(connection.getresponse().read())
        connection.close()
        log = finished(server, 4)
    assert (status, json.loads(refused)["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert b"second" in second
    assert json.loads(counted)["totalTokens"] > 0
    assert listed["models"][0]["name"] == "models/g"
    assert (log[1].answered, log[1].attempt, log[1].tool_results[0].text) == (1, 1, '{"output": "out"}')


def certificate(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "both.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(path)
    trusting = ssl.create_default_context(cadata=signed.public_bytes(serialization.Encoding.PEM).decode())
    return serving, trusting


def test_it_speaks_tls_to_http_and_to_websockets(tmp_path: Path) -> None:
    serving, trusting = certificate(tmp_path)
    with ScriptedServer(lambda _: Step(text="over TLS"), ssl_context=serving) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        connection = http.client.HTTPSConnection("localhost", server.port, context=trusting, timeout=20)
        connection.request("POST", "/v1/messages", json.dumps(prompt("anthropic.messages")))
        assert b"over TLS" in connection.getresponse().read()
        connection.close()
        with WebSocketClient(server.port, tls=trusting) as client:
            client.send({"type": "response.create", "model": "m", "input": "go"})
            assert client.until("response.completed")[-1]["type"] == "response.completed"


def test_a_script_file_may_hold_compaction_and_attempts(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    refused = {"text": "a", "error": {"status": 500, "attempts": 1}}
    path.write_text(json.dumps({"steps": [refused], "summary": {"text": "S"}, "compacted": [{"text": "c"}]}), "utf-8")
    script = read_script(path)
    assert (script.summary.text, script.compacted[0].text) == ("S", "c")
    assert script.steps[0].at_attempt(0).error is not None
    assert script.steps[0].at_attempt(1).error is None
    path.write_text(json.dumps({"steps": [], "compacted": {}}), "utf-8")
    with pytest.raises(ValueError, match="compacted"):
        read_script(path)


def test_a_request_shows_a_script_no_credential() -> None:
    seen: list[ScriptedRequest] = []

    def choose(request: ScriptedRequest) -> Step:
        seen.append(request)
        return Step(text="ok")

    headers = {"authorization": "Bearer very-secret", "x-goog-api-key": "very-secret", "x-own": "kept"}
    with ScriptedServer(choose) as server:
        post(server, PATHS["openai.chat"], prompt("openai.chat"), headers)
    assert seen[0].headers["x-own"] == "kept"
    assert "very-secret" not in repr(seen)
