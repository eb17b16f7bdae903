"""One door to all importers, by the name of the format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from capture.importers.formats import find_format
from capture.importers.imported import Imported, ImportFault, native_id
from capture.trajectory import Trajectory


def read_imported(
    form: str, paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None
) -> Imported:
    """Read all of `paths` in the format `form` as one import; ImportFault when any of them is bad."""
    return find_format(form).read(paths, key, on_file=on_file)


def import_manifests(paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None) -> Imported:
    """AgentPerf Local's manifests as one import; without paths the replay inside the installed package."""
    from capture.importers.agentperf_local import SOURCE, import_agentperf_local

    found: dict[str, Trajectory] = {}
    for manifest in paths or (None,):
        for trajectory in import_agentperf_local(manifest, key, on_file=on_file).trajectories:
            if trajectory.session_id in found:
                raise ImportFault(
                    f"{manifest}: the task {trajectory.source_ref!r} is in another named manifest as well"
                )
            found[trajectory.session_id] = trajectory
    names = tuple(native_id(SOURCE, trajectory.source_ref) for trajectory in found.values())
    return Imported(trajectories=tuple(found.values()), native_ids=names, notes=())
