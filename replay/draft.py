"""A first `system.toml` from what a server tells about itself; what it does not tell stays a comment to fill in."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from capture.secret import is_secret_name
from replay.identify import TITLES
from replay.power.source import PowerFault
from replay.proxy import is_loopback

if TYPE_CHECKING:
    from replay.identify import Identity
    from replay.probe import ProbeReport

MOST_CHARACTERS = 2_000
"""Of one value: a server may say anything."""
HIDDEN = "hidden"

_KEYS: dict[str, str] = {
    "engine": "the serving engine",
    "engine_version": "its version or commit",
    "launch_command": "how it was started, secrets left out",
    "model": "the weights: name and revision",
    "weights": '"trained" or "made-up"',
    "precision": "of the weights, for example bf16 or fp8",
    "kv_dtype": "of the KV cache",
    "moe": "true for a mixture of experts, else false",
    "speculation": 'speculative decoding: its method and depth, or "none"',
    "parallelism": "for example tp 8, or tp 4 x dp 2",
    "router": 'what stands in front of the engines, or "none"',
    "offload": 'where KV goes that does not fit, or "none"',
    "power_cap_w": "watts, where the accelerators are capped",
    "pue": "watts at the meter for one watt of IT, at least 1; beside it pue_kind",
    "pue_kind": 'beside pue: "annual", of energy, or "design", of the largest load',
    "agents_per_engineer": "at work at a time, as measured while recording",
    "provisioned": 'a file beside this one: "system_power.json", as MLPerf writes it',
    "tuned_by": "who chose the settings",
    "run_by": "who ran this",
    "notes": "whatever else a reader should know",
}
_NO_TEXT = frozenset({"power_cap_w", "pue", "agents_per_engineer", "moe"})
_TABLES = """
# [prices]  # undisclosed
# currency = "USD"
# per_accelerator_hour =  # or per_hour, of the whole system
# energy_per_kwh =

# Machines, and what meters cover, where there are any. `agentdyno replay power check` says what is missing.
# [[nodes]]
# name = ""
# rack = ""

# [[meters]]
# device = ""  # as the power source shows it; a list, where several feeds cover one thing together
# covers = "node NAME"  # or "rack NAME", "switch NAME", "facility", …
# u_percent =  # its accuracy by data sheet or calibration
# evidence = ""
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalGpu:
    """A GPU of this machine."""

    name: str
    uuid: str


def local_gpus() -> tuple[LocalGpu, ...]:
    """The NVIDIA GPUs of this machine, none where no driver is visible."""
    from replay.power.nvml import NvmlSource

    try:
        source = NvmlSource(shortest_s=0.0, longest_s=0.0)
    except PowerFault:
        return ()
    try:
        devices = source.describe().devices
        return tuple(
            LocalGpu(name=device.name, uuid=device.uid) for device in devices if device.domain == "accelerator"
        )
    finally:
        source.close()


def is_local(url: str) -> bool:
    """Whether a server's URL is this machine's loopback."""
    return is_loopback(urlsplit(url).hostname or "")


def draft_system(report: ProbeReport, identity: Identity, gpus: Sequence[LocalGpu]) -> str:
    """The text of a system file that `load_system` reads; `gpus` are those that the server may run on."""
    known = {key: value for key, value in _known(report, identity).items() if value}
    title = " ".join(filter(None, (known.get("engine", "unknown engine"), known.get("engine_version"))))
    names = sorted({gpu.name for gpu in gpus})
    hardware = " + ".join(f"{sum(gpu.name == name for gpu in gpus)} x {name}" for name in names)
    lines = [
        "# The system under test, as far as its server tells. Check each line and fill in the rest: whatever stays",
        "# commented out is printed as undisclosed. Recognised by " + _plain(identity.evidence) + ".",
        f"name = {_quoted(', '.join(filter(None, (title, report.model, hardware))))}",
    ]
    for key, meaning in _KEYS.items():
        if key in known:
            lines.append(f"{key} = {_quoted(known[key])}")
        else:
            lines.append(f"# {key} ={'' if key in _NO_TEXT else ' ""'}  # undisclosed: {meaning}")
    if gpus:
        lines += [
            "",
            '# All GPUs that this machine shows. Remove those of others; what was bought and idles has role = "idle".',
        ]
        for gpu in gpus:
            lines += ["[[accelerators]]", f"name = {_quoted(gpu.name)}", f"uuid = {_quoted(gpu.uuid)}", ""]
    else:
        lines += [
            "",
            "# One table for each accelerator by uuid, or one with a count for alike ones.",
            "# [[accelerators]]  # undisclosed",
            '# name = ""',
            '# kind = "gpu"  # or "cpu" or "other"',
            "# count = 1",
        ]
    return "\n".join(lines).rstrip() + "\n" + _TABLES


def _known(report: ProbeReport, identity: Identity) -> dict[str, str]:
    settings = identity.settings
    found = {
        "engine": "" if identity.engine == "unknown" else TITLES[identity.engine],
        "engine_version": identity.version or "",
        "model": report.model,
    }
    notes = [] if report.context_tokens is None else [f"context limit {report.context_tokens} tokens"]
    if report.prefix_reuse == "block" and report.prefix_block_tokens:
        notes.append(f"prefix cache in blocks of {report.prefix_block_tokens} tokens")
    if identity.engine == "sglang":
        found |= _sglang(settings)
    elif identity.engine == "vllm":
        cache = settings.get("cache_config")
        cache = cache if isinstance(cache, dict) else {}
        found["kv_dtype"] = _text(cache, "cache_dtype")
        notes += [f"{name} {value}" for name in ("kv_cache_size_tokens", "gpu_memory_utilization")
                  if (value := _text(cache, name))]  # fmt: skip
    elif identity.engine == "llama.cpp":
        file_name = PurePath(_text(settings, "model_path")).name
        found |= {"precision": _text(settings, "model_ftype"), "model": file_name or report.model}
        defaults = settings.get("default_generation_settings")
        parameters = defaults.get("params") if isinstance(defaults, dict) else None
        found["speculation"] = _text(parameters, "speculative.types") if isinstance(parameters, dict) else ""
        slots = settings.get("total_slots")
        notes += [f"{slots} slots"] if type(slots) is int else []
    found["notes"] = "; ".join(notes)
    return found


def _sglang(settings: Mapping[str, object]) -> dict[str, str]:
    degrees = [f"{name} {settings[key]}" for name, key in
               (("tp", "tp_size"), ("pp", "pp_size"), ("dp", "dp_size"), ("ep", "ep_size"))
               if type(settings.get(key)) is int]  # fmt: skip
    precision = [_text(settings, "dtype"), _text(settings, "quantization")]
    return {
        "launch_command": without_secrets(_text(settings, "launch_command")),
        "model": _text(settings, "model_path"),
        "precision": " ".join(filter(None, precision)),
        "kv_dtype": _text(settings, "kv_cache_dtype"),
        "speculation": _text(settings, "speculative_algorithm") or "none",
        "parallelism": ", ".join(degrees),
        "offload": "hierarchical cache" if settings.get("enable_hierarchical_cache") is True else "none",
    }


def _text(settings: Mapping[str, object], key: str) -> str:
    value = settings.get(key)
    return value if isinstance(value, str) and value not in ("None", "null") else ""


def without_secrets(command: str) -> str:
    """A command line whose secret values are hidden, by the names of their options and variables."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""  # not a command line that can be read, so neither can its secrets
    shown = []
    hide = False
    for word in words:
        name, equals, _ = word.partition("=")
        if hide and not word.startswith("--"):
            word = HIDDEN
        elif equals and is_secret_name(name.lstrip("-")):
            word = f"{name}={HIDDEN}"
        hide = not equals and word.startswith("-") and is_secret_name(word.lstrip("-"))
        shown.append(word)
    return shlex.join(shown)


def _plain(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", " ", text)


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but for DEL."""
    return json.dumps(text[:MOST_CHARACTERS], ensure_ascii=False).replace("\x7f", "\\u007f")
