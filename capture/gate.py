"""Who may come through: names the recorder answers to, people's tokens, and the questions it answers itself.

Pure decisions over a request's head; nothing here waits, and nothing of a token leaves this module.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass

from capture.counters import Counters, Gauges, exposition
from capture.otlp import HOST as OTLP_HOST
from capture.people import People, Person

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_OTLP_PATHS = frozenset({"/otlp/v1/traces", "/otlp/v1/logs", "/otlp/v1/metrics"})
_PERSON_PATH = "/p/"
_JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the recorder says itself."""

    status: int
    body: bytes
    content_type: str
    reason: str  # for the counters
    headers: tuple[tuple[str, str], ...] = ()
    recorded_as: tuple[str, str] | None = None  # host and path; None: not recorded
    person: Person | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A request that may go on, less its token."""

    path: str
    person: Person | None


def refusal(status: int, sentence: str, *, reason: str, kind: str, **more: tuple[str, str]) -> Answer:
    """A refusal as clients of Anthropic's and OpenAI's APIs read one."""
    error = {"type": kind, "code": reason, "message": f"agentdyno: {sentence}", "param": None}
    body = json.dumps({"type": "error", "error": error}).encode()
    return Answer(status=status, body=body, content_type=_JSON, reason=reason, headers=tuple(more.values()))


class Gate:
    """The rules of one recorder. `people` may be replaced while it runs.

    `health` says None, or why nothing is recorded.
    """

    def __init__(
        self,
        *,
        people: People,
        counters: Counters,
        health: Callable[[], str | None],
        gauges: Callable[[], Gauges],
        public_hosts: frozenset[str] = frozenset(),
        require_token: bool = False,
    ) -> None:
        self.people = people
        self.require_token = require_token
        self._counters = counters
        self._health = health
        self._gauges = gauges
        self._names = LOOPBACK | {host.lower() for host in public_hosts}

    def enter(
        self,
        *,
        authority: str,
        origin: str | None,
        method: str,
        path: str,
        content_type: str | None,
        peer: str,
        credentials: str | None = None,
    ) -> Entry | Answer:
        """Decide about a request to the recorder's own address.

        `peer`: address of who connected; `credentials`: for a proxy, as an exporter behind one sends them.
        """
        if host_of(authority) not in self._names or not self._is_own_origin(origin):
            # A web page may reach loopback by a name of its own (DNS rebinding); an agent never does.
            return refusal(
                403, "this recorder answers to its own names only", reason="foreign_host", kind="permission_error"
            )
        person = None if credentials is None else self.people.whose(_password(credentials))
        if path.startswith(_PERSON_PATH):
            token, slash, rest = path[len(_PERSON_PATH) :].partition("/")
            person = self.people.whose(token)
            if person is None:
                return _unknown_token()
            path = slash + rest or "/"
        if path.startswith(("/healthz", "/metrics", "/otlp/")):
            answer = self._own(authority, method, path, content_type, peer, person)
            if answer is not None:
                return answer
        if person is None and self.require_token:
            return _unknown_token()
        return Entry(path=path, person=person)

    def proxy_person(self, credentials: str | None) -> Person | Answer | None:
        """Decide about a use as a forward proxy; `credentials`: its Proxy-Authorization header."""
        if credentials is None and not self.require_token:
            return None
        person = self.people.whose(_password(credentials or ""))
        if person is not None:
            return person
        if credentials is not None and not self.require_token and not self.people.persons:
            return None  # meant for another proxy; here nobody has a token
        return refusal(
            407,
            "this proxy wants a token: HTTPS_PROXY=…://NAME:TOKEN@HOST:PORT, made by `agentdyno capture token add`",
            reason="proxy_token",
            kind="authentication_error",
            challenge=("proxy-authenticate", 'Basic realm="agentdyno"'),
        )

    def is_own_name(self, host: str) -> bool:
        """Whether a host is a name of the recorder itself."""
        return host.lower() in self._names

    def _own(
        self, authority: str, method: str, path: str, content_type: str | None, peer: str, person: Person | None
    ) -> Answer | None:
        bare = path.partition("?")[0]
        if bare == "/healthz" and method in ("GET", "HEAD"):
            fault = self._health()
            gauges = self._gauges()
            if fault is not None:
                state = {"status": "stopped", "reason": fault}
            else:
                state = {"status": "paused" if gauges.paused else "recording"}
                if gauges.overfull:
                    state["warning"] = "no further journal can be begun; the full one goes on while the disk takes it"
            body = json.dumps(state).encode()
            return Answer(status=200 if fault is None else 503, body=body, content_type=_JSON, reason="health")
        if bare == "/metrics" and method in ("GET", "HEAD"):
            # Behind a TLS front every peer is loopback; then the name that was asked for tells.
            if person is None and not (_is_loopback(peer) and host_of(authority) in LOOPBACK):
                return _unknown_token()
            text = exposition(self._counters, self._gauges()).encode()
            return Answer(status=200, body=text, content_type="text/plain; version=0.0.4", reason="metrics")
        if bare in _OTLP_PATHS and method == "POST":
            if person is None and self.require_token:
                return _unknown_token()
            kind = (content_type or "application/x-protobuf").partition(";")[0].strip()
            # An empty message is what OTLP calls success: no byte as protobuf, an empty object as JSON.
            return Answer(
                status=200,
                body=b"{}" if kind == _JSON else b"",
                content_type=kind,
                reason="otlp",
                recorded_as=(OTLP_HOST, path[len("/otlp") :]),
                person=person,
            )
        return None

    def _is_own_origin(self, origin: str | None) -> bool:
        scheme, _, authority = (origin or "").partition("://")
        if scheme.lower() not in ("http", "https"):
            return True  # none, `null`, or an editor's own scheme
        return host_of(authority) in self._names


def host_of(authority: str) -> str:
    """The host of `HOST`, `HOST:PORT` or `[ADDRESS]:PORT`, lower case; without one, a name of loopback."""
    host = authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]
    return host.lower() or "localhost"


def _is_loopback(peer: str) -> bool:
    return peer.startswith("127.") or peer in ("::1", "::ffff:127.0.0.1")


def _password(credentials: str) -> str:
    scheme, _, encoded = credentials.strip().partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _unknown_token() -> Answer:
    return refusal(
        401,
        "no valid token in the base URL; it reads https://HOST:PORT/p/TOKEN/ROUTE, see `agentdyno capture token add`",
        reason="token",
        kind="authentication_error",
    )
