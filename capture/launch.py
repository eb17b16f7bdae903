"""Runs an agent behind a recorder of its own: how it is told, and what is noted about the start.

Reverse mode gives the agent the recorder as its base URL; no proxy variable and no certificate is involved, and
whatever base URL was set before becomes the upstream. Forward mode gives it a proxy and a certificate authority: the
agent then behaves as if it were connected directly. `auto` is reverse, except where a login or a setting would go
past it.
"""

from __future__ import annotations

import itertools
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from capture.agents.agent import Agent, Change, Situation, Target, Telling
from capture.agents.table import find_agent
from capture.agents.version import AgentVersion
from capture.journal_notes import add_notes
from capture.model_hosts import ModelHosts
from capture.outbound import Outbound, OutboundError, is_exempt, no_proxy_entries
from capture.recorder_process import RecorderFault, RecorderProcess
from capture.store import Store
from capture.terminal import CannotRun, run_on_terminal
from capture.upstream import Routes, Upstream, UpstreamError

type Mode = Literal["reverse", "forward"]

_LATE_S = 1.0  # how long a finished agent's program may still take to say its version
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Variables that replace the system's certificates for one kind of client each.
_BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CODEX_CA_CERTIFICATE", "AWS_CA_BUNDLE")


class LaunchError(RuntimeError):
    """Nothing can be recorded, or the agent cannot be run. The sentence says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user asked for."""

    mode: Literal["auto", "reverse", "forward"] = "auto"
    upstream: str | None = None
    websocket: bool = False
    telemetry: bool = True
    hosts: tuple[str, ...] = ()  # more hosts to decrypt in forward mode
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the recorder and the agent will be told; decided before anything starts."""

    agent: Agent
    situation: Situation
    mode: Mode
    routes: Mapping[str, Upstream]  # first path segment → upstream; the segment "" stands for any path
    bases: Mapping[str, str]  # provider → path of its base URL on the recorder
    recorded: tuple[tuple[str, int], ...] = ()  # forward mode: hosts and ports that the agent is known to call
    hosts: tuple[str, ...] = ()  # decrypted beside the known model hosts
    upstream: str | None = None  # forward mode: where all model hosts' calls go instead
    telemetry: bool = True
    warnings: tuple[str, ...] = ()

    def serve_options(self) -> list[str]:
        """Options of `capture serve`."""
        if self.mode == "forward":
            return ["--mode", "forward", *(word for host in self.hosts for word in ("--host", host))]
        return []

    def serve_routes(self) -> list[str]:
        """NAME=URL each, =URL for any path. They may hold keys: not for a command line, which all users can read."""
        if self.mode == "forward":
            return [] if self.upstream is None else [f"={self.upstream}"]
        return [f"{segment}={upstream}" for segment, upstream in self.routes.items()]

    def relay_routes(self) -> Routes | None:
        """The same for a relay that records nothing."""
        if self.mode == "forward":
            return None
        named = tuple((segment, upstream) for segment, upstream in self.routes.items() if segment)
        return Routes(default=self.routes.get(""), by_segment=named)

    def change(self, url: str, *, store: Path, work: Path) -> Change:
        """The agent's command and what its environment has beside the user's, with the recorder at `url`."""
        inherited = self.situation.environment
        environment: dict[str, str] = {}
        arguments: tuple[str, ...] = ()
        if self.mode == "forward":
            environment.update(_proxy_environment(url, store / "ca", inherited, self.recorded))
        elif any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in inherited):
            environment.update(_no_proxy(no_proxy_entries(inherited)))
        if self.telemetry:
            own, arguments = self._telemetry(f"{url}/otlp")
            environment.update(own)
        bases = {provider: url + path for provider, path in self.bases.items()}
        telling = Telling(bases=bases, environment=environment, arguments=arguments, work=work)
        return self.agent.tell(self.situation, telling)

    def _telemetry(self, endpoint: str) -> tuple[dict[str, str], tuple[str, ...]]:
        from capture.otlp import agent_environment, agent_overrides

        overrides = tuple(agent_overrides(endpoint)) if self.agent.name == "codex" else ()
        return agent_environment(self.agent.name, endpoint), overrides


def plan_launch(command: tuple[str, ...], *, wishes: Wishes, environment: Mapping[str, str], folder: Path) -> Plan:
    """Which agent it is, and how it will be recorded. LaunchError where it cannot be, UpstreamError for a bad address.

    A base URL that the agent's environment or settings name already becomes the upstream, else the provider's own.
    """
    agent, at = find_agent(command, environment, folder)
    situation = Situation(command=command, at=at, environment=environment, folder=folder, websocket=wishes.websocket)
    if (reason := agent.unrecordable(situation)) is not None:
        raise LaunchError(reason)
    targets = agent.targets(situation)
    past = agent.needs_forward(situation) or agent.bypasses(situation)
    mode: Mode = wishes.mode if wishes.mode != "auto" else "forward" if past is not None else "reverse"
    warnings = []
    if past is not None and mode == "reverse":
        warnings.append(f"some calls may go past the recorder: {past}")
    telemetry = wishes.telemetry and agent.exports_tool_times and agent.has_telemetry(situation) is None
    parsed = {}
    for provider, target in targets.items():
        try:
            parsed[provider] = Upstream.parse(target.url)
        except UpstreamError as fault:
            if target.source is not None:
                raise UpstreamError(f"{target.source}: {fault}") from fault
            warnings.append(f"calls to the provider {provider} are not recorded: {fault}")
    targets = {provider: targets[provider] for provider in parsed}
    whole = Upstream.parse(wishes.upstream) if wishes.upstream is not None else None
    outbound = Outbound.of(environment)
    try:
        for upstream in [whole] if whole is not None else parsed.values():
            outbound.find(upstream.scheme, upstream.host, upstream.port)
        if mode == "forward":
            outbound.check()
    except OutboundError as fault:
        raise LaunchError(str(fault)) from fault
    if mode == "forward":
        near = sorted({target.shown for target in parsed.values() if target.host in _LOOPBACK})
        if near and whole is None:
            warnings.append(
                f"calls to {', '.join(near)} are not seen in forward mode, where loopback needs no proxy; "
                "use `--mode reverse`"
            )
        known = ModelHosts.of()
        more = {f"{it.host}:{it.port}" for it in parsed.values() if (it.host, it.port) not in known}
        hosts = tuple(dict.fromkeys((*wishes.hosts, *sorted(more))))
        return Plan(
            agent=agent, situation=situation, mode=mode, routes={}, bases={}, hosts=hosts,
            recorded=tuple((it.host, it.port) for it in parsed.values() if it.host not in _LOOPBACK),
            upstream=wishes.upstream, telemetry=telemetry, warnings=tuple(warnings),
        )  # fmt: skip
    routes, bases = _reverse(targets, parsed, whole)
    return Plan(
        agent=agent, situation=situation, mode=mode, routes=routes, bases=bases,
        telemetry=telemetry, warnings=tuple(warnings),
    )  # fmt: skip


def _reverse(
    targets: Mapping[str, Target], parsed: Mapping[str, Upstream], whole: Upstream | None
) -> tuple[dict[str, Upstream], dict[str, str]]:
    if whole is not None:
        # Given whole, or as the root that each client adds its own version to.
        upstream, path = whole.hidden()
        root = re.sub(r"/v\d+\w*$", "", path)
        bare = whole.host == "chatgpt.com"  # that backend has no version in its paths
        bases = {provider: root + ("" if bare else target.suffix) for provider, target in targets.items()}
        return {"": upstream}, bases
    routes: dict[str, Upstream] = {}
    bases = {}
    for provider, target in parsed.items():
        # The host and the path stay visible to the agent: some look for a name or for /v1 in their base URL. A key in
        # the path does not: some are told their base URL by an argument, which all users of the machine can read.
        upstream, path = target.hidden()
        plain = re.sub(r"[^\w.-]", "-", upstream.authority)
        names = itertools.chain((plain, f"{upstream.scheme}-{plain}"), (f"{plain}-{at}" for at in itertools.count(2)))
        segment = next(name for name in names if routes.setdefault(name, upstream) == upstream)
        bases[provider] = f"/{segment}{path}"
    return routes, bases


def _no_proxy(entries: Iterable[str]) -> dict[str, str]:
    kept = dict.fromkeys([*entries, *_LOOPBACK])
    value = "*" if "*" in kept else ",".join(kept)  # in a list the star means nothing to most programs
    return {"no_proxy": value, "NO_PROXY": value}


def _proxy_environment(
    url: str, authority: Path, inherited: Mapping[str, str], recorded: Iterable[tuple[str, int]]
) -> dict[str, str]:
    bundle = str(authority / "bundle.pem")  # the recorder merged into it what the user's variables named
    found = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), url)
    # What the user reaches directly the recorder does too: an entry for a host to record must not lead past it.
    found.update(
        _no_proxy(
            entry for entry in no_proxy_entries(inherited) if not any(is_exempt(entry, *host) for host in recorded)
        )
    )
    found.update(dict.fromkeys(_BUNDLES, bundle))
    # This one adds to the certificates that Node brings; the others replace.
    found["NODE_EXTRA_CA_CERTS"] = bundle if inherited.get("NODE_EXTRA_CA_CERTS") else str(authority / "ca.pem")
    found["NODE_USE_ENV_PROXY"] = "1"
    return found


def run_unrecorded(command: tuple[str, ...], environment: Mapping[str, str]) -> int:
    """Run the agent as if we were not there; its exit code. LaunchError where it cannot be run."""
    try:
        return run_on_terminal(command, environment)
    except CannotRun as fault:
        raise LaunchError(str(fault)) from fault


class NotRecording(LaunchError):
    """The recorder did not start, so neither did the agent."""


def launch(plan: Plan, *, store: Store, say: Callable[[str], None], quiet: bool = False) -> int:
    """Run the plan's command recorded into `store`; returns its exit code (128 + n where signal n ended it).

    NotRecording where the recorder does not start; the agent was not started then. Once it was, SIGINT has no effect
    on this process any more, to its very end.
    """
    word = plan.situation.command[0]
    if shutil.which(word, path=plan.situation.environment.get("PATH")) is None:
        if "/" in word and Path(plan.situation.folder, word).exists():
            raise LaunchError(f"{word}: is no program, or not one that you may run")
        raise LaunchError(f"{word}: not found; is it installed and on PATH?")
    for number in (signal.SIGTERM, signal.SIGHUP):  # before and after the agent, which gets them while it runs
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _leave)
    label = secrets.token_hex(8)
    before = frozenset(store.journals())
    version = AgentVersion(plan.agent, plan.situation)
    try:
        work = tempfile.TemporaryDirectory(prefix="agentdyno-run-", ignore_cleanup_errors=True)
    except OSError as fault:
        raise NotRecording(f"no folder for temporary files: {fault.strerror or fault}; set TMPDIR") from fault
    with work as folder:
        recorder = RecorderProcess(
            options=plan.serve_options(),
            private_routes=plan.serve_routes(),
            routes=plan.relay_routes(),
            store=store,
            label=label,
            work=Path(folder),
        )
        change = plan.change("", store=store.path, work=Path(folder))
        recorder.notes = _notes(plan, change, version.at_once)
        try:
            with recorder:
                change = plan.change(recorder.url, store=store.path.absolute(), work=Path(folder))
                if not quiet:
                    named = " ".join(filter(None, (plan.agent.title, version.at_once)))
                    say(f"recording {named} ({plan.mode} mode) into {store.path}")
                for warning in plan.warnings:
                    say(warning)
                environment = {**plan.situation.environment, **change.environment}
                # Many press Ctrl-C once more than the agent needs to end: that must not cost the rest, nor its exit
                # code. First a handler, because an ignored signal would be ignored by the agent too.
                if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
                    signal.signal(signal.SIGINT, lambda *_: None)
                code = _run(change.command, environment, recorder, version)
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # unlike a handler, it lasts through Python's own end
        except RecorderFault as fault:
            raise NotRecording(str(fault)) from fault
        words = recorder.said()
    for line in recorder.words:
        say(line)
    if recorder.exit_code not in (0, 1):  # 1: gaps, which the summary tells
        for line in words.splitlines():
            say(line.removeprefix("agentdyno: ").removeprefix("Error: "))
        say("the recording is not complete; the lines above say why")
    from capture.run_summary import summarise  # reads journals: `doctor` plans a launch without that extra

    try:
        summary = summarise(
            store, label, plan.agent, before=before, restarts=recorder.restarts, relayed=recorder.relayed
        )
    except Exception as fault:  # noqa: BLE001 - the agent is done; nothing of ours may change its exit code now
        say(f"recorded, but the summary cannot be made ({type(fault).__name__}: {fault}); store {store.path}")
        return code
    for line in summary.lines(quiet=quiet):
        say(line)
    version.wait(_LATE_S)
    if (late := version.late()) is not None:
        for path in summary.journals:
            add_notes(path, {"agent_version": late})
    return code


def _leave(number: int, _: FrameType | None) -> None:
    """End as the signal would have ended us, but with our folder removed and the recorder stopped."""
    raise SystemExit(128 + number)


def _run(
    command: tuple[str, ...], environment: Mapping[str, str], recorder: RecorderProcess, version: AgentVersion
) -> int:
    def running() -> None:
        recorder.keep_alive()
        version.ask()

    try:
        return run_on_terminal(command, environment, running=running)
    except CannotRun as fault:
        raise LaunchError(str(fault)) from fault


def _notes(plan: Plan, change: Change, version: str | None) -> dict[str, str]:
    """What the journal says about the start: names of variables, never their values."""
    inherited = plan.situation.environment
    changed = sorted(name for name, value in change.environment.items() if inherited.get(name) != value)
    notes = {"launch_mode": plan.mode, "environment": ",".join(changed)}
    if plan.agent.name:
        notes["agent"] = plan.agent.name
    if version is not None:
        notes["agent_version"] = version
    if plan.agent.name == "codex":
        notes["websocket"] = "on" if plan.situation.websocket else "off"
    notes["telemetry"] = "on" if plan.telemetry else "off"
    return notes
