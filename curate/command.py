"""`agentdyno curate …`: turn a store into a dataset."""

from __future__ import annotations

import click


@click.group()
def curate() -> None:
    """Turn recorded sessions into a dataset with length statistics on its card."""
