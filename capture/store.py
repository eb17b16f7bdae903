"""A store: a private folder with one journal per recorder, read as one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from capture.atomic import write_atomically, write_once
from capture.exchange import Exchange
from capture.secret import SecretKind, SeenSecret

KEY_BYTES = 32
_KEPT_SECRETS = "seen-secrets"  # digest, length and kind, a line each


class StoreError(ValueError):
    """A folder is not a store, or cannot be read. The sentence names the place and the next step."""


def default_store() -> Path:
    """The store named by AGENTDYNO_STORE, else the one in the user's data folder (XDG base directory specification)."""
    named = os.environ.get("AGENTDYNO_STORE")
    if named:
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "agentdyno" / "store"


class Store:
    """Journals of one folder. Reading changes nothing and tolerates recorders that still write."""

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self.key = key

    @classmethod
    def open(cls, path: Path | str, create: bool = False) -> Store:
        """The store at `path`. StoreError if there is none and `create` is false."""
        path = Path(path)
        if create:
            if path.is_dir() and not cls.exists(path) and _foreign(path):
                raise StoreError(f"{path} holds other things than a store: name a new or empty folder")
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                _refuse_anothers(path)
                _make_key(path)
            except OSError as fault:
                raise StoreError(f"cannot make a store at {path}: {fault.strerror or fault}") from fault
        if not path.is_dir():
            raise StoreError(f"no store at {path}: record one by `agentdyno capture run --store {path} -- COMMAND`")
        try:
            key = (path / "store.key").read_bytes()
        except FileNotFoundError:
            raise StoreError(f"{path} is not a store (no store.key): name the folder that was recorded into") from None
        except OSError as fault:
            raise StoreError(f"cannot read {path / 'store.key'}: {fault.strerror or fault}") from fault
        if len(key) != KEY_BYTES:
            raise StoreError(f"{path / 'store.key'} is damaged: {len(key)} bytes where {KEY_BYTES} belong")
        return cls(path, key)

    def own(self) -> Store:
        """Itself, to be changed; StoreError where it is another user's."""
        _refuse_anothers(self.path)
        return self

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a store was made here before."""
        return (path / "store.key").is_file()

    def journals(self) -> list[Path]:
        """Journal files, oldest first (their names start with the time)."""
        return sorted(self.path.glob("journal-*.sqlite"))

    def exchanges(self, problems: list[str] | None = None) -> Iterator[Exchange]:
        """Every exchange, journal by journal, in order of send; a sentence per damaged place goes to `problems`."""
        from capture.reader import JournalReader

        for path in self.journals():
            with JournalReader(path) as reader:
                yield from reader.exchanges()
                if problems is not None:
                    problems += reader.problems

    def seen_secrets(self) -> tuple[SeenSecret, ...]:
        """Credentials that passed through any recorder of this store, as keyed digests."""
        from capture.reader import JournalReader

        seen = {secret.digest: secret for secret in self._kept_secrets()}
        for path in self.journals():
            with JournalReader(path) as reader:
                seen.update((secret.digest, secret) for secret in reader.secrets())
        return tuple(seen.values())

    def keep_secrets(self, secrets: Iterable[SeenSecret]) -> None:
        """Remember digests whose journal goes: their credentials may stand in the text of other sessions."""
        kept = {secret.digest: secret for secret in (*self._kept_secrets(), *secrets)}
        lines = [f"{secret.digest.hex()} {secret.length} {secret.kind}\n" for secret in kept.values()]
        if lines:
            write_atomically(self.path / _KEPT_SECRETS, "".join(lines).encode(), mode=0o600)

    def _kept_secrets(self) -> Iterator[SeenSecret]:
        path = self.path / _KEPT_SECRETS
        try:
            for line in path.read_text().splitlines():
                digest, length, kind = line.split(" ")
                yield SeenSecret(digest=bytes.fromhex(digest), length=int(length), kind=cast("SecretKind", kind))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as fault:
            raise StoreError(
                f"{path} is damaged ({fault}): without it, credentials are looked for less well"
            ) from fault


def _refuse_anothers(folder: Path) -> None:
    """Whoever made the folder may have prepared it, and could not read what another user leaves in it."""
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        raise StoreError(f"{folder} belongs to user {owner}, not to {os.geteuid()}: run as its owner, or name another")


def _foreign(folder: Path) -> bool:
    return any(not entry.name.startswith(".store.key.") for entry in folder.iterdir())


def _make_key(folder: Path) -> None:
    """Write store.key once; of two recorders that start together one wins and both read the same key."""
    final = folder / "store.key"
    if final.exists():
        return
    folder.chmod(0o700)
    write_once(final, os.urandom(KEY_BYTES), mode=0o600)
