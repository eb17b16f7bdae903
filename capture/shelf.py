"""The shelf of a store: imported sessions, one compressed file each, owner-only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import zstandard

from capture.atomic import write_draft
from capture.trajectory import Trajectory

FORMAT_VERSION = 1
_SUFFIX = ".json.zst"


class ShelfFault(ValueError):
    """A file of the shelf cannot be read or written. The sentence names it and the next step."""


class _Envelope(msgspec.Struct, frozen=True):
    version: int
    trajectory: Trajectory


class _Version(msgspec.Struct, frozen=True):
    version: int


class _Owner(msgspec.Struct, frozen=True):
    source: str
    contributor: str | None = None


class _OwnerEnvelope(msgspec.Struct, frozen=True):
    trajectory: _Owner


class Shelf:
    """Imported sessions of the store at `store_path`, in the folder `imported`; made when the first one is put."""

    def __init__(self, store_path: Path | str) -> None:
        self.folder = Path(store_path) / "imported"

    def put(self, trajectory: Trajectory) -> bool:
        """Keep a session; True when it replaced the same session."""
        return bool(self.put_all([trajectory]))

    def put_all(self, trajectories: Iterable[Trajectory]) -> list[str]:
        """Keep several sessions, all or (if one cannot be written) none; returns the ids that were replaced."""
        drafts: list[tuple[Path, Path]] = []
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for trajectory in trajectories:
                final = self._path(trajectory.session_id)
                data = msgspec.json.encode(_Envelope(version=FORMAT_VERSION, trajectory=trajectory))
                packed = zstandard.ZstdCompressor(level=6).compress(data)
                drafts.append((write_draft(final, packed, mode=0o600), final))
            replaced = [_id_of(final) for _, final in drafts if final.exists()]
            for draft, final in drafts:
                draft.replace(final)
        except OSError as fault:
            raise ShelfFault(f"{self.folder}: cannot keep the import: {fault.strerror or fault}") from fault
        finally:
            for draft, _ in drafts:
                draft.unlink(missing_ok=True)
        return replaced

    def session_ids(self) -> list[str]:
        """Ids of the sessions on the shelf, sorted."""
        return sorted(_id_of(path) for path in self.folder.glob(f"*{_SUFFIX}") if not path.name.startswith("."))

    def load(self, session_id: str) -> Trajectory:
        """One session; ShelfFault when its file is damaged or gone."""
        envelope = self._read(session_id, _Envelope)
        if envelope.version != FORMAT_VERSION:
            raise self._unread(session_id, envelope.version)
        return envelope.trajectory

    def belongs_to(self, session_id: str) -> tuple[str, str | None]:
        """(source, contributor) of a session without building the rest; ShelfFault as `load`."""
        owner = self._read(session_id, _OwnerEnvelope).trajectory
        return owner.source, owner.contributor

    def _read[T](self, session_id: str, kind: type[T]) -> T:
        path = self._path(session_id)
        try:
            data = zstandard.ZstdDecompressor().decompress(path.read_bytes())
            return msgspec.json.decode(data, type=kind)
        except FileNotFoundError as fault:
            raise ShelfFault(f"{path}: no such session on the shelf") from fault
        except (msgspec.DecodeError, UnicodeDecodeError) as fault:
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                version = msgspec.json.decode(data, type=_Version).version
                if version != FORMAT_VERSION:
                    raise self._unread(session_id, version) from None
            raise ShelfFault(f"{path} is damaged ({fault}): import its session again") from fault
        except (OSError, zstandard.ZstdError) as fault:
            raise ShelfFault(f"{path} is damaged ({fault}): import its session again") from fault

    def _unread(self, session_id: str, version: int) -> ShelfFault:
        path = self._path(session_id)
        return ShelfFault(
            f"{path} has format version {version}, this agentdyno reads {FORMAT_VERSION}: install a newer one"
        )

    def remove(self, session_id: str) -> bool:
        """Take a session off the shelf; whether it was on it. OSError where its file cannot be removed."""
        path = self._path(session_id)
        known = path.exists()
        path.unlink(missing_ok=True)
        return known

    def __iter__(self) -> Iterator[Trajectory]:
        for session_id in self.session_ids():
            yield self.load(session_id)

    def _path(self, session_id: str) -> Path:
        return self.folder / f"{session_id}{_SUFFIX}"


def _id_of(path: Path) -> str:
    return path.name.removesuffix(_SUFFIX)
