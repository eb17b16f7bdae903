"""A run whose trials are drawn instead of driven: seeded records of a server with a known capacity, in no time."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from replay.drive import FinishedPlay
from replay.endpoint import Endpoint
from replay.health import ClientHealth
from replay.idle import IDLE_VERSION, Idle, IdleFacts, write_idle
from replay.plan import Plan
from replay.power.choice import parse_power
from replay.power.source import PowerDevice, PowerSample, SampleKind, SourceInfo
from replay.probe import ProbeReport
from replay.protocol import Progress, Protocol
from replay.record import RequestRecord
from replay.request import PlanRules, RunRequest
from replay.scrape import ServerSample
from replay.selftest import SelfTest
from replay.slo import Slo, Term
from replay.system import Accelerator, System
from replay.trial import TRIAL_VERSION, Restart, Trial, TrialFacts, TrialOrder, write_trial

SECOND = 1_000_000_000
START_UNIX_US = 1_760_000_000_000_000
SLOT_US = 200_000_000  # from one trial's start to the next
PROTOCOL = Protocol(
    name="simulated",
    ramp_per_s=100.0,
    settle_s=1.0,
    min_measure_s=20.0,
    min_trajectories=0,
    min_trajectories_per_agent=0,
    max_phase_s=30.0,
    start_offset_turns=2,
    request_timeout_s=30.0,
)
SLO = Slo(
    name="simulated",
    version="1",
    terms=(
        Term(quantity="output_tok_s", percentile=25.0, limit=20.0),
        Term(quantity="ttft_s", percentile=95.0, limit=10.0),
    ),
    protocol=PROTOCOL,
    note="a simulated server",
)
REPORT = ProbeReport(
    url="http://127.0.0.1:9",
    model="simulated",
    engine="unknown",
    engine_version=None,
    engine_evidence="simulated",
    server="simulated",
    models=("simulated",),
    metrics_page=None,
    streams=True,
    usage_in_stream=True,
    continuous_usage=False,
    done_marker=True,
    tokens_per_chunk=1.0,
    keep_alive=None,
    ignore_eos="obeyed",
    ignore_eos_evidence="simulated",
    min_tokens="obeyed",
    logit_bias="obeyed",
    end_token=2,
    refused_fields=(),
    unknown_fields="taken",
    tools="taken",
    tools_evidence="simulated",
    tool_history="taken",
    tool_history_evidence="simulated",
    token_prompts="exact",
    token_prompts_evidence="simulated",
    context_tokens=60_000,
    context_source="simulated",
    vocabulary_tokens=32_000,
    text_tokens_x=1.0,
    tokenizes=True,
    tokenize_difference=None,
    cached_tokens_reported=True,
    prefix_reuse=None,
    prefix_block_tokens=None,
    prefix_evidence="simulated",
    requests=0,
)


def simulated_request(out: Path, **changes: Any) -> RunRequest:
    """A class screen search of a simulated server."""
    request = RunRequest(
        kind="score",
        run_class="screen",
        endpoint=Endpoint("http://127.0.0.1:9", "simulated"),
        dataset_digest="d" * 64,
        rules=PlanRules(),
        slos=(SLO,),
        protocol=PROTOCOL,
        system=System(
            name="simulated", accelerators=(Accelerator(name="H200", count=2),), weights="trained", speculation="none"
        ),
        power=(parse_power("declared:700W*2"),),
        agents=2,
        maximum_agents=200,
        out=out,
        resume=False,
    )
    return dataclasses.replace(request, **changes)


@dataclasses.dataclass(slots=True)
class SimulatedDriver:
    """Speed falls as (capacity / N)^1.5 with lognormal noise per trial; the same seed gives the same files."""

    capacity: float = 10.0  # agents at which 25 % of the requests get less than 20 tok/s
    noise: float = 0.03
    seed: int = 0
    watts: float = 1400.0
    measured: bool = False  # by two accelerators, each with a counter and a gauge; otherwise a nameplate
    idle_watts: tuple[float, float] = (240.0, 240.0)  # before and after
    canaries: list[Any] = dataclasses.field(default_factory=list)  # handed out in turn
    limit: int | None = None
    report: ProbeReport = REPORT
    before_trial: Callable[[TrialOrder], None] = lambda _: None
    orders: list[TrialOrder] = dataclasses.field(default_factory=list)
    restarts: int = 0
    idles: list[str] = dataclasses.field(default_factory=list)
    idle_server: tuple[ServerSample, ...] = ()  # what the server's metrics say while nothing is asked of it

    def probe(self) -> ProbeReport:
        return self.report

    def client_limit(self, *, tok_s: float, prompt_bytes: int, most: int) -> SelfTest | None:
        if self.limit is None:
            return None
        return SelfTest(
            agents=min(self.limit, most),
            at_least=False,
            why="the client was late",
            workers=1,
            tok_s=tok_s,
            ttft_s=0.2,
            prompt_bytes=prompt_bytes,
            streams_per_core=None,
            cpu_us_per_event=None,
            prompt_cost=None,
            levels=(),
        )

    def canary(self) -> Any:
        return self.canaries.pop(0) if self.canaries else None

    def power(self, watts: float, start_ns: int, end_ns: int) -> tuple[tuple[SourceInfo, ...], tuple[PowerSample, ...]]:
        """A constant load, read from a second before to a second after."""
        if not self.measured:
            device = PowerDevice(uid="declared", name="nameplate", domain="declared", limit_w=watts, wrap_j=None)
            source = SourceInfo(kind="declared", measured=False, version=None, devices=(device,), notes=())
            return (source,), tuple(_sample(at, "declared", "power_w", watts) for at in (start_ns, end_ns))
        devices = tuple(
            PowerDevice(uid=f"GPU-{number}", name="H200", domain="accelerator", limit_w=700.0, wrap_j=None)
            for number in range(2)
        )
        source = SourceInfo(kind="nvml", measured=True, version="simulated", devices=devices, notes=(), name="nvml")
        times = range(start_ns - SECOND, end_ns + SECOND + 1, SECOND // 5)
        samples = []
        for at in times:
            for device in devices:
                samples.append(_sample(at, device.uid, "energy_j", 1e6 + watts / 2 * (at - start_ns) / 1e9))
                samples.append(_sample(at, device.uid, "power_w", watts / 2))
        return (source,), tuple(samples)

    def idle(self, folder: Path, *, seconds: float) -> None:
        after = folder.name == "after"
        trials = len(list((folder.parent.parent / "trials").glob("[0-9]*")))
        end_ns = round(seconds * SECOND)
        sources, samples = self.power(self.idle_watts[after], 0, end_ns)
        if not self.measured:
            return
        facts = IdleFacts(
            version=IDLE_VERSION,
            zero_unix_us=START_UNIX_US + (trials + 1 if after else 0) * SLOT_US,
            end_ns=end_ns,
            power_sources=sources,
            power_sha256="",
            server_sha256="",
        )
        write_idle(Idle(facts=facts, samples=samples, server=self.idle_server), folder)
        self.idles.append(folder.name)

    def restart(self) -> Restart | None:
        self.restarts += 1
        return Restart(command_s=1.0, answered_s=2.0)

    def trial(
        self,
        plan: Plan,
        order: TrialOrder,
        folder: Path,
        *,
        protocol: Protocol,
        restart: Restart | None,
        on_progress: Callable[[Progress], None],  # noqa: ARG002
    ) -> None:
        self.before_trial(order)
        self.orders.append(order)
        draw = random.Random(f"{self.seed}/{order.agents}/{order.draw}/{order.purpose}")
        speed = 20.0 * (self.capacity / order.agents) ** 1.5 * draw.lognormvariate(0, self.noise)
        protocol = protocol.for_agents(order.agents)
        ramp_ns = round((order.agents - 1) / protocol.ramp_per_s * SECOND)
        settle_ns = ramp_ns + round(protocol.settle_s * SECOND)
        end_ns = settle_ns + round(protocol.min_measure_s * SECOND)
        records: list[RequestRecord] = []
        finished: list[FinishedPlay] = []
        for agent in range(order.agents):
            now_ns = round(agent / protocol.ramp_per_s * SECOND)
            for play in plan.plays(
                agent, agents=order.agents, start_offset_turns=2, trial=order.trial, draw=order.draw
            ):
                started_ns, turns = now_ns, plan.script(play.session_id).turns[play.first_turn :]
                for position, turn in enumerate(turns, play.first_turn):
                    record = _record(
                        agent, play, turn, position, now_ns, end_ns, ttft_s=order.agents / 50, speed=min(speed, 100.0)
                    )
                    records.append(record)
                    now_ns = record.end_at_ns or end_ns
                    if now_ns >= end_ns:
                        break
                if now_ns >= end_ns:
                    break
                finished.append(
                    FinishedPlay(
                        agent=agent,
                        play=play.play,
                        session_id=play.session_id,
                        first_turn=play.first_turn,
                        started_at_ns=started_ns,
                        finished_at_ns=now_ns,
                        requests=len(turns),
                        failed_requests=0,
                    )
                )
        sources, samples = self.power(self.watts, 0, end_ns)
        facts = TrialFacts(
            version=TRIAL_VERSION,
            trial=order.trial,
            agents=order.agents,
            purpose=order.purpose,
            draw=order.draw,
            salt_number=order.trial,
            protocol=protocol,
            finite=False,
            workers=1,
            restart=restart,
            zero_unix_us=START_UNIX_US + order.trial * SLOT_US,
            ramp_end_ns=ramp_ns,
            settle_end_ns=settle_ns,
            phase_end_ns=end_ns,
            stop_reason="measured",
            finished_plays=tuple(finished),
            health=HEALTH,
            longest_delay_s=0.0,
            power_sources=sources,
            requests=len(records),
            records_sha256="",
            power_sha256="",
            server_sha256="",
        )
        records.sort(key=lambda record: record.sent_at_ns)
        write_trial(Trial(facts=facts, records=tuple(records), samples=samples), folder)


def _sample(t_ns: int, device: str, kind: SampleKind, value: float) -> PowerSample:
    return PowerSample(t_ns=t_ns, device=device, kind=kind, value=value, read_us=5, flag="ok")


HEALTH = ClientHealth(
    loop_lag_p50_ms=0.1,
    loop_lag_p99_ms=0.5,
    loop_lag_max_ms=1.0,
    dispatch_lag_p50_ms=0.1,
    dispatch_lag_p99_ms=0.5,
    dispatch_lag_max_ms=1.0,
    cpu_seconds=1.0,
    cpu_share=0.05,
    peak_memory_mb=100.0,
    late_loop_lag_ms=25.0,
    late_dispatch_ms=50.0,
    windows=(),
)


def served_tokens(planned: int) -> int:
    """How long the simulated server's answers are."""
    return planned


def _record(
    agent: int, play: Any, turn: Any, position: int, now_ns: int, end_ns: int, *, ttft_s: float, speed: float
) -> RequestRecord:
    tokens = served_tokens(turn.output_tokens)
    first_ns = now_ns + round(ttft_s * SECOND)
    moments = [first_ns + round(index / speed * SECOND) for index in range(tokens)]
    seen = [moment for moment in moments if moment < end_ns]
    done = len(seen) == tokens
    planned = turn.planned_prompt_tokens or turn.estimated_prompt_tokens
    return RequestRecord(
        agent=agent,
        play=play.play,
        session_id=play.session_id,
        request_index=turn.request_index,
        turn=position,
        salt=play.salt,
        intended_at_ns=now_ns,
        sent_at_ns=now_ns,
        written_at_ns=now_ns,
        headers_at_ns=seen[0] if seen else None,
        first_byte_at_ns=seen[0] if seen else None,
        first_content_at_ns=seen[0] if seen else None,
        last_content_at_ns=seen[-1] if seen else None,
        end_at_ns=seen[-1] if done else None,
        status=200 if seen else None,
        outcome="ok" if done else "stopped",
        error=None,
        reused_connection=True,
        recorded_prompt_tokens=planned,
        planned_prompt_tokens=turn.planned_prompt_tokens,
        prompt_tokens=planned if done else None,
        cached_tokens=0 if done else None,
        planned_output_tokens=turn.output_tokens,
        completion_tokens=tokens if done else None,
        reasoning_tokens=None,
        finish_reason="length" if done else None,
        delay_us=0,
        delay_kind="none",
        bytes_up=1000,
        bytes_down=200 * len(seen),
        reads=len(seen),
        events=len(seen),
        content_events=len(seen),
        content_gaps_us=tuple((right - left) // 1000 for left, right in pairwise(seen)),
        ideal_cached_share=0.0,
        distinct_share=1.0,
    )
