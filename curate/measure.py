"""Measure redaction: what share of planted secrets it removes, what it takes from clean text, how fast, and where.

Secrets come from `curate.corpus`. Each case is one text given to `Redactor.text`: the exact values that a proxy saw,
which redaction also removes, are not given, so the share is that of rules alone. CPU time is that of the whole process,
with the threads of the scanner.
"""

from __future__ import annotations

import platform
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Protocol

from curate.corpus import FIRST_MET, VERSION, held_out_contexts, held_out_kinds, held_out_lookalikes
from curate.corpus.cases import Case, cases, harmless
from curate.corpus.judge import survivor
from curate.interval import garwood, resampled, wilson
from curate.measured import FORMAT, MeasuredRedaction, Rate
from curate.recipe import RedactionPolicy

LOOK_ALIKES_EACH = 60
TIMED_BYTES = 3_000_000
SOURCE_SUFFIXES = (
    ".c .cc .cpp .cs .css .go .h .hpp .html .java .js .json .kt .lua .md .mjs .php .pl .py .pyi .rb .rs .rst .scala "
    ".sh .sql .swift .toml .ts .tsx .txt .xml .yaml .yml"
)
LARGEST_CLEAN_FILE = 2_000_000


class Redacts(Protocol):
    """What is measured: `curate.redact.Redactor`, or another tool behind the same face."""

    @property
    def rules(self) -> str: ...

    def text(self, text: str) -> tuple[str, Counter[str]]: ...


type RedactorFactory = Callable[[RedactionPolicy], Redacts]


class NothingToMeasure(ValueError):
    """A folder of clean text holds none that can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanText:
    """Text without secrets, and what it is."""

    source: str
    texts: tuple[str, ...]

    @property
    def megabytes(self) -> float:
        return sum(len(text.encode("utf-8", "surrogateescape")) for text in self.texts) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one case."""

    case: Case
    redacted: str
    survived: str | None  # the first stretch of the secret found in the output


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseAlarm:
    """A look-alike that was taken for a secret."""

    name: str
    text: str
    redacted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanFindings:
    """What redaction took from clean text."""

    secret: Counter[str]
    identity: Counter[str]
    characters: int
    characters_lost: int
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A measurement with the cases behind it."""

    measured: MeasuredRedaction
    outcomes: tuple[Outcome, ...]
    false_alarms: tuple[FalseAlarm, ...]
    clean: CleanFindings


def standard_library() -> CleanText:
    """The Python sources of the running interpreter's standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.relative_to(root).parts)
    texts = tuple(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    source = f"standard library of Python {platform.python_version()}, {len(texts):,} files"
    return CleanText(source=source, texts=texts)


def clean_folder(folder: Path) -> CleanText:
    """Source and documentation files below a folder; raises NothingToMeasure when there are none."""
    texts: list[str] = []
    suffixes = frozenset(SOURCE_SUFFIXES.split())
    for path in sorted(folder.rglob("*")):
        if path.suffix in suffixes and path.is_file() and path.stat().st_size <= LARGEST_CLEAN_FILE:
            try:
                texts.append(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError):
                continue
    if not any(texts):
        raise NothingToMeasure(f"{folder} holds no text file of a known kind: name a folder of source code")
    return CleanText(source=f"folder {folder.resolve().name}, {len(texts):,} files", texts=tuple(texts))


def measure(
    factory: RedactorFactory,
    seed: int,
    clean: CleanText,
    identity_kinds: frozenset[str],
    *,
    policy: RedactionPolicy | None = None,
    each: int = 2,
    planted: Iterable[Case] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Measurement:
    """Plant secrets, redact, judge; redact clean text and count what is taken; time it.

    `each` is the number of cases of each kind in each context; `planted` replaces them by cases of the caller's. Raises
    ValueError when the clean text is empty or a cell of the split is.
    """
    policy = RedactionPolicy() if policy is None else policy
    say("clean text")
    findings = clean_findings(factory(policy), clean.texts, identity_kinds)
    say("where the time goes")
    where = where_time_goes(factory, policy, clean.texts)
    say("planted secrets")
    redactor = factory(policy)
    every = tuple(outcomes_of(redactor, cases(seed, each=each) if planted is None else planted))
    outcomes = tuple(outcome for outcome in every if outcome.case.decidable)
    undecidable = [outcome for outcome in every if not outcome.case.decidable]
    say("look-alikes")
    alarms, alarm_rates = false_alarms(redactor, seed, identity_kinds)
    measured = MeasuredRedaction(
        format=FORMAT,
        rules=redactor.rules,
        corpus=VERSION,
        seed=seed,
        unseen=removed(outcomes, kind_held_out=True, context_held_out=True),
        tuned=removed(outcomes, kind_held_out=False, context_held_out=False),
        by_family=removed_by(outcomes, lambda case: case.family),
        by_context=removed_by(outcomes, lambda case: case.context),
        held_out_families=tuple(family.name for family in held_out_kinds.FAMILIES),
        held_out_contexts=tuple(context.name for context in held_out_contexts.CONTEXTS),
        clean_source=clean.source,
        clean=garwood(findings.secret.total(), clean.megabytes),
        clean_identity=garwood(findings.identity.total(), clean.megabytes),
        mb_per_s=clean.megabytes / findings.cpu_s,
        where_time_goes=where,
        unseen_resampled=resampled(
            table(o for o in outcomes if o.case.kind_held_out and o.case.context_held_out), seed
        ),
        unseen_kinds=removed(outcomes, kind_held_out=True, context_held_out=False),
        unseen_contexts=removed(outcomes, kind_held_out=False, context_held_out=True),
        unseen_without_scanner_rule=removed(
            [outcome for outcome in outcomes if not outcome.case.kind.scanner_rule],
            kind_held_out=True,
            context_held_out=True,
        ),
        undecidable=wilson(sum(outcome.survived is None for outcome in undecidable), len(undecidable))
        if undecidable
        else None,
        unseen_with_undecidable=removed(every, kind_held_out=True, context_held_out=True),
        false_alarms=alarm_rates,
        held_out_look_alikes=tuple(each.name for each in held_out_lookalikes.LOOK_ALIKES),
        clean_characters_lost=findings.characters_lost / findings.characters,
        first_met=FIRST_MET,
    )
    return Measurement(measured=measured, outcomes=outcomes, false_alarms=alarms, clean=findings)


def outcomes_of(redactor: Redacts, planted: Iterable[Case]) -> Iterable[Outcome]:
    """Redact each case and look for what is left of its secret."""
    for case in planted:
        redacted, _ = redactor.text(case.text)
        yield Outcome(case=case, redacted=redacted, survived=survivor(redacted, case.secrets))


def removed(outcomes: Sequence[Outcome], *, kind_held_out: bool, context_held_out: bool) -> Rate:
    """The share of secrets removed in one cell of the split."""
    cell = [o for o in outcomes if (o.case.kind_held_out, o.case.context_held_out) == (kind_held_out, context_held_out)]
    return wilson(sum(outcome.survived is None for outcome in cell), len(cell))


def removed_by(outcomes: Iterable[Outcome], name: Callable[[Case], str]) -> dict[str, Rate]:
    """The share of secrets removed, by a name of the case, in the corpus' order."""
    found: Counter[str] = Counter()
    n: Counter[str] = Counter()
    for outcome in outcomes:
        n[name(outcome.case)] += 1
        found[name(outcome.case)] += outcome.survived is None
    return {each: wilson(found[each], n[each]) for each in n}


def table(outcomes: Iterable[Outcome]) -> dict[tuple[str, str], tuple[int, int]]:
    """(family, context) → secrets removed, cases."""
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for outcome in outcomes:
        cell = counts[outcome.case.family, outcome.case.context]
        cell[0] += outcome.survived is None
        cell[1] += 1
    return {name: (found, n) for name, (found, n) in counts.items()}


def false_alarms(
    redactor: Redacts, seed: int, identity_kinds: frozenset[str]
) -> tuple[tuple[FalseAlarm, ...], dict[str, Rate]]:
    """Look-alikes of which a secret was made, and the share by class; a pseudonym is no false alarm of a secret."""
    alarms: list[FalseAlarm] = []
    wrong: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for name, text, keep in harmless(seed, each=LOOK_ALIKES_EACH):
        redacted, counts = redactor.text(text)
        tried[name] += 1
        if keep not in redacted and any(kind not in identity_kinds for kind in counts):
            wrong[name] += 1
            alarms.append(FalseAlarm(name=name, text=text, redacted=redacted))
    return tuple(alarms), {name: wilson(wrong[name], tried[name]) for name in tried}


def clean_findings(redactor: Redacts, texts: Sequence[str], identity_kinds: frozenset[str]) -> CleanFindings:
    """Redact clean texts; every finding is a mistake, or somebody's name."""
    secret: Counter[str] = Counter()
    identity: Counter[str] = Counter()
    lost = 0
    cpu_ns = 0
    redactor.text("warm up: rules are compiled at their first use")
    for text in texts:
        start = time.process_time_ns()
        redacted, counts = redactor.text(text)
        cpu_ns += time.process_time_ns() - start
        for kind, number in counts.items():
            (identity if kind in identity_kinds else secret)[kind] += number
        lost += characters_lost(text, redacted)
    return CleanFindings(
        secret=secret,
        identity=identity,
        characters=sum(map(len, texts)),
        characters_lost=lost,
        cpu_s=cpu_ns / 1e9,
    )


def characters_lost(text: str, redacted: str) -> int:
    """Characters of a text that are not in its redacted form: in each changed line, between what is the same."""
    if text == redacted:
        return 0
    before, after = text.split("\n"), redacted.split("\n")
    if len(before) == len(after):
        pairs = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    else:
        steps = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        pairs = [("\n".join(before[a:b]), "\n".join(after[c:d])) for what, a, b, c, d in steps if what != "equal"]
    return sum(_middle(old, new) for old, new in pairs)


def _middle(old: str, new: str) -> int:
    """Characters of one between the common head and the common tail of two texts."""
    most = min(len(old), len(new))
    head = next((at for at in range(most) if old[at] != new[at]), most)
    tail = next((at for at in range(most - head) if old[-1 - at] != new[-1 - at]), most - head)
    return len(old) - head - tail


def where_time_goes(factory: RedactorFactory, policy: RedactionPolicy, texts: Sequence[str]) -> dict[str, float]:
    """Shares of CPU time: the scanner's and identity's are what is saved by switching each off; the rest is our rules'.

    Taken on the first megabytes of the texts, spread evenly, the fastest of three passes of each.
    """
    sample = _spread(texts, TIMED_BYTES)
    whole = _fastest(factory, policy, sample)
    shares: dict[str, float] = {}
    for name, without in (
        ("scanner", replace(policy, scanner=False)),
        ("identity", replace(policy, identity=False)),
    ):
        if without != policy:
            shares[name] = max(0.0, 1 - _fastest(factory, without, sample) / whole)
    shares["own rules and decoding"] = max(0.0, 1 - sum(shares.values()))
    return {name: round(share, 3) for name, share in shares.items()}


def _spread(texts: Sequence[str], most: int) -> list[str]:
    """Every so many-th text, so that about that many characters are taken."""
    step = max(1, round(sum(map(len, texts)) / most))
    return list(texts[::step])


def _fastest(factory: RedactorFactory, policy: RedactionPolicy, texts: Sequence[str]) -> float:
    """CPU seconds for the texts: the least of three passes, each with a redactor that has seen nothing yet."""
    best = float("inf")
    for _ in range(3):
        redactor = factory(policy)
        redactor.text("warm up: rules are compiled at their first use")
        start = time.process_time_ns()
        for text in texts:
            redactor.text(text)
        best = min(best, (time.process_time_ns() - start) / 1e9)
    return best
