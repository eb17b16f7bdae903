"""The serving system that a replay talks to: an OpenAI-compatible base URL, a model and, by name, a key."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
import msgspec

from replay.transport import CONNECT_TIMEOUT_S, CollectingTransport, Target, Wire

CONTROL_TIMEOUT_S = 20.0
USER_AGENT = "agentdyno"


class EndpointError(ValueError):
    """The endpoint cannot be used as named; the text is one sentence with the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One entry of the server's model list. Unknown is None."""

    model: str
    owner: str | None
    context_tokens: int | None  # the longest context that the server says it takes for this model
    vocabulary_tokens: int | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send requests. `url` may end in `/v1` or not; `key_env` names the environment variable with the key."""

    url: str
    model: str
    key_env: str | None = None

    def __post_init__(self) -> None:
        url = self.url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise EndpointError(f"{self.url!r} is not a URL ({error}): give one like http://127.0.0.1:8000") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.userinfo:
            raise EndpointError(
                f"{self.url!r} is not the base URL of a server: give one like http://127.0.0.1:8000, "
                "without query or credentials (name a key by its environment variable)"
            )
        object.__setattr__(self, "url", url)

    def key(self) -> str | None:
        """The key's value, read from the environment now; never kept, never printed."""
        if self.key_env is None:
            return None
        value = os.environ.get(self.key_env)
        if not value:
            raise EndpointError(f"the environment variable {self.key_env} is not set: export it, or name no key")
        return value

    def connect(self) -> Caller:
        """An open client for this endpoint; use it as an async context manager, on one event loop."""
        return Caller(self)


class Caller:
    """Sends requests to one endpoint over the collecting transport, through `httpx.AsyncClient`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        headers = {"user-agent": USER_AGENT, "content-type": "application/json", "accept": "*/*"}
        key = endpoint.key()
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self._headers = httpx.Headers(headers)
        self._targets: dict[str, Target] = {}
        self._transport = CollectingTransport()
        # trust_env off: no proxy and no .netrc may come between us and what is measured.
        self._client = httpx.AsyncClient(transport=self._transport, trust_env=False, follow_redirects=False)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, fault, trace)

    async def collect(
        self, path: str, body: bytes, wire: Wire, *, lane: object = None, timeout_s: float | None = None
    ) -> None:
        """Post a JSON body and fill the wire, at the least cost; `timeout_s` bounds it from its first byte sent.

        Raises httpx's transport errors; whatever happened until then is on `wire`. `lane` owns the connection.
        """
        target = self._targets.get(path)
        if target is None:
            target = self._targets[path] = Target.of(
                httpx.Request("POST", self.endpoint.url + path, headers=self._headers)
            )
        await self._transport.collect(target, body, wire, lane=lane, timeout_s=timeout_s)

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> httpx.Response:
        """Post a JSON body and return the whole response; its extension `agentdyno.wire` has the reads."""
        return await self._client.post(
            self.endpoint.url + path, content=body, headers=self._headers, timeout=_whole(timeout_s)
        )

    async def get(self, path: str, *, timeout_s: float = CONTROL_TIMEOUT_S) -> httpx.Response:
        """Send a control request and return the whole response."""
        return await self._client.get(self.endpoint.url + path, headers=self._headers, timeout=_whole(timeout_s))

    async def reach(self) -> tuple[ModelCard, ...] | None:
        """The server's model list, None where it keeps none. Raises `EndpointError` when no server answers."""
        url = self.endpoint.url
        try:
            response = await self.get("/v1/models")
        except httpx.ConnectError as error:
            raise EndpointError(f"no server answers at {url} ({error}): start it, or correct the URL") from error
        except httpx.TimeoutException as error:
            raise EndpointError(f"the server at {url} does not answer ({error}): is it still loading?") from error
        except httpx.TransportError as error:
            raise EndpointError(f"what listens at {url} is not an HTTP model server ({error})") from error
        if response.status_code in (401, 403):
            hint = "name its environment variable" if self.endpoint.key_env is None else "is the key right?"
            raise EndpointError(f"the server at {url} refuses us (HTTP {response.status_code}): it wants a key; {hint}")
        return _model_cards(response)

    async def check_model(self) -> ModelCard | None:
        """The model's card, None where the server keeps no list; raises `EndpointError` naming what it has instead."""
        cards = await self.reach()
        if cards is None:
            return None
        for card in cards:
            if card.model == self.endpoint.model:
                return card
        names = ", ".join(repr(card.model) for card in cards[:10]) + (", …" if len(cards) > 10 else "")
        raise EndpointError(
            f"the server at {self.endpoint.url} has no model {self.endpoint.model!r}: it has {names}; name one of these"
        )

    async def tokenize(self, text: str) -> tuple[int, ...] | None:
        """Token ids of a text as the server cuts it, special tokens recognised; None where it does not say.

        One body fits llama.cpp (`content`, `parse_special`) and vLLM or SGLang (`model`, `prompt`).
        """
        body = msgspec.json.encode(
            {
                "content": text,
                "add_special": False,
                "parse_special": True,
                "model": self.endpoint.model,
                "prompt": text,
                "add_special_tokens": False,
            }
        )
        try:
            response = await self.post("/tokenize", body, timeout_s=CONTROL_TIMEOUT_S)
        except httpx.TransportError:
            return None
        value = _json_object(response) if response.status_code == 200 else {}
        tokens = value.get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            return None
        return tuple(tokens)

    async def properties(self) -> dict[str, object]:
        """llama.cpp's `/props`, empty on other servers."""
        try:
            response = await self.get("/props")
        except httpx.TransportError:
            return {}
        return _json_object(response) if response.status_code == 200 else {}


def _whole(timeout_s: float) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)


def _json_object(response: httpx.Response) -> dict[str, object]:
    try:
        value = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _model_cards(response: httpx.Response) -> tuple[ModelCard, ...] | None:
    if response.status_code != 200:
        return None
    entries = _json_object(response).get("data")
    if not isinstance(entries, list):
        return None
    cards = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            continue
        meta = entry.get("meta")  # llama.cpp
        if not isinstance(meta, dict):
            meta = {}
        cards.append(
            ModelCard(
                model=entry["id"],
                owner=entry["owned_by"] if isinstance(entry.get("owned_by"), str) else None,
                context_tokens=_first_count(
                    entry.get("max_model_len"), meta.get("n_ctx"), entry.get("context_length"), meta.get("n_ctx_train")
                ),
                vocabulary_tokens=_first_count(meta.get("n_vocab")),
            )
        )
    return tuple(cards) or None


def _first_count(*values: object) -> int | None:
    return next((value for value in values if type(value) is int and value > 0), None)
