"""Plays a scripted answer: its frames at the step's pace, its faults at their place, every stamp taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from capture.scripted_answer import Answer, Frame, body, error_body, error_frame, frames, is_array, response_headers
from capture.scripted_http import Hangup, head_bytes, write_json
from capture.scripted_log import Times


async def pause(milliseconds: float) -> None:
    """Waits; not at all for 0."""
    if milliseconds > 0:
        await asyncio.sleep(milliseconds / 1000)


async def play_frames(answer: Answer, times: Times, write: Callable[[Frame], Awaitable[None]]) -> bool:
    """Writes the answer's frames by `write`; false where the script wants the connection cut instead of the rest."""
    step = answer.step
    pause_ms = step.first_content_ms
    for frame in frames(answer):
        if frame.starts_block or frame.content:
            await pause(pause_ms)
            pause_ms = 0.0
        if step.broken is not None and frame.content and times.content_events >= step.broken.after_content_events:
            times.fault = step.broken.how
            if step.broken.how == "error_event":
                await write(error_frame(answer, step.broken.kind, step.broken.message))
                return True
            return False
        await write(frame)
        if frame.content:
            # Taken after the write: the bytes are with the kernel, as no client can have read them before.
            times.last_content = time.monotonic_ns()
            times.first_content = times.first_content or times.last_content
            times.content_events += 1
            pause_ms = step.between_ms
    return True


async def write_answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, times: Times, answer: Answer
) -> bool:
    """Writes an answer over HTTP; true where the connection may carry another request."""
    step, request = answer.step, answer.request
    await pause(step.headers_ms)
    if step.error is not None:
        error = step.error
        times.fault = f"HTTP {error.status}"
        headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
        text = error_body(request.dialect, error.kind, error.message, error.status)
        await write_json(writer, times, error.status, text, headers=headers)
        return True
    if not request.stream:
        await pause(step.first_content_ms)
        if step.broken is not None:
            times.fault = "cut"
            writer.close()
            return False
        times.first_content = times.last_content = time.monotonic_ns()
        await write_json(writer, times, 200, body(answer), headers=response_headers(answer))
        return True
    array = is_array(request)
    head = {
        "content-type": "application/json; charset=UTF-8" if array else "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "transfer-encoding": "chunked",
    }
    times.status = 200
    writer.write(head_bytes(200, head | response_headers(answer)))
    times.headers = time.monotonic_ns()
    first = True

    async def write(frame: Frame) -> None:
        nonlocal first
        if writer.is_closing() or reader.at_eof():
            raise Hangup
        data = (b"[" if first else b",\r\n") + frame.payload if array else frame.sse
        first = False
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await writer.drain()

    if not await play_frames(answer, times, write):
        writer.close()
        return False
    writer.write((b"1\r\n]\r\n" if array else b"") + b"0\r\n\r\n")
    times.last_byte = time.monotonic_ns()
    await writer.drain()
    return True
