"""NVIDIA GPUs by NVML: energy counters (mJ since the driver was loaded) and power gauges (mW) of every scope.

A GPU may answer for itself, for its memory (a part of it) and for the module that it shares with a CPU. Each is a
device of its own: `<UUID>`, `<UUID>/memory`, `<UUID>/module`. Devices are known by UUID: an NVML index is not a CUDA
index. Each value of nvmlDeviceGetFieldValues has its own return code, and a call can succeed while every value failed,
so each reading carries its own flag. See NVML's reference for the field identifiers NVML_FI_DEV_POWER_AVERAGE (a mean
of 1 s), NVML_FI_DEV_POWER_INSTANT, NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION and NVML_FI_DEV_ENERGY, and for scopeId.

The only module that imports pynvml.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref
from dataclasses import dataclass, replace
from typing import Any, Literal

import pynvml

from curate.words import printable
from replay.power.characterise import (
    LONGEST_S,
    PACE_S,
    SHORTEST_S,
    Gpu,
    GpuDomain,
    Reading,
    Trace,
    describe_gpu,
    watch,
)
from replay.power.source import DeviceState, PowerFault, PowerSample, SampleFlag, SourceInfo

type Handle = Any  # an opaque ctypes pointer
type _Answer = tuple[float | None, SampleFlag]  # joules or watts, or why there are none

_nvml: Any = pynvml  # the binding ships no types

# A GPU that fell off the bus, and one that must be reset; of a whole call also one that the driver no longer shows.
_LOST = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)
_GONE = (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_GPU_NOT_FOUND)
# What a library answers whose driver was unloaded, or loaded again, under it.
_STALE = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
)
_ABSENT = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT)

_MEMBER = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}
_BLANK = (2**32 - 1, 2**64 - 1)  # NVML_VALUE_NOT_AVAILABLE as an unsigned number


@dataclass(frozen=True, slots=True)
class _Field:
    """A value of nvmlDeviceGetFieldValues."""

    number: int
    scope: int


@dataclass(frozen=True, slots=True)
class _Call:
    """A function that gives one value, for a library whose fields do not."""

    name: str


type _Way = _Field | _Call

_GPU, _MODULE, _MEMORY = pynvml.NVML_POWER_SCOPE_GPU, pynvml.NVML_POWER_SCOPE_MODULE, pynvml.NVML_POWER_SCOPE_MEMORY
_PLAIN_GAUGE = _Call("nvmlDeviceGetPowerUsage")  # averages or not, by the kind of chip
# Field 83 is older than 191, which repeats it for the GPU and has scopes. What either covers is found by its slope.
_WAYS: Mapping[Reading, tuple[_Way, ...]] = {
    "counter": (
        _Field(pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, _GPU),
        _Field(pynvml.NVML_FI_DEV_ENERGY, _GPU),
        _Call("nvmlDeviceGetTotalEnergyConsumption"),
    ),
    "average": (_Field(pynvml.NVML_FI_DEV_POWER_AVERAGE, _GPU),),
    "instant": (_Field(pynvml.NVML_FI_DEV_POWER_INSTANT, _GPU),),
    "memory average": (_Field(pynvml.NVML_FI_DEV_POWER_AVERAGE, _MEMORY),),
    "memory instant": (_Field(pynvml.NVML_FI_DEV_POWER_INSTANT, _MEMORY),),
    "module counter": (_Field(pynvml.NVML_FI_DEV_ENERGY, _MODULE),),
    "module average": (_Field(pynvml.NVML_FI_DEV_POWER_AVERAGE, _MODULE),),
    "module instant": (_Field(pynvml.NVML_FI_DEV_POWER_INSTANT, _MODULE),),
}

TRIED = 20  # polls after which a reading that never answered is not asked for any more: a refusal may be passing
_SMOOTHING = 251  # NVML_FI_PWR_SMOOTHING_ENABLED as drivers number it; the binding 13.580 has another number
_PROFILES = {
    getattr(pynvml, name): name.removeprefix("NVML_POWER_PROFILE_").lower().replace("_", "-")
    for name in dir(pynvml)
    if name.startswith("NVML_POWER_PROFILE_") and name != "NVML_POWER_PROFILE_MAX" and "OPERATION" not in name
}
_THROTTLES = {
    pynvml.nvmlClocksEventReasonApplicationsClocksSetting: "clock setting",
    pynvml.nvmlClocksEventReasonSwPowerCap: "power cap",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksEventReasonSyncBoost: "sync boost",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "heat (software)",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "heat (hardware)",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
    pynvml.nvmlClocksEventReasonDisplayClockSetting: "display clock",
    0x200: "board limit",  # this and the next are newer than the oldest binding that we run with (13.580)
    0x400: "reliability",
}


class NvmlSource:
    """Reads the expected GPUs: those of `uuids`, or else all visible ones, of which there must be `count`.

    By `scope` it shows every reading that answers (`accelerator`) or the modules alone. Opening it watches each GPU
    for `shortest_s`, at most `longest_s`, reading every `pace_s`: what answers, how often it changes, and what the
    energy counter covers. Of a counter whose scope cannot be told no energy is believed, and a note says why.

    Raises PowerFault when the driver does not show exactly what is expected: a device that is not read would
    make the system look better than it is.
    """

    def __init__(
        self,
        *,
        uuids: tuple[str, ...] = (),
        count: int | None = None,
        scope: Literal["accelerator", "module"] = "accelerator",
        shortest_s: float = SHORTEST_S,
        longest_s: float = LONGEST_S,
        pace_s: float = PACE_S,
    ) -> None:
        try:
            _nvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise PowerFault(_does_not_start(error)) from error
        try:
            self._handles: dict[str, Handle | None] = dict(_expected_gpus(uuids, count))
            self._visible: int = _nvml.nvmlDeviceGetCount()
            self._ways = {uuid: _ways(handle) for uuid, handle in self._handles.items()}
            version = _text(_nvml.nvmlSystemGetDriverVersion())
            with ThreadPoolExecutor(max_workers=len(self._handles)) as pool:  # each at full pace: a call takes its time
                traces = pool.map(
                    lambda uuid: _watch(
                        self._handles[uuid], self._ways[uuid], shortest_s=shortest_s, longest_s=longest_s, pace_s=pace_s
                    ),
                    self._handles,
                )
                self._gpus = {
                    uuid: _gpu(uuid, self._handles[uuid], trace, scope)
                    for uuid, trace in zip(self._handles, traces, strict=True)
                }
        except pynvml.NVMLError as error:
            _shut_down()
            raise PowerFault(f"NVML failed while its GPUs were looked at ({error}): try again") from error
        except BaseException:
            _shut_down()
            raise
        self._stale = False
        self._info = _info(self._gpus.values(), scope, version, expected=bool(uuids) or count is not None)
        if not self._info.devices:
            _shut_down()
            raise PowerFault(
                "no GPU here reports the power of its module: use --power nvml, which reads the GPUs themselves"
            )

    def describe(self) -> SourceInfo:
        return self._info

    def read(self) -> list[PowerSample]:
        self._follow_driver()
        return [sample for uuid in self._gpus for sample in self._samples(uuid)]

    def close(self) -> None:
        _shut_down()

    def _samples(self, uuid: str) -> list[PowerSample]:
        """Counters first and in a call of their own: their times matter most."""
        samples = []
        ways = self._ways[uuid]
        for counters in (True, False):
            part = [read for read in self._gpus[uuid].readings if (read[1] == "energy_j") == counters]
            for batch in _batches([ways[reading] for _, _, reading in part]):
                before_ns = time.monotonic_ns()
                answers = _ask(self._handles[uuid], batch, self._note_code)
                after_ns = time.monotonic_ns()
                for device, kind, reading in part:
                    if ways[reading] in answers:
                        value, flag = answers[ways[reading]]
                        samples.append(
                            PowerSample(
                                t_ns=(before_ns + after_ns) // 2,
                                device=device,
                                kind=kind,
                                value=value,
                                read_us=(after_ns - before_ns) // 1000,
                                flag=flag,
                            )
                        )
        return samples

    def _note_code(self, code: int) -> None:
        self._stale = self._stale or code in _STALE

    def _follow_driver(self) -> None:
        """Starts the library again where its driver was loaded anew, and finds the GPUs again by their UUIDs.

        While that fails the readings are errors. The counters of a driver that was loaded anew begin at 0.
        """
        try:
            if self._stale:
                _shut_down()
                _nvml.nvmlInit()
            visible = _nvml.nvmlDeviceGetCount()
        except pynvml.NVMLError:
            self._stale = True
            return
        if self._stale or visible != self._visible:
            self._stale = False
            self._visible = visible
            self._handles = {uuid: _handle(uuid) for uuid in self._handles}


def _ask(handle: Handle | None, ways: Sequence[_Way], note: Callable[[int], None]) -> dict[_Way, _Answer]:
    """One call for all `ways`; `note` hears the code of a call that failed as a whole."""
    if handle is None:
        return dict.fromkeys(ways, (None, "lost"))
    fields = [way for way in ways if isinstance(way, _Field)]
    try:
        if fields:
            values = _nvml.nvmlDeviceGetFieldValues(handle, [(way.number, way.scope) for way in fields])
            return {way: _answer(value) for way, value in zip(fields, values, strict=True)}
        return {way: _milli(getattr(_nvml, way.name)(handle)) for way in ways if isinstance(way, _Call)}
    except pynvml.NVMLError as error:
        code: int = error.value  # type: ignore[attr-defined]
        note(code)
        return dict.fromkeys(ways, (None, "lost" if code in _GONE else _flag(code)))


def _batches(ways: Sequence[_Way]) -> list[list[_Way]]:
    """Fields together in one call; functions each in its own."""
    fields: list[_Way] = [way for way in ways if isinstance(way, _Field)]
    return ([fields] if fields else []) + [[way] for way in ways if isinstance(way, _Call)]


def _answer(value: Any) -> _Answer:
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        return None, _flag(value.nvmlReturn)
    member = _MEMBER.get(value.valueType)
    return (None, "error") if member is None else _milli(getattr(value.value, member))


def _milli(value: float) -> _Answer:
    """Joules or watts of mJ or mW; a value that stands for none is blank."""
    return (None, "blank") if value in _BLANK or not 0 <= value < 2**63 else (value / 1000, "ok")


def _flag(code: int) -> SampleFlag:
    if code in _LOST:
        return "lost"
    return "unsupported" if code in _ABSENT else "error"


def _ways(handle: Handle) -> dict[Reading, _Way]:
    """By which of its ways each reading is had: the first that answers, or the first of all where none does yet."""
    fields = [way for ways in _WAYS.values() for way in ways if isinstance(way, _Field)]
    answers = _ask(handle, fields, _ignore)
    found: dict[Reading, _Way] = {}
    for reading, ways in _WAYS.items():
        answers |= {way: _ask(handle, [way], _ignore)[way] for way in ways if isinstance(way, _Call)}
        found[reading] = next((way for way in ways if answers[way][0] is not None), ways[0])
    # A board that shows its module answers for the GPU by fields too, where it does at all: there the plain gauge, of
    # which nobody says what it covers, is left alone.
    gauges: tuple[Reading, ...] = ("average", "instant", "module average", "module instant")
    answers |= _ask(handle, [_PLAIN_GAUGE], _ignore)
    if all(answers[found[gauge]][0] is None for gauge in gauges) and answers[_PLAIN_GAUGE][0] is not None:
        found[_plain_reading(handle)] = _PLAIN_GAUGE
    return found


def _plain_reading(handle: Handle) -> Reading:
    """What nvmlDeviceGetPowerUsage gives: a mean of 1 s on Ampere and newer, but not on its first chip, GA100 (8.0)."""
    capability = _try(_nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return "average" if capability is not None and capability > (8, 0) else "instant"


def _watch(
    handle: Handle, ways: Mapping[Reading, _Way], *, shortest_s: float, longest_s: float, pace_s: float
) -> dict[Reading, Trace]:
    """Every reading that a GPU gives, again and again, until its counters are understood or the time is up."""
    wanted = dict(ways)
    seen: set[Reading] = set()
    polls = 0

    def poll() -> dict[Reading, float]:
        nonlocal wanted, polls
        polls += 1
        if polls == TRIED:  # what never answers takes time all the same, and every call is of this GPU
            wanted = {reading: way for reading, way in ways.items() if reading in seen}
        answers: dict[_Way, _Answer] = {}
        for batch in _batches(list(wanted.values())):
            answers |= _ask(handle, batch, _ignore)
        values = {reading: value for reading, way in wanted.items() if (value := answers[way][0]) is not None}
        seen.update(values)
        return values

    return watch(poll, shortest_s=shortest_s, longest_s=longest_s, pace_s=pace_s)


def _ignore(_: int) -> None:
    """A call that fails while a GPU is watched leaves a reading out of its trace, and that is all."""


def _gpu(uuid: str, handle: Handle, traces: Mapping[Reading, Trace], scope: GpuDomain) -> Gpu:
    """A GPU that was watched, as the devices that are shown of it."""
    state = _state(uuid, handle)
    found = describe_gpu(
        traces,
        state,
        name=printable(_text(_nvml.nvmlDeviceGetName(handle))),
        host=platform.node() or None,
        module_limit_w=_watts(_field(handle, pynvml.NVML_FI_DEV_POWER_CURRENT_LIMIT, _MODULE)),
        shown=("module",) if scope == "module" else ("accelerator", "hbm", "module"),
    )
    return replace(found, notes=(*found.notes, *_notes(handle, state)))


def _info(gpus: Iterable[Gpu], scope: GpuDomain, version: str, *, expected: bool) -> SourceInfo:
    gpus = tuple(gpus)
    covers = "as NVML reports a GPU: chip and its memory; no CPU, no network, no cooling"
    if scope == "module":
        covers = "as NVML reports a module: GPUs, CPU and their memory; no network, no cooling"
    notes = [covers]
    if not expected:
        notes.append(f"every visible GPU is read, {len(gpus)} in all")
    return SourceInfo(
        kind="nvml",
        name="nvml,scope=module" if scope == "module" else "nvml",
        measured=True,
        version=version,
        devices=tuple(device for gpu in gpus for device in gpu.devices),
        notes=(*notes, *(note for gpu in gpus for note in gpu.notes)),
        states=tuple(state for gpu in gpus for state in gpu.states),
    )


def _state(uuid: str, handle: Handle) -> DeviceState:
    """What a GPU says of itself now; each fact is None where it does not say."""
    limits = _try(_nvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
    ecc = _try(_nvml.nvmlDeviceGetEccMode, handle)
    mig = _try(_nvml.nvmlDeviceGetMigMode, handle)
    processes = _try(_nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    throttled = _try(_nvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
    return DeviceState(
        device=uuid,
        power_limit_w=_watts(_try(_nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
        default_limit_w=_watts(_try(_nvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)),
        highest_limit_w=None if limits is None else _watts(limits[1]),
        ecc=None if ecc is None else bool(ecc[0]),
        mig=None if mig is None else bool(mig[0]),
        processes=None if processes is None else len(processes),
        temperature_c=_try(_nvml.nvmlDeviceGetTemperatureV, handle, pynvml.NVML_TEMPERATURE_GPU),
        sm_clock_mhz=_try(_nvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
        memory_clock_mhz=_try(_nvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        throttled_by=tuple(word for bit, word in _THROTTLES.items() if throttled & bit),
        power_profile=_power_profile(handle),
    )


def _notes(handle: Handle, gpu: DeviceState) -> list[str]:
    notes = []
    if gpu.mig:
        notes.append(f"{gpu.device} is split by MIG: the whole GPU is charged")
    if _try(_nvml.nvmlDeviceGetVirtualizationMode, handle) == pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU:
        notes.append(f"{gpu.device} is a virtual GPU: what it reads may be of the whole board, which others share")
    if gpu.power_limit_w is not None and gpu.default_limit_w is not None and gpu.power_limit_w < gpu.default_limit_w:
        notes.append(f"{gpu.device} is capped at {gpu.power_limit_w:g} W; {gpu.default_limit_w:g} W is its default")
    return notes


def _power_profile(handle: Handle) -> str | None:
    """The workload power profiles in force, and whether power smoothing is on; None where neither is supported."""
    words = []
    profiles = _nvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t()
    if _try(_nvml.nvmlDeviceWorkloadPowerProfileGetCurrentProfiles, handle, byref(profiles)) is not None:
        mask = [bool(profiles.enforcedProfilesMask.mask[number // 32] >> number % 32 & 1) for number in range(256)]
        words += [_PROFILES.get(number, f"profile {number}") for number in range(256) if mask[number]] or ["none"]
    smoothing = _field(handle, _SMOOTHING, _GPU)
    if smoothing in (0, 1):
        words.append("power smoothing on" if smoothing else "power smoothing off")
    return ", ".join(words) or None


def _field(handle: Handle, number: int, scope: int) -> float | None:
    """One field's raw value; None where it has none."""
    value = (_try(_nvml.nvmlDeviceGetFieldValues, handle, [(number, scope)]) or [None])[0]
    if value is None or value.nvmlReturn != pynvml.NVML_SUCCESS or value.valueType not in _MEMBER:
        return None
    raw: float = getattr(value.value, _MEMBER[value.valueType])
    return None if raw in _BLANK else raw


def _watts(milliwatts: float | None) -> float | None:
    """Watts of a limit; 0 mW and blanks are no limit."""
    return milliwatts / 1000 if milliwatts is not None and 0 < milliwatts < _BLANK[0] else None


def _try(function: Callable[..., Any], *arguments: Any) -> Any:
    """What NVML answers, None where it refuses."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def _expected_gpus(uuids: tuple[str, ...], count: int | None) -> dict[str, Handle]:
    parts = [uuid for uuid in uuids if uuid.startswith("MIG-")]
    if parts:
        raise PowerFault(
            f"{parts[0]} is a part of a GPU, and NVML knows no power of parts: "
            "name the whole GPU, which is then charged"
        )
    visible = {}
    for index in range(_nvml.nvmlDeviceGetCount()):
        try:
            handle = _nvml.nvmlDeviceGetHandleByIndex(index)
            visible[printable(_text(_nvml.nvmlDeviceGetUUID(handle)))] = handle
        except pynvml.NVMLError as error:
            raise PowerFault(
                f"GPU {index} does not answer NVML ({error}): reset or exclude it, then try again"
            ) from error
    shown = ", ".join(visible) or "no GPU"
    missing = [uuid for uuid in uuids if uuid not in visible]
    if missing:
        raise PowerFault(
            f"the system file expects {', '.join(missing)}, but NVML shows {shown}: correct the uuid, or the machine"
        )
    if not uuids and count is not None and count != len(visible):
        raise PowerFault(
            f"the system file has {count} accelerators, but NVML shows {len(visible)} ({shown}): "
            "give each accelerator its uuid"
        )
    if not visible:
        raise PowerFault("NVML shows no GPU; state a nameplate instead, for example --power declared:700W")
    return {uuid: visible[uuid] for uuid in (uuids or tuple(visible))}


def _handle(uuid: str) -> Handle | None:
    """The handle of a GPU by its name; None where the driver does not show it any more."""
    return _try(_nvml.nvmlDeviceGetHandleByUUID, uuid.encode())


def _does_not_start(error: Any) -> str:
    """Why NVML cannot be used here and what to do; codes by NVML's reference for nvmlInit_v2."""
    reasons = {
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded here",
        pynvml.NVML_ERROR_NO_PERMISSION: "this user may not talk to the NVIDIA driver",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "its library and the loaded driver are of different versions, so restart the machine"
        ),
    }
    absent = "no NVIDIA driver is visible here (in a container it needs the driver capability `utility`)"
    reason = reasons.get(error.value, absent)
    return f"NVML does not start ({error}): {reason}; or state a nameplate, for example --power declared:700W"


def _shut_down() -> None:
    with contextlib.suppress(pynvml.NVMLError):
        _nvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
