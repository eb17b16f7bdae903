"""`agentdyno curate publish` and `withdraw`: what leaves this machine, and how it is taken back."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capture.fault import EnvironmentFault
from curate.commands.shared import faults
from curate.words import count, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from curate.hub import HubTarget
    from curate.leaves import Leaving
    from curate.manifest import Tier
    from curate.publish import Plan, Published
    from curate.storage import StorageTarget
    from curate.target import Limits, Target

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TAG = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_LISTED = 40  # files or sessions that a terminal shows; --json has them all


class Refused(click.ClickException):
    """The place says no: exit code 1."""

    exit_code = 1


def _place(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where."""
    for option in (
        click.option(
            "--token-env",
            metavar="NAME",
            help="Environment variable that holds the Hub token [HF_TOKEN, else the login of 'hf auth login'].",
        ),
        click.option(
            "--to", "url", help="A folder or an object store: a path, s3://…, gs://… (all that fsspec opens)."
        ),
        click.option("--repo", metavar="ORG/NAME", help="A dataset repository on the Hugging Face Hub."),
    ):
        command = option(command)
    return command


@click.command(
    epilog="\b\nExample: agentdyno curate publish my-dataset --repo me/agent-sessions --private --dry-run",
)
@click.argument("dataset", type=click.Path(path_type=Path))
@_place
@click.option("--with-text", is_flag=True, help="Also what was said; needs 'curate approve' of this very dataset.")
@click.option("--private", is_flag=True, help="Make the repository private (before anything is in it).")
@click.option("--gated", type=click.Choice(["auto", "manual"]), help="Readers must ask; you or the Hub says yes.")
@click.option("--tag", help="Name of this release; made of digests by default.")
@click.option("--message", help="First line of the commit.")
@click.option("--dry-run", is_flag=True, help="Show every file and column that would leave; send nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="With --dry-run: a new folder that keeps what was staged.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print what leaves, or the receipt, as JSON.")
def publish(
    dataset: Path,
    repo: str | None,
    url: str | None,
    token_env: str | None,
    with_text: bool,
    private: bool,
    gated: str | None,
    tag: str | None,
    message: str | None,
    dry_run: bool,
    out: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Publish a dataset; without text unless asked.

    Content-free by default: times, lengths, counts and keyed hashes, no word that somebody wrote
    (docs/WHAT_LEAVES.md). Sends what is new in one commit, fetches it again and compares digests. Prints the place.
    """
    if tag is not None and _TAG.fullmatch(tag) is None:
        raise click.UsageError("--tag takes letters, digits, dots, dashes and underscores")
    if out is not None and not dry_run:
        raise click.UsageError("--out goes with --dry-run; a release itself goes --to a place")
    if out is not None and out.exists():
        raise click.UsageError(f"{out} exists; --out takes a new folder")
    with faults(), _publishing():
        from curate.leaves import leaving
        from curate.publish import plan, send
        from curate.target import PlaceState, PlaceUnreachable, Wish

        target, limits = _target(repo, url, token_env)
        tier: Tier = "text" if with_text else "content-free"
        state = None
        if dry_run:
            try:
                state = target.state()
            except PlaceUnreachable as fault:
                state = PlaceState(exists=False, head=None, notes=(f"{fault}; shown as for an empty place",))
        made = plan(dataset, tier, target, limits=limits, out=out, state=state)
        found = leaving(made, target.name)
        wish = Wish(private=private or None, gated=gated)
        if dry_run:
            _show(found, as_json=as_json)
            click.echo(f"dry run: nothing was sent; staged in {made.staged}", err=True)
            return
        if not made.done:
            _tell(found)
            _ask(yes, f"Send this to {target.name}?")
        with _progress(2 * len(made.additions)) as tell:
            published = send(made, target, wish=wish, tag=tag, message=message, tell=tell)
    _finish(published, made, as_json=as_json)


@click.command(
    epilog="\b\nExample: agentdyno curate withdraw 3f2a91c0… --repo me/agent-sessions --reason contributor",
)
@click.argument("sessions", nargs=-1, required=True, metavar="SESSION...")
@_place
@click.option(
    "--dataset",
    type=click.Path(path_type=Path),
    help="Also take them out of this built dataset, so that no later build or release brings them back.",
)
@click.option(
    "--reason",
    type=click.Choice(["contributor", "licence", "personal-data", "secret", "quality", "other"]),
    default="other",
    show_default=True,
    help="The one word about it that is published.",
)
@click.option("--purge", is_flag=True, help="Also forget the repository's history and delete the old files for good.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the receipt as JSON.")
def withdraw(
    sessions: tuple[str, ...],
    repo: str | None,
    url: str | None,
    token_env: str | None,
    dataset: Path | None,
    reason: Any,
    purge: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Take sessions back from a published release, from a built dataset (--dataset), or from both.

    Rewrites only the files that hold them, in one commit, and leaves a tombstone in withdrawn.jsonl. Copies that
    others made before cannot be called back.
    """
    if repo is None and url is None and dataset is None:
        raise click.UsageError("name what to withdraw from: --repo ORG/NAME, --to PATH or --dataset DIR")
    if purge and repo is None:
        raise click.UsageError("--purge is for a repository on the Hub; a folder or a store keeps no history")
    with faults(), _publishing():
        from datetime import UTC, datetime

        from curate.publish import send
        from curate.target import Wish
        from curate.withdraw import plan_withdrawal, refuse_unknown, withdraw_here

        day = datetime.now(UTC).date().isoformat()

        def take_out_here() -> None:
            if dataset is not None:
                gone = withdraw_here(dataset, sessions, reason=reason, day=day)
                click.echo(f"{count(len(gone), 'session')} taken out of {dataset}", err=True)

        if dataset is not None and repo is None and url is None:
            refuse_unknown(dataset, sessions)
            take_out_here()
            click.echo(str(dataset))
            return
        target, _ = _target(repo, url, token_env)
        with tempfile.TemporaryDirectory(prefix="agentdyno-withdraw-") as folder:
            made = plan_withdrawal(sessions, target, reason=reason, day=day, scratch=Path(folder))
            for name in made.already:
                click.echo(f"{name} was withdrawn before", err=True)
            published = None
            if made.plan is not None:
                n = len(made.sessions)
                click.echo(
                    f"{count(n, 'session')} of {target.name}: {count(made.shards, 'shard')} to write again, "
                    f"{count(len(made.plan.additions), 'file')} to send, {len(made.plan.deletions)} to remove",
                    err=True,
                )
                _ask(yes, f"Withdraw {'it' if n == 1 else 'them'} from {target.name}?", look=None)
            take_out_here()  # not before somebody said yes, and not after a release that a kill may cut off
            if made.plan is not None:
                with _progress(2 * len(made.plan.additions)) as tell:
                    published = send(
                        made.plan, target, wish=Wish(), message=f"Withdraw {count(n, 'session')}", tell=tell
                    )
            if purge:
                _purge(target, yes=yes)
    _remaining(purged=purge, on_hub=repo is not None, built=dataset is None)
    if as_json:
        _print_json(published)
    else:
        click.echo(target.name)


def _target(
    repo: str | None, url: str | None, token_env: str | None
) -> tuple[HubTarget | StorageTarget, Limits | None]:
    if (repo is None) == (url is None):
        raise click.UsageError("name one place: --repo ORG/NAME on the Hub, or --to a path or URL")
    if repo is not None:
        if _REPO.fullmatch(repo) is None:
            raise click.UsageError(f"--repo {repo!r}: a repository is ORG/NAME")
        token = os.environ.get(token_env or "HF_TOKEN") or None
        if token_env is not None and token is None:
            raise click.UsageError(f"--token-env {token_env}: no such environment variable, or it is empty")
        from curate.hub import LIMITS, HubTarget

        return HubTarget(repo, token), LIMITS
    from curate.storage import StorageTarget

    return StorageTarget(url or ""), None


@contextmanager
def _publishing() -> Iterator[None]:
    """Turn what publishing raises into exit codes 1 and 3."""
    from curate.target import PlaceUnreachable, PublishRefused

    try:
        yield
    except PublishRefused as fault:
        raise Refused(printable(str(fault))) from fault
    except PlaceUnreachable as fault:
        raise EnvironmentFault(printable(str(fault))) from fault


def _ask(yes: bool, question: str, *, look: str | None = "look at it by --dry-run, then") -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(" ".join(filter(None, ("nobody is here to ask:", look, "say --yes"))))
    if not click.confirm(question, err=True):
        raise click.Abort


def _tell(found: Leaving) -> None:
    """What leaves, in a few lines on stderr."""
    click.echo(
        f"{count(len(found.sessions), 'session')}, tier {found.tier}: {count(len(found.to_send), 'file')} of "
        f"{len(found.files)} to send ({found.bytes_to_send:,} bytes), {len(found.to_remove)} to remove",
        err=True,
    )
    click.echo(f"licences: {_listing(found.licenses)}; consent: {_listing(found.consents)}", err=True)
    for warning in found.warnings:
        click.echo(f"note: {printable(warning)}", err=True)


def _listing(values: tuple[str | None, ...]) -> str:
    return ", ".join("none stated" if value is None else printable(value) for value in values) or "none stated"


def _show(found: Leaving, *, as_json: bool) -> None:
    """Everything that would leave, on stdout."""
    if as_json:
        _print_json({**_builtins(found), "bytes_to_send": found.bytes_to_send})
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(Text(f"{found.place}, tier {found.tier}"))
    files = Table("file", "bytes", "sha256", "", box=None, pad_edge=False)
    sent, listed = set(found.to_send), found.files if not sys.stdout.isatty() else found.files[:_LISTED]
    for entry in listed:
        files.add_row(Text(entry.path), f"{entry.bytes:,}", entry.sha256, "send" if entry.path in sent else "there")
    console.print(files)
    if len(listed) < len(found.files):
        console.print(f"… and {len(found.files) - len(listed)} more; --json has them all")
    for path in found.to_remove:
        console.print(Text(f"{path}  remove"))
    columns = Table("table", "column", "", "what becomes of it", "example", box=None, pad_edge=False)
    for column in found.columns:
        columns.add_row(
            column.table,
            Text(column.column),
            column.action,
            Text(column.sentence),
            Text("–" if column.example is None else printable(column.example)),
        )
    console.print(columns)
    if found.tier == "text":
        shown = found.sessions if not sys.stdout.isatty() else found.sessions[:_LISTED]
        console.print(Text(printable("sessions: " + ", ".join(shown))))
        if len(shown) < len(found.sessions):
            console.print(f"… and {len(found.sessions) - len(shown)} more; --json has them all")
    _tell(found)


def _finish(published: Published, made: Plan, *, as_json: bool) -> None:
    if made.done:
        click.echo(f"already published: {published.place} holds this very release", err=True)
    else:
        click.echo(
            f"sent {count(published.sent_files, 'file')} ({published.sent_bytes:,} bytes), removed "
            f"{published.removed_files}; fetched {published.fetched_files} again and compared "
            f"{published.compared_files} with what the place lists: all equal the manifest",
            err=True,
        )
    click.echo(f"tag {published.tag}, state {published.head}", err=True)
    if as_json:
        _print_json(published)
    else:
        click.echo(published.place)


def _purge(target: Target, *, yes: bool) -> None:
    """Forget history and old files after asking once more; it cannot be undone."""
    from curate.hub import HubTarget
    from curate.manifest import MANIFEST
    from curate.publish import default_tag, published_manifest

    if not isinstance(target, HubTarget):
        raise click.UsageError("--purge is for a repository on the Hub")
    _ask(yes, f"Delete all history, tags and old files of {target.name} for good?", look=None)
    state = target.state()
    manifest = published_manifest(target, state)
    keep = {file.sha256 for file in state.files.values() if file.sha256 is not None}
    purged = target.purge(keep, "Release without withdrawn sessions")
    if manifest is not None:
        import hashlib

        sha256 = hashlib.sha256(target.read(MANIFEST, purged.head)).hexdigest()
        target.tag(default_tag(manifest.digest, sha256), purged.head)
    click.echo(
        f"purged: history squashed, {count(purged.objects, 'old large file')} and {count(len(purged.tags), 'tag')} "
        "deleted for good",
        err=True,
    )
    for ref in purged.remaining:
        click.echo(f"note: {ref} holds older states still; delete it on the Hub", err=True)


def _remaining(*, purged: bool, on_hub: bool, built: bool) -> None:
    if built:
        click.echo("what remains: the dataset that it was published from; name it by --dataset as well", err=True)
    if on_hub and not purged:
        click.echo("what remains: older states of the repository hold them until --purge", err=True)
    click.echo(
        "what remains: copies that others made (clones, caches, mirrors, models trained on them) cannot be called back",
        err=True,
    )


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[str, int], None]]:
    """A bar on stderr; silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        line = bar.add_task("", total=steps)

        def tell(what: str, _: int) -> None:
            bar.update(line, advance=1, description=escape(what))

        yield tell


def _builtins(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def _print_json(value: Any) -> None:
    import json

    click.echo(json.dumps(_builtins(value), indent=1))


COMMANDS = (publish, withdraw)
