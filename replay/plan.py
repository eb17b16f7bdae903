"""Who sends what after what: a seeded plan, dumped beside the results, so that two runs can be compared."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import math
import random
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from capture.atomic import write_atomically
from replay.compile import AnyScript, compile_script
from replay.delay import DelayPolicy, Durations
from replay.rules import TEMPERATURE, ContextPolicy, History, Isolation, LengthPolicy, Retries
from replay.script import NothingToReplay, PreparedRequest, Prompts, Rules, Script, Turn, redraw
from replay.token_script import TokenScript, shared_heads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from capture.trajectory import Trajectory
    from replay.chat import Cutter
    from replay.delay import Gap

__all__ = [
    "PLAN_VERSION",
    "ContextPolicy",
    "DelayPolicy",
    "EmptyPlan",
    "History",
    "Isolation",
    "LeftOut",
    "LengthPolicy",
    "Plan",
    "PlanFile",
    "Play",
    "PreparedRequest",
    "Retries",
    "Script",
    "SessionPlan",
    "Turn",
    "load_plan",
    "make_plan",
    "token_id_range",
]

PLAN_VERSION = 2

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


class EmptyPlan(ValueError):
    """No session is left; `left_out` says why of each."""

    def __init__(self, text: str, left_out: tuple[LeftOut, ...]) -> None:
        super().__init__(text)
        self.left_out = left_out


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
    delay_rules: dict[str, int]  # how many of its turns wait under which mode of rule
    overlapping_turns: int  # that start at a dispatch, while the request that they follow is in flight
    recorded_api_us: int | None  # what its answers took when they were recorded
    ideal_cached_share: float  # of its prompt tokens, with a cache that forgets nothing within one play
    head_tokens: int  # most of any turn that all plays share; exact for token ids, an estimate for text
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
    share_head: bool  # system message and tools stay shared between the plays of the run
    history: History
    retries: Retries
    refused_fields: tuple[str, ...]  # that this server does not take: its requests go without them
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

    def to_json(self) -> bytes:
        """The file's text, as indented JSON."""
        import msgspec

        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def dump(self, path: Path) -> None:
        """Write `plan.json`."""
        write_atomically(path, self.to_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sessions compiled by the rules, and their order for any number of agents."""

    dataset_digest: str
    seed: int
    once: bool
    isolation: Isolation
    share_head: bool
    history: History
    retries: Retries
    refused_fields: tuple[str, ...]  # that this server does not take: its requests go without them
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
        self, agent: int, *, agents: int | None = None, start_offset_turns: int = 0, trial: int = 0, draw: int = 0
    ) -> Iterator[Play]:
        """What an agent plays, in order.

        Endless: seeded permutations of the sessions, the first play starting up to `start_offset_turns` turns in. An
        agent gets the same sessions at every number of agents, and the first plays of n agents are n unlike sessions.
        With `once`: every session exactly once over all `agents` (1 unless given), largest first, dealt in turn, each
        from its first turn on. `trial` changes nothing but the salts, so that one trial cannot warm the next. Each
        `draw` is another seeded order of sessions and other start offsets, so that trials of one level are not one
        trial repeated.
        """
        sequence = self._once(agent, agents or 1) if self.once else self._endless(agent, draw)
        for play, session_id in enumerate(sequence):
            first_turn = 0
            if play == 0 and not self.once and start_offset_turns > 0:
                last = len(self.scripts[session_id].turns) - 1
                first_turn = self._random("offset", agent, draw=draw).randint(0, min(start_offset_turns, last))
            salt = self._salt(trial, agent, play)
            yield Play(agent=agent, play=play, session_id=session_id, salt=salt, first_turn=first_turn)

    def _random(self, *names: object, draw: int) -> random.Random:
        drawn = ("draw", draw) if draw else ()
        return random.Random(":".join(map(str, (self.seed, *names, *drawn))))

    def _endless(self, agent: int, draw: int) -> Iterator[str]:
        start = list(self.session_ids)
        self._random("start", draw=draw).shuffle(start)
        first = start[agent % len(start)]
        epoch = 0
        while True:
            order = list(self.session_ids)
            self._random("order", agent, epoch, draw=draw).shuffle(order)
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
        names: dict[Isolation, tuple[object, ...]] = {
            "run": ("run",),
            "agent": ("agent", trial, agent),
            "play": ("play", trial, agent, play),
        }
        return _salt(self.nonce, self.seed, *names[self.isolation])

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
            *(self.dataset_digest, self.seed, self.once, self.isolation, self.share_head, self.history, self.retries),
            "temperature" in self.refused_fields,  # the others change no work
            *(self.delay, self.length, self.context, self.tokenizer, self.token_ids),
        )
        return PlanFile(
            version=PLAN_VERSION,
            dataset_digest=self.dataset_digest,
            seed=self.seed,
            once=self.once,
            isolation=self.isolation,
            share_head=self.share_head,
            history=self.history,
            retries=self.retries,
            refused_fields=self.refused_fields,
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
        version = value.get("version") if isinstance(value, dict) else None
        if isinstance(version, int) and version != PLAN_VERSION:
            raise ValueError(f"{path} has plan version {version}; this agentdyno reads version {PLAN_VERSION}")
        return msgspec.convert(value, PlanFile)
    except (msgspec.DecodeError, RecursionError) as fault:
        raise ValueError(f"{path} is no plan of agentdyno: {fault}") from fault


def make_plan(
    trajectories: Iterable[Trajectory],
    *,
    dataset_digest: str,
    seed: int = 0,
    delay: DelayPolicy | None = None,
    length: LengthPolicy | None = None,
    context: ContextPolicy | None = None,
    isolation: Isolation = "play",
    share_head: bool = False,
    history: History = "recorded",
    retries: Retries = "drop",
    refused_fields: tuple[str, ...] = (),
    tokenizer: str = "o200k_base",
    once: bool = False,
    token_ids: tuple[int, int] = DEFAULT_TOKEN_IDS,
    nonce: str | None = None,
) -> Plan:
    """Compile sessions into a plan; raises ValueError where none is left, two have one id, or text is missing for a
    live history.

    `refused_fields` are left out of every request, as far as it would hold them. `token_ids` is the range of ids for
    synthetic prompts, end excluded. Without `nonce` a new one is drawn; with that of a `plan.json` the plan comes out
    the same to the byte. `tokenizer` names the encoding that cuts text where `context.scale` is below 1, and counts
    what the source did not.
    """
    delay, length, context = delay or DelayPolicy(), length or LengthPolicy(), context or ContextPolicy()
    if not 0 <= token_ids[0] < token_ids[1]:
        raise ValueError(f"token ids {token_ids[0]}..{token_ids[1]} are no range")

    @functools.cache
    def cutter() -> Cutter:
        from curate.tokens import load_encoding
        from replay.chat import Cutter

        return Cutter(load_encoding(tokenizer), context.scale)

    if length.mode == "free":
        refused_fields = tuple(name for name in refused_fields if name != "ignore_eos")  # nothing would send it
    nonce = "" if isolation == "none" else nonce if nonce is not None else secrets.token_hex(8)
    # Where all plays have one salt, or none, the head is shared with the rest.
    share_head = share_head and isolation in ("play", "agent")
    rules = Rules(
        delay=delay,
        length=length,
        context=context,
        token_ids=token_ids,
        cutter=cutter,
        retries=retries,
        refused_fields=refused_fields,
        history=history,
        head_salt=_salt(nonce, seed, "run") if share_head else None,
    )
    durations = Durations(seed=seed)
    gaps_of: dict[str, tuple[Gap, ...]] = {}
    scripts: dict[str, AnyScript] = {}
    left_out: list[LeftOut] = []
    with _uncollected():
        for trajectory in trajectories:
            session_id = trajectory.session_id
            if session_id in scripts:
                raise ValueError(f"session {session_id} is in the dataset twice")
            try:
                script, gaps = compile_script(trajectory, rules)
            except NothingToReplay as fault:
                left_out.append(LeftOut(session_id=session_id, reason=str(fault)))
                continue
            if delay.samples:
                durations.add(gaps)
                gaps_of[session_id] = gaps
            reason = _too_long(script, context)
            if reason is None:
                scripts[session_id] = script
            else:
                left_out.append(LeftOut(session_id=session_id, reason=reason))
    if not scripts:
        why = f"; the first: {left_out[0].session_id}: {left_out[0].reason}" if left_out else ""
        raise EmptyPlan(f"the plan is empty: {len(left_out)} sessions were left out{why}", tuple(left_out))
    if delay.samples:
        for session_id, script in scripts.items():
            script.turns = tuple(
                redraw(turn, gap, session_id, delay, durations)
                for turn, gap in zip(script.turns, gaps_of[session_id], strict=True)
            )
    if share_head:
        shared_heads([script for script in scripts.values() if isinstance(script, TokenScript)])
    return Plan(
        dataset_digest=dataset_digest,
        seed=seed,
        once=once,
        isolation=isolation,
        share_head=share_head,
        history=history,
        retries=retries,
        refused_fields=refused_fields,
        nonce=nonce,
        delay=delay,
        length=length,
        context=context,
        tokenizer=tokenizer,
        token_ids=token_ids,
        session_ids=tuple(sorted(scripts)),
        left_out=tuple(left_out),
        scripts=scripts,
    )


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: compiling makes no cycles, and it would walk all that stays again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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
    rules: Counter[str] = Counter()
    for turn in script.turns:
        delays[turn.delay_kind] += turn.delay_us
        rules[turn.delay_rule] += 1
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
        delay_rules=dict(sorted(rules.items())),
        overlapping_turns=sum(bool(turn.wait_for_dispatch) for turn in script.turns),
        recorded_api_us=script.recorded_api_us,
        ideal_cached_share=cached / sum(weights) if sum(weights) else 0.0,
        head_tokens=max((_head_tokens(script, position) for position in range(len(script.turns))), default=0),
        requests_left_out=dict(sorted(script.left_out.items())),
        digest=_digest(script.session_id, script.prompts, *map(repr, script.turns)),
    )


def _head_tokens(script: Script, position: int) -> int:
    units = script.head_units(position)
    if not units:
        return 0
    head = script.size(position, units)
    return math.ceil(_prompt_tokens(script.turns[position]) * head.shared / max(1, head.total))


def _salt(*names: object) -> str:
    """Sixteen digits that follow from the names."""
    digest = hashlib.sha256(":".join(map(str, names)).encode()).digest()
    return f"{int.from_bytes(digest[:8], 'big') % 10**16:016d}"


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
