from __future__ import annotations

import gzip
import json
import os
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from capture.clock import Clocks, WallClock
from capture.journal import FROM_AGENT, JournalWriter
from capture.parts import PartPool, decode_runs
from capture.reader import JournalReader
from capture.rotation import Journals
from capture.store import Store
from capture.whole_body import decode_whole


def begin(journal: JournalWriter, body: bytes, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> int:
    number = journal.send(at_ns=1, connection="c", method="POST", host="h:1", path="/x", headers=headers)
    journal.sent(number, at_ns=2, body=body)
    return number


def finish(journal: JournalWriter, number: int) -> None:
    journal.headers(number, at_ns=3, status=200, headers=())
    journal.read(number, 4, b"answer")
    journal.end(number, at_ns=5, outcome="complete")


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_journal_is_followed_by_a_new_one_and_ends_with_its_last_exchange(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    journals = Journals(store, meta={"mode": "reverse", "label": "x"}, rotate_bytes=200_000)
    first = journals.current
    stays = begin(first, b"of the first")
    bulk = begin(first, os.urandom(300_000))
    finish(first, bulk)
    eventually(lambda: journals.current is not first)
    second = journals.current
    finish(second, begin(second, b"of the second"))
    assert not first.ended  # one of its exchanges is in flight
    finish(first, stays)
    eventually(lambda: first.ended)
    assert (journals.exchanges, journals.gaps, journals.fault) == (3, 0, None)
    journals.close()
    assert [path.name for path in journals.paths] == [path.name for path in store.journals()]
    assert not list(store.path.glob("*.lock"))
    problems: list[str] = []
    found = list(store.exchanges(problems))
    assert problems == []
    assert [exchange.outcome for exchange in found] == ["complete"] * 3
    assert found[0].request_body == b"of the first"
    assert found[2].request_body == b"of the second"
    assert {exchange.mode for exchange in found} == {"reverse"}
    with JournalReader(second.path) as reader:
        assert (reader.meta["continues"], reader.meta["label"]) == (first.journal_id, "x")


def test_a_next_journal_that_nobody_needed_leaves_no_file(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    journals = Journals(store, meta={}, rotate_bytes=1)
    journal = journals.current
    finish(journal, begin(journal, b"{}"))
    eventually(lambda: len(store.journals()) == 2)
    journals.close()
    assert store.journals() == [journal.path]


def test_where_no_next_journal_can_begin_the_full_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path / "store", create=True)
    said: list[str] = []
    journals = Journals(store, meta={}, rotate_bytes=1, on_fault=said.append)
    refused = threading.Event()

    def refuse(more: dict[str, str]) -> JournalWriter:
        refused.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journals, "_begin", refuse)
    journal = journals.current
    finish(journal, begin(journal, b"one"))
    assert refused.wait(20)
    assert (journals.overfull, journals.trouble) == (True, None)
    finish(journals.current, begin(journals.current, b"two"))
    journals.close()
    assert [exchange.request_body for exchange in store.exchanges()] == [b"one", b"two"]
    assert (said, journals.fault) == ([], None)


def test_a_disk_that_does_not_keep_up_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path / "store", create=True)
    taken = threading.Event()
    monkeypatch.setattr(JournalWriter, "_commit", lambda *_, **__: taken.wait(20))
    journals = Journals(store, meta={}, queue_bytes=100_000)
    assert journals.trouble is None
    begin(journals.current, b"x" * 95_000)
    assert "does not keep up" in str(journals.trouble)
    taken.set()
    monkeypatch.undo()
    journals.close()


@dataclass
class Turned:
    """Clocks that a test turns."""

    now_ns: int = 5_000_000_000
    wall_ns: int = 1_790_000_000_000_000_000
    boot_ns: int = 9_000_000_000
    looks: int = 0

    def wall(self) -> int:
        self.looks += 1
        return self.wall_ns

    def sleep(self, ns: int) -> None:
        """The machine is suspended: the monotonic clock stops."""
        self.wall_ns += ns
        self.boot_ns += ns

    def pass_(self, ns: int) -> None:
        self.now_ns += ns
        self.wall_ns += ns
        self.boot_ns += ns

    @property
    def clocks(self) -> Clocks:
        return Clocks(monotonic=lambda: self.now_ns, wall=self.wall, boot=lambda: self.boot_ns)


def test_sleep_and_a_set_clock_are_told_apart() -> None:
    turned = Turned()
    clock = WallClock(turned.clocks)
    assert clock.anchor_us == (turned.wall_ns - turned.now_ns) // 1000
    turned.pass_(10**9)
    turned.wall_ns += 9_000_000  # slewed
    assert clock.look() is None
    turned.pass_(10**9)
    turned.sleep(3600 * 10**9)
    moved = clock.look()
    assert moved is not None
    assert (moved.offset_us, moved.suspended_us) == (3_600_009_000, 3_600_000_000)
    assert moved.at_ns - moved.since_ns == 10**9
    turned.wall_ns -= 60 * 10**9
    moved = clock.look()
    assert moved is not None
    assert (moved.offset_us, moved.suspended_us) == (3_540_009_000, 3_600_000_000)
    assert clock.look() is None


def test_exchanges_tell_how_the_wall_clock_moved(tmp_path: Path) -> None:
    turned = Turned()
    store = Store.open(tmp_path / "store", create=True)
    journal = JournalWriter(store.path, key=store.key, meta={}, clocks=turned.clocks)

    def send() -> int:
        return journal.send(at_ns=turned.now_ns, connection="c", method="POST", host="h:1", path="/", headers=())

    def end(number: int) -> None:
        journal.end(number, at_ns=turned.now_ns, outcome="complete")

    def moves() -> int:
        with JournalReader(journal.path) as reader:
            list(reader.stored())
            return len(reader.clock)

    before, across = send(), send()
    turned.pass_(10**8)
    end(before)
    turned.pass_(10**9)
    seen = turned.looks
    eventually(lambda: turned.looks > seen + 1)  # what came before that look is known to have been before the sleep
    turned.sleep(7 * 10**9)
    eventually(lambda: moves() == 1)
    turned.pass_(10**9)
    end(across)
    after = send()
    end(after)
    unfinished = send()
    assert unfinished
    journal.close()
    found = list(store.exchanges())
    assert [(exchange.wall_offset_us, exchange.wall_offset_end_us) for exchange in found] == [
        (0, 0),
        (0, 7_000_000),
        (7_000_000, 7_000_000),
        (7_000_000, None),
    ]


def deflate(body: bytes) -> bytes:
    bare = zlib.compressobj(wbits=-15)
    return bare.compress(body) + bare.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "bare deflate": deflate,
    "zstd": zstandard.ZstdCompressor().compress,
    "br": lambda body: bytes(brotli.compress(body, quality=3)),  # type: ignore[no-untyped-call]
    "zstd, gzip": lambda body: gzip.compress(zstandard.ZstdCompressor().compress(body)),
}


@given(st.sampled_from(sorted(ENCODERS)), st.binary(min_size=1, max_size=3000), st.integers(1, 40))
def test_a_whole_body_is_decoded_and_a_cut_one_is_not(name: str, body: bytes, times: int) -> None:
    encoded, header = ENCODERS[name](body * times), name.removeprefix("bare ")
    assert decode_whole(encoded, header) == body * times
    assert decode_whole(encoded[:-1], header) is None
    assert decode_whole(encoded, header, largest_bytes=len(body) * times - 1) is None
    assert decode_whole(body, f"{header}, unknown") is None


@given(st.sampled_from(["gzip", "deflate", "zstd", "br"]), st.binary(max_size=300))
def test_bytes_that_are_no_encoded_body_raise_nothing(header: str, body: bytes) -> None:
    decode_whole(body, header, 10_000)


@pytest.mark.parametrize("name", ["zstd", "br", "gzip"])
def test_a_body_that_decodes_to_gigabytes_is_left_as_it_is(name: str) -> None:
    bomb = ENCODERS[name](bytes(80 << 20))
    assert len(bomb) < 100_000
    assert decode_whole(bomb, name) is None


def test_encoded_request_bodies_are_kept_decoded_and_once(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    journal = JournalWriter(store.path, key=store.key, meta={})
    chance = [os.urandom(600).hex() for _ in range(30)]
    encoder = zstandard.ZstdCompressor()
    bodies, wire = [], []
    for turn in range(30):
        bodies.append(json.dumps({"input": chance[: turn + 1]}).encode())
        wire.append(encoder.compress(bodies[-1]))
        finish(journal, begin(journal, wire[-1], headers=((b"Content-Encoding", b"zstd"),)))
    finish(journal, begin(journal, wire[0][:-3], headers=((b"Content-Encoding", b"zstd"),)))
    finish(journal, begin(journal, b"plain", headers=((b"Content-Encoding", b"identity"),)))
    journal.close()
    *found, cut, plain = store.exchanges()
    assert [exchange.request_body for exchange in found] == bodies
    assert all(exchange.request_decoded for exchange in found)
    assert [exchange.request_bytes for exchange in found] == [len(body) for body in wire]
    assert (cut.request_decoded, cut.request_body) == (False, wire[0][:-3])
    assert (plain.request_decoded, plain.request_body, plain.request_bytes) == (False, b"plain", 5)
    assert sum(map(len, wire)) > 3 * journal.path.stat().st_size


def test_people_and_mode_come_back(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    journal = JournalWriter(store.path, key=store.key, meta={"mode": "forward"})
    number = journal.send(
        at_ns=1, connection="c", method="GET", host="h:1", path="/", headers=(), contributor="ann", consent="publish"
    )
    journal.read(number, 2, b"x", FROM_AGENT)
    journal.end(number, at_ns=3, outcome="complete")
    number = journal.send(at_ns=4, connection="c", method="GET", host="h:1", path="/", headers=())
    journal.end(number, at_ns=5, outcome="complete")
    journal.close()
    one, other = store.exchanges()
    assert (one.contributor, one.consent, one.mode) == ("ann", "publish", "forward")
    assert (other.contributor, other.consent, other.mode) == (None, None, "forward")


def test_the_pool_forgets_parts_of_long_ago_and_still_gives_back_each_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capture.parts.KNOWN_PARTS", 50)
    pool, parts = PartPool(), dict[int, bytes]()
    bodies = [json.dumps([os.urandom(300).hex() for _ in range(20)]).encode() for _ in range(20)] * 2
    recipes = [pool.recipe(body) for body in bodies]
    for pack in pool.take_packs():
        parts.update(enumerate(pack.unpack(), pack.first_part))
    assert [b"".join(parts[number] for number in decode_runs(recipe)) for recipe in recipes] == bodies
    assert len(pool._numbers) + len(pool._older) <= 100
