"""Which requests a trace of loads can hold: those that a server answered, of known time and length."""

from __future__ import annotations

from capture.trajectory import Request
from curate.blocks import PromptBlocks


def unfit(request: Request, blocks: PromptBlocks | None) -> str | None:
    """Why a trace of loads cannot hold a request; None when it can."""
    if request.kind == "auxiliary":
        return "auxiliary requests (token counts, titles)"
    if (request.status is not None and request.status >= 400) or (
        request.error is not None and request.answer_index is None
    ):
        return "failed requests"
    if request.t_send_us is None:
        return "requests of unknown time"
    if blocks is None and request.hashed_tokens is None:
        return "requests of unknown input length"
    if request.completion_tokens is None and request.answer_index is None:
        return "requests of unknown output length"
    return None


def unfit_chat(request: Request) -> str | None:
    """Why a trace of loads that sends the recorded messages themselves cannot hold a request; None when it can."""
    if request.kind != "auxiliary" and request.prompt_spans is None:
        return "requests without text"
    if request.prompt_spans is not None and not any(end > start for start, end in request.prompt_spans):
        return "requests without a message"
    reason = unfit(request, None)
    return None if reason == "requests of unknown input length" else reason  # with text nobody has to tell it
