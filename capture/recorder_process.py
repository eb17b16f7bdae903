"""The launcher's recorder: `capture serve` as a child that is kept alive, and what takes its place when it cannot be.

It runs in a session of its own, so that Ctrl-C reaches the agent alone, and stops by the end of its stdin should the
launcher be killed. If it dies while the agent works it is started again on the same port: agents retry a refused
connection, so a restart costs them a second, not the session. When it cannot be started again a relay that records
nothing takes the port, and the gap is marked.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from capture.atomic import write_atomically
from capture.bare_relay import BareRelay
from capture.outbound import Outbound
from capture.store import Store
from capture.upstream import Routes

_START_S = 30.0
_STOP_S = 15.0
_PROBE_S = 5.0
_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0)  # before each further start
_STEADY_S = 60.0  # a recorder that lived this long does not count as another failure in a row


class RecorderFault(RuntimeError):
    """The recorder did not start, or does not answer."""


@dataclass(slots=True)
class RecorderProcess:
    """A context: the recorder listens inside it, and has written everything after it."""

    options: Sequence[str]  # of `capture serve`, less address, store, ready file and label
    routes: Routes | None  # for the relay; None: a forward proxy
    store: Store
    label: str
    work: Path  # a private folder
    private_routes: Sequence[str] = ()  # of `capture serve`, handed over by a file: they may hold keys
    notes: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    restarts: int = 0
    relayed: int | None = None  # requests that passed unrecorded; None while no relay was needed
    exit_code: int | None = None
    words: list[str] = field(default_factory=list)  # what was to say while the agent had the terminal
    _process: subprocess.Popen[bytes] | None = None
    _relay: BareRelay | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _watch: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            self.url = self._start("127.0.0.1:0")
            self._probe()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self._stop()
        if self._watch is not None:
            self._watch.join()
            self._stop()  # the watch may have been starting another one
        if self._relay is not None:
            self._relay.stop()
            self.relayed = self._relay.requests

    def keep_alive(self) -> None:
        """Watch over it from now on. To be called once the agent runs: a fork beside a thread is a risk."""
        self._watch = threading.Thread(target=self._keep_alive, name="recorder", daemon=True)
        self._watch.start()

    def said(self) -> str:
        """What the recorder wrote on its stderr."""
        with suppress(OSError):
            return (self.work / "recorder.log").read_text(errors="replace").strip()
        return ""

    def _start(self, listen: str) -> str:
        ready = self.work / "ready"
        ready.unlink(missing_ok=True)
        routes = self.work / "routes"
        write_atomically(routes, "\n".join(self.private_routes).encode(), mode=0o600)
        with (self.work / "recorder.log").open("ab") as log:
            process = self._process = subprocess.Popen(
                [
                    # -P: the agent's folder may hold modules of our names.
                    *(sys.executable, "-P", "-c", "from capture.command import capture; capture()", "serve"),
                    *self.options,
                    *("--routes-file", str(routes)),
                    *("--listen", listen, "--store", str(self.store.path), "--ready-file", str(ready)),
                    *("--label", self.label, "--stop-with-stdin"),
                    *(word for name, value in self.notes.items() for word in ("--note", f"{name}={value}")),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,  # the terminal is the agent's
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])},
            )
        deadline = time.monotonic() + _START_S
        while not ready.exists():
            if process.poll() is not None:
                raise RecorderFault(f"the recorder did not start: {self._reason()}")
            if time.monotonic() > deadline or self._stopping.is_set():
                self._stop()
                raise RecorderFault(f"the recorder did not start within {_START_S:.0f} s")
            time.sleep(0.01)
        return ready.read_text().strip()

    def _reason(self) -> str:
        lines = [line for line in self.said().splitlines() if line.strip()]
        last = lines[-1].removeprefix("agentdyno: ").removeprefix("Error: ") if lines else "it said nothing"
        process = self._process
        return last if process is None or process.returncode >= 0 else f"ended by signal {-process.returncode}"

    def _probe(self) -> None:
        """Ask the recorder how it is: it accepts connections, and its journal takes what comes."""
        where = urlsplit(self.url)
        assert where.hostname is not None
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=_PROBE_S)
        try:
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as fault:
            raise RecorderFault(f"the recorder at {self.url} does not answer: {fault}") from fault
        finally:
            connection.close()
        if response.status != 200:
            with suppress(ValueError, TypeError, KeyError):
                raise RecorderFault(f"the recorder cannot record: {json.loads(body)['reason']}")
            raise RecorderFault(f"the recorder at {self.url} answers its probe with {response.status}")

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            self.exit_code = process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            self.exit_code = process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _keep_alive(self) -> None:
        listen = self.url.removeprefix("http://")
        failures = 0
        began = time.monotonic()
        while (process := self._process) is not None:
            process.wait()
            if self._stopping.is_set():
                return
            if process.stdin is not None:
                process.stdin.close()
            failures = 0 if time.monotonic() - began > _STEADY_S else failures
            if failures >= len(_PAUSES_S):
                self._fall_back()
                return
            if self._stopping.wait(_PAUSES_S[failures]):
                return
            failures += 1
            began = time.monotonic()
            try:
                self._start(listen)
            except (RecorderFault, OSError) as fault:
                if self._stopping.is_set():
                    return
                self._note(str(fault))
            else:
                self.restarts += 1

    def _fall_back(self) -> None:
        where = urlsplit(self.url)
        relay = BareRelay(routes=self.routes, outbound=Outbound.of(os.environ))
        assert where.hostname is not None
        assert where.port is not None
        try:
            relay.start(where.hostname, where.port)
        except OSError as fault:
            self._note(
                f"no relay either at {self.url} ({fault.strerror or fault}): the agent's calls failed from then on"
            )
            return
        self._relay = relay
        self.relayed = 0
        self._mark_gap()

    def _mark_gap(self) -> None:
        """A journal that says from when on nothing was recorded; the store itself may be what is broken."""
        from capture.journal import JournalWriter

        try:
            journal = JournalWriter(
                self.store.path,
                key=self.store.key,
                meta={**self.notes, "mode": "relay", "label": self.label},
                on_fault=lambda _: None,
            )
            journal.gap(None, at_ns=time.monotonic_ns(), kind="recorder_error", lost_bytes=None)
            journal.close()
        except (OSError, ValueError) as fault:
            self._note(f"the gap could not be marked in the store either: {fault}")

    def _note(self, sentence: str) -> None:
        if sentence not in self.words:
            self.words.append(sentence)
