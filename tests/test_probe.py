"""The probe against servers that honour, ignore and refuse, and the sentences that a user gets."""

from __future__ import annotations

import asyncio
import re

import pytest

from replay.endpoint import Endpoint, EndpointError
from replay.loop import run
from replay.probe import ProbeReport, probe
from tests.fake_server import END_TOKEN, VOCABULARY, serving


def ask(model: str = "fake-model", **knobs: object) -> ProbeReport:
    with serving(**{"ttft_ms": 1, "itl_ms": 0, **knobs}) as server:
        report = run(probe(Endpoint(server.url, model), request_timeout_s=3.0))
        assert report.requests <= 12
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
        ({"refuse_unknown_fields": True}, "refused", "HTTP 422: Unexpected keys"),
        ({"usage": False}, "obeyed", "it gave an unknown number, finish reason 'length'"),
    ],
    ids=["cannot be forced", "stops by itself", "stops all the same", "refused", "no usage"],
)
def test_ways_to_the_verdict(knobs: dict[str, object], verdict: str, words: str) -> None:
    report = ask(**knobs)
    assert report.ignore_eos == verdict
    assert words in report.ignore_eos_evidence


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"stream": False}, "does not stream its answers"),
        ({"usage": False}, "reports no usage in its stream"),
        ({"refuse_token_ids": True}, r"does not take prompts of token ids as they are \(HTTP 400: prompt must be"),
        ({"refuse_unknown_fields": True}, "does not honour ignore_eos"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_problems_in_words(knobs: dict[str, object], words: str) -> None:
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
def test_where_the_context_limit_comes_from(knobs: dict[str, object], context: int | None, source: str | None) -> None:
    if knobs.get("context_tokens", 0) is None:
        knobs = {**knobs, "itl_ms": 50}  # it would go on for ever: the probe hangs up
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
def test_a_server_that_cannot_be_used(options: dict[str, object], words: str) -> None:
    with pytest.raises(EndpointError, match=words):
        ask(**options)  # type: ignore[arg-type]


def test_nobody_there() -> None:
    with pytest.raises(EndpointError, match=r"no server answers at http://127\.0\.0\.1:9 .*start it"):
        run(probe(Endpoint("http://127.0.0.1:9/v1/", "m")))


def test_not_a_model_server() -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 mail.example ESMTP\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            await probe(Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "m"))
        finally:
            server.close()

    with pytest.raises(EndpointError, match="is not an HTTP model server"):
        run(main())


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
