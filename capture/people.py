"""People of a team's recorder: who a token stands for and what that person agreed to. Tokens are kept only hashed.

`people.toml` in the store, 0600: one `[[person]]` with `name`, `consent`, `digest` (HMAC-SHA256 of the token with the
store's key, hexadecimal), `length` (of the token, bytes), `added` and, once revoked, `revoked` (dates).
"""

from __future__ import annotations

import datetime
import fcntl
import hmac
import json
import os
import secrets
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from capture.atomic import write_atomically
from capture.secret import SeenSecret
from capture.store import Store

FILE_NAME = "people.toml"
TOKEN_PREFIX = "adt_"  # noqa: S105 - what tokens begin with
_TOKEN_BYTES = 24
_LONGEST_NAME = 64


class PeopleError(ValueError):
    """A name or the file of people is not usable. The sentence names the place and the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who may record through a team's recorder."""

    name: str
    consent: str
    digest: bytes
    length: int
    added: datetime.date
    revoked: datetime.date | None = None


@dataclass(frozen=True, slots=True)
class People:
    """Everybody who ever had a token, in order of adding."""

    key: bytes
    persons: tuple[Person, ...] = ()

    @classmethod
    def load(cls, store: Store) -> People:
        """From the store's file; nobody if there is none. PeopleError if it is damaged."""
        path = store.path / FILE_NAME
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls(store.key)
        except OSError as fault:
            raise PeopleError(f"cannot read {path}: {fault.strerror}") from fault
        try:
            return cls(store.key, tuple(_person(entry) for entry in tomllib.loads(data.decode()).get("person", [])))
        except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as fault:
            raise PeopleError(f"{path} is damaged ({fault}): restore it, or delete it and add tokens anew") from fault

    def whose(self, token: str) -> Person | None:
        """The person whose token this is; None for an unknown or a revoked one. Takes as long for either."""
        digest = self._digest(token)
        found = None
        for person in self.persons:
            if hmac.compare_digest(person.digest, digest):
                found = person
        return found if found is not None and found.revoked is None else None

    def is_active(self, person: Person) -> bool:
        """Whether a person admitted earlier still is."""
        return any(known.digest == person.digest and known.revoked is None for known in self.persons)

    def label(self, name: str) -> str:
        """A stable name without the person in it, for what others may read."""
        return hmac.digest(self.key, b"label:" + name.encode(), "sha256").hex()[:12]

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self.key, token.encode("utf-8", "surrogateescape"), "sha256")


def add_person(store: Store, name: str, consent: str) -> str:
    """Give `name` a token and return it; nothing can show it again. PeopleError for a bad or taken name."""
    if not name or len(name) > _LONGEST_NAME or not name.isprintable() or ":" in name or name != name.strip():
        raise PeopleError(f"name {name!r}: write 1 to {_LONGEST_NAME} printable characters without a colon")
    if not consent.strip() or not consent.isprintable():
        raise PeopleError("the consent is empty: say in one line what this person agreed to")
    token = TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    with _changing(store) as people:
        if any(person.name == name and person.revoked is None for person in people.persons):
            raise PeopleError(f"{name!r} has a token already: revoke it first, or choose another name")
        person = Person(
            name=name,
            consent=consent.strip(),
            digest=people._digest(token),
            length=len(token),
            added=_today(),
        )
        _save(store, replace(people, persons=(*people.persons, person)))
    # An agent's own output may name its base URL: curation looks for the token in every text from here on.
    store.keep_secrets([SeenSecret(length=person.length, digest=person.digest, kind="path")])
    return token


def revoke_person(store: Store, name: str) -> None:
    """Make the token of `name` void. PeopleError where nobody of that name has one."""
    with _changing(store) as people:
        if not any(person.name == name and person.revoked is None for person in people.persons):
            known = ", ".join(person.name for person in people.persons if person.revoked is None) or "nobody"
            raise PeopleError(f"{name!r} has no token; {known} has")
        persons = tuple(
            replace(person, revoked=_today()) if person.name == name and person.revoked is None else person
            for person in people.persons
        )
        _save(store, replace(people, persons=persons))


@contextmanager
def _changing(store: Store) -> Iterator[People]:
    lock = os.open(store.path / f".{FILE_NAME}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield People.load(store)
    finally:
        os.close(lock)


def _save(store: Store, people: People) -> None:
    lines = ["# Written by `agentdyno capture token`; tokens are kept as keyed hashes only.\n"]
    for person in people.persons:
        # A JSON string of printable characters is a TOML string.
        values = {"name": person.name, "consent": person.consent, "digest": person.digest.hex()}
        text = "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
        revoked = f"revoked = {person.revoked}\n" if person.revoked is not None else ""
        lines.append(f"[[person]]\n{text}length = {person.length}\nadded = {person.added}\n{revoked}")
    write_atomically(store.path / FILE_NAME, "\n".join(lines).encode(), mode=0o600)


def _person(entry: dict[str, object]) -> Person:
    name, consent, digest, length, added = (entry[key] for key in ("name", "consent", "digest", "length", "added"))
    revoked = entry.get("revoked")
    if not (isinstance(name, str) and isinstance(consent, str) and isinstance(digest, str)):
        raise TypeError("name, consent and digest are strings")
    if not (isinstance(length, int) and isinstance(added, datetime.date)):
        raise TypeError("length is a number and added a date")
    if revoked is not None and not isinstance(revoked, datetime.date):
        raise TypeError("revoked is a date")
    return Person(name=name, consent=consent, digest=bytes.fromhex(digest), length=length, added=added, revoked=revoked)


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
