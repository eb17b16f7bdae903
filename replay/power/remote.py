"""Another node's sources, as `agentdyno replay power serve` there shows them: `https://HOST:PORT,token-env=NAME`.

Times are matched by the answers themselves, see `ClockMatch`; wall clocks play no part. Where the server does not
answer, its readings are fetched later as long as it keeps them; what it no longer has is a gap, and shows as one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import socket
import ssl
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from curate.words import printable
from replay.power.exchange import MOST_BYTES, PAGE, ClockMatch, PowerAnswer, decode_answer, unpack_sample
from replay.power.relayed import Silence, as_one, read_infos
from replay.power.source import PowerDevice, PowerFault, PowerSample, SourceInfo

TIMEOUT_S = 3.0
"""Of one request, from the first byte of the connection to the last of the answer."""
AGAIN_S = 0.5
"""Between two attempts to reach a server that does not answer."""
SETTLE_S = 2.0
EXCHANGES = 9
"""At the start, to match the clocks."""
MOST_ANSWERS = 40
"""Of one reading; the rest is fetched by the next one."""
AHEAD_NS = 1_000_000_000
WORST_U_S = 0.005
"""The match of clocks is at most so uncertain, or three times as it was at the start; readings between are no readings.
Half a percent of a second's power, at the edges of a window."""
PORT = 9470
_NONE = 10**15 - 1  # the number of a reading that is never reached


class RemoteSource:
    """Asks one power server; raises PowerFault where it does not answer, refuses the token, or is not to be trusted."""

    def __init__(self, url: str, *, token_env: str | None = None, ca_file: Path | None = None) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        self._name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._link = _Link(
            host,
            parts.port or PORT,
            tls=_client_tls(ca_file) if parts.scheme == "https" else None,
            token=_token(token_env),
            name=self._name,
            token_env=token_env,
        )
        self._clocks = ClockMatch()
        self._server: str | None = None
        self._failed_ns: int | None = None  # since when it has not answered
        self._tried_ns = 0
        self._outages = 0
        self._longest_s = 0.0
        self._dropped = 0
        self._gone: set[str] = set()
        try:
            answer = self._ask(PAGE)
            infos = read_infos(answer.sources, self._name)
            for _ in range(EXCHANGES):
                self._ask(f"{PAGE}?after={_NONE}")
        except _NoAnswer as fault:
            self._link.close()
            raise PowerFault(str(fault)) from fault
        except BaseException:
            self._link.close()
            raise
        self._server, self._next = answer.server, answer.next
        self._info = as_one(
            infos,
            kind="remote",
            name=self._name,
            place=self._name,
            clock_u_s=max(WORST_U_S, 3 * self._clocks.u_s(time.monotonic_ns())),
            settle_s=SETTLE_S,
        )
        self._known: dict[str, PowerDevice] = {device.uid: device for device in self._info.devices}
        self._silence = Silence(self._info)

    def describe(self) -> SourceInfo:
        notes = list(self._info.notes)
        if self._outages:
            notes.append(f"it did not answer {self._outages} times, for {self._longest_s:.1f} s at the longest")
        if self._dropped:
            notes.append(f"{self._dropped} readings were no longer kept when they were asked for")
        return dataclasses.replace(self._info, notes=tuple(notes))

    def read(self) -> list[PowerSample]:
        now_ns = time.monotonic_ns()
        if self._failed_ns is not None and now_ns - self._tried_ns < AGAIN_S * 1e9:
            return []
        samples: list[PowerSample] = []
        try:
            for _ in range(MOST_ANSWERS):
                answer = self._ask(f"{PAGE}?after={self._next}")
                if answer.server != self._server:
                    samples += self._after_restart()
                    continue
                self._dropped += answer.dropped
                samples += self._samples(answer)
                self._next = answer.next
                if not answer.more:
                    break
        except (_NoAnswer, PowerFault):
            return samples + self._no_answer(now_ns)
        if self._failed_ns is not None:
            self._longest_s = max(self._longest_s, (time.monotonic_ns() - self._failed_ns) / 1e9)
            self._failed_ns = None
        return samples

    def close(self) -> None:
        self._link.close()

    def _ask(self, target: str) -> PowerAnswer:
        """One request and its exchange of times; raises _NoAnswer."""
        self._tried_ns = time.monotonic_ns()
        body, asked_ns, answered_ns = self._link.ask(target)
        try:
            answer = decode_answer(body)
            if self._server not in (None, answer.server):
                self._clocks = ClockMatch()  # the machine may have been started anew, and its clock with it
            self._clocks.add(asked_ns, answer.received_ns, answer.sent_ns, answered_ns)
        except ValueError as fault:
            self._link.close()
            raise _NoAnswer(f"{self._name} cannot be read: {fault}") from fault
        return answer

    def _samples(self, answer: PowerAnswer) -> list[PowerSample]:
        for _ in range(EXCHANGES):
            if self._certain():
                break
            if self._ask(f"{PAGE}?after={_NONE}").server != answer.server:
                raise _NoAnswer(f"{self._name} was started anew")  # its clock is not the one of these readings
        certain = self._certain()
        offset_ns = self._clocks.offset_ns(time.monotonic_ns())
        found = []
        for packed in answer.samples:
            sample = unpack_sample(packed, offset_ns)
            if sample is None or packed.t_ns > answer.sent_ns + AHEAD_NS:
                raise _NoAnswer(f"{self._name} cannot be read: it sends a reading that cannot be")
            if sample.device not in self._known or sample.device in self._gone:
                continue
            self._silence.saw(sample)
            if not certain and sample.flag == "ok":  # its time is worse known than was said
                sample = dataclasses.replace(sample, value=None, flag="error")
            found.append(sample)
        return found

    def _certain(self) -> bool:
        return self._clocks.u_s(time.monotonic_ns()) <= self._info.clock_u_s

    def _after_restart(self) -> list[PowerSample]:
        """Takes up with a server that was started anew; devices that it no longer has, or has otherwise, are lost."""
        answer = self._ask(PAGE)
        try:
            devices = {device.uid: device for info in read_infos(answer.sources, self._name) for device in info.devices}
        except PowerFault as fault:
            raise _NoAnswer(str(fault)) from fault
        self._server, self._next = answer.server, 0
        gone = {
            uid for uid, device in self._known.items() if uid not in devices or not _same(device, devices[uid])
        } - self._gone
        self._gone |= gone
        return self._silence.samples("lost", time.monotonic_ns(), gone)

    def _no_answer(self, now_ns: int) -> list[PowerSample]:
        if self._failed_ns is not None:
            self._longest_s = max(self._longest_s, (now_ns - self._failed_ns) / 1e9)
            return []
        self._failed_ns = now_ns
        self._outages += 1
        return self._silence.samples("error", now_ns)


class _NoAnswer(Exception):
    """The server did not answer, or not as a power server does; its text is a sentence."""


class _Link:
    """One connection, made again where it broke; a request is over within its time, whatever the other side does."""

    def __init__(
        self, host: str, port: int, *, tls: ssl.SSLContext | None, token: str | None, name: str, token_env: str | None
    ) -> None:
        self._host, self._port, self._tls, self._name = host, port, tls, name
        self._headers = {"accept": "application/json", "user-agent": "agentdyno"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._refused = (
            f"{name} refuses the token in {token_env}: give both sides the same one"
            if token_env is not None
            else f"{name} wants a token: name the variable that holds it, as in {name},token-env=NAME"
        )
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None

    def ask(self, target: str) -> tuple[bytes, int, int]:
        """The body, and when the request was sent and its answer had come; raises _NoAnswer."""
        over = threading.Event()
        watch: threading.Timer | None = None

        def cut() -> None:
            over.set()
            self._cut()

        try:
            connection = self._connection
            if connection is None:
                plain = socket.create_connection((self._host, self._port), TIMEOUT_S)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socket = plain
            watch = threading.Timer(TIMEOUT_S, cut)
            watch.daemon = True
            watch.start()
            if connection is None:
                connection = self._connection = self._secured(self._socket)
            asked_ns = time.monotonic_ns()
            connection.request("GET", target, headers=self._headers)
            response = connection.getresponse()
            body = _body(response)
            answered_ns = time.monotonic_ns()
        except (OSError, http.client.HTTPException, ValueError) as fault:
            self.close()
            raise _NoAnswer(self._why(fault, late=over.is_set())) from fault
        finally:
            if watch is not None:
                watch.cancel()
        if response.will_close or len(body) > MOST_BYTES:
            self.close()
        if response.status == 401:
            raise _NoAnswer(self._refused)
        if response.status != 200 or len(body) > MOST_BYTES:
            raise _NoAnswer(f"{self._name} answers with HTTP {response.status}: it is no power server of agentdyno")
        return body, asked_ns, answered_ns

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        elif self._socket is not None:
            self._socket.close()
        self._connection = self._socket = None

    def _secured(self, plain: socket.socket | None) -> http.client.HTTPConnection:
        assert plain is not None
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.auto_open = 0  # a connection that broke is made again here, where it is watched
        if self._tls is not None:
            secure = self._tls.wrap_socket(plain, server_hostname=self._host, do_handshake_on_connect=False)
            self._socket = secure
            secure.do_handshake()
        connection.sock = self._socket
        return connection

    def _cut(self) -> None:
        """Ends what is under way, from another thread."""
        open_socket = self._socket
        if open_socket is not None:
            with contextlib.suppress(OSError):
                # The plain socket's own: TLS's would take its state from under the reader.
                socket.socket.shutdown(open_socket, socket.SHUT_RDWR)

    def _why(self, fault: Exception, *, late: bool) -> str:
        if late or isinstance(fault, TimeoutError):
            return f"{self._name} did not answer within {TIMEOUT_S:g} s"
        if isinstance(fault, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {self._name} is not trusted ({printable(fault.verify_message)}): "
                "name what signed it, as in ,ca-file=FILE, and call the machine by a name that the certificate holds"
            )
        if isinstance(fault, ssl.SSLError):
            return f"{self._name} does not speak TLS as it should ({printable(fault.reason or 'no reason given')})"
        if isinstance(fault, ConnectionRefusedError | socket.gaierror):
            return f"{self._name} does not answer ({fault.strerror}): start agentdyno replay power serve there"
        if isinstance(fault, OSError):
            return f"{self._name} does not answer ({fault.strerror or type(fault).__name__})"
        if isinstance(fault, http.client.IncompleteRead):
            return f"{self._name} does not answer to the end"
        return f"{self._name} answers with no HTTP: it is no power server of agentdyno"


def _body(response: http.client.HTTPResponse) -> bytes:
    """All of it, or one byte more than may be; raises IncompleteRead, which the library leaves out of bounded reads."""
    body = response.read(MOST_BYTES + 1)
    if response.length and len(body) <= MOST_BYTES:
        raise http.client.IncompleteRead(body, response.length)
    return body


def _same(one: PowerDevice, other: PowerDevice) -> bool:
    """Whether readings of the two may stand in one series."""
    return (one.domain, one.wrap_j) == (other.domain, other.wrap_j)


def _client_tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as fault:
        raise PowerFault(f"ca-file {ca_file} holds no certificate in PEM") from fault
    except OSError as fault:
        raise PowerFault(f"ca-file {ca_file} cannot be read: {fault.strerror or fault}") from fault


def _token(token_env: str | None) -> str | None:
    if token_env is None:
        return None
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise PowerFault(f"token-env names {token_env}, which is not set: export the power server's token in it")
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise PowerFault(f"{token_env} holds what is no token: one word of ASCII letters, digits and signs")
    return token
