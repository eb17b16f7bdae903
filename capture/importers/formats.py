"""The formats that can be imported: one entry each, and nothing loaded before it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from capture.importers.imported import Imported


class Importer(Protocol):
    """Reads all of `paths` as one import; ImportFault when any of them is bad. `key` is the store's.

    `on_file` is called before a file is read.
    """

    def __call__(
        self, paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None
    ) -> Imported: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format of recorded sessions."""

    name: str
    what: str  # for the help: what a PATH is, and what is taken without one
    importer: str  # module:function, see `Importer`
    needs_path: bool = True
    agent: str | None = None  # whose usual log folders are read where no PATH is given (`capture.log_files`)

    def read(self, paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None) -> Imported:
        """Import; without paths from where the agent keeps its logs."""
        if not paths and self.agent is not None:
            import os

            from capture.importers.imported import ImportFault
            from capture.log_files import usual_folders

            paths = usual_folders(self.agent, os.environ)
            if not paths:
                raise ImportFault(f"no log folder of {self.agent} on this machine: name the logs, or folders of them")
        module, _, function = self.importer.partition(":")
        return cast("Importer", getattr(importlib.import_module(module), function))(paths, key, on_file=on_file)


FORMATS = (
    Format(name="weka", what="trace files, or folders of them", importer="capture.importers.weka:import_weka"),
    Format(
        name="agentperf-local",
        what="manifests [the replay inside the installed package]",
        importer="capture.importers.read:import_manifests",
        needs_path=False,
    ),
    Format(
        name="claude-code",
        what="Claude Code's logs, or folders of them [its own]",
        importer="capture.importers.claude_code:import_claude_code",
        needs_path=False,
        agent="claude-code",
    ),
    Format(
        name="codex",
        what="Codex's rollout files, or folders of them [its own]",
        importer="capture.importers.codex:import_codex",
        needs_path=False,
        agent="codex",
    ),
    Format(
        name="gemini-cli",
        what="Gemini CLI's session files, or folders of them [its own]",
        importer="capture.importers.gemini_cli:import_gemini_cli",
        needs_path=False,
        agent="gemini-cli",
    ),
    Format(
        name="pi",
        what="pi's session files, or folders of them [its own]",
        importer="capture.importers.pi:import_pi",
        needs_path=False,
        agent="pi",
    ),
    Format(
        name="opencode",
        what="opencode.db, its database, or folders with one [its own]",
        importer="capture.importers.opencode:import_opencode",
        needs_path=False,
        agent="opencode",
    ),
    Format(
        name="mini-swe-agent",
        what="trajectory files (.traj.json), or folders of them",
        importer="capture.importers.mini_swe_agent:import_mini_swe_agent",
    ),
    Format(
        name="messages",
        what="OpenAI chats as JSONL, JSON or Parquet, or folders of them",
        importer="capture.importers.messages:import_messages",
    ),
    Format(
        name="atif",
        what="ATIF 1.x documents, or folders of them",
        importer="capture.importers.atif:import_atif",
    ),
)


def find_format(name: str) -> Format:
    """The format of this name; ImportFault naming the known ones where there is none."""
    from capture.importers.imported import ImportFault

    for known in FORMATS:
        if known.name == name:
            return known
    raise ImportFault(f"no format {name!r}: known are {', '.join(known.name for known in FORMATS)}")
