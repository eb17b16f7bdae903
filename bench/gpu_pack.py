"""Pack what `gpu_proof.sh` needs on a machine that reaches no package index: an engine, this project, a model, work.

    python bench/gpu_pack.py OUT --engine vllm
    python bench/gpu_pack.py OUT --engine sglang --python 3.12 --architecture 90 --part-mib 56

OUT gets `engine.tar.xz.00`, `own.tar.xz.00`, … (pieces that are each small enough for one transfer), `pack.json` (what
is inside and every piece's SHA-256) and a copy of `gpu_proof.sh`. The target machine brings its driver, Python, the
PyTorch that the engine was built against (with torchvision and torchaudio) and transformers; it installs nothing. The
engine comes from its public wheel without the GPU code of other chips (see fatbin.py) and without what a dense bf16
model does not load. The model is a shape and a tokenizer: the engine makes up its weights. The dataset is the one of
this repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from fatbin import prune  # noqa: E402 - found by the path above
from made_model import LARGE, write_shape  # noqa: E402

CONTEXT = 131_072
DATASET = ROOT / "datasets" / "weka-claude-code"
PLATFORM = "x86_64-manylinux_2_40"
LARGE_LIBRARY_BYTES = 500_000
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What of an engine travels, beyond the target's own PyTorch and what that requires."""

    torch: str
    packages: tuple[str, ...]
    left_out: tuple[str, ...]  # parts of paths: other chips, other models, build inputs, web pages


_WEB = (
    *("starlette", "uvicorn", "uvloop", "fastapi<0.137", "aiohttp", "multidict", "attrs", "yarl", "propcache"),
    *("aiohappyeyeballs", "aiosignal", "frozenlist", "anyio", "sniffio", "h11", "click", "python-multipart", "openai"),
    *("distro", "jiter", "httpx2", "httpcore2", "truststore", "pydantic", "pydantic-core", "annotated-types"),
    *("annotated-doc", "typing-inspection", "prometheus_client", "msgspec", "pyzmq", "pybase64", "einops", "psutil"),
    *("requests", "urllib3", "charset-normalizer", "idna", "certifi"),
    *("partial-json-parser", "xgrammar", "apache-tvm-ffi"),
)
ENGINES = {
    "vllm": Engine(
        torch="2.11.0",
        packages=(
            *("vllm==0.25.1", *_WEB, "cbor2", "openai-harmony", "cloudpickle", "cachetools", "py-cpuinfo"),
            *("prometheus-fastapi-instrumentator>=8", "llguidance>=1.7,<1.8", "watchfiles", "jmespath"),
            "model-hosting-container-standards",
        ),
        left_out=(
            *("_vllm_fa2_C", "vllm/vllm-rs", "/include/", "swagger-ui", ".jpg", "_qutlass_C", "third_party/fmha_sm100"),
        ),
    ),
    "sglang": Engine(
        torch="2.11.0",
        packages=(
            *("sglang==0.5.16", "sglang-kernel==0.4.5", "transformers==5.12.1", "tokenizers==0.22.2", *_WEB),
            *("orjson", "ipython", "traitlets", "dill", "compressed-tensors==0.17.0", "loguru", "setproctitle"),
            *("jsonschema", "referencing", "rpds-py", "jsonschema-specifications", "soundfile", "cffi", "gguf"),
            "sentencepiece",
        ),
        left_out=("flash_ops", "sm100", "flashmla_ops", "/benchmark/", "/test/"),
    ),
}
OWN_LEFT_OUT = ("/tests/", "/include/", ".pyi", ".pxd", "/mpl-data/sample_data/")


def pack(out: Path, engine: str, *, python: str, architecture: int, part_mib: int) -> dict[str, object]:
    """Writes the pack and returns the contents of its `pack.json`."""
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="gpu-pack-", dir=out.parent) as name:
        work = Path(name)
        pruned = _engine(work / "engine", ENGINES[engine], python, architecture)
        _own(work / "own", python)
        pieces: dict[str, list[dict[str, object]]] = {}
        for part, left_out in (("engine", ENGINES[engine].left_out), ("own", OWN_LEFT_OUT)):
            archive = work / f"{part}.tar.xz"
            _archive(work / part, archive, left_out)
            pieces[part] = _split(archive, out, part_mib * MIB)
    shutil.copy(ROOT / "bench" / "gpu_proof.sh", out)
    facts: dict[str, object] = {
        "engine": engine,
        "packages": ENGINES[engine].packages,
        "torch": ENGINES[engine].torch,
        "python": python,
        "architecture": architecture,
        "pieces": pieces,
        "gpu_code": pruned,
    }
    (out / "pack.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _engine(folder: Path, engine: Engine, python: str, architecture: int) -> list[dict[str, object]]:
    _install(folder / "site", python, ["--no-deps", *engine.packages])
    found = []
    for library in sorted((folder / "site").rglob("*.so*")):
        if library.is_file() and library.stat().st_size > LARGE_LIBRARY_BYTES:
            done = prune(library, (architecture,))
            if done.code:
                found.append({"library": done.name, "bytes": done.size, "blanked": done.blanked, "code": done.code})
    return found


def _own(folder: Path, python: str) -> None:
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        subprocess.run(
            [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", name, str(ROOT)], check=True
        )
        wheel = next(Path(name).glob("agentdyno-*.whl"))
        _install(folder / "site", python, [f"agentdyno[replay] @ {wheel.as_uri()}"])
    write_shape(LARGE, folder / "model", context=CONTEXT, dtype="bfloat16")
    shutil.copytree(DATASET, folder / "dataset", ignore=shutil.ignore_patterns("plots"))
    shutil.copy(ROOT / "bench" / "gpu_figures.py", folder)


def _install(site: Path, python: str, what: Sequence[str]) -> None:
    """Unpack wheels for the target, which may be another system than this one."""
    subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", str(site)),
            *("--python-version", python, "--python-platform", PLATFORM, "--only-binary", ":all:", "--link-mode=copy"),
            *what,
        ],
        check=True,
    )


def _archive(folder: Path, archive: Path, left_out: Sequence[str]) -> None:
    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0  # nothing of who packed it
        member.uname = member.gname = ""
        return None if any(part in f"/{member.name}" for part in (*left_out, "/__pycache__")) else member

    with tarfile.open(archive, "w:xz", preset=6) as file:
        for path in sorted(folder.iterdir()):
            file.add(path, arcname=path.name, filter=wanted)


def _split(archive: Path, out: Path, most: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    with archive.open("rb") as file:
        while data := file.read(most):
            path = out / f"{archive.name}.{len(found):02d}"
            path.write_bytes(data)
            found.append({"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    return found


def main() -> None:
    """Pack, and say how large every piece is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--engine", choices=ENGINES, default="vllm")
    parser.add_argument("--python", default="3.12", help="of the target machine")
    parser.add_argument("--architecture", type=int, default=90, help="of the target's GPU, as in sm_90 of an H200")
    parser.add_argument("--part-mib", type=int, default=56, help="no piece is larger")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists: name a new folder")
    facts = pack(
        options.out,
        options.engine,
        python=options.python,
        architecture=options.architecture,
        part_mib=options.part_mib,
    )
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
