"""Pages of another machine, read in bounded time and size, and how its clock stands to ours."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from curate.words import printable
from replay.power.serve import is_loopback
from replay.power.source import PowerFault

_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")  # of a header, without a line end that begins another


class NoPage(Exception):
    """A page that could not be read; its text is the reason, in a few words and without anything of the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A page's body, and when it was asked for on our monotonic clock."""

    body: bytes
    before_ns: int
    after_ns: int
    date_unix_s: float | None  # the server's clock, a whole second

    @property
    def t_ns(self) -> int:
        """Middle of the call."""
        return (self.before_ns + self.after_ns) // 2

    @property
    def read_us(self) -> int:
        """How long the call took."""
        return (self.after_ns - self.before_ns) // 1000


class PageReader:
    """Reads pages of one server; no redirect is followed, since a header may be a secret of that server only.

    Raises PowerFault where the header's variable is not set, or its value would go over a network in clear.
    """

    def __init__(
        self, url: str, *, header_env: tuple[str, str] | None, most_bytes: int, timeout_s: float, accept: str
    ) -> None:
        headers = {"user-agent": "agentdyno", "accept": accept, "accept-encoding": "identity"}
        self.shown = shown_url(url)
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        if header_env is not None:
            name, variable = header_env
            if parts.scheme != "https" and not is_loopback(self.host):
                raise PowerFault(
                    f"{self.shown}: the value of {variable} would go over the network in clear: name it by https://, "
                    "reach it on the loopback (ssh -L), or leave header-env out"
                )
            headers[name] = _header_value(variable)
        self._most_bytes = most_bytes
        self._timeout_s = timeout_s
        # The system's authorities, or those that SSL_CERT_FILE names; a proxy of the environment is not gone through.
        # Reading them takes tens of milliseconds; without them nothing would be trusted.
        tls = ssl.create_default_context() if parts.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client = httpx.Client(headers=headers, timeout=timeout_s, trust_env=False, verify=tls)
        self._socket: socket.socket | None = None  # of the connection that was made last
        self._over = threading.Event()

    def get(self, url: str, parameters: dict[str, str] | None = None) -> Answer:
        """The body of a page; raises NoPage with the reason."""
        before_ns = time.monotonic_ns()
        body = bytearray()
        over = self._over = threading.Event()
        # httpx bounds each read; a head, a chunk or a page may come in any number of them.
        watch = threading.Timer(self._timeout_s, self._cut, (over,))
        watch.daemon = True
        watch.start()
        try:
            with self._client.stream("GET", url, params=parameters, extensions={"trace": self._trace}) as response:
                status, date = response.status_code, response.headers.get("date")
                for piece in response.iter_raw():
                    body += piece
                    if len(body) > self._most_bytes:
                        raise NoPage(f"the page is larger than {self._most_bytes} bytes")
            if over.is_set():  # a page without a length is whole wherever it is cut
                raise NoPage(f"no complete answer in {self._timeout_s:g} s")
        except httpx.TimeoutException:
            raise NoPage(f"no answer in {self._timeout_s:g} s") from None
        except httpx.ConnectError as error:
            raise NoPage(f"no connection ({printable(str(error))[:120]})") from None
        except (httpx.HTTPError, httpx.InvalidURL):
            late = f"no complete answer in {self._timeout_s:g} s" if over.is_set() else "the answer is not HTTP"
            raise NoPage(late) from None
        finally:
            watch.cancel()
        after_ns = time.monotonic_ns()
        if status != 200:
            raise NoPage(_status(status))
        return Answer(body=bytes(body), before_ns=before_ns, after_ns=after_ns, date_unix_s=_unix_s(date))

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _trace(self, event: str, facts: Mapping[str, Any]) -> None:
        """Keeps the socket of a new connection, with or without TLS."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = facts["return_value"].get_extra_info("socket")
            if self._over.is_set():  # time ran out while it was made
                self._cut(self._over)

    def _cut(self, over: threading.Event) -> None:
        """Ends what is under way, from another thread."""
        over.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # The plain socket's own: TLS's would take its state from under the reader.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def shown_url(url: str) -> str:
    """A URL that may be printed and kept: without credentials, query and fragment."""
    parts = urlsplit(url)
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def _header_value(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise PowerFault(f"the environment variable {variable} is not set: export it, or leave header-env out")
    if _VALUE.fullmatch(value) is None:
        # Not quoted: it is a secret.
        raise PowerFault(f"the environment variable {variable} holds no value for a header: a line end, a space at an "
                         "end or a character that none can carry is in it")  # fmt: skip
    return value


def _status(status: int) -> str:
    if status in (401, 403):
        return f"HTTP {status}: it asks for a key; name the variable that holds it (header-env=Authorization=VARIABLE)"
    if 300 <= status < 400:
        return f"HTTP {status}: it points elsewhere; give the address that it points to"
    return f"HTTP {status}"


def _unix_s(date: str | None) -> float | None:
    if date is None:
        return None
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


class ClockOffset:
    """Another machine's clock against our monotonic one, by what each call of it allows.

    A clock that was read as S with resolution r inside a call from a to b lies between S − b and S + r − a ahead of
    ours. What all calls allow is the intersection; its half width, rectangular (JCGM 100:2008, 4.3.7), is the
    uncertainty.
    """

    def __init__(self) -> None:
        self._low_ns: int | None = None
        self._high_ns = 0

    def see(self, unix_ns: int, resolution_ns: int, before_ns: int, after_ns: int) -> None:
        """One call; where it contradicts the earlier ones, a clock was set, and it alone counts."""
        low, high = unix_ns - after_ns, unix_ns + resolution_ns - before_ns
        if self._low_ns is not None and max(low, self._low_ns) <= min(high, self._high_ns):
            low, high = max(low, self._low_ns), min(high, self._high_ns)
        self._low_ns, self._high_ns = low, high

    @property
    def known(self) -> bool:
        """Whether any call was seen."""
        return self._low_ns is not None

    @property
    def u_s(self) -> float:
        """Standard uncertainty, in seconds."""
        assert self._low_ns is not None
        return (self._high_ns - self._low_ns) / 1e9 / math.sqrt(12)

    def monotonic_ns(self, unix_ns: int) -> int:
        """Our clock when that clock showed `unix_ns`."""
        assert self._low_ns is not None
        return unix_ns - (self._low_ns + self._high_ns) // 2
