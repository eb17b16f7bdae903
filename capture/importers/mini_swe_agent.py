"""mini-swe-agent's trajectories: `*.traj.json`, format `mini-swe-agent-1` and `-1.1`.

Source of the format: files that version 2.4.6 wrote. Each assistant message is a call; its provider's answer stands
whole in `extra.response`. Stamps stand at the end of an answer (`extra.timestamp`) and at each observation: a call was
sent when the last observation before it was stamped. When the first call was sent is not told, and neither are the
tools on offer, retries and a tool's own time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from capture.assemble import Origin, assemble
from capture.call import Message, ModelCall, SessionHint
from capture.dialects.openai_chat import read_message, read_usage
from capture.dialects.reading import Json, as_list, as_number, as_object, as_text
from capture.importers.clockless import STEP_NS, without_clock
from capture.importers.documents import files_under, parse_document, read_text
from capture.importers.imported import Imported, ImportFault, native_id
from capture.importers.log_calls import log_call
from capture.trajectory import Trajectory

SOURCE = "mini-swe-agent-log"
HARNESS = "mini-swe-agent"
_NOTES = (
    "mini-swe-agent's trajectories carry the provider's own token counts",
    "mini-swe-agent does not tell when its first call was sent: unknown (null)",
)
_OUTCOMES = {"Submitted": "success"}


def import_mini_swe_agent(
    paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None
) -> Imported:
    """Sessions of the trajectory files under `paths`; ImportFault when any of them is bad."""
    found: dict[str, Trajectory] = {}
    notes = list(_NOTES)
    for path in files_under(paths, (".traj.json",)):
        if on_file is not None:
            on_file(path)
        trajectory = _read(path, key, notes)
        if trajectory is not None:
            name, value = trajectory
            if name in found:
                notes.append(f"{path}: the session {name!r} was read from another file already")
            found[name] = value
    return Imported(
        trajectories=tuple(found.values()),
        native_ids=tuple(native_id(SOURCE, name) for name in found),
        notes=tuple(dict.fromkeys(notes)),
    )


def _read(path: Path, key: bytes, notes: list[str]) -> tuple[str, Trajectory] | None:
    document = as_object(parse_document(path, read_text(path)))
    form = as_text(document.get("trajectory_format"))
    if not form.startswith("mini-swe-agent-1"):
        raise ImportFault(f"{path}: trajectory_format is {form!r}, known is mini-swe-agent-1.x")
    entries = [as_object(entry) for entry in as_list(document.get("messages"))]
    info = as_object(document.get("info"))
    # An instance is a task, which may be run twice; the id of the first answer is one run's own.
    first = next(
        (as_object(as_object(entry.get("extra")).get("response")) for entry in entries if "extra" in entry), {}
    )
    name = as_text(first.get("id")) or as_text(document.get("instance_id")) or path.name
    calls = _calls(entries, info, name)
    if not calls:
        notes.append(f"{path}: no call in it")
        return None
    clock = all(call.t_end_ns is not None for call in calls)
    if not clock:
        calls = [replace(call, t_send_ns=at * STEP_NS, t_end_ns=None) for at, call in enumerate(calls)]
        notes.append(f"{path}: some messages have no stamp, so its times are unknown")
    (trajectory,) = assemble(calls, key, Origin(source=SOURCE, token_source="provider"))  # noqa: S106 - a word
    exit_status = as_text(info.get("exit_status"))
    trajectory = replace(
        trajectory,
        source_ref=path.name,
        outcome="success" if exit_status in _OUTCOMES else "failure" if exit_status else "unknown",
    )
    if not clock:
        return name, without_clock(trajectory)
    sent_first, *others = trajectory.requests
    return name, replace(trajectory, requests=(replace(sent_first, t_send_us=None), *others), api_us=None)


def _calls(entries: Sequence[Json], info: Json, name: str) -> list[ModelCall]:
    messages: list[Message] = []
    calls: list[ModelCall] = []
    last_ns: int | None = None
    configured = as_object(as_object(as_object(info.get("config")).get("model"))).get("model_name")
    for at, entry in enumerate(entries):
        role = as_text(entry.get("role"))
        if role == "exit":
            continue
        extra = as_object(entry.get("extra"))
        seconds = as_number(extra.get("timestamp"))
        stamp_ns = None if seconds is None or seconds <= 0 else int(seconds * 1e9)
        message = read_message(entry)
        if role == "assistant":
            response = as_object(extra.get("response"))
            choice = as_object(next(iter(as_list(response.get("choices"))), None))
            head = next((i for i, one in enumerate(messages) if one.role not in ("system", "developer")), len(messages))
            send_ns = last_ns if last_ns is not None else stamp_ns
            calls.append(
                log_call(
                    exchange_id=f"{name}#{at:06d}",
                    api="openai.chat",
                    harness=HARNESS,
                    harness_version=as_text(info.get("mini_version")) or None,
                    model=as_text(response.get("model")) or as_text(configured),
                    hints=(SessionHint(session=name, evidence="source"),),
                    system=tuple(messages[:head]),
                    messages=tuple(messages),
                    answer=message,
                    usage=read_usage(as_object(response.get("usage"))),
                    t_send_ns=send_ns or at * STEP_NS,
                    t_end_ns=stamp_ns,
                    complete=True,
                    stop=as_text(choice.get("finish_reason")) or None,
                    response_id=as_text(response.get("id")) or None,
                )
            )
        messages.append(message)
        last_ns = stamp_ns if stamp_ns is not None else last_ns
    return calls
