"""The addons that let requests in: as a reverse proxy by path, as a forward proxy by host.

Each sets what the recorder sees, and runs before it. A fault in one answers 500: a request must not go, with its key,
to a wrong place.
"""

from __future__ import annotations

import logging

from mitmproxy import connection, http, tcp
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy import layer
from mitmproxy.proxy.layers import ClientTLSLayer

from capture.counters import Counters
from capture.gate import Answer, Gate, refusal
from capture.model_hosts import ModelHosts
from capture.people import Person
from capture.recorder import PASSAGE, Passage
from capture.relay import UNREAD, Tunnel, lift_limits
from capture.secret import without_secrets
from capture.upstream import Routes, Upstream

_log = logging.getLogger(__name__)


class Door:
    """What both doors share."""

    def __init__(self, gate: Gate, counters: Counters, proxyserver: Proxyserver, *, tls_only: bool) -> None:
        self._gate = gate
        self._counters = counters
        self._proxyserver = proxyserver
        self._tls_only = tls_only

    def client_connected(self, client: connection.Client) -> None:
        """An agent connects."""
        lift_limits(self._proxyserver.connections[client.id])

    def next_layer(self, following: layer.NextLayer) -> None:
        """Off loopback a first byte that is not TLS gets no answer: a key would have crossed the network in clear."""
        if self._tls_only and len(following.context.layers) == 1:
            data: bytes = following.data_client()  # type: ignore[no-untyped-call]
            if data and data[0] != _TLS_HANDSHAKE:
                self._counters.refused["clear_text"] += 1
                following.layer = ClientTLSLayer(following.context)

    def tcp_message(self, flow: tcp.TCPFlow) -> None:
        """After an upgrade to something else than WebSocket; mitmproxy would keep every message in memory."""
        flow.messages.clear()

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Set the destination before the recorder looks at the request."""
        try:
            self._enter(flow)
        except Exception:  # noqa: BLE001 - whatever it was, nothing may go to a wrong place
            _log.exception("a request could not be routed")
            flow.metadata[PASSAGE] = Passage(route="", recorded=False)
            answer(flow, refusal(500, "the recorder failed inside", reason="recorder_error", kind="api_error"))

    def _enter(self, flow: http.HTTPFlow) -> None:
        raise NotImplementedError

    def _passage(self, route: str, person: Person | None, host: str | None = None, path: str | None = None) -> Passage:
        if person is None:
            return Passage(route=route, host=host, path=path)
        return Passage(
            route=route,
            host=host,
            path=path,
            contributor=person.name,
            consent=person.consent,
            person_label=self._gate.people.label(person.name),
        )

    def _say(self, flow: http.HTTPFlow, own: Answer) -> None:
        if own.recorded_as is None:
            if own.status >= 400 and own.reason != "health":
                self._counters.refused[own.reason] += 1
            flow.metadata[PASSAGE] = Passage(route="", recorded=False)
        else:
            host, path = own.recorded_as
            flow.metadata[PASSAGE] = self._passage(own.reason, own.person, host, path)
        answer(flow, own, unread=own.recorded_as is None)


class ReverseDoor(Door):
    """Sends each request to the upstream that its path names."""

    def __init__(
        self, gate: Gate, counters: Counters, proxyserver: Proxyserver, routes: Routes, *, tls_only: bool = False
    ) -> None:
        super().__init__(gate, counters, proxyserver, tls_only=tls_only)
        self._routes = routes
        self._names = {id(upstream): segment for segment, upstream in routes.by_segment}
        self._plain = {name: Passage(route=name) for name in (*self._names.values(), "default")}

    def _enter(self, flow: http.HTTPFlow) -> None:
        request = flow.request
        entered = self._gate.enter(
            authority=request.host_header or "",
            origin=request.headers.get("origin"),
            method=request.method,
            path=request.path,
            content_type=request.headers.get("content-type"),
            peer=flow.client_conn.peername[0],
        )
        if isinstance(entered, Answer):
            self._say(flow, entered)
            return
        found = self._routes.target(entered.path)
        if found is None:
            request.path = entered.path
            flow.metadata[PASSAGE] = self._passage("none", entered.person)
            wanted = without_secrets(entered.path)  # the refusal is recorded like any answer
            known = self._routes.describe()
            sentence = f"no upstream for {wanted!r}; known: {known}"
            answer(flow, refusal(404, sentence, reason="no_route", kind="not_found_error"))
            return
        upstream, path = found
        name = self._names.get(id(upstream), "default")
        flow.metadata[PASSAGE] = self._plain[name] if entered.person is None else self._passage(name, entered.person)
        redirect(request, upstream)
        request.path = path


class ForwardDoor(Door):
    """Decrypts and records model hosts; tunnels or passes everything else and only counts it."""

    def __init__(
        self,
        gate: Gate,
        counters: Counters,
        proxyserver: Proxyserver,
        routes: Routes,
        hosts: ModelHosts,
        *,
        open_to_all_hosts: bool,
        tls_only: bool = False,
    ) -> None:
        super().__init__(gate, counters, proxyserver, tls_only=tls_only)
        self._routes = routes
        self._hosts = hosts
        self._open = open_to_all_hosts
        self._admitted: dict[str, Person | None] = {}  # by connection: whose tunnel it is since its CONNECT

    def http_connect(self, flow: http.HTTPFlow) -> None:
        """An agent asks for a tunnel."""
        address = (flow.request.host, flow.request.port)
        credentials = flow.request.headers.pop("proxy-authorization", None)
        person = self._gate.proxy_person(credentials)
        if isinstance(person, Answer):
            self._counters.refused[person.reason] += 1
            _close_after(flow, person)
            return
        if address in self._hosts:
            self._admitted[flow.client_conn.id] = person
            # Answered here and now, so that mitmproxy opens no connection that a route may send elsewhere.
            flow.response = http.Response.make(200)
            flow.response.headers.clear()
            flow.response.reason = "Connection established"
        elif self._open:
            self._admitted[flow.client_conn.id] = person
            self._counters.passed["tunnel"] += 1
        else:
            self._counters.refused["host"] += 1
            _close_after(flow, _other_host())

    def http_connect_error(self, flow: http.HTTPFlow) -> None:
        """A tunnel was refused, by us or because its host cannot be reached; mitmproxy's own words advise mitmproxy."""
        self._admitted.pop(flow.client_conn.id, None)
        if flow.response is not None and flow.response.status_code == 502:
            _close_after(flow, refusal(502, "the host cannot be reached", reason="unreachable", kind="api_error"))

    def next_layer(self, following: layer.NextLayer) -> None:
        """Inside a tunnel: nothing is looked at unless it leads to a model host."""
        super().next_layer(following)
        context = following.context
        address = context.server.address
        if following.layer is None and len(context.layers) > 2 and address and address[:2] not in self._hosts:
            following.layer = Tunnel(context, self._proxyserver.connections[context.client.id])

    def client_disconnected(self, client: connection.Client) -> None:
        """The agent's connection is gone."""
        self._admitted.pop(client.id, None)

    def _enter(self, flow: http.HTTPFlow) -> None:
        request = flow.request
        address = (request.host, request.port)
        credentials = request.headers.pop("proxy-authorization", None)
        # Not what mitmproxy says of the connection: it keeps the address of a CONNECT that was refused.
        inside_tunnel = flow.client_conn.id in self._admitted
        if not inside_tunnel and self._is_self(address):
            self._enter_self(flow, credentials)
            return
        person = self._admitted[flow.client_conn.id] if inside_tunnel else self._gate.proxy_person(credentials)
        if isinstance(person, Answer):
            self._say(flow, person)
            return
        if person is not None and not self._gate.people.is_active(person):
            self._say(flow, refusal(401, "the token was revoked", reason="token", kind="authentication_error"))
            return
        if address not in self._hosts:
            if self._open:
                self._counters.passed["plain"] += 1
                flow.metadata[PASSAGE] = Passage(route="other", recorded=False)
                request.stream = True
            else:
                self._say(flow, _other_host())
            return
        upstream = self._routes.for_host(request.host)
        flow.metadata[PASSAGE] = self._passage(
            request.host, person, f"{request.host}:{request.port}", None if upstream is None else request.path
        )
        if upstream is not None:
            redirect(request, upstream)
            request.path = upstream.prefix + request.path

    def _is_self(self, address: tuple[str, int]) -> bool:
        return self._gate.is_own_name(address[0]) and any(
            address[1] == listening[1] for listening in self._proxyserver.listen_addrs()
        )

    def _enter_self(self, flow: http.HTTPFlow, credentials: str | None) -> None:
        request = flow.request
        entered = self._gate.enter(
            authority=request.host_header or request.host,
            origin=request.headers.get("origin"),
            method=request.method,
            path=request.path,
            content_type=request.headers.get("content-type"),
            peer=flow.client_conn.peername[0],
            credentials=credentials,
        )
        if isinstance(entered, Answer):
            self._say(flow, entered)
            return
        sentence = "this is a forward proxy: set HTTPS_PROXY to it, and trust the ca/bundle.pem of its store"
        self._say(flow, refusal(404, sentence, reason="no_route", kind="not_found_error"))


_TLS_HANDSHAKE = 0x16


def redirect(request: http.Request, upstream: Upstream) -> None:
    """Send a request to an upstream as a client would that was given that upstream's URL."""
    request.data.host, request.data.port = upstream.host, upstream.port
    request.scheme = upstream.scheme
    if request.is_http2:
        request.headers.pop("Host", None)
        request.authority = upstream.authority
    else:
        request.headers["Host"] = upstream.authority
        request.authority = ""  # of a target in absolute form: an origin server is asked by its path alone


def answer(flow: http.HTTPFlow, own: Answer, *, unread: bool = True) -> None:
    """Give the recorder's own answer instead of an upstream's; `unread`: nobody wants the request's body."""
    if unread:
        flow.metadata[UNREAD] = True
    body = b"" if flow.request.method == "HEAD" else own.body
    response = http.Response.make(own.status, body, {"content-type": own.content_type})
    for name, value in own.headers:
        response.headers[name] = value
    flow.response = response


def _close_after(flow: http.HTTPFlow, own: Answer) -> None:
    """Refuse a tunnel; what mitmproxy remembers of it goes with the connection."""
    answer(flow, own)
    if flow.response is not None:
        flow.response.headers["connection"] = "close"


def _other_host() -> Answer:
    sentence = "this proxy leads to model hosts only; `--host` adds one, and NO_PROXY keeps others away from it"
    return refusal(403, sentence, reason="host", kind="permission_error")
