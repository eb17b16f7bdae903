"""llama.cpp's own HTTP server as a child process on loopback, started and stopped as a context manager."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from capture.atomic import write_atomically
from capture.fault import EnvironmentFault
from replay.engine.model import INSTALL, ensure_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

MODEL_NAME = "agentdyno-{preset}"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
NICENESS = 10
"""The client that measures shares these cores: where it had to queue behind the server, it would void its trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How the server is started; what its child process is handed."""

    gguf_path: str
    model: str  # the name that requests must use
    host: str
    port: int  # 0 picks a free one
    slots: int  # requests decoded together; further ones wait
    slot_context: int  # tokens that one request may hold, prompt and output
    threads: int
    cache_ram_mib: int  # copies of evicted prefixes in main memory; 0 switches them off
    connections: int  # open requests, waiting ones included
    niceness: int  # how far the server stands back for others on this machine

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EngineOptions:
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A serving engine that accepts requests."""

    url: str  # http://127.0.0.1:PORT, without /v1
    model: str
    pid: int
    tokenizer_path: Path
    token_ids: tuple[int, int]  # range of ids that stand for plain text, end excluded
    slots: int
    slot_context: int
    threads: int
    cache_ram_mib: int
    niceness: int

    @property
    def label(self) -> str:
        """What a result says about the system: nobody may take its score for a real machine's."""
        ram = "no RAM prompt cache" if self.cache_ram_mib == 0 else f"{self.cache_ram_mib} MiB RAM prompt cache"
        return (
            f"llama.cpp on {self.threads} CPU thread(s), made-up weights ({self.model}), {self.slots} slots "
            f"of {self.slot_context} tokens, {ram}, nice {self.niceness}"
        )


def default_threads() -> int:
    """Half of the cores this process may use: the client needs some, and llama.cpp's threads spin while they wait."""
    return max(1, len(os.sched_getaffinity(0)) // 2) if hasattr(os, "sched_getaffinity") else 1


class Options(TypedDict, total=False):
    """What `running_engine` takes; every one has a default."""

    preset: str  # nano (the default) or tiny
    host: str  # loopback
    port: int  # 0 picks a free one
    slots: int  # requests decoded together
    slot_context: int  # tokens that one request may hold
    threads: int | None  # half of the cores where None
    cache_ram_mib: int  # 0: prefixes that slots gave up are forgotten
    connections: int  # open requests, waiting ones included
    cache: Path | None  # where models are kept; the user's cache folder where None


@contextlib.contextmanager
def running_engine(**options: Unpack[Options]) -> Iterator[Engine]:
    """Make or find the preset's model, serve it, and stop the server on the way out.

    Raises EnvironmentFault where the extra `engine` is missing, the port is taken or the server does not come up.
    """
    with _running(**options) as (engine, _):
        yield engine


@contextlib.contextmanager
def _running(
    *,
    preset: str = "nano",
    host: str = "127.0.0.1",
    port: int = 0,
    slots: int = 4,
    slot_context: int = 32_768,
    threads: int | None = None,
    cache_ram_mib: int = 0,
    connections: int = 256,
    niceness: int = NICENESS,
    cache: Path | None = None,
) -> Iterator[tuple[Engine, subprocess.Popen[bytes]]]:
    check_loopback(host)
    if slots < 1 or slot_context < 1:
        raise ValueError("an engine needs at least one slot and one token of context")
    if importlib.util.find_spec("xllamacpp") is None:
        raise EnvironmentFault(INSTALL)
    _check_free(host, port)
    made = ensure_model(preset, cache=cache)
    options = EngineOptions(
        gguf_path=str(made.gguf_path),
        model=MODEL_NAME.format(preset=preset),
        host=host,
        port=port,
        slots=slots,
        slot_context=slot_context,
        threads=threads or default_threads(),
        cache_ram_mib=cache_ram_mib,
        connections=max(connections, 2 * slots),
        niceness=niceness,
    )
    with tempfile.TemporaryFile() as log:
        # A session of its own: Ctrl-C in a terminal reaches the parent alone, which stops us when it is done.
        child = subprocess.Popen(
            # -P: a folder `replay` where the user happens to stand must not be taken for ours.
            [sys.executable, "-P", "-m", "replay.engine.child", options.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env=_environment(),
        )
        try:
            url = _wait_until_ready(child, log)
            engine = Engine(
                url=url,
                model=options.model,
                pid=child.pid,
                tokenizer_path=made.tokenizer_path,
                token_ids=made.token_ids,
                slots=slots,
                slot_context=slot_context,
                threads=options.threads,
                cache_ram_mib=cache_ram_mib,
                niceness=niceness,
            )
            yield engine, child
        finally:
            _stop(child)


def check_loopback(host: str) -> None:
    """Refuse an address that others can reach: the server asks nobody for a key. Raises ValueError."""
    with contextlib.suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return
    raise ValueError(f"the engine listens on loopback only, not on {host}; use 127.0.0.1")


def _check_free(host: str, port: int) -> None:
    """Say in words that a port is taken; the server itself would only say that it cannot start."""
    if not port:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the server does it: a port whose last connections linger is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as fault:
            raise EnvironmentFault(f"cannot listen on {host}:{port}: {fault.strerror}; choose another port") from fault


def _environment() -> dict[str, str]:
    """Ours, with our own code first on the import path, so that the child runs what the parent runs."""
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}


def _wait_until_ready(child: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    assert child.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(child.stdout.fileno(), 4096) if readable else b""
        if not piece:
            why = f"was not ready after {START_TIMEOUT_S:.0f} s" if not readable else "stopped at its start"
            raise EnvironmentFault(f"the llama engine {why}; its last words: {_last_words(log)}")
        line += piece
    url: str = json.loads(line)["url"]
    return url.rstrip("/")


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = (line.decode("utf-8", "replace").strip() for line in log)
    return " | ".join(deque((line for line in lines if line), maxlen=3)) or "none"


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child, gently first, and take its exit status so that no zombie stays."""
    try:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
        child.wait()
    finally:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def serve_until_told(
    *, ready_file: Path | None, on_ready: Callable[[Engine], None], **options: Unpack[Options]
) -> None:
    """Serve until SIGINT or SIGTERM; raises EnvironmentFault when the server stops by itself.

    `ready_file` gets one line, the base URL, by a rename once requests are accepted; it is removed at the end.
    """
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _running(**options) as (engine, child):
            if ready_file is not None:
                write_atomically(ready_file, f"{engine.url}\n".encode())
            on_ready(engine)
            try:
                while not told.wait(0.2):  # a plain wait() would hold the signal back
                    if child.poll() is not None:
                        raise EnvironmentFault("the llama engine stopped by itself; start it again")
            finally:
                if ready_file is not None:
                    ready_file.unlink(missing_ok=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
