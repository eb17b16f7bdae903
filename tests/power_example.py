"""A simulated machine with eight GPUs: its system file, its power sources, and what they read under a load."""

from __future__ import annotations

import functools
import math
from typing import Any

from replay.idle import IdlePower, IdleReading, idle_power
from replay.judge import power_totals
from replay.power.source import DeviceState, PowerDevice, PowerSample, SourceInfo
from replay.system import Accelerator, Meter, Node, Prices, System
from replay.window import Window

SECOND = 1_000_000_000
GPUS = tuple(f"GPU-simulated-{number}" for number in range(8))
OUTLET = "outlet-7"


def _sourced(watts: float, source: str = "https://example.com/data-sheet") -> dict[str, Any]:
    return {"value_w": watts, "source_type": "vendor_spec", "source": source}


SYSTEM = System(
    name="a simulated node of 8 x H200",
    accelerators=tuple(Accelerator(name="H200", uuid=uuid, node="n1") for uuid in GPUS),
    nodes=(Node(name="n1"),),
    meters=(Meter(device=(OUTLET,), covers="node n1", u_percent=1.0, evidence="a simulated data sheet"),),
    engine="vllm",
    launch_command="vllm serve simulated-8b --tensor-parallel-size 8",
    power_cap_w=700.0,
    pue=1.25,
    pue_kind="design",
    prices=Prices(currency="USD", per_hour=24.0, energy_per_kwh=0.12),
    agents_per_engineer=2.5,
    provisioned={
        "system_desc_id": "a-simulated-node",
        "cooling": "air",
        "node_sets": [
            {
                "node_set_id": 1,
                "system_node_ensemble_id": 1,
                "nodes_provisioned": 1,
                "power_method": "component_sum",
                "components": {
                    "cpu": {"count_per_node": 2, "tdp_per_unit": _sourced(350.0)},
                    "accelerator": {"count_per_node": 8, "tdp_per_unit": _sourced(700.0)},
                    "scale_up_network": {"method": "none"},
                },
            }
        ],
        "scale_out": {"present": False},
    },
)


def power_sources() -> tuple[SourceInfo, ...]:
    """Eight simulated GPUs by their counters and gauges, and the outlet of their machine, read once a second."""
    return (
        SourceInfo(
            kind="nvml",
            measured=True,
            version="driver 999.01 (simulated)",
            devices=tuple(
                PowerDevice(uid=uuid, name="H200", domain="accelerator", limit_w=700.0, wrap_j=None, latch_s=0.1)
                for uuid in GPUS
            ),
            notes=(),
            name="nvml",
            period_s=1.0,
            states=tuple(
                DeviceState(
                    device=uuid,
                    counter_scope="accelerator",
                    counter_latch_s=0.1,
                    gauge_latch_s=0.02,
                    scopes=("accelerator power_w", "hbm power_w"),
                    power_limit_w=700.0,
                    default_limit_w=700.0,
                    highest_limit_w=700.0,
                    ecc=True,
                    mig=False,
                    processes=1,
                    temperature_c=41.0,
                    sm_clock_mhz=1980,
                    memory_clock_mhz=3201,
                    throttled_by=("software power cap",) if uuid == GPUS[3] else (),
                )
                for uuid in GPUS
            ),
        ),
        SourceInfo(
            kind="exporter",
            measured=True,
            version=None,
            devices=(PowerDevice(uid=OUTLET, name="PDU", domain="node", limit_w=12_000.0, wrap_j=None),),
            notes=(),
            name="exporter:http://pdu.example.com/metrics",
            period_s=1.0,
            clock_u_s=0.02,
        ),
    )


def power_samples(agents: int, window: Window) -> tuple[PowerSample, ...]:
    """What these devices would read while so many agents are at work: idle power, and a load that saturates."""
    load = 1 - math.exp(-agents / 10)
    found = []
    for second in range(window.start_ns // SECOND - 8, window.end_ns // SECOND + 8):
        total_w = 0.0
        for number, uuid in enumerate(GPUS):
            base_w, swing_w, turns = 110.0 + 420.0 * load + 3.0 * number, 40.0 * load, 2 * math.pi / 17
            watts = base_w + swing_w * math.sin(turns * second + number)
            joules = base_w * second - swing_w / turns * math.cos(turns * second + number) + 1e6
            total_w += watts
            found += [
                PowerSample(t_ns=second * SECOND, device=uuid, kind="energy_j", value=joules, read_us=80, flag="ok"),
                PowerSample(t_ns=second * SECOND, device=uuid, kind="power_w", value=watts, read_us=80, flag="ok"),
            ]
        outlet_w = 1300.0 + 1.12 * total_w
        found.append(
            PowerSample(t_ns=second * SECOND, device=OUTLET, kind="power_w", value=outlet_w, read_us=900, flag="ok")
        )
    return tuple(found)


@functools.cache
def idle() -> IdlePower | None:
    """A minute without a request before the trials, and one after them in which the devices drew more."""
    window = Window(start_ns=0, end_ns=60 * SECOND)

    def reading(agents: int) -> IdleReading:
        totals, _ = power_totals(power_sources(), power_samples(agents, window), SYSTEM, window)
        return IdleReading(started_unix_us=1_790_000_000_000_000, seconds=60.0, power=totals, reasons=())

    return idle_power(reading(0), reading(1))
