"""The recording proxy, reverse or forward: mitmproxy in our own process, with the few addons that relaying needs.

mitmproxy asks each of its forty addons twice per hook; a proxy needs three of them. Leaving the others out pays for
the recording several times over.
"""

# mitmproxy leaves half of its master's methods without types.
# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mitmproxy import options
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.certs import CertStoreEntry
from mitmproxy.tools.dump import DumpMaster

from capture.counters import Counters, Gauges
from capture.door import Door, ForwardDoor, ReverseDoor
from capture.forward import load_certificate, load_store, prepare_ca
from capture.gate import LOOPBACK, Gate
from capture.handshake import Handshake
from capture.model_hosts import ModelHosts
from capture.outbound import Dialler, Outbound, OutboundProxy
from capture.pause import is_paused
from capture.people import FILE_NAME as PEOPLE_FILE
from capture.people import People, PeopleError
from capture.recorder import Recorder, open_journals
from capture.relay import correct, dial_by
from capture.roots import tls_context, write_roots
from capture.rotation import Journals
from capture.store import Store
from capture.upstream import Routes

_KEPT_ADDONS = ("proxyserver", "nextlayer", "disableh2c")
_LOOK_S = 0.5
_SIZE_LOOKS = 20  # the sizes of a large store's files are asked for once in so many looks

_HOW_TO_MAKE_A_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -keyout key.pem "
    "-out cert.pem -subj /CN=HOST -addext subjectAltName=DNS:HOST -addext keyUsage=digitalSignature,keyCertSign"
)


class ListenError(OSError):
    """The address cannot be listened on, or not safely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a recorder is asked to do."""

    routes: Routes
    listen: tuple[str, int]
    mode: Literal["reverse", "forward"] = "reverse"
    outbound: Outbound = field(default_factory=Outbound)  # the way to upstreams
    hosts: tuple[str, ...] = ()  # model hosts besides the known ones; forward mode
    certificate: tuple[Path, Path] | None = None  # certificate and key of the recorder itself, PEM
    public_hosts: tuple[str, ...] = ()
    require_token: bool = False
    grace_s: float  # how long a stop waits for streams
    idle_timeout_s: int  # of a connection on which nothing passes
    label: str = ""
    notes: tuple[tuple[str, str], ...] = ()  # into what the journal says about itself
    stop_with_stdin: bool = False

    @property
    def off_loopback(self) -> bool:
        """Whether others than this machine can connect."""
        return self.listen[0] not in LOOPBACK

    @property
    def uses_tls(self) -> bool:
        """Whether an upstream has to be verified."""
        return self.mode == "forward" or any(upstream.scheme == "https" for upstream in self.routes.all)

    def proxies(self) -> tuple[str, ...]:
        """Variables that name a proxy on the way to an upstream. OutboundError where it cannot be used.

        ListenError where it is this recorder itself.
        """
        if self.mode == "forward":
            self.outbound.check()
            found: list[object] = list(self.outbound.proxies.values())
        else:
            found = [self.outbound.find(each.scheme, each.host, each.port) for each in self.routes.all]
        proxies = [proxy for proxy in found if isinstance(proxy, OutboundProxy)]
        for proxy in proxies:
            if proxy.port == self.listen[1] and proxy.host in {*LOOPBACK, self.listen[0], *self.public_hosts}:
                raise ListenError(
                    f"{proxy.variable} names this very recorder: start it without, or with --no-upstream-proxy"
                )
        return tuple(dict.fromkeys(proxy.variable for proxy in proxies))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a recorder did until it was stopped."""

    journal: Path
    exchanges: int
    gaps: int
    fault: str | None  # why recording stopped before the end; None if it did not


class _Ready:
    def __init__(
        self, master: DumpMaster, proxyserver: Proxyserver, on_ready: Callable[[str], None], scheme: str
    ) -> None:
        self._master = master
        self._proxyserver = proxyserver
        self._on_ready = on_ready
        self._scheme = scheme
        self.listening = False
        self.fault: Exception | None = None  # of `on_ready`: mitmproxy would swallow it

    def running(self) -> None:
        addresses = self._proxyserver.listen_addrs()
        if not addresses:
            self._master.shutdown()
            return
        self.listening = True
        host, port = addresses[0][:2]
        try:
            self._on_ready(f"{self._scheme}://[{host}]:{port}" if ":" in host else f"{self._scheme}://{host}:{port}")
        except Exception as fault:  # noqa: BLE001 - raised again once everything is down
            self.fault = fault
            self._master.shutdown()


class _LastError(logging.Handler):
    """mitmproxy reports a port in use only to its log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.text = "the system refused"

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage().partition("\n")[0]


class _Watch:
    """What lies on disk and may change meanwhile, looked at by a thread of its own: no hook waits for it."""

    def __init__(self, store: Store, journals: Journals) -> None:
        self._store = store
        self._journals = journals
        self._stop = threading.Event()
        self._people_changed_ns = 0
        self._looks = 0
        self._paused = False
        self._journal_bytes = 0
        self._disk_free_bytes: int | None = None
        self.people = People.load(store)
        self.gate: Gate | None = None
        self._look()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def gauges(self) -> Gauges:
        return Gauges(
            recording=self._journals.trouble is None,
            paused=self._paused,
            queue_bytes=self._journals.waiting_bytes,
            journal_bytes=self._journal_bytes,
            disk_free_bytes=self._disk_free_bytes,
            gaps=self._journals.gap_kinds,
            overfull=self._journals.overfull,
        )

    def health(self) -> str | None:
        return self._journals.trouble

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            with contextlib.suppress(OSError, PeopleError):  # an unreadable file changes nothing
                self._look()

    def _look(self) -> None:
        self._paused = is_paused(self._store.path)
        if self._looks % _SIZE_LOOKS == 0:
            size = 0
            for file in self._store.path.glob("journal-*"):
                with contextlib.suppress(FileNotFoundError):  # other recorders' files come and go
                    size += file.stat().st_size if file.suffix != ".lock" else 0
            self._journal_bytes = size
            self._disk_free_bytes = shutil.disk_usage(self._store.path).free
        self._looks += 1
        try:
            changed_ns = (self._store.path / PEOPLE_FILE).stat().st_mtime_ns
        except FileNotFoundError:
            changed_ns = 0
        if changed_ns != self._people_changed_ns:
            self.people = People.load(self._store)
            self._people_changed_ns = changed_ns
            if self.gate is not None:
                self.gate.people = self.people


def serve(
    service: Service, *, store: Store, on_ready: Callable[[str], None], on_fault: Callable[[str], None]
) -> Served:
    """Relay and record until SIGTERM, SIGINT or SIGHUP (or until stdin ends).

    ListenError where the address is not to be had.

    `on_ready` gets the base or proxy URL once connections are accepted. A second signal stops without waiting for
    streams. PeopleError where the store's tokens cannot be read, AuthorityError where its certificate authority
    cannot, OutboundError where the user's proxy is of no use.
    """
    own = _own_certificate(service)
    proxies = service.proxies()
    authority = prepare_ca(store.path / "ca") if service.mode == "forward" else None
    roots = authority.roots_pem if authority is not None else write_roots(store.path) if service.uses_tls else None
    handshake = Handshake(own, load_store(authority) if authority is not None else None)
    # The writer's thread gives way at once to the thread that relays; the default is 5 ms.
    sys.setswitchinterval(0.001)
    journals = open_journals(
        store,
        mode=service.mode,
        on_fault=on_fault,
        upstreams=service.routes.describe(),
        label=service.label,
        **({"outbound_proxy": ",".join(proxies)} if proxies else {}),
        **dict(service.notes),
    )
    try:
        watch = _Watch(store, journals)
        try:
            asyncio.run(_serve(service, journals, watch, handshake, roots, on_ready))
        finally:
            watch.close()
    finally:
        journals.close()
    return Served(journal=journals.paths[-1], exchanges=journals.exchanges, gaps=journals.gaps, fault=journals.fault)


def _own_certificate(service: Service) -> CertStoreEntry | None:
    host = service.listen[0]
    if service.certificate is None:
        if service.off_loopback:
            raise ListenError(
                f"{host} is not a loopback address: keys would cross the network in clear. Give --tls-cert and "
                f"--tls-key (one is made by `{_HOW_TO_MAKE_A_CERTIFICATE}`), or listen on 127.0.0.1"
            )
        return None
    if service.off_loopback and not service.public_hosts:
        raise ListenError(f"{host} is not a loopback address: say by --public-host NAME how agents call this machine")
    try:
        return load_certificate(*service.certificate)
    except (OSError, ValueError) as fault:
        raise ListenError(f"the certificate is not usable: {fault}") from fault


async def _serve(
    service: Service,
    journals: Journals,
    watch: _Watch,
    handshake: Handshake,
    roots: Path | None,
    on_ready: Callable[[str], None],
) -> None:
    correct()
    dial_by(Dialler(service.outbound, tls_context))
    last_error = _LastError()
    logging.getLogger().addHandler(last_error)
    logging.getLogger().setLevel(logging.ERROR)
    master = DumpMaster(options.Options(), with_termlog=False, with_dumper=False)
    proxyserver = master.addons.get("proxyserver")
    assert isinstance(proxyserver, Proxyserver)
    master.addons.get("errorcheck").logger.uninstall()
    counters = Counters()
    gate = watch.gate = Gate(
        people=watch.people,
        counters=counters,
        health=watch.health,
        gauges=watch.gauges,
        public_hosts=frozenset({*service.public_hosts, service.listen[0]}),
        require_token=service.require_token or service.off_loopback,
    )
    recorder = Recorder(journals, counters)
    ready = _Ready(master, proxyserver, on_ready, "https" if service.certificate is not None else "http")
    door = _door(service, gate, counters, proxyserver)
    # Not by addons.remove(): that runs the `done` of addons that never ran.
    master.addons.lookup = {name: master.addons.lookup[name] for name in _KEPT_ADDONS}
    kept = list(master.addons.lookup.values())
    master.addons.add(door, handshake, recorder, ready)
    master.addons.chain = [door, *kept, handshake, recorder, ready]  # the door decides on layers before mitmproxy does
    master.options.update(
        mode=["regular"] if service.mode == "forward" else [_reverse_mode(service.routes)],
        listen_host=service.listen[0],
        listen_port=service.listen[1],
        # Lazy towards model hosts in either mode; a tunnel to another host is opened before it is promised.
        connection_strategy="eager" if service.mode == "forward" else "lazy",
        keep_host_header=True,  # the door sets it, after a look at what the agent sent
        validate_inbound_headers=False,  # what a direct connection would have let through passes here too
        tcp_timeout=service.idle_timeout_s,
        ssl_verify_upstream_trusted_ca=None if roots is None else str(roots),
        confdir=str(Path(tempfile.gettempdir()) / f"agentdyno-never-made-{os.getpid()}"),
    )
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            master.shutdown()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup` asks to live on when the terminal closes
            loop.add_signal_handler(number, stop)
    if service.stop_with_stdin:
        threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
    ending = asyncio.create_task(_end(stopping, proxyserver, recorder, master, service.grace_s))
    gc.collect()
    gc.freeze()  # what was made so far stays; collections need not walk it again
    running = asyncio.create_task(master.run())
    await running
    ending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ending
    logging.getLogger().removeHandler(last_error)
    if ready.fault is not None:
        raise ready.fault
    if not ready.listening:
        raise ListenError(
            f"cannot listen on {service.listen[0]}:{service.listen[1]}: {last_error.text}; name another port, or 0"
        )


def _door(service: Service, gate: Gate, counters: Counters, proxyserver: Proxyserver) -> Door:
    tls_only = service.off_loopback
    if service.mode == "reverse":
        return ReverseDoor(gate, counters, proxyserver, service.routes, tls_only=tls_only)
    return ForwardDoor(
        gate,
        counters,
        proxyserver,
        service.routes,
        ModelHosts.of((*service.hosts, *(name for name, _ in service.routes.by_segment))),
        open_to_all_hosts=not service.off_loopback,
        tls_only=tls_only,
    )


def _reverse_mode(routes: Routes) -> str:
    upstream = routes.any
    host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
    return f"reverse:http://{host}:{upstream.port}"


async def _end(
    stopping: asyncio.Event, proxyserver: Proxyserver, recorder: Recorder, master: DumpMaster, grace_s: float
) -> None:
    await stopping.wait()
    await proxyserver.servers.update([])
    deadline = asyncio.get_running_loop().time() + grace_s
    while recorder.in_flight and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - hooks wake nobody
        await asyncio.sleep(0.05)
    master.shutdown()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop is closed already
        loop.call_soon_threadsafe(stop)
