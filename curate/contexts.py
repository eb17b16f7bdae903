"""Secrets that are known by where they stand: after a telling name, in a URL, in a header, on a command line."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from curate.shapes import ASSIGNED, PLACE, Finding

_QUOTE = r"\\*[\"'`]"  # escaped once per level of JSON in JSON
_BARE = r"[^\s\"'`,;<>(){}\[\]\\|&]"

_KEY_OWNERS = (
    "api|access|secret|private|auth|encryption|encrypt|signing|sign|master|account|shared|service|app|application|"
    "consumer|license|admin|deploy|session|storage|subscription|webhook|jwt|crypt|hmac|aes|client|user|root|bot|cipher|"
    "decrypt|decryption|functions|publish|write"
)
# A name must end in one of these words: `token_count`, `password_file` and `public_key` name no secret.
_NAME = re.compile(
    r"(?:(?P<password>pass(?:word|wd|phrase|code)|(?<![a-z])pwd|credentials?)"
    rf"|(?P<api_key>(?:{_KEY_OWNERS})[_.-]?(?:access[_.-]?)?key)"
    r"|(?P<token>(?<!change)(?<!continuation)(?<!next)(?<!page)(?<!sync)(?<!action)(?<!next[_-])(?<!page[_-])token)|(?P<secret>secret(?:[_.-]?(?:string|text))?)|(?P<authorization>authorization|(?<![a-z])auth))"
    r"(?:[_.-]?(?:\d{1,3}|value|base64|b64|hex|raw|prod|production|dev|development|staging|test|live|default|main|old|new))?\Z"
)
_ANCHORS = ("pass", "pwd", "secret", "token", "key", "auth", "credential")
_NAME_BEFORE = re.compile(r"[a-z0-9_.-]*\Z")
_NAME_AFTER = re.compile(r"[a-z0-9_.-]*[a-z0-9_]|")
_VALUE = (
    rf"(?:[bfru]?(?P<open>{_QUOTE})(?P<quoted>(?:(?!(?P=open))[^\r\n]){{4,400}}?)(?P=open)|(?P<bare>{_BARE}{{6,400}}))"
)
_AFTER = re.compile(
    rf"(?P<close>{_QUOTE})?[\])]?(?:[ \t]*:[ \t]*(?:str|String|string|&str)(?=[ \t]*=))?"
    # `- name: X`, then `value: Y`: YAML or JSON.
    rf"(?P<separator>,?(?:\s|\\+n)*(?:{_QUOTE})?value(?:{_QUOTE})?[ \t]*[:=][ \t]*"
    r"|[ \t]*(?::=|=>|==|=|:)[ \t]*|>[ \t]*|,[ \t]*(?=\\*[\"']))" + _VALUE
)
_FLAG_AFTER = re.compile(r"(?P<close>)(?P<separator>[ \t]+)" + _VALUE)
_SETTING = re.compile(r"(?:\A|\n|\\n)[ \t]*(?:-[ \t]+|export[ \t]+|set[ \t]+|ENV[ \t]+|ARG[ \t]+|-e[ \t]+)?\Z")

_BEARER = re.compile(r"(?:bearer|token)[ \t]+(?P<value>[A-Za-z0-9._~+/=-]{16,})", re.IGNORECASE)
_BASIC = re.compile(r"basic[ \t]+(?P<value>[A-Za-z0-9+/]{12,}={0,2})", re.IGNORECASE)
_COOKIE = re.compile(r"cookie:[ \t]*(?P<value>[^\r\n\"'\\]{8,4000})", re.IGNORECASE)
_COOKIE_VALUE = re.compile(r"=([^\s;=]{16,})")
_URL_USER = re.compile(r"://[^\s/:@\"'`<>\\{}$]{0,100}:(?P<value>[^\s/@\"'`<>\\{}$]{3,200})@(?=[\w\[.-])")
_URL_SIGNATURE = re.compile(r"sig(?:nature)?=(?P<value>[a-z0-9%+/_-]{32,}={0,2})", re.IGNORECASE)
_ACCOUNT_KEY = re.compile(r"(?:account|access)key=(?P<value>[A-Za-z0-9+/]{28,}={0,2})", re.IGNORECASE)
_NETRC = re.compile(r"login[ \t]+\S+\s+password[ \t]+(?P<value>\S{4,})")
_CURL_USER = re.compile(rf"(?: -u|user)[ =]?{_QUOTE}?[\w.@+-]{{1,80}}:(?P<value>[^\s\"'\\$<{{]{{4,200}})")

# fmt: off
_NO_SECRETS = frozenset({
    "none", "null", "nil", "true", "false", "undefined", "password", "passwd", "passphrase", "secret", "token", "key",
    "apikey", "changeme", "change_me", "example", "string", "str", "default", "required", "optional", "unknown",
    "redacted", "removed", "hidden", "masked", "placeholder", "anonymous", "username", "user", "pass", "pwd",
    "missing", "invalid", "disabled", "enabled", "bearer", "basic",
})
# fmt: on
_NO_SECRET_PART = re.compile(
    r"\$[\{(]|\{\{|\}\}|%[\(sdr]|\.\.\.|…|xxxxx|\*\*\*|<[a-z_ -]+>|your[_ -]?|example|changeme|placeholder|redacted|"
    r"dummy|process\.env|environ|getenv|secrets\.|insert[_-]|replace[_-]|<SECRET:",
    re.IGNORECASE,
)
_WORD_PART = re.compile(r"[A-Z]?[a-z]*\d{0,3}|[A-Z]*\d{0,3}|(?:[A-Z]{0,3}[a-z]{2,}\d{0,2})+|\d{1,4}|v\d+")
_PATH_OR_URL = re.compile(r"[.~]{0,2}/|[a-z][a-z0-9+.-]*://|[A-Z]:\\|[a-z]+:[a-z]+[/:]", re.IGNORECASE)
_NO_PASSWORD_CHARACTER = re.compile(r"[\s\\({\[<]")
_SYMBOL = re.compile(r"[!@#$%^&*+=?~]")


def find_in_context(text: str) -> Iterator[Finding]:
    """Findings in a text by name or place."""
    lowered = text.lower()
    if len(lowered) != len(text):  # this capital alone is two characters in lower case, which would shift positions
        lowered = text.replace("\u0130", "I").lower()
    yield from _find_assigned(text, lowered)
    for word, pattern, kind, accept in _PLACES:
        at = lowered.find(word)
        while at >= 0:
            match = pattern.match(text, at)
            if match is None:
                at = lowered.find(word, at + len(word))
                continue
            begin, end = match.span("value")
            if kind == "cookie":
                for cookie in _COOKIE_VALUE.finditer(text, begin, end):
                    if is_token(cookie[1]):
                        yield _finding(cookie.start(1), cookie.end(1), kind, PLACE, text)
            elif accept(match["value"]):
                yield _finding(begin, end, kind, PLACE, text)
            at = lowered.find(word, at + len(word))


def _finding(start: int, end: int, kind: str, rank: int, text: str) -> Finding:
    return Finding(start=start, end=end, kind=kind, rank=rank, value=text[start:end])


def _find_assigned(text: str, lowered: str) -> Iterator[Finding]:
    names: set[int] = set()
    for anchor in _ANCHORS:
        at = lowered.find(anchor)
        while at >= 0:
            after = _NAME_AFTER.match(lowered, at)
            end = after.end() if after else at + len(anchor)
            if end not in names:
                names.add(end)
                yield from _assigned_at(text, lowered, at, end)
            at = lowered.find(anchor, max(end, at + 1))


def _assigned_at(text: str, lowered: str, at: int, end: int) -> Iterator[Finding]:
    before = _NAME_BEFORE.search(lowered, max(0, at - 60), at)
    start = before.start() if before else at
    name = _NAME.search(lowered, start, end)
    if name is None:
        return
    kind = name.lastgroup or ""
    match = _AFTER.match(text, end)
    flag = lowered.startswith("--", start)
    if match is None and flag:
        match = _FLAG_AFTER.match(text, end)
    if match is None:
        return
    separator = match["separator"]
    if separator.startswith(">") and text[start - 1 : start] != "<":
        return  # a comparison, not an element
    if separator == ":" and text[start - 1 : start] == ":":
        return  # a path of names, such as an ARN
    if (value := match["quoted"]) is not None:
        group = "quoted"
        accepted = is_password(value) if kind == "password" and "," not in separator else is_secret(value)
    else:
        group, value = "bare", match["bare"].rstrip(".:")
        if match["close"] or text[match.end() : match.end() + 1] in ("(", "[", "{"):
            return  # a JSON number or constant; a call or an index
        if flag or ">" in separator or "value" in separator.lower() or _is_setting(text, start, separator):
            accepted = is_password(value) if kind == "password" else is_secret(value)
        else:
            accepted = is_token(value)
    if not accepted and kind == "authorization":
        accepted = is_basic(value)
    if accepted:
        begin = match.start(group)
        yield _finding(begin, begin + len(value), kind, ASSIGNED, text)


def _is_setting(text: str, start: int, separator: str) -> bool:
    """Whether a name stands where a settings file or a shell has one, rather than in code with spaces around `=`."""
    if separator == "=":
        return True
    return ":" in separator and "=" not in separator and _SETTING.search(text, max(0, start - 40), start) is not None


def is_token(value: str) -> bool:
    """Whether a value looks random: at least 16 characters, letters and digits, not words, paths or URLs."""
    return len(value) >= 16 and is_secret(value) and _entropy(value) >= 3.0


def is_secret(value: str) -> bool:
    """Whether a value after a telling name looks made by a machine, from 10 characters on."""
    digits = sum(map(str.isdigit, value))
    is_long_and_mixed = len(value) >= 16 and value not in (value.lower(), value.upper())
    return (
        len(value) >= 10
        and digits >= (1 if is_long_and_mixed else 2)
        and sum(map(str.isalpha, value)) >= 2
        and _is_value(value)
        and not _is_words(value)
    )


def is_password(value: str) -> bool:
    """Whether a value after `password` looks like one a person chose: a digit or a symbol, and more than a word."""
    return (
        len(value) >= 6
        and (any(map(str.isdigit, value)) or _SYMBOL.search(value) is not None)
        and any(map(str.isalnum, value))
        and _is_value(value)
        and not (re.search(r"[_.-]", value) and _is_words(value))
    )


def is_url_password(value: str) -> bool:
    """Whether the part after `user:` is a password rather than the word in a manual."""
    return _is_value(value) and not value.isdigit() and len(value) >= 4


def is_basic(value: str) -> bool:
    """Whether a value is base64 of `user:password`."""
    try:
        decoded = base64.b64decode(value + "=" * (-len(value) % 4), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return False
    return ":" in decoded and decoded.isprintable()


def is_varied(value: str) -> bool:
    """Whether a long value holds letters and digits."""
    return any(map(str.isdigit, value)) and any(map(str.isalpha, value)) and len(set(value)) >= 8


def _is_value(value: str) -> bool:
    return (
        value.lower().rstrip("0123456789") not in _NO_SECRETS
        and _NO_PASSWORD_CHARACTER.search(value) is None
        and _NO_SECRET_PART.search(value) is None
        and _PATH_OR_URL.match(value) is None
        and len(set(value)) >= 4
    )


def _is_words(value: str) -> bool:
    """Whether a value is made of words, small numbers and separators, as names, slugs, versions and dates are."""
    return all(_WORD_PART.fullmatch(part) for part in re.split(r"[_.:/@ -]+", value))


def _entropy(value: str) -> float:
    """Shannon entropy in bits per character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


# A word of the lower-case text, the pattern that must match where it starts, what is found, what its value must be.
_PLACES: tuple[tuple[str, re.Pattern[str], str, Callable[[str], bool]], ...] = (
    ("bearer", _BEARER, "bearer_token", is_token),
    ("token ", _BEARER, "bearer_token", is_token),
    ("basic ", _BASIC, "basic_auth", is_basic),
    ("cookie:", _COOKIE, "cookie", is_token),
    ("://", _URL_USER, "url_password", is_url_password),
    ("sig=", _URL_SIGNATURE, "url_signature", is_varied),
    ("signature=", _URL_SIGNATURE, "url_signature", is_varied),
    ("accountkey=", _ACCOUNT_KEY, "account_key", is_varied),
    ("accesskey=", _ACCOUNT_KEY, "account_key", is_varied),
    ("login ", _NETRC, "password", is_password),
    (" -u", _CURL_USER, "password", is_url_password),
    ("user ", _CURL_USER, "password", is_url_password),
)
