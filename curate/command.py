"""`agentdyno curate …`: turn a store into a dataset."""

from __future__ import annotations

import click

from curate.commands import build, export, match, measure, publish, redact, review, stats


@click.group()
def curate() -> None:
    """Turn recorded sessions into a dataset with length statistics on its card."""


for command in (
    *build.COMMANDS,
    *stats.COMMANDS,
    *match.COMMANDS,
    *export.COMMANDS,
    *redact.COMMANDS,
    *measure.COMMANDS,
    *review.COMMANDS,
    *publish.COMMANDS,
):
    curate.add_command(command)
