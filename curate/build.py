"""Stores in, a dataset folder out: shards of work with receipts, then statistics, plots, card and manifest.

The folder must be new, or hold an earlier or unfinished result of the same inputs. A shard whose receipt matches is
not done again, so a killed build goes on where it stopped and a grown store costs only what is new.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import importlib.metadata
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from capture.atomic import write_atomically
from capture.trajectory import Trajectory
from curate.manifest import (
    FORMAT,
    MANIFEST,
    WORK,
    DatasetFault,
    Drop,
    FileEntry,
    Inputs,
    Manifest,
    Receipt,
    content_digest,
    file_sha256,
    read_manifest,
    write_json,
)
from curate.recipe import Recipe
from curate.row import published
from curate.shard import Redacts, ShardTask, build_shard, input_digest
from curate.table import SCHEMA_VERSION, TABLES

SHARD_BYTES = 32 << 20  # of sessions as JSON: seconds of work, so a kill costs little
SHARD_SESSIONS = 512
SAME_START_US = 2_000_000  # two recorders of one session see its first call at nearly one time
PREVIOUS = "previous-manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildProgress:
    """Where a build is; `sessions` counts those read so far."""

    step: str
    sessions: int
    shards: int
    reused_shards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build made."""

    folder: Path
    digest: str
    rows: dict[str, int]  # by table
    shards: int
    reused_shards: int
    dropped: dict[str, int]  # reason → sessions or sources
    redactions: dict[str, int]  # rule → findings


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One store as a build sees it."""

    store_id: str
    sessions: Callable[[list[str]], Iterator[Trajectory]]  # appends what it cannot read, in words
    redactor: Redacts
    rules: str  # digest of all that redaction goes by, known secrets included: when it changes, shards are done again


def build(
    stores: Sequence[Path],
    out: Path,
    *,
    tokenizer: str = "o200k_base",
    redactor: Redacts | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
    recipe: Recipe | None = None,
    jobs: int | None = None,
) -> BuildReport:
    """Build the dataset of some stores into `out`.

    Without a redactor each store gets one that knows the secrets its recorder saw. Raises DatasetFault when `out`
    holds something else (and leaves it untouched) or when no session can be read, and
    `curate.tokens.EncodingUnavailable` when the tokenizer is not at hand.
    """
    from curate.tokens import load_encoding

    load_encoding(tokenizer)  # fail before the folder is touched
    sources = [_open(Path(store), redactor) for store in stores]
    return build_sources(sources, out, tokenizer=tokenizer, on_progress=on_progress, recipe=recipe, jobs=jobs)


def _open(path: Path, redactor: Redacts | None) -> Source:
    from capture.sessions import read_sessions
    from capture.store import Store

    store = Store.open(path)
    known = store.seen_secrets()
    if redactor is None:
        from curate.redact import Redactor

        redactor = Redactor(seen=known, key=store.key)
    rules = hashlib.sha256("\n".join((redactor.policy, *sorted(repr(secret) for secret in known))).encode()).hexdigest()

    def sessions(problems: list[str]) -> Iterator[Trajectory]:
        found: list[str] = []
        yield from read_sessions(path, found, once=True)
        # A published file names no folder of this machine.
        problems.extend(problem.replace(f"{path}{os.sep}", "").replace(str(path), path.name) for problem in found)

    store_id = hmac.digest(store.key, b"agentdyno store id", "sha256").hex()[:16]
    return Source(store_id=store_id, sessions=sessions, redactor=redactor, rules=rules)


def build_sources(
    sources: Sequence[Source],
    out: Path,
    *,
    tokenizer: str,
    on_progress: Callable[[BuildProgress], None] | None = None,
    recipe: Recipe | None = None,
    jobs: int | None = None,
) -> BuildReport:
    """As `build`, from stores already opened."""
    from curate.card import write_papers

    recipe = recipe or Recipe()
    inputs = Inputs(
        stores=tuple(sorted(source.store_id for source in sources)),
        tokenizer=tokenizer,
        # Without what follows "+": whether a recorder has seen secrets may change while a store grows.
        redaction=", ".join(sorted({source.redactor.policy.partition("+")[0] for source in sources})),
        recipe=recipe.name,
    )
    with _claimed(out, inputs) as (known, created):
        tell = _Teller(on_progress)
        dropped: Counter[str] = Counter()
        tasks = _tasks(sources, out, tokenizer, recipe, dropped, tell)
        receipts = list(_run(tasks, known, out, jobs or os.cpu_count() or 1, tell))
        for receipt in receipts:
            dropped.update({drop.reason: drop.n for drop in receipt.drops})
        entries = [entry for receipt in receipts for entry in receipt.sessions]
        if not entries:
            reasons = "; ".join(f"{reason} ({n}×)" for reason, n in dropped.most_common(3))
            if created:
                shutil.rmtree(out)
            raise DatasetFault(f"no session to build from: {reasons or 'the stores are empty'}")
        receipts = [receipt for receipt in receipts if receipt.files]
        _remove_strays(out, receipts)
        manifest = Manifest(
            format=FORMAT,
            schema=SCHEMA_VERSION,
            tier="full",
            digest=content_digest(entries),
            inputs=inputs,
            recipe=recipe,
            rows={table.name: sum(receipt.files[table.name].rows for receipt in receipts) for table in TABLES},
            shards=tuple(receipts),
            papers=(),
            drops=tuple(Drop(stage="read", reason=reason, n=n) for reason, n in sorted(dropped.items())),
        )
        tell.step("statistics, plots, card")
        papers = write_papers(out, manifest)
        manifest = replace(manifest, papers=tuple(_entry(out, path) for path in sorted(papers)))
        write_json(out / MANIFEST, manifest)
        shutil.rmtree(out / WORK)
    return BuildReport(
        folder=out,
        digest=manifest.digest,
        rows=manifest.rows,
        shards=len(receipts),
        reused_shards=tell.reused,
        dropped={drop.reason: drop.n for drop in manifest.drops},
        redactions=dict(sorted(sum((Counter(receipt.redactions) for receipt in receipts), Counter()).items())),
    )


class _Teller:
    """Counts, and tells whoever listens."""

    def __init__(self, listener: Callable[[BuildProgress], None] | None) -> None:
        self.listener = listener
        self.name = "sessions"
        self.sessions = self.shards = self.reused = 0

    def tell(self) -> None:
        if self.listener is not None:
            self.listener(
                BuildProgress(step=self.name, sessions=self.sessions, shards=self.shards, reused_shards=self.reused)
            )

    def step(self, name: str) -> None:
        self.name = name
        self.tell()


@contextmanager
def _claimed(out: Path, inputs: Inputs) -> Iterator[tuple[dict[str, Receipt], bool]]:
    """Take the folder, or refuse it untouched; gives the receipts of earlier work and whether the folder is new."""
    created = not out.exists()
    if not created:
        _check_ours(out, inputs)
    work = out / WORK
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    if created:
        out.chmod(0o700)  # redaction has limits: what was private stays the owner's until published
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise DatasetFault(f"another build is writing {out}; wait for it, or choose another folder") from fault
        write_json(work / "inputs.json", inputs)
        if (out / MANIFEST).exists():
            # From here on the folder is unfinished, until a new manifest says otherwise.
            (out / MANIFEST).replace(work / PREVIOUS)
        yield _receipts(work), created


def _check_ours(out: Path, inputs: Inputs) -> None:
    if not out.is_dir():
        raise DatasetFault(f"{out} is a file; choose a new folder")
    if {path.name for path in out.iterdir()} <= {WORK} and not (out / WORK / "inputs.json").exists():
        return
    earlier: Inputs | None = None
    if (out / MANIFEST).is_file():
        earlier = read_manifest(out).inputs
    elif (out / WORK / "inputs.json").is_file():
        try:
            earlier = msgspec.json.decode((out / WORK / "inputs.json").read_bytes(), type=Inputs)
        except msgspec.MsgspecError as fault:
            raise DatasetFault(f"{out} holds an unfinished build of another version; choose a new folder") from fault
    if earlier is None:
        raise DatasetFault(f"{out} exists and is not a build of ours; choose a new folder")
    difference = inputs.difference(earlier)
    if difference is not None:
        raise DatasetFault(f"{out} holds a dataset built from {difference}; choose a new folder")


def _receipts(work: Path) -> dict[str, Receipt]:
    """Receipts of shards done earlier, by input digest; unreadable ones count as not done."""
    found: dict[str, Receipt] = {}
    if (work / PREVIOUS).is_file():
        try:
            previous = msgspec.json.decode((work / PREVIOUS).read_bytes(), type=Manifest)
            found = {receipt.input_digest: receipt for receipt in previous.shards}
        except msgspec.MsgspecError:
            found = {}
    for path in sorted((work / "receipts").glob("*.json")):
        try:
            receipt = msgspec.json.decode(path.read_bytes(), type=Receipt)
        except msgspec.MsgspecError:
            continue
        found[receipt.input_digest] = receipt
    return found


def _tasks(
    sources: Sequence[Source], out: Path, tokenizer: str, recipe: Recipe, dropped: Counter[str], tell: _Teller
) -> Iterator[ShardTask]:
    """Group the sessions of each store into shards, in the order of reading."""
    seen: set[str] = set()
    said: dict[bytes, tuple[str, int]] = {}  # what recorded sessions say → store and start of the first that says it
    version = importlib.metadata.version("agentdyno")
    for source in sources:
        settings = "\n".join((FORMAT, SCHEMA_VERSION, version, tokenizer, recipe.license or "", source.rules))

        def task(blobs: list[bytes], source: Source = source, settings: str = settings) -> ShardTask:
            return ShardTask(
                input_digest=input_digest(blobs, settings),
                sessions=tuple(blobs),
                redactor=source.redactor,
                tokenizer=tokenizer,
                license=recipe.license,
                folder=out,
                work=out / WORK,
            )

        blobs: list[bytes] = []
        size = 0
        problems: list[str] = []
        for trajectory in source.sessions(problems):
            tell.sessions += 1
            tell.tell()
            if trajectory.session_id in seen:
                dropped["same session as one read before"] += 1
                continue
            seen.add(trajectory.session_id)
            if _in_another_store(trajectory, source.store_id, said):
                dropped["same session as one that another store's recorder saw"] += 1
                continue
            blobs.append(msgspec.json.encode(published(trajectory)))
            size += len(blobs[-1])
            if len(blobs) >= SHARD_SESSIONS or size >= SHARD_BYTES:
                yield task(blobs)
                blobs, size = [], 0
        dropped.update(problems)
        if blobs:
            yield task(blobs)


def _in_another_store(trajectory: Trajectory, store_id: str, said: dict[bytes, tuple[str, int]]) -> bool:
    """Whether a recorder of another store saw this very session: one may stand behind the other.

    Each store has ids of its own; all words and all answers alike, at the same time, are no second run of a task.
    """
    if trajectory.source != "wire" or not trajectory.pool or trajectory.t0_utc_us is None:
        return False
    words = msgspec.json.encode([pooled.message for pooled in trajectory.pool])
    known, start_us = said.setdefault(hashlib.sha256(words).digest(), (store_id, trajectory.t0_utc_us))
    return known != store_id and abs(trajectory.t0_utc_us - start_us) <= SAME_START_US


def _run(
    tasks: Iterable[ShardTask], known: dict[str, Receipt], out: Path, jobs: int, tell: _Teller
) -> Iterator[Receipt]:
    """Receipts in the order of the tasks; starts processes only when there are two shards to do."""
    pool: ProcessPoolExecutor | None = None
    waiting: deque[Future[Receipt] | Receipt | ShardTask] = deque()
    try:
        for task in tasks:
            receipt = known.get(task.input_digest)
            if receipt is not None and _intact(out, receipt):
                tell.reused += 1
                waiting.append(receipt)
            elif pool is None and not any(isinstance(item, ShardTask) for item in waiting):
                waiting.append(task)  # perhaps the only one: not worth a process
            elif jobs == 1:
                waiting.append(task)
            else:
                if pool is None:
                    # Spawned: a fork would copy the threads of a progress bar in an unknown state.
                    pool = ProcessPoolExecutor(
                        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
                    )
                    waiting = deque(
                        pool.submit(build_shard, item) if isinstance(item, ShardTask) else item for item in waiting
                    )
                waiting.append(pool.submit(build_shard, task))
            while len(waiting) > (1 if jobs == 1 else 2 * jobs):
                yield _finish(waiting.popleft(), out, tell)
        while waiting:
            yield _finish(waiting.popleft(), out, tell)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it: a worker of a killed build would wait for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _finish(item: Future[Receipt] | Receipt | ShardTask, out: Path, tell: _Teller) -> Receipt:
    if isinstance(item, ShardTask):
        item = build_shard(item)
    elif isinstance(item, Future):
        item = item.result()
    receipts = out / WORK / "receipts"
    receipts.mkdir(exist_ok=True)
    write_atomically(receipts / f"{item.input_digest}.json", msgspec.json.encode(item))
    tell.shards += 1
    tell.tell()
    return item


def _intact(out: Path, receipt: Receipt) -> bool:
    """Whether the shard's files are still what its receipt says."""
    return all(
        (out / entry.path).is_file()
        and (out / entry.path).stat().st_size == entry.bytes
        and file_sha256(out / entry.path) == entry.sha256
        for entry in receipt.files.values()
    )


def _remove_strays(out: Path, receipts: Sequence[Receipt]) -> None:
    """Remove what a published folder must not hold: shards that no longer belong, and drafts of a killed build.

    The card's globs would load the shards; a draft may tell of sessions that are gone.
    """
    for name in ("README.md", "stats.json", MANIFEST):
        for draft in out.glob(f".{name}.*"):
            draft.unlink()
    wanted = {entry.path for receipt in receipts for entry in receipt.files.values()}
    for path in (out / "data").glob("*/*.parquet"):
        if path.relative_to(out).as_posix() not in wanted:
            path.unlink()


def _entry(out: Path, path: Path) -> FileEntry:
    return FileEntry(path=path.relative_to(out).as_posix(), bytes=path.stat().st_size, sha256=file_sha256(path), rows=0)
