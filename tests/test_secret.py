from __future__ import annotations

import base64
import hmac

import pytest

from capture.secret import REDACTED, SecretFilter, is_secret_name

STORE_KEY = b"k" * 32
VALUE = "abcdefgh-12345678"


@pytest.mark.parametrize(
    "name",
    [
        "Authorization", "Proxy-Authorization", "x-api-key", "api-key", "X-Goog-Api-Key", "Cookie", "Set-Cookie", "key",
        "access_token", "accessToken", "apikey", "X-ApiKey", "client_secret", "X-Amz-Signature", "X-Amz-Security-Token",
        "sig", "Ocp-Apim-Subscription-Key", "x-auth-token", "PASSWORD", "id_token", "hub-signature", "x-pwd",
        "X-Api-Pass", "api-keys", "x-creds", "DPoP", "client_assertion", "hmac", "Cookie2",
    ],
)  # fmt: skip
def test_names_that_carry_credentials(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "content-type", "anthropic-ratelimit-input-tokens-limit", "x-ratelimit-remaining-tokens", "idempotency-key",
        "x-claude-code-session-id", "session-id", "x-claude-code-prev-tool-durations", "sec-websocket-key", "alt",
        "request-id", "max_tokens", "monkey", "openai-organization", "x-stainless-retry-count", "beta", "author",
        "x-codex-turn-metadata", "keyboard", "keep-alive", "passage", "code", "sid", "credit",
    ],
)  # fmt: skip
def test_names_that_do_not(name: str) -> None:
    assert not is_secret_name(name)


def digest(value: str) -> bytes:
    return hmac.digest(STORE_KEY, value.encode(), "sha256")


@pytest.mark.parametrize(
    ("name", "value", "remembered"),
    [
        ("authorization", f"Bearer {VALUE}", [VALUE]),
        ("authorization", f"Bearer\t{VALUE} ", [VALUE]),
        ("authorization", VALUE, [VALUE]),
        ("authorization", "", []),
        ("cookie", f'a="{VALUE}"', [VALUE]),
        ("x-api-key", VALUE, [VALUE]),
        (
            "authorization",
            "Basic " + base64.b64encode(f"user:{VALUE}".encode()).decode(),
            [base64.b64encode(f"user:{VALUE}".encode()).decode(), VALUE],
        ),
        ("cookie", f"a={VALUE}; b={VALUE}2", [VALUE, VALUE + "2"]),
        ("set-cookie", f"a={VALUE}; Path=/; HttpOnly", [VALUE]),
        ("x-anything", f"Bearer {VALUE}", [VALUE]),
        ("x-api-key", "dummy", []),
        ("x-token", "123456789", []),
    ],
    ids=[
        "bearer",
        "tab",
        "bare",
        "empty",
        "quoted cookie",
        "key",
        "basic",
        "cookies",
        "set-cookie",
        "any name",
        "too short to search for",
        "a number",
    ],
)
def test_headers_are_replaced_and_their_values_remembered_as_digests(
    name: str, value: str, remembered: list[str]
) -> None:
    secrets = SecretFilter(STORE_KEY)
    assert secrets.header(name, value) == REDACTED
    found = secrets.take_new()
    assert [secret.digest for secret in found] == [digest(value) for value in remembered]
    assert [secret.length for secret in found] == [len(value) for value in remembered]
    assert secrets.take_new() == []
    secrets.header(name, value)
    assert secrets.take_new() == []  # seen before


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/v1/messages?beta=true", "/v1/messages?beta=true"),
        (f"/v1beta/models/x:generate?alt=sse&key={VALUE}", f"/v1beta/models/x:generate?alt=sse&key={REDACTED}"),
        (f"/x?api_key={VALUE}&", f"/x?api_key={REDACTED}&"),
        ("/x?key=", "/x?key="),
        ("/x?key", "/x?key"),
        (f"/x?a=1=2&token={VALUE}=", f"/x?a=1=2&token={REDACTED}"),
        ("/sk-ant-api03-abcdefghijklmnopqrst/x", f"/{REDACTED}/x"),
        ("/x?q=sk-ant-api03-abcdefghijklmnopqrst", f"/x?q={REDACTED}"),
        (f"/x?code={VALUE}", f"/x?code={REDACTED}"),
        (f"/x?a=1;key={VALUE}", f"/x?a=1;key={REDACTED}"),
        (f"/x#access_token={VALUE}", f"/x#access_token={REDACTED}"),
        (f"/x?key={VALUE}?{VALUE};{VALUE};x={VALUE}&a=1", f"/x?key={REDACTED}&a=1"),
        (f"/x;v=1?a=1;b&key={VALUE}", f"/x;v=1?a=1;b&key={REDACTED}"),
    ],
)
def test_paths(path: str, written: str) -> None:
    assert SecretFilter(STORE_KEY).path(path) == written


def test_an_escaped_value_is_remembered_as_text_would_show_it() -> None:
    secrets = SecretFilter(STORE_KEY)
    secrets.path("/x?key=abc%2Fdefghijk")
    assert {secret.digest for secret in secrets.take_new()} == {digest("abc%2Fdefghijk"), digest("abc/defghijk")}


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("location", f"https://h/x?X-Amz-Signature={VALUE}&a=1", f"https://h/x?X-Amz-Signature={REDACTED}&a=1"),
        ("referer", f"http://user:{VALUE}@h/x", f"http://{REDACTED}@h/x"),
        ("x-anything", "prefix sk-proj-abcdefghijklmnopqrst", f"prefix {REDACTED}"),
        ("user-agent", "claude-cli/2.1 (external, cli)", "claude-cli/2.1 (external, cli)"),
        ("host", f"user:{VALUE}@localhost", f"{REDACTED}@localhost"),
        ("www-authenticate", 'Bearer realm="models"', 'Bearer realm="models"'),
        (
            "sec-websocket-protocol",
            f"realtime, openai-insecure-api-key.{VALUE}",
            f"realtime, openai-insecure-api-key.{REDACTED}",
        ),
    ],
)
def test_other_headers_lose_only_what_is_secret(name: str, value: str, written: str) -> None:
    assert SecretFilter(STORE_KEY).header(name, value) == written


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (f"Invalid header line: b'set-cookie it\\'s {VALUE}'", f"Invalid header line: {REDACTED}"),
        (f"invalid content-length header: '{VALUE}'", f"invalid content-length header: {REDACTED}"),
        ("[Errno 111] Connect call failed ('127.0.0.1', 1)", "[Errno 111] Connect call failed ('127.0.0.1', 1)"),
    ],
)
def test_errors_lose_what_they_quote_of_the_wire(text: str, written: str) -> None:
    assert SecretFilter(STORE_KEY).error(text) == written
