"""The quality canary: what it asks, what it makes of odd answers, and which shifts it reports."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.canary import (
    FREE_PROMPT,
    GREEDY_PROMPTS,
    CanaryResult,
    compare_canaries,
    equal_start,
    prompt_log_probabilities,
    run_canary,
    sound_call,
)
from replay.endpoint import Endpoint
from replay.loop import run
from tests.fake_server import serving

type Script = Callable[[str, dict[str, Any]], httpx.Response]

PROSE = "Measure first where the time goes, then rule out the usual suspects one after the other: " + " ".join(
    f"step{number}" for number in range(40)
)


class Scripted:
    """A caller whose server is a function."""

    def __init__(self, script: Script, servers: int = 1) -> None:
        self.endpoint = Endpoint([f"http://h{number}" for number in range(servers)], "m")
        self.script = script
        self.asked: list[tuple[str, dict[str, Any], int]] = []

    def quoted(self, text: str) -> str:
        return text

    async def post(self, path: str, body: bytes, *, timeout_s: float, server: int = 0) -> httpx.Response:
        assert timeout_s <= (60 if path == "/v1/completions" else 12)
        asked = json.loads(body)
        self.asked.append((path, asked, server))
        return self.script(path, asked)


def message(**fields: object) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"index": 0, "message": {"role": "assistant", **fields}}]})


def call(path: object = "README.md", name: str = "read_file") -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": json.dumps({"path": path})}}


def good(path: str, asked: dict[str, Any], *, mean: float = -2.0) -> httpx.Response:
    if path == "/v1/completions":
        probabilities = [None, *[mean] * 59, -0.1]
        choice = {"text": "x", "logprobs": {"token_logprobs": probabilities}}
        return httpx.Response(200, json={"choices": [choice], "usage": {"prompt_tokens": 60, "completion_tokens": 1}})
    if "tools" in asked:
        return message(content=None, tool_calls=[call()])
    prompt = asked["messages"][0]["content"]
    return message(content=PROSE if prompt == FREE_PROMPT else f"The answer to {prompt!r} is always the same.")


def canary(script: Script = good, servers: int = 1) -> CanaryResult:
    return run(run_canary(Scripted(script, servers)))  # type: ignore[arg-type]


def test_a_sound_server_is_asked_a_dozen_small_questions_at_temperature_zero() -> None:
    caller = Scripted(good)
    result = run(run_canary(caller))  # type: ignore[arg-type]
    (server,) = result.servers
    assert [pair.repeated for pair in server.greedy] == [1.0] * 3
    assert (server.tools.asked, server.tools.sound, server.tools.skipped) == (3, 3, None)
    assert server.free.distinct_share == pytest.approx(54 / 56, abs=1e-4)
    assert (server.recorded.tokens, server.recorded.mean_nats) == (59, -2.0)
    assert len(caller.asked) == 11
    assert {asked["temperature"] for _, asked, _ in caller.asked} == {0.0}
    assert sum(asked["max_tokens"] for _, asked, _ in caller.asked) <= 3 * 40 * 2 + 200 + 3 * 96 + 1


def test_a_result_survives_its_file() -> None:
    result = canary(servers=2)
    assert msgspec.json.decode(msgspec.json.encode(result), type=CanaryResult) == result
    assert len(result.servers) == 2
    assert compare_canaries(result, result, result) == ()


def test_a_server_without_tools_and_log_probabilities_is_told_why_they_are_skipped() -> None:
    def plain(path: str, asked: dict[str, Any]) -> httpx.Response:
        if "tools" in asked:
            return httpx.Response(400, json={"error": {"message": "tools need --enable-auto-tool-choice"}})
        if path == "/v1/completions":
            return httpx.Response(404, json={"detail": "Not Found"})
        return good(path, asked)

    result = canary(plain)
    (server,) = result.servers
    assert server.tools.skipped == "HTTP 400: tools need --enable-auto-tool-choice"
    assert server.recorded.skipped == "HTTP 404: Not Found"
    assert compare_canaries(result, result) == ()


def test_the_scripted_server_of_other_tests_is_asked_over_the_wire() -> None:
    async def ask(url: str) -> CanaryResult:
        async with Endpoint(url, "fake-model").connect() as caller:
            return await run_canary(caller)

    with serving(ttft_ms=1, itl_ms=0) as server:
        result = run(ask(server.url))
        assert len(server.log) == 11
    (seen,) = result.servers
    assert seen.greedy[0].repeated == 1.0
    assert seen.free.distinct_share == 0.005  # one word, two hundred times
    assert seen.tools.sound == 0
    assert seen.recorded.skipped == "the server gives none for the tokens of a prompt"
    assert compare_canaries(result, result) == ()  # it was no better before


def shifted(script: Script) -> tuple[str, ...]:
    return compare_canaries(canary(), canary(script))


def test_answers_that_are_no_longer_the_same_are_a_shift() -> None:
    def other(path: str, asked: dict[str, Any]) -> httpx.Response:
        if path != "/v1/completions" and asked["messages"][0]["content"] in GREEDY_PROMPTS:
            return message(content="!!!!!!!!!!!")
        return good(path, asked)

    (reason,) = shifted(other)
    assert reason == (
        "after the trials the greedy answers agree for 0% of their length; the server itself repeated 100%"
    )
    (against,) = compare_canaries(canary(other), None, canary())
    assert against.startswith("against the baseline the greedy answers agree for 0%")


def test_a_server_that_never_repeats_itself_is_not_judged_by_repetition() -> None:
    answers = iter(range(100))

    def dice(path: str, asked: dict[str, Any]) -> httpx.Response:
        if path != "/v1/completions" and asked["messages"][0]["content"] in GREEDY_PROMPTS:
            return message(content=f"{next(answers):02d}"[::-1] + " and so on")
        return good(path, asked)

    assert compare_canaries(canary(dice), canary(dice)) == ()


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "has", "response", "words"),
    [
        (CHAT, "tools", message(content="I cannot."), "0 of 3 tool calls were sound; 3 had been"),
        (CHAT, "tools", httpx.Response(500, text="no"), "tools are no longer taken: HTTP 500: no"),
        (CHAT, FREE_PROMPT, message(content="no " * 100), "1% of the free answer's words were distinct; 96%"),
        (CHAT, FREE_PROMPT, message(content=""), "the free answer was empty"),
        (CHAT, FREE_PROMPT, httpx.Response(503, text="later"), "answer was refused: HTTP 503: later"),
        (CHAT, GREEDY_PROMPTS[0], httpx.Response(500, text="oh"), "1 of 3 greedy prompts were not answered: HTTP 5"),
        (COMPLETIONS, "", good("/v1/completions", {}, mean=-2.2), "was -2.200 nats a token; it had been -2.000"),
        (COMPLETIONS, "", good("/v1/completions", {}, mean=-1.8), "was -1.800 nats a token; it had been -2.000"),
        (COMPLETIONS, "", httpx.Response(400, text="no"), "got no log-probability: HTTP 400: no"),
    ],
    ids=[
        "no tool calls", "no tools", "repetition", "nothing", "refused", "greedy refused", "less likely",
        "more likely", "no log-probability",
    ],
)  # fmt: skip
def test_each_shift_has_its_sentence(path: str, has: str, response: httpx.Response, words: str) -> None:
    def worse(to: str, asked: dict[str, Any]) -> httpx.Response:
        said = "tools" if "tools" in asked else asked.get("messages", [{"content": ""}])[0]["content"]
        return response if to == path and has == said else good(to, asked)

    (reason,) = shifted(worse)
    assert words in reason
    assert reason.startswith("after the trials")


@pytest.mark.parametrize(
    ("path", "has", "response"),
    [
        (COMPLETIONS, "", good("/v1/completions", {}, mean=-2.05)),
        (CHAT, FREE_PROMPT, message(content=" ".join(f"word{number % 30}" for number in range(50)))),
    ],
    ids=["rounding", "some repetition"],
)
def test_what_is_within_noise_is_no_shift(path: str, has: str, response: httpx.Response) -> None:
    def slightly(to: str, asked: dict[str, Any]) -> httpx.Response:
        said = "tools" if "tools" in asked else asked.get("messages", [{"content": ""}])[0]["content"]
        return response if to == path and has == said else good(to, asked)

    assert shifted(slightly) == ()


def test_slowness_is_no_loss_of_quality_but_silence_is_said() -> None:
    def slow(path: str, asked: dict[str, Any]) -> httpx.Response:
        if "tools" in asked or path == COMPLETIONS or asked["messages"][0]["content"] == FREE_PROMPT:
            raise httpx.ReadTimeout("late")
        return good(path, asked)

    def silent(path: str, asked: dict[str, Any]) -> httpx.Response:
        raise httpx.ReadTimeout("late")

    assert canary(slow).servers[0].tools.skipped == "no answer in time (12 s)"
    assert shifted(slow) == ()
    assert shifted(silent) == ("after the trials none of the questions was answered in time",)


def test_the_server_of_several_that_shifted_is_named() -> None:
    worse = canary(lambda path, asked: message(content="no " * 100) if "tools" not in asked else good(path, asked))
    both = dataclasses.replace(canary(servers=2), servers=(canary().servers[0], worse.servers[0]))
    reasons = compare_canaries(canary(servers=2), both)
    assert reasons
    assert all("on server 2" in reason for reason in reasons)


def test_canaries_of_two_versions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="version 0 cannot be held against one of version 1"):
        compare_canaries(dataclasses.replace(canary(), version=0), canary())


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, text="[" * 5000),
        httpx.Response(200, text="not json"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"choices": []}),
        httpx.Response(200, json={"choices": [3]}),
        httpx.Response(200, json={"choices": [{"message": 3, "logprobs": {"token_logprobs": 1}}]}),
        httpx.Response(200, json={"choices": [{"message": {"content": [1], "tool_calls": [{"function": 1}]}}]}),
    ],
)
def test_no_answer_breaks_it(response: httpx.Response) -> None:
    result = canary(lambda _path, _asked: response)
    assert compare_canaries(result, result) == ()
    assert compare_canaries(canary(), result)


def test_tool_calls_are_sound_by_name_and_schema() -> None:
    assert sound_call({"tool_calls": [call()]})
    assert sound_call({"tool_calls": [{"function": {"name": "read_file", "arguments": {"path": "a"}}}]})
    assert not sound_call({"tool_calls": [call(name="other")]})
    assert not sound_call({"tool_calls": [call(path=3)]})
    assert not sound_call({"tool_calls": [{"function": {"name": "read_file", "arguments": '{"path": "a'}}]})
    assert not sound_call({"content": "read_file(README.md)", "tool_calls": []})


def test_only_the_prompts_own_log_probabilities_count() -> None:
    usage = {"prompt_tokens": 3}
    assert prompt_log_probabilities({"logprobs": {"token_logprobs": [None, -1, -3, -9]}, "usage": usage}) == [-1, -3]
    assert prompt_log_probabilities({"logprobs": {"token_logprobs": [-9]}, "usage": usage}) == []
    assert prompt_log_probabilities({"logprobs": {"content": []}, "usage": usage}) == []


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_equal_starts_are_shares(same: str, left: str, right: str) -> None:
    share = equal_start(same + left, same + right)
    assert equal_start(same + right, same + left) == share
    longest = max(len(same + left), len(same + right))
    assert (len(same) / longest if longest else 1.0) <= share <= 1.0
    assert (share == 1.0) == (same + left == same + right)
