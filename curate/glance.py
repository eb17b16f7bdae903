"""A first glance over a text: its characters as bytes, and the few places in it that are worth a closer look.

Every rule here is far slower than the processor reads, and almost all of a transcript is plain. So one pass at C speed
finds the places (random-looking stretches, long runs, long hex), and the rules look at those.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from curate.anchors import Anchors
from curate.randomness import spots

if TYPE_CHECKING:
    import numpy as np

    type _Array = np.ndarray[Any, np.dtype[Any]]

RUN_LENGTH = 20  # characters: every key shape holds an unbroken run at least so long
SPOT_BITS = 12  # evidence from which a place is looked at
HEX_LENGTH = 32
MASK = "|"
"""Stands for every character of a placeholder while rules look at a text: part of no value and of no name."""
_MASKS = MASK.encode() * 16

# What the rules start from, in lower case, three letters at least.
# fmt: off
_ANCHORS = Anchors((
    # names of secrets, places of secrets
    b"pass", b"pwd", b"secret", b"token", b"key", b"auth", b"credential", b"bearer", b"basic ", b"cookie:", b"://",
    b"sig=", b"signature=", b"login ", b"sshpass", b"mysql", b"mariadb", b"redis-cli", b"mongo", b"echo ", b":5432:",
    b" -u", b"user ", b"mnemonic", b"seed", b"recovery phrase", b"secret phrase", b"backup phrase", b"recovery words",
    b"wallet", b"private key", b"cookie", b"session", b"webhook", b"connection",
    b"login", b"log in", b"sign in", b"creds", b"sessid", b"pw ", b"pw:", b"pw=", b"private",
    b"encrypt", b"decrypt", b"hook", b"otp", b"mfa", b"2fa", b"dsn", b"psk", b"license",
    b"licence", b"recovery", b"private-lines", b"old one", b"new one", b"previous one", b"current one",
    b"auth-token", b"auth_token", b"x-secret",
     b"authorization", b"backup", b"back-up", b"scratch", b"emergency", b"rescue", b"unlock", b"one-time",
    b"one time", b"one_time", b"onetime", b"single-use", b"second factor", b"puk", b"pin:", b"pin=", b"pin ",
    b"pin\"", b"pin'", b"pin\\", b"pin<", b"pin>", b"pin|", b"pin,", b"pin\t", b"pin\n", b"pin\r", b"pw\n",
    b"identified by", b"kennwort", b"mot de passe", b"|   ", b"?   ", b"pin_code", b"pincode", b"pin-code",
    b"pin*", b"pin`", b"pw\"", b"pw'", b"pw,", b"pw|",
    # who and where
    b"/home/", b"/users/", b"\\home\\", b"\\users\\", b"-home-", b"-users-", b"author", b"committer", b"-by:",
    b"tagger", b"user.name", b"whoami", b"uid=", b"user=", b"logname=", b"username=", b"logged in", b"rw-r", b"rwxr",
    b"rwx-", b"rw--", b"r-xr", b"r--r", b":x:1", b"hostname", b"linux ", b"ssh ", b"scp ", b"rsync ", b"sftp ",
    b"git@", b"ssh://", b"git clone", b"git push", b"git pull", b"git fetch", b"git remote", b"git ls-remote",
    b"origin", b"upstream", b"cloning into", b"to https", b"from https", b"url =", b"192.168.", b"172.",
    *(b"10.%d" % digit for digit in range(10)), b".local", b".internal", b".corp", b".lan", b".intra", b".private",
    b".home.arpa", b"1b[", b"033[", b"\\e[", b"\"remote", b"\"repo", b"_url\\\"", b"_url\"",
    # other readings
    b"delta\"", b"delta\\\"", b"partial_json", b"chunk\"", b"text\"", b"content\"", b"arguments\"", b"thinking\"",
    b"\\u00", *(b"\\x%x" % digit for digit in range(8)), b"&#x", *(b"&#%d" % digit for digit in range(10)), b"&quot;",
    b"&amp;", b"&lt;", b"=3d", b"data\"", b"token\"", b"output\"", b"text\\\"", b"content\\\"",
))
# fmt: on
_RUN_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.~+/=%:-"
_WIDE, _NARROW = 60, 32  # characters of a terminal's line
# One for a letter of a run, zero for what ends it.
_RUNS = bytes(code in _RUN_LETTERS for code in range(256))
_HEX = bytes(code in b"0123456789abcdefABCDEF" for code in range(256))


@cache
def _all_but(marks: bytes) -> bytes:
    return bytes(code not in marks for code in range(256))


def is_wide_line(data: bytes, end: int) -> bool:
    """Whether the line that ends here may be one that a terminal broke: wide, or a command in a narrow one."""
    line = data[data.rfind(b"\n", 0, end) + 1 : end]
    return len(line) >= _WIDE or (len(line) >= _NARROW and (b" --" in line or line.startswith(b"$ ")))


def long_runs(marks: bytes, length: int) -> tuple[_Array, _Array]:
    """Begins and ends of the runs of at least so many ones; each step doubles how far a place answers for."""
    import numpy as np

    flags = np.frombuffer(b"\0" + marks + b"\0", dtype=np.uint8)
    if len(marks) < length:
        flags = flags[:1]
    reach = 1
    while reach < length and len(flags) > 1:
        step = min(reach, length - reach)
        flags = flags[:-step] & flags[step:]
        reach += step
    return (flags[1:] > flags[:-1]).nonzero()[0], (flags[1:] < flags[:-1]).nonzero()[0] + length - 1


class Glance:
    """A text and what a first pass over it found. Positions in `data` and `lowered` are positions in `text`."""

    def __init__(self, text: str, *, looks: bool = True, heap: bool = False) -> None:
        self.text = text
        self.looks = looks  # whether looks alone may find something in it
        self._places: dict[tuple[bytes, ...], list[int]] = {}
        self.heap = heap  # texts put together: what one holds must not speak for the innocence of another
        # One byte per character, whatever the alphabet: what is not ASCII only separates.
        self.data = text.encode("ascii", "replace")

    @cached_property
    def lowered(self) -> bytes:
        return self.data.lower()

    @cached_property
    def lower_text(self) -> str:
        return self.lowered.decode("ascii")

    @cached_property
    def _found(self) -> dict[bytes, list[int]]:
        return _ANCHORS.find(self.lowered)

    def at(self, *words: bytes) -> list[int]:
        """Where these words stand, in order; they must be among the anchors."""
        if self._found.keys().isdisjoint(words):
            return []
        found = [places for word in words if (places := self._found.get(word))]
        if len(found) == 1:
            return found[0]
        return sorted(set().union(*found))

    def has(self, words: tuple[bytes, ...]) -> bool:
        """Whether any of these anchors stands in the text."""
        return not self._found.keys().isdisjoint(words)

    def near(self, words: tuple[bytes, ...], begin: int, end: int) -> bool:
        """Whether one of these words begins in a stretch."""
        places = self._places.get(words)
        if places is None:
            places = self._places[words] = self.at(*words)
        at = bisect_left(places, begin)
        return at < len(places) and places[at] < end

    @cached_property
    def spots(self) -> list[tuple[int, int, int]]:
        """Runs of letters with a random-looking stretch in them: begin, end, bits of evidence."""
        return spots(self.data, SPOT_BITS)

    @cached_property
    def hex_runs(self) -> list[tuple[int, int]]:
        """Runs of at least 32 hexadecimal digits."""
        begins, ends = long_runs(self.data.translate(_HEX), HEX_LENGTH)
        return list(zip(begins.tolist(), ends.tolist(), strict=True))

    @cached_property
    def random_places(self) -> list[int]:
        """Where long random-looking or hexadecimal runs begin, in order."""
        places = {begin for begin, end, bits in self.spots if bits >= 2 * SPOT_BITS and end - begin >= RUN_LENGTH}
        places.update(begin for begin, _ in self.hex_runs)
        at = self.data.find(_MASKS)
        while at >= 0:
            places.add(at)
            at = self.data.find(_MASKS, at + 2 * len(_MASKS))
        return sorted(places)

    @cached_property
    def runs(self) -> list[str]:
        """Unbroken runs of key characters, long enough to be a key."""
        text = self.text
        begins, ends = long_runs(self._run_marks, RUN_LENGTH)
        return [text[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]

    @cached_property
    def _run_marks(self) -> bytes:
        return self.data.translate(_RUNS)

    def run_around(self, begin: int, end: int) -> tuple[int, int]:
        """The unbroken run of key characters that holds a stretch of them."""
        stop = self._run_marks.find(b"\0", end)
        return self._run_marks.rfind(b"\0", 0, begin) + 1, stop if stop >= 0 else len(self.data)

    def between(self, marks: bytes, lengths: Collection[int]) -> list[str]:
        """Stretches with a space in them, of one of these lengths once trimmed, between two of these marks."""
        import numpy as np

        begins, ends = long_runs(self.data.translate(_all_but(marks)), min(lengths))
        # A space may stand before it, behind a colon.
        wanted = np.zeros(max(lengths) + 4, dtype=bool)
        wanted[[length + more for length in lengths for more in (0, 1, 2)]] = True
        likely = wanted[np.minimum(ends - begins, len(wanted) - 1)]
        stretches = (
            self.text[begin:end].strip()
            for begin, end in zip(begins[likely].tolist(), ends[likely].tolist(), strict=True)
        )
        return [stretch for stretch in stretches if len(stretch) in lengths and " " in stretch]
