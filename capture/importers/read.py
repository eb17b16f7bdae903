"""One door to all importers, by the name of the format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from capture.importers.agentperf_local import SOURCE, import_agentperf_local
from capture.importers.imported import Imported, ImportFault, native_id
from capture.importers.weka import import_weka
from capture.trajectory import Trajectory


def read_imported(
    form: str, paths: Sequence[Path], key: bytes, *, on_file: Callable[[Path], None] | None = None
) -> Imported:
    """Read all of `paths` in the format `form` as one import; ImportFault when any of them is bad."""
    if form == "weka":
        return import_weka(paths, key, on_file=on_file)
    if form != "agentperf-local":
        raise ImportFault(f"no format {form!r}")
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
