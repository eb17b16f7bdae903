"""`agentdyno replay …`: drive a dataset against a serving system and score it."""

from __future__ import annotations

import click


@click.group()
def replay() -> None:
    """Replay a dataset against a serving system and score agents per megawatt."""
