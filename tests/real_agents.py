"""Real coding agents for the tests: how each is installed, pointed at a recorder and run without a person."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from capture.script import Script, ScriptedCall, Step

ROOT = Path(__file__).parent.parent
MANIFEST = Path(__file__).parent / "agents"
OLDEST_NODE = (20, 6)  # what pi asks for; Claude Code and Codex are native programs
KEY = "sk-scripted-0000"  # never leaves loopback


class Unavailable(Exception):
    """An agent cannot be had on this machine; the text says why."""


def install_npm_agents() -> Path:
    """Folder of the agents' programs, installed once per lock file into the checkout's .cache.

    Raises Unavailable where npm, a supported node or the package index is missing.
    """
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
    # Install scripts stay off: npm 11 asks before it runs any, and only Claude Code needs one, which is run by name.
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
    claude = folder / "node_modules" / "@anthropic-ai" / "claude-code"
    subprocess.run([node, "install.cjs"], cwd=claude, capture_output=True, check=True, timeout=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start an agent."""

    command: list[str]
    environment: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """A real agent. `find` gives the folder with its program, or raises Unavailable."""

    name: str
    harness: str  # what a recording calls it
    api: str
    model: str
    streams: bool
    shell_tool: str
    argument: str  # name of the shell tool's argument that holds the command
    parallel: bool  # runs the calls of one answer side by side
    finish: str | None  # a command that ends the session; None: an answer without a call does
    find: Callable[[], Path]
    launch: Callable[[Path, str, Path], Launch]  # programs, base URL without a path, home

    def call(self, command: str) -> ScriptedCall:
        """A call of the agent's shell tool."""
        arguments = {self.argument: command}
        if self.name == "claude-code":
            arguments["description"] = "Runs a scripted command"
        return ScriptedCall(name=self.shell_tool, arguments=json.dumps(arguments))

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
        end = Step(text="All steps are done.", calls=() if self.finish is None else (self.call(self.finish),))
        return Script(steps=(*steps, end))


def run(agent: Agent, base_url: str, folder: Path, prompt: str = "Run the steps.") -> subprocess.CompletedProcess[str]:
    """Runs an agent in `folder`/work with a home of its own, and waits for its end."""
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
    return subprocess.run(
        [*launch.command, prompt],
        cwd=work,
        env=environment | launch.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def _claude(programs: Path, base_url: str, home: Path) -> Launch:
    command = [str(programs / "claude"), "-p", "--model", "claude-sonnet-4-5", "--dangerously-skip-permissions"]
    return Launch(
        command=command,
        environment={
            "ANTHROPIC_BASE_URL": base_url,
            "ANTHROPIC_AUTH_TOKEN": KEY,
            "CLAUDE_CONFIG_DIR": str(home / ".claude"),
            "CLAUDE_CODE_GATEWAY_HINT_HEADERS": "1",  # declares how long each tool took
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "IS_SANDBOX": "1",  # or it refuses to skip permissions for root, which a container often is
        },
    )


def _codex(programs: Path, base_url: str, home: Path) -> Launch:
    folder = home / ".codex"
    folder.mkdir(exist_ok=True)
    # Codex reads the system's whole certificate bundle anew for each request, 10 to 20 ms that are no tool's time.
    # Loopback speaks no TLS, so it gets an empty one.
    certificates = home / "no-certificates.pem"
    certificates.touch()
    provider = (
        f'{{name="scripted",base_url="{base_url}/v1",wire_api="responses",'
        'env_key="SCRIPTED_KEY",supports_websockets=false}'
    )
    settings = {
        "model_provider": '"scripted"',
        "model_providers.scripted": provider,
        "features.shell_snapshot": "false",
        "allow_login_shell": "false",
        "analytics.enabled": "false",
    }
    command = [str(programs / "codex"), "exec", "--skip-git-repo-check", "--ephemeral", "-m", "gpt-5.1-codex"]
    command += ["--dangerously-bypass-approvals-and-sandbox"]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    return Launch(
        command=command,
        environment={"CODEX_HOME": str(folder), "SCRIPTED_KEY": KEY, "SSL_CERT_FILE": str(certificates)},
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
    return Launch(
        command=[str(programs / "pi"), "-p", "--provider", "scripted", "--model", "scripted-model"],
        environment={"PI_CODING_AGENT_DIR": str(folder), "PI_OFFLINE": "1"},
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


AGENTS = (
    Agent(
        name="claude-code",
        harness="claude-code",
        api="anthropic.messages",
        model="claude-sonnet-4-5",
        streams=True,
        shell_tool="Bash",
        argument="command",
        parallel=False,
        finish=None,
        find=install_npm_agents,
        launch=_claude,
    ),
    Agent(
        name="codex",
        harness="codex",
        api="openai.responses",
        model="gpt-5.1-codex",
        streams=True,
        shell_tool="exec_command",
        argument="cmd",
        parallel=True,
        finish=None,
        find=install_npm_agents,
        launch=_codex,
    ),
    Agent(
        name="pi",
        harness="pi",
        api="openai.chat",
        model="scripted-model",
        streams=True,
        shell_tool="bash",
        argument="command",
        parallel=True,
        finish=None,
        find=install_npm_agents,
        launch=_pi,
    ),
    Agent(
        name="mini-swe-agent",
        harness="unknown",  # litellm's requests name no agent
        api="openai.chat",
        model="scripted-model",
        streams=False,
        shell_tool="bash",
        argument="command",
        parallel=False,
        finish="echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT",
        find=_find_mini,
        launch=_mini,
    ),
)
