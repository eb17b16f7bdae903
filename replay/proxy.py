"""The way to a server: direct, or through an HTTP proxy that our own transport tunnels (CONNECT), never httpx's.

A proxy that the environment names lies on the measured path without anybody having asked for it, so it is refused
until `--proxy` or NO_PROXY settles the matter. The loopback is always reached directly unless `--proxy` says otherwise.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from dataclasses import dataclass, field

import httpx

DIRECT = "none"
"""What `--proxy` takes to ignore a proxy of the environment."""
MOST_OF_A_REPLY = 16_384


class ProxyError(ValueError):
    """The way to the server is not settled; one sentence with the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """An HTTP proxy that takes CONNECT."""

    host: str
    port: int
    authorization: bytes | None = field(default=None, repr=False)  # value of Proxy-Authorization

    def greeting(self, host: str, port: int) -> bytes:
        """The request that asks the proxy for a tunnel."""
        name = f"[{host}]" if ":" in host else host
        lines = [f"CONNECT {name}:{port} HTTP/1.1", f"Host: {name}:{port}"]
        text = "".join(line + "\r\n" for line in lines).encode("ascii")
        if self.authorization is not None:
            text += b"Proxy-Authorization: " + self.authorization + b"\r\n"
        return text + b"\r\n"


def parse_proxy(text: str, key_env: str | None) -> Proxy | None:
    """The proxy of `--proxy`, None for `none`; `key_env` names the variable with its `user:password`. ProxyError."""
    if text.strip().lower() == DIRECT:
        return None
    try:
        url = httpx.URL(text.strip())
    except httpx.InvalidURL as error:
        raise ProxyError(f"--proxy: not a URL ({error}): give one like http://127.0.0.1:3128, or none") from None
    if url.userinfo:
        # Not quoted: it holds a password.
        raise ProxyError("--proxy holds credentials: name the variable that holds them (--proxy-key-env) instead")
    if url.scheme != "http" or not url.host or url.path not in ("", "/") or url.query:
        raise ProxyError(f"--proxy {text!r} is not an HTTP proxy: give one like http://127.0.0.1:3128, or none")
    authorization = None
    if key_env is not None:
        value = os.environ.get(key_env)
        if not value:
            raise ProxyError(f"the environment variable {key_env} is not set: export it, or name no proxy credentials")
        authorization = b"Basic " + base64.b64encode(value.encode())
    return Proxy(host=url.host, port=url.port or 80, authorization=authorization)


def refuse_unsettled(url: str) -> None:
    """Raise ProxyError where the environment names a proxy for this URL and nothing says whether to use it."""
    import urllib.request

    parsed = httpx.URL(url)
    if is_loopback(parsed.host):
        return
    proxies = urllib.request.getproxies_environment()
    # Not its value: it may hold a password.
    variable = next((kind for kind in (parsed.scheme, "all") if proxies.get(kind)), None)
    bypassed = urllib.request.proxy_bypass_environment(parsed.host, proxies)  # type: ignore[attr-defined]
    if variable is None or bypassed:
        return
    raise ProxyError(
        f"the environment names a proxy ({variable.upper()}_PROXY) for {url}: say --proxy http://HOST:PORT to measure "
        f"through it, --proxy {DIRECT} to go directly, or list {parsed.host} in NO_PROXY"
    )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own loopback by its name or address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def tunnel_refusal(reply: bytes) -> str | None:
    """Why a proxy's reply to CONNECT is no tunnel; None where it is one."""
    line = reply.split(b"\r\n", 1)[0]
    parts = line.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        return f"it does not speak HTTP/1.1: {line[:80].decode('latin-1')!r}"
    if not 200 <= int(parts[1]) < 300:
        return line[9:200].decode("latin-1").strip()
    return None
