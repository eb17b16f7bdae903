"""Plays a script on a virtual clock: an event loop that never sleeps, and a server that answers after given times."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from replay.plan import Play
from replay.record import RequestRecord
from replay.runner import PlayRunner, Track
from replay.script import PreparedRequest, Script, Turn
from replay.wire import Timeouts, Wire

CHAT = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer when nothing else is to do."""

    def __init__(self) -> None:
        self.virtual_s = 0.0
        super().__init__()

    def time(self) -> float:
        return self.virtual_s

    def _run_once(self) -> None:
        loop: Any = self
        if not loop._ready and loop._scheduled:
            self.virtual_s = max(self.virtual_s, loop._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


class _Track(Track):
    def now(self) -> int:
        return round(asyncio.get_running_loop().time() * 1e9)


class _Endpoint:
    model = "virtual"

    def server_of(self, _: int) -> int:
        return 0


class _Named:
    """A script whose paths are its requests' indices."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.turns = script.turns

    def request(self, turn: Turn, **given: Any) -> PreparedRequest:
        body = self.script.request(turn, **given).body
        return PreparedRequest(path=str(turn.request_index), body=body)


class _Caller:
    """A server that takes `answer_s` for each request, or for each its own, and says its index."""

    def __init__(self, answer_s: float | Mapping[int, float]) -> None:
        self.endpoint = _Endpoint()
        self.answer_s = answer_s
        self.bodies: dict[int, bytes] = {}

    async def collect(self, path: str, body: bytes, wire: Wire, **_: object) -> None:
        loop = asyncio.get_running_loop()
        number = int(path)
        self.bodies[number] = body
        wire.asked_at_ns = wire.sent_at_ns = wire.written_at_ns = round(loop.time() * 1e9)
        await asyncio.sleep(self.answer_s if isinstance(self.answer_s, float) else self.answer_s[number])
        wire.status = 200
        wire.headers_at_ns = wire.end_at_ns = round(loop.time() * 1e9)
        wire.data.append(CHAT % b"said %d" % number)
        wire.data_at_ns.append(wire.end_at_ns)


class _Watch:
    def dispatched(self, intended_at_ns: int, sent_at_ns: int) -> None:
        pass


def run_virtually[Result](main: Coroutine[Any, Any, Result]) -> Result:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def play_virtually(
    script: Script, answer_s: float | Mapping[int, float], *, first_turn: int = 0, history: Any = "recorded"
) -> tuple[list[RequestRecord], dict[int, bytes]]:
    """The records of one play, in order of sending, and the bodies that were sent, by request index."""
    caller: Any = _Caller(answer_s)
    records: list[RequestRecord] = []
    watch: Any = _Watch()
    spool: Any = records
    track = _Track(caller=caller, timeouts=Timeouts(), zero_ns=0, watch=watch, spool=spool, history=history)
    play = Play(agent=0, play=0, session_id=script.session_id, salt="1" * 16, first_turn=first_turn)

    async def main() -> None:
        await PlayRunner(track, play, _Named(script), 0).run()

    run_virtually(main())
    return sorted(records, key=lambda record: (record.sent_at_ns, record.request_index)), caller.bodies
