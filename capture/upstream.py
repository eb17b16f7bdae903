"""Where requests go: one upstream, or several told apart by the first segment of the path."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, Self
from urllib.parse import urlsplit

from capture.secret import SecretFilter, without_secrets


class UpstreamError(ValueError):
    """An address is not usable. The sentence names it and the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """The server that a path is forwarded to."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    prefix: str = ""  # put before every path; empty or "/…" without a slash at its end

    @classmethod
    def parse(cls, url: str) -> Self:
        """From `http(s)://HOST[:PORT][/PREFIX]`. UpstreamError for anything else."""
        shown = _shown(url)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as fault:
            # The fault's own words quote the address, which may hold a password.
            raise UpstreamError(f"upstream {shown!r}: its host or its port (0 to 65535) cannot be read") from fault
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UpstreamError(f"upstream {shown!r} is no base URL: give http://HOST:PORT or https://HOST")
        if not _is_host(parts.hostname):
            raise UpstreamError(f"upstream {shown!r}: that is no name of a host")
        if parts.username is not None or parts.password is not None:
            raise UpstreamError(
                f"upstream {parts.hostname!r}: leave credentials out of the URL, the agent sends its own"
            )
        if parts.query or parts.fragment:
            raise UpstreamError(f"upstream {parts.hostname!r}: a base URL has no query and no fragment")
        scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
        return cls(
            scheme=scheme,
            host=parts.hostname,
            port=port or (443 if scheme == "https" else 80),
            prefix=parts.path.rstrip("/"),
        )

    @property
    def authority(self) -> str:
        """The Host header: without the port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and authority."""
        return f"{self.scheme}://{self.authority}"

    @property
    def shown(self) -> str:
        """For people and for the journal: without a key that the path holds."""
        return _shown(str(self))

    def __str__(self) -> str:
        return self.origin + self.prefix

    def hidden(self) -> tuple[Self, str]:
        """The upstream with as much of its path as may be a key, and the rest of the path, which anybody may see."""
        parts = self.prefix.split("/")
        last = max((at for at, part in enumerate(parts) if _may_be_a_key(part)), default=0)
        prefix = "/".join(parts[: last + 1])
        return replace(self, prefix=prefix), self.prefix[len(prefix) :]


def _shown(url: str) -> str:
    """An address for people: without user information, keys and what looks like one."""
    plain = without_secrets(SecretFilter(b"").host(url))
    at = plain.find("/", plain.find("://") + 3 if "://" in plain else 0)
    if at < 0:
        return plain
    return plain[:at] + "/".join("…" if _may_be_a_key(part) else part for part in plain[at:].split("/"))


def _may_be_a_key(part: str) -> bool:
    return without_secrets(part) != part or (
        re.fullmatch(r"(?=.*\d)(?=.*[A-Za-z])[\w-]{20,}", part, re.ASCII) is not None
    )


def _is_host(name: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    try:
        ascii_name = name.encode("idna").decode("ascii")
    except UnicodeError:  # an empty label, or one of more than 63 characters
        return False
    return len(ascii_name) < 256 and re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?", ascii_name) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """All upstreams of a recorder."""

    default: Upstream | None = None
    by_segment: tuple[tuple[str, Upstream], ...] = ()

    def target(self, path: str) -> tuple[Upstream, str] | None:
        """Where a path goes and as what path; None where no upstream takes it."""
        rest = path.removeprefix("/")
        cut = min((at for at in (rest.find("/"), rest.find("?"), len(rest)) if at >= 0), default=0)
        for segment, upstream in self.by_segment:
            if rest[:cut] == segment:
                tail = rest[cut:]
                return upstream, upstream.prefix + (tail if tail.startswith("/") else f"/{tail}")
        if self.default is not None:
            return self.default, self.default.prefix + path
        return None

    def for_host(self, host: str) -> Upstream | None:
        """In a forward proxy a route's name is a model host: where its calls go instead; None: to the host itself."""
        return next((upstream for name, upstream in self.by_segment if name == host), self.default)

    def describe(self) -> str:
        """For people and for the journal: which path goes where, without a key that an upstream's path holds."""
        named = [*self.by_segment, *([("", self.default)] if self.default is not None else [])]
        return ", ".join(f"/{segment} → {to.shown}" for segment, to in named)

    @property
    def all(self) -> tuple[Upstream, ...]:
        """Every upstream once."""
        named = tuple(upstream for _, upstream in self.by_segment)
        return tuple(dict.fromkeys((self.default, *named) if self.default is not None else named))

    @property
    def any(self) -> Upstream:
        """Some upstream, for what needs one before a path is known."""
        return self.all[0]
