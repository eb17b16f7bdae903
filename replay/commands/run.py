"""`agentdyno replay run`: one trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replay.commands.shared import (
    FOLDER,
    LONGEST_S,
    endpoint_of,
    idle_seconds,
    meter_options,
    plain_faults,
    plan_options,
    plan_rules,
    run_and_print,
    server_options,
    service_levels,
)


@click.command()
@click.argument("dataset", type=FOLDER)
@server_options
@click.option("--agents", required=True, type=click.IntRange(min=1), help="How many agents work at a time.")
@click.option("--once", is_flag=True, help="Play every session exactly once and stop; without it agents never run out.")
@click.option(
    "--duration",
    type=click.FloatRange(min=1),
    metavar="S",
    help="Seconds to measure (30), or the most with --once.",
)
@click.option(
    "--slo",
    "slo_texts",
    multiple=True,
    metavar="PRESET|FILE",
    help="Service level to hold the run against; repeatable.",
)
@plan_options
@meter_options
def run(
    dataset: Path,
    agents: int,
    once: bool,
    duration: float | None,
    slo_texts: tuple[str, ...],
    powers: tuple[str, ...],
    idle_s: float | None,
    system_file: Path | None,
    workers: int,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Drive N agents through the sessions of DATASET once, and keep every record.

    \b
    agentdyno replay run my-dataset --url http://127.0.0.1:8000 --model m --agents 8 --out runs/eight
    """
    if duration is not None and not duration <= LONGEST_S:  # neither infinite nor no number at all
        raise click.UsageError(f"--duration is {duration:g} s; the longest is {LONGEST_S:,.0f}")
    with plain_faults():
        from replay.power.choice import parse_powers
        from replay.protocol import Protocol
        from replay.request import RunRequest
        from replay.system import UNDISCLOSED, load_system

        measure_s = duration if duration is not None else 30.0
        ramp_s = (agents - 1) / 8
        protocol = Protocol(
            name="once" if once else "run",
            ramp_per_s=8.0,
            settle_s=0.0 if once else 2.0,
            # A plan that is played once ends by itself.
            min_measure_s=(duration or LONGEST_S) if once else measure_s,
            min_trajectories=0,
            min_trajectories_per_agent=0,
            max_phase_s=(duration or LONGEST_S) if once else ramp_s + 2.0 + measure_s + 1.0,
            start_offset_turns=10,
            request_timeout_s=300.0,
        )
        endpoint = endpoint_of(options)
        rules = plan_rules(options, once=once)
        slos = service_levels(slo_texts)
        system = load_system(system_file) if system_file is not None else UNDISCLOSED
        choices = parse_powers(powers)
        met = run_and_print(
            dataset,
            as_json=as_json,
            settings=lambda digest: RunRequest(
                kind="run",
                endpoint=endpoint,
                dataset_digest=digest,
                rules=rules,
                slos=slos,
                protocol=protocol,
                system=system,
                power=choices,
                idle_s=idle_seconds(idle_s),
                agents=agents,
                maximum_agents=None,
                workers=workers,
                out=out,
                resume=False,
            ),
        )
    if not met:
        raise click.exceptions.Exit(1)


COMMANDS = (run,)
