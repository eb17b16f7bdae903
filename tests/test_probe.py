"""The probe against servers that honour, ignore and refuse, and the sentences that a user gets."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.tokens import load_encoding
from replay.endpoint import Endpoint, EndpointError
from replay.identify import Identity, identify
from replay.loop import run
from replay.plan import LengthPolicy, Plan, make_plan
from replay.probe import ProbeReport, probe, probe_lines
from replay.questions import PAGE_OF_CODE, PAGE_TOKENS, PREFIX_LENGTHS, prefix_reuse
from tests.fake_server import END_TOKEN, VOCABULARY, serving
from tests.sample_sessions import content_free_session, text_session
from tests.simulated_run import REPORT


def ask(model: str = "fake-model", **knobs: Any) -> ProbeReport:
    with serving(**{"ttft_ms": 1, "itl_ms": 0, **knobs}) as server:
        report = run(probe(Endpoint(server.url, model), request_timeout_s=3.0))
        assert report.requests <= 25
        assert report.requests == len(server.log)
        return report


def test_a_server_that_honours_everything() -> None:
    report = ask()
    assert report.models == ("fake-model",)
    assert report.streams
    assert report.usage_in_stream
    assert report.done_marker
    assert report.ignore_eos == "obeyed"
    assert report.end_token == END_TOKEN
    assert report.token_prompts == "exact"
    assert (report.context_tokens, report.context_source) == (65_536, "/props")
    assert report.vocabulary_tokens == VOCABULARY
    assert report.cached_tokens_reported
    assert report.tokenizes
    assert report.problem(exact_length=True, token_prompts=True) is None


def test_ignore_eos_ignored_is_found_and_stops_an_exact_run() -> None:
    report = ask(obey_ignore_eos=False)
    assert report.ignore_eos == "ignored"
    problem = report.problem(exact_length=True, token_prompts=False)
    assert problem is not None
    assert "does not honour ignore_eos" in problem
    assert "asked for 16 tokens with its end token 2 made certain, it gave 1, finish reason 'stop'" in problem
    assert "--length free" in problem
    assert report.problem(exact_length=False, token_prompts=False) is None


@pytest.mark.parametrize(
    ("knobs", "verdict", "words"),
    [
        ({"tokenize": False}, "unforced", "it does not stop by itself either"),
        ({"tokenize": False, "natural_tokens": 2}, "obeyed", "where it stops by itself otherwise, it gave 48"),
        ({"tokenize": False, "natural_tokens": 2, "obey_ignore_eos": False}, "ignored", "it gave 2"),
        ({"refused_fields": ("ignore_eos",)}, "refused", "HTTP 422: Unexpected keys"),
        ({"usage": False}, "obeyed", "it gave an unknown number, finish reason 'length'"),
    ],
    ids=["cannot be forced", "stops by itself", "stops all the same", "refused", "no usage"],
)
def test_ways_to_the_verdict(knobs: dict[str, Any], verdict: str, words: str) -> None:
    report = ask(**knobs)
    assert report.ignore_eos == verdict
    assert words in report.ignore_eos_evidence


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"stream": False}, "does not stream its answers"),
        ({"usage": False}, "reports no usage in its stream"),
        ({"refuse_token_ids": True}, r"does not take prompts of token ids as they are \(HTTP 400: prompt must be"),
        ({"refused_fields": ("ignore_eos",)}, "does not honour ignore_eos"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_problems_in_words(knobs: dict[str, Any], words: str) -> None:
    problem = ask(**knobs).problem(exact_length=True, token_prompts=True)
    assert problem is not None
    assert re.search(words, problem)


@pytest.mark.parametrize(
    ("knobs", "context", "source"),
    [
        ({"properties": False}, 65_536, "/v1/models"),
        ({"tell_context": False}, 65_536, "the words of its refusal"),
        ({"context_tokens": None}, None, None),
    ],
    ids=["model list", "refusal", "unknown"],
)
def test_where_the_context_limit_comes_from(knobs: dict[str, Any], context: int | None, source: str | None) -> None:
    if knobs.get("context_tokens", 0) is None:
        knobs = {**knobs, "itl_ms": 5}  # it would go on for ever: the probe hangs up
    report = ask(**knobs)
    assert (report.context_tokens, report.context_source) == (context, source)


def test_a_server_without_a_model_list_is_taken_at_its_word() -> None:
    report = ask(list_models=False)
    assert report.models is None
    assert report.problem(exact_length=True, token_prompts=True) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "gpt-9"}, "has no model 'gpt-9': it has 'fake-model'; name one of these"),
        ({"model": "gpt-9", "list_models": False}, r"does not answer a chat completion \(HTTP 404\): no model 'gpt-9'"),
        ({"fail_status": 500}, r"does not answer a chat completion \(HTTP 500\): broken on purpose"),
        ({"error_event_after": 1}, "does not answer a chat completion: the engine gave up"),
        ({"hang_after": 1}, "does not answer a chat completion: the answer was not complete after 3 s"),
    ],
    ids=["not listed", "not known", "500", "error event", "hangs"],
)
def test_a_server_that_cannot_be_used(options: dict[str, Any], words: str) -> None:
    with pytest.raises(EndpointError, match=words):
        ask(**options)


def test_nobody_there() -> None:
    with pytest.raises(EndpointError, match=r"no server answers at http://127\.0\.0\.1:9 .*start it"):
        run(probe(Endpoint("http://127.0.0.1:9/v1/", "m")))


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)


LONG_NAMES = json.dumps({"data": [{"id": "\x1b[2J" + "x" * 5000} for _ in range(20)]}).encode()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"220 mail.example ESMTP\r\n", "is not an HTTP model server"),
        (whole(b"<html>welcome</html>"), "is no model server: .* neither events nor JSON"),
        (whole(b"[" * 100_000), "is no model server"),
        (whole(LONG_NAMES), r"has no model 'm': it has '\\x1b\[2Jx{96}', "),
    ],
    ids=["not HTTP", "a web page", "nested", "hostile names"],
)
def test_not_a_model_server(said: bytes, words: str) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if said.startswith(b"HTTP"):
                await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            await probe(Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "m"))
        finally:
            server.close()

    with pytest.raises(EndpointError, match=words) as fault:
        run(main())
    assert len(str(fault.value)) < 2000


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/v1", "http://h:8000"),
        ("https://h/proxy/v1/", "https://h/proxy"),
    ],
)
def test_base_urls(url: str, base: str) -> None:
    assert Endpoint(url, "m").url == base


@pytest.mark.parametrize("url", ["h:8000", "ftp://h", "http://", "http://u:p@h", "http://h?key=1", "http://h:x"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(EndpointError, match="give one like"):
        Endpoint(url, "m")


def test_a_key_is_named_never_given(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint("http://h", "m", "SOME_KEY")
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(EndpointError, match="SOME_KEY is not set"):
        endpoint.connect()
    monkeypatch.setenv("SOME_KEY", "sk-123")
    assert "sk-123" not in repr(endpoint)
    assert endpoint.key() == "sk-123"


@pytest.mark.parametrize("key", ["sk-123\r\nx-other: 1", "sk-123\n", " sk-123", "sk-é123", "sk-\x00123"])
def test_a_key_that_no_header_can_carry_is_refused_unquoted(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {"SOME_KEY": key})
    with pytest.raises(EndpointError, match="SOME_KEY holds no key") as fault:
        Endpoint("http://h", "m", "SOME_KEY").connect()
    assert "123" not in str(fault.value)


# -- engines, by their pages


class Pages:
    """A caller whose server has these pages and no others."""

    def __init__(self, pages: dict[str, Any]) -> None:
        self.pages = pages

    async def get(self, path: str, **_: object) -> httpx.Response:
        name = {"/prometheus/metrics": "prometheus", "/openapi.json": "openapi"}.get(path, path.removeprefix("/"))
        page = self.pages.get(name)
        if isinstance(page, Exception):
            raise page
        if page is None:
            return httpx.Response(404, json={"detail": "Not Found"})
        return httpx.Response(200, text=page) if isinstance(page, str) else httpx.Response(200, json=page)


def identified(
    *, owner: str | None = None, header: str | None = None, fingerprint: str | None = None, **pages: Any
) -> Identity:
    caller: Any = Pages(pages)
    return run(identify(caller, owner=owner, header=header, fingerprint=fingerprint))


VLLM_METRICS = (
    "# TYPE vllm:num_requests_running gauge\n"
    'vllm:cache_config_info{block_size="128",cache_dtype="auto",engine="0"} 1.0\n'
    'vllm:num_requests_running{engine="0"} 0.0\n'
)
PROPS = {"default_generation_settings": {"n_ctx": 8}, "build_info": "b11549-abc", "model_ftype": "F16"}
SGLANG = {"tp_size": 2, "model_path": "org/model", "version": "0.5.21", "dtype": "bfloat16"}


OWNER, METRICS, NOTHING = "owner of its models", "names of its metrics", "nothing that we know"
INTERFACE: dict[str, Any] = {"paths": {"/load_model": {}, "/reset": {}, "/v1/chat/completions": {}}}
DYNAMO_METRICS = "# TYPE x gauge\ndynamo_frontend_inflight_requests 1\n"
TRTLLM_METRICS = "trtllm_num_requests_running 0\n"
NUMBERED = {"version": "0.32.0"}


@pytest.mark.parametrize(
    ("asked", "engine", "version", "evidence", "page"),
    [
        ({"owner": "vllm", "version": NUMBERED, "metrics": VLLM_METRICS}, "vllm", "0.32.0", OWNER, "/metrics"),
        ({"fingerprint": "vllm-0.32.0-71505421"}, "vllm", "0.32.0", "system_fingerprint", None),
        ({"version": NUMBERED, "metrics": VLLM_METRICS}, "vllm", "0.32.0", METRICS, "/metrics"),
        ({"server_info": SGLANG}, "sglang", "0.5.21", "/server_info", None),
        ({"get_server_info": SGLANG, "owner": "sglang"}, "sglang", "0.5.21", "/server_info", None),
        (
            {"owner": "tensorrt_llm", "version": {"version": "1.2.0"}, "metrics": [], "prometheus": TRTLLM_METRICS},
            *("tensorrt-llm", "1.2.0", OWNER, "/prometheus/metrics"),
        ),
        ({"owner": "llamacpp", "props": PROPS}, "llama.cpp", "11549-abc", "/props", None),
        (
            {"header": "llama.cpp", "props": {**PROPS, "build_info": "b0-unknown"}},
            *("llama.cpp", None, "/props", None),
        ),
        ({"health": {"endpoints": ["dyn://dynamo.backend.generate"]}}, "dynamo", None, "/health", None),
        ({"metrics": DYNAMO_METRICS}, "dynamo", None, METRICS, "/metrics"),
        ({"openapi": INTERFACE}, "transformers", None, "/openapi.json", None),
        ({"owner": "me", "version": "<html>", "metrics": "<html>", "props": []}, "unknown", None, NOTHING, None),
        (
            {"server_info": httpx.ReadTimeout("slow"), "version": {"version": "x" * 300}},
            *("unknown", None, NOTHING, None),
        ),
    ],
)
def test_an_engine_is_known_by_what_only_it_has(
    asked: dict[str, Any], engine: str, version: str | None, evidence: str, page: str | None
) -> None:
    found = identified(**asked)
    assert (found.engine, found.version, found.evidence, found.metrics_page) == (engine, version, evidence, page)


# -- the unit of reuse


@pytest.mark.parametrize(
    ("cached", "reuse", "block"),
    [
        ([2047, 1535], "token", 1),
        ([2032, 1520], "block", 16),
        ([1984, 1472], "block", 64),
        ([1920, 1408], "block", 128),
        ([1792, 1280], "block", 256),
        ([0, 0], "none", None),
        ([2099, 2099], "irregular", None),
        ([2047, 0], "irregular", None),
        ([None, None], None, None),
        ([0, None], None, None),
    ],
)
def test_the_block_of_reuse_is_what_divides_what_was_cached(
    cached: list[int | None], reuse: str | None, block: int | None
) -> None:
    found = prefix_reuse((2047, 1535), cached)
    assert found[:2] == (reuse, block)


@given(st.sampled_from([lengths[:2] for lengths in PREFIX_LENGTHS]), st.integers(0, 7))
def test_every_power_of_two_is_told_from_every_other(shared: tuple[int, int], power: int) -> None:
    block = 2**power
    found = prefix_reuse(shared, [length // block * block for length in shared])
    assert found[:2] == (("token", 1) if block == 1 else ("block", block))


# -- servers that refuse fields


def test_fields_that_a_server_refuses_are_left_out_and_named() -> None:
    report = ask(
        refused_fields=("stream_options", "ignore_eos", "logit_bias", "min_tokens", "agentdyno_does_not_exist")
    )
    assert report.refused_fields == ("stream_options", "ignore_eos")
    assert report.logit_bias == "refused"
    assert report.min_tokens == "refused"
    assert report.unknown_fields == "refused"
    assert report.problem(exact_length=False, token_prompts=True) is not None  # no usage without stream_options here


def test_a_server_without_tools_is_told_to_sessions_with_tools() -> None:
    report = ask(refused_fields=("tools",))
    assert report.tools == "refused"
    assert report.problem(exact_length=True, token_prompts=True) is None
    problem = report.problem(exact_length=True, token_prompts=True, tools=True)
    assert problem is not None
    assert "does not take tools (HTTP 422: Unexpected keys in the request: {'tools'})" in problem


def test_what_every_answer_shows() -> None:
    report = ask(close_each=True, tokens_per_chunk=4)
    assert report.keep_alive == "announced, not kept"
    assert report.tokens_per_chunk == 4.0
    assert report.tool_history == "taken"
    assert ask().keep_alive == "kept"
    assert ask(chunked=False).keep_alive is not None


def test_the_terminal_gets_groups_in_words() -> None:
    lines = probe_lines(ask(done_marker=False, cached_tokens=False))
    assert [line for line in lines if line.startswith("[")] == [
        "[server]", "[answers]", "[honours]", "[tokens]", "[prefix cache]",
    ]  # fmt: skip
    told = {line[2:26].strip(): line[26:] for line in lines if line.startswith("  ")}
    assert told["engine"] == "unknown"
    assert told["ends with [DONE]"] == "no"
    assert told["context limit"] == "65536 (from /props)"
    assert told["fields it refuses"] == "none of ours"
    assert told["seen"] == "cached tokens are not reported"


@pytest.mark.parametrize(
    ("difference", "ratio", "words"),
    [
        (0, 1.2, "its own tokenizer: usage equals /tokenize"),
        (-2, 1.2, "its own tokenizer: usage equals /tokenize"),
        (-400, 1.0, "not its /tokenize: usage is -400 tokens"),
        (None, 1.001, "perhaps o200k_base: the counts are the same"),
        (None, 1.2, "a tokenizer other than o200k_base"),
        (None, None, None),
    ],
)
def test_whose_tokenizer_counts(difference: int | None, ratio: float | None, words: str | None) -> None:
    report = dataclasses.replace(REPORT, tokenize_difference=difference, text_tokens_x=ratio)
    assert report.counts_by == words


def test_a_plan_leaves_out_what_the_server_refuses() -> None:
    def planned(*refused: str) -> Plan:
        return make_plan(
            [text_session("a"), content_free_session("b")],
            dataset_digest="d",
            length=LengthPolicy(mode="free"),
            refused_fields=refused,
            nonce="n",
        )

    plain = planned("stream_options", "ignore_eos")
    assert plain.refused_fields == ("stream_options",)  # nothing would send the other
    for session_id in plain.session_ids:
        script = plain.script(session_id)
        body = json.loads(script.request(script.turns[0], salt="", model="m").body)
        assert "stream_options" not in body
        assert body["temperature"] == 0.0
    assert plain.summary().plan_digest == planned().summary().plan_digest
    assert planned("temperature").summary().plan_digest != planned().summary().plan_digest


def test_the_page_of_code_has_as_many_tokens_as_stated() -> None:
    assert len(load_encoding("o200k_base").encode_ordinary(PAGE_OF_CODE.read_text(encoding="utf-8"))) == PAGE_TOKENS
