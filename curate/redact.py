"""The first redaction pass: secrets out, typed and stable placeholders in.

What it finds: values that the recorder itself saw on the wire, well-known key shapes, values after telling names and
in telling places; also under terminal colours, JSON escapes, percent-encoding and base64. What it does not find: a
password in plain prose, a key without a known shape or name, a secret cut in two by something that is not an
encoding, text inside images. Personal data is not looked for. A text without findings is not proven clean.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from capture.call import Message
from curate.contexts import find_in_context
from curate.seen import SeenSecrets
from curate.shapes import Finding, find_shapes, key_runs
from curate.views import DEPTH, base64_decoded, percent_decoded, views

if TYPE_CHECKING:
    from capture.secret import SeenSecret
    from capture.trajectory import Trajectory

RULES_VERSION = 1
"""Goes up whenever the same text may come out differently; part of every policy name."""

PLACEHOLDER = re.compile(r"<SECRET:[a-z0-9_]+:[0-9a-f]{6}>")
_SHORTEST = 8  # a text shorter than any secret
_REMEMBERED_TEXTS = 50_000
_REMEMBERED_LENGTH = 2_000  # longer texts do not repeat often enough to be kept
# Identities of our own making: the session's, and the journal's record.
_NOT_TEXT = frozenset({"session_id", "agent_path", "exchange_id"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Redacted:
    """A session after redaction."""

    trajectory: Trajectory
    counts: Counter[str]  # kind → findings, everywhere in the session
    by_message: tuple[int, ...]  # findings in each message of the pool


class Redactor:
    """Replaces secrets by `<SECRET:kind:7f3a91>`; the suffix is keyed, the same for the same value and key.

    `seen` are a store's SeenSecrets and `key` is that store's key. Without a key a random one is drawn: placeholders
    are then stable for this object only. Instances may be pickled.
    """

    def __init__(self, seen: Iterable[SeenSecret] = (), key: bytes | None = None) -> None:
        seen = tuple(seen)
        if seen and key is None:
            raise ValueError("seen secrets are digests under a store's key: pass the key too")
        self._key = key if key is not None else secrets.token_bytes(32)
        self._seen = SeenSecrets(seen, self._key)
        self._done: dict[str, tuple[str, Counter[str]]] = {}
        self.policy = f"shapes-{RULES_VERSION}{'+seen' if seen else ''}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_done": {}}

    def text(self, text: str) -> tuple[str, Counter[str]]:
        """The text without secrets, and how many were replaced, by kind. Placeholders are left as they are."""
        counts: Counter[str] = Counter()
        if len(text) < _SHORTEST:
            return text, counts
        known = self._done.get(text)
        if known is not None:
            return known[0], known[1].copy()
        redacted = text
        # What stands beside a removed secret may only now show as one. Each round takes text away, so this ends.
        while (shorter := self._round(redacted, counts)) is not None:
            redacted = shorter
        if len(text) <= _REMEMBERED_LENGTH:
            if len(self._done) >= _REMEMBERED_TEXTS:
                self._done.clear()
            self._done[text] = redacted, counts.copy()
        return redacted, counts

    def message(self, message: Message) -> tuple[Message, Counter[str]]:
        """The message with every string of it redacted."""
        counts: Counter[str] = Counter()
        result: Message = self._walk(message, counts)
        return result, counts

    def trajectory(self, trajectory: Trajectory) -> Redacted:
        """The trajectory with every string redacted: messages, arguments, reasoning, tool schemas, names, errors.

        Only ids that agentdyno made itself are passed over. Equal values get equal placeholders, so a tool call and
        its result stay paired.
        """
        counts: Counter[str] = Counter()
        by_message = []
        pool = []
        for pooled in trajectory.pool:
            found: Counter[str] = Counter()
            pool.append(self._walk(pooled, found))
            by_message.append(found.total())
            counts += found
        rest = self._walk(replace(trajectory, pool=()), counts)
        return Redacted(trajectory=replace(rest, pool=tuple(pool)), counts=counts, by_message=tuple(by_message))

    def _walk(self, value: Any, counts: Counter[str]) -> Any:
        if isinstance(value, str):
            redacted, found = self.text(value)
            counts.update(found)
            return redacted
        if isinstance(value, tuple):
            if not value or isinstance(value[0], int):
                return value  # block hashes, gaps, spans
            return tuple(self._walk(item, counts) for item in value)
        if is_dataclass(value) and not isinstance(value, type):
            changed = {}
            for field in fields(value):
                old = getattr(value, field.name)
                if (field.name not in _NOT_TEXT and isinstance(old, str | tuple)) or is_dataclass(old):
                    new = self._walk(old, counts)
                    if new != old:
                        changed[field.name] = new
            return replace(value, **changed) if changed else value
        return value

    def _round(self, text: str, counts: Counter[str]) -> str | None:
        """One pass over what is not a placeholder; None when nothing was found."""
        pieces: list[str] = []
        found = position = 0
        for begin, end in _outside_placeholders(text):
            chunk = text[begin:end]
            for finding in merge(self.find(chunk)):
                pieces += (text[position : begin + finding.start], self.placeholder(finding))
                position = begin + finding.end
                counts[finding.kind] += 1
                found += 1
        return "".join((*pieces, text[position:])) if found else None

    def find(self, text: str, depth: int = 0) -> Iterator[Finding]:
        """Findings in a text and in its other readings, as stretches of the text itself; they may overlap."""
        if len(text) < _SHORTEST:
            return
        runs = key_runs(text)
        yield from self._seen.find(text, runs)
        yield from find_shapes(text, runs)
        yield from find_in_context(text)
        if depth == DEPTH:
            return
        for view in views(text):
            for finding in self.find(view.text, depth + 1):
                begin, end = view.span(finding.start, finding.end)
                yield replace(finding, start=begin, end=end)
        for offset, view in percent_decoded(text):
            for finding in self.find(view.text, depth + 1):
                begin, end = view.span(finding.start, finding.end)
                yield replace(finding, start=offset + begin, end=offset + end)
        for begin, end, decoded in base64_decoded(text, runs):
            for finding in self.find(decoded, depth + 1):
                yield replace(finding, start=begin, end=end)

    def placeholder(self, finding: Finding) -> str:
        """What stands in a finding's place."""
        value = finding.value.encode("utf-8", "surrogatepass")
        return f"<SECRET:{finding.kind}:{hmac.digest(self._key, b'placeholder:' + value, 'sha256').hex()[:6]}>"


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in order without overlap: those that touch the same characters become one, named by the surest."""
    merged: list[Finding] = []
    # The order is total, so that a text comes out the same in every process.
    for finding in sorted(findings, key=lambda one: (one.start, -one.end, one.rank, one.kind, one.value)):
        last = merged[-1] if merged else None
        if last is None or finding.start >= last.end:
            merged.append(finding)
            continue
        surest = min(last, finding, key=lambda each: (each.rank, -len(each.value)))
        merged[-1] = replace(surest, start=last.start, end=max(last.end, finding.end))
    return merged


def _outside_placeholders(text: str) -> Iterator[tuple[int, int]]:
    position = 0
    if "<SECRET:" in text:
        for match in PLACEHOLDER.finditer(text):
            if match.start() > position:
                yield position, match.start()
            position = match.end()
    if position < len(text):
        yield position, len(text)
