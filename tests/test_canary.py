"""A planted canary never reaches the output of a build: any string of a session, any encoding, any byte of it."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import html
import json
import quopri
import random
import string
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.secret import SecretFilter
from capture.trajectory import Trajectory
from curate.build import build_sources
from curate.recipe import Recipe, RedactionPolicy, Statistics
from curate.redact import Redactor
from curate.source import Source
from tests.sample_sessions import text_session

KEY = b"k" * 32
DRAWN = random.Random(20261120)


def drawn(length: int, letters: str = string.ascii_letters + string.digits) -> str:
    return "".join(DRAWN.choices(letters, k=length))


SEEN = "gateway.pass-of.the.canary"  # no shape, no name: known by its digest alone
SHAPED = f"ghp_{drawn(36)}"
NAMED = "Project Heliotrope"  # named by the recipe
PERSON = "zkanarienko"
CANARIES = {
    "seen": (SEEN, SEEN),
    "shape": (SHAPED, SHAPED),
    "named": (NAMED, NAMED),
    "person": (f"/home/{PERSON}/work", PERSON),
    "mail": (f"{PERSON}@kanari-works.io", f"{PERSON}@kanari"),
}
"""What is planted, and what of it must not be found."""


def coloured(text: str) -> str:
    return "".join(f"\x1b[3{at % 8}m{text[at : at + 5]}\x1b[0m" for at in range(0, len(text), 5))


def streamed(text: str) -> str:
    return "\n".join(json.dumps({"type": "delta", "delta": text[at : at + 5]}) for at in range(0, len(text), 5))


ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "in prose": lambda text: f"so I took {text} and it went on.",
    "assigned": lambda text: f"export VALUE='{text}'\n",
    "JSON": lambda text: json.dumps({"a": [f"x\n{text}"]}),
    "JSON four deep": lambda text: json.dumps(json.dumps(json.dumps(json.dumps({"a": f"\n{text} "})))),
    "coloured": coloured,
    "base64": lambda text: base64.b64encode(f"the value: {text} ends".encode()).decode(),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(f'{{"v":"{text}"}}'.encode()).decode().rstrip("="),
    "base64 in lines": lambda text: base64.encodebytes(
        f"{'some words ' * 9}\n{text}\n{'more ' * 20}".encode()
    ).decode(),
    "gzip in base64": lambda text: base64.b64encode(gzip.compress(f"{'words ' * 5}{text}".encode(), mtime=0)).decode(),
    "hexadecimal": lambda text: f"some text {text}".encode().hex(),
    "URL": lambda text: "GET /x?a=1&v=" + "".join(f"%{ord(letter):02X}" for letter in text) + "&b=2",
    "URL where it must": lambda text: f"https://x.example.org/a?v={quote(text, safe='')}&y=1",
    "HTML": lambda text: "<td>" + "".join(f"&#{ord(letter)};" for letter in text) + "</td>" + html.escape(f'"{text}"'),
    "escapes": lambda text: '"' + "".join(f"\\u{ord(letter):04x}" for letter in text) + '"',
    "quoted-printable": lambda text: quopri.encodestring(f"{'a=b ' * 17}{text}={text}".encode()).decode(),
    "numbered": lambda text: f"    11→a = 1\n    12→v: {text}\n    13→b\n",
    "diff": lambda text: f"@@ -1,2 +1,2 @@\n-v: old\n+v: {text}\n",
    "streamed": streamed,
}


def is_in(data: bytes, canary: str) -> list[str]:
    """In which forms the canary stands in bytes."""
    plain = canary.encode()
    forms = {
        "plain": plain,
        "URL": quote(canary, safe="").encode(),
        "all of it in URL": "".join(f"%{byte:02X}" for byte in plain).encode(),
        "hexadecimal": plain.hex().encode(),
        "escapes": "".join(f"\\u{byte:04x}" for byte in plain).encode(),
        "HTML": "".join(f"&#{byte};" for byte in plain).encode(),
        "coloured": coloured(canary).encode(),
        "reversed": plain[::-1],
        # Of base64, what does not depend on the neighbours, at each of three offsets.
        **{f"base64 {at}": base64.b64encode(b"." * at + plain)[4 if at else 0 : -8].rstrip(b"=") for at in range(3)},
        **{f"URL-safe {at}": base64.urlsafe_b64encode(b"." * at + plain)[4 if at else 0 : -8] for at in range(3)},
    }
    return [name for name, form in forms.items() if form and form in data]


@dataclass(frozen=True)
class Leaf:
    """One string of a session, by the way to it."""

    path: tuple[str | int, ...]

    def plant(self, value: Any, text: str, depth: int = 0) -> Any:
        if depth == len(self.path):
            return text
        step = self.path[depth]
        if isinstance(step, int):
            return (*value[:step], self.plant(value[step], text, depth + 1), *value[step + 1 :])
        return replace(value, **{step: self.plant(getattr(value, step), text, depth + 1)})


# Ours, and checked as such; the journal's record is never published.
NO_TEXT = {"session_id", "agent_path", "exchange_id"}


def leaves(value: Any, kind: Any = str, path: tuple[str | int, ...] = ()) -> Iterator[Leaf]:
    """Every string of a value that is not one of a few fixed words."""
    if isinstance(kind, typing.TypeAliasType):
        kind = kind.__value__
    if isinstance(value, str):
        if "Literal" not in str(kind):
            yield Leaf(path)
    elif isinstance(value, tuple):
        inner = typing.get_args(kind)
        for number, item in enumerate(value):
            yield from leaves(item, inner[0] if inner else str, (*path, number))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        for field in dataclasses.fields(value):
            if field.name not in NO_TEXT:
                yield from leaves(getattr(value, field.name), hints[field.name], (*path, field.name))


def full_session() -> Trajectory:
    """A session in which every string that may be missing is there."""
    session = text_session(turns=2)
    filled = {
        "error": "it failed",
        "stop": "stop",
        "effort": "high",
        "agent_type": "explore",
        "harness_version": "1.0",
        "tokenizer": "words",
        "license": "MIT",
        "mode": "forward",
        "contributor": "someone-else",
        "consent": "all agreed",
        "name": "tool",
    }

    def fill(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(fill(item) for item in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return replace(
                value,
                **{
                    field.name: filled[field.name]
                    if getattr(value, field.name) is None and field.name in filled
                    else fill(getattr(value, field.name))
                    for field in dataclasses.fields(value)
                },
            )
        return value

    full: Trajectory = fill(session)
    return replace(full, joined=("otel",))


SESSION = full_session()
LEAVES = tuple(leaves(SESSION))


def redactor() -> Redactor:
    wire = SecretFilter(KEY)
    wire.header("x-api-key", SEEN)
    return Redactor(seen=tuple(wire.take_new()), key=KEY, policy=RedactionPolicy(values=(NAMED,)))


REDACTOR = redactor()


def test_leaves_are_all_there() -> None:
    names = {str(leaf.path[-1]) for leaf in LEAVES}
    assert {"content", "reasoning_content", "arguments", "description", "parameters", "error", "model", "name"} <= names
    assert {"source_ref", "harness", "contributor", "consent", "agent_type", "stop", "api", "tool_call_id"} <= names


@settings(max_examples=150, deadline=None)
@given(
    leaf=st.sampled_from(LEAVES),
    encoding=st.sampled_from(sorted(ENCODINGS)),
    canary=st.sampled_from(sorted(CANARIES)),
    before=st.text(string.ascii_letters + " \n", max_size=20),
)
def test_no_string_of_a_session_keeps_a_canary(leaf: Leaf, encoding: str, canary: str, before: str) -> None:
    planted, kept = CANARIES[canary]
    session = leaf.plant(SESSION, f"{before} {ENCODINGS[encoding](planted)}")
    done = REDACTOR.trajectory(session)
    assert done.counts
    assert not is_in(repr(done.trajectory).encode(), kept)
    assert not is_in(repr(done.trajectory).encode().decode("unicode_escape").encode(), kept)
    assert REDACTOR.trajectory(done.trajectory).trajectory == done.trajectory


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Each file's name and bytes, and each value of its tables."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        yield f"name of {name}", name.encode()
        if path.is_file():
            yield name, path.read_bytes()
        if path.suffix == ".parquet":
            yield f"values of {name}", json.dumps(pq.read_table(path).to_pylist(), default=repr).encode()
            yield f"texts of {name}", repr(pq.read_table(path).to_pylist()).encode()
            yield f"metadata of {name}", repr(pq.read_metadata(path).metadata).encode()


@pytest.mark.parametrize("part", range(4))
def test_no_byte_of_a_dataset_holds_a_canary(tmp_path: Path, part: int) -> None:
    """Every string of a session holds every canary in one encoding; each session has another."""
    encodings = sorted(ENCODINGS)[part::4]
    sessions = []
    for number, encoding in enumerate(encodings):
        session = SESSION
        for leaf in LEAVES:
            if leaf.path[-1] not in ("tool_call_id", "id") and "tool_call_ids" not in leaf.path:
                session = leaf.plant(session, " ".join(ENCODINGS[encoding](text) for text, _ in CANARIES.values()))
        sessions.append(replace(session, session_id=f"session-{number}"))

    def read(found: list[str]) -> Iterator[Trajectory]:
        yield from sessions
        found.append(f"journal-{SHAPED}.sqlite: torn page")

    out = tmp_path / "dataset"
    source = Source(store_id="store-a", key=KEY, sessions=read, redactor=REDACTOR, rules="rules")
    recipe = Recipe(statistics=Statistics(plots=False), redaction=RedactionPolicy(values=(NAMED,)))
    build_sources([source], out, tokenizer="o200k_base", jobs=1, recipe=recipe)
    tables = list((out / "data").rglob("*.parquet"))
    assert sum(pq.read_table(path, columns=["session_id"]).num_rows for path in tables) > len(sessions)
    left = [
        (where, canary, forms)
        for where, data in everything(out)
        for canary, (_, kept) in CANARIES.items()
        if (forms := is_in(data, kept))
    ]
    assert not left
