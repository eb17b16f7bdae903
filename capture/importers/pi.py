"""pi's own logs: `~/.pi/agent/sessions/<folder>/<time>_<id>.jsonl`, a tree of entries by `id` and `parentId`.

Source of the format: logs of version 0.74.2 (session version 3). Each assistant message is a call; its prompt is the
path from the root to it, with what a compaction replaced left out. A call was sent at the message's own `timestamp` and
ended when its line was written (milliseconds). Token counts are the provider's, as pi passes them on. Not told: system
prompt, tools on offer, time to first token, a tool's own time, and the calls that wrote the summaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from capture.call import Message, SessionHint, ToolUse, Usage
from capture.dialects.openai_chat import read_content
from capture.dialects.reading import Json, as_count, as_list, as_object, as_text, compact_json, size_of
from capture.importers.imported import Imported
from capture.importers.log_calls import find_logs, import_sessions, log_call, stamp_ns, stamp_of_ms
from capture.importers.log_lines import read_log_file
from capture.importers.log_session import LogSession

SOURCE = "pi-log"
HARNESS = "pi"
_APIS = {
    "openai-completions": "openai.chat",
    "openai-responses": "openai.responses",
    "openai-codex-responses": "openai.responses",
    "anthropic-messages": "anthropic.messages",
    "google-generative-ai": "google.gemini",
    "google-gemini-cli": "google.gemini",
    "google-vertex": "google.gemini",
}
# The words around a summary are pi's own, as they stand in its next request.
_COMPACTED = (
    "The conversation history before this point was compacted into the following summary:\n\n<summary>\n{}\n</summary>"
)
_BRANCHED = "The following is a summary of a branch that this conversation came back from:\n\n<summary>\n{}</summary>"


def import_pi(paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None) -> Imported:
    """Sessions of the logs under `paths` (files or folders); ImportFault when any of them is bad."""
    files, notes = find_logs(paths, suffixes=(".jsonl",), is_log=_is_log, what="pi log")
    notes.append("token counts of pi's logs are the provider's own, its system prompt and tools are not in the log")

    def read() -> Iterator[LogSession]:
        for path in files:
            if on_file is not None:
                on_file(path)
            yield _read(path)

    return import_sessions(read(), key, token_source="provider", notes=notes)  # noqa: S106 - a word, no secret


def read_log(path: Path) -> LogSession:
    """The session of one log; ImportFault when it is none or damaged."""
    (file,), _ = find_logs([path], suffixes=(".jsonl",), is_log=_is_log, what="pi log")
    return _read(file)


def _is_log(lines: Sequence[Json]) -> bool:
    return bool(lines) and lines[0].get("type") == "session" and isinstance(lines[0].get("id"), str)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One line of the tree."""

    id: str
    parent: str | None
    place: str
    data: Json


def _read(path: Path) -> LogSession:
    log = read_log_file(path)
    session = as_text(log.lines[0].data.get("id"))
    entries: dict[str, _Entry] = {}
    previous: str | None = None
    for line in log.lines[1:]:
        own = as_text(line.data.get("id")) or f"line-{line.number}"  # logs of session version 1 are lists without ids
        parent = as_text(line.data.get("parentId")) or (None if "parentId" in line.data else previous)
        entries.setdefault(own, _Entry(id=own, parent=parent, place=log.place(line), data=line.data))
        previous = own
    notes = [] if log.torn is None else [f"{path}:{log.torn}: the last line is cut off and was left out"]
    if log.lines[0].data.get("parentSession"):
        notes.append(f"{path}: goes on from another session's file, whose calls are that session's")
    prompts = _Prompts(entries)
    hint = SessionHint(session=session, evidence="source")
    calls = []
    for entry in entries.values():
        said = as_object(entry.data.get("message"))
        end_ns = stamp_ns(entry.data.get("timestamp"))
        send_ns = stamp_of_ms(said.get("timestamp")) or end_ns
        if entry.data.get("type") != "message" or said.get("role") != "assistant" or send_ns is None:
            continue
        failed = as_text(said.get("stopReason")) in ("error", "aborted")
        calls.append(
            replace(
                log_call(
                    exchange_id=entry.place,
                    api=_APIS.get(as_text(said.get("api")), as_text(said.get("api")) or "unknown"),
                    harness=HARNESS,
                    harness_version=None,
                    model=as_text(said.get("model")),
                    hints=(hint,),
                    system=(),
                    messages=prompts.before(entry),
                    answer=_assistant(said) if as_list(said.get("content")) else None,
                    usage=Usage() if failed else _usage(as_object(said.get("usage"))),
                    t_send_ns=send_ns,
                    t_end_ns=end_ns,
                    complete=not failed,
                    error=(as_text(said.get("errorMessage")) or as_text(said.get("stopReason"))) if failed else None,
                    stop=as_text(said.get("stopReason")) or None,
                    response_id=as_text(said.get("responseId")) or None,
                ),
                context_compacted=prompts.follows_compaction(entry),
            )
        )
    return LogSession(
        native_session_id=session,
        harness=HARNESS,
        harness_version=None,
        source=SOURCE,
        paths=(str(path),),
        calls=tuple(sorted(calls, key=lambda call: (call.t_send_ns, call.exchange_id))),
        tool_times=(),
        notes=tuple(notes),
    )


class _Prompts:
    """What the model was shown at each place of the tree."""

    def __init__(self, entries: dict[str, _Entry]) -> None:
        self._entries = entries

    def _path(self, entry: _Entry) -> list[_Entry]:
        """Entries from the root to the parent of this one."""
        path: list[_Entry] = []
        seen = {entry.id}
        parent = entry.parent
        while parent is not None and parent in self._entries and parent not in seen:
            seen.add(parent)
            path.append(self._entries[parent])
            parent = self._entries[parent].parent
        return path[::-1]

    def before(self, entry: _Entry) -> tuple[Message, ...]:
        """The prompt of the call that wrote this entry, but for the system prompt."""
        path = self._path(entry)
        start = 0
        messages: list[Message] = []
        for at in range(len(path) - 1, -1, -1):
            if path[at].data.get("type") == "compaction":
                kept = as_text(path[at].data.get("firstKeptEntryId"))
                start = next((i for i in range(at) if path[i].id == kept), at)
                summary = _COMPACTED.format(as_text(path[at].data.get("summary")))
                messages.append(Message(role="user", content=summary))
                break
        for one in path[start:]:
            messages.extend(_message(one))
        return tuple(messages)

    def follows_compaction(self, entry: _Entry) -> bool:
        """Whether this is the first call after a compaction."""
        for one in reversed(self._path(entry)):
            if one.data.get("type") == "compaction":
                return True
            if as_object(one.data.get("message")).get("role") == "assistant":
                return False
        return False


def _message(entry: _Entry) -> list[Message]:
    kind = entry.data.get("type")
    if kind == "branch_summary":
        return [Message(role="user", content=_BRANCHED.format(as_text(entry.data.get("summary"))))]
    if kind == "custom_message":
        text, omitted = read_content(entry.data.get("content"))
        return [Message(role="user", content=text, omitted_bytes=omitted)]
    said = as_object(entry.data.get("message"))
    if kind != "message":
        return []  # a change of model, a label, a compaction that a later one replaced
    role = said.get("role")
    text, omitted = read_content(said.get("content"))
    if role == "assistant":
        # A broken answer is not shown to the model again.
        broken = as_text(said.get("stopReason")) in ("error", "aborted")
        return [] if broken else [_assistant(said)]
    if role == "toolResult":
        failed = said.get("isError")
        return [
            Message(
                role="tool",
                content=text,
                tool_call_id=as_text(said.get("toolCallId")),
                is_error=failed if isinstance(failed, bool) else None,
                omitted_bytes=omitted,
            )
        ]
    if role == "bashExecution":  # the person ran it by hand
        if said.get("excludeFromContext"):
            return []
        text = f"Ran `{as_text(said.get('command'))}`\n```\n{as_text(said.get('output'))}\n```"
    return [Message(role="user", content=text, omitted_bytes=omitted)]


def _assistant(said: Json) -> Message:
    texts, thoughts, calls, omitted = [], [], [], 0
    for block in map(as_object, as_list(said.get("content"))):
        match block.get("type"):
            case "text":
                texts.append(as_text(block.get("text")))
            case "thinking":
                thoughts.append(as_text(block.get("thinking")))
                omitted += size_of(block.get("thinkingSignature") or "")
            case "toolCall":
                calls.append(
                    ToolUse(
                        id=as_text(block.get("id")),
                        name=as_text(block.get("name")),
                        arguments=compact_json(block.get("arguments", {})),
                    )
                )
            case _:
                omitted += size_of(block)
    return Message(
        role="assistant",
        content="\n".join(texts),
        reasoning_content="\n".join(thoughts) if thoughts else None,
        tool_calls=tuple(calls),
        omitted_bytes=omitted,
    )


def _usage(usage: Json) -> Usage:
    """pi counts fresh input apart from what the cache gave and took."""
    fresh = as_count(usage.get("input"))
    read, written = as_count(usage.get("cacheRead")), as_count(usage.get("cacheWrite"))
    return Usage(
        input_total=None if fresh is None else fresh + (read or 0) + (written or 0),
        cache_read=read,
        cache_write=written,
        output_total=as_count(usage.get("output")),
        raw=compact_json(usage) if usage else None,
    )
