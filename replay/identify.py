"""Which engine a server is, of which version, and what it tells about how it was started.

Read from pages that only one engine has, then from the name under which it lists its models, then from the names of its
metrics. Behind a router it is the router that answers: an engine that is not recognised is `unknown`, never guessed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import httpx
import msgspec

from replay.exposition import NotMetrics, SeriesName, parse_series, read_exposition

if TYPE_CHECKING:
    from replay.endpoint import Caller

type Engine = Literal["vllm", "sglang", "tensorrt-llm", "dynamo", "llama.cpp", "transformers", "unknown"]

TITLES: dict[Engine, str] = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "tensorrt-llm": "TensorRT-LLM",
    "dynamo": "NVIDIA Dynamo",
    "llama.cpp": "llama.cpp",
    "transformers": "transformers serve",
    "unknown": "unknown",
}
_OWNERS: dict[str, Engine] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "tensorrt_llm": "tensorrt-llm",
    "llamacpp": "llama.cpp",
}
_METRIC_STARTS: dict[str, Engine] = {
    "vllm:": "vllm",
    "sglang:": "sglang",
    "trtllm_": "tensorrt-llm",
    "trtllm:": "tensorrt-llm",
    "llamacpp:": "llama.cpp",
    "dynamo_": "dynamo",
}
_TIMEOUT_S = 10.0
_VERSION = re.compile(r"\d[\w.+-]{0,60}")
_INFO_LINE = re.compile(r"^(vllm:cache_config_info\{.*\}) ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the server is, and what it says about its own configuration."""

    engine: Engine
    version: str | None
    evidence: str  # what it was recognised by
    metrics_page: str | None  # address of its own metrics
    settings: Mapping[str, object] = field(repr=False)  # its own words: keys depend on the engine


async def identify(caller: Caller, *, owner: str | None, header: str | None, fingerprint: str | None) -> Identity:
    """Look at the server's pages; `owner`, `header` and `fingerprint` come from answers that it gave before."""
    info, older_info, version_page, properties, health, metrics, prometheus = await asyncio.gather(
        *(
            _get(caller, path)
            for path in (
                "/server_info", "/get_server_info", "/version", "/props", "/health", "/metrics", "/prometheus/metrics",
            )
        )
    )  # fmt: skip
    page, names = _metrics(metrics, prometheus)

    def found(engine: Engine, version: object, evidence: str, settings: Mapping[str, object] | None = None) -> Identity:
        text = version if isinstance(version, str) and _VERSION.fullmatch(version) else None
        return Identity(engine=engine, version=text, evidence=evidence, metrics_page=page, settings=settings or {})

    server_info = _object(info) or _object(older_info)
    told = _object(version_page).get("version")
    if "tp_size" in server_info and "model_path" in server_info:
        return found("sglang", server_info.get("version"), "/server_info", server_info)
    if fingerprint is not None and fingerprint.startswith("vllm-"):
        version = told or fingerprint.removeprefix("vllm-").partition("-")[0]
        return found("vllm", version, "system_fingerprint", _vllm_settings(metrics))
    engine = _OWNERS.get(owner or "")
    props = _object(properties)
    if engine == "llama.cpp" or (header == "llama.cpp" and "default_generation_settings" in props):
        build = props.get("build_info")
        version = build if isinstance(build, str) and "unknown" not in build else None
        return found("llama.cpp", version and version.lstrip("b"), "/props", props)
    if engine == "vllm":
        return found("vllm", told, "owner of its models", _vllm_settings(metrics))
    if engine is not None:
        return found(engine, told or server_info.get("version"), "owner of its models", server_info)
    if "dyn://" in str(_object(health).get("endpoints")):
        return found("dynamo", None, "/health", _object(health))
    for start, of_metrics in _METRIC_STARTS.items():
        if any(name.startswith(start) for name in names):
            settings = _vllm_settings(metrics) if of_metrics == "vllm" else {}
            return found(of_metrics, told, "names of its metrics", settings)
    interface = _object(await _get(caller, "/openapi.json")).get("paths")
    if isinstance(interface, dict) and {"/load_model", "/reset", "/v1/chat/completions"} <= interface.keys():
        return found("transformers", None, "/openapi.json")
    return found("unknown", None, "nothing that we know")


async def _get(caller: Caller, path: str) -> httpx.Response | None:
    try:
        response = await caller.get(path, timeout_s=_TIMEOUT_S)
    except (httpx.TransportError, httpx.DecodingError):
        return None
    return response if response.status_code == 200 else None


def _object(response: httpx.Response | None) -> dict[str, object]:
    if response is None:
        return {}
    try:
        value = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _metrics(metrics: httpx.Response | None, prometheus: httpx.Response | None) -> tuple[str | None, tuple[str, ...]]:
    """Address and names of the metrics, Prometheus text before JSON."""
    best: tuple[str | None, tuple[str, ...]] = (None, ())
    for page, response in (("/metrics", metrics), ("/prometheus/metrics", prometheus)):
        if response is None:
            continue
        try:
            series = read_exposition(response.content)
        except NotMetrics:
            continue
        if best[0] is None or series:
            best = page, tuple(series)
    return best


def _vllm_settings(metrics: httpx.Response | None) -> dict[str, object]:
    """The labels of vLLM's information metrics: it has no page with its arguments."""
    if metrics is None:
        return {}
    line = _INFO_LINE.search(metrics.content.decode("utf-8", "replace"))
    series: SeriesName | None = parse_series(line[1]) if line is not None else None
    return {} if series is None else {"cache_config": dict(series.labels)}
