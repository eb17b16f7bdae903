"""Splits: which part of the dataset a session belongs to, told by the session alone."""

from __future__ import annotations

import hashlib
from itertools import accumulate

from capture.trajectory import Trajectory
from curate.labels import Label
from curate.recipe import Splits

UNKNOWN = ""  # group of the sessions that do not tell


def group_of(trajectory: Trajectory, label: Label, splits: Splits) -> str:
    """What must not be torn apart: the session itself, or what it shares with others; `UNKNOWN` if it does not tell."""
    match splits.by:
        case "session":
            return trajectory.session_id
        case "contributor":
            return label.contributor or trajectory.contributor or UNKNOWN
        case "task_id":
            return label.task_id or UNKNOWN
        case "harness":
            return UNKNOWN if trajectory.harness == "unknown" else trajectory.harness


def split_of(group: str, splits: Splits) -> str:
    """The split of a group: a seeded hash in [0, 1) against the summed shares, names in alphabetical order.

    The same group lands in the same split whatever else the dataset holds. Who does not tell goes with the largest
    share: in the others every group is known.
    """
    names = sorted(splits.shares)
    if group == UNKNOWN:
        return max(names, key=lambda name: splits.shares[name])
    digest = hashlib.sha256(f"agentdyno split\n{splits.seed}\n{group}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64 * sum(splits.shares.values())
    for name, upto in zip(names, accumulate(splits.shares[name] for name in names), strict=True):
        if place < upto:
            return name
    return names[-1]
