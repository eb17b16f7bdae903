"""Redaction: secrets out, typed and stable placeholders in; identities out, consistent pseudonyms in.

What it finds: values that the recorder itself saw on the wire, well-known key shapes, values after telling names and
in telling places, stretches that look drawn by chance, what a well-kept scanner knows; also under terminal colours,
JSON escapes, percent-encoding, HTML entities, quoted-printable, base64, gzip, hexadecimal, cut by a terminal's width or
by a stream. What it does not find: a password in plain prose that looks like a word, text inside images.
A text without findings is not proven clean; `agentdyno curate measure-redaction` says how much is found.
"""

from __future__ import annotations

import hmac
import re
import secrets
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, partial
from itertools import chain
from operator import is_not
from typing import TYPE_CHECKING, Any

from capture.call import Message
from curate import identity
from curate.bare import find_bare
from curate.contexts import find_in_context
from curate.glance import MASK, Glance
from curate.identity import Identities, Names, pseudonyms
from curate.named import find_named
from curate.recipe import RedactionPolicy
from curate.seen import SeenSecrets
from curate.shapes import SEEN, Finding, find_shapes
from curate.sweep import Find, cut, everywhere, sweep

if TYPE_CHECKING:
    from capture.secret import SeenSecret
    from capture.trajectory import Trajectory

RULES_VERSION = 4
"""Goes up whenever the same text may come out differently; part of every policy name."""

IDENTITY_KINDS = identity.KINDS
"""Kinds of findings that are no secrets but identities."""

PLACEHOLDER = re.compile(r"<SECRET:[a-z0-9_]+:[0-9a-f]{6}>")
_SHORTEST = 6  # a text shorter than any secret or name
_REMEMBERED_TEXTS = 50_000
_REMEMBERED_LENGTH = 2_000  # longer texts do not repeat often enough to be kept
_NOTHING: Counter[str] = Counter()  # shared: never written to
_ROUNDS = 8  # a text is clean after two; more come only from what stands beside something removed
# Identities of our own making: the session's, and the journal's record.
_NOT_TEXT = frozenset({"session_id", "agent_path", "exchange_id"})
# Drawn by chance and no secrets: what pairs a call with its result.
_IDS = frozenset({"id", "tool_call_id", "tool_call_ids"})
_NO_TEXT = re.compile(r"(?:int|float|bool|None|tuple|[\s|,.\[\]])+")  # a field's type: numbers alone

type _Wanted = dict[tuple[str, bool], None]
type _Done = dict[tuple[str, bool], tuple[str, Counter[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redacted:
    """A session after redaction."""

    trajectory: Trajectory
    counts: Counter[str]  # kind → findings, everywhere in the session
    by_message: tuple[int, ...]  # findings in each message of the pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What redaction left at text[start:end]."""

    start: int
    end: int
    kind: str


class Redactor:
    """Replaces secrets by `<SECRET:kind:7f3a91>` and, where the policy says so, identities by pseudonyms.

    Suffixes are keyed, the same for the same value and key. `seen` are a store's SeenSecrets and `key` is that store's
    key. Without a key a random one is drawn: placeholders are then stable for this object only. Instances may be
    pickled. EnvironmentFault where the policy wants the scanner and it is missing or broken.
    """

    def __init__(
        self, seen: Iterable[SeenSecret] = (), key: bytes | None = None, policy: RedactionPolicy | None = None
    ) -> None:
        seen = tuple(seen)
        if seen and key is None:
            raise ValueError("seen secrets are digests under a store's key: pass the key too")
        asked = policy if policy is not None else RedactionPolicy()
        self._key = key if key is not None else secrets.token_bytes(32)
        self._seen = SeenSecrets(seen, self._key)
        self._identities = Identities(self._key) if asked.identity else None
        self._allowed = frozenset(asked.allow)
        self._values = _any_of(asked.values)
        self._clean: set[str] = set()
        self._done: _Done = {}
        self._scan: Find | None = None
        parts = [f"own-{RULES_VERSION}"]
        if asked.scanner:
            from curate.scanner import scan, scanner_version

            parts.append(scanner_version())
            self._scan = scan
        if asked.identity:
            parts.append(f"identity-{identity.VERSION}")
        self.rules = "+".join(parts)
        """Names and versions of all that finds."""
        told = [("seen", bool(seen)), ("values", bool(asked.values)), ("allow", bool(asked.allow))]
        self.policy = "+".join((self.rules, *(name for name, is_told in told if is_told)))
        if not asked.scanner:
            self.policy += "-without-scanner"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_clean": set(), "_done": {}}

    def text(self, text: str) -> tuple[str, Counter[str]]:
        """The text redacted, and how many were replaced, by kind. Placeholders are left as they are."""
        return self.texts((text,))[0]

    def texts(self, texts: Sequence[str]) -> list[tuple[str, Counter[str]]]:
        """Texts that belong together, redacted: a name that one tells is replaced in all. Faster than one by one."""
        done = self._all(dict.fromkeys((text, True) for text in texts))
        return [(done[text, True][0], done[text, True][1].copy()) for text in texts]

    def message(self, message: Message) -> tuple[Message, Counter[str]]:
        """The message with every string of it redacted."""
        counts: Counter[str] = Counter()
        result: Message = _walk(message, True, self._gathered(message), counts)
        return result, counts

    def trajectory(self, trajectory: Trajectory) -> Redacted:
        """The trajectory with every string redacted: messages, arguments, reasoning, tool schemas, names, errors.

        Only ids that agentdyno made itself are passed over. Equal values get equal placeholders, so a tool call and
        its result stay paired. A name that is told anywhere in the session is replaced everywhere in it.
        """
        done = self._gathered(trajectory)
        counts: Counter[str] = Counter()
        by_message = []
        pool = []
        for pooled in trajectory.pool:
            found: Counter[str] = Counter()
            pool.append(_walk(pooled, True, done, found))
            by_message.append(found.total())
            counts.update(found)
        rest = _walk(replace(trajectory, pool=()), True, done, counts)
        redacted = replace(rest, pool=tuple(pool)) if counts else trajectory
        return Redacted(trajectory=redacted, counts=counts, by_message=tuple(by_message))

    def _gathered(self, value: Any) -> _Done:
        wanted: _Wanted = {}
        _gather(value, True, wanted)
        return self._all(wanted)

    def _all(self, wanted: _Wanted) -> _Done:
        """Strings redacted together; the flag says whether looks alone may find something in one."""
        identities = self._identities
        finds: list[Find] = [self._find_secrets]
        if identities is not None:
            finds.append(identities.find)
        blocks = {text: cut(text, finds) for text, _ in wanted}
        every = dict.fromkeys(chain.from_iterable(blocks.values()))
        swept = sweep([block for block in every if len(block) >= _SHORTEST and block not in self._clean], finds)
        names = Names(swept.findings[1] if identities is not None else ())
        told = set(swept.marked[1]) if identities is not None else set()
        decoded = set()
        for text, owners in swept.decoded:
            decoded |= owners
            if names.are_in(text):
                told |= owners
        done: _Done = {}
        touched = swept.marked[0] | told
        for text, looks in wanted:
            if not (names or any(map(touched.__contains__, blocks[text]))):
                done[text, looks] = text, _NOTHING
                continue
            pieces = []
            counts: Counter[str] = Counter()
            for block in blocks[text]:
                redacted = self._without_secrets(block, looks, counts) if block in swept.marked[0] else block
                if identities is not None and (block in told or names.are_in(redacted)):
                    named = self._until_clean(redacted, _both(identities.find, names.find), counts)
                    if named != redacted and block in decoded:
                        # An encoded stretch that went whole may have spoken for what stands beside it.
                        named = self._until_clean(named, partial(self._find_secrets, looks=looks), counts)
                    redacted = named
                pieces.append(redacted)
            done[text, looks] = "".join(pieces), counts
        for block in every:
            if len(block) <= _REMEMBERED_LENGTH and not (block in swept.marked[0] or block in told or block in decoded):
                self._remember(block)
        return done

    def _remember(self, text: str) -> None:
        if len(self._clean) >= _REMEMBERED_TEXTS:
            self._clean.clear()
        self._clean.add(text)

    def _without_secrets(self, text: str, looks: bool, counts: Counter[str]) -> str:
        known = self._done.get((text, looks))
        if known is None:
            found: Counter[str] = Counter()
            redacted = self._until_clean(text, partial(self._find_secrets, looks=looks), found)
            known = redacted, found
            if len(text) <= _REMEMBERED_LENGTH:
                if len(self._done) >= _REMEMBERED_TEXTS:
                    self._done.clear()
                self._done[text, looks] = known
        counts.update(known[1])
        return known[0]

    def _until_clean(self, text: str, find: Find, counts: Counter[str]) -> str:
        """Rounds of finding and replacing: what stands beside something removed may only now show."""
        for _ in range(_ROUNDS):
            shorter = self._round(text, find, counts)
            if shorter is None:
                break
            text = shorter
        return text

    def _round(self, text: str, find: Find, counts: Counter[str]) -> str | None:
        """One pass over what is not a placeholder; None when nothing was found."""
        masked, masks = _masked(text)
        pieces: list[str] = []
        position = 0
        for finding in merge(one for one in everywhere(find, masked) if one.value not in self._allowed):
            if _touches(masks, finding.start, finding.end):
                continue
            pieces += (text[position : finding.start], "" if finding.rest else self.placeholder(finding))
            position = finding.end
            counts[finding.kind] += not finding.rest
        return "".join((*pieces, text[position:])) if pieces else None

    def find(self, text: str) -> Iterator[Finding]:
        """Secrets in a text and in its other readings, as stretches of the text itself; they may overlap."""
        return everywhere(self._find_secrets, text)

    def _find_secrets(self, glance: Glance, *, looks: bool = True) -> Iterator[Finding]:
        if len(glance.text) < _SHORTEST:
            return
        yield from self._seen.find(glance)
        if self._values is not None:
            for match in self._values.finditer(glance.text):
                yield Finding(start=match.start(), end=match.end(), kind="named_value", rank=SEEN, value=match[0])
        yield from find_shapes(glance)
        yield from find_in_context(glance)
        yield from find_named(glance)
        if looks and glance.looks:
            yield from find_bare(glance)
        if self._scan is not None:
            yield from self._scan(glance)

    def placeholder(self, finding: Finding) -> str:
        """What stands in a finding's place."""
        if finding.kind in IDENTITY_KINDS:
            assert self._identities is not None
            return self._identities.pseudonym(finding.kind, finding.value)
        value = finding.value.encode("utf-8", "surrogatepass")
        return f"<SECRET:{finding.kind}:{hmac.digest(self._key, b'placeholder:' + value, 'sha256').hex()[:6]}>"


def _gather(value: Any, looks: bool, wanted: _Wanted) -> None:
    """Every string that redaction goes through, in order, and whether looks alone may find something in it."""
    if isinstance(value, str):
        wanted[value, looks] = None
    elif isinstance(value, tuple):
        if value and not isinstance(value[0], int):  # no block hashes, gaps, spans
            for item in value:
                _gather(item, looks, wanted)
    else:
        for name, is_id in _text_fields(value.__class__):
            field = getattr(value, name)
            if field is not None:
                _gather(field, not is_id, wanted)


def _walk(value: Any, looks: bool, done: _Done, counts: Counter[str]) -> Any:
    """The value with its strings replaced, and what was replaced in them counted; the same object where nothing was."""
    if isinstance(value, str):
        redacted, found = done[value, looks]
        if found:
            counts.update(found)
        return redacted
    if isinstance(value, tuple):
        if not value or isinstance(value[0], int):
            return value
        items = tuple([_walk(item, looks, done, counts) for item in value])
        return items if any(map(is_not, items, value)) else value
    changed = {}
    for name, is_id in _text_fields(value.__class__):
        old = getattr(value, name)
        if old is not None:
            new = _walk(old, not is_id, done, counts)
            if new is not old and new != old:
                changed[name] = new
    return replace(value, **changed) if changed else value


@cache
def _text_fields(type_: Any) -> tuple[tuple[str, bool], ...]:
    """Fields of a dataclass that may hold text, and whether that is an id; none of what is no dataclass."""
    if not is_dataclass(type_):
        return ()
    return tuple(
        (field.name, field.name in _IDS)
        for field in fields(type_)
        if field.name not in _NOT_TEXT and not _NO_TEXT.fullmatch(str(field.type))
    )


def _both(one: Find, other: Find) -> Find:
    def find(glance: Glance) -> Iterator[Finding]:
        yield from one(glance)
        yield from other(glance)

    return find


def marks(text: str) -> Iterator[Mark]:
    """Every placeholder and pseudonym in a redacted text, in order."""
    found = []
    if "<SECRET:" in text:
        found = [
            Mark(start=one.start(), end=one.end(), kind=one[0].split(":")[1]) for one in PLACEHOLDER.finditer(text)
        ]
    found += [Mark(start=start, end=end, kind=kind) for start, end, kind in pseudonyms(text)]
    yield from sorted(found, key=lambda mark: mark.start)


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """Findings in order without overlap: those that touch the same characters become one, named by the surest."""
    merged: list[Finding] = []
    # The order is total, so that a text comes out the same in every process.
    for finding in sorted(findings, key=lambda one: (one.start, -one.end, one.rest, one.rank, one.kind, one.value)):
        last = merged[-1] if merged else None
        if last is None or finding.start >= last.end:
            merged.append(finding)
            continue
        surest = min(last, finding, key=lambda each: (each.rank, -len(each.value)))
        merged[-1] = replace(surest, start=last.start, end=max(last.end, finding.end), rest=last.rest and finding.rest)
    return merged


def _any_of(values: Iterable[str]) -> re.Pattern[str] | None:
    either = "|".join(
        re.escape(value) for value in sorted(set(values), key=lambda value: (-len(value), value)) if value
    )
    return re.compile(either) if either else None


def _masked(text: str) -> tuple[str, list[int]]:
    """The text with marks of no meaning where placeholders and pseudonyms are, and where these begin and end."""
    masks = [edge for mark in marks(text) for edge in (mark.start, mark.end)]
    if not masks:
        return text, masks
    pieces: list[str] = []
    position = 0
    for begin, end in zip(masks[::2], masks[1::2], strict=True):
        pieces += (text[position:begin], MASK * (end - begin))
        position = end
    return "".join((*pieces, text[position:])), masks


def _touches(masks: list[int], start: int, end: int) -> bool:
    """Whether a stretch holds a part of a placeholder."""
    first, last = bisect_right(masks, start), bisect_left(masks, end)
    return first % 2 == 1 or first != last
