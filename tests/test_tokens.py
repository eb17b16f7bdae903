"""Token counts: the loader never swaps an encoding, and counting once equals counting the whole."""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

import curate.tokens
from capture.call import Message, Tool, ToolUse
from curate.tokens import (
    END,
    OFFLINE_ENCODINGS,
    START,
    EncodingUnavailable,
    TokenCounter,
    load_encoding,
    message_body,
    ranks_sha256,
    render,
)

O200K_URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
O200K_CACHE_NAME = "fb374d419588a4632f3f557e76b4b70aebbca790"


@pytest.fixture(scope="module")
def counter() -> TokenCounter:
    return TokenCounter("o200k_base")


@pytest.fixture
def fresh_loader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """A process that has loaded no encoding, with an empty default cache and a network that refuses."""
    curate.tokens._load.cache_clear()
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # discard: nobody listens
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    yield monkeypatch
    curate.tokens._load.cache_clear()


def no_carriers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)


def o200k_file() -> bytes:
    spec = importlib.util.find_spec("bpe_openai")
    assert spec is not None
    assert spec.submodule_search_locations
    return gzip.decompress(Path(spec.submodule_search_locations[0], "data", "o200k_base.tiktoken.gz").read_bytes())


@pytest.mark.parametrize("name", OFFLINE_ENCODINGS)
def test_offline_encoding_is_tiktokens_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # tiktoken itself reads the same bytes, so that its own constructor and sha256 check are the judge.
    data = o200k_file()
    spec = importlib.util.find_spec("bpe_openai")
    assert spec is not None
    cl100k = Path(spec.submodule_search_locations[0], "data", "cl100k_base.tiktoken.gz")  # type: ignore[index]
    (tmp_path / O200K_CACHE_NAME).write_bytes(data)
    (tmp_path / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4").write_bytes(gzip.decompress(cl100k.read_bytes()))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    theirs, ours = tiktoken.get_encoding(name), load_encoding(name)
    assert (ours.name, ours.n_vocab, ours._pat_str) == (theirs.name, theirs.n_vocab, theirs._pat_str)
    assert ours._special_tokens == theirs._special_tokens
    assert ours._mergeable_ranks == theirs._mergeable_ranks


def test_carrier_is_found_without_importing_it(fresh_loader: pytest.MonkeyPatch) -> None:
    fresh_loader.delitem(sys.modules, "bpe_openai", raising=False)
    assert load_encoding("o200k_base").n_vocab == 200_019
    assert ranks_sha256("o200k_base") == ranks_sha256("o200k_harmony") == O200K_SHA256
    assert "bpe_openai" not in sys.modules
    assert "litellm" not in sys.modules


def test_cache_folder_comes_first_and_needs_no_carrier(fresh_loader: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert hashlib.sha1(O200K_URL.encode()).hexdigest() == O200K_CACHE_NAME
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / O200K_CACHE_NAME).write_bytes(o200k_file())
    no_carriers(fresh_loader)
    fresh_loader.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    assert load_encoding("o200k_base").encode("hello world") == [24912, 2375]


def test_spoiled_cache_file_is_passed_over(fresh_loader: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / O200K_CACHE_NAME).write_bytes(o200k_file()[:-1])
    fresh_loader.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert load_encoding("o200k_base").encode("hello world") == [24912, 2375]
    curate.tokens._load.cache_clear()
    no_carriers(fresh_loader)
    with pytest.raises(EncodingUnavailable, match="has another sha256"):
        load_encoding("o200k_base")


def test_nothing_at_hand_says_what_to_do(fresh_loader: pytest.MonkeyPatch) -> None:
    no_carriers(fresh_loader)
    with pytest.raises(EncodingUnavailable, match=r"pip install bpe-openai, or set TIKTOKEN_CACHE_DIR .* fb374d41"):
        load_encoding("o200k_base")


def test_unknown_encoding_names_the_known() -> None:
    with pytest.raises(ValueError, match="known: cl100k_base, o200k_base"):
        load_encoding("o300k")


@functools.cache
def registered(base: tiktoken.Encoding, start: str, end: str) -> tiktoken.Encoding:
    """The encoding with markers of its own, which takes 0.2 s."""
    return tiktoken.Encoding(
        "chatml",
        pat_str=base._pat_str,
        mergeable_ranks=base._mergeable_ranks,
        special_tokens={start: base.max_token_value + 1, end: base.max_token_value + 2},
    )


def encode_whole(counter: TokenCounter, messages: list[Message], tools: list[Tool]) -> int:
    """Count of the request as one text, its markers registered under names that no text in it holds."""
    bodies = "".join(map(message_body, messages)) + "".join(f"{t.name}{t.description}{t.parameters}" for t in tools)
    start, end = START, END
    while start in bodies or end in bodies:
        start, end = start.replace("|>", "x|>"), end.replace("|>", "x|>")
    whole = render(messages, tools, start=start, end=end)
    return len(
        registered(counter.encoding, start, end).encode(whole, allowed_special={start, end}, disallowed_special=())
    )


TEXTS = st.one_of(
    st.text(st.characters(), max_size=60),  # lone surrogates included
    st.text(" \n\t\r'sa1<|_é漢🙂", max_size=40),
    st.lists(st.sampled_from([START, END, "<|endoftext|>", "<|im_", "\n", " ", "\n\n", "word"]), max_size=8).map(
        "".join
    ),
)
CALLS = st.builds(ToolUse, id=TEXTS, name=TEXTS, arguments=TEXTS)
MESSAGES = st.builds(
    Message,
    role=st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
    content=TEXTS,
    reasoning_content=st.none() | TEXTS,
    name=st.none() | TEXTS,
    tool_call_id=st.none() | TEXTS,
    tool_calls=st.lists(CALLS, max_size=2).map(tuple),
)
TOOLS = st.builds(Tool, name=TEXTS, description=TEXTS, parameters=TEXTS)


# An example with other markers builds a tiktoken encoding of its own.
@settings(max_examples=60, deadline=None)
@given(messages=st.lists(MESSAGES, max_size=12), tools=st.lists(TOOLS, max_size=3))
def test_sum_over_messages_equals_the_whole(counter: TokenCounter, messages: list[Message], tools: list[Tool]) -> None:
    assert counter.request(messages, tools) == encode_whole(counter, messages, tools)
    assert counter.request(messages, tools) == counter.request(messages, tools)  # from the memo


@pytest.mark.parametrize(
    "message",
    [
        Message(role="user", content=""),
        Message(role="assistant", content="", reasoning_content=""),
        Message(role="tool", content="x\n\n\n", tool_call_id="c1", is_error=True),
        Message(role="user", content=f"say {START}system\nobey{END}\n", name="ann"),
        Message(role="assistant", content="", tool_calls=(ToolUse(id="1", name="sh", arguments='{"a": "\\ud800"}'),)),
        Message(role="user", content="\ud83d and \ud83d\ude00"),
    ],
    ids=["empty", "empty reasoning", "tool result", "markers as text", "call", "lone surrogates"],
)
def test_one_message(counter: TokenCounter, message: Message) -> None:
    assert counter.message(message) == encode_whole(counter, [message], [])
    assert counter.token_ids(message_body(message)).__len__() == counter.message(message)


def test_ids_and_clocks_do_not_count(counter: TokenCounter) -> None:
    live = Message(
        role="assistant", content="", tool_calls=(ToolUse(id="a", name="f", arguments="{}", t_emitted_ns=5),)
    )
    echoed = Message(role="assistant", content="", tool_calls=(ToolUse(id="b", name="f", arguments="{}"),))
    assert counter.message(live) == counter.message(echoed)


def test_rendering_is_the_documented_one() -> None:
    messages = [
        Message(role="user", content="hi", name="ann"),
        Message(
            role="assistant",
            content="ok",
            reasoning_content="hm",
            tool_calls=(ToolUse(id="1", name="sh", arguments='{"c": 1}'),),
        ),
    ]
    assert render(messages, [Tool(name="sh", description="run", parameters="{}")]) == (
        '<|im_start|>tools\n{"type": "function", "function": {"name": "sh", "description": "run", "parameters": {}}}\n'
        "<|im_end|>\n"
        "<|im_start|>user name=ann\nhi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\nok"
        '\n<tool_call>\n{"name": "sh", "arguments": {"c": 1}}\n</tool_call><|im_end|>\n'
    )


def test_no_tools_no_tokens(counter: TokenCounter) -> None:
    assert counter.tools(()) == 0
    assert counter.request(()) == 0


@pytest.mark.parametrize("name", ["o200k_base", "cl100k_base"])
@pytest.mark.parametrize("after", ["x", " x", "1", ".", "\n", "\n x", "\x1cx", ""])
def test_a_run_of_blanks_is_counted_as_tiktoken_does(name: str, after: str) -> None:
    counter = TokenCounter(name)
    text = f"a\n\tb{' ' * 200_000}\t{after}{' ' * 200_001}c"
    assert counter.token_ids(text)[1:-2] == counter.encoding.encode_ordinary(text)


def test_a_run_of_blanks_that_tiktoken_panics_at_is_counted(counter: TokenCounter) -> None:
    assert counter.text(" " * 1_500_000) == counter.text(" " * 1_500_000 + "x") > 1000
    assert counter.text("x" + " " * 1_500_000 + "\n") > 1000
