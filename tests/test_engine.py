"""The engine that we bring: a made-up model, served for real, that never outlives whoever started it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from capture.fault import EnvironmentFault
from capture.trajectory import Trajectory
from replay import synth
from replay.canary import CanaryResult, compare_canaries, run_canary
from replay.command import replay
from replay.delay import DelayPolicy
from replay.drive import Drive, drive
from replay.endpoint import Endpoint
from replay.engine.llama import Engine, default_threads, running_engine
from replay.engine.model import PRESETS, ensure_model
from replay.loop import run
from replay.plan import Plan, make_plan
from replay.probe import probe
from replay.protocol import Protocol
from replay.scrape import Scraper, ServerSample, server_metrics
from replay.window import Window
from tests.sample_sessions import content_free_session, request

pytestmark = pytest.mark.engine

WAIT_S = 30.0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xdg")


@pytest.fixture(scope="module")
def engine(cache: Path) -> Iterator[Engine]:
    with running_engine(slots=2, slot_context=4_096, cache=cache / "agentdyno" / "models") as engine:
        yield engine


def ask(engine: Engine, path: str, **body: Any) -> dict[str, Any]:
    shape = {"model": engine.model, "temperature": 0, **body}
    with httpx.Client(trust_env=False, timeout=WAIT_S) as client:
        response = client.post(engine.url + path, json=shape)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def gone(pid: int) -> bool:
    """Whether a process ends soon."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_prompt_of_token_ids_is_counted_to_the_token(engine: Engine) -> None:
    ids = synth.prompt_ids(
        list(range(1, 12)), length=750, block_size=64, scale=1, key=1, tail_key=2, token_ids=engine.token_ids
    )
    usage = ask(engine, "/v1/completions", prompt=ids.tolist(), max_tokens=9, ignore_eos=True)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (750, 9)


def test_the_prefix_cache_hits_exactly_the_shared_blocks(engine: Engine) -> None:
    def usage(hashes: list[int], length: int, tail_key: int) -> dict[str, Any]:
        ids = synth.prompt_ids(
            hashes, length=length, block_size=64, scale=1, key=77, tail_key=tail_key, token_ids=engine.token_ids
        )
        answer = ask(engine, "/v1/completions", prompt=ids.tolist(), max_tokens=4, ignore_eos=True)
        found: dict[str, Any] = answer["usage"]
        return found

    assert usage([1, 2, 3, 4, 5, 6], 400, 1)["prompt_tokens_details"]["cached_tokens"] == 0
    assert usage([1, 2, 3, 4, 8, 9, 10], 500, 2)["prompt_tokens_details"]["cached_tokens"] == 4 * 64


def test_the_probe_finds_what_llama_honours(engine: Engine) -> None:
    report = run(probe(Endpoint(engine.url, engine.model)))
    assert (report.engine, report.metrics_page, report.models) == ("llama.cpp", "/metrics", (engine.model,))
    assert (report.ignore_eos, report.min_tokens, report.logit_bias) == ("obeyed", "ignored", "obeyed")
    assert (report.token_prompts, report.tools, report.tool_history) == ("exact", "taken", "taken")
    assert (report.done_marker, report.continuous_usage, report.tokens_per_chunk) == (True, False, 1.0)
    assert (report.keep_alive, report.unknown_fields, report.refused_fields) == ("announced, not kept", "taken", ())
    assert (report.context_tokens, report.context_source, report.vocabulary_tokens) == (4_096, "/props", 32_000)
    assert (report.prefix_reuse, report.prefix_block_tokens, report.tokenize_difference) == ("token", 1, 0)
    assert report.problem(exact_length=True, token_prompts=True, tools=True) is None


def test_the_canary_sees_a_server_that_stays_what_it_was(engine: Engine) -> None:
    async def ask() -> CanaryResult:
        async with Endpoint(engine.url, engine.model).connect() as caller:
            return await run_canary(caller)

    before, after = run(ask()), run(ask())
    assert [pair.repeated for pair in before.servers[0].greedy] == [1.0, 1.0, 1.0]
    assert before.servers[0].recorded.skipped == "the server gives none for the tokens of a prompt"
    assert compare_canaries(before, after) == ()


def block_session(number: int) -> Trajectory:
    """Four turns of 20 to 29 blocks, each of which begins with all of the one before."""
    turns = []
    for turn in range(4):
        blocks = tuple(range(1_000 * number, 1_000 * number + 20 + 3 * turn))
        turns.append(
            request(
                turn, prompt_tokens=64 * len(blocks), block_size=64, block_hashes=blocks, completion_tokens=8,
                cache_read_tokens=None,
            )
        )  # fmt: skip
    return dataclasses.replace(content_free_session(f"s{number}"), requests=tuple(turns))


def play_once(engine: Engine, plan: Plan, agents: int) -> tuple[Drive, list[ServerSample]]:
    protocol = Protocol(
        name="once", ramp_per_s=1_000.0, settle_s=0.0, min_measure_s=60.0, min_trajectories=0,
        min_trajectories_per_agent=0, max_phase_s=60.0, start_offset_turns=0, request_timeout_s=WAIT_S,
    )  # fmt: skip
    endpoint = Endpoint(engine.url, engine.model)
    with Scraper(endpoint, period_s=0.1) as scraper:
        played = run(drive(plan, endpoint, agents=agents, protocol=protocol, trial=agents))
    assert played.stop_reason == "plays_done"
    zero = played.zero_monotonic_ns
    return played, [dataclasses.replace(sample, t_ns=sample.t_ns - zero) for sample in scraper.samples]


def test_the_prefix_cache_holds_four_agents_exactly_and_collapses_under_sixteen(cache: Path) -> None:
    # As many sessions as agents: one that begins another session may take the slot of one that only pauses.
    plans = [
        make_plan(
            [block_session(number) for number in range(1, 1 + agents)],
            dataset_digest="d",
            delay=DelayPolicy(tool="none", unsplit="none"),
            once=True,
        )
        for agents in (4, 16)
    ]
    ideal = {
        (session_id, turn.request_index): prefix.shared
        for session_id in plans[1].session_ids
        for turn, prefix in zip(plans[1].script(session_id).turns, plans[1].script(session_id).prefixes, strict=True)
    }
    # Four slots and no copies in main memory: what a fifth agent needs is another one's prefix.
    with running_engine(slots=4, slot_context=4_096, cache_ram_mib=0, cache=cache / "agentdyno" / "models") as small:
        few, told_few = play_once(small, plans[0], 4)
        many, told_many = play_once(small, plans[1], 16)
    assert sum(ideal.values()) == 70_656
    for played, requests in ((few, 16), (many, 64)):
        assert len(played.records) == requests
        assert {record.outcome for record in played.records} == {"ok"}
        assert all(record.prompt_tokens == record.planned_prompt_tokens for record in played.records)
        assert {record.completion_tokens for record in played.records} == {8}
    assert all(record.cached_tokens == ideal[record.session_id, record.request_index] for record in few.records)
    assert sum(record.cached_tokens or 0 for record in many.records) < 0.1 * 70_656
    # The server's own metrics say the same, and where the other agents were.
    ends = (Window(start_ns=-(10**9), end_ns=one.phase_end_ns + 10**10) for one in (few, many))
    calm, crowded = (server_metrics(told, window) for told, window in zip((told_few, told_many), ends, strict=True))
    assert calm is not None
    assert crowded is not None
    assert calm.total.prefix_hits == 70_656 / 4
    assert calm.total.prefix_queries == 100_352 / 4
    assert crowded.total.prefix_hits == sum(record.cached_tokens or 0 for record in many.records)
    assert crowded.total.waiting is not None
    assert crowded.total.waiting.peak > 0


def test_a_chat_with_tools_and_their_results_is_served(engine: Engine) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
    messages = [
        {"role": "system", "content": "1234\nYou write code."},
        {"role": "user", "content": "List the files."},
        {"role": "assistant", "content": "", "reasoning_content": "Easy.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "README.md"},
        {"role": "user", "content": "Go on."},
    ]
    parameters = {"type": "object", "properties": {"command": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "bash", "description": "Runs.", "parameters": parameters}}]
    plain = ask(engine, "/v1/chat/completions", messages=messages, max_tokens=40, ignore_eos=True)
    full = ask(engine, "/v1/chat/completions", messages=messages, tools=tools, max_tokens=40, ignore_eos=True)
    assert full["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] > 30
    assert full["usage"]["completion_tokens"] == 40
    prompt = ask(engine, "/apply-template", messages=messages, tools=tools)["prompt"]
    for said in ("You write code.", "Easy.", '{"name": "bash", "arguments": {"command": "ls"}}', "README.md", "Runs."):
        assert said in prompt


def test_the_model_neither_stops_by_accident_nor_says_half_characters(engine: Engine) -> None:
    answer = ask(engine, "/v1/completions", prompt="import os\n", max_tokens=300)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["text"].isascii()
    assert choice["text"].isprintable()
    assert answer["usage"]["completion_tokens"] == 300


def test_a_context_that_is_too_long_is_refused_not_cut(engine: Engine) -> None:
    with httpx.Client(trust_env=False, timeout=WAIT_S) as client:
        body = {"model": engine.model, "prompt": [5_000] * 5_000, "max_tokens": 1}
        response = client.post(engine.url + "/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "exceed_context_size_error"


def test_the_label_says_what_the_system_is(engine: Engine) -> None:
    assert engine.label == (
        f"llama.cpp on {default_threads()} CPU thread(s), made-up weights (agentdyno-nano), 2 slots of 4096 tokens, "
        "no RAM prompt cache, nice 10"
    )


def test_the_server_is_gone_after_its_context(cache: Path) -> None:
    with running_engine(slots=1, slot_context=1_024, cache=cache / "agentdyno" / "models") as engine:
        host, port = engine.url.removeprefix("http://").split(":")
        assert socket.create_connection((host, int(port)), timeout=WAIT_S).close() is None
    assert not Path(f"/proc/{engine.pid}").exists()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((host, int(port)), timeout=WAIT_S)


def test_a_fault_inside_the_context_stops_the_server_too(cache: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="mine"),
        running_engine(slots=1, slot_context=1_024, cache=cache / "agentdyno" / "models") as engine,
    ):
        raise RuntimeError("mine")
    assert not Path(f"/proc/{engine.pid}").exists()


def test_a_model_that_cannot_be_loaded_is_reported_in_its_own_words(cache: Path, tmp_path: Path) -> None:
    made = ensure_model("nano", cache=cache / "agentdyno" / "models")
    broken = tmp_path / "models" / made.digest
    broken.mkdir(parents=True)
    (broken / "model.gguf").write_bytes(made.gguf_path.read_bytes()[:1_000])
    with (
        pytest.raises(EnvironmentFault, match=r"the llama engine stopped at its start; its last words: .*[Ff]ailed"),
        running_engine(cache=tmp_path / "models"),
    ):
        pass


def start_command(cache: Path, ready: Path, *options: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-m", "agentdyno", "replay", "engine", "--ready-file", str(ready), "--slots", "1", *options],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + WAIT_S
    while not ready.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return child


def engine_pid(parent: int) -> int:
    (pid,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_no_signal_to_the_command_leaves_a_server_behind(cache: Path, tmp_path: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"
    child = start_command(cache, ready)
    try:
        url = ready.read_text().strip()
        with httpx.Client(trust_env=False, timeout=WAIT_S) as client:
            assert client.get(url + "/health").status_code == 200
        server = engine_pid(child.pid)
        child.send_signal(number)
        stdout, _ = child.communicate(timeout=WAIT_S)
    finally:
        child.kill()
        child.wait()
    assert stdout.decode().strip() == url
    assert gone(server)
    assert child.returncode == (-number if number == signal.SIGKILL else 0)
    assert ready.exists() == (number == signal.SIGKILL)


def test_the_command_says_so_when_its_server_dies(cache: Path, tmp_path: Path) -> None:
    child = start_command(cache, tmp_path / "ready")
    try:
        os.kill(engine_pid(child.pid), signal.SIGKILL)
        child.communicate(timeout=WAIT_S)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 3


@pytest.mark.parametrize(
    ("listen", "code", "words"),
    [
        ("0.0.0.0:0", 2, "listens on loopback only"),
        ("example.org:80", 2, "listens on loopback only"),
        ("8091", 2, "takes HOST:PORT"),
        ("127.0.0.1:99999", 2, "takes HOST:PORT"),
        ("TAKEN", 3, "cannot listen on 127.0.0.1:"),
    ],
)
def test_an_address_that_does_not_do_is_refused_in_words(listen: str, code: int, words: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = listen.replace("TAKEN", f"127.0.0.1:{taken.getsockname()[1]}")
        result = CliRunner().invoke(replay, ["engine", "--listen", listen])
    assert result.exit_code == code, result.output
    assert words in result.output


def test_a_missing_extra_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    result = CliRunner().invoke(replay, ["engine"])
    assert result.exit_code == 3
    assert "needs the extra 'engine'" in result.output


def test_two_builds_at_once_make_one_model(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from replay.engine.model import ensure_model; "
        "print(ensure_model('nano', cache=Path(sys.argv[1])).gguf_path)"
    )
    builds = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        for _ in range(2)
    ]
    made = {build.communicate(timeout=120)[0].decode().strip() for build in builds}
    assert [build.returncode for build in builds] == [0, 0]
    (path,) = made
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        Path(path).parent.name,
        Path(path).parent.name + ".lock",
    ]
    tokenizer = json.loads((Path(path).parent / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"]) >= 32_000


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="there are nano, tiny"):
        ensure_model("huge")
    assert {name: shape.kv_bytes_per_token for name, shape in PRESETS.items()} == {"nano": 256, "tiny": 1_024}
