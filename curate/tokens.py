"""Exact token counts without a network: encodings found on this machine, each message counted once.

An encoding is tiktoken's own definition (pattern, special tokens, expected sha256) fed with a rank file that is
already here. It is never replaced by another one: a count by the wrong tokenizer looks right and is not.
Counting is tiktoken's. `bpe_openai` serves only as a carrier of the rank files: its binding counts 1.5 times as
fast, but takes 0.4 s and 130 MB to import, which counting each message once does not earn back.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import hashlib
import importlib.util
import json
import os
import re
import tempfile
import types
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capture.call import Message, Tool

if TYPE_CHECKING:
    import tiktoken

DEFAULT_ENCODING = "o200k_base"
OFFLINE_ENCODINGS = ("cl100k_base", "o200k_base", "o200k_harmony")
START, END = "<|im_start|>", "<|im_end|>"
DOWNLOAD_TIMEOUT_S = 10.0
_RECENT_CHARACTERS = 64_000_000  # text kept alive by the fast half of the memo

# tiktoken's matcher remembers every blank of a run to come back to, and panics at a million.
_LONG_BLANK = 200_000
_BLANK = r"[^\S\r\n\x1c-\x1f]"  # Unicode's white space, which the last four are to Python only
_BLANKS = re.compile(rf"(?<!{_BLANK}){_BLANK}{{{_LONG_BLANK},}}")

type Ranks = dict[bytes, int]


class EncodingUnavailable(LookupError):
    """The encoding's ranks are not on this machine and could not be fetched; the message names the remedy."""


def load_encoding(name: str) -> tiktoken.Encoding:
    """The named tiktoken encoding, from ranks whose sha256 is the one that tiktoken expects.

    Looks in TIKTOKEN_CACHE_DIR, then in installed packages that carry the rank files (none is imported), then in
    tiktoken's default cache, then asks the network. Raises `EncodingUnavailable`, or `ValueError` for an unknown name.
    """
    return _load(name)[0]


def ranks_sha256(name: str) -> str:
    """Hex sha256 of the rank file behind an encoding: it identifies the tokenizer in a dataset."""
    return _load(name)[1]


class TokenCounter:
    """Counts tokens of messages, tool lists and whole requests; each distinct message is tokenised once.

    The rendering is ChatML-like. A request is its tool block, if it offers tools, then its messages:

        <|im_start|>tools\\n{tool}\\n{tool}\\n<|im_end|>\\n
        <|im_start|>ROLE\\n[<think>\\nREASONING\\n</think>\\n\\n]CONTENT[\\n<tool_call>\\nCALL\\n</tool_call>]…<|im_end|>\\n

    ROLE is `role`, or `role name=NAME`. CALL is `{"name": NAME, "arguments": ARGUMENTS}` with the arguments verbatim; a
    tool is `{"type": "function", "function": {"name": …, "description": …, "parameters": PARAMETERS}}` with the schema
    verbatim. Ids, error flags and omitted bytes are not rendered, and no prompt for the answer is appended.
    The two markers count one token each and nothing is merged across them, so the sum over messages equals the count
    of the rendered whole. A marker that occurs inside a text is text, never a marker. Lone surrogates count as U+FFFD.
    """

    def __init__(self, encoding_name: str = DEFAULT_ENCODING) -> None:
        self.encoding_name = encoding_name
        self.encoding = load_encoding(encoding_name)
        self.sha = ranks_sha256(encoding_name)
        self._counts: dict[bytes, int] = {}
        # A session repeats the same message objects, or equal ones read anew: lookups that pass over no text, or hash
        # it once. Both keep the texts alive, so they are emptied before they hold a corpus in memory.
        self._same: dict[int, tuple[Message, int]] = {}
        self._recent: dict[tuple[object, ...], int] = {}
        self._recent_characters = 0

    def message(self, message: Message) -> int:
        """Tokens of one rendered message, its two markers included."""
        same = self._same.get(id(message))
        if same is not None:
            return same[1]
        calls = tuple((call.name, call.arguments) for call in message.tool_calls)
        key = (message.role, message.name, message.content, message.reasoning_content, calls)
        known = self._recent.get(key)
        if known is None:
            known = self._remember(key, message_body(message))
        self._same[id(message)] = message, known  # the message is kept, so nothing else gets its id
        self._kept(len(message.content))
        return known

    def tools(self, tools: Iterable[Tool]) -> int:
        """Tokens of the tool block; 0 where no tool is offered."""
        key = tuple((tool.name, tool.description, tool.parameters) for tool in tools)
        if not key:
            return 0
        known = self._recent.get(key)
        if known is None:
            known = self._remember(key, "".join(_tools_body(key)))
        return known

    def request(self, messages: Iterable[Message], tools: Iterable[Tool] = ()) -> int:
        """Tokens of a whole prompt: tool block and messages."""
        return self.tools(tools) + sum(map(self.message, messages))

    def text(self, text: str) -> int:
        """Tokens of a bare text, without markers."""
        return len(encode(self.encoding, text))

    def token_ids(self, body: str) -> list[int]:
        """Token ids of one rendered block; the markers get ids above the vocabulary."""
        start = self.encoding.max_token_value + 1
        return [start, *encode(self.encoding, body), start + 1, *self._newline]

    @functools.cached_property
    def _newline(self) -> list[int]:
        return self.encoding.encode_ordinary("\n")

    def _remember(self, key: tuple[object, ...], body: str) -> int:
        digest = hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        count = self._counts.get(digest)
        if count is None:
            count = len(encode(self.encoding, body)) + 2 + len(self._newline)
            self._counts[digest] = count
        self._recent[key] = count
        self._kept(len(body))
        return count

    def _kept(self, characters: int) -> None:
        self._recent_characters += 100 + characters  # some for the entry itself
        if self._recent_characters > _RECENT_CHARACTERS:
            self._recent.clear()
            self._same.clear()
            self._recent_characters = 0


def encode(encoding: tiktoken.Encoding, text: str) -> list[int]:
    """As `encode_ordinary`; a run of blanks that its matcher cannot hold is handed over as the piece it is."""
    ids: list[int] = []
    done = 0
    for run in _BLANKS.finditer(text) if len(text) >= _LONG_BLANK else ():
        end = run.end()
        if text[end : end + 1] in ("\r", "\n"):
            continue  # blanks and new lines are one piece, which the matcher finds without looking ahead
        end -= end < len(text)  # the last blank belongs to the word that follows
        ids += encoding.encode_ordinary(text[done : run.start()])
        ids += encoding._encode_single_piece(text[run.start() : end])
        done = end
    return ids + encoding.encode_ordinary(text[done:])


def message_body(message: Message) -> str:
    """What stands between a message's two markers, as `TokenCounter` defines it."""
    parts = [message.role, f" name={message.name}\n" if message.name else "\n"]
    if message.reasoning_content is not None:
        parts += ["<think>\n", message.reasoning_content, "\n</think>\n\n"]
    parts.append(message.content)
    for call in message.tool_calls:
        name = json.dumps(call.name, ensure_ascii=False)
        parts.append(f'\n<tool_call>\n{{"name": {name}, "arguments": {call.arguments}}}\n</tool_call>')
    return "".join(parts)


def tools_body(tools: Iterable[Tool]) -> str:
    """What stands between the tool block's two markers, as `TokenCounter` defines it."""
    return "".join(_tools_body((tool.name, tool.description, tool.parameters) for tool in tools))


def _tools_body(tools: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    yield "tools\n"
    for name, description, parameters in tools:
        head = json.dumps({"name": name, "description": description}, ensure_ascii=False)
        yield f'{{"type": "function", "function": {head[:-1]}, "parameters": {parameters}}}}}\n'


def render(messages: Iterable[Message], tools: Iterable[Tool] = (), *, start: str = START, end: str = END) -> str:
    """The whole request as one text, as `TokenCounter` defines it, for a reader or a check that encodes it at once."""
    tools = tuple(tools)
    bodies = [tools_body(tools)] if tools else []
    bodies += map(message_body, messages)
    return "".join(f"{start}{body}{end}\n" for body in bodies)


# Loading ----------------------------------------------------------------------------------------------------------


@functools.cache
def _load(name: str) -> tuple[tiktoken.Encoding, str]:
    import tiktoken

    shas: list[str] = []

    def load_ranks(url: str, expected_hash: str | None = None) -> Ranks:
        if expected_hash is None:
            raise EncodingUnavailable(f"tiktoken names no sha256 for {url}; install a released tiktoken")
        shas.append(expected_hash)
        return _parse_ranks(_find_ranks(name, url, expected_hash))

    return tiktoken.Encoding(**_definition(name, load_ranks)()), shas[-1]


def _definition(name: str, load_ranks: Callable[..., Ranks]) -> Callable[[], dict[str, Any]]:
    """tiktoken's own constructor of an encoding, bound to our way of loading rank files.

    Its functions are re-bound to a copy of their module's names, so tiktoken itself stays as it is and no pattern
    or special token is written down twice.
    """
    from tiktoken_ext import openai_public  # type: ignore[import-untyped]

    names: dict[str, Any] = {**vars(openai_public), "load_tiktoken_bpe": load_ranks}
    if name not in openai_public.ENCODING_CONSTRUCTORS or name == "gpt2":  # gpt2 has another file format
        known = ", ".join(sorted(set(openai_public.ENCODING_CONSTRUCTORS) - {"gpt2"}))
        raise ValueError(f"unknown encoding {name!r}; known: {known}")
    for constructor in openai_public.ENCODING_CONSTRUCTORS.values():
        names[constructor.__name__] = types.FunctionType(constructor.__code__, names, constructor.__name__)
    bound: Callable[[], dict[str, Any]] = names[openai_public.ENCODING_CONSTRUCTORS[name].__name__]
    return bound


def _parse_ranks(data: bytes) -> Ranks:
    """Ranks of a .tiktoken file: a base64 token and its rank on each line."""
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, data.splitlines()) if token}


def _find_ranks(name: str, url: str, sha256: str) -> bytes:
    wrong = []
    for path in _local_files(url):
        try:
            data = path.read_bytes()
            if path.suffix == ".gz":
                data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            continue
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        wrong.append(path)
    try:
        data = _download(url)
    except OSError as error:  # requests' errors are OSErrors
        spoiled = f" ({', '.join(map(str, wrong))} there has another sha256)" if wrong else ""
        raise EncodingUnavailable(
            f"the ranks of {name} are not on this machine{spoiled} and {url} does not answer "
            f"({type(error).__name__}): pip install bpe-openai, or set TIKTOKEN_CACHE_DIR to a folder "
            f"that holds them as {_cache_name(url)}"
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise EncodingUnavailable(f"{url} answered with other bytes than {name} has; try again on another network")
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next process a download, no more
        _store(_cache_folders()[0] / _cache_name(url), data)
    return data


def _local_files(url: str) -> Iterator[Path]:
    cached = _cache_name(url)
    folders = _cache_folders()
    yield from (folder / cached for folder in folders[:-1])
    for package, inside in (
        ("bpe_openai", Path("data", url.rpartition("/")[2] + ".gz")),
        ("llama_index", Path("core", "_static", "tiktoken_cache", cached)),
        ("litellm", Path("litellm_core_utils", "tokenizers", cached)),
    ):
        # find_spec of a top-level package finds its folder and runs none of its code.
        spec = importlib.util.find_spec(package)
        yield from (Path(place) / inside for place in (spec and spec.submodule_search_locations) or ())
    yield folders[-1] / cached


def _cache_folders() -> list[Path]:
    """Where tiktoken keeps downloads: the folder the user names, then the default one."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    return [*([Path(named)] if named else []), Path(tempfile.gettempdir(), "data-gym-cache")]


def _cache_name(url: str) -> str:
    return hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()


def _download(url: str) -> bytes:
    # tiktoken's own dependency; tiktoken sets no timeout, so a network that swallows packets would hang it.
    import requests

    response = requests.get(url, timeout=DOWNLOAD_TIMEOUT_S)
    response.raise_for_status()
    return bytes(response.content)


def _store(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
