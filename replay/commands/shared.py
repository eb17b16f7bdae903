"""What the commands share: their options, and faults as one sentence."""

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


FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

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
        click.option("--system", "system_file", type=FILE, help="system.toml: the system under test, disclosed."),
        click.option("--out", required=True, type=FOLDER, help="Run folder; must be new."),
        click.option("--json", "as_json", is_flag=True, help="Print the contents of score.json."),
    ]
)


def plan_rules(options: dict[str, Any], *, once: bool) -> PlanRules:
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


def run_and_print(dataset_folder: Path, *, as_json: bool, settings: Callable[[str], Any]) -> None:
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
