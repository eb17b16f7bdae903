"""Secrets that no shape and no name gives away: stretches that look drawn by chance, judged by what stands around them.

What must stay although it looks the same: commit ids, checksums, UUIDs and integrity hashes in their usual places, ids
of messages and tool calls, public keys, encoded files and readable text in base64 (which is decoded and read instead).
"""

from __future__ import annotations

import base64
import binascii
import re
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise

from curate.glance import Glance, is_wide_line
from curate.randomness import best_stretch
from curate.shapes import LOOKS, Finding

_BARE_BITS = 30
_NEAR_BITS = 14  # beside a telling word
_SHORTEST = 16
_SHORTEST_NEAR = 10
_LISTED = 7  # others within …
_LISTED_HEX = 4
_AROUND = 500  # … characters
_FAR = 1_000  # characters: no such word near
_LONGEST = 400  # longer runs are encoded files

# A word that says: what stands here is secret …
_TELLING = re.compile(
    r"pass(?:word|wd|phrase|code)|(?<![a-z])p(?:wd|sk)(?![a-z])|secret|token(?!i[sz])|api[ _-]?key|"
    r"(?<![a-z])keys?(?![a-z])|_key|-key|[a-z]key(?=[\"'`]?\s*[:=])|credential|bearer|(?<![a-z])auth(?![a-z])|authori[sz]ation|authenticat|login|cookie|"
    r"hooks?(?:\.|/|$)|webhook|mnemonic|licen[sc]e[_ -]?key|signature=|(?<![a-z])sig=|private|"
    r"(?<![a-z])(?:otp|totp|mfa|2fa|dsn)(?![a-z])|encrypt|decrypt|[a-z]sessid|connect[_.-]?sid"
)
# How those words begin, or what they hold.
_TELLING_ANCHORS = (
    *(b"pass", b"pwd", b"psk", b"secret", b"token", b"key", b"credential", b"bearer", b"auth", b"login", b"cookie"),
    *(
        b"hook",
        b"mnemonic",
        b"signature=",
        b"sig=",
        b"private",
        b"otp",
        b"mfa",
        b"2fa",
        b"dsn",
        b"encrypt",
        b"decrypt",
        b"sessid",
        b"connect",
    ),
)
_AROUND_BEFORE, _AROUND_AFTER = 100, 60  # characters in which words are looked for
# … or: what stands here is a checksum, a version or an identity.
_PUBLIC = re.compile(
    r"sha-?\d|md5|blake|shake|unhexlify|fromhex|serial|(?<![a-z])sha(?![a-z])|commit|hash|digest|checksum|integrity|revision|(?<![a-z])rev(?![a-z])|(?<![a-z])tree(?![a-z])|"
    r"blob|parent|(?<![a-z])index(?![a-z])|e-?tag|[ug]uid|fingerprint|trace|span|object|crc|snapshot|image|layer|"
    r"resolved|merge|head|branch|cherry|origin|refs?/|public[ _-]?key|\bsri\b|manifest|version|build[_-]?id|"
    r"(?:(?<![a-z])id|[_a-rt-z-]ids?)(?=[\\\\\"'`]*\s*[:=])|nonce|narhash|artifact|cache[_-]?key|address|"
    r"boundary|test[_ ]?vector|expected|asserte|h1:|zh:|request[_ -]id|checked out|checkout|cherry-pick|rebase|bisect|"
    r"submodule|recv-keys?|keyserver|key ?id|s/n:|drive/d/|document/d/|"
    r"(?:next|page|sync|continuation|pagination)[_-]?token"
)
_KNOWN_ID = re.compile(
    r"(?:toolu|srvtoolu|call|fc|msg|resp|rs|req|run|thread|asst|step|item|evt|event|batch|cmpl|chatcmpl|gen|ws|ctc|"
    r"file|ft|ftjob|ses|prt|usr|vs|conv|modr|mcp|mcpl|mcpr|prompt|trace|span|tooluse)[_-]|chatcmpl-|GHSA-|[xX][nN]--|g[0-9a-f]{7,40}\Z|01[0-9A-HJKMNP-TV-Z]{24}\Z"
)
# Of SSH and of X.509, as base64 begins; then pictures, archives and documents.
_PUBLIC_KEY = re.compile(
    r"AAAA(?:B3NzaC1|C3NzaC1lZDI1NTE5|E2VjZHNhLXNoYTIt|GnNr|InNr)|MFkwEwYHKoZI|MII[BC]Ij|MIGfMA0|MCowBQYDK2Vw|"
    r"iVBORw0KGgo|R0lGOD|/9j/4|UEsDBB|JVBERi0|H4sI"
)
_SVG = re.compile(r"[\dMmLlHhVvCcSsQqTtAaZz-]+")
_ARN = re.compile(r"\barn:[^\s\"'<>]*\Z")
_EXTENSION = re.compile(r"\.[a-z][a-z0-9]{1,4}(?![A-Za-z0-9_.])")
_HASH_PREFIX = re.compile(
    r"(?:(?:sha\d+|md5|h1|zh|blake\w*)[-:=]\s?|0x[01]\.|\?[bq]\?|(?:\A|\n)-{2,}|drc=)\Z", re.IGNORECASE
)
# What stands above or below a line of an encoded file, or of a literal that goes on.
_ENCODED_ABOVE = re.compile(rb"[A-Za-z0-9+/=]{30,}(?:\\r)?(?:\\n)?[\"']?[ \t\\]*\Z")
_ENCODED_ITEM = re.compile(rb"[A-Za-z0-9+/=]{40,}")
_LITERAL = b" \t\r\"'\\b()+,"
_ENCODED_WORD = re.compile(r"=\?[\w-]{2,20}\?[bqBQ]\?[^?\s]*\Z")  # RFC 2047
_ENCODED_FILE = re.compile(rb"base64,|mappings|begin certificate|begin public|begin pgp public")
_GOES_ON = re.compile(r"[-_/]|\.\w")
_DIGESTS = frozenset({32, 40, 56, 64, 96, 128})  # hexadecimal digits
_DIGEST_NEAR = re.compile(
    rb"\bhash|\bhmac|\bshake|\bmd5|\bsha-?[1235]|\bsha_?\d|digest|checksum|fingerprint|blake|\bcrc|"
    rb"\bgit (?:log|show|rev|merge|checkout|reset|diff|rebase|cherry|branch|tag|fetch|pull|push|commit|bisect|describe|"
    rb"ls|fsck|cat)|\bcommits?\b|\bhead\b|\bmerge"
)
_COMMIT_MARK = re.compile(rb"[*|/\\ ]*(?:pick |fixup |squash |reword )?")
_AROUND_DIGEST = 300  # characters before
_LICENCE = re.compile(
    r"(?=[A-Z0-9-]*\d)(?:[A-Z0-9]{4}(?:-[A-Z0-9]{4}){3,}|[A-Z0-9]{5}(?:-[A-Z0-9]{5}){3,}|[A-Z0-9]{6}(?:-[A-Z0-9]{6}){3,})"
)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_UUID_PART = re.compile(rf"(?<![0-9a-fA-F]){_UUID.pattern}(?![0-9a-fA-F])")
_HEX = re.compile(r"[0-9a-f]+|[0-9A-F]+")
_HEX_FILE = re.compile(rb"(?:^|\\n)[ \t]*(?:commit |merge: |\d{6} (?:blob|tree|commit) )?\Z", re.MULTILINE)
_FOLDER = re.compile(r"[A-Z]?[a-z]{3,}|[0-9a-f]{2}|[0-9a-f]{16,}|[a-z]{2,}(?:[-_][a-z0-9]+)+")
_WORD = re.compile(r"[A-Z]?[a-z]{4,}|[A-Z]{5,}+(?![a-z0-9])")
_CHARACTER_CLASS = re.compile(r"A-Z|a-z|0-9")
_ESCAPES = ("n", "r", "t", "b", "f", "u", "x")
_PART_BEFORE = re.compile(r"(?P<part>[A-Za-z0-9_-]{6,64})[.]\Z")
_PART_AFTER = re.compile(r"[.](?P<part>[A-Za-z0-9_-]{6,64})(?![A-Za-z0-9_.-])")
_CUT_BEFORE = re.compile(r"(?P<part>[A-Za-z0-9_+/-]{2,150})\r?\n\Z")
_CUT_AFTER = re.compile(r"\r?\n(?P<part>[A-Za-z0-9_+/-]{2,150})")
_PRINTABLE = bytes((9, 10, 13, *range(32, 127)))
_HEX_ABOVE = re.compile(rb"[0-9a-fA-F]{32,}[\"']?[ \t]*[+\\]?[ \t]*\Z")  # a literal that goes on
_WORD_CHARACTER = re.compile(r"[A-Za-z0-9_]")


def find_bare(glance: Glance) -> Iterator[Finding]:
    """Findings by looks and surroundings alone."""
    text = glance.text
    for begin, end, bits in glance.spots:
        if end - begin < _SHORTEST_NEAR or _SVG.fullmatch(text, begin, end):
            continue
        if (bits < _BARE_BITS or end - begin < _SHORTEST) and not _is_told(glance, begin, end):
            continue
        yield from _judge(glance, begin, end)
    spots = {begin for begin, _, _ in glance.spots}
    for run, end in glance.hex_runs:
        begin = _behind_escape(text, run, end)
        if run not in spots and _is_hex_secret(glance, begin, end):
            yield Finding(start=begin, end=end, kind="hex_token", rank=LOOKS, value=text[begin:end])


def _judge(glance: Glance, begin: int, end: int) -> Iterator[Finding]:
    if end - begin > _LONGEST:
        return
    token = glance.text[begin:end]
    if "/" in token and any(_FOLDER.fullmatch(piece) or _UUID.fullmatch(piece) for piece in token.split("/")):
        at = begin  # a path or the rest of a URL rather than base64
        for piece in token.split("/"):
            if len(piece) >= _SHORTEST_NEAR:
                yield from _judge_word(glance, at, at + len(piece))
            at += len(piece) + 1
        return
    yield from _judge_word(glance, begin, end)


def _judge_word(glance: Glance, start: int, stop: int) -> Iterator[Finding]:
    text = glance.text
    while start < stop and text[start] in "-_/+":
        start += 1
    while start < stop and text[stop - 1] in "-/":
        stop -= 1
    start = _behind_escape(text, start, stop)
    value = text[start:stop]
    if _UUID.fullmatch(value) or _HEX.fullmatch(value.removeprefix("0x").removeprefix("0X").replace("-", "")):
        if _is_hex_secret(glance, start, stop):
            yield Finding(start=start, end=stop, kind="hex_token", rank=LOOKS, value=value)
        return
    telling, public = _surroundings(glance, start, stop)
    # A UUID at the end of a name is one without it.
    judged = value if telling else _UUID_PART.sub("", value)
    if public or not is_random(judged, best_stretch(judged), near=telling) or _has_place(glance, start, stop, telling):
        return
    while text.startswith("=", stop):
        stop += 1
    # Parts of one token between dots, and what a terminal's width cut off.
    if (dotted := _PART_BEFORE.search(text, max(0, start - 80), start)) is not None and _is_part(dotted["part"], value):
        start = dotted.start()
    if (dotted := _PART_AFTER.match(text, stop)) is not None and _is_part(dotted["part"], value):
        stop = dotted.end()
    yield Finding(start=start, end=stop, kind="random_token", rank=LOOKS, value=text[start:stop])
    for pattern, cut in (
        (_CUT_BEFORE, _CUT_BEFORE.search(text, max(0, start - 160), start)),
        (_CUT_AFTER, _CUT_AFTER.match(text, stop)),
    ):
        if (
            cut is not None
            and _is_part(cut["part"], value)
            and _is_wide(glance.data, cut.end() - 1 if pattern is _CUT_BEFORE else stop)
        ):
            yield Finding(
                start=cut.start("part"), end=cut.end("part"), kind="random_token", rank=LOOKS, value=text[start:stop]
            )


def _is_part(part: str, value: str) -> bool:
    """Whether a neighbour is as random as the value itself."""
    together = best_stretch(part + value)
    return together[2] > best_stretch(value)[2] + len(part) // 2 and any(not letter.islower() for letter in part)


def _is_wide(data: bytes, line_end: int) -> bool:
    """Whether the line that ends at or before here is as long as a terminal is wide."""
    return is_wide_line(
        data, data.rfind(b"\n", 0, line_end + 1) if data[line_end : line_end + 1] == b"\n" else line_end
    )


def _behind_escape(text: str, start: int, stop: int) -> int:
    """Where a word begins whose first letters belong to an escape before it: `\\n`, `\\u001b`, `\\x1b`, `%3D`."""
    if start and text[start - 1] == "%":
        return min(stop, start + 2)
    for back in (1, 2):
        if start >= back and text[start - back] == "\\":
            letter = text[start - back + 1] if start - back + 1 < stop else ""
            behind = start - back + {"u": 6, "x": 4}.get(letter, 2)
            return min(stop, max(start, behind)) if letter in _ESCAPES else start
    return start


def is_random(value: str, stretch: tuple[int, int, int], *, near: bool) -> bool:
    """Whether a word looks drawn by chance, and is neither a run of one letter nor a row of an alphabet.

    `stretch` is its best stretch; `near`: a telling word stands beside it, so less will do.
    """
    low, high, bits = stretch
    if high - low < (_SHORTEST_NEAR if near else _SHORTEST - 2) or bits < (_NEAR_BITS if near else _BARE_BITS):
        return False
    if len(value) < (_SHORTEST_NEAR if near else _SHORTEST):
        return False
    while low > 0 and value[low - 1].isalnum():
        low -= 1
    while high < len(value) and value[high].isalnum():
        high += 1
    if _LICENCE.fullmatch(value):
        return sum(map(str.isdigit, value)) >= 4 and sum(map(str.isalpha, value)) >= 4
    core = value[low:high]
    if max(map(len, re.split(r"[_/+-]", core))) < _SHORTEST_NEAR - 2 and not near:
        return False  # a name of many parts
    if not any(map(str.islower, core)) and max(map(len, re.split(r"[_/+-]", core))) < _SHORTEST_NEAR:
        return False  # A_CONSTANT_V1
    digits = sum(map(str.isdigit, core))
    upper = sum(map(str.isupper, core))
    lower = sum(map(str.islower, core))
    if not digits and (upper < 3 or lower < 3 or bits < 40):
        return False
    if not upper + lower or (digits < 2 and not (upper and lower)):
        return False
    steps = sum(abs(ord(one) - ord(next_)) <= 1 for one, next_ in pairwise(core.lower()))
    return (
        len(set(core)) >= min(10, 0.5 * len(core))
        and steps <= 0.3 * len(core)
        and not (upper and lower and sum(map(len, _WORD.findall(core))) >= 0.45 * len(core))
        and _SVG.fullmatch(core) is None
        and _CHARACTER_CLASS.search(value) is None
        and "EXAMPLE" not in value
        and "xxxx" not in value.lower()
    )


def _has_place(glance: Glance, start: int, stop: int, telling: bool) -> bool:
    """Whether a random-looking stretch stands where such stretches are no secrets."""
    text = glance.text
    before, after = text[max(0, start - 12) : start], text[stop : stop + 8]
    line = glance.data[glance.data.rfind(b"\n", 0, start) + 1 : start]
    if line.strip() == b"--" or _ENCODED_WORD.search(text, max(0, start - 90), start):
        return True  # a boundary between parts of a mail; a word of its header
    if _ARN.search(text, max(0, start - 200), start):
        return True
    if after.startswith("(") or _HASH_PREFIX.search(before) or _EXTENSION.match(after):
        return True
    value = text[start:stop]
    if _KNOWN_ID.match(value) or _PUBLIC_KEY.match(value):
        return True
    if (readable := _decoded(value)) is not None and (not telling or " " in readable or not readable.isascii()):
        return True  # what it says is read as text of its own
    return (
        not telling
        and not glance.heap
        and (_is_encoded_line(glance, start, stop) or _is_listed(glance, start, _LISTED))
    )


def _decoded(value: str) -> str | None:
    """The text that base64 hides, None where it hides none."""
    plain = value.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        text = base64.b64decode(plain[: len(plain) // 4 * 4], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    if text.isascii():
        wrong = len(text.encode().translate(None, _PRINTABLE))
    else:
        wrong = sum(not (letter.isprintable() or letter in "\r\n\t") for letter in text)
    return text if wrong <= 0.1 * len(text) else None


def _is_listed(glance: Glance, start: int, most: int) -> bool:
    """Whether it is one of many: a table of test vectors, a list of checksums."""
    places = glance.random_places
    low, high = bisect_left(places, start - _AROUND), bisect_left(places, start + _AROUND)
    return high - low > most


def _is_encoded_line(glance: Glance, start: int, stop: int) -> bool:
    """Whether it is a line of an encoded file: alone on its line, with others of its length above or below."""
    data = glance.data
    begin, end = data.rfind(b"\n", 0, start) + 1, data.find(b"\n", stop)
    end = len(data) if end < 0 else end
    if _ENCODED_FILE.search(glance.lowered[max(0, start - 200) : start]):
        return True
    above = data[data.rfind(b"\n", 0, max(0, begin - 1)) + 1 : max(0, begin - 1)]
    below_end = data.find(b"\n", end + 1)
    below = data[end + 1 : below_end if below_end >= 0 else len(data)]
    if _ENCODED_ABOVE.search(above.rstrip()):
        return True
    return any(_ENCODED_ITEM.fullmatch(line.strip(_LITERAL)) is not None for line in (above, below))


def _is_hex_secret(glance: Glance, start: int, stop: int) -> bool:
    """Whether hex digits are a key: beside a telling word, or long, and not where checksums and commit ids stand."""
    text = glance.text
    value = text[start:stop]
    digits = value.replace("-", "")
    before, after = text[max(0, start - 12) : start], text[stop : stop + 8]
    if _HASH_PREFIX.search(before) or _WORD_CHARACTER.match(after) or len(digits) > 128:
        return False
    if before[-1:] == "/" and not glance.near((b"hook",), start - 80, start):
        return False  # a path's segment, unless of a web hook
    if len(set(digits.lower())) < 8 or not any(map(str.isalpha, digits)) or not any(map(str.isdigit, digits)):
        return False
    if sum(abs(ord(one) - ord(next_)) <= 1 for one, next_ in pairwise(value)) > 0.4 * len(value):
        return False
    telling, public = _surroundings(glance, start, stop)
    if public:
        return False
    if telling:
        return len(digits) >= 16 and (glance.heap or not _is_commit_line(glance, start, stop))
    if "-" in value or value[:2] in ("0x", "0X") or before[-2:] in ("0x", "0X") or len(digits) < 32:
        return False
    # A path, a file's name, a fragment; a line of `git log`, `git ls-tree`, `sha256sum`.
    if before[-1:] in ("/", "-", "_", ".", "#", "@") or _EXTENSION.match(after) or _GOES_ON.match(after):
        return False
    if (
        not glance.heap
        and len(digits) in _DIGESTS
        and _DIGEST_NEAR.search(glance.lowered, max(0, start - _AROUND_DIGEST), start)
    ):
        return False
    if not glance.heap and (
        _is_listed(glance, start, _LISTED_HEX) or _HEX_ABOVE.search(_line_above(glance.data, start))
    ):
        return False
    return not (_HEX_FILE.search(glance.data[max(0, start - 40) : start]) or re.match(r"  |\t| \*|\.\.", after))


def _is_commit_line(glance: Glance, start: int, stop: int) -> bool:
    """Whether a line begins with a commit's whole id and its subject, as `git log --oneline --no-abbrev` prints it."""
    return (
        stop - start == 40
        and _COMMIT_MARK.fullmatch(glance.data, glance.data.rfind(b"\n", 0, start) + 1, start) is not None
        and glance.data[stop : stop + 1] == b" "
        and _DIGEST_NEAR.search(glance.lowered, max(0, start - _AROUND_DIGEST), stop + _AROUND_DIGEST) is not None
    )


def _line_above(data: bytes, start: int) -> bytes:
    end = data.rfind(b"\n", 0, start)
    return data[data.rfind(b"\n", max(0, end - 200), end) + 1 : end] if end > 0 else b""


def _is_told(glance: Glance, start: int, stop: int) -> bool:
    """Whether a word may stand near that says that this is secret; cheap, and generous."""
    return glance.near(_TELLING_ANCHORS, start - 2 * _AROUND_BEFORE, stop + _AROUND_AFTER)


def is_public(glance: Glance, start: int, stop: int) -> bool:
    """Whether what stands before says that this is a checksum, a version or an identity."""
    return _surroundings(glance, start, stop)[1] or _PUBLIC_KEY.match(glance.text, start) is not None


def _surroundings(glance: Glance, start: int, stop: int) -> tuple[bool, bool]:
    """Whether what stands before says that this is secret, and whether it says that this is public."""
    lowered = glance.lowered
    line = lowered.rfind(b"\n", 0, start) + 1
    foreign = 0
    if len(lowered[line:start].strip()) < 16 and line > 1:
        own = line
        above = len(lowered[max(0, line - 100) : line].rstrip()) + max(0, line - 100)
        line = lowered.rfind(b"\n", 0, above) + 1  # the name may stand on the line above, or over an empty one
        # Behind an empty line another text of the heap may begin, whose words may only make suspicious.
        foreign = own - max(line, start - 100) if glance.heap and above < own - 1 else 0
    before = lowered[max(line, start - 100) : start].decode("ascii")
    telling = public = _FAR
    is_told = _is_told(glance, start, stop)
    for found in _TELLING.finditer(before) if is_told else ():
        telling = len(before) - found.end()
    for found in _PUBLIC.finditer(before, foreign):
        public = len(before) - found.end()
    if telling == public == _FAR:
        end = lowered.find(b"\n", stop, stop + 60)
        after = lowered[stop : end if end >= 0 else stop + 60].decode("ascii")
        if is_told and (told := _TELLING.search(after)) is not None:
            telling = told.start()
        if (told := _PUBLIC.search(after[:16])) is not None:
            public = told.start()
    return telling < public, public <= telling and public != _FAR
