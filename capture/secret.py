"""Credentials of the connection: replaced before anything is written, remembered only by a keyed digest."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, unquote_plus

REDACTED = "<redacted>"

SHORTEST_REMEMBERED = 8
"""Bytes. A shorter value (`x`, `dummy`) is replaced too, but would be found in any text if it were remembered."""

_SEEN = 4096

type SecretKind = Literal["header", "cookie", "query", "path", "body"]

_ALWAYS = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})
# Named like secrets, but the first two mark a retry, and the others are nonces and challenges of the protocol.
_NEVER = frozenset(
    {
        "idempotency-key",
        "x-idempotency-key",
        "sec-websocket-key",
        "sec-websocket-accept",
        "www-authenticate",
        "proxy-authenticate",
    }
)
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+(?![a-z])")
_SECRET_WORD = re.compile(
    r"(?:key|.*(?:api|access|secret|private|auth|account|master|subscription|function)keys?|.*token|.*secret|.*signature"
    r"|.*passwd|.*password|.*passphrase|pass|pwd|otp|totp|passcode|.*credentials?|creds?|sig|sas|hmac|jwt|dpop|.*assertion|auth|bearer"
    r"|authorization|.*cookie2?)$"
)
_SECRET_PARAMETERS = frozenset({"code", "sid"})  # as headers they would be no credentials: Azure's function key, OAuth
# Values that are keys whatever their field is called: the formats in which providers hand them out.
_KEY_SHAPE = re.compile(
    r"sk-[A-Za-z0-9_-]{16,}|AIza[0-9A-Za-z_-]{35}|(?:ghp|gho|ghs|ghu|github_pat)_[A-Za-z0-9_]{20,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|(?:hf|gsk|xai|pplx|nvapi|r8|glpat|tvly)[-_][A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
    r"|adt_[A-Za-z0-9_-]{20,}"  # our own tokens of people
    r"|ya29\.[A-Za-z0-9_-]{20,}|1//[A-Za-z0-9_-]{30,}"
)
# Browsers cannot set headers on a WebSocket, so keys travel as subprotocols: only well-known names are written.
_PROTOCOL = re.compile(
    r"realtime|responses|openai-beta\.[a-z0-9-]{1,24}|openai-(?:organization|project)\.[\w-]{1,40}|json|chat|mqtt"
    r"|graphql-ws|graphql-transport-ws|v\d{1,2}(?:\.[a-z0-9-]{1,16}){0,4}",
    re.IGNORECASE,
)
_PROTOCOL_KEY = re.compile(r"(.*(?:api-key|token|bearer|authorization|key)[\w-]*(?:\.io)?\.)(.+)$", re.IGNORECASE)
# Fields of structured authorizations (Digest, AWS4-HMAC-SHA256) that are worth finding elsewhere.
_FIELD = re.compile(r"""(?:^|[\s,])(?:Credential|Signature|response|token)="?([^",\s]+)"?""", re.IGNORECASE)
# What follows a scheme of HTTP authentication is a credential in a header of any name.
_SCHEME = re.compile(r"(?:bearer|basic|token|apikey|dpop) +\S{8,}$", re.IGNORECASE)
_USER_INFO = re.compile(r"(?:(?<=://)|^)[^/@\s?#]+@")
_QUOTED_BYTES = re.compile(r"\bb(['\"]).*\1|(?<=header: )(['\"]).*\2", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenSecret:
    """A credential that passed through, without the credential."""

    length: int  # bytes
    digest: bytes  # HMAC-SHA256 with the store's key over the bytes of the value
    kind: SecretKind


def is_secret_name(name: str) -> bool:
    """Whether a header or query parameter of this name carries a credential."""
    lowered = name.lower()
    if lowered in _ALWAYS:
        return True
    if lowered in _NEVER:
        return False
    return any(_SECRET_WORD.match(word.lower()) for word in _WORD.findall(name)) or bool(
        _SECRET_WORD.match(re.sub(r"[^a-z0-9]", "", lowered))
    )


class SecretFilter:
    """Takes credentials out of headers and paths, and keeps a digest of each for the redaction of text later."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._seen: dict[bytes, SeenSecret] = {}
        self._new: list[SeenSecret] = []

    def take_new(self) -> list[SeenSecret]:
        """Secrets seen for the first time since the last call."""
        new, self._new = self._new, []
        return new

    def header(self, name: str, value: str) -> str:
        """The value of a header as it may be written. `name` in any case."""
        lowered = name.lower()
        if lowered == "sec-websocket-protocol":
            return ", ".join(self._protocol(part.strip()) for part in value.split(","))
        if is_secret_name(lowered) or (lowered not in _NEVER and _SCHEME.match(value.strip())):
            self._remember_header(lowered, value)
            return REDACTED
        if "://" in value or lowered in ("host", ":authority"):
            value = self.host(value)
        if "=" in value and ("?" in value or "#" in value):  # a link: location, referer
            value = self.path(value)
        return self._by_shape(value, "header")

    def host(self, host: str) -> str:
        """A host with its port, or a URL, as it may be written: without user information."""

        def replace(found: re.Match[str]) -> str:
            whole = found.group()[:-1]
            for part in (whole, whole.partition(":")[2]):
                self.remember(part, "header")
                self.remember(unquote(part), "header")
            return f"{REDACTED}@"

        return _USER_INFO.sub(replace, host)

    def error(self, text: str) -> str:
        """An error's text as it may be written: without the line of the peer that it quotes."""
        return self._by_shape(_QUOTED_BYTES.sub(REDACTED, text), "header")

    def path(self, path: str) -> str:
        """A request target as it may be written: key-like parameters and key-shaped segments replaced."""
        head, *rest = re.split(r"([?#&;])", self.host(path) if "://" in path else path)
        fields: list[str] = []
        for mark, field in zip(rest[::2], rest[1::2], strict=True):
            if fields and mark in "?;" and _is_secret_parameter(fields[-1][1:]):
                fields[-1] += mark + field  # both may stand in a value
            else:
                fields.append(mark + field)
        return self._by_shape(head, "path") + "".join(field[0] + self._parameter(field[1:]) for field in fields)

    def _protocol(self, name: str) -> str:
        if not name or _PROTOCOL.fullmatch(name):
            return self._by_shape(name, "header")
        carried = _PROTOCOL_KEY.match(name)
        self.remember(name, "header")
        if carried is None:
            return REDACTED
        self.remember(carried[2], "header")
        self._remember_encoded(carried[2])
        return f"{carried[1]}{REDACTED}"

    def _parameter(self, field: str) -> str:
        name, equals, value = field.partition("=")
        if not equals or not value:
            return self._by_shape(field, "query")
        if _is_secret_parameter(field):
            for part in {value, re.split(r"[?;]", value, maxsplit=1)[0]}:
                self.remember(part, "query")
                self.remember(unquote_plus(part), "query")
            return f"{name}={REDACTED}"
        return f"{name}={self._by_shape(value, 'query')}"

    def _by_shape(self, text: str, kind: SecretKind) -> str:
        def replace(found: re.Match[str]) -> str:
            self.remember(found.group(), kind)
            return REDACTED

        return _KEY_SHAPE.sub(replace, text)

    def _remember_header(self, name: str, value: str) -> None:
        if name == "cookie":
            for pair in value.split(";"):
                self.remember(pair.partition("=")[2].strip(' "'), "cookie")
            return
        if name == "set-cookie":
            self.remember(value.partition(";")[0].partition("=")[2].strip(' "'), "cookie")
            return
        scheme, rest = (*value.split(maxsplit=1), "", "")[:2]
        token = rest.rstrip() or scheme
        self.remember(token, "header")
        for field in _FIELD.finditer(rest):
            self.remember(field[1].partition("/")[0], "header")
        if scheme.lower() == "basic":
            self._remember_encoded(token)

    def _remember_encoded(self, token: str) -> None:
        """What base64 hides: a password behind its user name, or a whole token."""
        try:
            plain = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return
        self.remember(plain.partition(":")[2] or plain, "header")

    def remember(self, value: str, kind: SecretKind) -> None:
        """Keep the digest of a credential, unless it is too short to be looked for in text."""
        data = value.encode("utf-8", "surrogateescape")
        if len(data) < SHORTEST_REMEMBERED or value == REDACTED or value.isdigit():
            return  # a bare number under a key-like name is a count
        digest = hmac.digest(self._key, data, "sha256")
        if digest not in self._seen:
            if len(self._seen) >= _SEEN:
                self._seen.clear()  # cookies change with every answer; the journal knows each digest already
            secret = SeenSecret(length=len(data), digest=digest, kind=kind)
            self._seen[digest] = secret
            self._new.append(secret)


def _is_secret_parameter(field: str) -> bool:
    name, equals, _ = field.partition("=")
    plain = unquote_plus(name)
    return bool(equals) and (is_secret_name(plain) or plain.lower() in _SECRET_PARAMETERS)


def without_secrets(path: str) -> str:
    """A path for people, less what `SecretFilter.path` takes out of it."""
    return SecretFilter(b"").path(path)
