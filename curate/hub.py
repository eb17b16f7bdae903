"""The Hugging Face Hub as a place for releases: one commit per release, which says what it was made from.

Large files go up first, each known by its digest, so that a killed upload goes on where it was. Then one commit with
its parent named adds, replaces and removes everything: nobody sees half a release, and of two publishers one loses.
Works with Xet storage and without it; `HF_ENDPOINT` and `HF_HUB_DISABLE_XET` are huggingface_hub's own switches.
"""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from itertools import batched
from pathlib import Path
from typing import BinaryIO, Literal, cast
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, hf_raise_for_status, http_stream_backoff

from curate.manifest import MANIFEST, file_sha256
from curate.target import (
    Limits,
    OnFile,
    PlacedFile,
    PlaceState,
    PlaceUnreachable,
    PublishRefused,
    Wish,
    without_credentials,
)
from curate.words import printable

KIND = "dataset"
# Hub docs, storage-limits: a file above 50 GB is refused, and so are more entries than these.
LIMITS = Limits(file_bytes=50_000_000_000, files=100_000, folder_files=10_000)
_GROUP_BYTES = 256 << 20  # sent together; a kill costs no more than the files under way
_GROUP_FILES = 50
_WAITS_S = (0.5, 1, 2, 4, 8)
_PASSING = frozenset((429, 500, 502, 503, 504))  # statuses that may be gone at the next try
_LOST = frozenset((409, 412))  # the branch moved: another commit came in between


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What a purge did, and what it could not reach."""

    head: str
    objects: int  # large files deleted for good
    tags: tuple[str, ...]  # deleted, since they named older states
    remaining: tuple[str, ...]  # branches and pull requests that hold older states


class HubTarget:
    """A dataset repository; raises PlaceUnreachable and PublishRefused with one sentence each."""

    def __init__(self, repo: str, token: str | None) -> None:
        disable_progress_bars()
        self.repo = repo
        self.folder: Path | None = None
        self.name = without_credentials(f"{huggingface_hub.constants.ENDPOINT}/datasets/{repo}")
        _refuse_open_line(huggingface_hub.constants.ENDPOINT)
        self._api = HfApi(token=token, library_name="agentdyno")
        self._token = token
        self._known: str | None = None

    def state(self) -> PlaceState:
        """What the repository's main branch holds; refuses a token that may not write."""
        with self._reached():
            self._check_token()
            try:
                info = self._tried(lambda: self._api.repo_info(self.repo, repo_type=KIND))
            except RepositoryNotFoundError as fault:
                if isinstance(fault, GatedRepoError):
                    raise
                return PlaceState(exists=False, head=None)
            self._tried(lambda: self._api.auth_check(self.repo, repo_type=KIND, write=True))
            head = info.sha
            files = self._files(head)
            refs = self._tried(lambda: self._api.list_repo_refs(self.repo, repo_type=KIND))
            branches = sorted(ref.name for ref in refs.branches if ref.name != "main")
        return PlaceState(
            exists=True,
            head=head,
            files=files,
            tags={ref.name: ref.target_commit for ref in refs.tags},
            notes=(f"other branches: {', '.join(branches)}",) if branches else (),
        )

    def files(self, head: str) -> Mapping[str, PlacedFile]:
        """What a commit holds."""
        with self._reached():
            return self._files(head)

    def read(self, path: str, head: str | None) -> bytes:
        """A small file as of a commit."""
        file = io.BytesIO()
        self._download(path, head, file)
        return file.getvalue()

    def fetch(self, path: str, head: str | None, to: Path) -> None:
        """A file as of a commit, past every cache of this machine."""
        to.parent.mkdir(parents=True, exist_ok=True)
        with to.open("wb") as file:
            self._download(path, head, file)

    def send(
        self,
        folder: Path,
        additions: Collection[str],
        deletions: Collection[str],
        *,
        state: PlaceState,
        wish: Wish,
        message: str,
        on_file: OnFile,
    ) -> str:
        """One commit on top of the state that the release was made for; gives its id."""
        with self._reached():
            parent = self._prepared(state, wish)
            if not additions and not deletions:
                return parent
            adds = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=folder / path) for path in sorted(additions)]
            for group in _groups(adds):
                self._tried(
                    lambda group=group: self._api.preupload_lfs_files(  # type: ignore[misc]
                        self.repo, additions=group, repo_type=KIND, free_memory=False
                    )
                )
                for add in group:
                    on_file(add.path_in_repo, add.upload_info.size)
            operations: list[CommitOperationAdd | CommitOperationDelete] = [*adds]
            operations += (CommitOperationDelete(path_in_repo=path) for path in sorted(deletions))
            return self._commit(operations, message, parent, file_sha256(folder / MANIFEST))

    def tag(self, name: str, head: str) -> None:
        """Name a commit."""
        with self._reached():
            self._tried(lambda: self._api.create_tag(self.repo, tag=name, revision=head, repo_type=KIND, exist_ok=True))

    def purge(self, keep: Collection[str], message: str) -> Purged:
        """Forget all history and delete every large file but those of these digests, for good."""
        with self._reached():
            refs = self._tried(lambda: self._api.list_repo_refs(self.repo, repo_type=KIND, include_pull_requests=True))
            tags = tuple(sorted(ref.name for ref in refs.tags))
            for name in tags:
                self._tried(lambda name=name: self._api.delete_tag(self.repo, tag=name, repo_type=KIND))  # type: ignore[misc]
            self._tried(
                lambda: self._api.super_squash_history(self.repo, branch="main", commit_message=message, repo_type=KIND)
            )
            stored = self._tried(lambda: list(self._api.list_lfs_files(self.repo, repo_type=KIND)))
            gone = [entry for entry in stored if entry.oid not in keep]
            if gone:
                self._tried(
                    lambda: self._api.permanently_delete_lfs_files(
                        self.repo, gone, rewrite_history=True, repo_type=KIND
                    )
                )
            head = self._tried(lambda: self._api.repo_info(self.repo, repo_type=KIND)).sha
        others = [
            ref.ref for ref in (*refs.branches, *refs.converts, *(refs.pull_requests or ())) if ref.name != "main"
        ]
        return Purged(head=cast(str, head), objects=len(gone), tags=tags, remaining=tuple(sorted(others)))

    # ------------------------------------------------------------------------------------------------ how it is done

    def _files(self, head: str | None) -> dict[str, PlacedFile]:
        tree = self._tried(
            lambda: list(self._api.list_repo_tree(self.repo, repo_type=KIND, revision=head, recursive=True))
        )
        return {
            entry.path: PlacedFile(
                bytes=entry.size,
                sha256=None if entry.lfs is None else entry.lfs.sha256,
                git_sha1=None if entry.lfs is not None else entry.blob_id,
            )
            for entry in tree
            if isinstance(entry, RepoFile)
        }

    def _check_token(self) -> None:
        if self._known is not None:
            return
        found = self._tried(lambda: self._api.whoami())
        role = ((found.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            raise PlaceUnreachable(
                f"the token of {found.get('name')} may only read; name a variable that holds one that may write, by "
                "--token-env"
            )
        self._known = str(found.get("name"))

    def _prepared(self, state: PlaceState, wish: Wish) -> str:
        """The repository made, and as private and gated as wished before anything is in it; gives the parent."""
        parent = state.head
        if not state.exists:
            self._create(private=bool(wish.private))
            fresh = self.state()
            if fresh.has_release:
                raise PublishRefused(self._moved())
            parent = fresh.head
        if wish.private:  # of a repository that somebody else made meanwhile, too
            self._tried(lambda: self._api.update_repo_settings(self.repo, private=True, repo_type=KIND))
        if wish.gated is not None:
            gated = cast(Literal["auto", "manual"], wish.gated)
            self._tried(lambda: self._api.update_repo_settings(self.repo, gated=gated, repo_type=KIND))
        self._refuse_open(wish)
        if parent is None:
            raise PlaceUnreachable(
                f"{self.name} cannot be seen by this token, or has no first commit; check the name on the Hub"
            )
        return parent

    def _create(self, *, private: bool) -> None:
        """Make the repository; one that is there already, of whomever, is looked at next."""
        try:
            self._tried(lambda: self._api.create_repo(self.repo, repo_type=KIND, private=private))
        except HTTPError as fault:
            if _status(fault) != HTTPStatus.CONFLICT:
                raise

    def _refuse_open(self, wish: Wish) -> None:
        """Nothing is sent to a repository that is not as closed as was asked for."""
        if not wish.private and wish.gated is None:
            return
        found = self._tried(lambda: self._api.repo_info(self.repo, repo_type=KIND))
        if (wish.private and not found.private) or (wish.gated is not None and found.gated != wish.gated):
            asked = " and ".join((*(("private",) if wish.private else ()), *(("gated",) if wish.gated else ())))
            raise PublishRefused(f"{self.name} did not become {asked}, and nothing was sent; look at its settings")

    def _commit(
        self,
        operations: Sequence[CommitOperationAdd | CommitOperationDelete],
        message: str,
        parent: str,
        manifest_sha256: str,
    ) -> str:
        """Commit, once. Where the answer is lost, the branch itself tells whether the commit is there."""
        for wait_s in (*_WAITS_S, None):
            try:
                commit = self._api.create_commit(
                    self.repo,
                    operations,
                    commit_message=message,
                    repo_type=KIND,
                    parent_commit=parent,
                )
            except (HTTPError, json.JSONDecodeError) as fault:
                status = _status(fault)
                if status is not None and status not in _PASSING | _LOST:
                    raise
                head = self._tried(lambda: self._api.repo_info(self.repo, repo_type=KIND)).sha
                if head != parent:
                    if head is not None and self._is_ours(head, manifest_sha256):
                        return head
                    raise PublishRefused(self._moved()) from fault
                if wait_s is None:
                    raise
                time.sleep(wait_s)
            else:
                return commit.oid
        raise AssertionError("the last try either returns or raises")

    def _is_ours(self, head: str, manifest_sha256: str) -> bool:
        try:
            return hashlib.sha256(self.read(MANIFEST, head)).hexdigest() == manifest_sha256
        except PlaceUnreachable:
            return False

    def _moved(self) -> str:
        return (
            f"somebody else published to {self.repo} meanwhile; nothing of this release is visible there. Look at what "
            "is there now, then run the same command again"
        )

    def _download(self, path: str, head: str | None, to: BinaryIO) -> None:
        url = huggingface_hub.hf_hub_url(self.repo, path, repo_type=KIND, revision=head)
        headers = build_hf_headers(token=self._token)

        def once() -> None:
            to.seek(0)
            to.truncate()
            with http_stream_backoff("GET", url, headers=headers) as response:
                hf_raise_for_status(response)
                to.writelines(response.iter_bytes(1 << 20))

        with self._reached():
            self._tried(once)

    def _tried[T](self, call: Callable[[], T]) -> T:
        """Call again, after a pause, what failed for a reason that passes."""
        for wait_s in _WAITS_S:
            try:
                return call()
            except (HTTPError, RuntimeError) as fault:
                cause = fault.__cause__ if isinstance(fault, RuntimeError) and fault.__cause__ else fault
                status = _status(cause)
                if status is None and not isinstance(cause, HTTPError):
                    raise
                if status is not None and status not in _PASSING:
                    raise
                time.sleep(max(wait_s, _retry_after_s(cause)))
        return call()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn the library's errors into one sentence."""
        try:
            yield
        except (PlaceUnreachable, PublishRefused):
            raise
        except (LocalTokenNotFoundError, HFValidationError) as fault:
            said = "no token" if isinstance(fault, LocalTokenNotFoundError) else str(fault)
            raise PlaceUnreachable(
                f"{self.name}: {said}; name the environment variable that holds one by --token-env, or log in by "
                "'hf auth login'"
                if isinstance(fault, LocalTokenNotFoundError)
                else f"{self.name}: {said}"
            ) from fault
        except OfflineModeIsEnabled as fault:
            raise PlaceUnreachable(f"{self.name}: HF_HUB_OFFLINE is set; unset it to publish") from fault
        except LookupError as fault:
            raise PlaceUnreachable(
                f"{self.name} answers as no Hub does that this version of huggingface_hub knows ({fault!r}); look at "
                "HF_ENDPOINT"
            ) from fault
        except (HTTPError, RuntimeError, OSError, ValueError) as fault:
            cause = fault.__cause__ if isinstance(fault, RuntimeError) and fault.__cause__ else fault
            raise PlaceUnreachable(self._said(cause)) from fault

    def _said(self, fault: BaseException) -> str:
        status = _status(fault)
        if status == 401:
            return f"{self.name}: the token is not accepted; name the variable that holds a valid one by --token-env"
        if status == 403:
            return (
                f"{self.name}: this token may not write there; ask the owner for the right, or name another repository"
            )
        if status == 404:
            return f"{self.name}: not found; check the name, and that the token may see it"
        again = "run the same command again: what was sent is not sent twice"
        if status == 429:
            return f"{self.name} asks to wait (status 429); {again}"
        if status is not None:
            said = getattr(fault, "server_message", None)
            said = f" ({printable(said)[:200]})" if said else ""
            return f"{self.name} answers with status {status}{said}; {again}"
        said = without_credentials(printable(str(fault)))[:200]
        if isinstance(fault, ValueError) and not isinstance(fault, json.JSONDecodeError):  # a card, say
            return f"{self.name} refuses it: {said}"
        return f"{self.name} cannot be reached ({type(fault).__name__}: {said}); {again}"


def _refuse_open_line(endpoint: str) -> None:
    """Raises PlaceUnreachable where the token and the data would travel in the clear."""
    where = urlsplit(endpoint)
    host = where.hostname or ""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if where.scheme != "https" and not loopback:
        raise PlaceUnreachable(
            f"HF_ENDPOINT {without_credentials(endpoint)!r} is not encrypted: all on the way could read the token and "
            "the data; name an https:// address"
        )


def _status(fault: BaseException) -> int | None:
    response = getattr(fault, "response", None)
    return None if response is None else int(response.status_code)


def _retry_after_s(fault: BaseException) -> float:
    """What the server asks to wait, a minute at most."""
    response = getattr(fault, "response", None)
    asked = "" if response is None else str(response.headers.get("retry-after", ""))
    return min(60.0, float(asked)) if asked.isdigit() else 0.0


def _groups(adds: Sequence[CommitOperationAdd]) -> Iterator[list[CommitOperationAdd]]:
    """Additions in the order of their paths, in groups of bounded size."""
    for batch in batched(adds, _GROUP_FILES):
        group: list[CommitOperationAdd] = []
        size = 0
        for add in batch:
            if group and size + add.upload_info.size > _GROUP_BYTES:
                yield group
                group, size = [], 0
            group.append(add)
            size += add.upload_info.size
        if group:
            yield group
