"""The table of agents: who a command line starts, where its calls would go, how it is told of a recorder."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from capture.agents.agent import Situation, parse_json, read_dotenv
from capture.agents.table import AGENTS, find_agent
from capture.agents.version import AgentVersion, read_version
from capture.launch import LaunchError, Plan, Wishes, plan_launch

URL = "http://127.0.0.1:5"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path


def plan(home: Path, *command: str, wishes: Wishes | None = None, **environment: str) -> Plan:
    inherited = {"HOME": str(home), "PATH": "/usr/bin:/bin", **environment}
    return plan_launch(command, wishes=wishes or Wishes(), environment=inherited, folder=home / "work")


def told(planned: Plan, home: Path) -> tuple[dict[str, str], list[str]]:
    change = planned.change(URL, store=home / "store", work=home)
    return dict(change.environment), list(change.command)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


# Recognition.


@pytest.mark.parametrize(
    ("line", "name", "at"),
    [
        ("claude -p hi", "claude-code", 0),
        ("/opt/bin/codex exec hi", "codex", 0),
        ("npx -y @openai/codex@0.169.0 exec", "codex", 2),
        ("npx --yes opencode-ai run", "opencode", 2),
        ("bunx @google/gemini-cli", "gemini-cli", 1),
        ("pnpm dlx @anthropic-ai/claude-code -p hi", "claude-code", 2),
        ("uvx mini-swe-agent -y", "mini-swe-agent", 1),
        ("uvx --from aider-chat aider --yes", "aider", 3),
        ("npx -p @openai/codex codex exec", "codex", 3),
        ("uv run aider", "aider", 2),
        ("uv tool run mini", "mini-swe-agent", 3),
        ("python3 -m minisweagent.run.mini -t x", "mini-swe-agent", 2),
        ("python3.13 -m aider", "aider", 2),
        ("env A=1 B=2 claude", "claude-code", 3),
        ("env -u X nice -n 5 pi", "pi", 6),
        ("node /x/node_modules/@earendil-works/pi-coding-agent/dist/cli.js -p hi", "pi", 1),
        ("npx @qwen-code/qwen-code -p hi", "qwen-code", 1),
        ("copilot -p hi", "copilot-cli", 0),
        ("npx -y @github/copilot@1.0.102", "copilot-cli", 2),
        ("goose run -t hi", "goose", 0),
        ("uvx --from openhands-ai openhands", "openhands", 3),
        ("python -m sweagent run", "swe-agent", 2),
        ("cat claude", "", 0),
        ("git commit -m codex", "", 0),
        ("python3 my_agent.py", "", 0),
        ("python3 -m pytest codex", "", 0),
        ("env", "", 0),
    ],
)
def test_agents_are_known_by_program_and_package(tmp_path: Path, line: str, name: str, at: int) -> None:
    words = tuple(line.split())
    if "/node_modules/" in line:
        script = tmp_path / "node_modules/@earendil-works/pi-coding-agent/dist/cli.js"
        write(script, "")
        words = ("node", str(script), *words[2:])
    agent, index = find_agent(words, {"PATH": ""}, tmp_path)
    assert (agent.name, index) == (name, at)


def test_agents_are_known_behind_links_and_small_scripts(tmp_path: Path) -> None:
    program = tmp_path / "node_modules/@openai/codex/bin/codex.js"
    write(program, "#!/usr/bin/env node\n")
    (tmp_path / "dev").symlink_to(program)
    write(tmp_path / "work.sh", '#!/bin/sh\n# not opencode\nset -e\nexec claude --verbose "$@"\n')
    write(tmp_path / "other.sh", "#!/bin/sh\necho hi\n")
    (tmp_path / "dev").chmod(0o700)
    assert find_agent(("./dev", "exec"), {}, tmp_path)[0].name == "codex"
    assert find_agent(("./work.sh", "-p"), {}, tmp_path)[0].name == "claude-code"
    assert find_agent(("dev",), {"PATH": str(tmp_path)}, Path("/"))[0].name == "codex"
    assert find_agent(("bash", "./work.sh"), {}, tmp_path) == (AGENTS[0], 1)
    assert find_agent(("./other.sh",), {}, tmp_path)[0].name == ""


def test_versions_come_from_files_first(tmp_path: Path) -> None:
    def version(agent: int, word: str) -> str | None:
        return read_version(AGENTS[agent], Situation(command=(word,), at=0, environment={}, folder=tmp_path))

    package = tmp_path / "node_modules/@anthropic-ai/claude-code"
    write(package / "bin/claude", "")
    write(package / "package.json", {"name": "@anthropic-ai/claude-code", "version": "2.1.328"})
    assert version(0, str(package / "bin/claude")) == "2.1.328"
    native = tmp_path / "claude/versions/2.1.300"
    write(native, "")
    assert version(0, str(native)) == "2.1.300"
    write(tmp_path / "venv/bin/mini", "")
    (tmp_path / "venv/lib/python3.13/site-packages/mini_swe_agent-2.4.6.dist-info").mkdir(parents=True)
    assert version(5, str(tmp_path / "venv/bin/mini")) == "2.4.6"
    asked = tmp_path / "bin/codex"
    write(asked, "#!/bin/sh\necho codex-cli 9.8.7\n")
    asked.chmod(0o700)
    asking = AgentVersion(AGENTS[1], Situation(command=(str(asked),), at=0, environment={}, folder=tmp_path))
    assert asking.at_once is None
    asking.ask()
    asking.wait()
    assert asking.late() == "9.8.7"


# What every agent gets.


def test_any_command_is_told_by_its_environment(home: Path) -> None:
    planned = plan(home, "my-agent", ANTHROPIC_BASE_URL="https://gateway.example/x")
    environment, command = told(planned, home)
    assert command == ["my-agent"]
    assert environment["ANTHROPIC_BASE_URL"] == f"{URL}/gateway.example/x"
    assert environment["OPENAI_BASE_URL"] == environment["OPENAI_API_BASE"] == f"{URL}/api.openai.com/v1"
    assert "ANTHROPIC_API_BASE" not in environment
    assert not any("PROXY" in name.upper() for name in environment)
    assert str(planned.routes["gateway.example"]) == "https://gateway.example"


def test_two_servers_of_one_name_are_told_apart(home: Path) -> None:
    planned = plan(home, "x", ANTHROPIC_BASE_URL="http://h:90/a", OPENAI_BASE_URL="https://h:90/v1")
    assert {str(upstream) for upstream in planned.routes.values()} >= {"http://h:90", "https://h:90"}
    assert len(set(planned.bases.values())) == 3


def test_an_upstream_takes_all_providers_each_with_its_own_version(home: Path) -> None:
    for url in ("http://127.0.0.1:9", "http://127.0.0.1:9/v1"):
        planned = plan(home, "pi", wishes=Wishes(upstream=url))
        assert [str(upstream) for upstream in planned.routes.values()] == ["http://127.0.0.1:9"]
        assert planned.bases["anthropic"] == ""
        assert planned.bases["openai"] == "/v1"
        assert planned.bases["google"] == "/v1beta"


def test_forward_mode_gives_a_proxy_and_certificates_and_no_base_url(home: Path) -> None:
    planned = plan(home, "my-agent", wishes=Wishes(mode="forward", hosts=("llm.example",)), no_proxy="intern, ::1")
    environment, _ = told(planned, home)
    assert {environment[name] for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")} == {URL}
    assert environment["NO_PROXY"] == environment["no_proxy"] == "intern,::1,127.0.0.1,localhost"
    assert environment["SSL_CERT_FILE"] == environment["CODEX_CA_CERTIFICATE"] == str(home / "store/ca/bundle.pem")
    assert environment["NODE_EXTRA_CA_CERTS"] == str(home / "store/ca/ca.pem")
    assert environment["NODE_USE_ENV_PROXY"] == "1"
    assert not any("BASE" in name for name in environment)
    assert planned.serve_options() == ["--mode", "forward", "--host", "llm.example"]
    own = plan(home, "x", wishes=Wishes(mode="forward"), NODE_EXTRA_CA_CERTS="/mine.pem")
    assert told(own, home)[0]["NODE_EXTRA_CA_CERTS"].endswith("bundle.pem")  # which the recorder merges it into
    gateway = plan(home, "x", wishes=Wishes(mode="forward"), ANTHROPIC_BASE_URL="https://gateway.example")
    assert "gateway.example:443" in gateway.serve_options()
    near = plan(home, "x", wishes=Wishes(mode="forward"), ANTHROPIC_BASE_URL="http://127.0.0.1:9")
    assert "loopback" in near.warnings[0]


def test_a_proxy_of_the_users_own_stays_between_the_recorder_and_its_upstreams(home: Path) -> None:
    planned = plan(home, "claude", HTTPS_PROXY="http://corp:1", no_proxy="intern,.anthropic.com")
    assert told(planned, home)[0]["NO_PROXY"] == "intern,.anthropic.com,127.0.0.1,localhost,::1"
    with pytest.raises(LaunchError, match="ALL_PROXY names a SOCKS proxy"):
        plan(home, "claude", ALL_PROXY="socks5://corp:1")
    none = plan(home, "claude", ALL_PROXY="socks5://corp:1", NO_PROXY="*")
    assert (none.mode, told(none, home)[0]["NO_PROXY"]) == ("reverse", "*")
    assert plan(home, "claude", ALL_PROXY="socks5://corp:1", wishes=Wishes(upstream="http://127.0.0.1:9"))
    # In forward mode an entry for a host to record would lead the agent past the recorder.
    wishes = Wishes(mode="forward")
    forward = plan(home, "claude", wishes=wishes, HTTPS_PROXY="http://corp:1", no_proxy="intern,.anthropic.com")
    assert told(forward, home)[0]["NO_PROXY"] == "intern,127.0.0.1,localhost,::1"


# Claude Code.


def test_claude_code_is_told_by_environment_and_declares_its_tool_times(home: Path) -> None:
    planned = plan(home, "claude", "-p", "hi")
    environment, command = told(planned, home)
    assert command == ["claude", "-p", "hi"]
    assert environment["ANTHROPIC_BASE_URL"] == f"{URL}/api.anthropic.com"
    assert environment["CLAUDE_CODE_GATEWAY_HINT_HEADERS"] == "1"
    assert environment["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == f"{URL}/otlp/v1/traces"
    for quiet in (
        plan(home, "claude", wishes=Wishes(telemetry=False)),
        plan(home, "claude", OTEL_EXPORTER_OTLP_ENDPOINT="http://mine"),
    ):
        assert not any(name.startswith("OTEL") for name in told(quiet, home)[0])


def test_settings_of_claude_code_do_not_go_past_the_recorder(home: Path) -> None:
    write(home / ".claude/settings.json", {"env": {"ANTHROPIC_BASE_URL": "https://gateway.example/x"}})
    planned = plan(home, "claude", "-p", "hi", ANTHROPIC_BASE_URL="https://other.example")
    assert str(planned.routes["gateway.example"]) == "https://gateway.example"
    _, command = told(planned, home)
    assert command[:2] == ["claude", "--settings"]
    assert json.loads(Path(command[2]).read_text()) == {"env": {"ANTHROPIC_BASE_URL": f"{URL}/gateway.example/x"}}
    write(home / "work/.claude/settings.local.json", {"env": {"ANTHROPIC_BASE_URL": "https://near.example"}})
    own: dict[str, Any] = {"model": "opus", "env": {"A": "b", "ANTHROPIC_AUTH_TOKEN": "key-canary-0"}}
    write(home / "work/own.json", own)
    for given in (json.dumps(own), "own.json"):
        planned = plan(home, "claude", "--settings", given, "-p", "hi")
        _, command = told(planned, home)
        assert command[3:] == ["-p", "hi"]
        made = Path(command[2])
        assert json.loads(made.read_text()) == {
            "model": "opus",
            "env": {**own["env"], "ANTHROPIC_BASE_URL": f"{URL}/near.example"},
        }
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
        assert "key-canary-0" not in " ".join(command)  # a command line can be read by every user of the machine


def test_claude_code_on_other_clouds_is_refused_with_the_way_that_exists(home: Path) -> None:
    with pytest.raises(LaunchError, match=r"Bedrock.*capture import claude-code"):
        plan(home, "claude", CLAUDE_CODE_USE_BEDROCK="1")
    write(home / ".claude/settings.json", {"env": {"CLAUDE_CODE_USE_VERTEX": "1"}})
    with pytest.raises(LaunchError, match="Vertex"):
        plan(home, "claude")
    assert plan(home, "claude", CLAUDE_CODE_USE_BEDROCK="0", CLAUDE_CONFIG_DIR="/none")


# Codex.


def test_codex_gets_a_provider_without_websockets(home: Path) -> None:
    planned = plan(home, "codex", "exec", "hi", wishes=Wishes(upstream="http://127.0.0.1:9/v1"))
    _, command = told(planned, home)
    assert command[-2:] == ["exec", "hi"]
    assert f'model_providers.agentdyno.base_url="{URL}/v1"' in command
    assert "model_providers.agentdyno.supports_websockets=false" in command
    assert "model_providers.agentdyno.requires_openai_auth=true" in command
    assert 'model_provider="agentdyno"' in command
    assert any(word.startswith("otel.exporter=") for word in command)
    with_sockets = plan(home, "codex", wishes=Wishes(websocket=True), OPENAI_API_KEY="sk-x")
    _, command = told(with_sockets, home)
    assert "model_providers.agentdyno.supports_websockets=true" in command
    assert 'model_providers.agentdyno.env_key="OPENAI_API_KEY"' in command
    forward = plan(home, "codex", wishes=Wishes(mode="forward"))
    assert 'model_providers.agentdyno.base_url="https://api.openai.com/v1"' in told(forward, home)[1]


def test_codex_with_a_chatgpt_login_goes_where_that_login_counts(home: Path) -> None:
    write(home / ".codex/auth.json", {"OPENAI_API_KEY": None, "tokens": {"id_token": "x"}})
    planned = plan(home, "codex", OPENAI_API_KEY="sk-not-used-by-codex")
    assert planned.bases["openai"] == "/chatgpt.com/backend-api/codex"
    assert "model_providers.agentdyno.requires_openai_auth=true" in told(planned, home)[1]
    assert plan(home, "codex", CODEX_API_KEY="k").bases["openai"] == "/api.openai.com/v1"


def test_a_provider_of_the_users_own_keeps_its_settings(home: Path) -> None:
    write(
        home / ".codex/config.toml",
        'profile = "work"\n[profiles.work]\nmodel_provider = "corp"\n'
        '[model_providers.corp]\nbase_url = "https://corp.example/v1"\nenv_key = "CORP"\n',
    )
    planned = plan(home, "codex", "exec", "hi")
    assert str(planned.routes["corp.example"]) == "https://corp.example"
    _, command = told(planned, home)
    assert f'model_providers.corp.base_url="{URL}/corp.example/v1"' in command
    assert not any("agentdyno." in word for word in command)
    given = ("codex", "exec", "-c", 'model_provider="x"', "-c", 'model_providers.x={base_url="http://h:1/v1"}', "hi")
    planned = plan(home, *given)
    _, command = told(planned, home)
    assert command[:6] == list(given[:6])  # ours come after the user's: the last one of a key wins
    assert f'model_providers.x.base_url="{URL}/h-1/v1"' in command
    assert command[-1] == "hi"


# opencode, pi, Gemini CLI, litellm.


def test_opencode_gets_inline_configuration_for_what_the_user_has(home: Path) -> None:
    write(
        home / ".config/opencode/opencode.jsonc",
        '{ // mine\n "provider": {"local": {"options": {"baseURL": "http://{env:BOX}:1234/v1",},},},}',
    )
    planned = plan(home, "opencode", ANTHROPIC_API_KEY="k", BOX="box", OPENCODE_CONFIG_CONTENT='{"theme": "x"}')
    environment, _ = told(planned, home)
    assert list(environment) == ["OPENCODE_CONFIG_CONTENT"]
    configuration = json.loads(environment["OPENCODE_CONFIG_CONTENT"])
    assert configuration["theme"] == "x"
    assert configuration["provider"] == {
        "anthropic": {"options": {"baseURL": f"{URL}/api.anthropic.com/v1"}},
        "opencode": {"options": {"baseURL": f"{URL}/opencode.ai/zen/v1"}},
        "local": {"options": {"baseURL": f"{URL}/box-1234/v1"}},
    }  # naming another provider would switch it on
    write(home / ".local/share/opencode/auth.json", {"openai": {"type": "oauth"}})
    planned = plan(home, "opencode")
    assert planned.mode == "forward"
    assert "http://:1234/v1" in planned.warnings[0]  # BOX is not set: only calls to that provider fail
    assert "login to openai" in plan(home, "opencode", wishes=Wishes(mode="reverse"), BOX="box").warnings[0]
    assert plan(home, "opencode", OPENCODE_AUTH_CONTENT="{}", wishes=Wishes()).mode == "reverse"
    assert plan(home, "opencode", "run", "-m", "strange/model", OPENCODE_AUTH_CONTENT="{}").mode == "forward"


def test_pi_gets_an_extension_and_no_file_of_the_users_is_touched(home: Path) -> None:
    models = {
        "providers": {
            "mine": {"baseUrl": "http://10.0.0.5:8000/v1", "api": "openai-completions", "models": [{"id": "m"}]},
            "two": {"baseUrl": "http://a/v1", "models": [{"id": "m", "baseUrl": "http://b/v1"}]},
            "anthropic": {"modelOverrides": {}},
        }
    }
    write(home / ".pi/agent/models.json", models)
    before = (home / ".pi/agent/models.json").read_bytes()
    planned = plan(home, "pi", "-p", "hi")
    environment, command = told(planned, home)
    assert environment == {}
    assert command[0::3][0] == "pi"
    assert command[1] == "-e"
    assert command[3:] == ["-p", "hi"]
    text = Path(command[2]).read_text()
    assert f'pi.registerProvider("mine", {{"baseUrl": "{URL}/10.0.0.5-8000/v1"}});' in text
    assert f'pi.registerProvider("anthropic", {{"baseUrl": "{URL}/api.anthropic.com"}});' in text
    assert '"two"' not in text
    assert (home / ".pi/agent/models.json").read_bytes() == before
    assert plan(home, "pi", "--provider", "two").mode == "forward"
    assert plan(home, "pi", "--model=github-copilot/x").mode == "forward"
    write(home / ".pi/agent/settings.json", {"defaultProvider": "opencode"})
    assert plan(home, "pi").mode == "forward"
    with pytest.raises(LaunchError, match="amazon-bedrock"):
        plan(home, "pi", "--provider", "amazon-bedrock")


def test_gemini_cli_is_told_by_the_variable_of_its_login(home: Path) -> None:
    environment, _ = told(plan(home, "gemini", GEMINI_API_KEY="k"), home)
    assert environment["GOOGLE_GEMINI_BASE_URL"] == f"{URL}/generativelanguage.googleapis.com"
    # With a Google login a base URL would change the kind of login.
    environment, _ = told(plan(home, "gemini"), home)
    assert environment == {"CODE_ASSIST_ENDPOINT": f"{URL}/cloudcode-pa.googleapis.com"}
    write(home / ".gemini/.env", "# mine\nGOOGLE_GEMINI_BASE_URL='https://gateway.example'\nGEMINI_API_KEY=k\n")
    assert "gateway.example" in plan(home, "gemini").routes
    with pytest.raises(LaunchError, match="Vertex"):
        plan(home, "gemini", GOOGLE_GENAI_USE_VERTEXAI="true")


def test_litellm_agents_get_every_name_that_it_reads(home: Path) -> None:
    write(home / ".config/mini-swe-agent/.env", "OPENAI_API_BASE=https://box.example/v1\n")
    environment, _ = told(plan(home, "mini", "-t", "x"), home)
    assert environment["OPENAI_API_BASE"] == environment["OPENAI_BASE_URL"] == f"{URL}/box.example/v1"
    assert environment["ANTHROPIC_API_BASE"] == f"{URL}/api.anthropic.com"
    assert environment["GEMINI_API_BASE"] == f"{URL}/generativelanguage.googleapis.com"


def test_aider_prefers_its_dotenv_files_so_it_is_told_by_an_option(home: Path) -> None:
    write(home / "work/.env", "OPENAI_API_BASE=https://box.example/v1\n")
    planned = plan(home, "aider", "--openai-api-base", "https://nearer.example/v1", "--yes")
    assert "nearer.example" in planned.routes
    assert told(planned, home)[1] == ["aider", "--openai-api-base", f"{URL}/nearer.example/v1", "--yes"]
    write(home / "work/.env", "ANTHROPIC_API_BASE=https://box.example\n")
    assert plan(home, "aider").mode == "forward"


# Agents whose rows no test runs.


def test_qwen_code_is_told_by_its_variables_unless_its_settings_name_addresses(home: Path) -> None:
    planned = plan(home, "qwen", "-p", "hi", OPENAI_API_KEY="k", OPENAI_BASE_URL="https://box.example/v1")
    environment, command = told(planned, home)
    assert command == ["qwen", "-p", "hi"]
    assert environment["OPENAI_BASE_URL"] == f"{URL}/box.example/v1"
    assert environment["ANTHROPIC_BASE_URL"] == f"{URL}/api.anthropic.com"
    own = plan(home, "qwen", "--openai-base-url", "https://near.example/v1", OPENAI_API_KEY="k")
    assert told(own, home)[1][-1] == f"--openai-base-url={URL}/near.example/v1"
    assert plan(home, "qwen").mode == "forward"  # without a key it logs in at Qwen's own
    write(home / "work/.qwen/.env", "OPENAI_BASE_URL=https://dotenv.example/v1\n")
    assert "dotenv.example" in plan(home, "qwen", OPENAI_API_KEY="k").routes
    models = {"openai": [{"id": "m", "envKey": "K", "baseUrl": "https://listed.example/v1"}]}
    write(home / ".qwen/settings.json", {"modelProviders": models, "security": {"auth": {"selectedType": "openai"}}})
    assert plan(home, "qwen", OPENAI_API_KEY="k").mode == "forward"
    write(home / ".qwen/settings.json", {"security": {"auth": {"selectedType": "qwen-oauth"}}})
    assert plan(home, "qwen", OPENAI_API_KEY="k").mode == "forward"
    assert plan(home, "qwen", "--auth-type", "openai", OPENAI_API_KEY="k").mode == "reverse"


def test_copilot_cli_is_told_by_base_url_only_with_a_provider_of_the_users_own(home: Path) -> None:
    for kind, url, path in (
        ("openai", "https://box.example/v1", "/box.example/v1"),
        ("anthropic", "https://api.anthropic.com", "/api.anthropic.com"),
    ):
        planned = plan(home, "copilot", COPILOT_PROVIDER_BASE_URL=url, COPILOT_PROVIDER_TYPE=kind, COPILOT_MODEL="m")
        environment, command = told(planned, home)
        assert command == ["copilot"]
        assert environment["COPILOT_PROVIDER_BASE_URL"] == f"{URL}{path}"
        assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"{URL}/otlp"
        assert "COPILOT_MODEL" not in environment
    planned = plan(home, "copilot")
    assert planned.mode == "forward"
    assert "COPILOT_PROVIDER_BASE_URL" not in told(planned, home)[0]
    quiet = plan(home, "copilot", COPILOT_PROVIDER_BASE_URL="https://x.example/v1", COPILOT_OTEL_ENABLED="true")
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in told(quiet, home)[0]


def test_goose_gets_a_host_or_a_base_url_as_it_was_given_one(home: Path) -> None:
    environment, _ = told(plan(home, "goose", "run"), home)
    assert environment["OPENAI_HOST"] == f"{URL}/api.openai.com"  # behind it comes v1/chat/completions
    assert environment["ANTHROPIC_HOST"] == f"{URL}/api.anthropic.com"
    assert "OPENAI_BASE_URL" not in environment
    write(home / ".config/goose/config.yaml", "GOOSE_PROVIDER: openai\nOPENAI_BASE_URL: 'https://box.example/v1'\n")
    environment, _ = told(plan(home, "goose"), home)
    assert environment["OPENAI_BASE_URL"] == f"{URL}/box.example/v1"
    assert "OPENAI_HOST" not in environment
    environment, _ = told(plan(home, "goose", OPENAI_HOST="https://host.example"), home)
    assert environment["OPENAI_HOST"] == f"{URL}/host.example"
    assert plan(home, "goose", GOOSE_PROVIDER="ollama").mode == "forward"


def test_openhands_and_swe_agent_keep_the_address_that_they_were_given(home: Path) -> None:
    planned = plan(home, "openhands", LLM_MODEL="anthropic/m", LLM_BASE_URL="https://claude.example")
    environment, _ = told(planned, home)
    assert environment["LLM_BASE_URL"] == environment["ANTHROPIC_API_BASE"] == f"{URL}/claude.example"
    assert environment["OPENAI_API_BASE"] == f"{URL}/api.openai.com/v1"
    assert "LLM_BASE_URL" not in told(plan(home, "openhands", LLM_MODEL="gpt-5"), home)[0]
    write(home / ".openhands/agent_settings.json", {"llm": {"model": "m", "base_url": "https://box.example/v1"}})
    assert plan(home, "openhands").mode == "forward"
    for given in (["--agent.model.api_base", "https://h.example/v1"], ["--agent.model.api_base=https://h.example/v1"]):
        planned = plan(home, "sweagent", "run", "--agent.model.name", "openai/m", *given, "--x", "y")
        environment, command = told(planned, home)
        assert " ".join(command).replace("=", " ") == (
            f"sweagent run --agent.model.name openai/m --agent.model.api_base {URL}/h.example/v1 --x y"
        )
        assert environment["OPENAI_BASE_URL"] == f"{URL}/h.example/v1"


def test_configuration_may_have_comments_and_trailing_commas() -> None:
    assert parse_json('{"a": "b // c", /* x */ "d": [1, 2,], }') == {"a": "b // c", "d": [1, 2]}
    assert parse_json("{nonsense") is None
    assert read_dotenv(Path("/none")) == {}
