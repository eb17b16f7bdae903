"""Who sends what after what: a seeded plan, dumped beside the results, so that two runs can be compared."""

from __future__ import annotations

import functools
import hashlib
import math
import random
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from capture.atomic import write_atomically
from replay.rules import TEMPERATURE, ContextPolicy, DelayPolicy, Isolation, LengthPolicy
from replay.script import NothingToReplay, PreparedRequest, Prompts, Rules, Script, Turn, compile_script

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from capture.trajectory import Trajectory
    from replay.chat import Cutter

__all__ = [
    "PLAN_VERSION",
    "ContextPolicy",
    "DelayPolicy",
    "Isolation",
    "LeftOut",
    "LengthPolicy",
    "Plan",
    "PlanFile",
    "Play",
    "PreparedRequest",
    "Script",
    "SessionPlan",
    "Turn",
    "load_plan",
    "make_plan",
    "token_id_range",
]

PLAN_VERSION = 1

DEFAULT_TOKEN_IDS = (1_000, 30_000)
"""Ids that nearly every vocabulary uses for plain text: specials sit below, padding and added tokens above."""

TEXT_MARGIN_TOKENS = 64
"""Kept free of a context limit for text, whose tokens only the server knows: the salt and the template's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One agent works through one session once."""

    agent: int
    play: int
    session_id: str
    salt: str  # isolates the prefix cache of this play from every other
    first_turn: int  # position in the script at which it starts


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A session that is not in the plan, and why."""

    session_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """What one session of the plan amounts to, after the rules."""

    session_id: str
    prompts: Prompts
    turns: int
    chains: int
    prompt_tokens: int | None  # of all its turns; exact for token ids, an estimate for text
    output_tokens: int
    longest_context_tokens: int | None  # prompt and output of its longest turn
    delay_us: dict[str, int]  # summed by kind of gap
    recorded_api_us: int | None  # what its answers took when they were recorded
    ideal_cached_share: float  # of its prompt tokens, with a cache that forgets nothing
    requests_left_out: dict[str, int]  # by reason
    digest: str  # over its turns: order, delays, lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """`plan.json`: everything that makes the plan again from its dataset, and what it amounts to."""

    version: int
    dataset_digest: str
    seed: int
    once: bool
    isolation: Isolation
    nonce: str  # part of every salt; drawn anew for each run, so that a warm server knows none of its prompts
    delay: DelayPolicy
    delay_policy_id: str
    length: LengthPolicy
    context: ContextPolicy
    tokenizer: str  # cuts and counts text where contexts are scaled
    token_ids: tuple[int, int]  # range of synthetic prompts, end excluded
    temperature: float
    sessions: tuple[SessionPlan, ...]
    left_out: tuple[LeftOut, ...]
    turns: int
    prompt_tokens: int | None
    output_tokens: int
    ideal_cached_share: float
    delay_us: dict[str, int]
    recorded_api_us: int | None
    plan_digest: str  # over sessions' digests and the rules, without the nonce: equal digests ask for equal work


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sessions compiled by the rules, and their order for any number of agents."""

    dataset_digest: str
    seed: int
    once: bool
    isolation: Isolation
    nonce: str
    delay: DelayPolicy
    length: LengthPolicy
    context: ContextPolicy
    tokenizer: str
    token_ids: tuple[int, int]
    session_ids: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    scripts: Mapping[str, Script] = field(repr=False)

    def script(self, session_id: str) -> Script:
        """The script of a session that is in the plan."""
        return self.scripts[session_id]

    def plays(
        self, agent: int, *, agents: int | None = None, start_offset_turns: int = 0, trial: int = 0
    ) -> Iterator[Play]:
        """What an agent plays, in order.

        Endless: seeded permutations of the sessions, the first play starting up to `start_offset_turns` turns in. An
        agent gets the same sessions at every number of agents, and the first plays of n agents are n unlike sessions.
        With `once`: every session exactly once over all `agents` (1 unless given), largest first, dealt in turn, each
        from its first turn on. `trial` changes nothing but the salts, so that one trial cannot warm the next.
        """
        sequence = self._once(agent, agents or 1) if self.once else self._endless(agent)
        for play, session_id in enumerate(sequence):
            first_turn = 0
            if play == 0 and not self.once and start_offset_turns > 0:
                last = len(self.scripts[session_id].turns) - 1
                first_turn = self._random("offset", agent).randint(0, min(start_offset_turns, last))
            salt = self._salt(trial, agent, play)
            yield Play(agent=agent, play=play, session_id=session_id, salt=salt, first_turn=first_turn)

    def _random(self, *names: object) -> random.Random:
        return random.Random(":".join(map(str, (self.seed, *names))))

    def _endless(self, agent: int) -> Iterator[str]:
        start = list(self.session_ids)
        self._random("start").shuffle(start)
        first = start[agent % len(start)]
        epoch = 0
        while True:
            order = list(self.session_ids)
            self._random("order", agent, epoch).shuffle(order)
            if epoch == 0:
                order.remove(first)
                order.insert(0, first)
            yield from order
            epoch += 1

    def _once(self, agent: int, agents: int) -> Iterator[str]:
        if not 0 <= agent < agents:
            raise ValueError(f"agent {agent} of {agents}: agents are numbered from 0")
        sizes = {name: sum(map(_prompt_tokens, script.turns)) for name, script in self.scripts.items()}
        dealt = sorted(self.session_ids, key=lambda session_id: (-sizes[session_id], session_id))
        yield from dealt[agent::agents]

    def _salt(self, trial: int, agent: int, play: int) -> str:
        """Sixteen digits, or nothing without isolation."""
        if self.isolation == "none":
            return ""
        names = ("run",) if self.isolation == "run" else ("play", trial, agent, play)
        digest = hashlib.sha256(":".join(map(str, (self.nonce, self.seed, *names))).encode()).digest()
        return f"{int.from_bytes(digest[:8], 'big') % 10**16:016d}"

    def summary(self) -> PlanFile:
        """The plan as its file holds it."""
        sessions = tuple(_session_plan(self.scripts[session_id]) for session_id in self.session_ids)
        delays: Counter[str] = Counter()
        for session in sessions:
            delays.update(session.delay_us)
        weights = [session.prompt_tokens or 0 for session in sessions]
        shares = [session.ideal_cached_share for session in sessions]
        cached = sum(weight * share for weight, share in zip(weights, shares, strict=True))
        rules = (
            *(self.dataset_digest, self.seed, self.once, self.isolation),
            *(self.delay, self.length, self.context, self.tokenizer, self.token_ids),
        )
        return PlanFile(
            version=PLAN_VERSION,
            dataset_digest=self.dataset_digest,
            seed=self.seed,
            once=self.once,
            isolation=self.isolation,
            nonce=self.nonce,
            delay=self.delay,
            delay_policy_id=self.delay.policy_id,
            length=self.length,
            context=self.context,
            tokenizer=self.tokenizer,
            token_ids=self.token_ids,
            temperature=TEMPERATURE,
            sessions=sessions,
            left_out=self.left_out,
            turns=sum(session.turns for session in sessions),
            prompt_tokens=_sum([session.prompt_tokens for session in sessions]),
            output_tokens=sum(session.output_tokens for session in sessions),
            ideal_cached_share=cached / sum(weights) if sum(weights) else 0.0,
            delay_us=dict(sorted(delays.items())),
            recorded_api_us=_sum([session.recorded_api_us for session in sessions]),
            plan_digest=_digest(repr(rules), *(session.digest for session in sessions)),
        )

    def to_json(self) -> bytes:
        """The plan's file as indented JSON."""
        import msgspec

        return msgspec.json.format(msgspec.json.encode(self.summary()), indent=2) + b"\n"

    def dump(self, path: Path) -> None:
        """Write `plan.json`."""
        write_atomically(path, self.to_json())


def token_id_range(vocabulary_tokens: int | None) -> tuple[int, int]:
    """Ids for synthetic prompts, end excluded, for a vocabulary of this size: not from its ends, where specials sit."""
    low, high = DEFAULT_TOKEN_IDS
    if vocabulary_tokens is None or vocabulary_tokens > high:
        return low, high
    low, high = vocabulary_tokens // 16, vocabulary_tokens - vocabulary_tokens // 16
    if low >= high:
        raise ValueError(f"a vocabulary of {vocabulary_tokens} tokens is too small for synthetic prompts")
    return low, high


def load_plan(path: Path) -> PlanFile:
    """Read a `plan.json`; raises ValueError that names the file where it is none, or of another version."""
    import msgspec

    try:
        value = msgspec.json.decode(path.read_bytes())
        delay = value.get("delay") if isinstance(value, dict) else None
        if isinstance(delay, dict):  # JSON has no infinity: a cap that is null is none
            value["delay"] = {name: math.inf if cap is None else cap for name, cap in delay.items()}
        plan = msgspec.convert(value, PlanFile)
    except msgspec.DecodeError as fault:
        raise ValueError(f"{path} is no plan of agentdyno: {fault}") from fault
    if plan.version != PLAN_VERSION:
        raise ValueError(f"{path} has plan version {plan.version}; this agentdyno reads version {PLAN_VERSION}")
    return plan


def make_plan(
    trajectories: Iterable[Trajectory],
    *,
    dataset_digest: str,
    seed: int = 0,
    delay: DelayPolicy | None = None,
    length: LengthPolicy | None = None,
    context: ContextPolicy | None = None,
    isolation: Isolation = "play",
    tokenizer: str = "o200k_base",
    once: bool = False,
    token_ids: tuple[int, int] = DEFAULT_TOKEN_IDS,
    nonce: str | None = None,
) -> Plan:
    """Compile sessions into a plan; raises ValueError where none is left, or two have one id.

    `token_ids` is the range of ids for synthetic prompts, end excluded. Without `nonce` a new one is drawn; with that
    of a `plan.json` the plan comes out the same to the byte. `tokenizer` names the encoding that cuts text where
    `context.scale` is below 1, and counts what the source did not.
    """
    delay, length, context = delay or DelayPolicy(), length or LengthPolicy(), context or ContextPolicy()
    if not 0 <= token_ids[0] < token_ids[1]:
        raise ValueError(f"token ids {token_ids[0]}..{token_ids[1]} are no range")

    @functools.cache
    def cutter() -> Cutter:
        from curate.tokens import load_encoding
        from replay.chat import Cutter

        return Cutter(load_encoding(tokenizer), context.scale)

    rules = Rules(delay=delay, length=length, context=context, token_ids=token_ids, cutter=cutter)
    scripts: dict[str, Script] = {}
    left_out: list[LeftOut] = []
    for trajectory in trajectories:
        session_id = trajectory.session_id
        if session_id in scripts:
            raise ValueError(f"session {session_id} is in the dataset twice")
        try:
            script = compile_script(trajectory, rules)
        except NothingToReplay as fault:
            left_out.append(LeftOut(session_id=session_id, reason=str(fault)))
            continue
        reason = _too_long(script, context)
        if reason is None:
            scripts[session_id] = script
        else:
            left_out.append(LeftOut(session_id=session_id, reason=reason))
    if not scripts:
        why = f"; the first: {left_out[0].session_id}: {left_out[0].reason}" if left_out else ""
        raise ValueError(f"the plan is empty: {len(left_out)} sessions were left out{why}")
    return Plan(
        dataset_digest=dataset_digest,
        seed=seed,
        once=once,
        isolation=isolation,
        nonce="" if isolation == "none" else nonce if nonce is not None else secrets.token_hex(8),
        delay=delay,
        length=length,
        context=context,
        tokenizer=tokenizer,
        token_ids=token_ids,
        session_ids=tuple(sorted(scripts)),
        left_out=tuple(left_out),
        scripts=scripts,
    )


def _too_long(script: Script, context: ContextPolicy) -> str | None:
    if context.limit is None:
        return None
    text = script.prompts == "text"
    factor, margin = (context.text_tokens_x, TEXT_MARGIN_TOKENS) if text else (1.0, 0)
    longest = max(math.ceil(_prompt_tokens(turn) * factor) + turn.output_tokens + margin for turn in script.turns)
    if longest <= context.limit:
        return None
    return f"its longest context needs {'about ' if text else ''}{longest} tokens; the limit is {context.limit}"


def _prompt_tokens(turn: Turn) -> int:
    return turn.planned_prompt_tokens or turn.estimated_prompt_tokens or 0


def _longest_context(script: Script) -> int | None:
    return max((_prompt_tokens(turn) + turn.output_tokens for turn in script.turns), default=None)


def _session_plan(script: Script) -> SessionPlan:
    delays: Counter[str] = Counter()
    for turn in script.turns:
        delays[turn.delay_kind] += turn.delay_us
    weights = [_prompt_tokens(turn) for turn in script.turns]
    cached = sum(
        weight * prefix.shared / max(1, prefix.total) for weight, prefix in zip(weights, script.prefixes, strict=True)
    )
    return SessionPlan(
        session_id=script.session_id,
        prompts=script.prompts,
        turns=len(script.turns),
        chains=script.chains,
        prompt_tokens=sum(weights),
        output_tokens=sum(turn.output_tokens for turn in script.turns),
        longest_context_tokens=_longest_context(script),
        delay_us=dict(sorted(delays.items())),
        recorded_api_us=script.recorded_api_us,
        ideal_cached_share=cached / sum(weights) if sum(weights) else 0.0,
        requests_left_out=dict(sorted(script.left_out.items())),
        digest=_digest(script.session_id, script.prompts, *map(repr, script.turns)),
    )


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
