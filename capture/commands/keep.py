"""`capture doctor`, `delete`, `prune`: the health of a store, and what goes out of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from capture.commands.exclude import COMMANDS as EXCLUDE_COMMANDS
from capture.commands.pause import COMMANDS as PAUSE_COMMANDS
from capture.commands.shared import named_store, reading_faults, say, store_option, warn
from capture.fault import EnvironmentFault

if TYPE_CHECKING:
    from capture.erase import Held, Purge
    from capture.examine import StoreHealth
    from capture.store import Store

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def seconds(text: str) -> float:
    """A time such as 90s, 30m, 12h, 30d or 4w; click.UsageError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if found is None:
        raise click.UsageError(f"{text!r} is no time: write 90s, 30m, 12h, 30d or 4w")
    return float(found[1]) * _UNITS_S[found[2]]


@click.command()
@store_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for a machine.")
@click.option("--repair", is_flag=True, help="Replace damaged journals by what of them can be read.")
def doctor(store_path: Path | None, as_json: bool, repair: bool) -> None:
    """Check every byte of a store, and say what it holds and takes. Exit 1 when something is wrong.

    --repair sets a damaged file aside as journal-….damaged and never deletes it.

    \b
    Example:
      agentdyno capture doctor --store ~/traces
      agentdyno capture doctor --json | jq .problems
    """
    with reading_faults():
        from capture.examine import examine
        from capture.store import Store

        store = Store.open(named_store(store_path))
        if repair:
            _repair(store.own())
        health = examine(store)
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps(asdict(health), indent=2))
    else:
        _print_health(health)
    warn(health.problems)
    if health.problems:
        raise SystemExit(1)


def _repair(store: Store) -> None:
    from capture.erase import purge
    from capture.repair import RepairFault, leftovers, repair

    faults: list[str] = []
    try:
        for journal in store.journals():
            try:
                done = repair(store, journal)
            except RepairFault as fault:  # of this one: the others may be repaired all the same
                faults.append(str(fault))
                continue
            if done is None:
                continue
            kept = "nothing of it can be read"
            if done.kept is not None:
                kept = f"{done.kept.exchanges} exchanges kept, {done.kept.cut} of them in part"
            say(f"repaired {done.journal}: {kept}; the damaged file is {done.set_aside}")
        warn(purge(store).problems)
        for path in filter(Path.is_file, leftovers(store)):
            path.unlink()
            say(f"removed {path}, left behind by an interruption")
    except OSError as fault:
        raise EnvironmentFault(str(fault)) from fault
    warn(faults[:-1])
    if faults:
        raise EnvironmentFault(faults[-1])


def _print_health(health: StoreHealth) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from capture.examine import UNSUPPORTED

    console = Console()
    journals = Table(Column("journal", no_wrap=True), "recorder", "schema", "exchanges", "size", "marks", box=None)
    for journal in health.journals:
        marks = ", ".join(f"{count} {kind}" for kind, count in sorted(journal.gaps.items()))
        hidden = [f"{journal.hidden} deleted, still on disk"] if journal.hidden else []
        repaired = ["repaired"] if journal.repaired else []
        journals.add_row(
            journal.name.removeprefix("journal-").removesuffix(".sqlite"),
            journal.writer,
            str(journal.schema or "?"),
            str(journal.exchanges),
            _bytes(journal.file_bytes + journal.log_bytes),
            "; ".join(filter(None, [marks, *hidden, *repaired])),
        )
    console.print(journals)
    raw = ", ".join(f"{kind} {_bytes(count)}" for kind, count in health.raw_bytes.items())
    ratio = "" if health.ratio is None else f", {health.ratio:.1f} times smaller"
    console.print(f"on the wire: {raw}; in the journals: {_bytes(health.stored_bytes)}{ratio}", soft_wrap=True)
    console.print(
        f"imported: {health.imported_sessions} sessions, {_bytes(health.imported_bytes)}; "
        f"joined to logs: {health.joined_sessions}; "
        f"other files: {_bytes(health.other_bytes)}",
        soft_wrap=True,
    )
    lasts = ""
    if health.bytes_per_day is not None and health.days_left is not None:
        lasts = f"; at {_bytes(health.bytes_per_day)} a day, as in the last week, for {_days(health.days_left)}"
    console.print(f"free on the disk: {_bytes(health.free_bytes)}{lasts}", soft_wrap=True)
    if health.paused:
        console.print("paused: nothing is written until `agentdyno capture resume`, or until the time named")
    for entry in health.excluded:
        console.print(f"excluded: {entry}", soft_wrap=True)
    for name in health.set_aside:
        console.print(f"set aside by a repair: {name}", soft_wrap=True)
    calls = Table("calls read", "path", box=None)
    for path, count in list(health.read.items())[:20]:
        calls.add_row(str(count), path)
    others = Table("not read", "path", "why", box=None)
    for path, why, count in health.unread[:20]:
        others.add_row(str(count), path, why)
    for table in (calls, others):
        if table.row_count:
            console.print(table)
    unsupported = Table("not recorded by the proxy", "its wire", Column("instead", no_wrap=True), box=None)
    for agent, wire, form in UNSUPPORTED:
        unsupported.add_row(agent, wire, f"capture import {form}" if form else "no log of it tells enough")
    console.print(unsupported)
    console.print("whole" if not health.problems else f"{len(health.problems)} problems, named on stderr")


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _days(days: float) -> str:
    return f"{days:.0f} days" if days < 3650 else "more than ten years"


@click.command()
@click.argument("sessions", metavar="SESSION...", nargs=-1, required=True)
@store_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(sessions: tuple[str, ...], store_path: Path | None, yes: bool) -> None:
    """Delete sessions for good: hidden at once, and written out of their files.

    The first digits of an id are enough. Text that another session also sent stays with that session. Digests of
    credentials stay, so that they are found in other text.

    \b
    Example:
      agentdyno capture delete 3fa2 --store ~/traces
    """
    with reading_faults():
        from capture.erase import EraseFault, sessions_held
        from capture.erase import delete as erase
        from capture.store import Store

        store = Store.open(named_store(store_path)).own()
        problems: list[str] = []
        held = sessions_held(store, problems)
        chosen = list({session.session_id: session for session in (_one(held, name) for name in sessions)}.values())
        exchanges = len({exchange for session in chosen for exchange in session.exchanges})
        _confirm(f"delete {len(chosen)} sessions with {exchanges} recorded exchanges from {store.path}", yes)
        try:
            done = erase(store, chosen, held)
        except EraseFault as fault:
            raise click.UsageError(str(fault)) from fault
        except OSError as fault:
            raise EnvironmentFault(f"{store.path}: cannot delete: {fault.strerror or fault}") from fault
    _say_purged(store, len(chosen), done)


def _one(held: list[Held], name: str) -> Held:
    from capture.sessions import NoSuchSession

    wanted = name.strip().lower()
    found = [session for session in held if session.session_id == wanted]
    found = found or [session for session in held if wanted and session.session_id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NoSuchSession(f"{len(found)} sessions start with {name!r}: give more digits")
    raise NoSuchSession(f"no session {name!r} among {len(held)}: `agentdyno capture sessions` lists them")


@click.command()
@click.option("--older-than", required=True, metavar="TIME", help="30d, 12h, 4w: by a session's last activity.")
@store_option
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(older_than: str, store_path: Path | None, dry_run: bool, yes: bool) -> None:
    """Delete every session whose last activity is older than a time, imported ones too.

    \b
    Example:
      agentdyno capture prune --older-than 30d --dry-run
      agentdyno capture prune --older-than 30d --yes
    """
    import time

    before_us = time.time_ns() // 1000 - round(seconds(older_than) * 1e6)
    with reading_faults():
        from capture.erase import prune as erase
        from capture.erase import purge, sessions_held, stale
        from capture.store import Store

        store = Store.open(named_store(store_path)).own()
        old, lonely = stale(store, sessions_held(store, []), before_us)
        what = f"{len(old)} sessions and {len(lonely)} exchanges of no session, older than {older_than}"
        if dry_run:
            for session in old:
                click.echo(session.session_id)
            say(f"would delete {what}")
            return
        if not old and not lonely:
            say(f"nothing in {store.path} is older than {older_than}")
            _say_purged(store, 0, purge(store))
            return
        _confirm(f"delete {what} from {store.path}", yes)
        try:
            done = erase(store, old, lonely)
        except OSError as fault:
            raise EnvironmentFault(f"{store.path}: cannot delete: {fault.strerror or fault}") from fault
    _say_purged(store, len(old), done)


def _confirm(what: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"nobody to ask whether to {what}: add --yes")
    click.confirm(f"{what}?", abort=True, err=True)


def _say_purged(store: Store, sessions: int, done: Purge) -> None:
    if sessions or done.journals:
        say(
            f"deleted {sessions} sessions; {done.journals} journals written anew or removed, "
            f"{_bytes(max(0, done.freed_bytes))} freed"
        )
    for journal in done.waiting:
        say(
            f"{journal.name} is being recorded into: what was deleted is hidden now, and goes from the disk with the "
            "next delete, prune or start of a recorder after this one stops"
        )
    aside = sorted(path.name for path in store.path.glob("*.damaged*"))
    if aside and (sessions or done.journals):
        say(f"files set aside by a repair may still hold text of it; remove them by hand: {', '.join(aside)}")
    warn(done.problems)
    if done.problems:
        raise SystemExit(1)


COMMANDS = (doctor, delete, prune, *PAUSE_COMMANDS, *EXCLUDE_COMMANDS)
