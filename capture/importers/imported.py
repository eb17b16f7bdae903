"""What an importer hands over, and the fault with which it refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from capture.assemble import session_id
from capture.trajectory import Trajectory


class ImportFault(ValueError):
    """A file is not what its format promises. The sentence names file and place; nothing was imported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Sessions of one import, and what the importer decided or noticed, in words."""

    trajectories: tuple[Trajectory, ...]
    native_ids: tuple[str, ...]  # of the trajectories, in their order
    notes: tuple[str, ...]

    def with_key(self, key: bytes) -> Imported:
        """The same sessions under the ids of another store's key, for a store that is made after the reading."""
        renamed = (
            replace(trajectory, session_id=session_id(key, native))
            for trajectory, native in zip(self.trajectories, self.native_ids, strict=True)
        )
        return replace(self, trajectories=tuple(renamed))


def native_id(source: str, name: str) -> str:
    """What a session id is made from: importing the same session again gives the same id."""
    return f"{source}:{name}"


def json_fault(place: str, text: str, fault: ValueError) -> ImportFault:
    """The fault for text that is no JSON; says so when the end is missing."""
    if not isinstance(fault, json.JSONDecodeError):
        return ImportFault(f"{place}: no valid JSON: {fault}")
    cut = fault.pos >= len(text.rstrip()) - len("false") or fault.msg.startswith("Unterminated")
    advice = ": the file looks cut off, fetch it again" if cut else ""
    return ImportFault(f"{place}: no valid JSON at character {fault.pos} of {len(text)} ({fault.msg}){advice}")
