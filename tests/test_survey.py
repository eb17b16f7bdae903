"""`agentdyno doctor`'s part on recording: agents found, how each is recorded, what is refused and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from capture.agents.survey import survey
from capture.store import Store


def program(folder: Path, name: str, says: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / name).chmod(0o700)


def look(tmp_path: Path, **environment: str) -> dict[str, tuple[str, str]]:
    inherited = {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin"), **environment}
    return {seen.topic: (seen.state, seen.detail) for seen in survey(inherited, tmp_path)}


def test_agents_are_listed_with_version_mode_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTDYNO_STORE", str(tmp_path / "store"))
    assert look(tmp_path)["agents"][0] == "note"
    program(tmp_path / "bin", "claude", "2.1.999 (Claude Code)")
    program(tmp_path / "bin", "codex", "codex-cli 9.8.7")
    program(tmp_path / "bin", "opencode", "1.18.0")
    program(tmp_path / "bin", "cursor-agent")
    (tmp_path / ".local/share/opencode").mkdir(parents=True)
    (tmp_path / ".local/share/opencode/auth.json").write_text('{"openai": {"type": "oauth"}}')
    seen = look(tmp_path, OPENAI_BASE_URL="http://box:8000/v1", CLAUDE_CODE_USE_BEDROCK="1")
    assert seen["agent Claude Code"][0] == "no"
    assert "Bedrock" in seen["agent Claude Code"][1]
    line = "9.8.7: `agentdyno capture run -- codex` records it in reverse mode towards http://box:8000"
    assert seen["agent Codex"] == ("yes", line)
    assert "forward mode, because of opencode's login to openai" in seen["agent opencode"][1]
    assert "not read" in seen["agent cursor-agent"][1]
    assert "capture import" in seen["not read"][1]
    assert "OPENAI_BASE_URL" in seen["base URLs"][1]
    assert seen["store"][0] == "note"
    assert not (tmp_path / "store").exists()


def test_a_proxy_and_an_open_store_are_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path / "store", create=True)
    monkeypatch.setenv("AGENTDYNO_STORE", str(store.path))
    program(tmp_path / "bin", "pi", "0.74.2")
    seen = look(tmp_path, https_proxy="http://corp:1")
    assert seen["proxy"][0] == "note"
    assert "https_proxy set" in seen["proxy"][1]
    assert look(tmp_path, https_proxy="socks5://corp:1")["proxy"][0] == "no"
    assert "SOCKS" in look(tmp_path, https_proxy="socks5://corp:1")["agent pi"][1]
    assert seen["store"][0] == "yes"
    assert "no certificate yet" in seen["forward mode"][1]
    store.path.chmod(0o755)
    assert "chmod" in look(tmp_path)["store"][1]
