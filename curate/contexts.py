"""Secrets that are known by where they stand: after a telling name, in a URL, in a header, on a command line."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from curate.glance import Glance
from curate.randomness import bits
from curate.shapes import ASSIGNED, PLACE, Finding

_QUOTE = r"\\*[\"'`]"  # escaped once per level of JSON in JSON
_BARE = r"[^\s\"'`,;<>(){}\[\]\\|&]"

_KEY_OWNERS = (
    "api|access|secret|private|auth|encryption|encrypt|signing|sign|master|account|shared|service|app|application|"
    "consumer|license|product|admin|deploy|session|storage|subscription|webhook|jwt|crypt|hmac|aes|client|user|root|bot|cipher|"
    "decrypt|decryption|functions|publish|write"
)
_SERVICES = (
    "db|my|mysql|sql|pg|postgres|mongo|redis|ftp|smtp|imap|mail|ssh|ldap|wifi|proxy|http|app|admin|root|user|login"
)
_PW = (b"pw ", b"pw:", b"pw=")
# A name must end in one of these words: `token_count`, `password_file` and `public_key` name no secret.
_NAME = re.compile(
    r"(?:(?P<password>pass(?:word|wd|phrase|code)|credentials?"
    rf"|(?<![a-z])(?:{_SERVICES})?(?:pwd?|pass))"
    rf"|(?P<api_key>(?:{_KEY_OWNERS})[_.-]?(?:access[_.-]?)?key)"
    r"|(?P<token>(?<!change)(?<!continuation)(?<!next)(?<!page)(?<!sync)(?<!action)(?<!next[_-])(?<!page[_-])token)"
    r"|(?P<secret>secret(?:[_.-]?(?:string|text))?|(?:[mt2]fa|h?otp)[_.-]?seed|[a-z]sessid|connect[_.-]?sid)"
    r"|(?P<authorization>authorization|(?<![a-z])auth)"
    r"|(?P<key>[a-z0-9][_.-]key))"
    r"(?:[_.-]?(?:\d{1,3}|value|base64|b64|hex|raw|prod|production|dev|development|staging|test|live|default|main|old|new))?\Z"
)
_ANCHORS = (b"pass", b"pwd", b"secret", b"token", b"key", b"auth", b"credential", b"seed", b"sessid", b"connect", *_PW)
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-")
_LONGEST_NAME = 60
_NAME_AFTER = re.compile(r"[a-z0-9_.-]*[a-z0-9_]|")
_VALUE = (
    rf"(?:[bfru]?(?P<open>{_QUOTE})(?P<quoted>(?:(?!(?P=open))[^\r\n]){{4,400}}?)(?:(?P=open)|…|\\u2026|\.\.\.(?!\w))"
    rf"|(?P<bare>{_BARE}{{6,400}}))"
)
_AFTER = re.compile(
    rf"(?P<close>{_QUOTE})?[\])]?(?:[ \t]*:[ \t]*(?:str|String|string|&str)(?=[ \t]*=))?"
    # `- name: X`, then `value: Y`: YAML or JSON.
    rf"(?P<separator>,?(?:\s|\\+n)*(?:{_QUOTE})?value(?:{_QUOTE})?[ \t]*[:=][ \t]*"
    # A variable of Terraform with its default.
    r"|[ \t]*\{(?:(?:\s|\\+n)*+(?:type|description|sensitive|nullable)[ \t]*=(?:[^\n\\]|\\+[\"'])*+){0,4}+"
    r"(?:\s|\\+n)*+default[ \t]*=[ \t]*"
    rf"|[ \t]*(?::=|=>|==|=|:)(?:[ \t]|(?:\n|\\+n)[ \t]*(?={_QUOTE}))*+|>[ \t]*|,[ \t]*(?=\\*[\"'])"
    # A table's cell; a column of a listing; a property list's next element.
    r"|[ \t]*\|[ \t]*|(?:[ \t]{3,}|\t)|</key>(?:\s|\\+n)*<string>)" + _VALUE
)
_TO_LINE_END = re.compile(r"[ \t]*[^\s\"'(){}\[\],]+[ \t]*(?:\Z|\r?\n|\\n)")
# What people write: `the password for staging is X`, `with the password X`, `use X as the token`.
_PROSE_VALUE = r"(?:\\*[\"'`]|\*\*)?(?P<value>[^\s\"'`*<>(){}\[\]\\]{6,120})"
_PROSE_LINKED = re.compile(
    r"s?(?:[ \t]+(?!is\b|was\b)[A-Za-z][\w'’-]*){0,5}?(?:[ \t]+(?:is|was|to|as|be|now)|[ \t]*(?:->|→|:|=))[ \t]+"
    + _PROSE_VALUE
)
_PROSE_BESIDE = re.compile(r"s?(?:[ \t]+(?!is\b|was\b)[A-Za-z][\w'’-]*){0,5}?[ \t]+" + _PROSE_VALUE)
# A name on a line of its own, its value on the next.
_PROSE_BELOW = re.compile(
    r"[ \t]*:?[ \t]*(?:\r?\n|\\n)[ \t]*(?P<value>[^\s\"'`*<>(){}\[\]\\]{6,120})[ \t]*(?=\r?\n|\\n|\Z)"
)
_SIMPLE = re.compile(r"[A-Za-z]{4,}\d{2,}[!?@#$%*.]{0,2}")  # what people make of a word and a number …
_ALGORITHM = re.compile(
    r"(?:sha|md|base|utf|rsa|aes|pbkdf|argon|sha3|bcrypt|python|windows|version|http|latin)\W?\d+", re.IGNORECASE
)  # … and they mean
_VERB = re.compile(r"pass|auth")  # a word of its own, in a sentence
_FLAG_AFTER = re.compile(r"(?P<close>)(?P<separator>[ \t]+)" + _VALUE)
_SETTING = re.compile(
    r"(?:\A|\n|\\n)(?:[ \t]*\d{1,6}(?:→|\t|:))?[ \t]*"
    r"(?:[-+<>*][ \t]*|export[ \t]+|set[ \t]+|ENV[ \t]+|ARG[ \t]+|-e[ \t]+)?\Z"
)
_LINE_OF_SETTING = re.compile(r"(?:\A|\n|\\n)(?:[ \t]*\d{1,6}(?:→|\t|:))?\Z")
_CONSTANT = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\Z")

_BEARER = re.compile(r"(?:bearer|token)[ \t]+(?P<value>[A-Za-z0-9._~+/=-]{16,})", re.IGNORECASE)
_BASIC = re.compile(r"basic[ \t]+(?P<value>[A-Za-z0-9+/]{12,}={0,2})", re.IGNORECASE)
_COOKIE = re.compile(r"cookie:[ \t]*(?P<value>[^\r\n\"'\\]{8,4000})", re.IGNORECASE)
_COOKIE_VALUE = re.compile(r"=([^\s;=]{16,})")
_URL_USER = re.compile(r"://[^\s/:@\"'`<>\\{}$]{0,100}\\{0,2}:(?P<value>[^\s/@\"'`<>\\{}$]{3,200})@(?=[\w\[.-])")
_URL_SIGNATURE = re.compile(r"sig(?:nature)?=(?P<value>[a-z0-9%+/_-]{32,}={0,2})", re.IGNORECASE)
_ACCOUNT_KEY = re.compile(r"(?:(?<=account)|(?<=access))key=(?P<value>[A-Za-z0-9+/]{28,}={0,2})", re.IGNORECASE)
_USER_AND = re.compile(
    r"(?i:log[ -]?in|sign in|creds|credentials)\b[^\n/]{0,40}[ \t]/[ \t](?P<value>[^\s\"'`\\]{6,80})", re.IGNORECASE
)
_NETRC = re.compile(r"login[ \t]+\S+\s+password[ \t]+(?P<value>\S{4,})")
_PGPASS = re.compile(r":\d{4,5}:[\w*.-]+:[\w*.@-]+:(?P<value>[^\s:\"'`]{4,128})(?=\s|\\n|\Z)")
_OPTION = re.compile(
    rf"[\w-]+[^\n|]{{0,120}}? (?:-p|-a|--pass[ =])[ ]?(?P<open>{_QUOTE})?"
    r"(?P<value>(?:(?!(?P=open))[^\s\"'`\\]){6,128})"
)
_STDIN = re.compile(
    rf"(?:echo|printf)(?: -n| %s)? (?P<open>{_QUOTE})?(?P<value>[^\s\"'`\\]{{6,300}})(?:{_QUOTE})?[ ]*\|[^\n]{{0,80}}?"
    r"(?:--password-stdin|--with-token|passwd|chpasswd|sudo -S)"
)
_SEED = re.compile(
    r"(?:(?:\d{1,2}[.):][ \t]*)?[a-z]{3,8}(?:[ \t]*,[ \t]*|[ \t]+|[ \t]*\n[ \t]*|\\n)){11,23}"
    r"(?:\d{1,2}[.):][ \t]*)?[a-z]{3,8}(?![a-z])"
)
_SEED_WORDS = (
    b"mnemonic",
    b"seed",
    b"recovery phrase",
    b"secret phrase",
    b"backup phrase",
    b"recovery words",
    b"wallet",
)
_SEED_LENGTH = 400  # characters after such a word
_NO_SEED = re.compile(
    r"\b(?:the|and|for|with|are|was|has|its|our|can|not|but|from|have|your|into|which|these|those|been|were|their)\b"
)
_CURL_USER = re.compile(rf"(?: -u|user)[ =]?{_QUOTE}?[\w.@+-]{{1,80}}:(?P<value>(?!\$)[^\s\"'\\<{{]{{4,200}})")

# fmt: off
_NO_SECRETS = frozenset({
    "none", "null", "nil", "true", "false", "undefined", "password", "passwd", "passphrase", "secret", "token", "key",
    "apikey", "changeme", "change_me", "example", "string", "str", "default", "required", "optional", "unknown",
    "redacted", "removed", "hidden", "masked", "placeholder", "anonymous", "username", "user", "pass", "pwd",
    "missing", "invalid", "disabled", "enabled", "bearer", "basic",
})
# fmt: on
_NO_SECRET_PART = re.compile(
    r"\$[\{(]|\{\{|\}\}|%[\(sdr]|\.\.\.|…|===|!==|&&|xxxxx|\*\*\*|<[a-z_ -]+>|your[_ -]?|example|"
    r"changeme|placeholder|redacted|"
    r"dummy|process\.env|environ|getenv|secrets\.|insert[_-]|replace[_-]|<SECRET:",
    re.IGNORECASE,
)
_PASSPHRASE = re.compile(r"[A-Za-z]{3,9}\d?(?:([-_.+ ])[A-Za-z]{3,9}\d{0,2})(?:\1[A-Za-z]{3,9}\d{0,2}){2,9}")
_LONG = 12
_BITS = 18  # of evidence that a value was drawn by chance
_WORD_PART = re.compile(r"[A-Z]?[a-z]*\d{0,3}|[A-Z]*\d{0,3}|(?:[A-Z]{0,3}[a-z]{2,}\d{0,2})+|\d{1,4}|v\d+")
_PATH_OR_URL = re.compile(r"[.~]{0,2}/|[a-z][a-z0-9+.-]*://|[A-Z]:\\|[a-z]+:[a-z]+[/:]", re.IGNORECASE)
_NO_PASSWORD_CHARACTER = re.compile(r"[\s\\({\[<]")
# A call, an index, a field of a template, an element, a variable.
_NO_LITERAL = re.compile(r"[\s\\]|\w[(\[]|\{\w*\}|<\w|\A[$&{(\[<]|\A[%@!]\w+%?\Z|\W{6,}|\A\W+\Z")
_REFERENCE = re.compile(r"\$[A-Za-z_]\w*|![a-z]+")  # a variable, a tag of YAML
_SYMBOL = re.compile(r"[!@#$%^&*+=?~]")


def find_in_context(glance: Glance) -> Iterator[Finding]:
    """Findings in a text by name or place."""
    text = glance.text
    if glance.at(*_ANCHORS):
        yield from _find_assigned(glance)
    for words, pattern, kind, accept in _PLACES:
        done = 0
        for at in glance.at(*words):
            match = pattern.match(text, at) if at >= done else None
            if match is None:
                continue
            begin, done = match.span("value")
            if kind == "cookie":
                for cookie in _COOKIE_VALUE.finditer(text, begin, done):
                    if is_token(cookie[1]):
                        yield _finding(cookie.start(1), cookie.end(1), kind, PLACE, text)
            elif accept(match["value"]):
                yield _finding(begin, done, kind, PLACE, text)
            else:
                done = 0
    for at in glance.at(*_SEED_WORDS):
        match = _SEED.search(glance.lower_text, at, at + _SEED_LENGTH)
        if match is not None and _NO_SEED.search(match[0]) is None:
            yield _finding(match.start(), match.end(), "seed_phrase", PLACE, text)


def _finding(start: int, end: int, kind: str, rank: int, text: str) -> Finding:
    return Finding(start=start, end=end, kind=kind, rank=rank, value=text[start:end])


def _find_assigned(glance: Glance) -> Iterator[Finding]:
    lowered = glance.lower_text
    done = 0
    for at in glance.at(*_ANCHORS):
        if at < done:
            continue
        after = _NAME_AFTER.match(lowered, at)
        done = after.end() if after else at + 1
        yield from _assigned_at(glance.text, lowered, at, done)


def _assigned_at(text: str, lowered: str, at: int, end: int) -> Iterator[Finding]:
    start = at
    while start > 0 and at - start < _LONGEST_NAME and lowered[start - 1] in _NAME_LETTERS:
        start -= 1
    name = _NAME.search(lowered, start, end)
    if name is None:
        return
    kind = name.lastgroup or ""
    match = _AFTER.match(text, end)
    flag = lowered.startswith("--", start)
    if match is None and flag:
        match = _FLAG_AFTER.match(text, end)
    if match is None or not _is_separated(text, start, match["separator"]):
        if not _VERB.fullmatch(lowered, start, end):
            yield from _in_prose(text, end, kind)
        return
    separator = match["separator"]
    if kind == "key":  # any key may be one of a map: its value must look random in every way
        yield from _of_any_key(text, match)
        return
    if (value := match["quoted"]) is not None:
        group = "quoted"
        accepted = is_secret(value) or (kind == "password" and "," not in separator and is_password(value))
    else:
        group, value = "bare", match["bare"].rstrip(".:")
        if match["close"] and "string" not in separator:
            return  # a JSON number or constant
        if text[match.end() : match.end() + 1] in ("(", "[", "{"):
            return  # a call or an index
        if not separator.strip() or "|" in separator:
            accepted = is_strong(value) if kind == "password" else is_token(value)
        elif flag or ">" in separator or "value" in separator.lower() or _is_setting(text, start, separator):
            accepted = is_secret(value) or (kind == "password" and is_password(value))
        else:
            accepted = is_token(value) or (
                kind == "password" and ":" in separator and (is_strong(value) or is_simple(value))
            )
    if not accepted and kind == "authorization":
        accepted = is_basic(value)
    if not accepted and kind == "password" and not separator.isspace():
        accepted = is_passphrase(value)
    if accepted:
        begin = match.start(group)
        yield _finding(begin, begin + len(value), kind, ASSIGNED, text)


def _of_any_key(text: str, match: re.Match[str]) -> Iterator[Finding]:
    group = "quoted" if match["quoted"] is not None else "bare"
    value = match[group].rstrip(".:") if group == "bare" else match[group]
    if len(value) >= _LONG and is_strong(value) and (group == "quoted" or not match["close"]):
        yield _finding(match.start(group), match.start(group) + len(value), "key", ASSIGNED, text)


def _is_separated(text: str, start: int, separator: str) -> bool:
    """Whether what stands between name and value makes it one's value."""
    if separator.startswith(">") and text[start - 1 : start] != "<":
        return False  # a comparison, not an element
    return not (separator == ":" and text[start - 1 : start] == ":")  # a path of names, such as an ARN


def _in_prose(text: str, end: int, kind: str) -> Iterator[Finding]:
    """A value in a sentence after its name; it must look like one more than after an equals sign."""
    for pattern in (_PROSE_LINKED, _PROSE_BESIDE, _PROSE_BELOW):
        match = pattern.match(text, end)
        if match is None:
            continue
        value = match["value"].rstrip(".,;:!?")
        if match["value"][len(value) :].startswith(("!", "?")):
            value += match["value"][len(value)]  # a password may well end so
        accepted = is_token(value) or is_code(value)
        if kind == "password":
            told = pattern is not _PROSE_BESIDE or match.start("value") <= end + 3
            accepted = is_strong(value) or (told and (is_simple(value) or is_passphrase(value)))
        if accepted:
            yield _finding(match.start("value"), match.start("value") + len(value), kind, ASSIGNED, text)
            return


def _is_setting(text: str, start: int, separator: str) -> bool:
    """Whether a name stands where a settings file or a shell has one, rather than in code with spaces around `=`."""
    if separator == "=":
        return True
    if ":" in separator and "=" not in separator:
        name = text[start : text.find(":", start)]
        return _SETTING.search(text, max(0, start - 40), start) is not None or _CONSTANT.match(name) is not None
    # `password = hunter22` of an INI file: no indentation, as in a function, and nothing behind it.
    return (
        separator.strip() == "="
        and _LINE_OF_SETTING.search(text, max(0, start - 12), start) is not None
        and _TO_LINE_END.match(text, text.find("=", start) + 1) is not None
    )


def is_token(value: str) -> bool:
    """Whether a value looks random: at least 16 characters, letters and digits, not words, paths or URLs."""
    return len(value) >= 16 and is_secret(value) and _entropy(value) >= 3.0


def is_strong(value: str) -> bool:
    """Whether a word of a sentence is a password: it holds three kinds of characters."""
    kinds = (
        any(map(str.isdigit, value)),
        any(map(str.isupper, value)) and not value[1:].islower(),
        any(map(str.islower, value)),
        _SYMBOL.search(value) is not None,
    )
    return len(value) >= 8 and sum(kinds) >= 3 and _is_value(value) and not _is_words(value) and "(" not in value


def is_simple(value: str) -> bool:
    """Whether a word of a sentence is another word and a number, as many passwords are."""
    return (
        len(value) >= 8
        and _SIMPLE.fullmatch(value) is not None
        and not _ALGORITHM.fullmatch(value)
        and _is_value(value)
    )


def is_passphrase(value: str) -> bool:
    """Whether a value is four or more words with one mark between them, as diceware makes."""
    return _PASSPHRASE.fullmatch(value) is not None and _is_value(value)


def is_code(value: str) -> bool:
    """Whether a value is a code in even groups of letters and digits, such as `c9ce5-77d61`."""
    parts = value.split("-")
    return (
        len(parts) > 1
        and len(set(map(len, parts))) == 1
        and len(parts[0]) >= 4
        and value.replace("-", "").isalnum()
        and all(any(map(str.isdigit, part)) for part in parts)
    )


def is_secret(value: str) -> bool:
    """Whether a value after a telling name looks made by a machine, from 10 characters on."""
    if (
        len(value) >= 10
        and any(map(str.isalpha, value))
        and bits(value) >= _BITS
        and _is_value(value)
        and len(set(value)) >= 6
        and not _is_words(value)
    ):
        return True
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
        _REFERENCE.fullmatch(value) is None
        and value.lower().rstrip("0123456789") not in _NO_SECRETS
        and _NO_PASSWORD_CHARACTER.search(value) is None
        and _NO_SECRET_PART.search(value) is None
        and _PATH_OR_URL.match(value) is None
        and len(set(value)) >= 4
    )


def is_literal_value(value: str) -> bool:
    """Whether a value that stands where a secret does is written out there, whatever it looks like."""
    return (
        value.lower().rstrip("0123456789") not in (_NO_SECRETS - {""})
        and _NO_LITERAL.search(value) is None
        and _NO_SECRET_PART.search(value) is None
        and _PATH_OR_URL.match(value) is None
        and _ALGORITHM.fullmatch(value) is None
        and len(set(value)) >= 2
    )


def _is_words(value: str) -> bool:
    """Whether a value is made of words, small numbers and separators, as names, slugs, versions and dates are."""
    return all(_WORD_PART.fullmatch(part) for part in re.split(r"[_.:/@ -]+", value))


def _entropy(value: str) -> float:
    """Shannon entropy in bits per character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


# A word of the lower-case text, the pattern that must match where it starts, what is found, what its value must be.
_PLACES: tuple[tuple[tuple[bytes, ...], re.Pattern[str], str, Callable[[str], bool]], ...] = (
    ((b"bearer", b"token"), _BEARER, "bearer_token", is_token),
    ((b"basic ",), _BASIC, "basic_auth", is_basic),
    ((b"cookie:",), _COOKIE, "cookie", is_token),
    ((b"://",), _URL_USER, "url_password", is_url_password),
    ((b"sig=", b"signature="), _URL_SIGNATURE, "url_signature", is_varied),
    ((b"key",), _ACCOUNT_KEY, "account_key", is_varied),
    ((b"log in", b"login", b"creds", b"credential", b"sign in"), _USER_AND, "password", is_password),
    ((b"login ",), _NETRC, "password", is_password),
    ((b"sshpass", b"mysql", b"mariadb", b"redis-cli", b"mongo"), _OPTION, "password", is_url_password),
    ((b"echo ",), _STDIN, "password", is_url_password),
    ((b":5432:",), _PGPASS, "password", is_url_password),
    ((b" -u", b"user "), _CURL_USER, "password", is_url_password),
)
