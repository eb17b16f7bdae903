"""Runs an agent behind a recorder of its own: how it is told, and what is noted about the start.

Reverse mode gives the agent the recorder as its base URL; no proxy variable and no certificate is involved, and
whatever base URL was set before becomes the upstream. Forward mode gives it a proxy and a certificate authority: the
agent then behaves as if it were connected directly. `auto` is reverse, except where a login or a setting would go
past it.
"""

from __future__ import annotations

import re
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from capture.agents.agent import Agent, Change, Situation, Target, Telling
from capture.agents.table import find_agent
from capture.agents.version import AgentVersion
from capture.journal_notes import add_notes
from capture.model_hosts import ModelHosts
from capture.recorder_process import RecorderFault, RecorderProcess
from capture.store import Store
from capture.terminal import CannotRun, run_on_terminal
from capture.upstream import Routes, Upstream, UpstreamError

type Mode = Literal["reverse", "forward"]

_LATE_S = 1.0  # how long a finished agent's program may still take to say its version
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
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
    hosts: tuple[str, ...] = ()  # decrypted beside the known model hosts
    upstream: str | None = None  # forward mode: where all model hosts' calls go instead
    telemetry: bool = True
    warnings: tuple[str, ...] = ()

    def serve_options(self) -> list[str]:
        """Options of `capture serve`."""
        if self.mode == "forward":
            words = ["--mode", "forward", *(word for host in self.hosts for word in ("--host", host))]
            return [*words, "--upstream", self.upstream] if self.upstream is not None else words
        return [
            word
            for segment, upstream in self.routes.items()
            for word in (("--route", f"{segment}={upstream}") if segment else ("--upstream", str(upstream)))
        ]

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
            environment.update(_proxy_environment(url, store / "ca", inherited))
        elif any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in inherited):
            environment.update(_no_proxy(inherited))
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
    if wishes.upstream is not None:
        whole = Upstream.parse(wishes.upstream)
    else:
        whole = None
        _refuse_proxy(environment, parsed.values())
    if mode == "forward":
        near = sorted({str(target) for target in parsed.values() if target.host in _LOOPBACK})
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
        root = re.sub(r"/v\d+\w*$", "", whole.prefix)
        bare = whole.host == "chatgpt.com"  # that backend has no version in its paths
        bases = {provider: root + ("" if bare else target.suffix) for provider, target in targets.items()}
        return {"": Upstream(scheme=whole.scheme, host=whole.host, port=whole.port)}, bases
    routes: dict[str, Upstream] = {}
    bases = {}
    for provider, target in parsed.items():
        origin = Upstream(scheme=target.scheme, host=target.host, port=target.port)
        # The host and the path stay visible to the agent: some look for a name or for /v1 in their base URL.
        segment = re.sub(r"[^\w.-]", "-", origin.authority)
        if routes.setdefault(segment, origin) != origin:
            segment = f"{origin.scheme}-{segment}"
            routes[segment] = origin
        bases[provider] = f"/{segment}{target.prefix}"
    return routes, bases


def _refuse_proxy(environment: Mapping[str, str], upstreams: Iterable[Upstream]) -> None:
    name = next((name for name in _PROXIES if environment.get(name)), None)
    if name is None:
        return
    kept = [entry.strip().lstrip("*").lstrip(".").lower() for entry in _no_proxy_entries(environment)]
    for upstream in upstreams:
        host = upstream.host
        if host in _LOOPBACK or any(not entry or host == entry or host.endswith(f".{entry}") for entry in kept):
            continue
        raise LaunchError(
            f"{name} is set, and the recorder reaches {host} directly, not through another proxy: "
            f"run with `env -u {name} …` or NO_PROXY={host} if a direct connection is allowed, or name a gateway "
            "by --upstream"
        )


def _no_proxy_entries(environment: Mapping[str, str]) -> list[str]:
    text = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _no_proxy(inherited: Mapping[str, str]) -> dict[str, str]:
    value = ",".join(dict.fromkeys([*_no_proxy_entries(inherited), *_LOOPBACK]))
    return {"no_proxy": value, "NO_PROXY": value}


def _proxy_environment(url: str, authority: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    bundle = str(authority / "bundle.pem")  # the recorder merged into it what the user's variables named
    found = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), url)
    found.update(_no_proxy(inherited))
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
    if shutil.which(plan.situation.command[0], path=plan.situation.environment.get("PATH")) is None:
        raise LaunchError(f"{plan.situation.command[0]}: not found; is it installed and on PATH?")
    label = secrets.token_hex(8)
    began_ns = time.time_ns()
    version = AgentVersion(plan.agent, plan.situation)
    try:
        work = tempfile.TemporaryDirectory(prefix="agentdyno-run-", ignore_cleanup_errors=True)
    except OSError as fault:
        raise NotRecording(f"no folder for temporary files: {fault.strerror or fault}; set TMPDIR") from fault
    with work as folder:
        recorder = RecorderProcess(
            options=plan.serve_options(),
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
            store, label, plan.agent, since_ns=began_ns, restarts=recorder.restarts, relayed=recorder.relayed
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
