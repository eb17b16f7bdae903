"""Claude Code logs: laid out as the agent lays them out, a tree that holds every history, read back word for word."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capture.call import Message
from capture.importers.claude_code import import_claude_code
from capture.pool import render
from capture.trajectory import Trajectory
from curate.export import PROJECT, ExportFault, export
from curate.exports.claude_code import SYNTHETIC_MODEL, claude_code_files, claude_code_lines
from tests.calls import KEY, LONG, SYSTEM, Wire, conversation, result, said, user
from tests.sample_sessions import content_free_session, text_session


def back(session: Trajectory, folder: Path) -> Trajectory:
    export([session], "claude-code", folder / "logs")
    (found,) = import_claude_code([folder / "logs"], KEY).trajectories
    return found


def prompts(session: Trajectory) -> list[list[tuple[str, str]]]:
    """What each turn sent, in order of sending."""
    turns = sorted((one for one in session.requests if one.kind == "turn"), key=lambda one: one.sent_us)
    return [
        [(message.role, message.content) for message in render(session.pool, one.prompt_spans or ())] for one in turns
    ]


def tree(lines: list[dict[str, Any]]) -> dict[str, str | None]:
    """Parents by id; every parent stands before its children."""
    found: dict[str, str | None] = {}
    for line in lines:
        if "uuid" in line:
            assert line["uuid"] not in found
            assert line["parentUuid"] is None or line["parentUuid"] in found
            found[line["uuid"]] = line["parentUuid"]
    return found


def spawning() -> Trajectory:
    """Two sub-agents that one answer starts, and one that the second of them starts."""
    wire = Wire()
    opening = [SYSTEM, user("Count everything.")]
    tasks = ("Count the files of this folder.", "Count the words of all files.")
    asked = said("", *((f"t{number}", "Task", json.dumps({"prompt": task})) for number, task in enumerate(tasks)))
    wire.call(0, opening, asked, session="s", stop="tool_calls")
    deeper = said("", ("t9", "Task", json.dumps({"prompt": "Count the words of a.py alone."})))
    wire.call(150, [user(tasks[1])], deeper, session="s", agent="two", request_class="subagent")
    wire.call(180, [user(tasks[0])], said("Three."), session="s", agent="one", agent_type="Explore")
    wire.call(
        400, [user("Count the words of a.py alone.")], said("Ten."), session="s", agent="three", parent_agent="two"
    )
    wire.call(700, [user(tasks[1]), deeper, result("t9", "Ten.")], said("Ninety."), session="s", agent="two")
    wire.call(900, [*opening, asked, result("t0", "Three."), result("t1", "Ninety.")], said("3 and 90."), session="s")
    return wire.one()


def test_files_lie_as_the_agent_lays_them(tmp_path: Path) -> None:
    report = export([spawning(), text_session()], "claude-code", tmp_path / "logs")
    assert (report.sessions, report.requests, report.left_out) == (2, 10, {})
    assert "request.itl_us" in report.not_carried
    names = [path.relative_to(tmp_path / "logs").as_posix() for path in sorted((tmp_path / "logs").rglob("*.*"))]
    mine = spawning().session_id
    assert f"{PROJECT}/session-a.jsonl" in names
    assert f"{PROJECT}/{mine}.jsonl" in names
    agents = [name for name in names if name.startswith(f"{PROJECT}/{mine}/subagents/agent-")]
    assert Counter(Path(name).suffix for name in agents) == {".jsonl": 3, ".json": 3}
    for name in names:
        path = tmp_path / "logs" / name
        assert path.stat().st_mode & 0o777 == 0o600
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_bytes().splitlines()]
            tree(lines)
            assert {line["isSidechain"] for line in lines if "uuid" in line} == {"subagents" in name}
    for folder in (tmp_path / "logs", tmp_path / "logs" / PROJECT):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_every_prompt_comes_back_word_for_word(tmp_path: Path) -> None:
    session = spawning()
    found = back(session, tmp_path)
    assert prompts(found) == prompts(session)
    # Who started whom comes back with it.
    started = {one.agent_path: one.parent_request_index for one in session.requests}
    again = {one.agent_path: one.parent_request_index for one in found.requests}
    assert len(started) == len(again) == 4
    assert sorted(map(str, started.values())) == sorted(map(str, again.values()))
    assert [one.agent_type for one in found.requests] == [one.agent_type for one in session.requests]


def histories() -> dict[str, Trajectory]:
    """Contexts that are not what was said before and more."""
    wire = Wire()
    opening = [SYSTEM, user("Do it.")]
    first = said("I begin with the first file of all.", ("a", "Bash", '{"command":"ls"}'))
    wire.call(0, opening, first, session="s", stop="tool_calls")
    wire.call(500, [*opening, first, result("a")], said("The first is done."), session="s")
    wire.call(2000, [*opening, user("Do it otherwise.")], said("Otherwise, then."), session="s")
    rewound = wire.one()

    wire = Wire()
    conversation(wire, "long", session="s", turns=3)
    wire.call(5000, [SYSTEM, user(f"Do long.\n{LONG}"), user("Summarize all of it.")], said(LONG), session="s",
              compaction="auto")  # fmt: skip
    wire.call(6000, [SYSTEM, user(f"This session is being continued from before.\n{LONG}")], said("On."), session="s",
              context_compacted=True)  # fmt: skip
    compacted = wire.one()

    wire = Wire()
    thinking = replace(said("I think.", ("a", "Bash", "{}")), reasoning_content="Hm.")
    wire.call(0, opening, thinking, session="s", stop="tool_calls")
    wire.call(500, [*opening, said("I think.", ("a", "Bash", "{}")), result("a")], said("So."), session="s")
    unthought = wire.one()

    wire = Wire()
    strange = Message(role="developer", content="Mind the tests.")
    wire.call(0, [*opening, said("Words of another session."), user("Go on."), strange], said("Yes."), session="s")
    resumed = wire.one()

    wire = Wire()
    wire.call(0, opening, None, session="s", status=529, error="overloaded", stop=None)
    wire.call(300, opening, None, session="s", status=529, error="overloaded", stop=None)
    wire.call(900, opening, said("At last."), session="s")
    retried = wire.one()
    return {
        "rewound": rewound, "compacted": compacted, "unthought": unthought, "resumed": resumed, "retried": retried,
    }  # fmt: skip


@pytest.mark.parametrize("name", histories())
def test_a_history_that_was_changed_comes_back(name: str, tmp_path: Path) -> None:
    session = histories()[name]
    found = back(session, tmp_path)
    expected = prompts(session)
    if name == "resumed":  # the format has no developers
        expected = [[(role.replace("developer", "system"), text) for role, text in prompt] for prompt in expected]
    assert prompts(found) == expected
    assert [one.retry_of for one in found.requests] == [one.retry_of for one in session.requests]
    assert [one.error for one in found.requests] == [one.error for one in session.requests]
    assert [one.context_event for one in found.requests] == [one.context_event for one in session.requests]
    lines, _ = claude_code_lines(session)
    kinds = Counter(line.get("subtype", line["type"]) for line in lines)
    assert kinds["compact_boundary"] == (name == "compacted")
    assert kinds["api_error"] == (2 if name == "retried" else 0)
    models = {line["message"]["model"] for line in lines if line["type"] == "assistant"}
    assert (SYNTHETIC_MODEL in models) == (name == "resumed")
    # An answer that came back without its thoughts is the same line, not another branch.
    parents = list(tree(lines).values())
    branches = [parent for parent, n in Counter(parents).items() if n > 1 and parent is not None]
    assert len(branches) == (1 if name == "rewound" else 0)


def test_an_older_log_has_the_words_alone(tmp_path: Path) -> None:
    """Without the logged requests: what viewers show, and about half the size."""
    session = text_session(turns=12)
    full, _ = claude_code_lines(session)
    lines, left_out = claude_code_lines(session, requests=False)
    assert not left_out
    assert {line["type"] for line in lines} == {"user", "assistant"}
    assert len(json.dumps(lines)) < 0.75 * len(json.dumps(full))
    path = tmp_path / "session-a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = import_claude_code([path], KEY).trajectories
    assert len(found.requests) == 13
    main = [request for request in found.requests if request.agent_path == "main"]
    texts = [message.content for message in render(found.pool, main[-1].prompt_spans or ())]
    assert texts[0] == "Fix the build. "
    assert texts[-1] == "error in part 10 "


def test_a_tool_that_nobody_timed_stays_untimed(tmp_path: Path) -> None:
    session = text_session()
    found = back(session, tmp_path)
    assert [call.internal_us for call in session.tool_calls] == [7_500_000, None, None]
    assert [call.internal_us for call in found.tool_calls] == [7_500_000, None, None]
    lines, _ = claude_code_lines(session)
    results = [line for line in lines if "toolUseResult" in line]
    assert [line["toolUseResult"] for line in results] == [{"durationMs": 7500.0}, {"durationMs": None}]
    # It ended when its time was over; the other was there when it was sent.
    assert [line["timestamp"][17:26] for line in results] == ["29.573456", "40.123456"]


def test_what_has_no_times_or_no_words_is_refused(tmp_path: Path) -> None:
    session = text_session()
    clockless = replace(session, requests=tuple(replace(one, t_send_us=None) for one in session.requests))
    with pytest.raises(ExportFault, match="sessions of unknown times"):
        export([clockless], "claude-code", tmp_path / "logs")
    with pytest.raises(ExportFault, match=r"requests without text.*content-free sessions export as weka"):
        export([content_free_session()], "claude-code", tmp_path / "logs")
    with pytest.raises(ExportFault, match="is a folder of files"):
        export([session], "claude-code", tmp_path / "logs.jsonl")
    assert not list(tmp_path.iterdir())
    lines, _ = claude_code_lines(clockless)  # a viewer shows it all the same
    assert not any("timestamp" in line for line in lines if line["type"] == "user")


def test_ids_are_the_same_every_time_and_files_stay_in_the_folder() -> None:
    session = text_session("../../etc/passwd")
    files, requests, _ = claude_code_files(session)
    assert files == claude_code_files(session)[0]
    assert requests == 4
    assert all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in files)
