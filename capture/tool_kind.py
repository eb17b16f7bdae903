"""What kind of work a tool does, by its name; and what its result says about how it ended."""

from __future__ import annotations

import re
from typing import Literal

type ToolKind = Literal["read", "edit", "search", "exec", "web", "mcp", "subagent", "other"]

# One line per kind, names in lower case: a table that people add to.
_TABLE: tuple[tuple[ToolKind, str], ...] = (
    ("subagent", "task agent spawn_agent subagent dispatch_agent wait_agent delegate_task"),
    ("exec", "bash shell local_shell exec exec_command shell_command container.exec run_shell_command terminal sh"),
    ("exec", "run_terminal_cmd write_stdin execute_command bashoutput killshell python execute_bash command"),
    ("read", "read read_file view open cat notebookread view_image list_mcp_resources read_many_files"),
    ("edit", "edit write multiedit apply_patch patch write_file create_file str_replace str_replace_editor"),
    ("edit", "str_replace_based_edit_tool notebookedit replace edit_file search_replace"),
    ("search", "grep glob find ls list list_dir search rg codesearch grep_files toolsearch search_files"),
    ("web", "webfetch websearch web_fetch web_search fetch browse google_web_search"),
)
_BY_NAME: dict[str, ToolKind] = {name: kind for kind, names in _TABLE for name in names.split()}

# Tools that put a question to the person in front of the agent: their time is that person's.
_QUESTIONS: tuple[str, ...] = (
    "askuserquestion exitplanmode request_user_input request_permissions ask_user ask_user_question exit_plan_mode",
    "ask_followup_question plan_mode_respond ask_human question plan_exit ask_question",
)
_ASKS_HUMAN = frozenset(name for names in _QUESTIONS for name in names.split())

_EXIT_CODE = (
    re.compile(r"<returncode>(-?\d{1,10})</returncode>"),
    re.compile(r'"(?:exit_code|returncode)"\s*:\s*(-?\d{1,10})\b'),
    re.compile(r"(?:^|\n)(?:Process exited with code|Exit code:?|Command exited with code)\s+(-?\d{1,10})\b"),
)
_TIMED_OUT = re.compile(r"(?:command|tool) timed out after|<timed_out>true", re.IGNORECASE)
_LOOK = 4000  # characters at either end of a result; harnesses say how a command ended at its head or its tail


def tool_kind(name: str) -> ToolKind:
    """Kind of a tool by its name; `other` where the name says nothing."""
    low = name.lower()
    if low.startswith(("mcp__", "mcp_", "mcp.")):
        return "mcp"
    return _BY_NAME.get(low, "other")


def asks_human(name: str) -> bool:
    """Whether a tool is a question to the person in front of the agent."""
    return name.lower() in _ASKS_HUMAN


def exit_code(result: str) -> int | None:
    """Exit code that the harness wrote into the result of a command; None where it wrote none.

    Codes have 32 bits: those that Windows writes without a sign (3221225786) get theirs back.
    """
    look = result if len(result) <= 2 * _LOOK else result[:_LOOK] + "\n" + result[-_LOOK:]
    for pattern in _EXIT_CODE:
        if found := pattern.search(look):
            code = int(found[1])
            return None if not -(2**31) <= code < 2**32 else code if code < 2**31 else code - 2**32
    return None


def timed_out(result: str) -> bool | None:
    """True where the result says so; None otherwise, since silence proves nothing."""
    return True if _TIMED_OUT.search(result[:_LOOK]) or _TIMED_OUT.search(result[-_LOOK:]) else None
