"""The page and its API, served to this machine alone.

Whoever can open the port must also know the token, which travels in the fragment of the URL (browsers never send it)
and then in a header (a page of another origin cannot set it). Host and Origin are checked, so that a name that a
stranger's DNS points here is refused. The files of the page hold no data and need no token. Nothing is read from disk
by a name that a request brings.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, override
from urllib.parse import parse_qs, urlsplit

import msgspec

from agentdyno import __version__
from curate.review.decision import REASONS, Standing, Verdict
from curate.review.queue import Case, Queue, Tally
from curate.review.view import SessionView, read_rows

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("main", "api", "dom", "queue", "session", "text", "chart", "aside")
    },
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
MOST_BODY = 16_384
MOST_STRETCH = 400_000  # characters in one answer
MOST_ENTRIES = 60
KEPT_SESSIONS = 3
IDLE_S = 60
_LISTEN = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:\[\]]+):(?P<port>\d{1,5})")


class ListenFault(ValueError):
    """An address that a review must not, or cannot, be served on; the text is a sentence."""


class _Refused(Exception):
    """A request that gets a status and a sentence instead of an answer."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Decide(msgspec.Struct, forbid_unknown_fields=True):
    session_id: str
    digest: str
    verdict: Verdict
    reason: str | None = None


def loopback_address(listen: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:0`; raises ListenFault for an address that other machines can reach."""
    match = _LISTEN.fullmatch(listen.strip())
    if match is None or int(match["port"]) > 65535:
        raise ListenFault(f"--listen takes HOST:PORT such as 127.0.0.1:0, not {listen!r}")
    host = match["host"].strip("[]")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ListenFault(
            f"{host} is not a loopback address: a review shows what is not published yet, on this machine only; "
            "from elsewhere, forward the port by ssh -L"
        )
    return host, int(match["port"])


class Review:
    """What the server knows: the queue, who reviews, the token; and the sessions looked at last."""

    def __init__(self, queue: Queue, *, reviewer: str) -> None:
        self.queue = queue
        self.reviewer = reviewer
        self.token = secrets.token_urlsafe(32)
        self._views: OrderedDict[str, SessionView] = OrderedDict()
        self._lock = threading.Lock()

    def case(self, session_id: str) -> Case:
        """A session that this reviewer may see."""
        case = self.queue.cases.get(session_id)
        if case is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "this review has no such session")
        return case

    def view(self, session_id: str) -> SessionView:
        """A session's view; the folder must still be the build that was opened."""
        self.case(session_id)
        self._refuse_changed()
        with self._lock:
            view = self._views.get(session_id)
            if view is None:
                view = SessionView(read_rows(self.queue.folder, self.queue.manifest, session_id))
                self._views[session_id] = view
                while len(self._views) > KEPT_SESSIONS:
                    self._views.popitem(last=False)
            self._views.move_to_end(session_id)
            return view

    def about(self) -> dict[str, Any]:
        """What the page shows around the queue, and the queue itself."""
        standings = self.queue.standings()
        draw = self.queue.draw
        recipe = self.queue.manifest.recipe
        return {
            "dataset": recipe.pretty_name or recipe.name or self.queue.folder.name,
            "digest": self.queue.manifest.digest,
            "reviewer": self.reviewer,
            "contributor": self.queue.contributor,
            "reasons": REASONS,
            "sample": None
            if draw is None
            else {"high_risk": len(draw.always), "drawn": len(draw.drawn), "rest": draw.rest},
            "tally": Tally.of(standings),
            "cases": [
                {**msgspec.structs.asdict(_case(case)), **_standing(standings[case.session_id])}
                for case in self.queue.cases.values()
            ],
        }

    def decide(self, asked: _Decide) -> dict[str, Any]:
        """Write a decision down, then say what holds."""
        case = self.case(asked.session_id)
        if asked.digest != case.digest:
            raise _Refused(HTTPStatus.CONFLICT, "the session was changed since the page showed it; load the page again")
        self._refuse_changed()
        reason = (asked.reason or "").strip()[:500] or None
        if asked.verdict == "drop" and reason is None:
            raise _Refused(HTTPStatus.BAD_REQUEST, "a drop needs a reason")
        try:
            standing = self.queue.decide(
                case,
                asked.verdict,
                reason=reason if asked.verdict == "drop" else None,
                reviewer=self.reviewer,
                version=__version__,
            )
        except OSError as fault:
            raise _Refused(HTTPStatus.INSUFFICIENT_STORAGE, f"the decision could not be written: {fault}") from fault
        return {"session_id": case.session_id, **_standing(standing), "tally": Tally.of(self.queue.standings())}

    def _refuse_changed(self) -> None:
        if not self.queue.unchanged:
            raise _Refused(
                HTTPStatus.CONFLICT,
                "the dataset was built or approved again meanwhile: start this review anew",
            )


class _CaseShown(msgspec.Struct):
    session_id: str
    digest: str
    contributor: str | None
    harness: str
    models: tuple[str, ...]
    requests: int | None
    context_tokens: int | None
    score: int
    level: str
    reasons: tuple[str, ...]


def _case(case: Case) -> _CaseShown:
    return _CaseShown(
        session_id=case.session_id,
        digest=case.digest,
        contributor=case.contributor,
        harness=case.harness,
        models=case.models,
        requests=case.requests,
        context_tokens=case.context_tokens,
        score=case.risk.score,
        level=case.risk.level,
        reasons=case.risk.reasons,
    )


def _standing(standing: Standing) -> dict[str, Any]:
    return {"state": standing.state, "decision": standing.decision}


class ReviewServer(ThreadingHTTPServer):
    """Listens on a loopback address; `serve_forever` until `shutdown`."""

    daemon_threads = True

    def __init__(self, review: Review, host: str, port: int) -> None:
        self.review = review
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as fault:
            raise ListenFault(f"cannot listen on {host}:{port}: {fault.strerror}") from fault
        shown = f"[{host}]" if ":" in host else host
        self.port = self.server_address[1]
        self.hosts = {f"{shown}:{self.port}", f"localhost:{self.port}"}
        self.url = f"http://{shown}:{self.port}/#token={review.token}"

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no event; everything else was answered with a status."""


@contextmanager
def serving(review: Review, host: str = "127.0.0.1", port: int = 0) -> Iterator[ReviewServer]:
    """Serve in a thread of its own until the block ends."""
    server = ReviewServer(review, host, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version = "agentdyno-review"
    sys_version = ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        """Files of the page, and what the API tells."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A decision."""
        self._answer(self._post)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a log of requests would name sessions."""

    def _answer(self, give: Any) -> None:
        if self.command == "GET" and {"content-length", "transfer-encoding"} & {name.lower() for name in self.headers}:
            self.close_connection = True  # a body that nobody reads must not become the next request
        try:
            self._check_origin()
            kind, body = give()
            status = HTTPStatus.OK
        except _Refused as refused:
            status, kind = refused.status, "application/json"
            body = json.dumps({"error": str(refused)}).encode()
            self.close_connection = True  # what else the request brought is not read
        except Exception as fault:  # noqa: BLE001 - the outermost place of a request
            status, kind = HTTPStatus.INTERNAL_SERVER_ERROR, "application/json"
            body = json.dumps({"error": f"the session cannot be shown: {type(fault).__name__}: {fault}"}).encode()
            self.close_connection = True
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _check_origin(self) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to its own address only")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{hosts[0]}":
            raise _Refused(HTTPStatus.FORBIDDEN, "requests of other pages are refused")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise _Refused(HTTPStatus.FORBIDDEN, "requests of other pages are refused")

    def _check_token(self) -> None:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if scheme != "Bearer" or not hmac.compare_digest(token.encode(), self.server.review.token.encode()):
            raise _Refused(
                HTTPStatus.UNAUTHORIZED, "open the address that `agentdyno curate review` printed: it holds the token"
            )

    def _get(self) -> tuple[str, bytes]:
        where = urlsplit(self.path)
        if where.path in FILES:
            name, kind = FILES[where.path]
            return kind, (PAGE / name).read_bytes()
        if not where.path.startswith("/api/"):
            raise _Refused(HTTPStatus.NOT_FOUND, "no such page")
        self._check_token()
        return "application/json", msgspec.json.encode(self._told(where.path.removeprefix("/api/"), where.query))

    def _told(self, name: str, query: str) -> Any:
        asked = {key: values[0] for key, values in parse_qs(query, keep_blank_values=True).items()}
        review = self.server.review
        if name == "queue":
            return review.about()
        if name not in ("session", "heads", "text", "search"):
            raise _Refused(HTTPStatus.NOT_FOUND, "the API has no such part")
        view = review.view(asked.get("id", ""))
        if name == "session":
            return view.outline
        if name == "heads":
            first = _number(asked, "from")
            return view.heads(first, min(_number(asked, "to"), first + MOST_ENTRIES))
        if name == "search":
            words = asked.get("q", "")
            hits, n = view.search(words) if words else ([], 0)
            return {"hits": hits, "n": n}
        start = _number(asked, "start")
        try:
            return view.stretch(_number(asked, "text"), start, min(_number(asked, "end"), start + MOST_STRETCH))
        except IndexError as fault:
            raise _Refused(HTTPStatus.NOT_FOUND, "the session has no such text") from fault

    def _post(self) -> tuple[str, bytes]:
        if self.path != "/api/decide":
            raise _Refused(HTTPStatus.NOT_FOUND, "the API has no such part")
        self._check_token()
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a decision is JSON")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > MOST_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a decision is at most {MOST_BODY} bytes long")
        try:
            asked = msgspec.json.decode(self.rfile.read(int(length)), type=_Decide)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as fault:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"not a decision: {fault}") from fault
        return "application/json", msgspec.json.encode(self.server.review.decide(asked))


def _number(asked: dict[str, str], name: str) -> int:
    value = asked.get(name, "")
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise _Refused(HTTPStatus.BAD_REQUEST, f"{name} must be a number")
    return int(value)
