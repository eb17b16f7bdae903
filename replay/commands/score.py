"""`agentdyno replay score`: the search for the largest number of agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replay.commands.shared import (
    FOLDER,
    meter_options,
    plain_faults,
    plan_options,
    plan_rules,
    run_and_print,
    server_options,
)


def _list_presets(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    if value != "list" or context.resilient_parsing:
        return value
    from replay.slo import PRESETS

    for slo in PRESETS.values():
        limits, protocol = slo.limits, slo.protocol
        click.echo(
            f"{slo.name:22} P25 output speed >= {limits.p25_output_tok_s:g} tok/s, "
            f"P95 TTFT <= {limits.p95_ttft_s:g} s; "
            f"at least {protocol.min_measure_s:g} s, {protocol.min_trajectories} trajectories and "
            f"{protocol.min_trajectories_per_agent} per agent; {slo.note}"
        )
    raise click.exceptions.Exit(0)


@click.command()
@click.argument("dataset", type=FOLDER)
@server_options
@click.option(
    "--slo",
    "slo_text",
    required=True,
    metavar="PRESET|FILE",
    callback=_list_presets,
    is_eager=True,
    help="Service level: a preset, a TOML file, or `list` to see the presets.",
)
@click.option("--quick", is_flag=True, help="Trials of 15 s; the result lists which rules of the preset were not met.")
@click.option("--start", default=2, show_default=True, type=click.IntRange(min=1), help="Agents to begin with.")
@click.option("--max-agents", type=click.IntRange(min=1), help="End the search at this many agents.")
@click.option("--resume", is_flag=True, help="Continue an unfinished run in the folder of --out.")
@plan_options
@meter_options
def score(
    dataset: Path,
    url: str,
    model: str,
    key_env: str | None,
    slo_text: str,
    quick: bool,
    start: int,
    max_agents: int | None,
    resume: bool,
    powers: tuple[str, ...],
    system_file: Path | None,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Search the largest number of agents that a server sustains within a service level.

    Doubles until a level fails, then bisects. Exit code 1 where not even one agent passes or the search is invalid.

    \b
    agentdyno replay score my-dataset --url http://127.0.0.1:8000 --model m --slo aa-shape-2026-07/20 \\
        --system system.toml --power nvml --out runs/first
    """
    with plain_faults():
        from replay.endpoint import Endpoint
        from replay.power.choice import parse_powers
        from replay.protocol import QUICK
        from replay.score import RunRequest
        from replay.slo import load_slo
        from replay.system import UNDISCLOSED, load_system

        slo = load_slo(slo_text)
        system = load_system(system_file) if system_file is not None else UNDISCLOSED
        choices = parse_powers(powers)
        endpoint = Endpoint(url, model, key_env)
        rules = plan_rules(options, once=False)
        run_and_print(
            dataset,
            as_json=as_json,
            settings=lambda digest: RunRequest(
                kind="score",
                endpoint=endpoint,
                dataset_digest=digest,
                rules=rules,
                slo=slo,
                protocol=QUICK if quick else slo.protocol,
                quick=quick,
                system=system,
                power=choices,
                agents=start,
                maximum_agents=max_agents,
                out=out,
                resume=resume,
            ),
        )


COMMANDS = (score,)
