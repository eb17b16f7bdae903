"""Why an exchange with a model host is kept but not read, and what can be done instead."""

from __future__ import annotations

import re

from capture.exchange import Exchange

_LOGS = "import the agent's own log instead (`agentdyno capture import --help`)"
_BY_PATH: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"/model/[^/]+/(invoke|converse)(-with-(bidirectional-)?(response-)?stream)?$"),
        f"Amazon Bedrock streams binary events (application/vnd.amazon.eventstream), which are not read: {_LOGS}",
    ),
    (
        re.compile(r":(streamRawPredict|rawPredict|predict)$"),
        f"Vertex AI's raw prediction calls are not read: {_LOGS}",
    ),
    (
        re.compile(r"/batches(/|$)|:(batch|asyncBatch)\w*$"),
        "a batch job runs without an agent waiting for it and is not read",
    ),
    (re.compile(r"/realtime$|\.BidiGenerateContent$"), "a realtime (audio) socket is not read"),
    (re.compile(r"(?<!chat)/completions$"), "the old text completion API has no messages and is not read"),
)
_CURSOR = (
    "Cursor speaks Connect with protobuf over HTTP/2, which is not read, and its transcripts hold neither token counts"
    " nor times, so there is no import either"
)
_FRAMED = ("application/connect+", "application/proto", "application/grpc", "application/x-protobuf")
_MODEL_HOSTS = re.compile(
    r"(^|\.)(anthropic\.com|openai\.com|chatgpt\.com|generativelanguage\.googleapis\.com|openrouter\.ai|mistral\.ai"
    r"|cloudcode-pa\.googleapis\.com|x\.ai|deepseek\.com|groq\.com|githubcopilot\.com|api\.github\.com|together\.xyz)$"
)


def why_unread(exchange: Exchange) -> str | None:
    """One sentence for an exchange of which no call was read; None where nothing suggests a call to a model.

    Ask only for exchanges of which `read_calls` gave nothing: model lists, telemetry and logins stay unmentioned.
    """
    path = exchange.path.partition("?")[0].rstrip("/")
    host = exchange.host.rpartition(":")[0] or exchange.host
    sent = (exchange.request_header("content-type") or "").lower()
    got = (exchange.response_header("content-type") or "").lower()
    if "cursor.sh" in host or (sent.startswith(_FRAMED) and "cursor" in host):
        return _CURSOR if sent.startswith(_FRAMED) else None
    if "vnd.amazon.eventstream" in got:
        return _BY_PATH[0][1]
    if exchange.method.upper() == "POST" or exchange.messages:
        for pattern, sentence in _BY_PATH:
            if pattern.search(path):
                return sentence
    if exchange.messages:
        return f"the WebSocket {path} carries no Responses frames that are known here and was kept unread"
    if exchange.method.upper() != "POST":
        return None
    if sent.startswith(_FRAMED):
        return f"POST {path} is protobuf ({sent.partition(';')[0]}), which is not read" if _is_model(host) else None
    # A stream of events in answer to a POST is what a model call looks like, wherever it went.
    if "text/event-stream" in got:
        return f"POST {path} streamed events, but neither its path nor its body is of a dialect that is known here"
    return None


def _is_model(host: str) -> bool:
    return _MODEL_HOSTS.search(host) is not None
