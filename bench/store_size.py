"""How much smaller a 150-turn session is in a store than its raw bytes."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path


def store_ratios(folder: Path) -> tuple[float, float, float]:
    """Raw request bytes over stored request bytes, all raw bytes over the whole store, MB raw: a 150-turn session."""
    from capture.journal import JournalWriter
    from capture.store import Store

    chance = random.Random(7)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(4000)]

    def text(count: int) -> str:
        return " ".join(chance.choices(words, k=count))

    tools = [{"name": f"tool_{i}", "description": text(200), "input_schema": {"type": "object"}} for i in range(20)]
    system = [{"type": "text", "text": text(1500)}]
    headers = tuple((f"x-header-{i}".encode(), text(3).encode()) for i in range(25))
    sizes = {}
    for with_answers in (False, True):
        store = Store.open(folder / f"ratio-{with_answers}", create=True)
        journal = JournalWriter(store.path, key=store.key, meta={})
        turns: list[dict[str, object]] = []
        raw_requests = raw_answers = 0
        at = time.monotonic_ns()
        for turn in range(150):
            result = {
                "type": "tool_result",
                "tool_use_id": f"toolu_{turn:04d}",
                "content": text(chance.randint(50, 1000)),
            }
            turns.append({"role": "user", "content": [result]})
            marked = [*turns[:-1], {"role": "user", "content": [{**result, "cache_control": {"type": "ephemeral"}}]}]
            body = json.dumps({"model": "m", "max_tokens": 32000, "stream": True, "system": system, "tools": tools,
                               "messages": marked, "metadata": {"user_id": "u"}}).encode()  # fmt: skip
            raw_requests += len(body)
            answer = text(chance.randint(30, 120))
            use = {"type": "tool_use", "id": f"toolu_{turn + 1:04d}", "name": "Bash", "input": {"command": text(8)}}
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}, use]})
            number = journal.send(
                at_ns=at, connection="c", method="POST", host="h:443", path="/v1/messages", headers=headers
            )
            journal.sent(number, at_ns=at, body=body)
            if with_answers:
                journal.headers(number, at_ns=at, status=200, headers=(*headers, (b"request-id", b"req_%024d" % turn)))
                for word in answer.split():
                    event = (
                        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
                        b'"delta":{"type":"text_delta","text":" %s"}}\n\n' % word.encode()
                    )
                    at += chance.randint(5_000_000, 30_000_000)
                    journal.read(number, at, event)
                    raw_answers += len(event)
                journal.end(number, at_ns=at, outcome="complete")
            time.sleep(0.21 if turn % 10 == 0 else 0)
        journal.close()
        sizes[with_answers] = sum(file.stat().st_size for file in store.path.iterdir())
        found = list(store.exchanges())
        assert sum(len(exchange.request_body) for exchange in found) == raw_requests
    return raw_requests / sizes[False], (raw_requests + raw_answers) / sizes[True], raw_requests / 1e6
