"""How connections leave this machine: directly, or through the proxy that the user's environment names.

Variables are read as curl and requests read them: lower case before upper case, `ALL_PROXY` where the scheme has none
of its own, `NO_PROXY` for hosts that are reached directly; loopback always is. What a proxy URL holds besides host and
port stays in memory: neither a log nor a journal nor an error names the proxy by more than its variable.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http
import ipaddress
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

type Scheme = Literal["http", "https"]

_ANSWER_S = 60.0  # a proxy has to answer CONNECT; what comes after it may take its time
_PORTS = {"http": 80, "https": 443}


class OutboundError(ValueError):
    """A proxy that a variable names cannot be used. The sentence names the variable and the next step."""


class ProxyRefusal(OSError):
    """A proxy did not open a tunnel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundProxy:
    """An HTTP proxy between this machine and its upstreams."""

    variable: str
    tls: bool  # towards the proxy itself
    host: str = field(repr=False)
    port: int = field(repr=False)
    authorization: bytes | None = field(default=None, repr=False)  # value of Proxy-Authorization


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """What an environment says; as made without arguments, everything is reached directly."""

    proxies: Mapping[Scheme, OutboundProxy | OutboundError] = field(default_factory=dict)
    exempt: tuple[str, ...] = ()  # entries of NO_PROXY

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """From the variables of an environment. A proxy that cannot be used is an error once something needs it."""
        proxies: dict[Scheme, OutboundProxy | OutboundError] = {}
        for scheme in _SCHEMES:
            name = _variable(environment, f"{scheme}_proxy") or _variable(environment, "all_proxy")
            if name is not None:
                try:
                    proxies[scheme] = _parse(name, environment[name].strip())
                except OutboundError as fault:
                    proxies[scheme] = fault
        return cls(proxies=proxies, exempt=no_proxy_entries(environment))

    def find(self, scheme: Scheme, host: str, port: int) -> OutboundProxy | None:
        """The proxy towards a host; None: reached directly. OutboundError where it cannot be used."""
        proxy = self.proxies.get(scheme)
        if proxy is None or _is_loopback(host) or any(is_exempt(entry, host, port) for entry in self.exempt):
            return None
        if isinstance(proxy, OutboundError):
            raise proxy
        return proxy

    def check(self) -> None:
        """OutboundError where a proxy cannot be used, whatever host it is for."""
        for proxy in self.proxies.values():
            if isinstance(proxy, OutboundError):
                raise proxy

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables that name a usable proxy."""
        named = [proxy.variable for proxy in self.proxies.values() if isinstance(proxy, OutboundProxy)]
        return tuple(dict.fromkeys(named))


_SCHEMES: tuple[Scheme, ...] = ("http", "https")


def no_proxy_entries(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Entries of NO_PROXY, as they are written."""
    text = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return tuple(entry for entry in re.split(r"[,\s]+", text) if entry)


def is_exempt(entry: str, host: str, port: int) -> bool:
    """Whether one entry of NO_PROXY names a host: `*`, a domain with all below it, an address, a network; a port."""
    if entry == "*":
        return True
    host = host.lower().rstrip(".").strip("[]")
    name, only_port = _split_port(entry.lower())
    if only_port is not None and only_port != port:
        return False
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        with contextlib.suppress(ValueError):
            return address in ipaddress.ip_network(name, strict=False)
        return False  # an address is below no domain
    name = name.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


class Dialler:
    """Opens connections the way an `Outbound` says. `make_context`: TLS towards a proxy that wants it."""

    def __init__(self, outbound: Outbound, make_context: Callable[[], ssl.SSLContext]) -> None:
        self._outbound = outbound
        self._make_context = make_context
        self._context: ssl.SSLContext | None = None

    def asked(self, host: str, port: int) -> OutboundProxy | None:
        """The proxy that plain requests to a host are sent to whole; None: to the host itself."""
        return self._outbound.find("http", host, port)

    async def open(
        self, host: str, port: int, *, tunnel: bool, **more: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as asyncio.open_connection does; OSError where that fails.

        `tunnel`: bytes will reach the host as they are; else the other end may be a proxy, see `asked`.
        """
        try:
            proxy = self._outbound.find("https" if tunnel else "http", host, port)
            authority = authority_of(host, port).encode("ascii")
        except OutboundError as fault:
            raise ProxyRefusal(str(fault)) from fault
        except UnicodeError as fault:  # which a relay that expects nothing but OSError would not survive
            raise OSError(f"{host[:80]!r} is no name of a host") from fault
        if proxy is None:
            return await asyncio.open_connection(host, port, **more)
        if proxy.tls:
            if self._context is None:
                self._context = self._make_context()
            more = {**more, "ssl": self._context, "server_hostname": proxy.host}
        try:
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port, **more)
        except OSError as fault:
            # The address that asyncio's own sentence names may be nobody's business; its kind of fault is enough.
            why = fault.strerror if not isinstance(fault, ssl.SSLError) and fault.errno else type(fault).__name__
            raise ProxyRefusal(f"the proxy that {proxy.variable} names cannot be reached ({why})") from fault
        if not tunnel:
            return reader, writer
        try:
            async with asyncio.timeout(_ANSWER_S):
                await _connect(reader, writer, proxy, authority)
        except BaseException as fault:
            writer.close()
            if isinstance(fault, TimeoutError):
                raise ProxyRefusal(f"the proxy that {proxy.variable} names does not answer") from fault
            raise
        return reader, writer


async def _connect(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, proxy: OutboundProxy, authority: bytes
) -> None:
    credentials = _credentials(proxy)
    writer.write(b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (authority, authority, credentials))
    try:
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as fault:
        raise ProxyRefusal(f"the proxy that {proxy.variable} names closed the connection") from fault
    found = re.match(rb"HTTP/1\.\d (\d{3})", head)
    if found is None:
        raise ProxyRefusal(f"what {proxy.variable} names is no HTTP proxy")
    status = int(found[1])
    if not 200 <= status < 300:
        # Its own words are not repeated: a proxy may quote what it was sent.
        with contextlib.suppress(ValueError):
            phrase = http.HTTPStatus(status).phrase
            raise ProxyRefusal(f"the proxy that {proxy.variable} names refused the tunnel: {status} {phrase}")
        raise ProxyRefusal(f"the proxy that {proxy.variable} names refused the tunnel: {status}")


def for_proxy(head: bytes, origin: str, proxy: OutboundProxy) -> bytes:
    """A plain request's head (or its beginning) as a proxy is asked: the whole URL, and the proxy's credentials."""
    line, end, rest = head.partition(b"\r\n")
    method, target, version = line.split(b" ", 2)
    target = b"" if target == b"*" else target
    return b"%s %s%s %s%s%s%s" % (method, origin.encode("ascii"), target, version, end, _credentials(proxy), rest)


def authority_of(host: str, port: int) -> str:
    """`HOST:PORT` in ASCII. UnicodeError for what cannot be a name."""
    if ":" in host:
        return f"[{host}]:{port}"
    return f"{host.encode('idna').decode('ascii')}:{port}"


def _credentials(proxy: OutboundProxy) -> bytes:
    return b"" if proxy.authorization is None else b"Proxy-Authorization: %s\r\n" % proxy.authorization


def _variable(environment: Mapping[str, str], name: str) -> str | None:
    for spelled in (name, name.upper()):
        if (value := environment.get(spelled)) is not None:
            # One set to nothing says that there is none, whatever the other spelling says.
            return spelled if value.strip() else None
    return None


def _parse(variable: str, url: str) -> OutboundProxy:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme.startswith("socks"):
        raise OutboundError(
            f"{variable} names a SOCKS proxy, and the recorder can use HTTP proxies only: name one by HTTPS_PROXY, or "
            "list the hosts that are reached directly in NO_PROXY"
        )
    if parts.scheme not in _PORTS or not host:
        raise OutboundError(f"{variable} names no HTTP proxy: write http://HOST:PORT (its value is not repeated here)")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = b"Basic " + base64.b64encode(pair.encode())
    return OutboundProxy(
        variable=variable,
        tls=parts.scheme == "https",
        host=host,
        port=port or _PORTS[parts.scheme],
        authorization=authorization,
    )


def _split_port(entry: str) -> tuple[str, int | None]:
    if entry.startswith("["):
        name, _, port = entry[1:].partition("]")
        return name, int(port[1:]) if port[1:].isdecimal() else None
    name, colon, port = entry.partition(":")
    return (name, int(port)) if colon and port.isdecimal() else (entry, None)


def _is_loopback(host: str) -> bool:
    bare = host.lower().rstrip(".").strip("[]")
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(bare).is_loopback
    return False
