"""Journals of one recorder, one after the other: a full one is followed by a new one, without a wait in a hook.

How a recorder uses it (every method from one thread, the event loop's; nothing here touches the disk there):

    journals = Journals(store, meta={"mode": "reverse", …}, on_fault=loud)   # before traffic; OSError if it cannot
    journal = journals.current                       # per exchange, in the hook that begins it
    number = journal.send(at_ns=…, …, contributor=…, consent=…)
    entry = (journal, number)                        # everything later of this exchange goes to the same journal:
    journal.sent(number, …); journal.headers(number, …); journal.read(number, …); journal.end(number, …)
    journals.current.gap(None, …)                    # what belongs to no exchange
    journals.close()                                 # at the end; afterwards `fault`, `exchanges`, `gaps`, `paths`

A number of 0 means that the door is shut (the store is paused): it may be used like any other, and nothing is written.
An exchange ends in the journal it began in; that one is closed when its last exchange has ended.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from capture.journal import QUEUE_BYTES, JournalWriter
from capture.store import Store

ROTATE_BYTES = 1 << 30
_RETRY_S = 30.0  # between attempts to begin the next journal


class Journals:
    """The journals of one recorder, behind one face. `on_fault` is called once, from a writer's thread."""

    def __init__(
        self,
        store: Store,
        *,
        meta: dict[str, str],
        on_fault: Callable[[str], None] | None = None,
        rotate_bytes: int = ROTATE_BYTES,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._store = store
        self._meta = meta
        self._on_fault = on_fault
        self._rotate_bytes = rotate_bytes
        self._queue_bytes = queue_bytes
        self._said = False
        self._tried_s = 0.0
        self._next: JournalWriter | None = None
        self._past: list[JournalWriter] = []  # retired, perhaps with exchanges still in flight
        self._done_exchanges = 0
        self._done_gaps = 0
        self._done_gap_kinds: Counter[str] = Counter()
        self._done_fault: str | None = None
        self._current = self._begin({})
        self.paths: list[Path] = [self._current.path]

    @property
    def current(self) -> JournalWriter:
        """The journal for an exchange that begins now."""
        if self._next is not None:
            self._move_on(self._next)
        return self._current

    @property
    def exchanges(self) -> int:
        """Exchanges begun, in all journals."""
        return self._done_exchanges + sum(journal.exchanges for journal in self._open())

    @property
    def gaps(self) -> int:
        """Places where something was lost, in all journals."""
        return self._done_gaps + sum(journal.gaps for journal in self._open())

    @property
    def gap_kinds(self) -> Counter[str]:
        """`gaps` by kind."""
        return sum((journal.gap_kinds for journal in self._open()), self._done_gap_kinds)

    @property
    def waiting_bytes(self) -> int:
        """What the disk has not taken yet."""
        return sum(journal.waiting_bytes for journal in self._open())

    @property
    def fault(self) -> str | None:
        """Why a journal stopped before its end; None if none did."""
        faults = [self._done_fault, *(journal.fault for journal in self._open())]
        return next((fault for fault in faults if fault is not None), None)

    @property
    def trouble(self) -> str | None:
        """Why what passes now is not written, or not all of it; names no path. A pause is no trouble."""
        if self.fault is not None:
            return "the store cannot be written; relaying goes on unrecorded"
        if self._current.list_unreadable:
            return "the list of what is excluded cannot be read, and until then nothing is written"
        if self._current.overflowing:
            return "the disk does not keep up; what it does not take is lost, and marked"
        return None

    @property
    def overfull(self) -> bool:
        """Whether the journal is larger than one should be, and the next one cannot be begun."""
        return self._tried_s > 0

    def close(self, *, wait_s: float = 10.0) -> None:
        """Write what waits and close every journal."""
        deadline = time.monotonic() + wait_s
        for journal in (*self._past, self._current):
            journal.close(wait_s=max(0.1, deadline - time.monotonic()))
        if self._next is not None:  # nothing ever went into it
            self._next.close(wait_s=max(0.1, deadline - time.monotonic()))
            if self._next.fault is None:
                self._next.path.unlink(missing_ok=True)

    def _open(self) -> list[JournalWriter]:
        return [*self._past, self._current, *([self._next] if self._next is not None else [])]

    def _move_on(self, following: JournalWriter) -> None:
        self._next = None
        before, self._current = self._current, following
        self.paths.append(following.path)
        # After this line nobody begins an exchange in `before`: both happen in the event loop's thread.
        before.retire()
        self._past.append(before)
        for journal in [journal for journal in self._past if journal.ended]:
            self._past.remove(journal)
            self._done_exchanges += journal.exchanges
            self._done_gaps += journal.gaps
            self._done_gap_kinds += journal.gap_kinds
            self._done_fault = self._done_fault or journal.fault

    def _begin(self, more: dict[str, str]) -> JournalWriter:
        return JournalWriter(
            self._store.path,
            key=self._store.key,
            meta={**self._meta, **more},
            on_fault=self._say,
            queue_bytes=self._queue_bytes,
            full_bytes=self._rotate_bytes,
            on_full=self._prepare,
        )

    def _prepare(self) -> None:
        """Begin the next journal; called in the thread of the one that is full, so that no hook waits for the disk."""
        if self._next is not None or time.monotonic() < self._tried_s + _RETRY_S:
            return
        self._tried_s = time.monotonic()
        try:
            self._next = self._begin({"continues": self._current.journal_id})
            self._tried_s = 0.0
        except OSError:
            pass  # the full one goes on as long as its disk takes it, and says so when it does not

    def _say(self, sentence: str) -> None:
        if not self._said and self._on_fault is not None:
            self._said = True
            self._on_fault(sentence)
