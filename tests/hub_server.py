"""A stand-in for the Hugging Face Hub on loopback, as much of it as publishing and loading a dataset need.

Repositories live in memory: commits with a parent check, tags, large files by digest, settings, squashing. Faults are
said beforehand: `hub.on("PUT", r"/lfs/", status(429))`. The real `huggingface_hub` talks to it, in a process of its
own, since `HF_ENDPOINT` is read at import; `HF_HUB_DISABLE_XET=1`, for Xet's storage cannot be stood in for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "t" * 34
READ_TOKEN = "hf_" + "r" * 34

type Files = dict[str, bytes]
type Action = Callable[[_Handler], bool]
"""What a fault does with a request; True when it answered."""


@dataclass
class Repo:
    """One dataset repository."""

    commits: dict[str, Files] = field(default_factory=dict)
    head: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files, committed or not
    messages: list[str] = field(default_factory=list)
    private: bool = False
    gated: str | bool = False
    private_when_first_filled: bool | None = None
    gated_when_first_filled: str | bool | None = None

    @property
    def files(self) -> Files:
        return self.commits[self.head]

    def commit(self, files: Files, message: str) -> str:
        name = hashlib.sha1(f"{self.head} {message} {len(self.messages)} {sorted(files)}".encode()).hexdigest()
        self.commits[name] = files
        self.head = name
        self.messages.append(message)
        return name

    def at(self, revision: str) -> Files | None:
        return self.commits.get(self.revision(revision))

    def revision(self, name: str) -> str:
        return self.head if name == "main" else self.tags.get(name, name)


@dataclass
class Hub:
    """The server's state, what was asked of it, and how it is to fail."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    log: list[tuple[str, str, int]] = field(default_factory=list)
    faults: list[tuple[str, re.Pattern[str], Action, int]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def on(self, method: str, pattern: str, action: Action, *, times: int = 1) -> None:
        """Do this with the next requests of this kind."""
        self.faults.append((method, re.compile(pattern), action, times))

    def fault(self, method: str, path: str) -> Action | None:
        for position, (wanted, pattern, action, times) in enumerate(self.faults):
            if wanted == method and pattern.search(path):
                self.faults[position : position + 1] = [(wanted, pattern, action, times - 1)] if times > 1 else []
                return action
        return None

    def asked(self, method: str, pattern: str) -> list[str]:
        """Paths of the requests of a kind that were answered well."""
        return [path for name, path, code in self.log if name == method and re.search(pattern, path) and code < 300]

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Of a process that takes this for the Hub."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **({} if token is None else {"HF_TOKEN": token}),
        }


def status(code: int, **headers: str) -> Action:
    """Answer with a status."""

    def act(handler: _Handler) -> bool:
        handler.read_body()
        handler.answer(
            code, b"<html>no JSON</html>", headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        return True

    return act


def cut(after: int = 1000) -> Action:
    """Read some of the body and hang up."""

    def act(handler: _Handler) -> bool:
        handler.rfile.read(min(after, int(handler.headers.get("content-length") or 0)))
        handler.hang_up()
        return True

    return act


def deaf() -> Action:
    """Do what is asked and hang up before the answer."""

    def act(handler: _Handler) -> bool:
        handler.mute = True
        return False

    return act


def stalled(reached: threading.Event, over: threading.Event) -> Action:
    """Take the request and never do it; hang up when it is over."""

    def act(handler: _Handler) -> bool:
        reached.set()
        over.wait(60)
        handler.hang_up()
        return True

    return act


def first(call: Callable[[], object]) -> Action:
    """Do something else before what is asked."""

    def act(_: _Handler) -> bool:
        call()
        return False

    return act


def garbled() -> Action:
    """Change one byte of what is fetched."""

    def act(handler: _Handler) -> bool:
        handler.garble = True
        return False

    return act


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub on a free port of loopback until the block ends."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    mute = garble = False
    body: bytes | None = None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, BrokenPipeError):  # a client that was killed
            self.close_connection = True

    def read_body(self) -> bytes:
        if self.body is None:
            if "chunked" in (self.headers.get("transfer-encoding") or ""):
                pieces = []
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                self.body = b"".join(pieces)
            else:
                length = int(self.headers.get("content-length") or 0)
                self.body = self.rfile.read(length)
                if len(self.body) < length:
                    raise ConnectionError("the client left in the middle")
        return self.body

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.hub.log.append((self.command, self.path, code))
        if self.mute:
            self.hang_up()
            return
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def tell(self, value: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.answer(code, json.dumps(value).encode(), headers)

    def missing(self, what: str = "RepoNotFound") -> None:
        self.answer(404, b"{}", {"X-Error-Code": what})

    def do(self) -> None:
        self.body, self.mute, self.garble = None, False, False
        path = unquote(urlsplit(self.path).path)
        fault = self.hub.fault(self.command, path)
        if fault is not None and fault(self):
            return
        self.read_body()
        with self.hub.lock:
            for method, pattern, serve in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split("|"):
                    serve(self, *match.groups())
                    return
        self.missing("NotFound")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do

    # Who asks

    def role(self) -> str | None:
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        return {TOKEN: "write", READ_TOKEN: "read"}.get(token)

    def repo(self, name: str, *, write: bool = False) -> Repo | None:
        """The repository, where whoever asks may; else answers."""
        found = self.hub.repos.get(name)
        if found is None or (found.private and self.role() is None):
            self.missing()
            return None
        if write and self.role() != "write":
            self.answer(401 if self.role() is None else 403, b"{}")
            return None
        return found

    # What can be asked

    def whoami(self) -> None:
        role = self.role()
        if role is None:
            self.answer(401, b'{"error": "Invalid username or password."}')
        else:
            auth = {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}
            self.tell({"type": "user", "name": "tester", "auth": auth, "orgs": []})

    def create(self) -> None:
        asked = json.loads(self.read_body())
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        if self.role() != "write":
            self.answer(403, b"{}")
        elif name in self.hub.repos:
            self.tell({"error": "You already created this dataset repo"}, 409)
        else:
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            repo = self.hub.repos[name] = Repo(private=private)
            repo.commit({".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")
            self.tell({"url": f"{self.hub.url}/datasets/{name}"})

    def info(self, name: str, revision: str | None = None) -> None:
        repo = self.repo(name)
        if repo is None:
            return
        commit = repo.revision(revision or "main")
        if commit not in repo.commits:
            self.missing("RevisionNotFound")
            return
        siblings = [{"rfilename": path} for path in sorted(repo.commits[commit])]
        about = {"_id": "0", "id": name, "sha": commit, "private": repo.private, "gated": repo.gated, "tags": []}
        self.tell({**about, "downloads": 0, "likes": 0, "siblings": siblings, "disabled": False})

    def auth_check(self, name: str, write: str | None) -> None:
        if self.repo(name, write=write is not None) is not None:
            self.tell({})

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
        if _is_large(path):
            found["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return found

    def tree(self, name: str, revision: str, under: str | None = None) -> None:
        repo = self.repo(name)
        if repo is None:
            return
        files = repo.at(revision)
        if files is None:
            self.missing("RevisionNotFound")
            return
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        prefix = f"{under.strip('/')}/" if under else ""
        inside = {path: data for path, data in files.items() if path.startswith(prefix)}
        if prefix and not inside:
            self.missing("EntryNotFound")
            return
        found: list[dict[str, Any]] = []
        folders = set()
        for path, data in sorted(inside.items()):
            parts = path[len(prefix) :].split("/")
            folders |= {prefix + "/".join(parts[:depth]) for depth in range(1, len(parts)) if recursive or depth == 1}
            if recursive or len(parts) == 1:
                found.append(self.entry(path, data))
        found += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
        # In two pages, as the Hub does it with a thousand entries each.
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("cursor", ["0"])[0])
        if start == 0 and len(found) > 5:
            url = f"{self.hub.url}{urlsplit(self.path).path}?{urlsplit(self.path).query}&cursor=5"
            self.tell(found[:5], headers={"Link": f'<{url}>; rel="next"'})
        else:
            self.tell(found[start:])

    def paths(self, name: str, revision: str) -> None:
        repo = self.repo(name)
        if repo is None:
            return
        files = repo.at(revision)
        if files is None:
            self.missing("RevisionNotFound")
            return
        body = self.read_body().decode()
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        found = [self.entry(path, files[path]) for path in asked if path in files]
        found += [
            {"type": "directory", "path": path, "oid": "0" * 40}
            for path in asked
            if any(file.startswith(f"{path}/") for file in files)
        ]
        self.tell(found)

    def refs(self, name: str) -> None:
        repo = self.repo(name)
        if repo is not None:
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": at} for tag, at in repo.tags.items()]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head}
            self.tell({"branches": [main], "converts": [], "tags": tags, "pullRequests": []})

    def yaml(self) -> None:
        self.tell({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        repo = self.repo(name, write=True)
        if repo is None:
            return
        files = repo.at(revision) or {}
        said = []
        for entry in json.loads(self.read_body())["files"]:
            path = entry["path"]
            about = {"path": path, "uploadMode": "lfs" if _is_large(path) else "regular", "shouldIgnore": False}
            if path in files:
                known = self.entry(path, files[path])
                about["oid"] = known["lfs"]["oid"] if "lfs" in known else known["oid"]
            said.append(about)
        self.tell({"files": said})

    def batch(self, name: str) -> None:
        repo = self.repo(name, write=True)
        if repo is None:
            return
        said = []
        for entry in json.loads(self.read_body())["objects"]:
            about: dict[str, Any] = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in repo.objects:
                about["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{name}/{entry['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs-verify/{name}"},
                }
            said.append(about)
        self.tell({"transfer": "basic", "objects": said})

    def put(self, name: str, oid: str) -> None:
        data = self.read_body()
        if hashlib.sha256(data).hexdigest() != oid:
            self.answer(400, b"{}")
        else:
            self.hub.repos[name].objects[oid] = data
            self.answer(200)

    def verify(self, name: str) -> None:
        known = json.loads(self.read_body())["oid"] in self.hub.repos[name].objects
        self.answer(200 if known else 404, b"{}")

    def commit(self, name: str, _: str) -> None:
        repo = self.repo(name, write=True)
        if repo is None:
            return
        lines = [json.loads(line) for line in self.read_body().splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", repo.head) != repo.head:
            self.tell({"error": "The branch has moved"}, 412)
            return
        files = dict(repo.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in repo.objects:
                    self.tell({"error": f"no object {value['oid']}"}, 400)
                    return
                files[value["path"]] = repo.objects[value["oid"]]
            else:
                del files[value["path"]]
        if repo.private_when_first_filled is None:
            repo.private_when_first_filled, repo.gated_when_first_filled = repo.private, repo.gated
        commit = repo.commit(files, header["summary"])
        url = f"{self.hub.url}/datasets/{name}/commit/{commit}"
        self.tell({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

    def tag(self, name: str, revision: str) -> None:
        repo = self.repo(name, write=True)
        if repo is None:
            return
        if self.command == "DELETE":
            if repo.tags.pop(revision, None) is None:
                self.missing("RevisionNotFound")
            else:
                self.tell({})
            return
        tag = json.loads(self.read_body())["tag"]
        if tag in repo.tags:
            self.tell({"error": "Tag reference exists already"}, 409)
        else:
            repo.tags[tag] = repo.revision(revision)
            self.tell({})

    def settings(self, name: str) -> None:
        repo = self.repo(name, write=True)
        if repo is None:
            return
        asked = json.loads(self.read_body())
        repo.private = asked.get("private", asked.get("visibility", "private" if repo.private else "public")) in (
            True,
            "private",
        )
        repo.gated = asked.get("gated", repo.gated)
        self.tell({})

    def squash(self, name: str, _: str) -> None:
        repo = self.repo(name, write=True)
        if repo is None:
            return
        files = repo.files
        repo.commits = {tag: repo.commits[tag] for tag in repo.tags.values()}
        repo.commit(files, json.loads(self.read_body())["message"])
        self.tell({})

    def stored(self, name: str) -> None:
        repo = self.repo(name, write=True)
        if repo is None:
            return
        self.tell(
            [
                {"fileOid": oid[:24], "filename": "f", "oid": oid, "pushedAt": "2026-11-20T00:00:00.000Z", "size": 1}
                for oid in sorted(repo.objects)
            ]
        )

    def delete_stored(self, name: str) -> None:
        repo = self.repo(name, write=True)
        if repo is None:
            return
        gone = set(json.loads(self.read_body())["deletions"]["sha"])
        repo.objects = {oid: data for oid, data in repo.objects.items() if oid[:24] not in gone}
        self.tell({})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.repo(name)
        if repo is None:
            return
        commit = repo.revision(revision)
        files = repo.commits.get(commit)
        if files is None:
            self.missing("RevisionNotFound")
            return
        if path not in files:
            self.missing("EntryNotFound")
            return
        data = files[path]
        digest = hashlib.sha256(data).hexdigest()
        if self.garble:
            data = bytes([data[0] ^ 1]) + data[1:]
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if match is None:
            self.answer(200, data, headers)
            return
        start, end = int(match[1]), int(match[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{min(end, len(data) - 1)}/{len(data)}"
        self.answer(206, data[start : end + 1], headers)


def _is_large(path: str) -> bool:
    return path.endswith((".parquet", ".png", ".jsonl"))


_NAME = r"([^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, str, Callable[..., None]], ...] = (
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.yaml),
    ("GET", f"/api/datasets/{_NAME}", _Handler.info),
    ("GET", f"/api/datasets/{_NAME}/revision/(.+)", _Handler.info),
    ("GET", f"/api/datasets/{_NAME}/auth-check(/write)?", _Handler.auth_check),
    ("GET", f"/api/datasets/{_NAME}/tree/([^/]+)", _Handler.tree),
    ("GET", f"/api/datasets/{_NAME}/tree/([^/]+)/(.*)", _Handler.tree),
    ("POST", f"/api/datasets/{_NAME}/paths-info/(.+)", _Handler.paths),
    ("GET", f"/api/datasets/{_NAME}/refs", _Handler.refs),
    ("POST", f"/api/datasets/{_NAME}/preupload/(.+)", _Handler.preupload),
    ("POST", f"/datasets/{_NAME}.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", f"/lfs/{_NAME}/([0-9a-f]+)", _Handler.put),
    ("POST", f"/lfs-verify/{_NAME}", _Handler.verify),
    ("POST", f"/api/datasets/{_NAME}/commit/(.+)", _Handler.commit),
    ("POST|DELETE", f"/api/datasets/{_NAME}/tag/(.+)", _Handler.tag),
    ("PUT", f"/api/datasets/{_NAME}/settings", _Handler.settings),
    ("POST", f"/api/datasets/{_NAME}/super-squash/(.+)", _Handler.squash),
    ("GET", f"/api/datasets/{_NAME}/lfs-files", _Handler.stored),
    ("POST", f"/api/datasets/{_NAME}/lfs-files/batch", _Handler.delete_stored),
    ("GET|HEAD", f"/datasets/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
)
