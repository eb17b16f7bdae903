"""The health of a store: whether every byte that was written can be read, what it takes, and what was understood."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from capture.exchange import Exchange
from capture.exclusion import ExclusionError, read_exclusions
from capture.pause import read_pause
from capture.reader import JournalReader, WriterState
from capture.repair import leftovers
from capture.store import Store

_RECENT_S = 7 * 86_400
_SHORTEST_S = 3600.0  # a shorter time says nothing about a day

UNSUPPORTED = (
    ("Claude Code on Amazon Bedrock", "binary event streams, signed for one host", "claude-code"),
    ("Claude Code on Google Vertex AI", "paths and logins of Google Cloud", "claude-code"),
    ("Cursor", "Connect/protobuf over HTTP/2 to its own hosts", None),
)
"""(agent and provider, what its wire is, `capture import` format that reads its own log; None: no log tells enough)."""


@dataclass(slots=True, kw_only=True)
class JournalHealth:
    """One journal."""

    name: str
    writer: WriterState
    schema: int | None
    file_bytes: int
    log_bytes: int  # write-ahead log beside it
    exchanges: int = 0
    gaps: dict[str, int] = field(default_factory=dict)  # marks by kind
    hidden: int = 0  # deleted, and still in the file
    repaired: str | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class StoreHealth:
    """A store as a whole; `problems` holds those of its journals too."""

    path: str
    journals: list[JournalHealth] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)  # damaged files that a repair replaced
    imported_sessions: int = 0
    imported_bytes: int = 0
    joined_sessions: int = 0  # recorded sessions that a log was joined to
    other_bytes: int = 0
    raw_bytes: dict[str, int] = field(default_factory=dict)  # on the wire: requests, responses, sockets
    stored_bytes: int = 0  # by the journals
    ratio: float | None = None  # raw to stored; None while nothing is stored
    read: dict[str, int] = field(default_factory=dict)  # exchanges that hold model calls, by path
    unread: list[tuple[str, str, int]] = field(default_factory=list)  # path, why, count
    paused_until_utc_us: int | None = None
    paused: bool = False
    excluded: list[str] = field(default_factory=list)
    free_bytes: int = 0
    bytes_per_day: float | None = None  # of the last week; None where nothing was recorded in it
    days_left: float | None = None
    problems: list[str] = field(default_factory=list)


def examine(store: Store) -> StoreHealth:
    """Read every byte of the store and tell what was found; changes nothing."""
    health = StoreHealth(path=str(store.path))
    read: Counter[str] = Counter()
    unread: Counter[tuple[str, str]] = Counter()
    raw: Counter[str] = Counter(requests=0, responses=0, sockets=0)
    for path in store.journals():
        health.journals.append(_journal(path, raw, read, unread))
    health.raw_bytes = dict(raw)
    health.read = dict(read.most_common())
    health.unread = [(path, why, count) for (path, why), count in unread.most_common()]
    health.stored_bytes = sum(journal.file_bytes + journal.log_bytes for journal in health.journals)
    if health.stored_bytes and raw.total():
        health.ratio = raw.total() / health.stored_bytes
    _shelf(store, health)
    _files(store, health)
    _rate(store, health)
    health.problems += [problem for journal in health.journals for problem in journal.problems]
    return health


def _journal(path: Path, raw: Counter[str], read: Counter[str], unread: Counter[tuple[str, str]]) -> JournalHealth:
    with JournalReader(path) as reader:
        health = JournalHealth(
            name=path.name,
            writer=reader.state,
            schema=reader.schema,
            file_bytes=_size(path),
            log_bytes=_size(Path(f"{path}-wal")),
            hidden=len(reader.hidden),
            repaired=reader.meta.get("repaired"),
        )
        for exchange in reader.exchanges():
            health.exchanges += 1
            raw["requests"] += exchange.request_bytes or 0
            raw["responses"] += sum(len(one.data) for one in exchange.reads)
            raw["sockets"] += sum(len(message.data) for message in exchange.messages)
            _understood(exchange, read, unread)
        health.gaps = dict(Counter(gap.kind for gaps in reader.gaps.values() for gap in gaps))
        health.problems = list(reader.problems)
    return health


def _understood(exchange: Exchange, read: Counter[str], unread: Counter[tuple[str, str]]) -> None:
    from capture import dialect

    path = f"{exchange.host}{exchange.path.partition('?')[0]}"
    if dialect.read_calls(exchange):
        read[path] += 1
        return
    unread[path, dialect.why_unread(exchange) or "no call to a model"] += 1


def _shelf(store: Store, health: StoreHealth) -> None:
    from capture.joined import Joined, JoinedFault
    from capture.shelf import Shelf, ShelfFault

    shelf = Shelf(store.path)
    for session_id in shelf.session_ids():
        health.imported_sessions += 1
        try:
            shelf.load(session_id)
        except ShelfFault as fault:
            health.problems.append(str(fault))
    joined = Joined(store.path)
    for session_id in joined.session_ids():
        health.joined_sessions += 1
        try:
            joined.load(session_id)
        except JoinedFault as fault:
            health.problems.append(str(fault))


def _files(store: Store, health: StoreHealth) -> None:
    known = {str(store.path / journal.name) for journal in health.journals}
    with suppress(ExclusionError):
        listed = read_exclusions(store.path)
        health.excluded = [*listed.folders, *listed.remotes]
    pause = read_pause(store.path)
    health.paused, health.paused_until_utc_us = pause is not None, None if pause is None else pause.until_utc_us
    if store.path.stat().st_mode & 0o077:
        health.problems.append(f"{store.path} is open to other users: `chmod -R go= {store.path}`")
    for path in sorted(store.path.rglob("*")):
        try:
            state = path.lstat()
        except FileNotFoundError:
            continue  # a recorder ended meanwhile
        relative = str(path.relative_to(store.path))
        if state.st_mode & 0o077:
            health.problems.append(f"{path} is open to other users: `chmod go= {path}`")
        if path.is_dir():
            continue
        if relative.startswith("imported/"):
            health.imported_bytes += state.st_size
        elif path.name.endswith((".damaged", ".damaged-wal")):
            health.set_aside.append(path.name)
        elif not any(str(path).startswith(name) for name in known):
            health.other_bytes += state.st_size
        if path.suffix == ".lock" and path.name.startswith("journal-") and not path.with_suffix(".sqlite").exists():
            health.problems.append(f"{path}: a lock without its journal; remove it")
    drafts = [str(path.relative_to(store.path)) for path in leftovers(store)]
    if drafts:
        health.problems.append(
            f"{store.path}: left behind by an interruption: {', '.join(drafts[:3])}"
            f"{' …' if len(drafts) > 3 else ''}; `agentdyno capture doctor --repair` removes it"
        )
    try:
        read_exclusions(store.path)
    except ExclusionError as fault:
        health.problems.append(str(fault))


def _rate(store: Store, health: StoreHealth) -> None:
    health.free_bytes = shutil.disk_usage(store.path).free
    now_s = time.time_ns() / 1e9
    recent: list[tuple[int, float, float]] = []  # bytes, begun, last written
    for path in store.journals():
        with suppress(FileNotFoundError):  # deleted meanwhile
            state = path.stat()
            if now_s - state.st_mtime < _RECENT_S:
                recent.append((state.st_size, _begun_s(path), state.st_mtime))
    if not recent:
        return
    begun_s = min(max(begun, now_s - _RECENT_S) for _, begun, _ in recent)
    # Of a journal that was begun before the week, only its share of the week counts.
    grown = sum(size * min(1.0, _RECENT_S / max(_RECENT_S, last - begun)) for size, begun, last in recent)
    health.bytes_per_day = grown / max(now_s - begun_s, _SHORTEST_S) * 86_400
    health.days_left = health.free_bytes / health.bytes_per_day if health.bytes_per_day else None


def _begun_s(journal: Path) -> float:
    import calendar

    stamp = journal.name.removeprefix("journal-")[:15]
    try:
        return float(calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%S")))
    except ValueError:
        return journal.stat().st_mtime


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
