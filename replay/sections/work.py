"""What work was done: jobs, failures and what they void, the canary, and the audit of token work."""

from __future__ import annotations

from typing import Any

from replay.document import Cell, Section, Table, columns, row
from replay.failure import POLICIES
from replay.metrics import cached_share, spread
from replay.record import RequestRecord
from replay.sample import FAILED, Sample
from replay.sections.score import percentile
from replay.sections.source import Seen, Source
from replay.sentence import UNKNOWN, share, value

_EFFECTS = {"missed": "counts against every limit", "invalid": "voids the trial", "note": "a note"}


def failures(source: Source) -> Section:
    """What went wrong in every trial, and by the published table what each class does to a verdict."""
    score = source.score
    rows = []
    for item in score["trials"]:
        outcomes = item["measure"]["outcomes"]
        failed = item["measure"]["requests"] - outcomes.get("ok", 0) - outcomes.get("stopped", 0)
        rows.append(
            row(
                *(str(item["trial"]), str(item["agents"]), f"{item['measure']['requests']:,}"),
                *(f"{outcomes.get('ok', 0):,}", f"{outcomes.get('stopped', 0):,}"),
                Cell(text=f"{failed:,}", tone="missed" if failed else None),
                ", ".join(f"{count['requests']:,} {_words(count['failure'])}" for count in _counts(item)) or UNKNOWN,
                note="; ".join(item["measure"]["invalid_reasons"]) or None,
            )
        )
    table = Table(
        caption="Requests sent in each trial's window, by how they ended. Stopped: in flight when we ended the trial, "
        "which "
        "is not the server's failure. Below a trial: why its numbers may not be believed.",
        columns=columns("trial", "agents", "requests", "ok", "stopped", "failed", "what was seen:"),
        rows=tuple(rows),
        folded=len(rows) > 20,
    )
    lead = ("A failed request breaks every limit: its times are infinite and its speeds 0. It is never left out.",)
    return Section(slug="failures", title="Failures", lead=lead, blocks=(_policy(score), table))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _counts(item: dict[str, Any]) -> list[dict[str, Any]]:
    return list(item["measure"]["failures"])


def _policy(score: dict[str, Any]) -> Table:
    """The published table of failure classes, with how often each was seen."""
    seen: dict[str, int] = {}
    voided: dict[str, int] = {}
    for item in score["trials"]:
        for each in _counts(item):
            seen[each["failure"]] = seen.get(each["failure"], 0) + each["requests"]
            voided[each["failure"]] = voided.get(each["failure"], 0) + each["voids"]
    rows = []
    for name, policy in sorted(POLICIES.items(), key=lambda item: -seen.get(item[0], 0)):
        above = f" above {policy.most:.0%} of the requests" if policy.effect == "invalid" else ""
        rows.append(
            row(
                *(_words(name), policy.words, f"{_EFFECTS[policy.effect]}{above}"),
                Cell(text=f"{seen.get(name, 0):,}", tone="missed" if seen.get(name) else None),
                Cell(text=str(voided.get(name, 0)), tone="invalid" if voided.get(name) else None),
            )
        )
    return Table(
        caption="Every class of failure, what it does by the published policy, and how many requests of all trials "
        "fell in "
        "it.",
        columns=columns("class:", "what it is:", "effect:", "requests", "trials voided"),
        rows=tuple(rows),
        folded=not seen,
    )


def tokens(source: Source) -> Section:
    """Planned against served tokens: two results compare only when they did the same work."""
    rows = []
    for item in source.score["trials"]:
        work = item["measure"]["work"]
        rows.append(
            row(
                str(item["trial"]),
                str(item["agents"]),
                f"{work['planned_output']:,}",
                f"{work['served_output']:,}",
                share(work["output_shortfall"]),
                f"{work['short_requests']:,}",
                f"{work['uncounted_requests']:,}",
                f"{work['planned_prompt']:,}" if work["prompt_requests"] else UNKNOWN,
                f"{work['served_prompt']:,}" if work["prompt_requests"] else UNKNOWN,
            )
        )
    table = Table(
        caption="Token work of the finished requests in each trial's window. Prompts are compared only where the plan "
        "knows them exactly.",
        columns=columns(
            *("trial", "agents", "output planned", "output served", "missing", "short answers", "uncounted"),
            *("prompt planned", "prompt served"),
        ),
        rows=tuple(rows),
        folded=len(rows) > 12,
    )
    return Section(slug="work", title="Token work and answers", blocks=(table, *_canary(source.score)))


def _canary(score: dict[str, Any]) -> list[Table]:
    canary = score["canary"]
    if not canary or not canary.get("before"):
        return []
    before, after = canary["before"], canary.get("after")
    rows = []
    for number, server in enumerate(before["servers"]):
        later = after["servers"][number] if after and number < len(after["servers"]) else None
        place = f" (server {number + 1})" if len(before["servers"]) > 1 else ""
        old, new = _answers(server), _answers(later) if later else {}
        rows += [row(f"{name}{place}", said, new.get(name, UNKNOWN)) for name, said in old.items()]
    reasons = canary["reasons"]
    note = f"Shifted: {'; '.join(reasons)}." if reasons else "Nothing shifted beyond noise." if after else "Asked once."
    return [
        Table(
            caption=f"Quality canary, the same questions before the first and after the last trial. {note}",
            columns=columns("question:", "before:", "after:"),
            rows=tuple(rows),
        )
    ]


def _answers(server: dict[str, Any]) -> dict[str, str]:
    tools, free, recorded = server["tools"], server["free"], server["recorded"]
    answered = [pair for pair in server["greedy"] if pair["first"] is not None]
    again = sum(pair["first"] == pair["second"] for pair in answered)
    mean = recorded["mean_nats"]
    return {
        "greedy prompts answered alike when asked twice": f"{again} of {len(server['greedy'])}",
        "sound tool calls": tools["skipped"] or f"{tools['sound']} of {tools['asked']}",
        "distinct words of a free answer": free["skipped"] or share(free["distinct_share"]),
        "log-probability of a recorded answer": recorded["skipped"] or f"{value(mean)} nats a token",
    }


def jobs(source: Source) -> Section | None:
    """Finished trajectories, and how agents spent their time."""
    score = source.score
    if not score["trials"]:
        return None
    accelerators = sum(item.get("count", 1) for item in score["system"].get("accelerators") or ())
    done, spent = [], []
    for item in score["trials"]:
        numbers, own = item["measure"], item["measure"]["metrics"]["jobs"]
        per_h = own["per_h"]
        done.append(
            row(
                *(str(item["trial"]), str(item["agents"]), f"{own['finished']:,}"),
                *(value(per_h), value(own["per_h_per_agent"])),
                value(per_h / accelerators if per_h is not None and accelerators else None),
                *(percentile(own["job_s"], "p50", "s"), percentile(own["job_s"], "p95", "s")),
                *(_share_of(own["wait_share"], "p50"), _share_of(own["wait_share"], "p95")),
            )
        )
        time = numbers["agent_time"]
        spent.append(
            row(
                *(str(item["trial"]), str(item["agents"]), value(numbers["requests_per_s"])),
                *(share(numbers["duty_cycle"]), share(_part(time["delay_s"], time["total_s"]))),
                *(share(_part(time["open_s"], time["total_s"])), share(time["explained"])),
                value(numbers["metrics"]["context_tokens_first"]),
                value(numbers["metrics"]["context_tokens_last"]),
            )
        )
    blocks: tuple[Table, ...] = (
        Table(
            caption="Jobs: trajectories from their first turn to their last, planned delays included. Jobs per hour "
            "count "
            "every answered request as its share of its session, since many jobs outlast a window. Wait share: "
            "part of a finished job that the agent waited for the model.",
            columns=columns(
                *("trial", "agents", "finished", "jobs/h", "per agent", "per accelerator", "job P50", "job P95"),
                *("wait share P50", "P95"),
            ),
            rows=tuple(done),
            folded=len(done) > 20,
        ),
        Table(
            caption="How agents spent each window: waiting for the model, in a planned delay, cut by the window's end. "
            "Accounted for: Little's law asks for 98 %. Context: median prompt tokens in the first and the last "
            "quarter of the window.",
            columns=columns(
                *("trial", "agents", "requests/s", "waits for the model", "delays", "open at the end"),
                *("accounted for", "context first", "last"),
            ),
            rows=tuple(spent),
            folded=len(spent) > 20,
        ),
    )
    sessions = source.shown_trial
    if sessions is not None:
        blocks = (*blocks, _sessions(sessions))
    return Section(slug="jobs", title="Jobs and the agents' time", blocks=blocks)


def _sessions(trial: Seen) -> Table:
    """The judged requests of the shown trial by session."""
    rows: dict[str, list[tuple[RequestRecord, Sample]]] = {}
    for pair in zip(trial.observation.requests, trial.observation.samples, strict=True):
        rows.setdefault(pair[0].session_id, []).append(pair)
    lines = []
    for session_id, own in sorted(rows.items()):
        done = [record for record, _ in own if record.outcome == "ok"]
        waits = spread(sample.ttft_s for _, sample in own if sample.ttft_s is not None)
        lines.append(
            row(
                Cell(text=session_id, code=True),
                *(f"{len(own):,}", f"{sum(record.outcome in FAILED for record, _ in own):,}"),
                f"{sum(record.prompt_tokens or 0 for record in done):,}",
                share(cached_share(done)),
                f"{sum(record.completion_tokens or 0 for record in done):,}",
                *(value(waits.p50, "s"), value(waits.p95, "s")),
            )
        )
    return Table(
        caption="Sessions of the trial that is shown.",
        columns=columns(
            "session:", "requests", "failed", "prompt tokens", "cached", "output tokens", "TTFT P50", "TTFT P95"
        ),
        rows=tuple(lines),
        folded=True,
    )


def _share_of(spread: dict[str, Any], name: str) -> str:
    return share(spread[name])


def _part(part: float, whole: float) -> float | None:
    return part / whole if whole else None
