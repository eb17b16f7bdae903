"""Importers against their sources: every count, sum and shared prefix is computed anew from the raw JSON here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from capture.importers.agentperf_local import import_agentperf_local
from capture.importers.imported import Imported, ImportFault
from capture.importers.weka import import_weka
from capture.pool import render
from capture.trajectory import Trajectory

KEY = b"k" * 32


# ---- Weka


@pytest.fixture(scope="module")
def weka(weka_traces: Path) -> Imported:
    return import_weka([weka_traces], KEY)


def raw_traces(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.json")):
        yield json.loads(path.read_text())


def raw_chains(trace: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The main chain, then each sub-agent's."""
    main = [entry for entry in trace["requests"] if entry["type"] != "subagent"]
    return [main] + [entry["requests"] for entry in trace["requests"] if entry["type"] == "subagent"]


def chains(trajectory: Trajectory) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for request in trajectory.requests:
        found.setdefault(request.agent_path, []).append(request)
    return found


def shared(one: list[int], other: list[int]) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


def by_id(imported: Imported) -> dict[str, Trajectory]:
    return {trajectory.source_ref.split(": ")[1]: trajectory for trajectory in imported.trajectories}


def test_weka_counts_tokens_and_prefix_sharing_equal_the_source(weka: Imported, weka_traces: Path) -> None:
    traces = list(raw_traces(weka_traces))
    assert len(traces) == len(weka.trajectories) == 35
    found = by_id(weka)
    for trace in traces:
        trajectory = found[trace["id"]]
        raw = raw_chains(trace)
        mine = chains(trajectory)
        assert len(trajectory.requests) == sum(map(len, raw))
        assert trajectory.num_subagents == len(raw) - 1
        for number, entries in enumerate(raw):
            requests = mine["main" if number == 0 else f"main/{number}"]
            assert [request.prompt_tokens for request in requests] == [entry["in"] for entry in entries]
            assert [request.completion_tokens for request in requests] == [entry["out"] for entry in entries]
            assert [list(request.block_hashes) for request in requests] == [entry["hash_ids"] for entry in entries]
            assert [request.model for request in requests] == [entry["model"] for entry in entries]
            assert [request.stop or "" for request in requests] == [entry["stop"] for entry in entries]
            assert [list(request.new_input) for request in requests] == [entry["input_types"] for entry in entries]
            assert [list(request.new_output) for request in requests] == [entry["output_types"] for entry in entries]
            hashes = [list(request.block_hashes) for request in requests]
            expected = [entry["hash_ids"] for entry in entries]
            assert sum(map(shared, hashes, hashes[1:])) == sum(map(shared, expected, expected[1:]))
        assert len({block for request in trajectory.requests for block in request.block_hashes or ()}) == len(
            {block for entries in raw for entry in entries for block in entry["hash_ids"]}
        )
        totals = trace["totals"]["combined_tokens"]
        assert sum(request.prompt_tokens or 0 for request in trajectory.requests) == totals["input"]
        assert sum(request.completion_tokens or 0 for request in trajectory.requests) == totals["output"]


def test_weka_times_and_gaps(weka: Imported, weka_traces: Path) -> None:
    found = by_id(weka)
    zeros = missing = 0
    for trace in raw_traces(weka_traces):
        trajectory = found[trace["id"]]
        sends = [request.t_send_us for request in trajectory.requests]
        assert sends == sorted(sends)
        main = chains(trajectory)["main"]
        for request, entry in zip(main, raw_chains(trace)[0], strict=True):
            assert request.t_send_us == round(entry["t"] * 1e6)
            api = entry.get("api_time")
            assert request.t_end_us == (None if api is None else request.t_send_us + round(api * 1e6))
            missing += api is None
            zeros += entry["out"] == 0
            first = entry.get("ttft")
            assert request.t_first_token_us == (None if first is None else request.t_send_us + round(first * 1e6))
            if request is main[0]:
                assert (request.gap_us, request.gap_kind) == (None, "none")
            else:
                assert request.gap_kind == "unsplit"
                if entry.get("think_time") is not None:
                    assert request.gap_us == round(entry["think_time"] * 1e6)
            assert request.think_us is None
        assert (trajectory.tool_us, trajectory.human_us, trajectory.t0_utc_us) == (None, None, None)
    assert zeros == 3
    assert missing == 174


def test_weka_sub_agents_start_after_the_call_that_asked_for_them(weka: Imported) -> None:
    agents = 0
    for trajectory in weka.trajectories:
        requests = trajectory.requests
        for path, members in chains(trajectory).items():
            if path == "main":
                continue
            agents += 1
            parent = requests[members[0].parent_request_index]
            assert parent.agent_path == "main"
            assert members[0].gap_kind == "spawn"
            assert [request.parent_request_index for request in members[1:]] == [
                request.request_index for request in members[:-1]
            ]
            # `t` of the entry is its end: minus its duration it falls just behind the parent's answer.
            assert 0 <= members[0].t_send_us - (parent.t_end_us or 0) < 2_000_000
    assert agents == 14
    assert sum("read as its end (14 of 14" in note for note in weka.notes) == 1
    assert sum("read as relative" in note and "(14 of 14" in note for note in weka.notes) == 1


def test_weka_labels(weka: Imported) -> None:
    for trajectory in weka.trajectories:
        assert trajectory.source == "weka"
        assert trajectory.harness == "claude-code"
        assert trajectory.license == "Apache-2.0"
        assert (trajectory.token_source, trajectory.tokenizer) == ("tokenizer", "cl100k_base")
        assert trajectory.hash_scope == "session"
        assert {request.block_size for request in trajectory.requests} == {64}
        assert trajectory.pool == ()
    assert len({trajectory.session_id for trajectory in weka.trajectories}) == 35


def entry(t: float, blocks: list[int], **more: Any) -> dict[str, Any]:
    return {"t": t, "type": "n", "model": "m", "in": 64 * len(blocks), "out": 5, "hash_ids": blocks,
            "input_types": ["text"], "output_types": ["text"], "stop": "end_turn", "api_time": 1.0} | more  # fmt: skip


def write(folder: Path, name: str, **changes: Any) -> Path:
    trace = {"id": name, "models": ["m"], "block_size": 64, "hash_id_scope": "local", "tool_tokens": 0,
             "system_tokens": 0, "requests": [entry(0, [1, 2])]} | changes  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(trace))
    return path


def sub_agent(t: float, requests: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"t": t, "type": "subagent", "agent_id": "a", "subagent_type": "Explore", "requests": requests} | more


def test_weka_nested_times_may_be_absolute_and_t_a_start(tmp_path: Path) -> None:
    nested = [entry(21.5, [9]), entry(25.0, [9, 10])]
    requests = [entry(20.0, [1, 2], stop="tool_use"), sub_agent(21.2, nested, duration_ms=6000), entry(40.0, [1, 2, 3])]
    imported = import_weka([write(tmp_path, "a", requests=requests)], KEY)
    assert [request.t_send_us for request in imported.trajectories[0].requests] == [0, 1_500_000, 5_000_000, 20_000_000]
    assert any("read as absolute" in note for note in imported.notes)
    assert any("read as its start" in note for note in imported.notes)


def test_weka_missing_stays_missing_and_zero_stays_zero(tmp_path: Path) -> None:
    bare = {"t": 5.0, "type": "s", "out": 0}
    imported = import_weka([write(tmp_path, "a", requests=[entry(0, [1], **{"in": 70}), bare])], KEY)
    first, second = imported.trajectories[0].requests
    assert (first.prompt_tokens, second.prompt_tokens, second.completion_tokens) == (70, None, 0)
    assert (second.block_hashes, second.t_end_us, second.model, second.stop) == (None, None, "", None)
    assert second.gap_us == 4_000_000


def test_weka_context_events(tmp_path: Path) -> None:
    blocks = [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7, 8], [1, 2, 9, 10, 11, 12, 13], [1, 14], [20, 21]]
    requests = [entry(10.0 * number, ids) for number, ids in enumerate(blocks)]
    (trajectory,) = import_weka([write(tmp_path, "a", requests=requests)], KEY).trajectories
    events = [request.context_event for request in trajectory.requests]
    assert events == ["append", "append", "append", "edit", "compaction", "reset"]
    assert trajectory.num_compactions == 1


def test_weka_json_lines(tmp_path: Path) -> None:
    one, two = (json.loads(write(tmp_path, name).read_text()) for name in ("a", "b"))
    lines = tmp_path / "both.jsonl"
    lines.write_text(json.dumps(one) + "\n" + json.dumps(two) + "\n\n")
    assert len(import_weka([lines], KEY).trajectories) == 2


BAD: dict[str, tuple[Any, str]] = {
    "cut": ('{"id": "a", "block_size": 64, "requests": [{"t": 0, "type": "n', "cut off"),
    "empty": ("", "is empty"),
    "no JSON": ("hello", "no valid JSON at character 0"),
    "another format": ('{"messages": []}', "no list `requests`"),
    "no id": ({"id": None}, "`id` is missing"),
    "no block size": ({"block_size": 0}, "`block_size` is missing or 0"),
    "unknown scope": ({"hash_id_scope": "planet"}, "'planet'"),
    "no requests": ({"requests": []}, "`requests` is empty"),
    "request no object": ({"requests": [entry(0, [1]), 5]}, "requests[1] is no JSON object"),
    "unknown type": ({"requests": [entry(0, [1], type="x")]}, "requests[0].type is 'x'"),
    "no time": ({"requests": [{"type": "n"}]}, "requests[0]: `t` is missing"),
    "negative tokens": ({"requests": [entry(0, [1], **{"in": -3})]}, "requests[0].in is -3"),
    "tokens no number": ({"requests": [entry(0, [1], out="7")]}, "requests[0].out is '7'"),
    "half a token": ({"requests": [entry(0, [1], out=7.5)]}, "requests[0].out is 7.5"),
    "hashes no list": ({"requests": [entry(0, [1], hash_ids="1")]}, "requests[0].hash_ids is no list"),
    "not a number": ({"requests": [entry(float("nan"), [1])]}, "requests[0].t is nan"),
    "nested": (
        {"requests": [sub_agent(0, [sub_agent(0, [])])]},
        "requests[0].requests[0]: a sub-agent inside a sub-agent",
    ),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_weka_file_is_named_with_the_place(tmp_path: Path, content: Any, words: str) -> None:
    good = write(tmp_path, "good")
    bad = write(tmp_path, "bad", **content) if isinstance(content, dict) else tmp_path / "bad.json"
    if isinstance(content, str):
        bad.write_text(content)
    with pytest.raises(ImportFault) as fault:
        import_weka([good, bad], KEY)
    assert str(fault.value).startswith(str(bad))
    assert words in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_real_trace_cut_anywhere_is_refused(weka_traces: Path, tmp_path: Path) -> None:
    text = (weka_traces / "trace_0274.json").read_text()
    for part in (0.1, 0.5, 0.77, 0.999):
        cut = tmp_path / "trace.json"
        cut.write_text(text[: int(len(text) * part)])
        with pytest.raises(ImportFault, match="cut off"):
            import_weka([cut], KEY)


def test_the_same_trace_in_two_files_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path, "a")
    second = tmp_path / "copy.json"
    shutil.copy(first, second)
    with pytest.raises(ImportFault, match=r"copy\.json: the trace 'a' is already in .*a\.json"):
        import_weka([first, second], KEY)
    with pytest.raises(ImportFault, match="cannot be read"):
        import_weka([tmp_path / "nothing.json"], KEY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImportFault, match=r"no \.json"):
        import_weka([tmp_path / "empty"], KEY)


# ---- agentperf-local


@pytest.fixture(scope="module")
def agentperf() -> Imported:
    pytest.importorskip("agentperf_local")
    return import_agentperf_local(None, KEY)


def replay_folder() -> Path:
    folder = resources.files("agentperf_local").joinpath("data", "replays", "agentperf-default-v1")
    assert isinstance(folder, Path)
    return folder


def raw_rows(task: str) -> list[dict[str, Any]]:
    text = (replay_folder() / "traces" / f"{task}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_agentperf_tasks_equal_the_source(agentperf: Imported) -> None:
    assert len(agentperf.trajectories) == 8
    assert sum(len(trajectory.requests) for trajectory in agentperf.trajectories) == 168
    for trajectory in agentperf.trajectories:
        rows = raw_rows(trajectory.source_ref)
        assert len(trajectory.requests) == len(rows)
        assert [request.prompt_tokens for request in trajectory.requests] == [
            row["recorded_prompt_tokens"] for row in rows
        ]
        assert [request.completion_tokens for request in trajectory.requests] == [
            row["recorded_completion_tokens"] for row in rows
        ]
        for request, row in zip(trajectory.requests, rows, strict=True):
            prompt = render(trajectory.pool, request.prompt_spans or ())
            assert [as_chat(message) for message in prompt] == list(map(without_index, row["messages"]))
            assert request.tools_index == 0
        # Each distinct message once: at most one entry per message of the last prompt and per note that vanished.
        assert len(trajectory.pool) <= len({json.dumps(message) for row in rows for message in row["messages"]})


def without_index(message: dict[str, Any]) -> dict[str, Any]:
    """A raw message less what says nothing: empty fields, and the position that one harness repeats in each call."""
    kept = {name: value for name, value in message.items() if value not in (None, [])}
    if "tool_calls" in kept:
        kept["tool_calls"] = [
            {name: value for name, value in call.items() if name != "index"} for call in kept["tool_calls"]
        ]
    return kept


def as_chat(message: Any) -> dict[str, Any]:
    chat: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        chat["tool_calls"] = [
            {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": use.arguments}}
            for use in message.tool_calls
        ]
    if message.tool_call_id is not None:
        chat["tool_call_id"] = message.tool_call_id
    return chat


def test_agentperf_times_come_from_the_recording(agentperf: Imported) -> None:
    for trajectory in agentperf.trajectories:
        rows = raw_rows(trajectory.source_ref)
        clock = 0
        for request, row in zip(trajectory.requests, rows, strict=True):
            assert request.t_send_us == clock
            assert request.t_end_us == clock + round(row["recorded_model_duration_ms"] * 1000)
            clock = request.t_end_us + round(row["simulated_tool_delay_ms_after"] * 1000)
        assert trajectory.duration_us == clock
        recorded = [call for row in rows for call in row["recorded_tool_calls_after"]]
        for call, record in zip(trajectory.tool_calls, recorded, strict=True):
            assert (call.tool_call_id, call.name) == (record["tool_call_id"], record["tool_name"])
            assert call.internal_us == round(record["duration_ms"] * 1000)
            if "recorded_returncode" in record:
                assert call.exit_code == record["recorded_returncode"]
        for call in trajectory.tool_calls:
            if call.result_request_index is not None:
                delay = rows[call.request_index]["simulated_tool_delay_ms_after"]
                assert call.wall_us == round(delay * 1000)
                assert call.result_bytes
            else:
                assert call.request_index == len(rows) - 1
        assert trajectory.license == "Apache-2.0"
        assert (trajectory.human_us, trajectory.num_user_messages, trajectory.harness != "unknown") == (0, 1, True)


def test_agentperf_by_manifest_path_is_the_same(agentperf: Imported) -> None:
    assert import_agentperf_local(replay_folder() / "manifest-x86_64.json", KEY).trajectories == agentperf.trajectories


def small_replay(folder: Path) -> tuple[Path, Path]:
    """A manifest with one short task."""
    (folder / "traces").mkdir()
    rows = raw_rows("task_k8s_debugging")
    trace = folder / "traces" / "task.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = folder / "manifest.json"
    task = {"task_id": "t", "trace": "traces/task.jsonl", "model_calls": len(rows), "tool_calls": 5, "family": "f"}
    manifest.write_text(json.dumps({"version": 1, "name": "n", "tasks": [task]}))
    return manifest, trace


@pytest.mark.parametrize(
    ("part", "words"),
    [(0.5, "cut off"), (0.0, "is empty")],
)
def test_a_cut_agentperf_trace_is_refused(agentperf: Imported, tmp_path: Path, part: float, words: str) -> None:
    manifest, trace = small_replay(tmp_path)
    assert len(import_agentperf_local(manifest, KEY).trajectories) == 1
    text = trace.read_text()
    trace.write_text(text[: int(len(text) * part)])
    with pytest.raises(ImportFault, match=words) as fault:
        import_agentperf_local(manifest, KEY)
    assert str(trace) in str(fault.value)


def test_other_agentperf_faults(agentperf: Imported, tmp_path: Path) -> None:
    manifest, trace = small_replay(tmp_path)
    lines = trace.read_text().splitlines(keepends=True)
    trace.write_text("".join(lines[:-1]))
    with pytest.raises(ImportFault, match="4 model calls where the manifest says 5"):
        import_agentperf_local(manifest, KEY)
    trace.write_text(lines[0] + '{"messages": []}\n' + "".join(lines[2:]))
    with pytest.raises(ImportFault, match="line 2: `messages` is no list of messages"):
        import_agentperf_local(manifest, KEY)
    trace.unlink()
    with pytest.raises(ImportFault, match=r"task\.jsonl: cannot be read"):
        import_agentperf_local(manifest, KEY)
    manifest.write_text('{"version": 2, "tasks": []}')
    with pytest.raises(ImportFault, match="version is 2"):
        import_agentperf_local(manifest, KEY)
    manifest.write_text('{"version": 1}')
    with pytest.raises(ImportFault, match="no list `tasks`"):
        import_agentperf_local(manifest, KEY)


def test_ids_depend_on_the_key_alone(weka: Imported, weka_traces: Path) -> None:
    again = import_weka([weka_traces], KEY)
    assert again == weka
    other = import_weka([weka_traces], b"x" * 32)
    assert {found.session_id for found in other.trajectories}.isdisjoint(
        found.session_id for found in weka.trajectories
    )
    assert other.with_key(KEY) == weka
