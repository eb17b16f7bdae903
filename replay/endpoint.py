"""The serving system that a replay talks to: OpenAI-compatible base URLs, a model and, by name, a key."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
import msgspec

from replay.proxy import Proxy, ProxyError, parse_proxy, refuse_unsettled
from replay.transport import CollectingTransport
from replay.wire import CONNECT_TIMEOUT_S, Target, Timeouts, Wire

CONTROL_TIMEOUT_S = 20.0
SHORTEST_SECRET = 8
"""A shorter key, like `EMPTY`, is a placeholder that may stand in any sentence."""
HIDDEN = "[credential]"
MOST_OF_A_NAME = 100  # of a model, where all are listed
USER_AGENT = "agentdyno"
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_OWN_HEADERS = frozenset(
    [
        "accept",
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
        "user-agent",
    ]
)


class EndpointError(ValueError):
    """The endpoint cannot be used as named; the text is one sentence with the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One entry of the server's model list. Unknown is None."""

    model: str
    owner: str | None
    context_tokens: int | None  # the longest context that the server says it takes for this model
    vocabulary_tokens: int | None


@dataclass(frozen=True, slots=True, init=False)
class Endpoint:
    """Where to send requests: one base URL, or several equal servers among which agents are dealt by their number.

    A URL may end in `/v1` or not; `key_env` names the environment variable with the key. `affinity_headers` are
    header names that carry a stable id per play, for routers. `proxy`: see `replay.proxy`.
    """

    urls: tuple[str, ...]
    model: str
    key_env: str | None
    affinity_headers: tuple[str, ...]
    proxy: str | None
    proxy_key_env: str | None

    def __init__(
        self,
        urls: str | Sequence[str],
        model: str,
        key_env: str | None = None,
        affinity_headers: Sequence[str] = (),
        proxy: str | None = None,
        proxy_key_env: str | None = None,
    ) -> None:
        bases = tuple(_base_url(url) for url in ((urls,) if isinstance(urls, str) else urls))
        if not bases:
            raise EndpointError("no URL is named: give one like http://127.0.0.1:8000")
        if len(set(bases)) < len(bases):
            raise EndpointError(f"a URL is named twice: {', '.join(bases)}")
        for name in affinity_headers:
            if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
                raise EndpointError(f"{name!r} cannot carry a play's id: name a header like X-Session-ID")
        for field, value in (
            ("urls", bases),
            ("model", model),
            ("key_env", key_env),
            ("affinity_headers", tuple(affinity_headers)),
            ("proxy", proxy),
            ("proxy_key_env", proxy_key_env),
        ):
            object.__setattr__(self, field, value)
        if proxy is not None:
            with _as_endpoint_error():
                parse_proxy(proxy, None)

    @property
    def url(self) -> str:
        """The first base URL: the one that is asked what the server is."""
        return self.urls[0]

    def server_of(self, agent: int) -> int:
        """Which of the URLs all requests of an agent go to: its prefix cache is there."""
        return agent % len(self.urls)

    def key(self) -> str | None:
        """The key's value, read from the environment now; never kept, never printed."""
        if self.key_env is None:
            return None
        value = os.environ.get(self.key_env)
        if not value:
            raise EndpointError(f"the environment variable {self.key_env} is not set: export it, or name no key")
        if not _KEY.fullmatch(value):
            # Not quoted. A line end in it would begin a header of its own.
            raise EndpointError(
                f"the environment variable {self.key_env} holds no key: a line end, a space at an end or a character "
                "that no header can carry is in it"
            )
        return value

    def way(self) -> Proxy | None:
        """The proxy to go through, None for none; EndpointError where the environment names one and nobody decided."""
        with _as_endpoint_error():
            if self.proxy is not None:
                return parse_proxy(self.proxy, self.proxy_key_env)
            for url in self.urls:
                refuse_unsettled(url)
        return None

    def connect(self) -> Caller:
        """An open client for this endpoint; use it as an async context manager, on one event loop."""
        return Caller(self)


def _base_url(text: str) -> str:
    url = text.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    shown = repr(text) if not {"@", "?"} & set(text) else "the URL"  # what stands beside these may be a secret
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise EndpointError(f"{shown} is not a URL ({error}): give one like http://127.0.0.1:8000") from None
    if parsed.userinfo:
        raise EndpointError(
            "the URL holds credentials: give one like http://127.0.0.1:8000 and name a key by its environment variable"
        )
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query:
        raise EndpointError(f"{shown} is not the base URL of a server: give one like http://127.0.0.1:8000")
    return url


@contextlib.contextmanager
def _as_endpoint_error() -> Iterator[None]:
    try:
        yield
    except ProxyError as error:
        raise EndpointError(str(error)) from None


class Caller:
    """Sends requests to one endpoint over the collecting transport, control requests through `httpx.AsyncClient`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        headers = {"user-agent": USER_AGENT, "content-type": "application/json", "accept": "*/*"}
        key = endpoint.key()
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self._headers = httpx.Headers(headers)
        self._targets: dict[tuple[int, str], Target] = {}
        self._secrets = () if key is None or len(key) < SHORTEST_SECRET else (key,)
        self.transport = CollectingTransport(proxy=endpoint.way())
        # trust_env off: no proxy and no .netrc may come between us and what is measured.
        self._client = httpx.AsyncClient(transport=self.transport, trust_env=False, follow_redirects=False)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, fault, trace)

    def quoted(self, text: str) -> str:
        """What a server said, fit to be kept and printed: some repeat the key that they refuse."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text

    async def collect(
        self,
        path: str,
        body: bytes,
        wire: Wire,
        *,
        lane: object = None,
        server: int = 0,
        affinity: str | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """Post a JSON body to one of the servers and fill the wire, at the least cost.

        Raises httpx's transport errors; whatever happened until then is on `wire`. `lane` owns the connection;
        `affinity` is the play's id for the affinity headers.
        """
        target = self._targets.get((server, path))
        if target is None:
            target = self._targets[server, path] = Target.of(
                httpx.Request("POST", self.endpoint.urls[server] + path, headers=self._headers)
            )
        extra = b""
        if affinity is not None and self.endpoint.affinity_headers:
            extra = "".join([f"{name}: {affinity}\r\n" for name in self.endpoint.affinity_headers]).encode("ascii")
        await self.transport.collect(target, body, wire, lane=lane, extra=extra, timeouts=timeouts)

    async def post(self, path: str, body: bytes, *, timeout_s: float, server: int = 0) -> httpx.Response:
        """Post a JSON body and return the whole response; its extension `agentdyno.wire` has the reads."""
        return await self._client.post(
            self.endpoint.urls[server] + path, content=body, headers=self._headers, timeout=_whole(timeout_s)
        )

    async def get(self, path: str, *, timeout_s: float = CONTROL_TIMEOUT_S, server: int = 0) -> httpx.Response:
        """Send a control request to one of the servers and return the whole response."""
        return await self._client.get(
            self.endpoint.urls[server] + path, headers=self._headers, timeout=_whole(timeout_s)
        )

    async def reach(self, server: int = 0) -> tuple[ModelCard, ...] | None:
        """A server's model list, None where it keeps none. Raises `EndpointError` when it does not answer."""
        url = self.endpoint.urls[server]
        try:
            response = await self.get("/v1/models", server=server)
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

    async def reach_all(self) -> None:
        """See that every server answers; raises `EndpointError`."""
        for server in range(len(self.endpoint.urls)):
            await self.reach(server)

    async def check_model(self) -> ModelCard | None:
        """The model's card, None where the first server keeps no list.

        Raises `EndpointError` that names what a server has instead, or says that the servers are not alike.
        """
        first = await self._model_card(0)
        for server in range(1, len(self.endpoint.urls)):
            card = await self._model_card(server)
            if card is not None and first is not None and card.context_tokens != first.context_tokens:
                raise EndpointError(
                    f"the servers are not alike: {self.endpoint.model!r} takes {first.context_tokens} tokens at "
                    f"{self.endpoint.urls[0]} and {card.context_tokens} at {self.endpoint.urls[server]}; several "
                    "--url are for equal servers, before others put a router and name its URL"
                )
        return first

    async def _model_card(self, server: int) -> ModelCard | None:
        cards = await self.reach(server)
        if cards is None:
            return None
        for card in cards:
            if card.model == self.endpoint.model:
                return card
        names = ", ".join(repr(card.model[:MOST_OF_A_NAME]) for card in cards[:10]) + (", …" if len(cards) > 10 else "")
        hint = "name one of these"
        if len(self.endpoint.urls) > 1:
            hint = "several --url are for equal servers, before others put a router and name its URL"
        raise EndpointError(
            f"the server at {self.endpoint.urls[server]} has no model {self.endpoint.model!r}: it has {names}; {hint}"
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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
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
