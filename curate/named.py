"""Secrets of people under a name that says so outright: passwords, PINs, passphrases, recovery codes.

Such a value need not look random: it may be short, all digits, in groups, or words with marks. So the name and the
place decide, and of the value only what is no literal is refused: a name, a call, a placeholder, a prompt. A name may
stand beside its value, above a list of them, or at the head of a column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from curate.columns import find_below
from curate.contexts import is_literal_value, is_passphrase
from curate.glance import Glance
from curate.literal import DATE, TALK, groups_at, is_groups, is_literal
from curate.randomness import bits
from curate.shapes import ASSIGNED, Finding

_OF = "recovery|backup|back-up|scratch|emergency|rescue|unlock|bypass|one[_ -]?time|single[_ -]?use|second[_ -]?factor"
# A name ends in one of these: `password_file` and `pin_count` name no secret.
_NAME = re.compile(
    rf"(?:(?P<recovery_code>(?:{_OF})[_ .-]?(?:2fa[_ .-]?|mfa[_ .-]?|login[_ .-]?)?"
    r"(?:codes?|keys?|pins?|pass(?:word|phrase|code)s?|phrases?)|(?<![a-z])puk(?:[_ -]?codes?)?)"
    r"|(?P<password>identified[ ]by|(?<![a-z])(?:wpa[_-]?)?psk|(?:pass|kenn)wort|mot[ ]de[ ]passe"
    r"|pass[_ -]?(?:word|phrase|code)s?|passwds?|(?<![a-z])pass[_-]?key"
    r"|(?:key|store|key[_-]?store[_-]?)pass"
    r"|(?<![a-z])(?:[a-z]{2,8}[_-])?p(?:wd|ass|w))"
    r"|(?P<pin>(?<![a-z])(?:sim|card|door|login|user|yubikey|voicemail|alarm)?[_ -]?pin(?:[_ -]?code)?)"
    r"|(?P<secret>[a-z0-9][_.-]secret|(?:client|app|shared|consumer|api|bot|signing|webhook)[ ]?secret))"
    r"(?:[_.-]?(?:\d{1,2}|value|raw|prod|production|dev|staging|test|live|main|old|new|current))?(?![a-z0-9]|[_.-][a-z0-9])"
)
_ANCHORS = (
    *(
        b"pass",
        b"pwd",
        b"psk",
        b"kennwort",
        b"mot de passe",
        b"secret",
        b"recovery",
        b"backup",
        b"back-up",
        b"scratch",
        b"emergency",
        b"rescue",
        b"unlock",
    ),
    *(
        b"one-time",
        b"one time",
        b"one_time",
        b"onetime",
        b"single-use",
        b"second factor",
        b"puk",
        b"pin:",
        b"pin=",
        b"pin ",
    ),
    *(
        b'pin"',
        b"pin'",
        b"pin\\",
        b"pin<",
        b"pin>",
        b"pin|",
        b"pin,",
        b"pin\t",
        b"pin\n",
        b"pin\r",
        b"pw\n",
        b"identified by",
        b"pin_code",
        b"pincode",
        b"pin-code",
        b"pin*",
        b"pin`",
    ),
    *(b"pw ", b"pw:", b"pw=", b'pw"', b"pw'", b"pw,", b"pw|"),
)
_PLURAL = re.compile(r"(?:word|phrase|code|wd)s\Z")
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-")
_LONGEST_NAME, _LONGEST_REST = 60, 400
_QUOTE = r"\\*[\"'`]"
# A variable's default, in Terraform or behind a lookup.
_DEFAULT = (
    r"[ \t]*\{(?:(?:\s|\\+n)*+(?:type|description|sensitive|nullable)[ \t]*=(?:[^\n\\]|\\+[\"'])*+){0,4}+"
    r"(?:\s|\\+n)*+default[ \t]*=[ \t]*|,[ \t]*(?=\\*[\"'])"
)
_LOOKUP = re.compile(r"(?:env\w*|get\w*)[(\[]\\*[\"'`]\Z", re.IGNORECASE)
_BESIDE = re.compile(
    rf"(?P<close>{_QUOTE}|\*\*)?\]?(?:[ \t]*\([^()\n\"']{{1,40}}\))?(?P<separator>"
    rf",?(?:\s|\\+n)*+(?:{_QUOTE})?value(?:{_QUOTE})?[ \t]*[:=][ \t]*|{_DEFAULT}|"
    r"[ \t]*:[ \t]*(?:str|String|string|&str)[ \t]*=[ \t]*"
    r"|(?:[ \t]+(?:is[ \t]+\w+[ \t]+)?(?:of|for|on|in)(?:[ \t]+(?!is\b|was\b|to\b)[\w'’@.-]+){1,5})?[ \t]*"
    r"(?::=|=>|->|→|=(?!=)|:(?![:/]))[ \t]*(?:\*\*[ \t]*)?(?:[|>][-+]?[ \t]*)?(?:(?:\r?\n|\\+n)[ \t]+)?"
    r"|(?:[ \t]+(?:of|for|on|in)(?:[ \t]+(?!is\b|was\b|to\b)[\w'’-]+){1,5})?"
    r"[ \t]+(?:is|was|are|to|as)(?:[ \t]+now)?[ \t]*:?[ \t]+"
    r"|\((?=\\*[\"'])|[ \t]*</t[dh]>\s*<t[dh]>[ \t]*"
    rf"|:?[ \t]*(?:\r?\n|\\+n)[ \t]*|[ \t]+(?=\\*')|>[ \t]*|[ \t]*[|│┃║][ \t]*|[ \t]*\t[ \t]*|[ \t]{{2,}}|[ \t]+)"
    rf"(?:[bru]?(?P<open>{_QUOTE})(?P<quoted>(?:(?!(?P=open))[^\r\n]){{4,200}}?)(?P=open)"
    r"|(?P<bare>[^\s\"'`,;<>|│┃║][^\s\"'`;<>|│┃║]{3,200}))"
)
# Groups that are no words: `12345-67890`, `abcd efgh ijkl mnop`, `123456-234567-…`.
_GROUP_BITS = 10  # of evidence that letters in groups were drawn by chance
_BYTES = re.compile(
    r"[0-9A-Fa-f]{2}(?:(?P<between>[: -])[0-9A-Fa-f]{2})(?:(?P=between)[0-9A-Fa-f]{2}){14,}(?![0-9A-Za-z])"
)
_KEY_ANCHORS = (b"key", b"authorization", b"auth-token", b"auth_token", b"x-secret")
# Any key or header: only a value in groups counts, as many as a person would copy.
_ANY_KEY = re.compile(
    rf"(?:key|authorization|auth[-_]token|x-secret)s?(?:{_QUOTE}|\*\*)?\]?(?P<separator>{_DEFAULT}"
    r"|[ \t]*(?::=|=>|→|=|:)[ \t]*"
    r"|[ \t]+(?:is|was|to)[ \t]+|[ \t]*[|│┃║][ \t]*|[ \t]*(?:\r?\n|\\+n)[ \t]*|[ \t]+)"
    rf"(?:{_QUOTE})?(?:(?:bearer|token|basic)[ \t]+)?(?=[A-Za-z0-9]{{2,10}}[ :-][A-Za-z0-9]{{2}})",
    re.IGNORECASE,
)
_PUBLIC_KEY = re.compile(r"(?:public|foreign|primary|host)[_ .-]?\Z")
_REPLACED = (b"old one", b"new one", b"previous one", b"current one")
_OLD_ONE = re.compile(
    r"\w+ one[ \t]*(?:is|was|to|:)?[ \t]*[(\"'`][ \t]*(?P<value>[^\s\"'`()]{6,120}|[^\n\"'`()]{6,90})(?=[)\"'`])",
    re.IGNORECASE,
)
_TELLING = re.compile(
    r"passw|passphrase|passcode|secret|token|(?<![a-z])keys?(?![a-z])|credential|(?<![a-z])(?:pw|pin|pwd)(?![a-z])"
)
_CODE = re.compile(r"[A-Za-z0-9]{6,24}")
_ITEM = re.compile(r"(?:[\"'`]|[ ]{2,}|\t|,|;|[|│┃║•]|\\+n|\band\b|[ \t]/[ \t])+")
_ITEM_MARKS = re.compile(
    r"[ \t]*(?:\d{1,6}(?:→|\t))?[ \t]*(?:[-+*>#•|│┃║][ \t]+|[|│┃║]|//[ \t]?)*(?:\d{1,2}[.):][ \t]+)?"
    r"(?:\[[ x]?\][ \t]+)?[\[(]?"
)
_LINES_OF_LIST, _LINES_BETWEEN = 30, 3
_LINE_BREAK = re.compile(r"\r?\n|\\+r?\\*n")
# What may stand before a name where settings are: marks of a list or a diff, a listing's number, a keyword.
_SETTING = re.compile(
    r"(?:[ \t]*(?:\S{1,80}:)?\d{1,6}(?:→|\t|:))?[ \t]*(?:[-+<>*#][ \t]*|//[ \t]*"
    r"|export[ \t]+|set[ \t]+|ENV[ \t]+|ARG[ \t]+"
    r"|(?:[A-Za-z][\w'-]*[ \t]+){1,4}(?=[a-z ]*\Z))?[\"'*]{0,2}\Z"
)
_CONSTANT = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\Z")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*(?:[.:]+[A-Za-z_]\w*)*[,;]?")
_LINE_END = re.compile(r"[ \t]*(?:[#;][^\n]*)?(?:\r?\n|\\+r?\\*n|\Z)")
_OPEN_END = frozenset(" \t\r\n&;<\"'\\</|│┃║`")


def find_named(glance: Glance) -> Iterator[Finding]:
    """Findings under names that say secret outright."""
    text, lowered = glance.text, glance.lower_text
    done = rows_end = 0
    for at in glance.at(*_ANCHORS):
        if at < done or (lowered.startswith("pass", at) and _is_verb(lowered, at)):
            continue
        start = at
        while start > 0 and at - start < _LONGEST_NAME and lowered[start - 1] in _NAME_LETTERS:
            start -= 1
        name = _NAME.search(lowered, start, at + _LONGEST_NAME)
        end = name.end() if name else 0
        if name is None and start < at and text[at].isupper() and text[at - 1].islower():
            name = _NAME.match(lowered[at : at + _LONGEST_NAME])  # adminPwd
            end = at + name.end() if name else 0
        if name is None or end <= at:
            continue
        done = end
        kind = name.lastgroup or ""
        if kind == "recovery_code" or _PLURAL.search(lowered, start, end):
            yield from _listed(text, end, kind)
        yield from _beside(text, start, end, kind)
        if start >= rows_end:  # a row is no header
            rows_end = yield from find_below(text, lowered, start, end, kind)
    for at in glance.at(*_KEY_ANCHORS):
        if (key := _ANY_KEY.match(text, at)) and not _PUBLIC_KEY.search(lowered, max(0, at - 40), at):
            yield from _key_in_groups(text, key)
    for at in glance.at(*_REPLACED):
        said = _OLD_ONE.match(text, at)
        if said is not None and _TELLING.search(lowered, max(0, at - 200), at):
            value = said["value"].rstrip(".,;:)")
            if (
                is_groups(value)
                or (is_literal(value, shortest=8) and _IDENTIFIER.fullmatch(value) is None)
                or is_passphrase(value)
            ):
                yield _finding(text, said.start("value"), said.start("value") + len(value), "password")


def _finding(text: str, start: int, end: int, kind: str) -> Finding:
    return Finding(start=start, end=end, kind=kind, rank=ASSIGNED, value=text[start:end])


def _is_phrase(value: str) -> bool:
    """Whether several words are a password rather than a sentence about one."""
    return 8 <= len(value) <= 80 and is_literal(value.replace(" ", "")) and TALK.search(value) is None


def _beside(text: str, start: int, end: int, kind: str) -> Iterator[Finding]:
    match = _BESIDE.match(text, end, end + _LONGEST_REST)
    if match is None:
        return
    separator = match["separator"]
    flag = text.startswith("-", start)
    if separator.startswith(">") and text[start - 1 : start] not in ("<", '"', "'"):
        return
    if separator == "(" and (
        len(match["quoted"] or "") < 6 or _IDENTIFIER.fullmatch(match["quoted"].replace("-", "_"))
    ):
        return
    if (
        separator.startswith(",")
        and "value" not in separator
        and not (match["close"] and _LOOKUP.search(text, max(0, start - 30), start))
    ):
        return
    shortest = 6 if kind == "secret" else 4
    if (value := match["quoted"]) is not None:
        told = is_literal(value, shortest=shortest) and (
            kind != "secret" or not _IDENTIFIER.fullmatch(value.replace("-", "_"))
        )
        if not separator.strip() and not flag and "'" not in match["open"]:
            return
        if TALK.search(value) is None and (told or is_groups(value) or _is_phrase(value)):
            yield _finding(text, match.start("quoted"), match.end("quoted"), kind)
        return
    begin, stop = match.span("bare")
    line_begin = max(text.rfind("\n", 0, start), text.rfind("\\n", max(0, start - 200), start) + 1) + 1
    is_line = _SETTING.fullmatch(text[max(line_begin, start - 120) : start]) is not None
    if match["close"] and "*" not in match["close"] and ("`" not in match["close"]):
        return  # a number or a name in JSON or code
    groups = groups_at(text, begin)
    if groups is not None and is_groups(groups[0]) and (kind != "secret" or len(groups[0]) >= 16):
        is_told = ":" in separator or "=" in separator or bits(groups[0].replace(" ", "")) >= _GROUP_BITS
        if "-" in groups[0] or is_told or _LINE_END.match(text, groups.end()) or text[groups.end()] in ".,;)|│\"'":
            yield _finding(text, begin, groups.end(), kind)
            return
    value = text[begin:stop]
    is_whole = _LINE_END.match(text, stop) is not None
    if not is_whole or not (is_line or separator == "="):
        value = value.split(",")[0].rstrip(".:,)")
    after = text[begin + len(value) : begin + len(value) + 1]
    sign = separator.strip()
    if sign.startswith("</"):
        sign = "|"  # a cell
    elif sign[:1].isalpha() and sign[-1] in ":=":
        sign = sign[-1]  # password for bob: X
    if sign == "=" and len(separator) > 1:
        # In code, names stand there; a settings file has no indentation and nothing behind the value.
        accepted = (
            is_line
            and is_whole
            and text[line_begin:start].strip(" \t") == text[line_begin:start]
            and is_literal(value, shortest=shortest)
        )
        accepted = accepted and _IDENTIFIER.fullmatch(value) is None
    elif sign == "=" or flag:
        accepted = (after == "" or after in _OPEN_END) and is_literal(value, shortest=shortest)
        accepted = accepted or (
            sign == "=" and is_line and is_whole and _CONSTANT.match(text[start:end]) is not None and _is_word(value)
        )
    elif "\n" in separator or "\\n" in separator:
        accepted = is_whole and _IDENTIFIER.fullmatch(value) is None and is_literal(value, shortest=6)
        accepted = accepted and (":" in separator or is_line) and not _is_bare_pass(text, start, end)
    elif sign.startswith((":", "→", "-", ">", "|", "│", "┃", "║")) or (not sign and "\t" in separator):
        accepted = (after == "" or after in _OPEN_END or after in ".,)") and is_literal(value, shortest=shortest)
        is_name = _IDENTIFIER.fullmatch(value) is not None
        accepted = accepted and not (
            is_name and is_line and sign[:1] == ":" and not (is_whole and value[-1] not in ",;")
        )
        accepted = accepted and not (separator == ":" and ":" in value)
    elif sign:  # a sentence: `is`, `was`
        accepted = is_literal(value, shortest=4 if kind in ("pin", "recovery_code") else 8)
        accepted = (
            accepted
            and (kind in ("pin", "recovery_code") or not value.isdigit())
            and _IDENTIFIER.fullmatch(value) is None
        )
    else:  # `pw X`, a command line
        accepted = is_line and is_whole and _IDENTIFIER.fullmatch(value) is None and is_literal(value, shortest=6)
        accepted = accepted and not _is_bare_pass(text, start, end)
        told = (
            "_" in text[start:end]
            and value != value.lower()
            and value != value.upper()
            and re.search(r"[_/.-]", value) is not None
        )
        accepted = accepted or (bool(told) and is_literal(value, shortest=8) and any(map(str.isdigit, value)))
    if accepted and TALK.search(value) is None:
        yield _finding(text, begin, begin + len(value), kind)


def _is_verb(lowered: str, at: int) -> bool:
    """Whether `pass` is a statement alone on its line, or goes on as `passed` and `passing` do."""
    after = lowered[at + 4 : at + 5]
    return after in ("e", "i", "(", "*") or (after in ("\n", "") and lowered[at - 1 : at] in ("", " ", "\t"))


def _is_bare_pass(text: str, start: int, end: int) -> bool:
    """Whether the name is the bare word `pass`, which is a statement and a verb."""
    return text[start:end].lower() == "pass"


def _key_in_groups(text: str, match: re.Match[str]) -> Iterator[Finding]:
    """A key in pairs of hexadecimal digits or in groups that no checksum and no identity has."""
    begin = match.end()
    value = _BYTES.match(text, begin) or groups_at(text, begin)
    if value is None:
        return
    found = value[0]
    if _BYTES.fullmatch(found) is None:
        groups = re.split(r"[ -]", found)
        is_even = len(set(map(len, groups))) == 1 and len(groups[0]) >= 4
        mixed = any(map(str.isdigit, found)) and not TALK.search(found)
        if not match["separator"].strip() and (len(groups) < 4 or not mixed):
            return
        if not (
            is_even
            and (
                (mixed and (len(groups) > 3 or len(groups[0]) > 4))
                or (len(groups) > 3 and not mixed and is_groups(found))
            )
        ):
            return
        if found.replace(" ", "").replace("-", "").isdigit() and len(found) < 19:
            return
    yield _finding(text, begin, value.end(), "key")


def _is_word(value: str) -> bool:
    """Whether a setting's value is a plain word of some length, as weak passwords are."""
    return len(value) >= 6 and value.isalpha() and is_literal_value(value) and TALK.search(value) is None


def _listed(text: str, end: int, kind: str) -> Iterator[Finding]:
    """Codes behind a heading, on its line or on those below."""
    at = end
    between = 0
    found = False
    for number in range(_LINES_OF_LIST):
        line_break = _LINE_BREAK.search(text, at, at + _LONGEST_REST)
        stop = line_break.start() if line_break else min(len(text), at + _LONGEST_REST)
        begin = at
        if number == 0:
            heading = re.compile(r"[^\n:=]{0,60}[:=][\"'`*]*[ \t]*\[?").match(text, at, stop)
            begin = heading.end() if heading else stop
        elif (marks := _ITEM_MARKS.match(text, at, stop)) is not None:
            begin = marks.end()
        items = list(_items(text, begin, stop))
        if items and all(_is_code(item) for _, item in items):
            found = True
            for place, item in items:
                yield _finding(text, place, place + len(item), kind)
        elif items and number:
            between += 1
            if found or between > _LINES_BETWEEN:
                return
        if line_break is None:
            return
        at = line_break.end()


def _items(text: str, begin: int, stop: int) -> Iterator[tuple[int, str]]:
    at = begin
    for mark in (*_ITEM.finditer(text, begin, stop), None):
        end = mark.start() if mark else stop
        item = text[at:end]
        bare = item.strip(" \t[](){}.*")
        if bare:
            yield at + item.index(bare), bare
        at = mark.end() if mark else stop


def _is_code(item: str) -> bool:
    if DATE.fullmatch(item):
        return False
    return is_groups(item) or (_CODE.fullmatch(item) is not None and any(map(str.isdigit, item)))
