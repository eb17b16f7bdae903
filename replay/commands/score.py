"""`agentdyno replay score`: the search for the largest number of agents."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from replay.commands.shared import (
    FILE,
    FOLDER,
    PLAN_OPTION_NAMES,
    endpoint_of,
    idle_seconds,
    meter_options,
    plain_faults,
    plan_options,
    plan_rules,
    print_text,
    run_and_print,
    server_options,
    service_levels,
)

if TYPE_CHECKING:
    from replay.protocol import RunClass
    from replay.request import RunRequest
    from replay.runfolder import RunFolder


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
@click.option(
    "--sweep-power-cap",
    "caps",
    metavar="WATTS,…",
    help="Score once under each of these power caps, in a folder of its own below --out. Caps are set by "
    "--power-cap-cmd alone.",
)
@click.option(
    "--power-cap-cmd",
    metavar="CMD",
    help="Your command that sets a cap, with {watts} for the number; run without a shell before each score, for "
    "example 'sudo nvidia-smi -pl {watts}'.",
)
@click.option(
    "--power-cap-restore-cmd",
    metavar="CMD",
    help="Your command that ends the caps: run after the last score, after a fault and after Ctrl-C. Without it the "
    "last cap stays.",
)
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
    caps: str | None,
    power_cap_cmd: str | None,
    power_cap_restore_cmd: str | None,
    powers: tuple[str, ...],
    idle_s: float | None,
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
    agentdyno replay score my-dataset --url http://127.0.0.1:8000 --model m --slo aa-shape-2026-07/20 \\
        --system system.toml --power nvml --out runs/caps --sweep-power-cap 400,500,600 \\
        --power-cap-cmd 'sudo nvidia-smi -pl {watts}' --power-cap-restore-cmd 'sudo nvidia-smi -pl 700'
    """
    if against is not None:
        _only_free_options(context)
        if caps is not None:
            raise click.UsageError("--sweep-power-cap compares its own scores: leave --against out")
    if (caps is None) != (power_cap_cmd is None) or (caps is None and power_cap_restore_cmd is not None):
        raise click.UsageError("--sweep-power-cap and --power-cap-cmd stand together; this program sets no cap itself")
    if quick and run_class not in (None, "screen"):
        raise click.UsageError(f"--quick is a screen; leave it out for class {run_class}")
    if against is None and not slo_texts:
        raise click.UsageError("--slo is missing: name a preset (--slo list shows them) or a TOML file")
    with plain_faults():
        from replay.against import request_against
        from replay.power.choice import parse_powers
        from replay.protocol import SCREEN, protocol_of
        from replay.request import RunRequest
        from replay.runfolder import RunFolder
        from replay.system import UNDISCLOSED, load_system
        from replay.user_command import command_words

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
            idle_s=idle_seconds(idle_s),
            agents=start,
            maximum_agents=max_agents,
            client_limit=client_limit,
            restart_words=command_words(restart_cmd, "--restart-cmd") if restart_cmd is not None else None,
            workers=workers,
            out=out,
            resume=resume,
        )

        if caps is not None and power_cap_cmd is not None:
            met = _sweep(request, dataset, caps, power_cap_cmd, power_cap_restore_cmd, as_json=as_json)
            raise click.exceptions.Exit(0 if met else 1)

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


def _sweep(
    request: RunRequest, dataset_folder: Path, caps: str, command: str, restore: str | None, *, as_json: bool
) -> bool:
    """Scores under each cap, prints the table; False where any of them gave no answer."""
    from curate.dataset import Dataset
    from replay.against import request_against
    from replay.live import LiveWatcher
    from replay.score import run as run_all
    from replay.sweep import SweepOrder, check_place, parse_caps, sweep, sweep_lines
    from replay.user_command import command_words

    order = SweepOrder(
        caps_w=parse_caps(caps),
        set_words=command_words(command, "--power-cap-cmd"),
        restore_words=command_words(restore, "--power-cap-restore-cmd") if restore is not None else None,
        out=request.out,
        resume=request.resume,
    )
    check_place(order.set_words)
    dataset = Dataset.open(dataset_folder)

    def run_at(cap_w: float, folder: Path, resume: bool, first: RunFolder | None) -> dict[str, Any]:
        asked = dataclasses.replace(
            request,
            dataset_digest=dataset.digest,
            out=folder,
            resume=resume,
            system=dataclasses.replace(request.system, power_cap_w=cap_w),
        )
        if first is not None:
            asked = request_against(asked, first)
        with LiveWatcher() as watcher:
            return run_all(asked, functools.partial(dataset.trajectories, packed=True), watcher)

    try:
        found = sweep(order, run_at, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; continue with the same command and --resume ({order.out})", err=True)
        raise click.exceptions.Exit(130) from None
    if as_json:
        import json

        click.echo(json.dumps(found, indent=1))
    else:
        print_text("\n".join(sweep_lines(found)))
    return all(row["verdict"] == "met" and not row["not_comparable_with_first"] for row in found["rows"])


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
