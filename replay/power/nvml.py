"""NVIDIA GPUs by NVML: the energy counter (mJ since the driver was loaded) and the power gauge (mW) beside it.

Devices are known by UUID: an NVML index is not a CUDA index. Each reading's failure is its own flag; see NVML's
reference for nvmlDeviceGetTotalEnergyConsumption and nvmlDeviceGetPowerUsage. The only module that imports pynvml.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

from replay.power.source import PowerDevice, PowerFault, PowerSample, SampleFlag, SampleKind, SourceInfo

type Handle = Any  # an opaque ctypes pointer

_nvml: Any = pynvml  # the binding ships no types

_LOST = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_NOT_FOUND)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gpu:
    device: PowerDevice
    handle: Handle


class NvmlSource:
    """Reads the expected GPUs: those of `uuids`, or else all visible ones, of which there must be `count`.

    Raises PowerFault when the driver does not show exactly what is expected: a device that is not read would
    make the system look better than it is.
    """

    def __init__(self, *, uuids: tuple[str, ...] = (), count: int | None = None) -> None:
        try:
            _nvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise PowerFault(
                f"NVML does not start ({error}): no NVIDIA driver is visible here; "
                "state a nameplate instead, for example --power declared:700W"
            ) from error
        try:
            self._gpus = _expected_gpus(uuids, count)
            self._version = _text(_nvml.nvmlSystemGetDriverVersion())
            notes = ["as NVML reports a GPU: chip and its memory; no CPU, no network, no cooling"]
            if not uuids and count is None:
                notes.append(f"no expected set was stated: all {len(self._gpus)} visible GPUs are charged")
            notes += [
                f"{gpu.device.uid} is split by MIG: the whole GPU is charged"
                for gpu in self._gpus
                if _split(gpu.handle)
            ]
        except BaseException:
            _nvml.nvmlShutdown()
            raise
        self._notes = tuple(notes)

    def describe(self) -> SourceInfo:
        return SourceInfo(
            kind="nvml",
            measured=True,
            version=self._version,
            devices=tuple(gpu.device for gpu in self._gpus),
            notes=self._notes,
        )

    def read(self) -> list[PowerSample]:
        samples = []
        for gpu in self._gpus:
            samples.append(_sample(gpu, "energy_j", _nvml.nvmlDeviceGetTotalEnergyConsumption))
            samples.append(_sample(gpu, "power_w", _nvml.nvmlDeviceGetPowerUsage))
        return samples

    def close(self) -> None:
        _nvml.nvmlShutdown()


def _sample(gpu: _Gpu, kind: SampleKind, read_milli: Callable[[Handle], int]) -> PowerSample:
    value: float | None = None
    flag: SampleFlag = "ok"
    before_ns = time.monotonic_ns()
    try:
        value = read_milli(gpu.handle) / 1000
    except pynvml.NVMLError as error:
        flag = _flag(error)
    after_ns = time.monotonic_ns()
    return PowerSample(
        t_ns=(before_ns + after_ns) // 2,
        device=gpu.device.uid,
        kind=kind,
        value=value,
        read_us=(after_ns - before_ns) // 1000,
        flag=flag,
    )


def _flag(error: Any) -> SampleFlag:
    if error.value in _LOST:
        return "lost"
    return "unsupported" if error.value == pynvml.NVML_ERROR_NOT_SUPPORTED else "error"


def _expected_gpus(uuids: tuple[str, ...], count: int | None) -> tuple[_Gpu, ...]:
    visible = {}
    for index in range(_nvml.nvmlDeviceGetCount()):
        try:
            handle = _nvml.nvmlDeviceGetHandleByIndex(index)
            visible[_text(_nvml.nvmlDeviceGetUUID(handle))] = handle
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
    return tuple(_gpu(uuid, visible[uuid]) for uuid in (uuids or tuple(visible)))


def _gpu(uuid: str, handle: Handle) -> _Gpu:
    try:
        limit_w = _nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
    except pynvml.NVMLError:
        limit_w = None
    name = _text(_nvml.nvmlDeviceGetName(handle))
    return _Gpu(
        device=PowerDevice(uid=uuid, name=name, domain="accelerator", limit_w=limit_w, wrap_j=None), handle=handle
    )


def _split(handle: Handle) -> bool:
    try:
        return bool(_nvml.nvmlDeviceGetMigMode(handle)[0])
    except pynvml.NVMLError:
        return False  # boards without MIG answer NotSupported


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
