"""A damaged journal replaced by what of it can be read; the damaged file is set aside, never deleted."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from capture.reader import JournalReader
from capture.rewrite import DRAFT, Copied, copy_journal, rewriting
from capture.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What was done with one journal. `kept` is None where nothing of it can be read."""

    journal: Path
    set_aside: Path
    kept: Copied | None


class RepairFault(ValueError):
    """A journal cannot be repaired now. The sentence names it and the next step."""


def leftovers(store: Store) -> list[Path]:
    """Drafts of processes that are gone, and folders in which a journal was written anew until an interruption."""
    found = list(store.path.glob(f"{DRAFT}*"))
    for path in store.path.rglob(".*"):
        draft = re.fullmatch(r"\..+\.(\d+)(?:\.[0-9a-f]+)?", path.name)
        if draft is not None and path.is_file() and not _is_alive(int(draft[1])):
            found.append(path)
    return sorted(found)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def repair(store: Store, journal: Path) -> Repaired | None:
    """Repair one journal; None if it is whole, or a recorder writes it. RepairFault where it cannot be looked at."""
    try:
        with JournalReader(journal) as reader:
            if reader.state == "live":
                return None
            whole = sum(1 for _ in reader.exchanges())
            problems = list(reader.problems)
            if reader.withheld is not None:
                raise RepairFault(f"{reader.withheld}; it is left as it is")
        if not problems:
            return None
        with rewriting(store.path) as alone:
            if not alone:
                raise RepairFault(f"{journal}: another process writes journals of this store anew: repair again later")
            return _replace(store, journal, problems[0], whole)
    except OSError as fault:
        raise RepairFault(f"{journal} cannot be repaired: {fault.strerror or fault}") from fault


def _replace(store: Store, journal: Path, problem: str, whole: int) -> Repaired:
    folder = store.path / f"{DRAFT}{journal.stem}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        copy, kept = folder / journal.name, None
        if whole:
            lock = journal.with_suffix(".lock")
            if lock.exists():
                copy.with_suffix(".lock").touch(mode=0o600)
            with JournalReader(journal) as reader:
                kept = copy_journal(reader, copy, meta={"repaired": problem.removeprefix(f"{journal}: ")})
            _verify(journal, copy)
        aside = _set_aside(journal)
        if kept is not None:
            copy.replace(journal)
        else:
            journal.unlink()
        return Repaired(journal=journal, set_aside=aside, kept=kept)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _set_aside(journal: Path) -> Path:
    """A second name for the file and its log; the log leaves its place, where the new file would meet it."""
    number, aside = 1, journal.with_name(f"{journal.name}.damaged")
    while aside.exists():
        number += 1
        aside = journal.with_name(f"{journal.name}.{number}.damaged")
    aside.hardlink_to(journal)
    log = Path(f"{journal}-wal")
    if log.exists():
        log.rename(f"{aside}-wal")
    Path(f"{journal}-shm").unlink(missing_ok=True)
    return aside


def _verify(journal: Path, copy: Path) -> None:
    """The copy is whole and says of each exchange what the damaged file still says."""
    with JournalReader(copy) as reader:
        found = {exchange.exchange_id: exchange for exchange in reader.exchanges()}
        if reader.problems:
            raise RepairFault(f"{journal}: its copy cannot be read back ({reader.problems[0]}); nothing was changed")
    with JournalReader(journal) as reader:
        for exchange in reader.exchanges():
            again = found.pop(exchange.exchange_id, None)
            if again is None or (again.request_body, again.reads, again.messages) != (
                exchange.request_body, exchange.reads, exchange.messages,
            ):  # fmt: skip
                raise RepairFault(f"{journal}: {exchange.exchange_id} is not the same in its copy; nothing was changed")
    if found:
        raise RepairFault(f"{journal}: its copy holds more than it; nothing was changed")
