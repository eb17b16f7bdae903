"""What `agentdyno doctor` says of recording: agents found, how each is recorded, what would go past, where it goes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capture.agents.agent import Agent, Situation
from capture.agents.environment import VARIABLES
from capture.agents.table import AGENTS
from capture.agents.version import AgentVersion
from capture.model_hosts import ModelHosts
from capture.outbound import Outbound, OutboundError
from capture.store import Store, default_store

_ANSWER_S = 3.0

# Programs that are met on developers' machines and have no row in the table, and what there is for them.
_OTHERS = {
    "cursor-agent": "Cursor's streams are protobuf on hosts of its own and are not read; no importer reads its "
    "transcripts: convert them to chat messages, then `agentdyno capture import messages FILE`",
    "amp": "its calls go to its own server and are not read: there is no way to record them here",
    "agy": "`agentdyno capture run --mode forward -- agy` records cloudcode-pa.googleapis.com",
}
UNREAD = (
    "Bedrock event streams, Vertex AI and Cursor are passed through and not read. Instead, after the session: "
    "`agentdyno capture import claude-code ~/.claude/projects`, `… import codex ~/.codex/sessions`, likewise pi, "
    "opencode, mini-swe-agent, atif and messages"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One thing that was looked at."""

    topic: str
    state: Literal["yes", "no", "note"]
    detail: str


def survey(environment: Mapping[str, str], folder: Path) -> Iterator[Seen]:
    """Look at what a recording started in `folder` would meet; changes nothing."""
    found = [agent for agent in AGENTS if _program(agent, environment) is not None]
    for agent in found:
        yield _agent(agent, environment, folder)
    for program, words in _OTHERS.items():
        if shutil.which(program, path=environment.get("PATH")):
            yield Seen(topic=f"agent {program}", state="note", detail=words)
    if not found:
        names = ", ".join(agent.title for agent in AGENTS)
        yield Seen(topic="agents", state="note", detail=f"none on PATH of {names}")
    yield Seen(topic="not read", state="note", detail=UNREAD)
    yield from _addresses(environment)
    yield from _store()


def _program(agent: Agent, environment: Mapping[str, str]) -> str | None:
    return next((name for name in agent.programs if shutil.which(name, path=environment.get("PATH"))), None)


def _agent(agent: Agent, environment: Mapping[str, str], folder: Path) -> Seen:
    from capture.launch import LaunchError, Wishes, plan_launch
    from capture.upstream import UpstreamError

    program = _program(agent, environment)
    assert program is not None
    situation = Situation(command=(program,), at=0, environment=environment, folder=folder)
    version = AgentVersion(agent, situation)
    version.ask()
    topic = f"agent {agent.title}"
    try:
        plan = plan_launch((program,), wishes=Wishes(), environment=environment, folder=folder)
    except (LaunchError, UpstreamError) as fault:
        return Seen(topic=topic, state="no", detail=str(fault))
    past = agent.needs_forward(situation) or agent.bypasses(situation)
    why = f", because of {past}" if past is not None else ""
    version.wait(_ANSWER_S)
    known = version.at_once or version.late()
    words = [f"{known}:" if known else "", f"`agentdyno capture run -- {program}` records it in {plan.mode} mode{why}"]
    known_hosts = ModelHosts.of()
    own = {it.origin for it in plan.routes.values() if (it.host, it.port) not in known_hosts}
    if own:
        words.append(f"towards {', '.join(sorted(own)[:4])}")
    return Seen(topic=topic, state="yes", detail="; ".join((" ".join(filter(None, words)), *plan.warnings)))


def _addresses(environment: Mapping[str, str]) -> Iterator[Seen]:
    """Base URLs and proxies of this environment."""
    names = [name for names in VARIABLES.values() for name in names if environment.get(name)]
    if names:
        yield Seen(
            topic="base URLs", state="note", detail=f"{', '.join(names)} set: what is named becomes the upstream"
        )
    outbound = Outbound.of(environment)
    try:
        outbound.check()
    except OutboundError as fault:
        yield Seen(topic="proxy", state="no", detail=str(fault))
    else:
        if outbound.variables:
            set_here = ", ".join(outbound.variables)
            yield Seen(
                topic="proxy",
                state="note",
                detail=f"{set_here} set: the recorder reaches its upstreams through it, except what NO_PROXY names",
            )


def _store() -> Iterator[Seen]:
    try:
        path = default_store()
    except RuntimeError:
        yield Seen(topic="store", state="no", detail="there is no home folder: name one by --store or AGENTDYNO_STORE")
        return
    if not Store.exists(path):
        yield Seen(topic="store", state="note", detail=f"{path} will be made by the first `capture run`")
        return
    mode = path.stat().st_mode & 0o777
    mebibytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 2**20
    words = f"{path}, {mebibytes:.1f} MiB, {shutil.disk_usage(path).free / 2**30:.0f} GiB free on its disk"
    if mode & 0o077:
        yield Seen(topic="store", state="no", detail=f"{words}; open to other users: `chmod -R go= {path}`")
    else:
        yield Seen(topic="store", state="yes", detail=f"{words}, readable by you alone")
    authority = path / "ca" / "ca.pem"
    state = f"certificate {authority}" if authority.exists() else "no certificate yet: forward mode makes one"
    trusted = "; trusted only by what `capture run` starts"
    yield Seen(topic="forward mode", state="note", detail=state + (trusted if authority.exists() else ""))
