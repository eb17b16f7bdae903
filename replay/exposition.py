"""What engines expose about themselves: the names of their metrics, and a reader of Prometheus text.

Names were read from running servers (vLLM 0.32, SGLang 0.5.21, llama.cpp, the Dynamo 1.6.1 front end) and, for older
versions and TensorRT-LLM, from their published documentation and source. Engines rename metrics between versions, so
each quantity has several candidates, newest first.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, cast

import msgspec

type Quantity = Literal[
    "running",
    "waiting",
    "kv_use",
    "prompt_tokens",
    "generation_tokens",
    "prefix_queries",
    "prefix_hits",
    "preemptions",
    "drafts",
    "accepted",
    "acceptance_length",
    "queue_s_sum",
    "queue_s_count",
]

type Kind = Literal["load", "share", "counter"]
"""`load`: a gauge that adds up over the parts of a server. `share`: a gauge from 0 to 1, of which the fullest part
counts. `counter`: grows until the server restarts."""

KINDS: dict[Quantity, Kind] = {
    "running": "load",
    "waiting": "load",
    "kv_use": "share",
    "prompt_tokens": "counter",
    "generation_tokens": "counter",
    "prefix_queries": "counter",
    "prefix_hits": "counter",
    "preemptions": "counter",
    "drafts": "counter",
    "accepted": "counter",
    "acceptance_length": "share",
    "queue_s_sum": "counter",
    "queue_s_count": "counter",
}

NAMES: dict[Quantity, tuple[str, ...]] = {
    "running": (
        "vllm:num_requests_running",
        "sglang:num_running_reqs",
        "trtllm_num_requests_running",
        "trtllm:numActiveRequests",  # of the JSON form, as the next ones that end so
        "llamacpp:requests_processing",
        "dynamo_frontend_active_requests",
        "dynamo_frontend_inflight_requests",  # waiting ones included
    ),
    "waiting": (
        "vllm:num_requests_waiting",
        "sglang:num_queue_reqs",
        "trtllm_num_requests_waiting",
        "trtllm:numQueuedRequests",
        "llamacpp:requests_deferred",
        "dynamo_frontend_queued_requests",
    ),
    "kv_use": (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",  # before 0.10
        "sglang:token_usage",
        "trtllm_kv_cache_utilization",
        "trtllm:kvCacheUse",
        "llamacpp:kv_cache_usage_ratio",  # builds before mid-2025
        "dynamo_component_kvstats_gpu_cache_usage_percent",  # from 0 to 1, in spite of its name
        "dynamo_component_gpu_cache_usage_percent",
    ),
    "prompt_tokens": (
        "vllm:prompt_tokens_total",
        "sglang:prompt_tokens_total",
        "trtllm_prompt_tokens_total",
        "llamacpp:prompt_tokens_asked_total",  # made here: computed and cached ones together
        "llamacpp:prompt_tokens_total",  # computed ones, where the build does not count cached ones
        "dynamo_frontend_input_sequence_tokens_sum",
    ),
    "generation_tokens": (
        "vllm:generation_tokens_total",
        "sglang:generation_tokens_total",
        "trtllm_generation_tokens_total",
        "llamacpp:tokens_predicted_total",
        "dynamo_frontend_output_tokens_total",
    ),
    "prefix_queries": (
        "vllm:prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_queries_total",  # 0.8 and 0.9
        "sglang:prompt_tokens_total",
        "trtllm_prompt_tokens_total",
        "trtllm:kvCacheAskedBlocks",
        "llamacpp:prompt_tokens_asked_total",
        "dynamo_frontend_input_sequence_tokens_sum",
    ),
    "prefix_hits": (
        "vllm:prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_hits_total",
        "sglang:cached_tokens_total",
        "trtllm_prompt_cached_tokens_total",
        "trtllm:kvCacheReusedBlocks",
        "llamacpp:prompt_tokens_cached_total",
        "dynamo_frontend_cached_tokens_sum",
    ),
    "preemptions": (
        "vllm:num_preemptions_total",
        "sglang:num_retracted_requests_total",
        "sglang:num_retracted_reqs_total",
    ),
    "drafts": ("vllm:spec_decode_num_drafts_total", "llamacpp:spec_decode_num_drafts_total"),
    "accepted": ("vllm:spec_decode_num_accepted_tokens_total", "llamacpp:spec_decode_num_accepted_tokens_total"),
    "acceptance_length": (
        "sglang:spec_accept_length",
        "trtllm_spec_decode_acceptance_length",
        "trtllm:acceptanceLength",
    ),
    "queue_s_sum": (
        "vllm:request_queue_time_seconds_sum",
        "sglang:queue_time_seconds_sum",
        "trtllm_request_queue_time_seconds_sum",
    ),
    "queue_s_count": (
        "vllm:request_queue_time_seconds_count",
        "sglang:queue_time_seconds_count",
        "trtllm_request_queue_time_seconds_count",
    ),
}
"""Candidates of one engine stand in the same order in `prefix_queries` and `prefix_hits`: a share needs both of one."""

WANTED = frozenset(name for names in NAMES.values() for name in names)

REPLICA_LABELS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "attn_tp_rank", "attn_cp_rank", "pid"})
"""Ranks that do the same requests together: where several report, they report one load, which is counted once."""

MOST_SERIES = 400
"""Of one reading; an engine has about 20 that are wanted, times its data-parallel ranks."""
MOST_CHARACTERS_OF_A_SERIES = 2000
"""An exporter in a cluster hangs the labels of a pod on every line."""

_SERIES = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:(\{.*\}))?", re.DOTALL)
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

type Sign = Literal["=", "!=", "=~", "!~"]

type Series = dict[str, float]
"""A name with its labels as the server wrote them → its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesName:
    """A series' name and its labels."""

    name: str
    labels: tuple[tuple[str, str], ...]

    @property
    def part(self) -> tuple[tuple[str, str], ...]:
        """The labels that tell one part of a server from another."""
        return tuple(label for label in self.labels if label[0] not in REPLICA_LABELS)


class NotMetrics(ValueError):
    """A body that is neither Prometheus text nor an engine's statistics."""


def parse_series(text: str) -> SeriesName | None:
    """The name and the labels of `name{label="value",…}`; None where it is not one."""
    found = _SERIES.fullmatch(text)
    if found is None:
        return None
    conditions = parse_labels(found[2] or "{}")
    if conditions is None or any(sign != "=" for _, sign, _ in conditions):
        return None
    return SeriesName(name=found[1], labels=tuple((label, value) for label, _, value in conditions))


def parse_labels(text: str) -> tuple[tuple[str, Sign, str], ...] | None:
    """The conditions of `{label="value",other!~"expression"}`; None where it is none. A series has only `=`."""
    if not (text.startswith("{") and text.endswith("}")):
        return None
    conditions = []
    rest, place = text[1:-1], 0
    while place < len(rest):
        label = _LABEL.match(rest, place)
        if label is None:
            return None
        value = _ESCAPE.sub(lambda escape: "\n" if escape[1] == "n" else escape[1], label[3])
        conditions.append((label[1], cast("Sign", label[2]), value))
        place = label.end()
    return tuple(conditions)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageValue:
    """One line of a metrics page. The value may be NaN or infinite; a time is rare, and the server's own."""

    series: str  # name and labels as the server wrote them
    name: SeriesName
    value: float
    t_unix_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The lines of a metrics page that were asked for, in its order."""

    values: tuple[PageValue, ...]
    is_metrics: bool  # whether any line of it looks like a metric


def read_page(body: bytes, names: frozenset[str], *, most: int) -> Page:
    """The series of `names` on a page of Prometheus text (version 0.0.4) or OpenMetrics text, the first `most` of them.

    A line that is not well formed is left out: one bad line must not cost the page. Times are milliseconds in
    Prometheus text and seconds in OpenMetrics, which ends with `# EOF`.
    """
    starts = tuple(sorted(name.encode() for name in names))
    scale = 1000.0 if body.rstrip().endswith(b"# EOF") else 1.0
    found: list[PageValue] = []
    is_metrics = False
    for line in body.splitlines():
        # A page has thousands of lines, of which a few are wanted: the rest costs one comparison.
        if not line.startswith(starts):
            is_metrics = is_metrics or line.startswith(b"# TYPE ")
            continue
        is_metrics = True
        read = _read_line(line, names, scale)
        if read is not None and len(found) < most:
            found.append(read)
    return Page(values=tuple(found), is_metrics=is_metrics)


def read_exposition(body: bytes) -> Series:
    """The wanted series of an engine's page: Prometheus or OpenMetrics text, or TensorRT-LLM's JSON statistics.

    Values that are not finite are left out. Raises NotMetrics where no line of it looks like a metric.
    """
    if body.lstrip()[:1] in (b"[", b"{"):
        return _read_statistics(body)
    page = read_page(body, WANTED, most=MOST_SERIES)
    if not page.is_metrics:
        raise NotMetrics
    found = {line.series: line.value for line in page.values if math.isfinite(line.value)}
    _add_llama_total(found)
    return found


def _read_line(line: bytes, names: frozenset[str], time_scale: float) -> PageValue | None:
    text = line.decode("utf-8", "replace")
    name_end = _name_end(text)
    if name_end is None:
        return None
    series, rest = text[:name_end], text[name_end:].split()
    if len(series) > MOST_CHARACTERS_OF_A_SERIES or not rest:
        return None
    parsed = parse_series(series)
    if parsed is None or parsed.name not in names:
        return None
    try:
        value = float(rest[0])
        time = float(rest[1]) * time_scale if len(rest) > 1 and rest[1] != "#" else None
    except ValueError:
        return None
    if time is not None and not math.isfinite(time):
        return None
    return PageValue(series=series, name=parsed, value=value, t_unix_ms=time)


def _name_end(text: str) -> int | None:
    """Where the labels end: at the closing brace outside of quotes, or at the first space where there are none."""
    brace, space = text.find("{"), text.find(" ")
    if brace < 0 or 0 <= space < brace:
        return space if space > 0 else None
    quoted = escaped = False
    for place in range(brace, len(text)):
        sign = text[place]
        if escaped:
            escaped = False
        elif sign == "\\":
            escaped = True
        elif sign == '"':
            quoted = not quoted
        elif sign == "}" and not quoted:
            return place + 1
    return None


def _add_llama_total(found: Series) -> None:
    """llama.cpp counts computed and cached prompt tokens apart; the share of hits needs their sum."""
    computed = found.get("llamacpp:prompt_tokens_total")
    cached = found.get("llamacpp:prompt_tokens_cached_total")
    if computed is not None and cached is not None:
        found["llamacpp:prompt_tokens_asked_total"] = computed + cached


def _read_statistics(body: bytes) -> Series:
    """The last entry of TensorRT-LLM's list of iterations. Reading it empties the server's list."""
    try:
        entries = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise NotMetrics from fault
    if entries == []:
        return {}  # no iteration since the last reading: idle, or statistics are switched off
    entry = entries[-1] if isinstance(entries, list) else entries
    if not isinstance(entry, dict) or not ("iter" in entry or "numActiveRequests" in entry):
        raise NotMetrics
    found: Series = {}

    def take(name: str, value: object) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found["trtllm:" + name] = float(value)

    take("numActiveRequests", entry.get("numActiveRequests"))
    take("numQueuedRequests", entry.get("numQueuedRequests"))
    cache, drafting = entry.get("kvCacheStats"), entry.get("specDecodingStats")
    if isinstance(cache, dict):
        used, most = cache.get("usedNumBlocks"), cache.get("maxNumBlocks")
        if type(used) is int and type(most) is int and most > 0:
            take("kvCacheUse", used / most)
        reused, missed = cache.get("reusedBlocks"), cache.get("missedBlocks")
        if type(reused) is int and type(missed) is int:
            take("kvCacheReusedBlocks", reused)
            take("kvCacheAskedBlocks", reused + missed)
    if isinstance(drafting, dict):
        take("acceptanceLength", drafting.get("acceptanceLength"))
    return found
