"""`agentdyno capture …`: record, import and look at sessions."""

from __future__ import annotations

import click

from capture.commands import keep, record, run, sessions, team


@click.group()
def capture() -> None:
    """Record real coding-agent sessions, or import recorded ones."""


for command in (*record.COMMANDS, *run.COMMANDS, *sessions.COMMANDS, *keep.COMMANDS, *team.COMMANDS):
    capture.add_command(command)
