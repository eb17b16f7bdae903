"""What of the traffic may not be written at all: while paused, of excluded repositories, of logins.

The hooks ask `paused`, an attribute that the writer's thread refreshes; the rest is decided in that thread, before
anything of an exchange is numbered, compressed or written.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from capture.exclusion import FILE_NAME as EXCLUDED_FILE
from capture.exclusion import ExclusionError, Exclusions, read_exclusions
from capture.item import End, Headers, Item, Mark, ReadBytes, Send, Sent
from capture.layout import FROM_AGENT
from capture.login import is_grant, is_login, secrets_of
from capture.pause import read_pause
from capture.secret import SecretFilter
from capture.whole_body import decode_whole

_LEARNED_BYTES = 64 << 10  # of a login's answer: enough for every token in it
_HELD_ITEMS = 256  # of a socket whose agent has not spoken
_SESSIONS = 256  # of excluded repositories, remembered by id
# With two digits or more, so that no phrase of a prompt that all sessions share is taken for an id. Behind the name of
# an attribute of OTLP stand tags and lengths, or in JSON the object of its value.
_SESSION_ID = re.compile(
    rb"""(?:session|thread|conversation|prompt_cache)[\w.-]*
      (?:(?:\\?["'=:_\ ])+|\x12.\n.|"\s*,\s*"value"\s*:\s*\{\s*"stringValue"\s*:\s*")
      (?=[A-Za-z-]*\d[A-Za-z-]*\d)([0-9A-Za-z-]{16,64})""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_SESSION_BYTES = 64 << 10  # at each end of a body: where agents put their ids
_NUMBERS = 64  # of one session, that may turn out to be excluded


@dataclass(slots=True)
class _Login:
    """An exchange that hands out credentials: its bodies are looked through for them and dropped."""

    answer: bytearray = field(default_factory=bytearray)
    encoding: str | None = None
    lost_bytes: int = 0  # of the answer


class Sieve:
    """Decides for one journal. `paused` may be read from any thread, everything else belongs to the writer's."""

    def __init__(self, folder: Path, secrets: SecretFilter) -> None:
        self.paused = False
        self.fault: str | None = None  # of the list of exclusions: then nothing is recorded, rather than too much
        self._folder = folder
        self._secrets = secrets
        self._exclusions = Exclusions()
        self._list_seen: tuple[int, int] | None = None
        self._encodings: dict[int, str] = {}
        self._held: dict[int, list[Item]] = {}  # begun, and nobody knows yet where its agent works
        self._dropped: set[int] = set()  # excluded whole
        self._muted: set[int] = set()  # excluded from some message on; the exchange itself is in the journal
        self._logins: dict[int, _Login] = {}
        self._sessions: OrderedDict[bytes, None] = OrderedDict()
        self._written: OrderedDict[bytes, list[int]] = OrderedDict()  # by session: exchanges that named no folder yet
        self._regretted: set[int] = set()
        self.look()

    @property
    def waits(self) -> bool:
        """Whether exchanges are held whose fate is open."""
        return bool(self._held)

    @property
    def busy(self) -> bool:
        """Whether reads need a look too, because some exchange or all of them may not be written."""
        return bool(self._exclusions or self._held or self._dropped or self._muted or self._logins)

    def look(self) -> None:
        """Look at the store's files again."""
        try:
            state = (self._folder / EXCLUDED_FILE).stat()
            seen: tuple[int, int] | None = (state.st_mtime_ns, state.st_ino)
        except OSError:
            seen = None
        if seen != self._list_seen:
            self._list_seen = seen
            try:
                self._exclusions, self.fault = read_exclusions(self._folder), None
            except ExclusionError as fault:
                self.fault = str(fault)
        self.paused = self.fault is not None or read_pause(self._folder) is not None

    def admit(self, item: Item) -> list[Item]:
        """What is to be written of this item and of those held before it."""
        number = item.number
        if number is None:
            return [item]
        if number in self._dropped:
            if isinstance(item, End):
                self._dropped.discard(number)
            return []
        if isinstance(item, Sent):
            self._decode(item)
        elif isinstance(item, End):
            self._encodings.pop(number, None)  # of a request that was never complete
        elif isinstance(item, Send):
            if (encoding := item.header(b"content-encoding")) is not None:
                self._encodings[number] = encoding
            if self._exclusions:
                self._held[number] = []
        if number in self._held:
            self._held[number].append(item)
            return self._decide(number, item)
        return self._pass(number, item)

    def release(self) -> list[Item]:
        """What is still held when the recorder stops: it never named a folder."""
        held, self._held = self._held, {}
        return [passed for number, items in held.items() for each in items for passed in self._pass(number, each)]

    def take_regretted(self) -> set[int]:
        """Exchanges that were written before their session named an excluded folder: titles, probes, prewarms."""
        regretted, self._regretted = self._regretted, set()
        return regretted

    # Excluded repositories.

    def _decide(self, number: int, item: Item) -> list[Item]:
        held = self._held[number]
        first = held[0]
        assert isinstance(first, Send)
        if self._is_excluded(item):
            for earlier in held:
                self._exclude_sessions(_stated(earlier))
            del self._held[number]
            self._encodings.pop(number, None)
            self._dropped.add(number)
            return [Mark(None, item.at_ns, "excluded", None, unused=number)]
        is_socket = (first.header(b"upgrade") or "").lower() == "websocket"
        known = isinstance(item, End) or (isinstance(item, Sent) and not is_socket)
        known = known or (isinstance(item, ReadBytes) and item.kind == FROM_AGENT)
        if not known and len(held) < _HELD_ITEMS:
            return []
        del self._held[number]
        for earlier in held:
            for session in _session_ids(_stated(earlier)):
                numbers = self._written.setdefault(session, [])
                if len(numbers) < _NUMBERS and number not in numbers:
                    numbers.append(number)
        while len(self._written) > _SESSIONS:
            self._written.popitem(last=False)
        return [passed for each in held for passed in self._pass(number, each)]

    def _is_excluded(self, item: Item) -> bool:
        texts = _stated(item)
        if not texts or not self._exclusions:
            return False
        if self._exclusions.entry_in(*texts) is None and not any(
            session in text for text in texts for session in self._sessions
        ):
            return False
        self._exclude_sessions(texts)
        return True

    def _exclude_sessions(self, texts: list[bytes]) -> None:
        """Other calls of a session need not name the folder, the later ones as little as the earlier ones."""
        for session in _session_ids(texts):
            self._sessions[session] = None
            self._regretted.update(self._written.pop(session, ()))
        while len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)

    # Logins, and what is left of anything else.

    def _pass(self, number: int, item: Item) -> list[Item]:
        if number in self._muted:
            if not isinstance(item, End):
                return []
            self._muted.discard(number)
            return [item]
        if isinstance(item, ReadBytes) and item.kind == FROM_AGENT and self._is_excluded(item):
            self._muted.add(number)
            return [Mark(number, item.at_ns, "excluded", None)]
        if isinstance(item, Send):
            hands_out = is_login(item.host, item.path)
        else:
            hands_out = isinstance(item, Sent) and is_grant(item.decoded or item.body or b"")
        if hands_out:
            self._logins.setdefault(number, _Login())
        login = self._logins.get(number)
        return [item] if login is None else self._without_body(number, login, item)

    def _without_body(self, number: int, login: _Login, item: Item) -> list[Item]:
        if isinstance(item, Sent) and item.body:
            self._learn(item.decoded or item.body)
            return [Mark(number, item.at_ns, "credential", len(item.body)), Sent(number, item.at_ns, None)]
        if isinstance(item, ReadBytes):
            login.lost_bytes += len(item.data)
            login.answer += item.data[: max(0, _LEARNED_BYTES - len(login.answer))]
            return []
        if isinstance(item, Headers):
            pairs = {name.lower(): value for name, value in item.headers}
            login.encoding = pairs.get(b"content-encoding", b"").decode("latin-1") or None
        elif isinstance(item, End):
            del self._logins[number]
            answer = bytes(login.answer)
            self._learn(answer if login.encoding is None else decode_whole(answer, login.encoding) or b"")
            if login.lost_bytes:
                return [Mark(number, item.at_ns, "credential", login.lost_bytes), item]
        return [item]

    def _learn(self, body: bytes) -> None:
        for value in secrets_of(body[:_LEARNED_BYTES]):
            self._secrets.remember(value, "body")

    def _decode(self, item: Sent) -> None:
        encoding = self._encodings.pop(item.number, None)
        if encoding is not None and item.body:
            decoded = decode_whole(item.body, encoding)
            item.decoded = None if decoded == item.body else decoded


def _session_ids(texts: list[bytes]) -> set[bytes]:
    ends = [end for text in texts for end in (text[:_SESSION_BYTES], text[_SESSION_BYTES:][-_SESSION_BYTES:])]
    return {found[1] for end in ends for found in _SESSION_ID.finditer(end)}


def _stated(item: Item) -> list[bytes]:
    """Where a request may state its folder: header values, the body, a message of the agent."""
    if isinstance(item, Send):
        return [b"\n".join(name + b": " + value for name, value in item.headers)]
    if isinstance(item, Sent):
        body = item.decoded if item.decoded is not None else item.body
        return [body] if body else []
    if isinstance(item, ReadBytes) and item.kind == FROM_AGENT:
        return [item.data]
    return []
