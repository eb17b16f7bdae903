"""Sessions taken out of a store: hidden at once, then the journals that held them are written anew without them.

Two steps, so that an interruption loses nothing and forgets nothing. First a tombstone beside each journal names what
is deleted, and no reader shows it any more. Then each journal that no recorder holds is copied without it, the copy is
read back and compared, and takes the journal's place by a rename; only then the tombstone goes. What is left after an
interruption, or waits for a recorder that still writes, is done by the next `delete`, `prune` or start of a recorder.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from capture.exchange import Exchange
from capture.reader import JournalReader, writer_state
from capture.rewrite import DRAFT, copy_journal, rewriting
from capture.store import Store
from capture.tombstone import SUFFIX, bury, hidden_numbers, hide


class EraseFault(ValueError):
    """Something cannot be deleted now. The sentence names it and the next step."""


@dataclass(slots=True)
class Purge:
    """What became of the journals with tombstones."""

    journals: int = 0  # written anew, or removed whole
    exchanges: int = 0  # gone from them
    freed_bytes: int = 0
    waiting: list[Path] = field(default_factory=list)  # a recorder still writes them: hidden, still on disk
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A session as the store holds it."""

    session_id: str
    imported: bool
    exchanges: frozenset[str]  # ids, without the number of a call within a socket
    last_utc_us: int | None
    twin_of: str | None = None  # an import that is not listed, because it is joined to this recorded session


def sessions_held(store: Store, problems: list[str]) -> list[Held]:
    """Every session of the store with the exchanges that carry it, imports that are joined to one included."""
    from capture.sessions import HiddenTwin, read_sessions
    from capture.shelf import Shelf

    imported = set(Shelf(store.path).session_ids())
    twins: list[HiddenTwin] = []
    held = [
        Held(
            session_id=trajectory.session_id,
            imported=trajectory.session_id in imported,
            exchanges=frozenset(
                request.exchange_id.partition("#")[0] for request in trajectory.requests if request.exchange_id
            ),
            last_utc_us=None if trajectory.t0_utc_us is None else trajectory.t0_utc_us + (trajectory.duration_us or 0),
        )
        for trajectory in read_sessions(store.path, problems, twins)
    ]
    last = {session.session_id: session.last_utc_us for session in held}
    return held + [
        Held(
            session_id=twin.session_id,
            imported=True,
            exchanges=frozenset(),
            last_utc_us=last.get(twin.recorded),
            twin_of=twin.recorded,
        )
        for twin in twins
    ]


def delete(store: Store, chosen: Iterable[Held], held: Iterable[Held]) -> Purge:
    """Delete the chosen sessions out of all that are held, and imports that are joined to them.

    EraseFault where one shares a socket with one that stays.
    """
    chosen, held = list(chosen), list(held)
    recorded = {session.session_id for session in chosen}
    chosen += [session for session in held if session.twin_of in recorded and session.session_id not in recorded]
    doomed = {exchange for session in chosen if not session.imported for exchange in session.exchanges}
    names = {session.session_id for session in chosen}
    for session in held:
        shared = sorted(doomed & session.exchanges) if session.session_id not in names else []
        if shared:
            raise EraseFault(
                f"session {session.session_id} shares the connection {shared[0]} with one that is to go: "
                "delete both, or neither"
            )
    others = {exchange for session in held if session.session_id not in names for exchange in session.exchanges}
    doomed |= _copies_of(store, doomed) - others
    doomed |= _that_name_them(store, doomed, others)
    return _take_out(store, doomed, names)


def stale(store: Store, held: Iterable[Held], before_utc_us: int) -> tuple[list[Held], frozenset[str]]:
    """Sessions whose last activity is older, and exchanges as old that belong to no session.

    A session that shares a connection with a younger one counts as young.
    """
    held = list(held)
    young = {
        exchange
        for session in held
        if session.last_utc_us is None or session.last_utc_us >= before_utc_us
        for exchange in session.exchanges
    }
    old = [
        session
        for session in held
        if session.last_utc_us is not None and session.last_utc_us < before_utc_us and not session.exchanges & young
    ]
    known = {exchange for session in held for exchange in session.exchanges}
    lonely = frozenset(
        exchange.exchange_id
        for exchange in store.exchanges()
        if exchange.exchange_id not in known and _last_utc_us(exchange) < before_utc_us
    )
    return old, lonely


def prune(store: Store, old: Iterable[Held], lonely: frozenset[str]) -> Purge:
    """Delete what `stale` found."""
    old = list(old)
    doomed = {exchange for session in old if not session.imported for exchange in session.exchanges} | lonely
    return _take_out(store, doomed, {session.session_id for session in old})


def purge(store: Store, *, wait: bool = False) -> Purge:
    """Write every journal with a tombstone anew, as far as no recorder holds it.

    While another process does so this one waits for it, or does nothing.
    """
    done = Purge()
    if not any(store.path.glob(f"*{SUFFIX}")) and not any(store.path.glob(f"{DRAFT}*")):
        return done
    with rewriting(store.path, wait=wait) as alone:
        if not alone:
            return done
        for draft in store.path.glob(f"{DRAFT}*"):
            shutil.rmtree(draft, ignore_errors=True)
        for tombstone in sorted(store.path.glob(f"journal-*{SUFFIX}")):
            journal = tombstone.with_suffix(".sqlite")
            try:
                _purge(store, journal, done)
            except (EraseFault, ValueError) as fault:
                done.problems.append(str(fault))
            except (OSError, sqlite3.Error) as fault:
                done.problems.append(f"{journal}: what was deleted is hidden but still on disk ({fault})")
    return done


def _take_out(store: Store, doomed: set[str], session_ids: set[str]) -> Purge:
    from capture.joined import Joined, JoinedFault
    from capture.shelf import Shelf

    numbers: defaultdict[Path, set[int]] = defaultdict(set)
    for exchange_id in doomed:
        name, _, number = exchange_id.rpartition("-")
        numbers[store.path / f"journal-{name}.sqlite"].add(int(number))
    for journal, own in numbers.items():
        hide(journal, own)
    shelf = Shelf(store.path)
    joined = Joined(store.path)
    for session_id in sorted(session_ids):
        shelf.remove(session_id)
        # A log that was joined to a recorded session may have been imported too, and is only hidden behind it.
        with suppress(JoinedFault):
            for log in joined.load(session_id):
                if log.twin is not None:
                    shelf.remove(log.twin)
        joined.forget(session_id)
    return purge(store, wait=True)


def _copies_of(store: Store, doomed: set[str]) -> set[str]:
    """What a recorder behind the one that saw the doomed wrote of the same calls: no session shows it."""
    if len(store.journals()) < 2:
        return set()
    from capture.sessions import read_wire
    from capture.twice import copies

    kept_for = copies(read_wire(store, []))
    return {copy.partition("#")[0] for copy, kept in kept_for.items() if kept.partition("#")[0] in doomed}


def _that_name_them(store: Store, doomed: set[str], others: set[str]) -> set[str]:
    """Exchanges of no other session that name one of the doomed by the agent's own id: telemetry, counts, probes."""
    from capture.dialect import read_calls

    names = {
        hint.session.encode()
        for exchange in store.exchanges()
        if exchange.exchange_id in doomed
        for call in read_calls(exchange)
        for hint in call.hints
        if len(hint.session) >= 8
    }
    if not names:
        return set()
    return {
        exchange.exchange_id
        for exchange in store.exchanges()
        if exchange.exchange_id not in doomed | others
        and any(name in text for text in _texts(exchange) for name in names)
    }


def _texts(exchange: Exchange) -> Iterator[bytes]:
    yield exchange.path.encode()
    for _, value in exchange.request_headers:
        yield value.encode()
    yield exchange.request_body
    yield from (message.data for message in exchange.messages)


def _last_utc_us(exchange: Exchange) -> int:
    if exchange.t_end_ns is not None:
        return exchange.wall_anchor_us + exchange.t_end_ns // 1000 + (exchange.wall_offset_end_us or 0)
    return exchange.wall_anchor_us + exchange.t_send_ns // 1000 + exchange.wall_offset_us


def _purge(store: Store, journal: Path, done: Purge) -> None:
    drop = hidden_numbers(journal)
    if not journal.exists():  # interrupted after it was removed whole
        _unlink(journal)
        return
    state = writer_state(journal)
    if state == "live":
        done.waiting.append(journal)
        return
    before = journal.stat().st_size
    _settle(journal)
    with JournalReader(journal) as reader:
        reader.hidden = drop
        kept = sum(1 for _ in reader.exchanges())
        if reader.problems:
            raise EraseFault(
                f"{reader.problems[0]}; what was deleted is hidden but still on disk: "
                f"`agentdyno capture doctor --repair --store {store.path}`, then delete again"
            )
        seen = list(reader.secrets())
    if not kept:
        store.keep_secrets(seen)
        _unlink(journal)
    else:
        folder = store.path / f"{DRAFT}{journal.stem}"
        folder.mkdir(mode=0o700)
        try:
            copy = folder / journal.name
            if state == "killed":
                copy.with_suffix(".lock").touch(mode=0o600)
            with JournalReader(journal) as reader:
                reader.hidden = drop
                copy_journal(reader, copy, drop=drop)
            compare(journal, copy, drop)
            copy.replace(journal)
            bury(journal, drop)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    done.journals += 1
    done.exchanges += len(drop)
    done.freed_bytes += before - (journal.stat().st_size if journal.exists() else 0)


def compare(journal: Path, copy: Path, drop: frozenset[int]) -> None:
    """EraseFault unless both read alike, exchange by exchange, but for those that were dropped."""
    with JournalReader(journal) as one, JournalReader(copy) as other:
        one.hidden = drop  # another process may have hidden more since the copy was begun
        pairs = zip(one.exchanges(), other.exchanges(), strict=True)
        try:
            same = all(left == right for left, right in pairs)
        except ValueError:  # one holds more than the other
            same = False
        problems = other.problems
    if not same or problems:
        raise EraseFault(f"{journal}: its copy does not read back as the original ({problems}); nothing was changed")


def _settle(journal: Path) -> None:
    """Take the write-ahead log of a killed recorder into the file: a copy must not meet the log of the original."""
    if not Path(f"{journal}-wal").exists():
        return
    database = sqlite3.connect(journal, isolation_level=None)
    try:
        (mode,) = database.execute("PRAGMA journal_mode = DELETE").fetchone()
    finally:
        database.close()
    if mode != "delete":
        raise EraseFault(f"{journal}: somebody reads it now, so that it cannot be written anew: delete again later")


def _unlink(journal: Path) -> None:
    """Remove a journal whole; its tombstone last, so that an interruption is noticed."""
    for name in (str(journal), f"{journal}-wal", f"{journal}-shm"):
        Path(name).unlink(missing_ok=True)
    journal.with_suffix(".lock").unlink(missing_ok=True)
    bury(journal, hidden_numbers(journal))
