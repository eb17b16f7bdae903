"""`agentdyno replay score`: the search for the largest number of agents."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from replay.commands.shared import (
    FILE,
    FOLDER,
    PLAN_OPTION_NAMES,
    endpoint_of,
    meter_options,
    plain_faults,
    plan_options,
    plan_rules,
    run_and_print,
    server_options,
    service_levels,
)

if TYPE_CHECKING:
    from replay.protocol import RunClass


def _list_presets(context: click.Context, _: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    if "list" not in value or context.resilient_parsing:
        return value
    from replay.slo import FAMILIES

    for family, slos in FAMILIES.items():
        for slo in slos:
            protocol = slo.protocol
            click.echo(
                f"{slo.name:22} {slo.words}; class record: at least {protocol.min_measure_s:g} s, "
                f"{protocol.min_trajectories} trajectories and {protocol.min_trajectories_per_agent} per agent; "
                f"{slo.note}"
            )
        click.echo(f"{family:22} all of these in one sweep")
    raise click.exceptions.Exit(0)


@click.command()
@click.argument("dataset", type=FOLDER)
@server_options
@click.option(
    "--slo",
    "slo_texts",
    multiple=True,
    metavar="PRESET|FILE",
    callback=_list_presets,
    is_eager=True,
    help="Service level: a preset, a family of presets, a TOML file, or `list` to see the presets; repeatable, all are "
    "scored from one sweep.",
)
@click.option(
    "--class",
    "run_class",
    type=click.Choice(["screen", "standard", "record"]),
    default=None,
    help="screen: trials of 60 s, an interval; standard: 300 s, certified; record: the service level's own protocol, "
    "certified. [default: screen]",
)
@click.option("--quick", is_flag=True, help="A screen with trials of 15 s; the result lists which rules were not met.")
@click.option("--start", default=2, show_default=True, type=click.IntRange(min=1), help="Agents to begin with.")
@click.option("--max-agents", type=click.IntRange(min=1), help="End the search at this many agents.")
@click.option(
    "--client-limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Agents that this machine can drive, where you know it; without it that is tried out first.",
)
@click.option(
    "--restart-cmd",
    metavar="CMD",
    help="Command that restarts the server, run before every trial around the answer, so that the interval holds what "
    "a restart changes. It ends once the old server is gone and the new one is starting.",
)
@click.option(
    "--against",
    type=FOLDER,
    metavar="RUN",
    help="Take seed, rules, service levels and class of RUN, run trials in the other order, and compare at the end; "
    "with --json as the key `comparison`.",
)
@click.option(
    "--match", "match_file", type=FILE, help="What `curate match --json` printed of the dataset; stands in the result."
)
@click.option("--resume", is_flag=True, help="Continue an unfinished run in the folder of --out.")
@plan_options
@meter_options
@click.pass_context
def score(
    context: click.Context,
    /,
    dataset: Path,
    slo_texts: tuple[str, ...],
    run_class: RunClass | None,
    quick: bool,
    start: int,
    max_agents: int | None,
    client_limit: int | None,
    restart_cmd: str | None,
    against: Path | None,
    match_file: Path | None,
    resume: bool,
    powers: tuple[str, ...],
    system_file: Path | None,
    workers: int,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Search the largest number of agents that a server sustains within a service level.

    Doubles until a level misses, closes in, then confirms around the answer and fits a line: the result has an
    interval. Exit code 1 where not even one agent passes, the data gives no answer, or --against does not compare.

    \b
    agentdyno replay score my-dataset --url http://127.0.0.1:8000 --model m --slo aa-shape-2026-07/20 \\
        --system system.toml --power nvml --out runs/first
    agentdyno replay score my-dataset --url http://127.0.0.1:8001 --model m --against runs/first \\
        --system other.toml --power nvml --out runs/second
    """
    if against is not None:
        _only_free_options(context)
    if quick and run_class not in (None, "screen"):
        raise click.UsageError(f"--quick is a screen; leave it out for class {run_class}")
    if against is None and not slo_texts:
        raise click.UsageError("--slo is missing: name a preset (--slo list shows them) or a TOML file")
    with plain_faults():
        from replay.against import request_against
        from replay.power.choice import parse_powers
        from replay.protocol import SCREEN, protocol_of
        from replay.request import RunRequest
        from replay.restart import command_words
        from replay.runfolder import RunFolder
        from replay.system import UNDISCLOSED, load_system

        endpoint = endpoint_of(options)
        slos = service_levels(slo_texts)
        asked_class: RunClass = run_class or "screen"
        system = load_system(system_file) if system_file is not None else UNDISCLOSED
        request = RunRequest(
            kind="score",
            run_class=asked_class,
            quick=quick,
            endpoint=endpoint,
            dataset_digest="",
            dataset_match=_match(match_file),
            rules=plan_rules(options, once=False),
            slos=slos,
            # Of a run against another, that run's own stands in for it.
            protocol=protocol_of(asked_class, quick=quick, own=[slo.protocol for slo in slos]) if slos else SCREEN,
            system=system,
            power=parse_powers(powers),
            agents=start,
            maximum_agents=max_agents,
            client_limit=client_limit,
            restart_words=command_words(restart_cmd) if restart_cmd is not None else None,
            workers=workers,
            out=out,
            resume=resume,
        )

        def settings(digest: str) -> RunRequest:
            asked = dataclasses.replace(request, dataset_digest=digest)
            return asked if against is None else request_against(asked, RunFolder(path=against))

        met = run_and_print(
            dataset,
            as_json=as_json,
            settings=settings,
            compared_with=against,
        )
    if not met:
        raise click.exceptions.Exit(1)


_SETTLED = {"slo_texts", "run_class", "quick", "start"}
"""What --against takes from the other run, beside everything that shapes the plan."""


def _only_free_options(context: click.Context) -> None:
    """Raises UsageError where an option is given that --against settles."""
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name in _SETTLED | PLAN_OPTION_NAMES:
            raise click.UsageError(f"{option.opts[0]} is settled by --against: leave it out")


def _match(path: Path | None) -> dict[str, Any] | None:
    """What `curate match --json` printed."""
    if path is None:
        return None
    import json

    try:
        value = json.loads(path.read_text())
    except ValueError as fault:
        raise click.UsageError(f"{path} is not what `curate match --json` printed: {fault}") from fault
    if not isinstance(value, dict):
        raise click.UsageError(f"{path} is not what `curate match --json` printed")
    return value


COMMANDS = (score,)
