"""Made-up sessions of coding agents with planted secrets, as a review has them on its desk: words of our own."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from capture.call import Message, ToolUse
from capture.trajectory import CaptureQuality, PooledMessage, Request, ToolCall, Trajectory
from curate.recipe import Recipe, Statistics
from tests.sample_sessions import TOOLS, make, request

RECIPE = Recipe(pretty_name="Team traces, week 47", statistics=Statistics(plots=False))
SYSTEM = "You are a coding agent. Work in small steps, run the tests after each change, and say what you did."
# Put together here, so that no scanner takes this file for a leak. None of them opens anything.
TOKEN = "ghp_" + "x7Kq2LmV9sRtY4bN8wZc" + "3HfJ6dPgA1eUo5Qi"
AWS = "AKIA" + "Q7ZL5TXN2WMR4KJD"
PASSWORD = "Sommer" + "regen-42!"


class Script:
    """Writes a session turn by turn; times in seconds."""

    def __init__(self, session_id: str, seed: int, **facts: Any) -> None:
        self.session_id, self.facts, self.random = session_id, facts, random.Random(seed)
        self.pool: list[PooledMessage] = []
        self.requests: list[Request] = []
        self.calls: list[ToolCall] = []
        self.now = 0.0
        self.tokens = 9_800
        self.cached = 0
        self.gap: tuple[str, float] = ("none", 0.0)
        self.positions: dict[str, list[int]] = {}
        self.last: dict[str, int] = {}
        self.say("system", SYSTEM)

    def say(self, role: Any, content: str, path: str = "main", **fields: Any) -> None:
        self._add(Message(role=role, content=content, **fields), path)

    def _add(self, message: Message, path: str, *, answer: bool = False) -> None:
        index = len(self.requests) - 1 if answer else len(self.requests)
        self.positions.setdefault(path, []).append(len(self.pool))
        at = PooledMessage(
            message=message, agent_path=path, request_index=index, t_us=int(self.now * 1e6), answer=answer
        )
        self.pool.append(at)

    def human(self, seconds: float, content: str) -> None:
        self.now += seconds
        self.gap = ("human", seconds)
        self.say("user", content)

    def turn(
        self,
        *tools: tuple[str, str, dict[str, Any], str, float],
        text: str = "",
        thinking: str | None = None,
        path: str = "main",
        spawned_by: int | None = None,
        **fields: Any,
    ) -> int:
        """One model call whose answer calls these tools: (name, kind, arguments, result, seconds)."""
        index = len(self.requests)
        uses = tuple(
            ToolUse(id=f"call_{index}_{i}", name=name, arguments=json.dumps(arguments))
            for i, (name, _, arguments, _, _) in enumerate(tools)
        )
        send, took = self.now, self.random.uniform(2.5, 9.0)
        prompt = self.tokens if path == "main" else 4_200 + 1_100 * len(self.positions.get(path, ()))
        spans = tuple((position, position + 1) for position in self.positions.get(path, ()))
        parent = self.last.get(path, spawned_by)
        kind, gap = self.gap if path == "main" else ("spawn" if path not in self.last else "tool", 0.4)
        self.requests.append(
            request(
                index,
                agent_path=path,
                parent_request_index=parent,
                model=self.facts.get("models", ("model-a",))[0],
                t_send_us=int(send * 1e6),
                t_headers_us=int((send + 0.3) * 1e6),
                t_first_byte_us=int((send + 0.35) * 1e6),
                t_first_token_us=int((send + 0.8) * 1e6),
                t_last_token_us=int((send + took) * 1e6),
                t_end_us=int((send + took) * 1e6),
                gap_us=None if parent is None or path not in self.last else int(gap * 1e6),
                gap_kind="none" if parent is None else kind,
                think_us=int(gap * 1e6) if kind == "human" else (0 if parent is not None else None),
                prompt_spans=spans,
                answer_index=len(self.pool),
                prompt_tokens=prompt,
                cache_read_tokens=self.cached if path == "main" else None,
                completion_tokens=int(took * 60),
                tool_call_ids=tuple(use.id for use in uses),
                tools_index=0,
                **fields,
            )
        )
        self.last[path] = index
        self.now = send + took
        self._add(
            Message(role="assistant", content=text, reasoning_content=thinking, tool_calls=uses), path, answer=True
        )
        longest = 0.0
        for use, (name, kind, _, result, seconds) in zip(uses, tools, strict=True):
            longest = max(longest, seconds)
            failed = result.startswith("exit 1")
            self.calls.append(
                ToolCall(
                    tool_call_id=use.id,
                    agent_path=path,
                    request_index=index,
                    result_request_index=None,
                    name=name,
                    kind=kind,  # type: ignore[arg-type]
                    t_emitted_us=int(self.now * 1e6),
                    t_result_us=int((self.now + seconds) * 1e6),
                    wall_us=int(seconds * 1e6),
                    internal_us=None,
                    parallel_group=index,
                    result_bytes=len(result),
                    is_error=failed,
                    exit_code=1 if failed else 0,
                    timed_out=False,
                    mixed=False,
                )
            )
            self.say("tool", result, path, tool_call_id=use.id, is_error=failed)
        self.now += longest
        if path == "main":
            self.gap = ("tool", longest)
            self.cached = self.tokens
            self.tokens += int(took * 60) + sum(len(tool[3]) for tool in tools) // 3 + 350
        return index

    def done(self) -> Trajectory:
        """The session; tool results belong to the next request of their chain."""
        following = {
            (one.agent_path, one.parent_request_index): one.request_index
            for one in self.requests
            if one.parent_request_index is not None
        }
        calls = []
        for call in self.calls:
            after = following.get((call.agent_path, call.request_index))
            gone: dict[str, Any] = {"t_result_us": None, "wall_us": None} if after is None else {}
            calls.append(dataclasses.replace(call, result_request_index=after, **gone))
        values: dict[str, Any] = {
            "session_id": self.session_id,
            "source": "wire",
            "source_ref": "journal-1.sqlite",
            "harness": "claude-code",
            "harness_version": "2.3.1",
            "t0_utc_us": 1_793_000_000_000_000 + self.random.randrange(10**12),
            "models": ("model-a",),
            "pool": tuple(self.pool),
            "tool_sets": (TOOLS,),
            "requests": tuple(self.requests),
            "tool_calls": tuple(calls),
            "duration_us": int(self.now * 1e6),
            "api_us": sum((one.t_end_us or 0) - one.sent_us for one in self.requests),
            "tool_us": sum(call.wall_us or 0 for call in calls),
            "human_us": sum(one.think_us or 0 for one in self.requests),
            "num_user_messages": sum(one.message.role == "user" and one.agent_path == "main" for one in self.pool),
            "num_subagents": len({one.agent_path for one in self.requests} - {"main"}),
            "num_compactions": 0,
            "hash_scope": None,
            "token_source": "provider",
            "tokenizer": None,
            "license": "CC-BY-4.0",
            "quality": CaptureQuality(complete=True, gaps=0, clock_err_us=40, body_missing=0),
            "mode": "reverse",
            "consent": "team-agreed-2026-11",
            "contributor": "c-4f21",
        }
        return Trajectory(**{**values, **self.facts})


def _read(path: str, content: str) -> tuple[str, str, dict[str, Any], str, float]:
    return "read", "read", {"path": path}, content, 0.3


def _run(command: str, output: str, seconds: float) -> tuple[str, str, dict[str, Any], str, float]:
    return "bash", "exec", {"command": command}, output, seconds


CODE = '''from decimal import Decimal

from billing.rates import rate_for


def total(lines: list[Line], country: str) -> Decimal:
    """The sum of an invoice with tax, to the cent."""
    net = sum((line.amount * line.quantity for line in lines), Decimal(0))
    return (net * (1 + rate_for(country))).quantize(Decimal("0.01"))
'''


def invoice() -> Trajectory:
    """A long session with all that a reviewer must see."""
    s = Script("claude-7d1f03a9c2", 1)
    s.say("user", "The invoice totals are off by a cent in CI since yesterday. Please find out why and fix it.")
    s.turn(
        _run(
            "git log --oneline -3 && git remote -v",
            "a41f9c2 Rates from the service\n77b0e1d Typed lines\n1c9e5aa Fix tests\n"
            f"origin https://{TOKEN}@github.com/mueller-und-co/billing.git (fetch)",
            1.2,
        ),
        _read("/home/hannah/src/billing/billing/total.py", CODE),
        thinking="Off by one cent sounds like rounding per line and then over the sum. First see what changed.",
        text="I look at the last changes and at the code that sums up.",
    )
    first = s.turn(
        (
            "task",
            "subagent",
            {"prompt": "Find every place that rounds money."},
            "Three places: total.py:9, rates.py:41, export.py:118.",
            31.0,
        ),
        text="I have a second agent look for every place that rounds.",
    )
    s.now -= 30
    s.say("user", "Find every place that rounds money in this repository. Answer with a list.", "main/1")
    s.turn(
        _run("grep -rn quantize billing | head", "billing/total.py:9\nbilling/rates.py:41\nbilling/export.py:118", 0.8),
        path="main/1",
        spawned_by=first,
        agent_type="Explore",
    )
    s.turn(text="Three places: total.py:9, rates.py:41, export.py:118.", path="main/1")
    s.now += 12
    s.turn(
        _read(
            "/home/hannah/src/billing/.env",
            f"DATABASE_URL=postgres://billing:{PASSWORD}@db01.mueller.internal:5432/billing\nAWS_ACCESS_KEY_ID={AWS}\nRATES_CACHE=600\nMAIL_FROM=hannah.mueller@mueller-und-co.de\n",
        ),
        thinking="rates.py reads the service's address from the environment, so look what is set.",
    )
    log = "\n".join(f"tests/test_total.py::test_case_{n:03d} PASSED" for n in range(160))
    s.turn(
        _run(
            "pytest -q",
            f"exit 1\n{log}\nFAILED tests/test_rates.py::test_rounding - assert Decimal('11.90') == Decimal('11.91')\n"
            "1 failed, 160 passed in 48.10s",
            48.1,
        ),
        text="The failing case is the one with three lines: the rate is rounded before it is used.",
    )
    s.human(
        190,
        "Yes, rates must keep four digits. If you need the staging box: the password is Winter-Abend7 and it listens "
        "on 10.20.4.17.",
    )
    s.turn(
        (
            "edit",
            "edit",
            {
                "path": "/home/hannah/src/billing/billing/rates.py",
                "old": 'quantize(Decimal("0.01"))',
                "new": 'quantize(Decimal("0.0001"))',
            },
            "1 replacement",
            0.2,
        ),
        text="Thanks. I change the rate to four digits.",
    )
    s.turn(_run("pytest -q", f"{log}\n161 passed in 47.02s", 47.0), text="Now the whole suite.")
    s.human(64, "Great, commit it.")
    s.turn(
        _run(
            "git commit -am 'Keep four digits of a rate'",
            "[main 5e0c1d7] Keep four digits of a rate\n 1 file changed, 1 insertion(+), 1 deletion(-)",
            0.6,
        )
    )
    s.turn(text="Done: rates keep four digits, invoices round once at the end. All 161 tests pass.")
    return s.done()


HOSTILE = (
    '<script>window.__ran = 1</script> </script><img src=x onerror="window.__ran = 1"> '
    '<a href="javascript:window.__ran=1">x</a> </textarea></style><svg onload="window.__ran=1"> '
    "{{7*7}} ${window.__ran = 1} https://example.org/beacon.png \u202egnp.exe \u0000"
)


def hostile() -> Trajectory:
    """Text that tries to be markup or script, in every field that the page shows."""
    s = Script(
        "codex-hostile-11",
        2,
        harness=f"codex{HOSTILE}",
        models=(f"model-b{HOSTILE}",),
        license=HOSTILE,
        consent=HOSTILE,
    )
    s.say("user", f"Why does this page not render? {HOSTILE}")
    s.turn((f"bash{HOSTILE}", "exec", {"command": HOSTILE}, f"exit 1 {HOSTILE}", 2.0), text=HOSTILE, thinking=HOSTILE)
    s.turn(text=f"It does now. {HOSTILE}", error=f"overloaded {HOSTILE}")
    return s.done()


def long_output() -> Trajectory:
    """A tool that printed far more than anybody reads, with a finding deep inside, behind characters beyond U+FFFF."""
    s = Script("pi-long-output-3", 3, harness="pi", harness_version="0.9", contributor="c-90aa", license=None)
    line = "2026-11-02T10:00:00Z INFO \U0001f680 worker 7 took job, 12 left\n"
    s.say("user", "Look through the log for the failed job.")
    s.turn(
        _run("cat worker.log", line * 2_000 + f"authorization: Bearer {TOKEN}\n" + line * 2_000 + "needle 4711\n", 6.0)
    )
    s.turn(text="Job 4711 failed for want of space.")
    return s.done()


_TASKS = (
    "Add a flag for dry runs.",
    "The date parser takes 31 April. Make it refuse.",
    "Write a test for the retry path.",
    "Rename Shelf to Store in the whole package.",
    "Why is the import so slow?",
    "Port the settings page to the new form library.",
)


def ordinary(n: int) -> Trajectory:
    """A short session without much in it."""
    harness = ("claude-code", "codex", "pi", "opencode")[n % 4]
    s = Script(
        f"{harness.split('-')[0]}-{(n * 2654435761) % 2**32:08x}",
        100 + n,
        harness=harness,
        harness_version=f"{1 + n % 3}.{n % 7}.0",
        models=(("model-a", "model-b", "model-c")[n % 3],),
        contributor=("c-4f21", "c-90aa", "c-d03b")[n % 3],
    )
    s.say("user", _TASKS[n % len(_TASKS)])
    mail = "write to jo.berger@mueller-und-co.de" if n % 5 == 0 else "ok"
    for turn in range(3 + n % 6):
        s.turn(
            _read(f"/home/hannah/src/app/part{turn}.py", f"# part {turn}\nvalue = {turn}\n{mail}"), text="I read on."
        )
    if n % 6 == 0:
        s.turn(_run("env | grep TOKEN", f"GITHUB_TOKEN={TOKEN}", 0.4))
    s.turn(text="Done.")
    return s.done()


def build_sample(folder: Path, *, ordinary_sessions: int = 20) -> Path:
    """A dataset of these sessions."""
    sessions = [invoice(), hostile(), long_output(), *(ordinary(n) for n in range(ordinary_sessions))]
    make(sessions, folder, recipe=RECIPE)
    return folder
