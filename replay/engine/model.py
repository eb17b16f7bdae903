"""A language model made on the spot: real tokenizer, real chat template, real shapes, random weights.

It says nothing that means anything, and loads a serving engine exactly as a model of its shape does. Nothing is
downloaded: the tokenizer is a byte-level BPE trained on the source of the running Python's standard library, the
weights are noise from a fixed seed. The files are cached, since making them takes seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from capture.fault import EnvironmentFault

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

RECIPE = 1  # raised whenever what is made changes, so that an old cache is not taken for it

VOCABULARY = 32_000
TRAINED_CONTEXT = 1 << 20  # what the file claims; random weights have no favourite length, memory sets the limit
CORPUS_BYTES = 12_000_000
SEED = 20_261_120

BEGIN, END, PAD = "<|begin|>", "<|im_end|>", "<|pad|>"
SPECIALS = (BEGIN, END, "<|im_start|>", PAD)
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

SAFE_TOKEN_IDS = (1_000, 30_000)
"""Ids of the made vocabulary that stand for plain text pieces, end excluded."""

INSTALL = "the llama engine needs the extra 'engine': install it with  uv tool install 'agentdyno[all]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama-architecture decoder."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in a 16-bit KV cache."""
        return 2 * self.layers * self.kv_heads * self.head_width * 2


PRESETS = {
    "nano": Shape(width=128, layers=1, heads=2, kv_heads=1, head_width=64, feed_forward=256),
    "tiny": Shape(width=256, layers=2, heads=4, kv_heads=2, head_width=64, feed_forward=512),
}

# ChatML turns and the tool markup that many open models share; llama.cpp recognises both and so reads tool calls
# the way it does for those models.
CHAT_TEMPLATE = (
    "{%- set lead = messages[0].content if messages and messages[0].role == 'system' else '' -%}\n"
    "{%- if lead or tools -%}\n"
    "{{- '<|im_start|>system\\n' + lead -}}\n"
    "{%- if tools -%}\n"
    "{{- '\\n\\n# Tools\\n\\nThe functions that you may call:\\n<tools>' -}}\n"
    "{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}\n"
    '{{- \'\\n</tools>\\n\\nAnswer with a call like this:\\n<tool_call>\\n{"name": <function-name>, '
    '"arguments": <args-json-object>}\\n</tool_call>\' -}}\n'
    "{%- endif -%}\n"
    "{{- '<|im_end|>\\n' -}}\n"
    "{%- endif -%}\n"
    "{%- for message in messages -%}\n"
    "{%- set said = message.content or '' -%}\n"
    "{%- if message.role == 'tool' -%}\n"
    "{{- '<|im_start|>user\\n<tool_response>\\n' + said + '\\n</tool_response><|im_end|>\\n' -}}\n"
    "{%- elif message.role == 'assistant' -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- if message.reasoning_content -%}\n"
    "{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}\n"
    "{%- endif -%}\n"
    "{{- said -}}\n"
    "{%- for call in message.tool_calls or [] -%}\n"
    "{%- set arguments = call.function.arguments -%}\n"
    '{{- \'\\n<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' -}}\n'
    "{{- arguments if arguments is string else (arguments | tojson) -}}\n"
    "{{- '}\\n</tool_call>' -}}\n"
    "{%- endfor -%}\n"
    "{{- '<|im_end|>\\n' -}}\n"
    "{%- elif message.role != 'system' or not loop.first -%}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + said + '<|im_end|>\\n' -}}\n"
    "{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeModel:
    """A model's files, complete on disk."""

    preset: str
    digest: str  # of everything that the files depend on; the same digest is the same model
    gguf_path: Path
    tokenizer_path: Path
    kv_bytes_per_token: int
    token_ids: tuple[int, int] = SAFE_TOKEN_IDS


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/agentdyno/models`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "agentdyno" / "models"


def ensure_model(preset: str, *, cache: Path | None = None) -> MadeModel:
    """The preset's model from the cache, made first where it is not there; safe to call from several processes.

    Raises EnvironmentFault where the extra `engine` is missing or the files cannot be made.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; there are {', '.join(PRESETS)}")
    digest = _digest(preset)
    folder = (cache or cache_folder()) / digest
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            with _locked(folder.with_suffix(".lock")):
                if not folder.is_dir():
                    _make(preset, folder)
    except OSError as fault:
        raise EnvironmentFault(f"cannot make the model in {folder}: {fault}") from fault
    return MadeModel(
        preset=preset,
        digest=digest,
        gguf_path=folder / "model.gguf",
        tokenizer_path=folder / "tokenizer.json",
        kv_bytes_per_token=PRESETS[preset].kv_bytes_per_token,
    )


def _digest(preset: str) -> str:
    try:
        libraries = {name: version(name) for name in ("tokenizers", "gguf", "numpy")}
    except ImportError as fault:
        raise EnvironmentFault(INSTALL) from fault
    made_of = {
        "recipe": RECIPE,
        "shape": asdict(PRESETS[preset]),
        "vocabulary": VOCABULARY,
        "seed": SEED,
        "corpus": [sys.version, CORPUS_BYTES],
        "template": CHAT_TEMPLATE,
        "libraries": libraries,
    }
    return f"{preset}-{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock; the kernel drops it with the process, so a crash leaves nothing to clean up."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(preset: str, folder: Path) -> None:
    """Make the files beside their final place and move them there in one step."""
    for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tokenizer = _train_tokenizer()
        tokenizer.save(str(scratch / "tokenizer.json"))
        _write_gguf(scratch / "model.gguf", PRESETS[preset], tokenizer)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _corpus() -> Iterator[str]:
    """Source files of the standard library in a fixed order, about CORPUS_BYTES of them."""
    root = Path(sysconfig.get_path("stdlib"))
    left = CORPUS_BYTES
    for path in sorted(root.rglob("*.py")):
        if "site-packages" in path.parts or "dist-packages" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # a test file with another encoding on purpose
        yield text
        left -= len(text)
        if left <= 0:
            return
    if left == CORPUS_BYTES:
        raise EnvironmentFault(f"no Python source in {root} to train a tokenizer on; use a Python that ships it")


def _train_tokenizer() -> Tokenizer:
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as fault:
        raise EnvironmentFault(INSTALL) from fault

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    # A Python with little source yields fewer pieces: the rest of the vocabulary is filled with names never spoken.
    filler = [f"<|unused{place}|>" for place in range(VOCABULARY - len(TAGS) - tokenizer.get_vocab_size())]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*TAGS, *filler)])
    return tokenizer


def silent_ids(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Which ids the model must never pick.

    Special tokens, since an accidental end would cut an answer short, and whatever is no plain ASCII text, since half
    a character makes a server hold text back until the other half comes, which falsifies the times between tokens.
    """
    import numpy as np
    from tokenizers import pre_tokenizers

    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    # In the byte-level alphabet printable ASCII stands for itself and Ġ for the space.
    plain = {sign for sign in pre_tokenizers.ByteLevel.alphabet() if "!" <= sign <= "~"} | {"Ġ"}
    silent = np.ones(tokenizer.get_vocab_size(), dtype=bool)
    for text, token_id in tokenizer.get_vocab().items():
        silent[token_id] = text in added or len(text) < 2 or not text.strip("Ġ") or not plain.issuperset(text)
    return silent


def _write_gguf(path: Path, shape: Shape, tokenizer: Tokenizer) -> None:
    try:
        import gguf
        import numpy as np
    except ImportError as fault:
        raise EnvironmentFault(INSTALL) from fault

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("agentdyno made-up model")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(TRAINED_CONTEXT)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)

    definition = json.loads(tokenizer.to_str())
    ids = tokenizer.get_vocab()
    pieces = {token_id: text for text, token_id in ids.items()}
    added = tokenizer.get_added_tokens_decoder()
    kinds = [gguf.TokenType.NORMAL] * VOCABULARY
    for token_id, token in added.items():
        kinds[token_id] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    merges = definition["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([pieces[token_id] for token_id in range(VOCABULARY)])
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(ids[BEGIN])
    writer.add_eos_token_id(ids[END])
    writer.add_pad_token_id(ids[PAD])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    noise = np.random.Generator(np.random.SFC64(SEED))

    def matrix(rows: int, columns: int, spread: float) -> NDArray[np.float32]:
        return noise.standard_normal((rows, columns), dtype=np.float32) * np.float32(spread)

    even = shape.width**-0.5  # keeps the variance of what passes through a layer
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    flat = np.ones(shape.width, dtype=np.float32)
    writer.add_tensor("token_embd.weight", matrix(VOCABULARY, shape.width, 1.0).astype(np.float16))
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", flat)
        writer.add_tensor(block + "ffn_norm.weight", flat)
        for name, rows, columns, spread in (
            ("attn_q", queries, shape.width, even),
            ("attn_k", keys, shape.width, even),
            ("attn_v", keys, shape.width, even),
            ("attn_output", shape.width, queries, queries**-0.5),
            ("ffn_gate", shape.feed_forward, shape.width, even),
            ("ffn_up", shape.feed_forward, shape.width, even),
            ("ffn_down", shape.width, shape.feed_forward, shape.feed_forward**-0.5),
        ):
            writer.add_tensor(f"{block}{name}.weight", matrix(rows, columns, spread).astype(np.float16))
    writer.add_tensor("output_norm.weight", flat)
    # Four times the usual spread: the best of 30,000 random logits then stands out, whatever the temperature. A row of
    # zeros has logit 0, far below the best.
    output = matrix(VOCABULARY, shape.width, 4 * even)
    output[silent_ids(tokenizer)] = 0
    writer.add_tensor("output.weight", output.astype(np.float16))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
