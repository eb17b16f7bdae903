"""`agentdyno replay …`: drive a dataset against a serving system and score it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capture.fault import EnvironmentFault

if TYPE_CHECKING:
    from replay.score import PlanRules

LONGEST_S = 86_400.0
"""Of one phase: a day."""


@click.group()
def replay() -> None:
    """Replay a dataset against a serving system and score agents per megawatt."""


@contextlib.contextmanager
def plain_faults() -> Iterator[None]:
    """Turns the library's faults into one sentence: what was asked wrongly exits 2, what is missing or broken 3."""
    from curate.manifest import DatasetFault
    from replay.endpoint import EndpointError
    from replay.power.source import PowerFault
    from replay.trial import TrialFault

    try:
        yield
    except click.ClickException:
        raise
    except (EndpointError, PowerFault, DatasetFault, TrialFault) as fault:
        raise EnvironmentFault(str(fault)) from fault
    except OSError as fault:
        raise EnvironmentFault(f"{fault.filename or 'a file'}: {fault.strerror or fault}") from fault
    except ValueError as fault:
        raise click.UsageError(str(fault)) from fault


def _choose(options: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def apply(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)

server_options = _choose(
    [
        click.option("--url", required=True, help="Base URL of the server, for example http://127.0.0.1:8000"),
        click.option("--model", required=True, help="Name of the model, as the server lists it."),
        click.option("--key-env", metavar="NAME", help="Environment variable that holds the API key."),
    ]
)

plan_options = _choose(
    [
        click.option("--seed", default=0, show_default=True, help="Of the order of sessions and of start offsets."),
        click.option(
            "--context-scale",
            default=1.0,
            show_default=True,
            help="Shorten every context by this factor; prefix sharing is kept.",
        ),
        click.option(
            "--context-limit", type=int, help="Leave out sessions that need more tokens. [default: the server's limit]"
        ),
        click.option(
            "--length",
            type=click.Choice(["exact", "free"]),
            default="exact",
            show_default=True,
            help="exact: recorded output lengths are forced; free: the model stops by itself.",
        ),
        click.option("--output-cap", type=int, metavar="TOKENS", help="Longest output that is asked for."),
        click.option("--human-cap", default=0.0, show_default=True, metavar="S", help="Longest wait for a human."),
        click.option("--tool-cap", default=300.0, show_default=True, metavar="S", help="Longest wait for a tool."),
        click.option(
            "--unsplit-cap",
            default=10.0,
            show_default=True,
            metavar="S",
            help="Longest wait where the source does not tell tool from human time.",
        ),
        click.option(
            "--isolation",
            type=click.Choice(["play", "run", "none"]),
            default="play",
            show_default=True,
            help="Which requests may share the server's prefix cache.",
        ),
    ]
)

meter_options = _choose(
    [
        click.option(
            "--power",
            "powers",
            multiple=True,
            metavar="SOURCE",
            help="nvml, rapl or declared:700W (declared:700W*8 for eight); repeatable.",
        ),
        click.option("--system", "system_file", type=_FILE, help="system.toml: the system under test, disclosed."),
        click.option("--out", required=True, type=_FOLDER, help="Run folder; must be new."),
        click.option("--json", "as_json", is_flag=True, help="Print the contents of score.json."),
    ]
)


def _rules(options: dict[str, Any], *, once: bool) -> PlanRules:
    from replay.plan import ContextPolicy, DelayPolicy, LengthPolicy
    from replay.score import PlanRules

    return PlanRules(
        seed=options["seed"],
        once=once,
        delay=DelayPolicy(
            human_cap_s=options["human_cap"], tool_cap_s=options["tool_cap"], unsplit_cap_s=options["unsplit_cap"]
        ),
        length=LengthPolicy(mode=options["length"], cap=options["output_cap"]),
        context=ContextPolicy(scale=options["context_scale"], limit=options["context_limit"]),
        isolation=options["isolation"],
    )


def _run(dataset_folder: Path, *, as_json: bool, settings: Callable[[str], Any]) -> None:
    """Runs what `settings(dataset_digest)` asks, shows it live, prints the score and exits 1 where the run says no."""
    from curate.dataset import Dataset
    from replay.live import LiveWatcher
    from replay.score import run as run_all
    from replay.summary import summary_lines

    dataset = Dataset.open(dataset_folder)
    request = settings(dataset.digest)
    try:
        with LiveWatcher() as watcher:
            score = run_all(request, dataset.trajectories, watcher)
    except KeyboardInterrupt:
        begun = (request.out / "run.json").exists()
        click.echo(
            "\ninterrupted; "
            + (f"continue with the same command and --resume ({request.out})" if begun else "nothing was written"),
            err=True,
        )
        raise click.exceptions.Exit(130) from None
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(score), indent=1).decode())
    else:
        click.echo("\n".join(summary_lines(score)))
    if score["verdict"] != "met" or score["agents"] == 0:
        raise click.exceptions.Exit(1)


@replay.command()
@click.argument("dataset", type=_FOLDER)
@server_options
@click.option("--agents", required=True, type=click.IntRange(min=1), help="How many agents work at a time.")
@click.option("--once", is_flag=True, help="Play every session exactly once and stop; without it agents never run out.")
@click.option(
    "--duration",
    type=click.FloatRange(min=1),
    metavar="S",
    help="Seconds to measure (30), or the most with --once.",
)
@click.option("--slo", "slo_text", metavar="PRESET|FILE", help="Service level to hold the run against.")
@plan_options
@meter_options
def run(
    dataset: Path,
    url: str,
    model: str,
    key_env: str | None,
    agents: int,
    once: bool,
    duration: float | None,
    slo_text: str | None,
    powers: tuple[str, ...],
    system_file: Path | None,
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
        from replay.endpoint import Endpoint
        from replay.power.choice import parse_powers
        from replay.protocol import Protocol
        from replay.score import RunRequest
        from replay.slo import load_slo
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
        slo = load_slo(slo_text) if slo_text is not None else None
        system = load_system(system_file) if system_file is not None else UNDISCLOSED
        choices = parse_powers(powers)
        endpoint = Endpoint(url, model, key_env)
        rules = _rules(options, once=once)
        _run(
            dataset,
            as_json=as_json,
            settings=lambda digest: RunRequest(
                kind="run",
                endpoint=endpoint,
                dataset_digest=digest,
                rules=rules,
                slo=slo,
                protocol=protocol,
                quick=False,
                system=system,
                power=choices,
                agents=agents,
                maximum_agents=None,
                out=out,
                resume=False,
            ),
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


@replay.command()
@click.argument("dataset", type=_FOLDER)
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
        rules = _rules(options, once=False)
        _run(
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


@replay.command()
@click.argument("run_folder", metavar="RUN", type=_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print the differences as a JSON list.")
def verify(run_folder: Path, as_json: bool) -> None:
    """Compute the score of RUN again from its records; exit code 1 when anything differs.

    \b
    agentdyno replay verify runs/first
    """
    with plain_faults():
        from replay.runfolder import RunFault, RunFolder
        from replay.verify import verify as verify_run

        try:
            differences = verify_run(RunFolder(path=run_folder))
        except (RunFault, FileNotFoundError) as fault:
            raise EnvironmentFault(str(fault)) from fault
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps([dataclasses.asdict(difference) for difference in differences], indent=1))
    elif differences:
        for difference in differences[:10]:
            click.echo(str(difference))
        if len(differences) > 10:
            click.echo(f"… and {len(differences) - 10} more")
        click.echo(f"{run_folder}: {len(differences)} differences: the score does not follow from these files")
    else:
        click.echo(f"{run_folder}: the score follows from its records")
    if differences:
        raise click.exceptions.Exit(1)


@replay.command()
@click.argument("run_folder", metavar="RUN", type=_FOLDER)
@click.option("--out", type=_FILE, help="Where to write it. [default: RUN/report.html]")
def report(run_folder: Path, out: Path | None) -> None:
    """Write a self-contained HTML report of RUN.

    \b
    agentdyno replay report runs/first
    """
    with plain_faults():
        from replay.report import write_report
        from replay.runfolder import RunFault, RunFolder

        try:
            path = write_report(RunFolder(path=run_folder), out)
        except (RunFault, FileNotFoundError) as fault:
            raise EnvironmentFault(str(fault)) from fault
        click.echo(str(path))


@replay.command()
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found.")
def probe(url: str, model: str, key_env: str | None, as_json: bool) -> None:
    """Ask a server what it honours: output length, usage, prompts of token ids, context limit.

    \b
    agentdyno replay probe --url http://127.0.0.1:8000 --model m
    """
    with plain_faults():
        import msgspec

        from replay import loop
        from replay.endpoint import Endpoint
        from replay.probe import probe as probe_server

        found = loop.run(probe_server(Endpoint(url, model, key_env)))
        values = msgspec.to_builtins(found)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(values), indent=1).decode())
        return
    for key, item in values.items():
        click.echo(f"{key.replace('_', ' ')}: {'unknown' if item is None else item}")


@replay.command()
@click.option("--backend", type=click.Choice(["llama"]), default="llama", show_default=True, help="Serving engine.")
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT", help="Port 0 picks one.")
@click.option("--ready-file", type=_FILE, help="Gets the base URL once requests are accepted.")
@click.option("--preset", type=click.Choice(["nano", "tiny"]), default="nano", show_default=True, help="Model's size.")
@click.option("--slots", type=click.IntRange(1, 512), default=4, show_default=True, help="Requests decoded together.")
@click.option(
    "--context",
    type=click.IntRange(min=256),
    default=32_768,
    show_default=True,
    metavar="TOKENS",
    help="Prompt and output of one request, at most; each slot has so many.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: half of the cores]")
@click.option(
    "--cache-ram",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="MIB",
    help="Memory for prefixes that slots gave up; 0 lets thrashing show.",
)
def engine(
    backend: str,  # noqa: ARG001 - there is one so far
    listen: str,
    ready_file: Path | None,
    preset: str,
    slots: int,
    context: int,
    threads: int | None,
    cache_ram: int,
) -> None:
    """Serve a made-up model on this machine's CPU: a real engine to try the replay on, no GPU and no download.

    \b
    agentdyno replay engine --listen 127.0.0.1:8091 --slots 8 --ready-file /tmp/engine.url
    """
    from replay.engine.llama import serve_until_told

    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65_535:
        raise click.UsageError(f"--listen takes HOST:PORT, not {listen!r}")

    def say(running: Any) -> None:
        click.echo(running.url)
        click.echo(f"{running.label}; stop with Ctrl-C", err=True)

    with plain_faults():
        serve_until_told(
            ready_file=ready_file,
            on_ready=say,
            preset=preset,
            host=host.strip("[]"),
            port=int(port),
            slots=slots,
            slot_context=context,
            threads=threads,
            cache_ram_mib=cache_ram,
        )
