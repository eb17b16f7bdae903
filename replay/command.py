"""`agentdyno replay …`: drive a dataset against a serving system and score it."""

from __future__ import annotations

import click

from replay.commands import compare, engine, judge, power, probe, run, score, selftest, statistics


@click.group()
def replay() -> None:
    """Replay a dataset against a serving system and score agents per megawatt."""


for command in (
    *engine.COMMANDS,
    *probe.COMMANDS,
    *run.COMMANDS,
    *score.COMMANDS,
    *judge.COMMANDS,
    *compare.COMMANDS,
    *selftest.COMMANDS,
    *power.COMMANDS,
    *statistics.COMMANDS,
):
    replay.add_command(command)
