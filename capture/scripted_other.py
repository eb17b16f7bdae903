"""What the scripted server answers to requests that are no call to a model, so that no agent stumbles over them."""

from __future__ import annotations

import json
from typing import Any

from capture.scripted_answer import error_body
from capture.scripted_http import Head


def other_answer(
    head: Head, sent: bytes, models: tuple[str, ...], websocket_refusal: int | None = None
) -> tuple[int, bytes]:
    """(status, JSON body) for a model list, a token count, a refused upgrade, telemetry or anything else."""
    plain, _, query = head.path.partition("?")
    plain = plain.rstrip("/")
    if "websocket" in head.value("upgrade").lower():
        text = "this server speaks HTTP with server-sent events only"
        return websocket_refusal or 426, error_body(None, "upgrade_required", text)
    tokens = len(sent) // 4 + 1
    if head.method == "GET" and plain.endswith("/models"):
        return 200, json.dumps(_models(models, gemini="/v1beta" in plain, codex="client_version=" in query)).encode()
    if plain.endswith("/messages/count_tokens"):
        return 200, json.dumps({"input_tokens": tokens}).encode()
    if plain.endswith("/responses/input_tokens"):
        return 200, json.dumps({"object": "response.input_tokens", "input_tokens": tokens}).encode()
    if plain.endswith(":countTokens"):
        return 200, json.dumps({"totalTokens": tokens}).encode()
    if plain.endswith("/memories/trace_summarize"):
        return 200, json.dumps({"output": []}).encode()
    return 200, b"{}"


def _models(models: tuple[str, ...], *, gemini: bool, codex: bool) -> dict[str, Any]:
    if codex:  # its own shape has dozens of required fields; without entries it keeps what it was built with
        return {"models": []}
    if gemini:
        methods = ["generateContent", "countTokens"]
        named = [
            {"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": methods} for name in models
        ]
        return {"models": named}
    listed = [
        {
            "id": name,
            "object": "model",
            "type": "model",
            "display_name": name,
            "created": 0,
            "created_at": "2026-01-01T00:00:00Z",
            "owned_by": "scripted",
        }
        for name in models
    ]
    ends = {"first_id": models[0] if models else None, "last_id": models[-1] if models else None}
    return {"object": "list", "data": listed, "has_more": False, **ends}
