"""Calls that two recorders of one store saw, because the agent reached the one through the other.

`capture run` takes a base URL that is already set for its upstream, and that may be a `capture serve`. Both then write
the same call: it counts once, as the recorder nearer to the agent saw it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import attrgetter

from capture.call import ModelCall
from capture.node import send_us

_SLACK_US = 20_000  # between two processes' readings of one wall clock


def counted_once(calls: Iterable[ModelCall]) -> list[ModelCall]:
    """The calls without copies; what only the recorder behind knows, whose call it was, stays."""
    calls = list(calls)
    kept_for = copies(calls)
    if not kept_for:
        return calls
    named = {kept_for[call.exchange_id]: call for call in calls if call.exchange_id in kept_for and call.contributor}
    return [
        replace(call, contributor=behind.contributor, consent=behind.consent)
        if (behind := named.get(call.exchange_id)) is not None and call.contributor is None
        else call
        for call in calls
        if call.exchange_id not in kept_for
    ]


def copies(calls: Iterable[ModelCall]) -> dict[str, str]:
    """Exchange id of every call that was seen nearer to the agent as well → that of the one to keep.

    Two recorders stand in a row where both hold one answer of the provider, the one's call inside the other's. What
    failed has no answer to know it by: between two such recorders the same prompt at the same time is enough.
    """
    calls = sorted(calls, key=attrgetter("exchange_id"))
    if len({_journal(call) for call in calls}) < 2:
        return {}
    found: dict[str, str] = {}
    rows: set[tuple[str, str]] = set()  # (journal nearer to the agent, journal behind it)
    by_response: defaultdict[str, list[ModelCall]] = defaultdict(list)
    failed: list[ModelCall] = []
    for call in calls:
        if call.response_id:
            by_response[call.response_id].append(call)
        else:
            failed.append(call)
    for same in by_response.values():
        for inner in same if len(same) > 1 else ():
            outer = next((call for call in same if _inside(inner, call) and call.exchange_id not in found), None)
            if outer is not None:
                found[inner.exchange_id] = outer.exchange_id
                rows.add((_journal(outer), _journal(inner)))
    if rows:
        found |= _failed_copies(failed, calls, rows)
    return found


def _failed_copies(
    failed: Iterable[ModelCall], calls: Iterable[ModelCall], rows: set[tuple[str, str]]
) -> Mapping[str, str]:
    by_prompt: defaultdict[tuple[object, ...], list[ModelCall]] = defaultdict(list)
    for call in calls:
        by_prompt[call.messages].append(call)
    found: dict[str, str] = {}
    taken: set[str] = set()
    for inner in failed:
        for outer in by_prompt[inner.messages]:
            row = (_journal(outer), _journal(inner))
            if row in rows and outer.exchange_id not in taken and _inside(inner, outer):
                found[inner.exchange_id] = outer.exchange_id
                taken.add(outer.exchange_id)
                break
    return found


def _journal(call: ModelCall) -> str:
    """Id of the journal that holds a call: the exchange's without its number."""
    return call.exchange_id.rpartition("-")[0]


def _inside(inner: ModelCall, outer: ModelCall) -> bool:
    """Whether a call may be the same as another one, seen by a recorder behind that one's."""
    if _journal(inner) == _journal(outer) or inner.messages != outer.messages or inner.model != outer.model:
        return False
    if None not in (inner.contributor, outer.contributor) and inner.contributor != outer.contributor:
        return False
    begins, ends = _span(inner)
    first, last = _span(outer)
    if (begins, inner.exchange_id) <= (first, outer.exchange_id):  # of two alike only one is behind the other
        return False
    return begins <= (first if last is None else last) and (ends is None or last is None or ends <= last + _SLACK_US)


def _span(call: ModelCall) -> tuple[int, int | None]:
    begins = send_us(call)
    return begins, None if call.t_end_ns is None else begins + (call.t_end_ns - call.t_send_ns) // 1000
