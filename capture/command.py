"""`agentdyno capture …`: record, import and look at sessions."""

from __future__ import annotations

import click


@click.group()
def capture() -> None:
    """Record real coding-agent sessions, or import recorded ones."""
