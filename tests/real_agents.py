"""Real coding agents for the tests: how each is installed, pointed at a recorder and run without a person."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from capture.script import Script, ScriptedCall, Step, ToolResult

ROOT = Path(__file__).parent.parent
MANIFEST = Path(__file__).parent / "agents"
OLDEST_NODE = (20, 6)  # what pi asks for; Claude Code and Codex are native programs
INSTALL_SCRIPTS = (("@anthropic-ai/claude-code", "install.cjs"), ("opencode-ai", "postinstall.mjs"))
KEY = "sk-scripted-0000"  # never leaves loopback


class Unavailable(Exception):
    """An agent cannot be had on this machine; the text says why."""


_installing = threading.Lock()
_in_vain: list[Unavailable] = []


def install_npm_agents() -> Path:
    """Folder of the agents' programs, installed once per lock file into the checkout's .cache.

    Raises Unavailable where npm, a supported node or the package index is missing; that is tried once per process.
    """
    with _installing:
        if _in_vain:
            raise _in_vain[0]
        try:
            return _install_npm_agents()
        except Unavailable as reason:
            _in_vain.append(reason)
            raise


def _install_npm_agents() -> Path:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        raise Unavailable(f"{'npm' if npm is None else 'node'} is not on PATH")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    found = re.match(r"v(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_NODE:
        raise Unavailable(f"node {version} is older than {OLDEST_NODE[0]}.{OLDEST_NODE[1]}")
    lock = (MANIFEST / "package-lock.json").read_bytes()
    place = f"{sys.platform}-{platform.machine()}"
    folder = ROOT / ".cache" / "agents" / f"{hashlib.sha256(lock).hexdigest()[:16]}-{place}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _npm_ci(npm, node, partial)
            try:
                partial.rename(folder)
            except OSError:
                if not folder.exists():  # else another test run was faster, with the same packages
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder / "node_modules" / ".bin"


def _npm_ci(npm: str, node: str, folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(MANIFEST / name, folder / name)
    # Install scripts stay off: npm 11 asks before it runs any; the two that are needed are run by name.
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=240)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"npm ci took longer than {error.timeout} s") from error
    if done.returncode != 0:
        said = done.stderr.strip()[-600:]
        if re.search(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|E50\d|E40[134]\b", said):
            raise Unavailable(f"npm ci cannot reach its package index: {said}")
        raise AssertionError(f"npm ci failed: {said}")
    for package, script in INSTALL_SCRIPTS:
        where = folder / "node_modules" / package
        subprocess.run([node, script], cwd=where, capture_output=True, check=True, timeout=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start an agent."""

    command: list[str]
    environment: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A real agent. `find` gives the folder with its program, or raises Unavailable."""

    name: str
    program: str
    harness: str  # what a recording calls it that knows nothing but the wire
    api: str
    model: str
    transport: str  # how its answers come: sse, http or websocket
    shell_tool: str
    argument: str  # name of the shell tool's argument that holds the command
    parallel: bool  # runs the calls of one answer side by side
    finish: str | None  # a command that ends the session; None: an answer without a call does
    find: Callable[[], Path]
    # Programs, base URL without a path ("" for the provider's own, where the agent has one), home.
    launch: Callable[[Path, str, Path], Launch]
    overhead_ms: int | None = 50  # own work beside a command, at most; None: it takes what it takes
    spawn_tool: str | None = None  # None: it has no sub-agents
    wait_tool: str | None = None  # its sub-agents run by themselves, and this tool waits for one
    compacts: bool = False  # summarises its context by itself, without a person
    compacts_after: bool = False  # only at the end of a turn: it needs a second prompt to go on
    summary_beside: bool = False  # asks for the summary in a call of its own, not at the end of the conversation
    titles: bool = False  # asks for a title of the session

    @property
    def streams(self) -> bool:
        """Whether answers come in pieces."""
        return self.transport != "http"

    def call(self, command: str) -> ScriptedCall:
        """A call of the agent's shell tool."""
        arguments = {self.argument: command}
        if self.shell_tool in ("Bash", "bash") and self.name in ("claude-code", "opencode"):
            arguments["description"] = "Runs a scripted command"
        return ScriptedCall(name=self.shell_tool, arguments=json.dumps(arguments))

    def spawn(self, task: str) -> ScriptedCall:
        """A call that gives a task to a new sub-agent."""
        assert self.spawn_tool is not None
        if self.wait_tool is not None:
            message = json.dumps({"message": task})
            return ScriptedCall(name=self.spawn_tool, arguments=message, namespace="multi_agent_v1")
        kind = "general-purpose" if self.name == "claude-code" else "general"
        arguments = {"description": "A scripted task", "prompt": task, "subagent_type": kind}
        # Claude Code goes on at once otherwise, and is told of the result as of a person's words.
        background = {"run_in_background": False} if self.name == "claude-code" else {}
        return ScriptedCall(name=self.spawn_tool, arguments=json.dumps(arguments | background))

    def wait(self, results: tuple[ToolResult, ...]) -> tuple[ScriptedCall, ...]:
        """Calls that wait for each sub-agent that the results of `spawn` name."""
        assert self.wait_tool is not None
        named = [json.loads(result.text).get("agent_id") for result in results if result.text.startswith("{")]
        return tuple(
            ScriptedCall(name=self.wait_tool, arguments=json.dumps({"targets": [agent]}), namespace="multi_agent_v1")
            for agent in named
            if agent
        )

    def script(self, commands: tuple[tuple[str, ...], ...]) -> Script:
        """One answer per group of commands, then the end."""
        steps = [
            Step(
                text=f"Step {number} of the script.",
                reasoning="The script says what comes next." if number == 1 else "",
                calls=tuple(self.call(command) for command in group),
                first_content_ms=40 + 20 * number,
                between_ms=3,
            )
            for number, group in enumerate(commands, start=1)
        ]
        return Script(steps=(*steps, self.end()))

    def end(self) -> Step:
        """The answer that ends a session."""
        return Step(text="All steps are done.", calls=() if self.finish is None else (self.call(self.finish),))

    def version(self) -> str:
        """Version of the program that `find` finds, as it says itself."""
        programs = self.find()
        if self.name == "mini-swe-agent":
            return importlib.metadata.version("mini-swe-agent")
        command = [str(programs / self.program), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
        assert found is not None, done.stdout
        return found[0]


def start(
    agent: Agent, base_url: str, folder: Path, *prompts: str, recorder: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """Starts an agent in `folder`/work with a home of its own, by way of the command line `recorder` where given."""
    programs = agent.find()
    home, work = folder / "home", folder / "work"
    home.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    launch = agent.launch(programs, base_url, home)
    # A made-up environment: no proxy, key or setting of the person who runs the tests reaches the agent.
    environment = {
        "HOME": str(home),
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "SHELL": shutil.which("bash") or "/bin/sh",
        "TMPDIR": str(folder),
        "NO_PROXY": "127.0.0.1,localhost",
    }
    return subprocess.Popen(
        [*recorder, *launch.command, *(prompts or ("Run the steps.",))],
        cwd=work,
        env=environment | launch.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    agent: Agent, base_url: str, folder: Path, *prompts: str, recorder: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs an agent as `start` does, and waits for its end."""
    with start(agent, base_url, folder, *prompts, recorder=recorder) as process:
        try:
            said, warned = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, said, warned)


def _claude(programs: Path, base_url: str, home: Path) -> Launch:
    command = [str(programs / "claude"), "-p", "--model", "claude-sonnet-4-5", "--dangerously-skip-permissions"]
    told = {"ANTHROPIC_BASE_URL": base_url, "ANTHROPIC_AUTH_TOKEN": KEY} if base_url else {"ANTHROPIC_API_KEY": KEY}
    return Launch(
        command=command,
        environment={
            **told,
            "CLAUDE_CONFIG_DIR": str(home / ".claude"),
            "CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1",  # declares how long each tool took
            "CLAUDE_CODE_AUTO_COMPACT_WINDOW": "100000",  # the least it takes
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "IS_SANDBOX": "1",  # or it refuses to skip permissions for root, which a container often is
        },
    )


def _codex(programs: Path, base_url: str, home: Path, *, websockets: bool = False) -> Launch:
    folder = home / ".codex"
    folder.mkdir(exist_ok=True)
    provider = f"""
model_provider = "scripted"
[model_providers.scripted]
name = "scripted"
base_url = "{base_url}/v1"
wire_api = "responses"
env_key = "SCRIPTED_KEY"
supports_websockets = {str(websockets).lower()}
"""
    settings = """\
model = "gpt-5.1-codex"
model_auto_compact_token_limit = 80000
allow_login_shell = false
analytics.enabled = false
features.shell_snapshot = false
agents.max_depth = 3
"""
    (folder / "config.toml").write_text(settings + (provider if base_url else ""), encoding="utf-8")
    command = [str(programs / "codex"), "exec", "--skip-git-repo-check", "--ephemeral"]
    command += ["--dangerously-bypass-approvals-and-sandbox"]
    key = "SCRIPTED_KEY" if base_url else "CODEX_API_KEY"
    return Launch(command=command, environment={"CODEX_HOME": str(folder), key: KEY})


def _codex_websockets(programs: Path, base_url: str, home: Path) -> Launch:
    return _codex(programs, base_url, home, websockets=True)


def _codex_built_in(programs: Path, base_url: str, home: Path) -> Launch:
    assert not base_url, "its built-in provider takes no base URL"
    return _codex(programs, "", home)


def _opencode(programs: Path, base_url: str, home: Path) -> Launch:
    folder = home / ".config" / "opencode"
    folder.mkdir(parents=True, exist_ok=True)
    model = {"name": "scripted", "limit": {"context": 128000, "output": 8000}, "tool_call": True}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "scripted",
        "options": {"baseURL": f"{base_url}/v1", "apiKey": KEY},
        "models": {"scripted-model": model},
    }
    settings = {
        "autoupdate": False,
        "share": "disabled",
        "snapshot": False,
        "lsp": False,
        "formatter": False,
        "model": "scripted/scripted-model",
        "small_model": "scripted/scripted-model",
        "permission": {"*": "allow"},
        "subagent_depth": 3,
        "agent": {"general": {"permission": {"task": "allow"}}},
        "provider": {"scripted": provider},
    }
    (folder / "opencode.json").write_text(json.dumps(settings), encoding="utf-8")
    return Launch(
        command=[str(programs / "opencode"), "run"],
        environment={"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
    )


def _pi(programs: Path, base_url: str, home: Path) -> Launch:
    folder = home / ".pi" / "agent"
    folder.mkdir(parents=True, exist_ok=True)
    model = {
        "id": "scripted-model",
        "name": "scripted",
        "reasoning": False,
        "input": ["text"],
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        "contextWindow": 128000,
        "maxTokens": 8000,
    }
    provider = {"baseUrl": f"{base_url}/v1", "api": "openai-completions", "apiKey": KEY, "models": [model]}
    (folder / "models.json").write_text(json.dumps({"providers": {"scripted": provider}}), encoding="utf-8")
    # It keeps so many tokens of the latest turns out of a summary; a scripted session has no more than a few.
    settings = {"compaction": {"enabled": True, "keepRecentTokens": 10}}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return Launch(
        command=[str(programs / "pi"), "-p", "--provider", "scripted", "--model", "scripted-model"],
        environment={"PI_CODING_AGENT_DIR": str(folder), "PI_OFFLINE": "1"},
    )


def _gemini(programs: Path, base_url: str, home: Path) -> Launch:
    folder = home / ".gemini"
    folder.mkdir(exist_ok=True)
    settings = {
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"disableAutoUpdate": True},
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return Launch(
        command=[str(programs / "gemini"), "-y", "-m", "gemini-2.5-pro", "-p"],
        environment={
            "GOOGLE_GEMINI_BASE_URL": base_url,
            "GEMINI_API_KEY": KEY,
            "GEMINI_CLI_TRUST_WORKSPACE": "true",
        },
    )


def _find_mini() -> Path:
    for name in ("minisweagent", "mcp"):
        if importlib.util.find_spec(name) is None:
            raise Unavailable(f"the Python package {name} is not installed")
    return Path(sys.executable).parent


def _mini(programs: Path, base_url: str, home: Path) -> Launch:
    command = [str(programs / "mini"), "-y", "--exit-immediately", "-m", "openai/scripted-model", "-l", "0"]
    command += ["-o", str(home / "trajectory.json"), "-t"]
    return Launch(
        command=command,
        environment={
            "OPENAI_API_KEY": KEY,
            "OPENAI_API_BASE": f"{base_url}/v1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks the network for prices, three times over
            "MSWEA_CONFIGURED": "true",
            "MSWEA_COST_TRACKING": "ignore_errors",
            "MSWEA_GLOBAL_CONFIG_DIR": str(home),
        },
    )


CLAUDE_CODE = Agent(
    name="claude-code",
    program="claude",
    harness="claude-code",
    api="anthropic.messages",
    model="claude-sonnet-4-5",
    transport="sse",
    shell_tool="Bash",
    argument="command",
    parallel=False,
    finish=None,
    find=install_npm_agents,
    launch=_claude,
    spawn_tool="Agent",
    compacts=True,
)
CODEX = Agent(
    name="codex",
    program="codex",
    harness="codex",
    api="openai.responses",
    model="gpt-5.1-codex",
    transport="sse",
    shell_tool="exec_command",
    argument="cmd",
    parallel=True,
    finish=None,
    find=install_npm_agents,
    launch=_codex,
    overhead_ms=80,  # it reads the system's certificate bundle anew for each request
    spawn_tool="spawn_agent",
    wait_tool="wait_agent",
    compacts=True,
)
CODEX_WEBSOCKETS = replace(CODEX, name="codex-websockets", transport="websocket", launch=_codex_websockets)
CODEX_BUILT_IN = replace(CODEX, name="codex-built-in", launch=_codex_built_in)  # the provider OpenAI, as by default
OPENCODE = Agent(
    name="opencode",
    program="opencode",
    harness="opencode",
    api="openai.chat",
    model="scripted-model",
    transport="sse",
    shell_tool="bash",
    argument="command",
    parallel=True,
    finish=None,
    find=install_npm_agents,
    launch=_opencode,
    overhead_ms=None,
    spawn_tool="task",
    compacts=True,
    summary_beside=True,
    titles=True,
)
PI = Agent(
    name="pi",
    program="pi",
    harness="pi",
    api="openai.chat",
    model="scripted-model",
    transport="sse",
    shell_tool="bash",
    argument="command",
    parallel=True,
    finish=None,
    find=install_npm_agents,
    launch=_pi,
    compacts=True,
    compacts_after=True,
    summary_beside=True,
)
GEMINI_CLI = Agent(
    name="gemini-cli",
    program="gemini",
    harness="gemini-cli",
    api="google.gemini",
    model="gemini-2.5-pro",
    transport="sse",
    shell_tool="run_shell_command",
    argument="command",
    parallel=False,
    finish=None,
    find=install_npm_agents,
    launch=_gemini,
    overhead_ms=None,
    spawn_tool="invoke_agent",
)
MINI_SWE_AGENT = Agent(
    name="mini-swe-agent",
    program="mini",
    harness="unknown",  # litellm's requests name no agent; only `capture run` knows
    api="openai.chat",
    model="scripted-model",
    transport="http",
    shell_tool="bash",
    argument="command",
    parallel=False,
    finish="echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT",
    find=_find_mini,
    launch=_mini,
)
AGENTS = (CLAUDE_CODE, CODEX, OPENCODE, PI, GEMINI_CLI, MINI_SWE_AGENT)
