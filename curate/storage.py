"""A folder or an object store (any URL that fsspec opens) as a place for releases.

There is no commit here. Shards have names of their own content and are written first, the card and its like next,
`manifest.json` after them and removals last: whoever reads the manifest finds every file that it lists, and a killed
upload goes on where it was. That two publishers do not meet is checked, before and just ahead of the manifest, but no
store of this kind can exclude it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import msgspec

from curate.manifest import MANIFEST, file_sha256
from curate.target import (
    OnFile,
    PlacedFile,
    PlaceState,
    PlaceUnreachable,
    PublishRefused,
    Wish,
    without_credentials,
)

UNDER_WAY = ".agentdyno-upload.json"
"""Lists what an upload writes while it is under way, so that the next one knows whose files these are."""
_PIECE = 1 << 20


class StorageTarget:
    """A folder or a prefix of an object store; raises PlaceUnreachable and PublishRefused with one sentence each."""

    def __init__(self, url: str) -> None:
        self.name = without_credentials(url)
        if not url or "\0" in url:
            raise PublishRefused(f"{url!r} is no place; name a folder or a URL")
        with self._reached():
            self._store, root = fsspec.core.url_to_fs(url)
        self._root = root.rstrip("/")
        protocol = self._store.protocol
        local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)
        self.folder = Path(self._root or "/") if local else None

    def state(self) -> PlaceState:
        """What lies there; the head is the digest of the manifest.

        Files of this machine are read: a shard that somebody changed is not taken for the one that was published.
        """
        with self._reached():
            state = self._state()
            if self.folder is None:
                return state
            digests = {path: file_sha256(self.folder / path) for path in state.files}
            files = {path: replace(file, sha256=digests[path]) for path, file in state.files.items()}
            return replace(state, files=files)

    def _state(self) -> PlaceState:
        with self._reached():
            self._store.invalidate_cache()
            if not self._store.exists(self._root):
                return PlaceState(exists=False, head=None)
            if self._store.isfile(self._root):
                raise PublishRefused(f"{self.name} is a file; name a folder or a prefix")
            found: dict[str, Any] = self._store.find(self._root, detail=True)
            self._refuse_links()
            files = {
                name[len(self._root) :].lstrip("/"): PlacedFile(bytes=int(about["size"] or 0), sha256=None)
                for name, about in found.items()
                if about.get("type", "file") == "file"
            }
            head = self._head(files)
            if head is not None:
                files[MANIFEST] = PlacedFile(bytes=files[MANIFEST].bytes, sha256=head)
            unfinished = frozenset((*self._under_way(), UNDER_WAY)) if UNDER_WAY in files else frozenset[str]()
            return PlaceState(exists=bool(files), head=head, files=files, unfinished=unfinished)

    def files(self, head: str) -> Mapping[str, PlacedFile]:  # noqa: ARG002 - a store has one state
        """What lies there."""
        return self.state().files

    def read(self, path: str, head: str | None) -> bytes:  # noqa: ARG002 - a store has one state
        """A small file."""
        with self._reached():
            data: bytes = self._store.cat_file(self._at(path))
            return data

    def fetch(self, path: str, head: str | None, to: Path) -> None:  # noqa: ARG002
        """A file, in pieces."""
        to.parent.mkdir(parents=True, exist_ok=True)
        with self._reached(), self._store.open(self._at(path), "rb") as source, to.open("wb") as file:
            shutil.copyfileobj(source, file, _PIECE)

    def send(
        self,
        folder: Path,
        additions: Collection[str],
        deletions: Collection[str],
        *,
        state: PlaceState,
        wish: Wish,
        message: str,  # noqa: ARG002 - there is no history to keep it in
        on_file: OnFile,
    ) -> str:
        """Write files in an order in which no reader of the manifest misses one; gives the new manifest's digest."""
        if wish.private or wish.gated:
            raise PublishRefused(
                f"{self.name}: who may read a folder or a bucket is set there; leave --private and --gated out"
            )
        with self._reached():
            self._store.makedirs(self._root, exist_ok=True)
            self._store.pipe_file(
                self._at(UNDER_WAY),
                msgspec.json.encode(sorted({*additions, *deletions, *state.unfinished} - {UNDER_WAY})),
            )
            for path in sorted(additions, key=lambda path: (not path.startswith("data/"), path)):
                if path != MANIFEST:
                    if not self._is_there(path, folder / path, state):
                        self._put(folder / path, path)
                    on_file(path, (folder / path).stat().st_size)
            if self._head(self._state().files) != state.head:
                raise PublishRefused(
                    f"somebody else published to {self.name} meanwhile; its manifest is left as it is. Look at what is "
                    "there now, then run the same command again"
                )
            if MANIFEST in additions:
                self._put(folder / MANIFEST, MANIFEST)
                on_file(MANIFEST, (folder / MANIFEST).stat().st_size)
            for path in (*sorted(set(deletions) - {UNDER_WAY}), UNDER_WAY):
                if self._store.exists(self._at(path)):
                    self._store.rm_file(self._at(path))
        return file_sha256(folder / MANIFEST)

    def tag(self, name: str, head: str) -> None:
        """Nothing: a folder keeps one release, which its manifest names."""

    # ------------------------------------------------------------------------------------------------ how it is done

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _refuse_links(self) -> None:
        """What is written or removed through a link in a folder that others may write to is not in that folder."""
        if self.folder is None:
            return
        for parent, folders, files in self.folder.walk():
            for name in (*folders, *files):
                if (parent / name).is_symlink():
                    raise PublishRefused(f"{parent / name} is a link; publish to a folder without links")

    def _head(self, files: Collection[str]) -> str | None:
        if MANIFEST not in files:
            return None
        return hashlib.sha256(self._store.cat_file(self._at(MANIFEST))).hexdigest()

    def _under_way(self) -> list[str]:
        """Paths that a killed upload was about to write."""
        try:
            return msgspec.json.decode(self._store.cat_file(self._at(UNDER_WAY)), type=list[str])
        except (msgspec.MsgspecError, UnicodeDecodeError):  # killed while it wrote this: nothing else was written yet
            return []

    def _is_there(self, path: str, local: Path, state: PlaceState) -> bool:
        """Whether a killed upload left this very file; its bytes are read, since no store tells a SHA-256."""
        found = state.files.get(path)
        if found is None or found.bytes != local.stat().st_size:
            return False
        digest = hashlib.sha256()
        with self._store.open(self._at(path), "rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest() == file_sha256(local)

    def _put(self, local: Path, path: str) -> None:
        place = self._at(path)
        if self.folder is None:  # an object appears whole or not at all
            self._store.put_file(str(local), place)
            return
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        draft = Path(place).with_name(f".{Path(place).name}.{os.getpid()}.part")
        try:
            shutil.copyfile(local, draft)
            draft.replace(place)
        finally:
            draft.unlink(missing_ok=True)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn what a store's library raises into one sentence."""
        try:
            yield
        except (PublishRefused, PlaceUnreachable):
            raise
        except ImportError as fault:
            raise PlaceUnreachable(f"{self.name}: {without_credentials(str(fault))}") from fault
        except Exception as fault:  # every store has errors of its own
            said = without_credentials(next(iter(str(fault).splitlines()), ""))[:200]
            raise PlaceUnreachable(
                f"{self.name} cannot be used ({type(fault).__name__}: {said}); run the same command again: what was "
                "written is not written twice"
            ) from fault
