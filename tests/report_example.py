"""Scores and trials that were never run, for the report's tests: synthetic records through the real judgement."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import msgspec

from replay.canary import CanaryResult, FreeAnswer, Greedy, LogProbability, ServerCanary, ToolCalls
from replay.curve import curve
from replay.denominator import denominator_rows, denominators
from replay.drive import FinishedPlay
from replay.energy_use import energy_use
from replay.fit import Point, fieller
from replay.health import ClientHealth
from replay.judge import Judged, power_totals
from replay.labels import device_words
from replay.measure import measure
from replay.money import engineers, money
from replay.observation import observe
from replay.protocol import QUICK
from replay.record import RequestRecord
from replay.scrape import READ_US, ServerSample, server_metrics
from replay.sections.source import Seen, Source
from replay.slo import FAMILIES, Measured, Slo, slo_to_json
from replay.system import system_to_json
from replay.void import LateWindow
from replay.window import Window
from tests.power_example import SECOND, SYSTEM, idle, power_samples, power_sources

WINDOW = Window(start_ns=10 * SECOND, end_ns=70 * SECOND)
SLOS = FAMILIES["aa-shape-2026-07"]
CAPACITY = 24.0  # agents at which the first service level is just held


@functools.cache
def records(agents: int, *, seed: int = 1, dead: bool = False) -> tuple[RequestRecord, ...]:
    """What `agents` would see of a server that gets slower with every one of them; a dead one answers nobody."""
    rng = random.Random(seed)
    found = []
    load = agents / CAPACITY
    for agent in range(agents):
        at_ns, play, turn, prompt = int(rng.random() * 4 * SECOND), 0, 0, 4000
        while at_ns < WINDOW.end_ns:
            ttft_s = 1.1 * load * math.exp(rng.gauss(0, 0.8)) + prompt / 60_000
            output = rng.randint(40, 160)
            speed = 28 / max(0.35, load) * math.exp(rng.gauss(0, 0.15))
            failed = dead or rng.random() < 0.004 * load
            first_ns = at_ns + int(ttft_s * SECOND)
            last_ns = first_ns + int((output - 1) / speed * SECOND)
            stopped = last_ns >= WINDOW.end_ns and not failed
            events = output
            if stopped:
                events = max(0, min(output, int((WINDOW.end_ns - first_ns) / 1e9 * speed)))
            ideal = 0.0 if turn == 0 else 1 - 1200 / prompt
            found.append(
                RequestRecord(
                    agent=agent,
                    play=play,
                    session_id=f"session-{(agent + play) % 7:02d}",
                    request_index=turn,
                    turn=turn,
                    salt="s",
                    intended_at_ns=at_ns,
                    sent_at_ns=at_ns + 200_000,
                    written_at_ns=at_ns + 300_000,
                    headers_at_ns=None if failed else at_ns + 400_000,
                    first_byte_at_ns=None,
                    first_content_at_ns=None if failed or first_ns >= WINDOW.end_ns else first_ns,
                    last_content_at_ns=None if failed or first_ns >= WINDOW.end_ns else min(last_ns, WINDOW.end_ns),
                    end_at_ns=at_ns + SECOND if failed else None if stopped else last_ns + 100_000,
                    status=503 if failed else 200,
                    outcome="http_error" if failed else "stopped" if stopped else "ok",
                    error="busy" if failed else None,
                    reused_connection=True,
                    recorded_prompt_tokens=prompt,
                    planned_prompt_tokens=None,
                    prompt_tokens=None if failed or stopped else prompt,
                    cached_tokens=None if failed or stopped else int(prompt * ideal * min(1.0, 1.2 / load)),
                    planned_output_tokens=output,
                    completion_tokens=None if failed or stopped else output,
                    reasoning_tokens=None,
                    finish_reason="length",
                    delay_us=2_000_000,
                    delay_kind="tool",
                    bytes_up=prompt * 4,
                    bytes_down=output * 200,
                    reads=events,
                    events=events,
                    content_events=events,
                    content_gaps_us=(int(1e6 / speed),) * max(0, events - 1),
                    ideal_cached_share=ideal,
                )
            )
            at_ns = (at_ns + SECOND if failed else last_ns) + 2 * SECOND
            turn, prompt = turn + 1, prompt + 1200
            if turn == 8:
                play, turn, prompt = play + 1, 0, 4000
    return tuple(sorted(found, key=lambda record: record.sent_at_ns))


@functools.cache
def seen(agents: int, *, seed: int = 1, dead: bool = False) -> Seen:
    """Such a trial's files."""
    own = records(agents, seed=seed, dead=dead)
    return Seen(
        records=own,
        observation=observe(own, WINDOW, exact_length=True, finished_plays=_finished(own)),
        samples=power_samples(agents, WINDOW),
        power_sources=power_sources(),
        server=tuple(
            ServerSample(t_ns=at, server="http://127.0.0.1:8000", metric=name, value=value)
            for at in range(0, WINDOW.end_ns, 2 * SECOND)
            for name, value in (
                (READ_US, 900.0),
                ("vllm:num_requests_running", float(min(agents, 20))),
                ("vllm:num_requests_waiting", float(max(0, agents - 20))),
                ("vllm:kv_cache_usage_perc", min(1.0, at / WINDOW.end_ns * agents / CAPACITY)),
            )
        ),
    )


@functools.cache
def judged(number: int, agents: int, purpose: Any, *, slos: tuple[Slo, ...], late: int, dead: bool) -> Judged:
    """A trial as it is judged; in `late` of its windows the client was late."""
    files = seen(agents, seed=number, dead=dead)
    late_windows = tuple(
        LateWindow(
            start_ns=WINDOW.start_ns + place * 5 * SECOND,
            end_ns=WINDOW.start_ns + (place + 1) * 5 * SECOND,
            why="loop lag 48 ms (99th percentile), 25 ms allowed",
        )
        for place in range(late)
    )
    power, limits_w = power_totals(files.power_sources, files.samples, SYSTEM, WINDOW)
    return Judged(
        trial=number,
        agents=agents,
        purpose=purpose,
        draw=0 if purpose in ("bracket", "bisect", "run") else number,
        stop_reason="measured",
        measure=measure(
            files.records,
            WINDOW,
            agents=agents,
            slos=slos,
            exact_length=True,
            longest_delay_s=2.0,
            finished_plays=_finished(files.records),
            session_turns=dict.fromkeys((record.session_id for record in files.records), 8),
            late=late_windows,
        ),
        power=power,
        limits_w=limits_w,
        devices_say=device_words(files.power_sources),
        health=msgspec.convert(_health(late), ClientHealth),
        server=server_metrics(files.server, files.window),
        restart=None,
        measured=Measured(
            ramp_per_s=50.0,
            settle_s=10.0,
            measure_s=60.0,
            finished_trajectories=10,
            finished_per_agent_min=0,
            start_offset_turns=0,
            request_timeout_s=600.0,
        ),
        cross_warming=(),
        unmet=(),
    )


def _trial_json(item: Judged) -> dict[str, Any]:
    """The same as score.json holds it."""
    value: dict[str, Any] = msgspec.to_builtins(item)
    for name in ("unmet", "limits_w", "measured", "cross_warming"):
        del value[name]
    value["protocol_unmet"] = []
    for row, total in zip(value["power"], item.power, strict=True):
        row |= {"basis": "measured" if total.measured else "declared", "limit_w": item.limits_w.get(total.scope)}
    value["measure"]["agent_time"]["explained"] = item.measure.agent_time.explained
    value["measure"]["work"]["output_shortfall"] = item.measure.work.output_shortfall
    found: dict[str, Any] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """As JSON holds it: infinities are null there."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _idle_json() -> dict[str, Any]:
    value = _plain(msgspec.to_builtins(idle()))
    for moment in ("before", "after"):
        for row in value[moment]["power"]:
            row["basis"] = "measured"
    return {"asked_s": 60.0, **value}


def _finished(records: tuple[RequestRecord, ...]) -> tuple[FinishedPlay, ...]:
    found = []
    for record in records:
        if record.turn == 7 and record.end_at_ns is not None and record.end_at_ns < WINDOW.end_ns:
            found.append(
                FinishedPlay(
                    agent=record.agent,
                    play=record.play,
                    session_id=record.session_id,
                    first_turn=0,
                    started_at_ns=max(0, record.end_at_ns - 30 * SECOND),
                    finished_at_ns=record.end_at_ns,
                    requests=8,
                    failed_requests=0,
                )
            )
    return tuple(found)


def _health(late: int) -> dict[str, Any]:
    windows = [
        {
            "start_ns": WINDOW.start_ns + place * 5 * SECOND,
            "end_ns": WINDOW.start_ns + (place + 1) * 5 * SECOND,
            "loop_lag_p99_ms": 48.0 if place < late else 1.4 + 0.1 * place,
            "dispatch_lag_p99_ms": 2.0,
            "cpu_seconds": 0.6,
            "socket_backlog_max_bytes": 18_000,
            "late": place < late,
        }
        for place in range(12)
    ]
    return {
        "loop_lag_p50_ms": 0.3,
        "loop_lag_p99_ms": 2.4,
        "loop_lag_max_ms": 50.0,
        "dispatch_lag_p50_ms": 0.2,
        "dispatch_lag_p99_ms": 2.0,
        "dispatch_lag_max_ms": 9.0,
        "cpu_seconds": 7.2,
        "cpu_share": 0.12,
        "peak_memory_mb": 141.0,
        "late_loop_lag_ms": 25.0,
        "late_dispatch_ms": 50.0,
        "socket_backlog_max_bytes": 18_000,
        "workers": [],
        "fault": None,
        "windows": windows,
    }


LEVELS = (
    (2, "bracket"),
    (8, "bracket"),
    (16, "bracket"),
    (32, "bracket"),
    (28, "bisect"),
    *((level, "confirm") for level in (27, 33, 29, 31, 28)),
    (27, "holdout"),
)


def run_source(outcome: str = "found", *, slos: tuple[Slo, ...] = SLOS[:2]) -> Source:
    """A report's source whose first service level ended so: found, maximum, undecided, none_holds, invalid, unfinished.

    Also `run` and `run_without_slo`: one trial; and `no_trial`.
    """
    single = outcome.startswith("run") or outcome == "no_trial"
    slos = () if outcome in ("run_without_slo", "no_trial") else slos
    levels = [(8, "run")] if single else [level for level in LEVELS if outcome != "maximum" or level[0] <= 16]
    if outcome == "unfinished":
        levels = levels[:3]
    if outcome == "no_trial":
        levels = []
    if outcome == "none_holds":
        levels = [(2, "bracket"), (1, "bracket")]
    dead = outcome == "none_holds"
    files = {number: seen(agents, seed=number, dead=dead) for number, (agents, _) in enumerate(levels, 1)}
    late = {2: 5, 3: 1} if outcome == "found" else dict.fromkeys(files, 5) if outcome == "invalid" else {}
    tried = [
        judged(number, agents, purpose, slos=slos, late=late.get(number, 0), dead=dead)
        for number, (agents, purpose) in enumerate(levels, 1)
    ]
    trials = [_trial_json(item) for item in tried]
    # The second level of a search is of its own kind; of a single trial it is the same.
    kinds = [outcome] if outcome in ("found", "maximum", "undecided", "invalid") else [outcome] * 2
    results = [_result([*kinds, "undecided"][index], slo, index, trials, tried) for index, slo in enumerate(slos)]
    first = results[0] if results else _without_slo(bool(trials))
    return Source(
        score={
            "score_version": 3,
            "methodology_version": "1.1",
            "agentdyno_version": "0.1.0",
            "kind": "run" if single else "score",
            "class": None if single else "standard",
            "started_unix_us": 1_790_000_000_000_000,
            "endpoint": {
                "urls": ["http://127.0.0.1:8000"],
                "model": "simulated-8b",
                "affinity_headers": ["X-Session-ID"],
                "proxy": False,
            },
            "dataset_digest": "d" * 64,
            "dataset_match": None,
            "plan": {
                "digest": "e" * 64,
                "seed": 0,
                "once": False,
                "sessions": 7,
                "turns": 56,
                "prompt_tokens": 458_000,
                "output_tokens": 5600,
                "left_out": [{"session_id": "session-09", "reason": "needs 140,000 tokens of 131,072"}],
            },
            "policies": {
                "delay": "human0-tool300-unsplit10",
                "length": {"mode": "exact", "cap": None, "scale": 1.0},
                "context": {"scale": 1.0, "limit": 131_072, "text_tokens_x": None},
                "isolation": "play",
                "share_head": False,
                "history": "recorded",
                "temperature": 0.0,
                "retries": "left out",
            },
            "slos": [msgspec.json.decode(msgspec.json.encode(slo_to_json(slo))) for slo in slos],
            "results": results,
            "verdict": first["verdict"],
            "reasons": first["reasons"],
            "agents": first["agents"],
            "protocol": msgspec.to_builtins(QUICK),
            "search": None,
            "trials": trials,
            "canary": {"before": _canary(), "after": _canary(), "reasons": []},
            "labels": [
                "class standard: trials of 300 s, shorter than the record class asks",
                *dict.fromkeys(slo.note for slo in slos),
                "synthetic text in 7 of 7 sessions: prefixes are shared as recorded",
                "everything here is simulated: no server was measured, and no device was read",
            ],
            "system": _plain(system_to_json(SYSTEM)),
            "power": ["nvml", "exporter:http://pdu.example.com/metrics"],
            "idle": None if single else _idle_json(),
            "meters": [],
            "curve": _plain(curve(SYSTEM, tried, finite=False)),
            "undisclosed": ["engine_version", "weights"],
            "probe": {"engine": "vllm", "ignore_eos": "honoured", "context_tokens": 131_072, "options": ["a", "b"]},
            "client_limit": {
                "agents": 400,
                "at_least": True,
                "basis": "tried",
                "tok_s": 60.0,
                "prompt_bytes": 90_000,
            },
            "restart": {"command_given": False, "count": 0},
            "against": None,
            "files": {"run.json": "a" * 64, **{f"trials/{number}/records.parquet": "b" * 64 for number in files}},
        },
        trials=files,
        folder="example-run",
        unfinished=outcome == "unfinished",
    )


def _without_slo(ran: bool) -> dict[str, Any]:
    if ran:
        return {"verdict": "met", "reasons": [], "agents": 8.0}
    return {"verdict": "invalid", "reasons": ["no trial was run"], "agents": None}


def _canary() -> dict[str, Any]:
    server = ServerCanary(
        greedy=(Greedy(first="four", second="four", error=None),),
        tools=ToolCalls(asked=4, answered=4, sound=4, skipped=None),
        free=FreeAnswer(words=180, distinct_share=0.64, skipped=None),
        recorded=LogProbability(tokens=0, mean_nats=None, skipped="the server gives no prompt log-probabilities"),
    )
    result: dict[str, Any] = msgspec.to_builtins(
        CanaryResult(version=1, model="simulated-8b", seconds=3.2, servers=(server,))
    )
    return result


def _result(outcome: str, slo: Slo, index: int, trials: list[dict[str, Any]], tried: list[Judged]) -> dict[str, Any]:
    held = [(item, item["measure"]["slos"][index]) for item in trials]
    result: dict[str, Any] = {
        "slo": slo.name,
        "verdict": "invalid",
        "reasons": [],
        "agents": None,
        "whole": None,
        "at_least": False,
        "interval": None,
        "interval_why_not": "nothing was found",
        "certified": None,
        "certified_why_not": "nothing was found",
        "goodput_agents": None,
        "goodput_trial": None,
        "reference_trial": None,
        "protocol_unmet": [],
        "search": None,
        "denominators": [],
        "energy": {},
        "money": None,
        "engineers": None,
    }
    if outcome.startswith("run"):
        item, own = held[0]
        return result | {
            "verdict": own["verdict"],
            "reasons": own["reasons"],
            "agents": float(item["agents"]),
            "whole": item["agents"],
            "interval_why_not": "one trial was run: an interval needs several around the answer",
            "goodput_agents": own["goodput_agents"],
            "goodput_trial": item["trial"],
            "reference_trial": item["trial"] if own["verdict"] == "met" else None,
            "protocol_unmet": ["measured 60 s, the preset asks for 600 s"],
        }
    if outcome == "unfinished":
        return result | {"reasons": ["the search is not over: 32 agents come next"]}
    points = [
        Point(item["trial"], item["agents"], math.inf if own["margin"] is None else own["margin"])
        for item, own in held
        if item["purpose"] == "confirm" and own["verdict"] != "invalid"
    ]
    fit = fieller(points)
    verdicts = {"found": "met", "maximum": "met", "none_holds": "missed", "undecided": "undecided"}
    why = {
        "found": "the margin crosses zero there in 5 confirmation trials",
        "maximum": "the largest allowed level, 16 agents, holds; the system may hold more",
        "none_holds": "a single agent misses the level",
        "undecided": "the confirmation trials do not say where the margin crosses zero",
        "invalid": "the trial at 8 agents was invalid twice, so nothing is known there",
    }[outcome]
    agents = {"found": fit.root if fit else None, "maximum": 16.0, "none_holds": 0.0}.get(outcome)
    met = [item for item, own in held if own["verdict"] == "met" and agents and item["agents"] <= agents]
    if outcome == "found" and not met:
        outcome, agents = "undecided", None
    reference = max(met, key=lambda item: (item["agents"], item["trial"]), default=None)
    result |= {
        "verdict": verdicts.get(outcome, "invalid"),
        "reasons": [why],
        "agents": agents,
        "whole": math.floor(agents) if agents is not None else None,
        "at_least": outcome == "maximum",
        "search": {
            "outcome": outcome,
            "why": why,
            "passed": 16,
            "fit": msgspec.json.decode(msgspec.json.encode(fit)) if fit is not None else None,
        },
    }
    if outcome == "found" and fit is not None and fit.low is not None and reference is not None:
        result |= {
            "interval": {"low": fit.low, "high": fit.high, "level": 0.95, "method": "fieller"},
            "interval_why_not": None,
            "certified": math.floor(fit.low),
            "certified_why_not": None,
        }
    if reference is not None:
        goodput = reference["measure"]["slos"][index]["goodput_agents"]
        result |= {
            "reference_trial": reference["trial"],
            "goodput_trial": reference["trial"],
            "goodput_agents": goodput,
        }
        basis = [item for item in tried if fit is not None and item.trial in fit.trials]
        result |= _divided(result, agents or 0.0, tried[reference["trial"] - 1], basis if outcome == "found" else [])
    return result


def _divided(result: dict[str, Any], agents: float, reference: Judged, basis: list[Judged]) -> dict[str, Any]:
    """What the agents are divided by, from the trials that the number rests on."""
    powers = denominators(SYSTEM, basis or [reference], agents)
    interval = (result["interval"]["low"], result["interval"]["high"]) if result["interval"] else None
    certified = result["certified"]
    rows = denominator_rows(
        SYSTEM, powers, agents, interval=interval, certified=certified, goodput=result["goodput_agents"]
    )
    jobs_per_h = reference.measure.metrics.jobs.per_h
    found: dict[str, Any] = _plain(
        {
            "denominators": rows,
            "energy": energy_use(SYSTEM, reference, idle()),
            "money": money(SYSTEM, powers, agents, certified=certified, jobs_per_h=jobs_per_h),
            "engineers": engineers(SYSTEM, agents, interval=interval, certified=certified),
        }
    )
    return found
