"""What looks like a secret or a person in a text that was redacted: for a reader's eye, not for a machine to cut.

Rules here are wider than those of redaction, and wrong more often: they say where to look.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

VERSION = 1  # goes up whenever the same text may give other leftovers


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """One suspicious stretch of a text."""

    start: int
    end: int
    kind: str


WHY = {
    "private key": "the head of a private key",
    "named value": "a value after a word such as password, token or secret",
    "random text": "letters and digits that look drawn at random",
    "e-mail": "an e-mail address",
    "internal address": "an address of a private network",
    "home folder": "a home folder with a name in it",
    "sensitive file": "a file that usually holds secrets",
    "hidden characters": "characters that are not seen, or that turn the order of others around",
}

_KEY_HEAD = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY")
_NAMED = re.compile(
    r"\b(?:pass(?:word|wd|phrase|code)?|secret|api[_ -]?key|access[_ -]?key|auth[_ -]?token|token|credentials?)"
    r"[\"']{0,2}(?:\s{0,3}(?::=|=>|[:=])\s{0,3}|\s{1,2}(?:is|was)\s{1,2})[\"'`]{0,2}"
    r"(?P<value>[^\s\"'`,;(){}\[\]<>]{6,200})",
    re.IGNORECASE,
)
_NAMES = ("pass", "secret", "api", "access", "auth", "token", "credential")  # how matches of _NAMED begin
_RANDOM = re.compile(r"(?<![\w+/-])[A-Za-z0-9+/_-]{24,200}={0,2}(?![\w+/-])")
_BEFORE_AT = re.compile(r"\b[\w.+-]{1,64}\Z")
_AFTER_AT = re.compile(r"[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b")
_NETWORK = re.compile(r"(?<![\d.])(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}(?![\d.])")
_HOST = re.compile(r"\b[a-z0-9][a-z0-9-]{0,62}\.(?:internal|corp|intranet|lan)\b")
_HOST_ENDS = (".internal", ".corp", ".intranet", ".lan")
_HOME = re.compile(r"(?:/home/|/Users/|\\Users\\)(?P<name>[A-Za-z0-9._-]{2,32})")
_SECRETS_FILE = re.compile(
    r"(?<![\w.-])(?:"
    r"\.env(?:\.(?!(?:example|sample|template|dist|test)\b)[\w-]{1,30})?|\.netrc|\.pgpass|\.npmrc|\.pypirc|\.git-credentials|"
    r"\.(?:bash|zsh|python)_history|\.dockercfg|\.docker/config\.json|\.kube/config|kubeconfig|\.aws/(?:credentials|config)|"
    r"\.ssh/[\w.-]{1,60}|id_(?:rsa|dsa|ecdsa|ed25519)|"
    r"(?:credentials?|secrets?|service[_-]account[\w-]{0,40})\.(?:json|ya?ml|toml|ini|txt|env)"
    r")(?![\w./-])"
)
# Directions, zero widths and tags: they hide text from a reader or show it in another order (CVE-2021-42574).
_HIDDEN = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]+")
_KEY_FILE = re.compile(r"(?<=\w)\.(?:pem|p12|pfx|jks|keystore|kdbx)(?![\w./-])")
_FILE_NAME = re.compile(r"[\w-]{1,60}\Z")

_NOT_A_VALUE = re.compile(
    r"(?:str|string|none|null|true|false|bytes|int|optional|undefined|required|process|os|self|config|settings|env|"
    r"args|input|getpass|request|response|example|changeme|placeholder|your|xxx)\b|[$%<*]|\.{3}|x{4}|\*{3}",
    re.IGNORECASE,
)
_PUBLIC_MAIL = re.compile(
    r"^(?:git|noreply|no-reply)@|@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|noreply\.github\.com)$|"
    r"\.(?:py|js|ts|md|so|service)$"  # decorators, packages with versions, systemd units
)
_NOBODY = frozenset({"user", "username", "you", "runner", "ubuntu", "root", "shared", "name", "me", "agent", "public"})


def find_leftovers(text: str) -> Iterator[Leftover]:
    """Suspicious stretches, in no order; they may overlap each other and placeholders."""
    for match in _KEY_HEAD.finditer(text):
        yield Leftover(start=match.start(), end=match.end(), kind="private key")
    for match in _named(text):
        if _could_be_value(match["value"]):
            yield Leftover(start=match.start("value"), end=match.end("value"), kind="named value")
    for match in _RANDOM.finditer(text):
        if _looks_random(match[0]):
            yield Leftover(start=match.start(), end=match.end(), kind="random text")
    for at in _places("@", text):
        before, after = _BEFORE_AT.search(text, max(0, at - 64), at), _AFTER_AT.match(text, at + 1)
        if before is not None and after is not None and _PUBLIC_MAIL.search(f"{before[0]}@{after[0]}") is None:
            yield Leftover(start=before.start(), end=after.end(), kind="e-mail")
    for match in _NETWORK.finditer(text):
        yield Leftover(start=match.start(), end=match.end(), kind="internal address")
    if any(end in text for end in _HOST_ENDS):
        for match in _HOST.finditer(text):
            yield Leftover(start=match.start(), end=match.end(), kind="internal address")
    if not text.isascii():
        for match in _HIDDEN.finditer(text):
            yield Leftover(start=match.start(), end=match.end(), kind="hidden characters")
    for start, end in sensitive_files(text):
        yield Leftover(start=start, end=end, kind="sensitive file")
    for match in _HOME.finditer(text):
        if match["name"].lower() not in _NOBODY:
            yield Leftover(start=match.start(), end=match.end(), kind="home folder")


def sensitive_files(text: str) -> Iterator[tuple[int, int]]:
    """Where names of files stand that usually hold secrets."""
    for match in _SECRETS_FILE.finditer(text):
        yield match.span()
    for match in _KEY_FILE.finditer(text):
        name = _FILE_NAME.search(text, max(0, match.start() - 60), match.start())
        yield (name or match).start(), match.end()


def _named(text: str) -> Iterator[re.Match[str]]:
    """As _NAMED.finditer, but twice as fast: the words are looked for first, without the pattern."""
    lower = text.lower()
    if len(lower) != len(text):  # a few letters become two
        yield from _NAMED.finditer(text)
        return
    for name in _NAMES:
        for place in _places(name, lower):
            match = _NAMED.match(text, place)
            if match is not None:
                yield match


def _places(word: str, text: str) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + 1)


def _could_be_value(value: str) -> bool:
    """Names, types and calls are no values: a value has a digit or a sign in it."""
    return _NOT_A_VALUE.match(value) is None and any(char.isdigit() for char in value) and not value.isdigit()


def _looks_random(word: str) -> bool:
    """Of upper case, lower case and digits, mixed as names, paths and hashes in hexadecimal are not."""
    digits = sum(char.isdigit() for char in word)
    if digits < 3 or word.islower() or word.isupper() or word.lower() == word or word.count("/") > 3:
        return False
    kinds = ["d" if char.isdigit() else "u" if char.isupper() else "l" if char.islower() else "s" for char in word]
    changes = sum(a != b for a, b in pairwise(kinds))
    return changes >= len(word) / 3
