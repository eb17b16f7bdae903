"""`agentdyno curate review` and `approve`: a person looks before text is published, and says so."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capture.fault import EnvironmentFault
from curate.commands.shared import faults
from curate.words import count

if TYPE_CHECKING:
    from curate.review.queue import Queue
    from curate.review.sampling import SampleSize

_SAMPLE = click.option(
    "--sample",
    metavar="N|P%",
    help="Look at all sessions of high risk and so many of the others, drawn by the dataset's digest.",
)
_REVIEWER = click.option("--reviewer", help="Your name in the record of decisions.  [default: your user name]")


@click.command(epilog="\b\nExample: agentdyno curate review my-dataset --sample 10%")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="Loopback address; port 0 takes a free one.")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    help="Gets the URL with its token once connections are accepted; readable by you alone.",
)
@click.option("--contributor", metavar="ID", help="Serve this contributor's sessions alone.")
@_SAMPLE
@_REVIEWER
@click.option("--no-browser", is_flag=True, help="Only print the URL.")
def review(
    dataset: Path,
    listen: str,
    ready_file: Path | None,
    contributor: str | None,
    sample: str | None,
    reviewer: str | None,
    no_browser: bool,
) -> None:
    """Serve a local page to look at sessions, the riskiest first, and approve or drop each by a key.

    Decisions are on the disk as they are made. Nothing leaves this machine. Ctrl-C ends it.
    """
    if contributor is not None and sample is not None:
        raise click.UsageError("a contributor looks at all of their own sessions: leave --sample away")
    with faults():
        from curate.review.queue import Queue
        from curate.review.server import ListenFault, Review, loopback_address, serving

        try:
            host, port = loopback_address(listen)
            with _progress() as on_progress:
                queue = Queue.open(dataset, contributor=contributor, sample=_size(sample), on_progress=on_progress)
            _say_scope(queue)
            with serving(Review(queue, reviewer=reviewer or _user()), host, port) as server:
                _wait(server.url, ready_file, dataset, browser=not no_browser)
        except ListenFault as fault:
            raise click.UsageError(str(fault)) from fault
        _say_left(queue, sample)


def _wait(url: str, ready_file: Path | None, dataset: Path, *, browser: bool) -> None:
    """Until Ctrl-C or SIGTERM."""
    import signal
    import threading

    from capture.atomic import write_atomically
    from curate.review.browser import opened

    ended = threading.Event()
    before = {each: signal.signal(each, lambda *_: ended.set()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        if ready_file is not None:
            try:
                write_atomically(ready_file, f"{url}\n".encode(), mode=0o600)
            except OSError as fault:
                raise EnvironmentFault(f"cannot write the ready file {ready_file}: {fault.strerror}") from fault
        click.echo(url)
        click.echo("Ctrl-C ends the review; every decision is kept as it is made", err=True)
        with opened(url, dataset, really=browser):
            ended.wait()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


def _say_scope(queue: Queue) -> None:
    shown = count(len(queue.cases), "session")
    total = sum(len(shard.sessions) for shard in queue.manifest.shards)
    if queue.contributor is not None:
        click.echo(f"{shown} of contributor {queue.contributor}", err=True)
    elif queue.draw is not None:
        drawn = f"{len(queue.draw.always):,} of high risk and {len(queue.draw.drawn):,} drawn of {queue.draw.rest:,}"
        click.echo(f"{shown} of {total:,}: {drawn} others", err=True)
    else:
        click.echo(shown, err=True)
    if queue.decisions.unfinished:
        click.echo(
            f"{queue.decisions.path}: {count(queue.decisions.unfinished, 'unfinished line')} left aside", err=True
        )


def _say_left(queue: Queue, sample: str | None) -> None:
    from curate.review.queue import Tally

    tally = Tally.of(queue.standings())
    click.echo(f"{tally.approved:,} approved, {tally.dropped:,} dropped, {tally.undecided:,} left", err=True)
    option = f" --sample {sample}" if sample is not None else ""
    option += f" --contributor {queue.contributor}" if queue.contributor is not None else ""
    if tally.undecided:
        click.echo(f"go on: agentdyno curate review {queue.folder}{option}", err=True)
    elif queue.contributor is None:
        click.echo(f"next: agentdyno curate approve {queue.folder}{option}", err=True)


@click.command(epilog="\b\nExample: agentdyno curate approve my-dataset --sample 10%")
@click.argument("dataset", type=click.Path(path_type=Path))
@_REVIEWER
@_SAMPLE
@click.option(
    "--without-review",
    is_flag=True,
    help="Approve sessions that nobody looked at; the record and the published dataset say so.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the approval as JSON.")
def approve(dataset: Path, reviewer: str | None, sample: str | None, without_review: bool, as_json: bool) -> None:
    """Take dropped sessions out and approve the rest for publishing with text, byte for byte.

    Any later change of the folder makes the approval void. Exit code 1 while sessions are undecided.
    """
    if sample is not None and without_review:
        raise click.UsageError("--sample and --without-review exclude each other")
    with faults():
        import msgspec

        from curate.review.approve import Undecided
        from curate.review.approve import approve as approve_dataset

        try:
            with _progress() as on_progress:
                done = approve_dataset(
                    dataset,
                    reviewer=reviewer or _user(),
                    sample=_size(sample),
                    without_review=without_review,
                    on_progress=on_progress,
                )
        except Undecided as fault:
            if as_json:
                click.echo(msgspec.json.encode({"approved": False, "undecided": fault.n}).decode())
            raise click.ClickException(str(fault)) from fault
        approval = done.approval
        if as_json:
            click.echo(msgspec.json.format(msgspec.json.encode(approval), indent=2).decode())
        else:
            click.echo(f"{'approved before' if done.already else 'approved'}: {approval.digest}")
        click.echo(approval.public.sentence, err=True)
        if approval.sample is not None and approval.sample.drawn_dropped:
            click.echo("the sample held sessions to drop: a larger one finds more of them", err=True)


def _size(sample: str | None) -> SampleSize | None:
    from curate.review.sampling import SampleSize

    try:
        return None if sample is None else SampleSize.parse(sample)
    except ValueError as fault:
        raise click.UsageError(str(fault)) from fault


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return "unknown"


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """A line on stderr; silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("read {task.completed:,} sessions"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        line = bar.add_task("sessions", total=None)
        yield lambda done: bar.update(line, completed=done)


COMMANDS = (review, approve)
