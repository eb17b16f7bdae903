"""The recording reverse proxy: mitmproxy in our own process, with the few addons that relaying needs.

mitmproxy asks each of its forty addons twice per hook; a reverse proxy needs three of them. Leaving the others out
pays for the recording several times over.
"""

# mitmproxy leaves half of its master's methods without types.
# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mitmproxy import http, options, tls
from mitmproxy.addons import tlsconfig
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.tools.dump import DumpMaster

from capture.recorder import Recorder, open_journal
from capture.secret import without_secrets
from capture.store import Store
from capture.upstream import Routes

_KEPT_ADDONS = frozenset({"proxyserver", "nextlayer", "disableh2c"})
_IDLE_TIMEOUT_S = 7 * 86_400  # an agent may think, or be thought for, longer than mitmproxy's ten minutes
_GRACE_S = 5.0
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class ListenError(OSError):
    """The address cannot be listened on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a recorder did until it was stopped."""

    journal: Path
    exchanges: int
    gaps: int
    fault: str | None  # why recording stopped before the end; None if it did not


class Router:
    """Sends each request to its upstream and refuses what did not come from this machine."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Set the destination before the recorder looks at the request."""
        request = flow.request
        if not _is_local(request.headers.get("host", "")) or not _is_local_origin(request.headers.get("origin")):
            # A web page may reach loopback by a name of its own (DNS rebinding); an agent never does.
            flow.response = _refusal(403, "this recorder answers agents on this machine only")
            return
        found = self._routes.target(request.path)
        if found is None:
            wanted = without_secrets(request.path)  # the refusal is recorded like any answer
            flow.response = _refusal(404, f"no upstream for {wanted!r}; known: {self._routes.describe()}")
            return
        upstream, path = found
        request.data.host, request.data.port = upstream.host, upstream.port
        request.scheme = upstream.scheme
        request.headers["Host"] = upstream.authority
        request.authority = ""  # of a target in absolute form: an origin server is asked by its path alone
        request.path = path


class _UpstreamTls:
    """TLS towards upstreams only: the whole addon would make a certificate authority that nobody uses."""

    def __init__(self) -> None:
        self._config = tlsconfig.TlsConfig()

    def tls_start_server(self, data: tls.TlsData) -> None:
        self._config.tls_start_server(data)


class _Ready:
    def __init__(self, master: DumpMaster, proxyserver: Proxyserver, on_ready: Callable[[str], None]) -> None:
        self._master = master
        self._proxyserver = proxyserver
        self._on_ready = on_ready
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
            self._on_ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
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


def serve(
    routes: Routes,
    *,
    store: Store,
    listen: tuple[str, int],
    on_ready: Callable[[str], None],
    on_fault: Callable[[str], None],
    label: str = "",
    stop_with_stdin: bool = False,
) -> Served:
    """Relay and record until SIGTERM or SIGINT (or until stdin ends). ListenError where the port is not to be had.

    `on_ready` gets the base URL once connections are accepted. A second signal stops without waiting for streams.
    """
    if listen[0] not in _LOOPBACK:
        raise ListenError(
            f"{listen[0]} is not a loopback address: keys would cross the network in clear, since the recorder "
            "does not speak TLS to agents yet; listen on 127.0.0.1"
        )
    # The writer's thread gives way at once to the thread that relays; the default is 5 ms.
    sys.setswitchinterval(0.001)
    journal = open_journal(store, mode="reverse", on_fault=on_fault, upstreams=routes.describe(), label=label)
    try:
        asyncio.run(_serve(routes, Recorder(journal), listen, on_ready, stop_with_stdin=stop_with_stdin))
    finally:
        journal.close()
    return Served(journal=journal.path, exchanges=journal.exchanges, gaps=journal.gaps, fault=journal.fault)


async def _serve(
    routes: Routes,
    recorder: Recorder,
    listen: tuple[str, int],
    on_ready: Callable[[str], None],
    *,
    stop_with_stdin: bool,
) -> None:
    last_error = _LastError()
    logging.getLogger().addHandler(last_error)
    logging.getLogger().setLevel(logging.ERROR)
    master = DumpMaster(options.Options(), with_termlog=False, with_dumper=False)
    proxyserver = master.addons.get("proxyserver")
    assert isinstance(proxyserver, Proxyserver)
    master.addons.get("errorcheck").logger.uninstall()
    # Not by addons.remove(): that runs the `done` of addons that never ran.
    master.addons.lookup = {name: addon for name, addon in master.addons.lookup.items() if name in _KEPT_ADDONS}
    master.addons.chain = list(master.addons.lookup.values())
    ready = _Ready(master, proxyserver, on_ready)
    master.addons.add(_UpstreamTls(), Router(routes), recorder, ready)
    upstream = routes.any
    host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
    master.options.update(
        mode=[f"reverse:http://{host}:{upstream.port}"],
        listen_host=listen[0],
        listen_port=listen[1],
        connection_strategy="lazy",
        keep_host_header=True,  # the router sets it, after a look at what the agent sent
        validate_inbound_headers=False,  # what a direct connection would have let through passes here too
        tcp_timeout=_IDLE_TIMEOUT_S,
        ssl_verify_upstream_trusted_ca=os.environ.get("SSL_CERT_FILE") or None,
        confdir=str(Path(tempfile.gettempdir()) / f"agentdyno-never-made-{os.getpid()}"),
    )
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            master.shutdown()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if stop_with_stdin:
        threading.Thread(target=_watch_stdin, args=(loop, stop), daemon=True).start()
    ending = asyncio.create_task(_end(stopping, proxyserver, recorder, master))
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
        raise ListenError(f"cannot listen on {listen[0]}:{listen[1]}: {last_error.text}; name another port, or 0")


async def _end(stopping: asyncio.Event, proxyserver: Proxyserver, recorder: Recorder, master: DumpMaster) -> None:
    await stopping.wait()
    await proxyserver.servers.update([])
    deadline = asyncio.get_running_loop().time() + _GRACE_S
    while recorder.in_flight and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - hooks wake nobody
        await asyncio.sleep(0.05)
    master.shutdown()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop is closed already
        loop.call_soon_threadsafe(stop)


def _is_local(authority: str) -> bool:
    host = authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]
    return not host or host.lower() in _LOOPBACK


def _is_local_origin(origin: str | None) -> bool:
    if origin is None or not origin.startswith(("http://", "https://")):
        return True  # none, `null`, or an editor's own scheme
    return _is_local(origin.partition("://")[2])


def _refusal(status: int, sentence: str) -> http.Response:
    body = json.dumps({"error": {"type": "agentdyno_recorder", "message": f"agentdyno: {sentence}"}})
    return http.Response.make(status, body, {"content-type": "application/json"})
