"""The cases of a measurement: a value of each kind in each context that one meets such values in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from curate.corpus import (
    held_out_contexts,
    held_out_kinds,
    held_out_lookalikes,
    tuned_contexts,
    tuned_kinds,
    tuned_lookalikes,
)
from curate.corpus.context import Context
from curate.corpus.decidable import decidable
from curate.corpus.kind import Family, Kind, Planted


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One secret in one text."""

    family: str
    kind: Kind
    context: str
    kind_held_out: bool
    context_held_out: bool
    text: str
    secrets: tuple[str, ...]
    decidable: bool  # a reader could know; the others are counted apart


def families() -> Iterator[tuple[Family, bool]]:
    """Every family of kinds, and whether it is held out."""
    for family in tuned_kinds.FAMILIES:
        yield family, False
    for family in held_out_kinds.FAMILIES:
        yield family, True


def contexts() -> Iterator[tuple[Context, bool]]:
    """Every context, and whether it is held out."""
    for context in tuned_contexts.CONTEXTS:
        yield context, False
    for context in held_out_contexts.CONTEXTS:
        yield context, True


def harmless(seed: int, *, each: int) -> Iterator[tuple[str, str, str]]:
    """So many look-alikes of each class: its name, a passage, and the part of the passage that must stay."""
    for look_alike in (*tuned_lookalikes.LOOK_ALIKES, *held_out_lookalikes.LOOK_ALIKES):
        for number in range(each):
            yield look_alike.name, *look_alike.build(drawn(seed, look_alike.name, number))


def drawn(*names: object) -> Random:
    """A generator that depends on these names alone."""
    return Random(int.from_bytes(hashlib.sha256("/".join(map(str, names)).encode()).digest()[:8]))


def cases(seed: int, *, each: int = 2) -> Iterator[Case]:
    """So many cases of each kind in each of its contexts; a case depends on the seed and on its own names alone."""
    for family, kind_held_out in families():
        for kind in family.kinds:
            for context, context_held_out in contexts():
                if kind.form not in context.forms:
                    continue
                for number in range(each):
                    draw = drawn(seed, family.name, kind.name, context.name, number)
                    planted = Planted(kind=kind, variable=draw.choice(kind.variables), value=kind.draw(draw))
                    text = context.build(planted, draw)
                    yield Case(
                        family=family.name,
                        kind=kind,
                        context=context.name,
                        kind_held_out=kind_held_out,
                        context_held_out=context_held_out,
                        text=text,
                        secrets=planted.value.secrets,
                        decidable=decidable(text, planted),
                    )
