"""Exchanges that hand out credentials: logins, token exchanges, made keys. Their bodies are never written.

Seen at agents: `POST /v1/oauth/token` and `/api/oauth/claude_cli/create_api_key` (Claude Code), `/oauth/token` and
`/api/accounts/deviceauth/…` of auth.openai.com (Codex), `/token` of oauth2.googleapis.com (Gemini CLI),
`/login/device/code`, `/login/oauth/access_token`, `/copilot_internal/v2/token` (Copilot).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote

from capture.secret import is_secret_name

_SEGMENTS = frozenset(
    {
        "auth", "auth_tokens", "authorize", "client_secret", "client_secrets", "create_api_key", "device", "deviceauth",
        "device_authorization", "device_code", "introspect", "introspection", "login", "logout", "oauth", "oauth2",
        "oidc", "openid-connect", "revoke", "revocation", "saml", "session_token", "sign-in", "signin", "sso", "token",
        "token_exchange", "access_token", "refresh_token", "refresh-token", "api_key", "api_keys", "api-keys",
        "apikeys",
    }
)  # fmt: skip
_HOST_LABELS = frozenset(
    {"auth", "auth0", "login", "accounts", "oauth", "oauth2", "sts", "iam", "id", "sso", "identity", "iamcredentials"}
)
_GRANT = re.compile(
    rb"""(?:^|&)(?:grant_type|refresh_token|client_secret|device_code|code_verifier|subject_token|client_assertion)=
      |"(?:grant_type|grantType|code_verifier|codeVerifier|subject_token|device_auth_id)"\s*:\s*\"""",
    re.VERBOSE,
)
_HINTS = (b"grant", b"erifier", b"_token", b"client_", b"device_")  # one of them is in whatever `_GRANT` finds
_MODEL = re.compile(
    r"/(?:messages|count_tokens|completions|responses(?:/[^/]+)?|embeddings|models(?:/[^/]+)?)$|:[a-z]*(?:generate|count)",
    re.IGNORECASE,
)
_GRANT_BYTES = 32 << 10  # a larger body is no grant; model calls that quote one usually are larger
_CODES = re.compile(r"(?:.*(?:_|^)(?:code|verifier|ticket)|.*(?:Code|Verifier)|samlresponse|raw_key)$")


def is_login(host: str, path: str) -> bool:
    """Whether what goes to this place, or comes from it, is made of credentials."""
    plain = unquote(re.split(r"[?#]", path, maxsplit=1)[0]).lower()
    if _MODEL.search(plain):
        return False  # a gateway may put its models under /auth/…
    name = host.partition(":")[0].lower()
    return ("." in name and name.split(".")[0] in _HOST_LABELS) or not _SEGMENTS.isdisjoint(plain.split("/"))


def is_grant(body: bytes) -> bool:
    """Whether a request's body asks for credentials, by the words of OAuth (RFC 6749 4, RFC 8628, RFC 8693)."""
    if not body or len(body) > _GRANT_BYTES or not any(hint in body for hint in _HINTS):
        return False
    if _GRANT.search(body) is None:
        return False
    return body.lstrip()[:1] != b"{" or _is_flat_grant(body)


def _is_flat_grant(body: bytes) -> bool:
    """A prompt may quote a grant; a grant is an object that has those words as its own keys."""
    try:
        value = json.loads(body)
    except ValueError:
        return False
    names = {"grant_type", "grantType", "code_verifier", "codeVerifier", "subject_token", "device_auth_id"}
    return isinstance(value, dict) and not names.isdisjoint(value)


def secrets_of(body: bytes) -> Iterator[str]:
    """The credentials in the body of such an exchange, by their names; from JSON or a form."""
    try:
        yield from _in_json(json.loads(body))
    except (ValueError, RecursionError):
        for name, value in parse_qsl(body.decode("utf-8", "replace")):
            if _is_secret(name):
                yield value


def _in_json(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str):
                if _is_secret(name):
                    yield inner
            else:
                yield from _in_json(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _in_json(inner)


def _is_secret(name: str) -> bool:
    return (is_secret_name(name) and name.lower() != "token_type") or _CODES.match(name) is not None
