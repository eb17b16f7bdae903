"""What a running recorder counts, and how Prometheus reads it: numbers only, no prompt, no path, no name of a person.

Text exposition format 0.0.4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

type _Samples = Iterable[tuple[tuple[tuple[str, str], ...], int]]


@dataclass(slots=True)
class Counters:
    """Written by the event loop's thread alone."""

    in_flight: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    exchanges: Counter[tuple[str, str]] = field(default_factory=Counter)  # (route, status class or how it was cut)
    by_person: Counter[str] = field(default_factory=Counter)  # keyed label of a person
    refused: Counter[str] = field(default_factory=Counter)  # why
    passed: Counter[str] = field(default_factory=Counter)  # what was relayed without a record

    def ended(self, route: str, status: int | None, outcome: str) -> None:
        """An exchange is over."""
        if outcome == "complete" and status is not None:
            self.exchanges[route, f"{status // 100}xx"] += 1
        else:
            self.exchanges[route, outcome] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """What is asked for at the moment of reading."""

    recording: bool
    paused: bool
    queue_bytes: int
    journal_bytes: int
    disk_free_bytes: int | None
    gaps: Counter[str]  # by kind
    overfull: bool = False  # the journal is larger than one should be, and the next one cannot be begun


def exposition(counters: Counters, gauges: Gauges) -> str:
    """All numbers as Prometheus reads them."""
    total = counters.exchanges.total()
    families: tuple[tuple[str, str, str, _Samples], ...] = (
        ("exchanges_total", "counter", "Exchanges that ended.", [((), total)]),
        (
            "route_exchanges_total",
            "counter",
            "Exchanges that ended, by route and by status class or by who cut them.",
            [((("route", route), ("result", result)), count) for (route, result), count in _sorted(counters.exchanges)],
        ),
        (
            "person_exchanges_total",
            "counter",
            "Exchanges by keyed label of a person.",
            _one(counters.by_person, "person"),
        ),
        ("exchanges_in_flight", "gauge", "Exchanges under way.", [((), counters.in_flight)]),
        ("request_bytes_total", "counter", "Bytes of request bodies.", [((), counters.request_bytes)]),
        ("response_bytes_total", "counter", "Bytes of response bodies.", [((), counters.response_bytes)]),
        ("gaps_total", "counter", "Places where recording lost something, by kind.", _one(gauges.gaps, "kind")),
        ("refused_total", "counter", "Requests that were refused, by reason.", _one(counters.refused, "reason")),
        ("passed_total", "counter", "What was relayed without a record, by reason.", _one(counters.passed, "reason")),
        ("recording", "gauge", "1 while what passes is recorded.", [((), int(gauges.recording and not gauges.paused))]),
        ("paused", "gauge", "1 while recording is paused on purpose.", [((), int(gauges.paused))]),
        ("queue_bytes", "gauge", "Bytes that wait for the disk.", [((), gauges.queue_bytes)]),
        ("journal_bytes", "gauge", "Size of all journals of the store.", [((), gauges.journal_bytes)]),
        (
            "disk_free_bytes",
            "gauge",
            "Free space where the store lies.",
            [] if gauges.disk_free_bytes is None else [((), gauges.disk_free_bytes)],
        ),
    )
    return "".join(line for family in families for line in _family(*family))


def _family(name: str, kind: str, sentence: str, samples: _Samples) -> Iterator[str]:
    yield f"# HELP agentdyno_{name} {sentence}\n# TYPE agentdyno_{name} {kind}\n"
    for labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
        yield f"agentdyno_{name}{{{inside}}} {value}\n" if inside else f"agentdyno_{name} {value}\n"


def _one(counts: Counter[str], label: str) -> _Samples:
    return [(((label, key),), count) for key, count in _sorted(counts)]


def _sorted[Key: (str, tuple[str, str])](counts: Counter[Key]) -> list[tuple[Key, int]]:
    return sorted(counts.items())


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
