"""Talks to a review's server: as its page does, or as an attacker would."""

from __future__ import annotations

import http.client
import json
from typing import Any


class Client:
    """Talks to a review as a browser does, or as an attacker does."""

    def __init__(self, url: str) -> None:
        self.base, _, self.token = url.partition("/#token=")
        self.host = self.base.removeprefix("http://")

    def ask(
        self, path: str, *, method: str = "GET", body: Any = None, headers: dict[str, str | None] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        given: dict[str, str | None] = {"Authorization": f"Bearer {self.token}", "Host": self.host, **(headers or {})}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            given = {"Content-Type": "application/json", "Content-Length": str(len(data)), **given}
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        told = answer.read()
        connection.close()
        return answer.status, answer.headers, told

    def json(self, path: str) -> Any:
        status, _, body = self.ask(path)
        assert status == 200, body
        return json.loads(body)

    def decide(self, session_id: str, digest: str, verdict: str, reason: str | None = None) -> tuple[int, Any]:
        asked = {"session_id": session_id, "digest": digest, "verdict": verdict, "reason": reason}
        status, _, body = self.ask("/api/decide", method="POST", body=asked)
        return status, json.loads(body)
