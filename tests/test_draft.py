"""The drafted system file: what engines tell stands in it, what they do not is a comment, and it reads back."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from capture.shelf import Shelf
from capture.store import Store
from curate.build import build
from replay.command import replay
from replay.draft import LocalGpu, draft_system, is_local, local_gpus, without_secrets
from replay.fitting import fitting, fitting_lines
from replay.identify import Engine, Identity
from replay.power.source import PowerDevice, PowerFault, SourceInfo
from replay.rules import ContextPolicy, LengthPolicy
from replay.system import System, load_system, read_system
from tests.fake_server import serving
from tests.sample_sessions import content_free_session, text_session
from tests.simulated_run import REPORT

H200 = LocalGpu(name="NVIDIA H200", uuid="GPU-1")
SGLANG = {
    "launch_command": "python -m sglang.launch_server --model-path org/m --api-key sk-123 --tp 2",
    "model_path": "org/m", "dtype": "bfloat16", "quantization": "fp8", "kv_cache_dtype": "auto",
    "speculative_algorithm": None, "tp_size": 2, "pp_size": 1, "dp_size": 1, "ep_size": 1,
    "enable_hierarchical_cache": False,
}  # fmt: skip


def drafted(
    engine: Engine, settings: dict[str, Any], version: str | None = None, gpus: tuple[LocalGpu, ...] = (), **report: Any
) -> tuple[System, str]:
    identity = Identity(engine=engine, version=version, evidence="a test", metrics_page=None, settings=settings)
    text = draft_system(dataclasses.replace(REPORT, engine=engine, **report), identity, gpus)
    return read_system(tomllib.loads(text), "draft"), text


def test_sglang_tells_nearly_everything_but_its_key() -> None:
    system, text = drafted("sglang", SGLANG, "0.5.21", (H200, LocalGpu(name="NVIDIA H200", uuid="GPU-2")))
    assert system.name == "SGLang 0.5.21, simulated, 2 x NVIDIA H200"
    assert (system.engine, system.engine_version, system.model) == ("SGLang", "0.5.21", "org/m")
    assert (system.precision, system.kv_dtype, system.speculation) == ("bfloat16 fp8", "auto", "none")
    assert (system.parallelism, system.offload) == ("tp 2, pp 1, dp 1, ep 1", "none")
    assert system.launch_command == "python -m sglang.launch_server --model-path org/m --api-key hidden --tp 2"
    assert system.gpu_uuids == ("GPU-1", "GPU-2")
    assert "sk-123" not in text
    assert set(system.undisclosed) == {
        "weights", "moe", "router", "power_cap_w", "pue", "prices", "provisioned", "tuned_by", "run_by",
    }  # fmt: skip


def test_vllm_and_llama_tell_what_their_pages_hold() -> None:
    cache = {"cache_dtype": "fp8", "kv_cache_size_tokens": "4194304"}
    system, _ = drafted("vllm", {"cache_config": cache}, prefix_reuse="block", prefix_block_tokens=128)
    assert (system.engine, system.kv_dtype, system.precision) == ("vLLM", "fp8", None)
    assert system.notes == (
        "context limit 60000 tokens; prefix cache in blocks of 128 tokens; kv_cache_size_tokens 4194304"
    )
    props = {
        "model_path": "/home/someone/model.gguf", "model_ftype": "F16", "total_slots": 4,
        "default_generation_settings": {"params": {"speculative.types": "none"}},
    }  # fmt: skip
    system, text = drafted("llama.cpp", props)
    assert (system.model, system.precision, system.speculation) == ("model.gguf", "F16", "none")
    assert "/home/someone" not in text
    assert system.notes is not None
    assert system.notes.endswith("4 slots")


def test_what_nobody_tells_is_a_comment_to_fill_in() -> None:
    system, text = drafted("unknown", {}, context_tokens=None)
    assert system.undisclosed == (  # every key has a line of its own
        "accelerators", *(field.name for field in dataclasses.fields(System) if field.name not in
        ("name", "accelerators", "model", "nodes", "racks", "meters", "pue_kind", "agents_per_engineer")),
    )  # fmt: skip
    assert '# precision = ""  # undisclosed: of the weights' in text
    assert all(f"# {key} =" in text or f"# [{key}]" in text for key in system.undisclosed[1:])
    filled = text.replace('# precision = ""', 'precision = "bf16"').replace("# pue =", "pue = 1.2")
    filled = filled.replace('# pue_kind = ""', 'pue_kind = "design"')
    for line in ("[prices]", 'currency = "USD"', "energy_per_kwh =", "[[nodes]]", "[[meters]]", "u_percent ="):
        filled = filled.replace(f"# {line}", line + (" 1.5" if line.endswith("=") else ""))
    filled = filled.replace('[[nodes]]\n# name = ""', '[[nodes]]\nname = "NAME"')
    filled = filled.replace('# device = ""', 'device = "pdu"').replace('# covers = "node NAME"', 'covers = "node NAME"')
    found = read_system(tomllib.loads(filled), "filled")
    assert (found.pue, found.pue_kind) == (1.2, "design")
    assert found.prices is not None
    assert (found.prices.currency, found.prices.energy_per_kwh) == ("USD", 1.5)
    assert [(meter.device, meter.covers, meter.u_percent) for meter in found.meters] == [(("pdu",), "node NAME", 1.5)]


@given(st.text(max_size=50), st.dictionaries(st.sampled_from(sorted(SGLANG)), st.text() | st.integers() | st.none()))
def test_no_server_breaks_its_file(model: str, settings: dict[str, Any]) -> None:
    for engine in ("sglang", "vllm", "llama.cpp", "unknown"):
        system, _ = drafted(engine, {**settings, "cache_config": settings}, model=model)
        assert system.name


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("serve m --api-key=sk-1 --port 1", "serve m --api-key=hidden --port 1"),
        ("HF_TOKEN=hf_1 serve --max-total-tokens 5", "HF_TOKEN=hidden serve --max-total-tokens 5"),
        ("serve --api-key sk-1 sk-2x --tp 8", "serve --api-key hidden sk-2x --tp 8"),
        ("serve --api-key --tp 8", "serve --api-key --tp 8"),
        ("serve 'a b", ""),
    ],
)
def test_secrets_of_a_command_line_stay_out(command: str, shown: str) -> None:
    assert without_secrets(command) == shown


def test_only_the_loopback_is_this_machine() -> None:
    assert all(map(is_local, ("http://127.0.0.1:1", "http://localhost", "https://[::1]:2")))
    assert not any(map(is_local, ("http://10.0.0.1:1", "http://example.org", "http://")))


# -- which sessions fit


def test_sessions_that_a_server_cannot_serve_are_listed_with_the_reason() -> None:
    sessions = [text_session("short", turns=2), text_session("long", turns=40), content_free_session("bare")]
    plan = {"dataset_digest": "d", "context": ContextPolicy(), "length": LengthPolicy()}
    found = fitting(sessions, REPORT, **plan)  # type: ignore[arg-type]
    assert [session.session_id for session in found.fits] == ["bare", "long", "short"]
    limit = max(session.longest_context_tokens or 0 for session in found.fits if session.session_id != "long") + 64
    small = dataclasses.replace(
        REPORT, context_tokens=limit, token_prompts="refused", token_prompts_evidence="HTTP 400: no"
    )
    found = fitting(sessions, small, **plan)  # type: ignore[arg-type]
    assert [session.session_id for session in found.fits] == ["short"]
    reasons = {entry.session_id: entry.reason for entry in found.left_out}
    assert reasons["bare"] == "it holds no text, and the server does not take token ids as they are (HTTP 400: no)"
    assert reasons["long"].endswith(f"tokens; the limit is {limit}")
    lines = fitting_lines(found)
    assert lines[0] == f"[dataset] 1 of 3 sessions fit; context limit {limit} tokens"
    assert [line.split()[:2] for line in lines[1:]] == [["fits", "short"], ["left", "out"], ["left", "out"]]


def test_a_dataset_of_which_nothing_fits_is_still_listed() -> None:
    tiny = dataclasses.replace(REPORT, context_tokens=10, tools="refused", tools_evidence="HTTP 400: no")
    found = fitting(
        [text_session("a"), content_free_session("b")],
        tiny,
        dataset_digest="d",
        context=ContextPolicy(),
        length=LengthPolicy(),
    )
    assert found.fits == ()
    assert [entry.session_id for entry in found.left_out] == ["a", "b"]


# -- the command


def command(*arguments: str) -> Result:
    return CliRunner().invoke(replay, ["probe", *arguments])


def test_the_command_lists_sessions_and_drafts_a_file_that_it_never_overwrites(tmp_path: Path) -> None:
    Store.open(tmp_path / "store", create=True)
    Shelf(tmp_path / "store").put_all([text_session("one"), content_free_session("two")])
    build([tmp_path / "store"], tmp_path / "dataset", jobs=1)
    file = tmp_path / "system.toml"
    with serving(ttft_ms=1, itl_ms=0) as server:
        address = ("--url", server.url, "--model", "fake-model")
        done = command(*address, "--write", str(file), "--dataset", str(tmp_path / "dataset"), "--json")
        assert done.exit_code == 0, done.output
        text = command(*address, "--dataset", str(tmp_path / "dataset"))
        asked = len(server.log)
        before = file.read_bytes()
        again = command(*address, "--write", str(file))
        assert len(server.log) == asked
    value = json.loads(done.stdout)
    assert value["ignore_eos"] == "obeyed"
    assert [session["session_id"] for session in value["dataset"]["fits"]] == ["one", "two"]
    assert load_system(file).model == "fake-model"
    assert "[dataset] 2 of 2 sessions fit; context limit 65536 tokens" in text.stdout
    assert again.exit_code == 2
    assert "exists: name a new file, or remove it" in again.output
    assert file.read_bytes() == before


# -- the GPUs of this machine


def test_local_gpus_are_those_that_the_driver_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    device = PowerDevice(uid="GPU-1", name="NVIDIA H200", domain="accelerator", limit_w=700.0, wrap_j=None)
    memory = dataclasses.replace(device, uid="GPU-1/memory", domain="hbm")
    closed = []

    class Shown:
        def __init__(self, *, longest_s: float, **_: object) -> None:
            assert longest_s == 0  # names are wanted, not what the counters cover

        def describe(self) -> SourceInfo:
            return SourceInfo(kind="nvml", measured=True, version="1", devices=(device, memory), notes=())

        def close(self) -> None:
            closed.append(True)

    def absent(**_: object) -> Shown:
        raise PowerFault("no driver")

    monkeypatch.setattr("replay.power.nvml.NvmlSource", Shown)
    assert local_gpus() == (H200,)
    assert closed == [True]
    monkeypatch.setattr("replay.power.nvml.NvmlSource", absent)
    assert local_gpus() == ()
