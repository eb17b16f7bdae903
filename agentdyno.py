"""agentdyno: record coding agents, curate their sessions, replay them, score agents per megawatt.

The root command group. It loads a stage only when that stage is named, so that `--help` stays instant.
"""

from __future__ import annotations

import importlib

import click

__version__ = "0.1.0"

STAGES = {
    "capture": "Record real coding-agent sessions, or import recorded ones.",
    "curate": "Turn recorded sessions into a dataset with length statistics on its card.",
    "replay": "Replay a dataset against a serving system and score agents per megawatt.",
}


class StageGroup(click.Group):
    """Imports `<stage>.command` when the stage is invoked, never for the root's own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*STAGES, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in STAGES:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"{cmd_name}.command")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, self.commands[name].get_short_help_str()) for name in sorted(self.commands)]
        with formatter.section("Commands"):
            formatter.write_dl([*STAGES.items(), *own])


@click.group(cls=StageGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="agentdyno")
def main() -> None:
    """How many coding agents does a GPU system sustain, within a service level, per megawatt?"""
