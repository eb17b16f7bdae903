"""Runs an agent behind a recorder of its own: base URLs in its environment, the terminal in its hands.

The recorder is a process in a session of its own, so Ctrl-C reaches the agent alone; it stops when we are gone, by
the end of its stdin. If it dies while the agent works it is started again on the same port: agents retry a refused
connection, so a restart costs them a second, not the session.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from capture.reader import JournalReader
from capture.store import Store
from capture.upstream import Upstream, UpstreamError

_START_S = 30.0
_STOP_S = 15.0
_RESTARTS = 5
_MODEL_PATHS = (
    "/messages",
    "/chat/completions",
    "/responses",
    "/completions",
    ":generateContent",
    ":streamGenerateContent",
)
_ANTHROPIC, _OPENAI, _GEMINI = "anthropic", "openai", "gemini"
_PUBLIC = {
    _ANTHROPIC: "https://api.anthropic.com",
    _OPENAI: "https://api.openai.com/v1",
    _GEMINI: "https://generativelanguage.googleapis.com",
}
_VARIABLES = {
    _ANTHROPIC: ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_BASE"),
    _OPENAI: ("OPENAI_BASE_URL", "OPENAI_API_BASE"),
    _GEMINI: ("GOOGLE_GEMINI_BASE_URL", "GEMINI_API_BASE"),
}
_CHATGPT = "https://chatgpt.com/backend-api/codex"


class LaunchError(RuntimeError):
    """The recorder did not start, or the agent cannot be run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the agent will be told; decided before anything starts."""

    routes: Mapping[str, Upstream]  # first path segment → upstream; the segment "" stands for any path
    bases: Mapping[str, str]  # provider → path of its base URL on the recorder
    command: tuple[str, ...]
    settings_name_url: bool = False  # the agent's settings files hold a base URL of their own

    def serve_arguments(self) -> list[str]:
        """Options of `capture serve`."""
        return [
            word
            for segment, upstream in self.routes.items()
            for word in (("--route", f"{segment}={upstream}") if segment else ("--upstream", str(upstream)))
        ]

    def environment(self, url: str, inherited: Mapping[str, str]) -> dict[str, str]:
        """The agent's environment with the recorder at `url`."""
        environment = dict(inherited)
        for provider, path in self.bases.items():
            main, *others = _VARIABLES[provider]
            environment[main] = url + path
            for other in others:  # litellm reads the second name first where it is set
                if other in environment or provider == _OPENAI:
                    environment[other] = url + path
        # Measured tool times on the wire; by default Claude Code sends them to its own provider only.
        environment.setdefault("CLAUDE_CODE_GATEWAY_HINT_HEADERS", "1")
        bypass = [
            entry for entry in (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(",") if entry
        ]
        if any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in environment):
            value = ",".join(dict.fromkeys([*bypass, "127.0.0.1", "localhost"]))
            environment["no_proxy"] = environment["NO_PROXY"] = value
        return environment

    def agent_command(self, url: str) -> list[str]:
        """The agent's command line with the recorder at `url`."""
        name = Path(self.command[0]).name
        if name == "codex":
            return [self.command[0], *_codex_overrides(url + self.bases[_OPENAI]), *self.command[1:]]
        if name == "claude" and self.settings_name_url and "--settings" not in self.command:
            # Base URLs in Claude Code's settings files win over the environment; this option wins over the files.
            own = {"env": {"ANTHROPIC_BASE_URL": url + self.bases[_ANTHROPIC]}}
            return [self.command[0], "--settings", json.dumps(own), *self.command[1:]]
        return list(self.command)


def plan_launch(command: list[str], *, upstream: str | None, environment: Mapping[str, str]) -> Plan:
    """Which upstream each provider's calls go to. UpstreamError where an address is not usable.

    A base URL that the agent's environment names already becomes the upstream, else the provider's public one.
    """
    settings_url = _claude_settings_url(command, environment)
    if upstream is not None:
        whole = Upstream.parse(upstream)
        root = whole.prefix.removesuffix("/v1")
        bases = {_ANTHROPIC: root, _OPENAI: f"{root}/v1", _GEMINI: root}
        origin = Upstream(scheme=whole.scheme, host=whole.host, port=whole.port)
        return Plan(
            routes={"": origin}, bases=bases, command=tuple(command), settings_name_url=settings_url is not None
        )
    routes: dict[str, Upstream] = {}
    bases = {}
    for provider, variables in _VARIABLES.items():
        named = next((environment[name] for name in variables if environment.get(name)), None)
        if provider == _OPENAI and named is None and _uses_chatgpt_login(command, environment):
            named = _CHATGPT
        if provider == _ANTHROPIC and settings_url is not None:
            named = settings_url
        try:
            target = Upstream.parse(named or _PUBLIC[provider])
        except UpstreamError as fault:
            raise UpstreamError(f"{'/'.join(variables)} in the environment: {fault}") from fault
        # The path stays visible to the agent: some look for /v1 at the end of their base URL.
        routes[provider] = Upstream(scheme=target.scheme, host=target.host, port=target.port)
        bases[provider] = f"/{provider}{target.prefix}"
    return Plan(routes=routes, bases=bases, command=tuple(command), settings_name_url=settings_url is not None)


def launch(command: list[str], *, store: Store, upstream: str | None, say: Callable[[str], None]) -> int:
    """Run `command` recorded into `store`; returns its exit code (128 + n where signal n ended it)."""
    plan = plan_launch(command, upstream=upstream, environment=os.environ)
    label = secrets.token_hex(8)
    with _RecorderProcess(plan, store, label, say) as recorder:
        url = recorder.url
        code = _run_agent(plan.agent_command(url), plan.environment(url, os.environ))
    _summarise(store, label, say, restarts=recorder.restarts, exit_code=recorder.exit_code)
    return code


@dataclass(slots=True)
class _RecorderProcess:
    """`capture serve` as a child that is kept alive."""

    plan: Plan
    store: Store
    label: str
    say: Callable[[str], None]
    url: str = ""
    restarts: int = 0
    exit_code: int | None = None
    _process: subprocess.Popen[bytes] | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _watch: threading.Thread | None = None

    def __enter__(self) -> _RecorderProcess:
        self.url = self._start("127.0.0.1:0")
        self._watch = threading.Thread(target=self._keep_alive, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        process = self._process
        assert process is not None
        process.terminate()
        try:
            self.exit_code = process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            self.exit_code = process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _start(self, listen: str) -> str:
        with tempfile.TemporaryDirectory(prefix="agentdyno-run-") as folder:
            ready = Path(folder) / "ready"
            self._process = subprocess.Popen(
                [
                    # -P: the agent's folder may hold modules of our names.
                    *(sys.executable, "-P", "-c", "from capture.command import capture; capture()", "serve"),
                    *self.plan.serve_arguments(),
                    *("--listen", listen, "--store", str(self.store.path), "--ready-file", str(ready)),
                    *("--label", self.label, "--stop-with-stdin"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C belongs to the agent
                env={**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])},
            )
            deadline = time.monotonic() + _START_S
            while not ready.exists():
                if self._process.poll() is not None:
                    raise LaunchError("the recorder did not start; its own words are above")
                if time.monotonic() > deadline:
                    self._process.kill()
                    self._process.wait()
                    raise LaunchError(f"the recorder did not start within {_START_S:.0f} s")
                time.sleep(0.01)
            return ready.read_text().strip()

    def _keep_alive(self) -> None:
        listen = self.url.removeprefix("http://")
        while not self._stopping.is_set() and self._process is not None:
            self._process.wait()
            if self._stopping.is_set() or self.restarts >= _RESTARTS:
                return
            self.restarts += 1
            self.say(f"the recorder ended unexpectedly; starting it again at {self.url}")
            with suppress(LaunchError):
                self._start(listen)


def _run_agent(command: list[str], environment: dict[str, str]) -> int:
    try:
        process = subprocess.Popen(command, env=environment)
    except FileNotFoundError as fault:
        raise LaunchError(f"{command[0]}: not found; is it installed and on PATH?") from fault
    except OSError as fault:
        raise LaunchError(f"{command[0]}: {fault.strerror or fault}") from fault

    def forward(number: int, _: object) -> None:
        process.send_signal(number)

    # The terminal sends Ctrl-C and Ctrl-\ to the agent itself; what is sent to us alone is passed on.
    before = {
        number: signal.signal(number, handler)
        for number, handler in (
            (signal.SIGINT, signal.SIG_IGN),
            (signal.SIGQUIT, signal.SIG_IGN),
            (signal.SIGTERM, forward),
            (signal.SIGHUP, forward),
        )
    }
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _summarise(store: Store, label: str, say: Callable[[str], None], *, restarts: int, exit_code: int | None) -> None:
    exchanges = gaps = 0
    calls: Counter[str] = Counter()
    for path in reversed(store.journals()):
        with JournalReader(path) as reader:
            if reader.meta.get("label") != label:
                continue
            tally = reader.tally()
        exchanges += len(tally.exchanges)
        gaps += tally.gaps
        for method, target, _ in tally.exchanges:
            bare = target.partition("?")[0]
            if method == "POST" and bare.endswith(_MODEL_PATHS):
                calls[bare] += 1
    by_path = ", ".join(f"{path} {count}" for path, count in calls.most_common())
    say(
        f"{_count(exchanges, 'exchange')}, {_count(calls.total(), 'model call')}"
        f"{f' ({by_path})' if by_path else ''}, {_count(gaps, 'gap')}; store {store.path}"
    )
    if not calls:
        say("no model call passed the recorder: does the agent take its base URL from its own configuration?")
    if restarts:
        say(f"the recorder was started again {_count(restarts, 'time')}; calls under way just then are incomplete")
    if exit_code:
        say("the recording is not complete; see the line above that says why")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _claude_settings_url(command: list[str], environment: Mapping[str, str]) -> str | None:
    """ANTHROPIC_BASE_URL as Claude Code's settings files give it, the nearest file first; None for other agents."""
    if Path(command[0]).name != "claude":
        return None
    home = Path(environment.get("CLAUDE_CONFIG_DIR") or Path.home() / ".claude")
    for file in (Path(".claude/settings.local.json"), Path(".claude/settings.json"), home / "settings.json"):
        try:
            url = json.loads(file.read_text())["env"]["ANTHROPIC_BASE_URL"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(url, str) and url:
            return url
    return None


def _uses_chatgpt_login(command: list[str], environment: Mapping[str, str]) -> bool:
    """Whether Codex would talk to ChatGPT's backend: it is logged in there and holds no API key."""
    if Path(command[0]).name != "codex" or environment.get("OPENAI_API_KEY"):
        return False
    home = Path(environment.get("CODEX_HOME") or Path.home() / ".codex")
    try:
        login = json.loads((home / "auth.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(login, dict) and bool(login.get("tokens")) and not login.get("OPENAI_API_KEY")


def _codex_overrides(base_url: str) -> list[str]:
    """Options that give Codex a provider of its own: the built-in one cannot be told to leave WebSockets alone."""
    provider = {
        "name": "OpenAI",
        "base_url": base_url,
        "wire_api": "responses",
        "supports_websockets": False,
    }
    if os.environ.get("OPENAI_API_KEY"):
        provider["env_key"] = "OPENAI_API_KEY"
    else:
        provider["requires_openai_auth"] = True
    settings = {"model_provider": "agentdyno"}
    pairs = [*settings.items(), *((f"model_providers.agentdyno.{name}", value) for name, value in provider.items())]
    # A JSON string or boolean is also TOML, which is what -c takes.
    return [word for name, value in pairs for word in ("-c", f"{name}={json.dumps(value)}")]
