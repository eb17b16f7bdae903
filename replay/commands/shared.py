"""What the commands share: their options, and faults as one sentence."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capture.fault import EnvironmentFault

if TYPE_CHECKING:
    from replay.compare import Comparison
    from replay.endpoint import Endpoint
    from replay.request import PlanRules, RunRequest
    from replay.slo import Slo


LONGEST_S = 86_400.0
"""Of one phase: a day."""
LONGEST_IDLE_S = 600.0


@contextlib.contextmanager
def plain_faults() -> Iterator[None]:
    """Turns the library's faults into one sentence: what was asked wrongly exits 2, what is missing or broken 3."""
    from curate.manifest import DatasetFault
    from curate.words import printable
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
        raise click.UsageError(printable(str(fault))) from fault


def print_text(text: str) -> None:
    """Prints lines that may quote a server or a run folder: nothing in them is an order to a terminal."""
    from curate.words import printable_lines

    click.echo(printable_lines(text))


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
        click.option(
            "--url",
            "urls",
            required=True,
            multiple=True,
            help="Base URL of the server, for example http://127.0.0.1:8000; repeatable for equal servers, among which "
            "agents are dealt.",
        ),
        click.option("--model", required=True, help="Name of the model, as the server lists it."),
        click.option("--key-env", metavar="NAME", help="Environment variable that holds the API key."),
        click.option(
            "--affinity-header",
            "affinity_headers",
            multiple=True,
            metavar="NAME",
            help="Header that carries a stable id per play to a router, for example X-Session-ID; repeatable.",
        ),
        click.option("--proxy", metavar="URL|none", help="HTTP proxy to tunnel through; it is on the measured path."),
        click.option(
            "--proxy-key-env", metavar="NAME", help="Environment variable that holds the proxy's USER:PASSWORD."
        ),
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
            default="exact",
            show_default=True,
            metavar="RULE",
            help="Output lengths. exact: as recorded, forced; capped:TOKENS: at most so long, forced; "
            "free: the model stops by itself.",
        ),
        click.option(
            "--tool-delay",
            default="capped:300",
            show_default=True,
            metavar="RULE",
            help="Wait for tools: recorded, scaled:FACTOR, capped:SECONDS, sampled (per tool) or none.",
        ),
        click.option(
            "--human-delay", default="none", show_default=True, metavar="RULE", help="Wait for people, alike."
        ),
        click.option(
            "--unsplit-delay",
            default="capped:10",
            show_default=True,
            metavar="RULE",
            help="Wait where the source does not tell tool from human time, alike.",
        ),
        click.option(
            "--retries",
            type=click.Choice(["drop", "keep"]),
            default="drop",
            show_default=True,
            help="Requests that failed or were repeated when they were recorded.",
        ),
        click.option(
            "--history",
            type=click.Choice(["recorded", "live"]),
            default="recorded",
            show_default=True,
            help="live: later prompts hold what this model answered; such runs never compare.",
        ),
        click.option(
            "--isolation",
            type=click.Choice(["play", "agent", "run", "none"]),
            default="play",
            show_default=True,
            help="Which requests may share the server's prefix cache.",
        ),
        click.option(
            "--share-head/--no-share-head",
            default=False,
            help="Keep system message and tools shared between plays.  [default: no]",
        ),
    ]
)

PLAN_OPTION_NAMES = frozenset(option.name for option in getattr(plan_options(lambda: None), "__click_params__", ()))
"""The parameters that `plan_options` adds: everything that shapes a plan."""

power_option = click.option(
    "--power",
    "powers",
    multiple=True,
    metavar="SOURCE",
    help="Where watts come from; repeatable. nvml[,scope=module]; rapl; declared:700W or declared:700W*8; "
    "exporter:URL[,map=FILE][,match={…}][,header-env=NAME=VARIABLE]; prometheus:URL,match={…}, and alike; "
    "https://HOST:PORT,token-env=VARIABLE[,ca-file=FILE]; command:PROGRAM ARGUMENT…; file:PATH.",
)

meter_options = _choose(
    [
        power_option,
        click.option(
            "--idle",
            "idle_s",
            type=click.FloatRange(min=0),
            metavar="S",
            help="Read the power with no request under way for so many seconds, before the first trial and after the "
            "last. [default: 20 for class screen, 5 with --quick, 60 for standard and record, 0 for a single trial]",
        ),
        click.option("--system", "system_file", type=FILE, help="system.toml: the system under test, disclosed."),
        click.option(
            "--workers",
            default=1,
            show_default=True,
            type=click.IntRange(min=1),
            help="Client processes, where one is not enough.",
        ),
        click.option("--out", required=True, type=FOLDER, help="Run folder; must be new."),
        click.option("--json", "as_json", is_flag=True, help="Print the contents of score.json."),
    ]
)


def endpoint_of(options: dict[str, Any]) -> Endpoint:
    """The endpoint that the server options name, which are taken out; raises UsageError."""
    from replay.endpoint import Endpoint, EndpointError

    names = ("urls", "model", "key_env", "affinity_headers", "proxy", "proxy_key_env")
    try:
        return Endpoint(**{name: options.pop(name) for name in names})
    except EndpointError as fault:  # nothing was asked yet: it is the words that are wrong
        raise click.UsageError(str(fault)) from fault


def idle_seconds(asked: float | None) -> float | None:
    """What --idle asks; raises UsageError where that is longer than anybody waits."""
    if asked is not None and not asked <= LONGEST_IDLE_S:  # neither infinite nor no number at all
        raise click.UsageError(f"--idle is {asked:g} s; the longest is {LONGEST_IDLE_S:g}")
    return asked


def service_levels(texts: tuple[str, ...]) -> tuple[Slo, ...]:
    """All service levels that are named, each once; raises UsageError for two of one name."""
    from replay.slo import load_slos

    found: dict[str, Slo] = {}
    for slo in (slo for text in texts for slo in load_slos(text)):
        if found.setdefault(slo.name, slo) != slo:
            raise click.UsageError(f"two service levels are named {slo.name!r}: give them unlike names")
    return tuple(found.values())


def plan_rules(options: dict[str, Any], *, once: bool) -> PlanRules:
    from replay.plan import ContextPolicy, DelayPolicy, LengthPolicy
    from replay.request import PlanRules

    return PlanRules(
        seed=options["seed"],
        once=once,
        delay=DelayPolicy(human=options["human_delay"], tool=options["tool_delay"], unsplit=options["unsplit_delay"]),
        length=LengthPolicy.parse(options["length"]),
        context=ContextPolicy(scale=options["context_scale"], limit=options["context_limit"]),
        isolation=options["isolation"],
        share_head=options["share_head"],
        history=options["history"],
        retries=options["retries"],
    )


def run_and_print(
    dataset_folder: Path,
    *,
    as_json: bool,
    settings: Callable[[str], RunRequest],
    compared_with: Path | None = None,
) -> bool:
    """Runs what `settings(dataset_digest)` asks, shows it live, prints the score; False where the run says no.

    With a run to compare with, the comparison is printed below the score, or is a key of its JSON.
    """
    from curate.dataset import Dataset
    from replay.live import LiveWatcher
    from replay.score import run as run_all
    from replay.summary import summary_lines

    dataset = Dataset.open(dataset_folder)
    request = settings(dataset.digest)
    try:
        with LiveWatcher() as watcher:
            score = run_all(request, functools.partial(dataset.trajectories, packed=True), watcher)
    except KeyboardInterrupt:
        begun = (request.out / "run.json").exists()
        click.echo(
            "\ninterrupted; "
            + (f"continue with the same command and --resume ({request.out})" if begun else "nothing was written"),
            err=True,
        )
        raise click.exceptions.Exit(130) from None
    found = _compared(compared_with, request.out) if compared_with is not None else None
    if as_json:
        import msgspec

        value = score if found is None else {**score, "comparison": msgspec.to_builtins(found)}
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())
    else:
        print_text("\n".join(summary_lines(score)))
        if found is not None:
            print_comparison(found)
    if found is not None and not found.comparable:
        return False
    return all(result["verdict"] == "met" for result in score["results"]) and score["verdict"] == "met"


def _compared(other: Path, own: Path) -> Comparison:
    from replay.compare import compare
    from replay.runfolder import RunFolder

    return compare(RunFolder(path=other), RunFolder(path=own))


def print_comparison(found: Comparison, *, as_json: bool = False, markdown: bool = False) -> None:
    """Prints a comparison of two runs, as text unless asked otherwise."""
    from replay.compare import comparison_lines, comparison_markdown

    if as_json:
        import msgspec

        value = {**msgspec.to_builtins(found), "comparable": found.comparable}
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())
    elif markdown:
        print_text(comparison_markdown(found).removesuffix("\n"))
    else:
        print_text("\n".join(comparison_lines(found)))
