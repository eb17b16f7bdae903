"""A kind of secret, the shapes that its values are drawn from, and one value with its secret part."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

type Form = Literal["token", "password", "url", "connection", "block", "phrase"]
"""How a value reads: one word, a word made up by a person, a URL, a line of settings, several lines, several words."""

ALPHABETS = {
    "x": "0123456789abcdef",
    "X": "0123456789ABCDEF",
    "d": string.digits,
    "l": string.ascii_lowercase + string.digits,
    "u": string.ascii_uppercase + string.digits,
    "a": string.ascii_letters + string.digits,
    "w": string.ascii_letters + string.digits + "-_",
    "b": string.ascii_letters + string.digits + "+/",
    "A": string.ascii_uppercase,
    "s": string.ascii_lowercase,
    "5": "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
    "8": "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz",
}
FIELD = re.compile(r"([{\[])(uuid|[a-zA-Z0-9]:\d+(?:-\d+)?)[}\]]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A drawn value: the text as it stands in a file, and the parts of it that nobody else may learn."""

    text: str
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of secret and how it is called where people keep it."""

    name: str
    service: str  # as people write it in prose
    variables: tuple[str, ...]  # usual names, in capitals with underscores
    form: Form
    draw: Callable[[Random], Value]
    scanner_rule: bool  # betterleaks 2.0 has a rule for this very kind, by its public list


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Kinds that one rule, or one idea of a rule, would find together."""

    name: str
    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A value of a kind under one of its usual names, ready to be put into a context."""

    kind: Kind
    variable: str
    value: Value

    @property
    def text(self) -> str:
        return self.value.text

    @property
    def lines(self) -> list[str]:
        return self.value.text.split("\n")

    @property
    def snake(self) -> str:
        return self.variable.lower()

    @property
    def kebab(self) -> str:
        return self.snake.replace("_", "-")

    @property
    def dotted(self) -> str:
        return self.snake.replace("_", ".")

    @property
    def camel(self) -> str:
        first, *rest = self.snake.split("_")
        return first + "".join(word.capitalize() for word in rest)

    @property
    def pascal(self) -> str:
        return "".join(word.capitalize() for word in self.snake.split("_"))


def some(draw: Random, alphabet: str, count: int) -> str:
    """That many characters of one of the named alphabets."""
    return "".join(draw.choices(ALPHABETS[alphabet], k=count))


def uuid(draw: Random) -> str:
    """A version 4 UUID."""
    digits = some(draw, "x", 32)
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{draw.choice('89ab')}{digits[17:20]}-{digits[20:]}"


def whole(text: str) -> Value:
    """A value that is secret from its first character to its last."""
    return Value(text=text, secrets=(text,))


def shape(template: str) -> Callable[[Random], Value]:
    """A generator of values of a shape.

    `{x:32}` is 32 secret characters of alphabet x, `{a:8-12}` 8 to 12, `{uuid}` a UUID; the same in square brackets is
    drawn but public, such as an account's number. The secret goes from the first secret field to the last.
    """

    def draw(random: Random) -> Value:
        parts: list[str] = []
        length, start, end, at = 0, None, 0, 0
        for field in FIELD.finditer(template):
            literal = template[at : field.start()]
            what = field[2]
            if what == "uuid":
                drawn = uuid(random)
            else:
                alphabet, _, size = what.partition(":")
                low, _, high = size.partition("-")
                drawn = some(random, alphabet, random.randint(int(low), int(high or low)))
            parts += [literal, drawn]
            length += len(literal)
            if field[1] == "{":
                start = length if start is None else start
                end = length + len(drawn)
            length += len(drawn)
            at = field.end()
        text = "".join(parts) + template[at:]
        assert start is not None, f"no secret field in {template!r}"
        return Value(text=text, secrets=(text[start:end],))

    return draw


def token(name: str, service: str, variables: str, template: str, *, rule: bool, form: Form = "token") -> Kind:
    """A kind whose values follow one template."""
    return Kind(
        name=name,
        service=service,
        variables=tuple(variables.split()),
        form=form,
        draw=shape(template),
        scanner_rule=rule,
    )


def drawn_kind(
    name: str, service: str, variables: str, draw: Callable[[Random], Value], *, rule: bool, form: Form
) -> Kind:
    """A kind with a generator of its own."""
    return Kind(name=name, service=service, variables=tuple(variables.split()), form=form, draw=draw, scanner_rule=rule)
