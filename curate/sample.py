"""Drawing a sample: so many sessions, spread over bins of a quantity as the recipe asks, by a seeded hash."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from curate.features import Features
from curate.manifest import DatasetFault
from curate.recipe import Sample

DENOMINATOR = 100_000  # of shares: finer ones are not told apart


def draw(features: Sequence[Features], sample: Sample) -> dict[str, str]:
    """Sessions left out → reason, by id.

    Within a bin the sessions with the lowest hash of seed and id are kept, so the draw does not depend on the order
    of reading, and a session added later displaces few. Where a bin holds too few, the whole sample shrinks until
    every share holds. Raises DatasetFault when a bin that has a share is empty.
    """
    if sample.by is None:
        if sample.sessions is None:
            return {}
        left_out = sorted(features, key=lambda each: _order(sample, each))[sample.sessions :]
        return {each.session_id: f"over the {sample.sessions} sessions of the sample" for each in left_out}
    names = bins(sample)
    reasons: dict[str, str] = {}
    found: defaultdict[int, list[Features]] = defaultdict(list)
    for each in features:
        place = _bin(each.sample_value, sample)
        if each.sample_value is None:
            reasons[each.session_id] = f"{sample.by} unknown, and the sample is spread by it"
        elif place is None:
            reasons[each.session_id] = f"{sample.by} outside the bins of the sample"
        else:
            found[place].append(each)
    quotas = _quotas([len(found[place]) for place in range(len(names))], sample, names)
    for place, name in enumerate(names):
        for each in sorted(found[place], key=lambda each: _order(sample, each))[quotas[place] :]:
            reasons[each.session_id] = over_share(sample, name)
    return reasons


def over_share(sample: Sample, name: str) -> str:
    """Why a session goes of whose bin the sample has enough."""
    return f"over the share of {sample.by} {name}"


def bins(sample: Sample) -> tuple[str, ...]:
    """The bins in words, in the recipe's order."""
    return sample.values or tuple(f"{_number(low)}–{_number(high)}" for low, high in pairwise(sample.edges))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _order(sample: Sample, features: Features) -> tuple[bytes, str]:
    text = f"agentdyno sample\n{sample.seed}\n{features.session_id}"
    return hashlib.sha256(text.encode()).digest(), features.session_id


def _bin(value: float | str | None, sample: Sample) -> int | None:
    if value is None:
        return None
    if sample.values:
        return sample.values.index(value) if isinstance(value, str) and value in sample.values else None
    if isinstance(value, str):
        return None
    for place, (low, high) in enumerate(pairwise(sample.edges)):
        if low <= value < high or (value == high == sample.edges[-1]):
            return place
    return None


def _weights(shares: Sequence[float]) -> list[int]:
    """Shares as whole numbers, by what was meant: .3 of ten is three, and .333333 is a third."""
    written = [Fraction(str(share)).limit_denominator(DENOMINATOR) for share in shares]
    least = math.lcm(*(share.denominator for share in written))
    return [int(share * least) for share in written]


def _quotas(counts: Sequence[int], sample: Sample, names: Sequence[str]) -> list[int]:
    """Sessions to keep of each bin, for the largest total that the bins can fill.

    By the quota method (M. Balinski and H. Young, "The quota method of apportionment", 1975): every quota is its share
    of the total, rounded up or down, and none falls when the total grows, so more sessions never push others out.
    """
    quotas = [0] * len(counts)
    if not any(counts):
        return quotas
    weights = _weights(sample.shares)
    whole = sum(weights)
    for count, weight, name in zip(counts, weights, names, strict=True):
        if weight and not count:
            raise DatasetFault(
                f"the recipe's [sample] asks for a share of {sample.by} {name}, and no session is left with it; "
                "give it the share 0, choose other bins or loosen the filters"
            )
    total = min(count * whole // weight for count, weight in zip(counts, weights, strict=True) if weight)
    total = total if sample.sessions is None else min(total, sample.sessions)
    for size in range(1, total + 1):
        open_ = [place for place, weight in enumerate(weights) if quotas[place] * whole < weight * size]
        quotas[max(open_, key=lambda place: (Fraction(weights[place], quotas[place] + 1), -place))] += 1
    return quotas
