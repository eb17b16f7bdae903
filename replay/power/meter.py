"""The meter: a child process that reads every power source at its own rate and streams what it reads to the run.

A process of its own, so that neither a slow driver nor an exporter's page can take the load generator's time. It has a
thread for each source. Frames are msgpack behind four bytes of length; CLOCK_MONOTONIC is one for the machine, so
the child's times are the parent's. Ctrl-C is the parent's business: the child ends when its stdin does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import IO, Self

import msgspec

from curate.words import printable
from replay.power.choice import PowerChoice
from replay.power.domain import SCOPES, Scope, ScopeSet, place_devices, scope_devices
from replay.power.source import PowerFault, PowerSample, PowerSource, SourceInfo
from replay.system import UNDISCLOSED, System

OPEN_WITHIN_S = 180.0
"""Characterising a source takes seconds, and a page of another machine may come slowly."""
OPEN_POLL_S = 0.05
FIRST_WITHIN_S = 5.0
GONE_WITHIN_S = 5.0
COLLECT_WITHIN_S = 600.0
"""However long a source says that it takes to settle: a run ends, and what has not come by then is a hole."""
LAST_READ_WITHIN_S = 0.5
"""Of a source that is asked at the moment the meter ends."""
LARGEST_FRAME_BYTES = 64 * 1024 * 1024
SAMPLES_PER_FRAME = 20_000
_HEADER = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Word:
    """What the child says; one of these in a frame."""

    infos: tuple[SourceInfo, ...] | None = None  # all sources are open
    fault: str | None = None  # one is not, and this is why
    source: int = 0
    samples: tuple[PowerSample, ...] = ()
    notes: tuple[str, ...] | None = None  # the source says of itself what it did not before: why it fails


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame as it came, with the times that it spans.

    Samples stay packed until they are asked for: a million objects would take the collector's time, and the loop's.
    """

    packed: bytes
    oldest_ns: int
    newest_ns: int


@dataclass(slots=True)
class _Device:
    """The newest of one device, for the eye."""

    gauge_w: float | None = None
    counts: deque[tuple[int, float]] | None = None

    def watts(self) -> float | None:
        if self.gauge_w is not None:
            return self.gauge_w
        if self.counts is None or len(self.counts) < 2:
            return None
        (before_ns, before_j), (after_ns, after_j) = self.counts
        return max(0.0, after_j - before_j) / ((after_ns - before_ns) / 1e9)


_decode = msgspec.msgpack.Decoder(_Word).decode


class Meter:
    """All power sources of a run, open between enter and close; raises PowerFault where one cannot be opened.

    A child that dies leaves no samples from then on, which shows as a hole, and never a hang. Unless it is `strict`, a
    source need not show every device that the system file expects of it.
    """

    def __init__(self, choices: Sequence[PowerChoice], system: System = UNDISCLOSED, *, strict: bool = True) -> None:
        self._choices = tuple(choices)
        self._strict = strict
        self._system = system
        self._infos: tuple[SourceInfo, ...] = ()
        self._scopes: dict[Scope, ScopeSet] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._news = threading.Condition()
        self._opening: _Word | None = None
        self._ended = False
        self._frames: list[list[_Frame]] = [[] for _ in self._choices]
        self._last_ns: list[dict[tuple[str, str], int]] = [{} for _ in self._choices]
        self._said: set[int] = set()
        self._notes: dict[int, tuple[str, ...]] = {}
        self._devices: dict[str, _Device] = {}

    def __enter__(self) -> Self:
        if not self._choices or self._child is not None:
            return self
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def infos(self) -> tuple[SourceInfo, ...]:
        """The sources, each device where the system file says that it stands, with what they note of themselves now."""
        return tuple(
            replace(info, notes=self._notes.get(number, info.notes)) for number, info in enumerate(self._infos)
        )

    @property
    def scopes(self) -> dict[Scope, ScopeSet]:
        """What each total charges, and what keeps it from being one."""
        return dict(self._scopes)

    @property
    def alive(self) -> bool:
        """Whether readings still come."""
        return not self._ended

    def watts(self) -> float | None:
        """What the first scope that has devices draws by their newest readings, in W, for the eye; None unknown."""
        chosen = next((self._scopes[scope] for scope in SCOPES if scope in self._scopes), None)
        if chosen is None or not chosen.devices or self._ended:
            return None
        with self._news:
            found = [self._devices[uid].watts() if uid in self._devices else None for uid in chosen.devices]
        known = [watts for watts in found if watts is not None]
        return sum(known) if len(known) == len(found) else None

    def collect(self, start_ns: int, end_ns: int) -> tuple[PowerSample, ...]:
        """The readings around [start, end) in monotonic ns, once every source has read past its end.

        Waits for each source at most its settling time and three periods beyond the end, and never longer than ten
        minutes. What lies well before the end is then forgotten: windows are collected in their order.
        """
        with self._news:
            while not self._ended:
                now_ns = time.monotonic_ns()
                left_ns = [
                    self._deadline_ns(number, end_ns) - now_ns
                    for number in range(len(self._infos))
                    if self._is_behind(number, end_ns)
                ]
                if not left_ns or max(left_ns) <= 0:
                    break
                self._news.wait(max(left_ns) / 1e9)
            found: list[PowerSample] = []
            for number, info in enumerate(self._infos):
                margin_ns = round(margin_s(info) * 1e9)
                from_ns, to_ns = start_ns - margin_ns, end_ns + margin_ns
                near = [item for item in self._frames[number] if item.newest_ns >= from_ns and item.oldest_ns <= to_ns]
                found += [sample for sample in _unpacked(near) if from_ns <= sample.t_ns <= to_ns]
                self._frames[number] = [item for item in self._frames[number] if item.newest_ns >= end_ns - margin_ns]
        return tuple(sorted(found, key=lambda sample: sample.t_ns))

    def take(self) -> tuple[PowerSample, ...]:
        """What was read since it was taken or collected last; forgotten here."""
        with self._news:
            frames = [frame for frames in self._frames for frame in frames]
            self._frames = [[] for _ in self._choices]
        return tuple(sorted(_unpacked(frames), key=lambda sample: sample.t_ns))

    def close(self) -> None:
        """Ends the child; a second call does nothing."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            child.wait(GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if self._reader is not None:
            self._reader.join(GONE_WITHIN_S)
        child.stdout.close()
        if self._errors is not None:
            self._errors.close()

    def _open(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child; closed in close()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "replay.power.meter"],  # no module of the folder that it is started in
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is the parent's
        )
        assert self._child.stdin is not None
        self._reader = threading.Thread(target=self._listen, name="power-meter", daemon=True)
        self._reader.start()
        with contextlib.suppress(BrokenPipeError):  # why it is gone is said below
            pickle.dump((self._choices, self._system, self._strict), self._child.stdin)
            self._child.stdin.flush()
        with self._news:
            self._news.wait_for(lambda: self._opening is not None or self._ended, OPEN_WITHIN_S)
            opened = self._opening
        if opened is None:
            why = f"ended{self._epitaph()}" if self._ended else f"had not opened its sources after {OPEN_WITHIN_S:g} s"
            raise PowerFault(f"the power meter's process {why}")
        if opened.infos is None:
            raise PowerFault(opened.fault or "a power source cannot be opened")
        names = _unlike([choice.text for choice in self._choices])
        named = [replace(info, name=name) for info, name in zip(opened.infos, names, strict=True)]
        infos = place_devices(named, self._system)
        self._scopes = scope_devices(infos, self._system)
        with self._news:
            self._infos = infos
            # Before anything starts, so that a window always has a reading in front of it.
            self._news.wait_for(lambda: len(self._said) == len(infos) or self._ended, FIRST_WITHIN_S)

    def _listen(self) -> None:
        assert self._child is not None
        stream = self._child.stdout
        assert stream is not None
        with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError, LookupError):  # a broken frame ends it
            while len(header := stream.read(_HEADER.size)) == _HEADER.size:
                (length,) = _HEADER.unpack(header)
                if length > LARGEST_FRAME_BYTES or len(frame := stream.read(length)) < length:
                    break
                self._hear(frame)
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _hear(self, frame: bytes) -> None:
        word = _decode(frame)
        with self._news:
            if word.infos is not None or word.fault is not None:
                self._opening = word
            else:
                self._said.add(word.source)
                if word.notes is not None:
                    self._notes[word.source] = word.notes
                times = [sample.t_ns for sample in word.samples]
                if times:
                    self._frames[word.source].append(_Frame(frame, min(times), max(times)))
                for sample in word.samples:
                    self._note(word.source, sample)
            self._news.notify_all()

    def _note(self, source: int, sample: PowerSample) -> None:
        key = (sample.device, sample.kind)
        self._last_ns[source][key] = max(sample.t_ns, self._last_ns[source].get(key, sample.t_ns))
        device = self._devices.setdefault(sample.device, _Device())
        if sample.kind == "energy_j":
            if sample.value is not None and (not device.counts or sample.t_ns > device.counts[-1][0]):
                device.counts = device.counts if device.counts is not None else deque(maxlen=2)
                device.counts.append((sample.t_ns, sample.value))
        elif sample.kind == "power_w" or (sample.device, "power_w") not in self._last_ns[source]:
            device.gauge_w = sample.value

    def _is_behind(self, source: int, end_ns: int) -> bool:
        last = self._last_ns[source]
        seen = {device for device, _ in last}
        return any(at < end_ns for at in last.values()) or any(
            device.uid not in seen for device in self._infos[source].devices
        )

    def _deadline_ns(self, source: int, end_ns: int) -> int:
        info = self._infos[source]
        return end_ns + round(min(info.settle_s + 3 * info.period_s, COLLECT_WITHIN_S) * 1e9)

    def _epitaph(self) -> str:
        """How the child ended, for a message."""
        assert self._child is not None
        assert self._errors is not None
        try:
            code = self._child.wait(GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            return ""
        self._errors.seek(0)
        lines = self._errors.read(1_000_000).decode(errors="replace").strip().splitlines()
        last = f": {printable(lines[-1])[:300]}" if lines else ""
        return f" with exit status {code}{last}"


def _unpacked(frames: Sequence[_Frame]) -> Iterator[PowerSample]:
    for frame in frames:
        yield from _decode(frame.packed).samples


def margin_s(info: SourceInfo) -> float:
    """How long before and after a window a source's readings are kept, in seconds: twice its longest hole."""
    return 2 * max(3.0, 5 * max(info.period_s, info.refresh_s or 0.0))


def _unlike(texts: Sequence[str]) -> list[str]:
    """The texts, those that are alike with a number behind: two commands may be one program."""
    seen: Counter[str] = Counter()
    names = []
    for text in texts:
        seen[text] += 1
        names.append(text if seen[text] == 1 else f"{text} #{seen[text]}")
    return names


def _serve(order: IO[bytes], out: int) -> None:
    """The child: opens what its parent asks for on `order`, and says frames on `out` until `order` ends."""
    choices, system, strict = pickle.load(order)  # noqa: S301 - our parent wrote it
    over = threading.Event()
    threading.Thread(target=_until_end, args=(order, over), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    lock = threading.Lock()
    encode = msgspec.msgpack.Encoder().encode

    def say(word: _Word) -> None:
        frame = encode(word)
        view = memoryview(_HEADER.pack(len(frame)) + frame)
        with lock:
            while view:
                view = view[os.write(out, view) :]

    sources: list[PowerSource] = []
    try:
        sources = _open_all(choices, system, strict=strict, over=over)
        infos = tuple(source.describe() for source in sources)
        say(_Word(infos=infos))
    except PowerFault as fault:
        say(_Word(fault=str(fault)))
        return
    except OSError:  # nobody hears it any more
        for source in sources:
            source.close()
        return
    stop = threading.Event()
    threads = [
        threading.Thread(target=_read_on, args=(number, source, info.period_s, say, stop), daemon=True)
        for number, (source, info) in enumerate(zip(sources, infos, strict=True))
    ]
    for thread in threads:
        thread.start()
    over.wait()
    stop.set()
    until_s = time.monotonic() + LAST_READ_WITHIN_S
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()))
    # Side by side, as a command may take seconds to end. One that hangs in a driver is left to the end of the process.
    pairs = zip(threads, sources, strict=True)
    closing = [threading.Thread(target=it.close, daemon=True) for thread, it in pairs if not thread.is_alive()]
    for thread in closing:
        thread.start()
    until_s = time.monotonic() + GONE_WITHIN_S
    for thread in closing:
        thread.join(max(0.0, until_s - time.monotonic()))


def _until_end(order: IO[bytes], over: threading.Event) -> None:
    """Until whoever started us closes `order`, or is gone."""
    with contextlib.suppress(OSError, ValueError):
        order.read()
    over.set()


def _open_all(
    choices: Sequence[PowerChoice], system: System, *, strict: bool, over: threading.Event
) -> list[PowerSource]:
    """Opens all sources side by side; raises the first fault after it has closed the others.

    Where it is `over` before all are open, the rest is not waited for.
    """
    opened: list[PowerSource | None] = [None] * len(choices)
    faults: list[PowerFault] = []
    # Of several machines, and beside another source of accelerators, nobody has all of them.
    alone = strict and len(system.nodes) <= 1 and all(item.kind in ("nvml", "rapl", "declared") for item in choices)

    def open_one(number: int) -> None:
        try:
            opened[number] = choices[number].open(system if alone else UNDISCLOSED)
        except PowerFault as fault:
            faults.append(fault)
        except Exception as error:  # noqa: BLE001 - whatever a driver or a page makes of it, it is one sentence
            faults.append(PowerFault(f"the power source {choices[number].text} cannot be opened: {_words(error)}"))

    threads = [threading.Thread(target=open_one, args=(number,), daemon=True) for number in range(len(choices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not over.is_set():
            thread.join(OPEN_POLL_S)
    if over.is_set():
        faults.append(PowerFault("the power meter was ended while its sources were opened"))
    sources = [source for source in opened if source is not None]
    if faults:
        for source in sources:
            source.close()
        raise faults[0]
    return sources


def _read_on(
    number: int, source: PowerSource, period_s: float, say: Callable[[_Word], None], stop: threading.Event
) -> None:
    """Reads one source on a fixed grid; a tick that is missed is missed, and shows as a gap between samples."""
    period_ns = max(1, round(period_s * 1e9))
    start_ns = time.monotonic_ns()
    notes = source.describe().notes
    first = True
    while True:
        samples: list[PowerSample] = []
        with contextlib.suppress(Exception):  # a source promises to raise nothing; if it does, there is no reading
            samples = source.read()
        said = source.describe().notes
        try:
            for at in range(0, len(samples), SAMPLES_PER_FRAME):
                say(_Word(source=number, samples=tuple(samples[at : at + SAMPLES_PER_FRAME])))
            if first and not samples:
                say(_Word(source=number))
            if said != notes:
                notes = said
                say(_Word(source=number, notes=notes))
        except OSError:  # whoever started us is gone
            return
        first = False
        passed = time.monotonic_ns() - start_ns
        if stop.wait((period_ns - passed % period_ns) / 1e9):
            return


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(str(error))[:300]}"


def main() -> None:
    """Run as `python -m replay.power.meter`."""
    from replay.power.meter import _serve  # not this module's, which is named __main__

    # A handler, not SIG_IGN: what a source starts would inherit that.
    signal.signal(signal.SIGINT, lambda *_: None)
    out = os.dup(1)
    os.dup2(2, 1)  # what a driver prints must not come between the frames
    with contextlib.suppress(EOFError, OSError):
        _serve(sys.stdin.buffer, out)
    if (commands := sys.modules.get("replay.power.command")) is not None:
        commands.end_all()  # one that was still starting has nobody else to end it
    # A thread that hangs in a driver must not hold the process.
    os._exit(0)


if __name__ == "__main__":
    main()
