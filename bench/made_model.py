"""The engine extra's made-up model as a folder of the Hugging Face layout, which vLLM, SGLang and transformers load.

The same tokenizer, chat template and shape as the GGUF file that `agentdyno replay engine` serves, and noise of the
same kind for weights: servers of all engines then count the same prompts with the same tokenizer.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from replay.engine.model import (
    BEGIN,
    CHAT_TEMPLATE,
    END,
    PAD,
    PRESETS,
    SEED,
    VOCABULARY,
    Shape,
    ensure_model,
    silent_ids,
)

CONTEXT = 32_768


LARGE = Shape(width=4096, layers=32, heads=32, kv_heads=8, head_width=128, feed_forward=14_336)
"""A decoder of the shape of the 8B models of the Llama family; with this vocabulary it has 7.2 billion weights."""


def write_model(preset: str, folder: Path) -> None:
    """Write the preset's model to a folder that is not there yet."""
    tokenizer = write_shape(PRESETS[preset], folder, context=CONTEXT, dtype="float32")
    _write_tensors(folder / "model.safetensors", _tensors(PRESETS[preset], silent_ids(tokenizer)))


def write_shape(shape: Shape, folder: Path, *, context: int, dtype: str) -> Tokenizer:
    """Write a model without its weights, for engines that make them up themselves; returns its tokenizer."""
    made = ensure_model("nano")  # the tokenizer is the same for every size
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shutil.copy(made.tokenizer_path, scratch / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(made.tokenizer_path))
    ids = {name: tokenizer.token_to_id(text) for name, text in (("bos", BEGIN), ("eos", END), ("pad", PAD))}
    special = {f"{name}_token_id": token_id for name, token_id in ids.items()}
    _write_json(
        scratch / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": shape.width,
            "intermediate_size": shape.feed_forward,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_width,
            "max_position_embeddings": context,
            "rope_theta": 500_000.0,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
            **special,
        },
    )
    _write_json(scratch / "generation_config.json", special)
    _write_json(
        scratch / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BEGIN,
            "eos_token": END,
            "pad_token": PAD,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    scratch.rename(folder)
    return tokenizer


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _tensors(shape: Shape, silent: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
    noise = np.random.Generator(np.random.SFC64(SEED))

    def matrix(rows: int, columns: int, spread: float) -> NDArray[np.float32]:
        return noise.standard_normal((rows, columns), dtype=np.float32) * np.float32(spread)

    even = shape.width**-0.5
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    flat = np.ones(shape.width, dtype=np.float32)
    found = {"model.embed_tokens.weight": matrix(VOCABULARY, shape.width, 1.0)}
    for layer in range(shape.layers):
        block = f"model.layers.{layer}."
        found[block + "input_layernorm.weight"] = flat
        found[block + "post_attention_layernorm.weight"] = flat
        for name, rows, columns, spread in (
            ("self_attn.q_proj", queries, shape.width, even),
            ("self_attn.k_proj", keys, shape.width, even),
            ("self_attn.v_proj", keys, shape.width, even),
            ("self_attn.o_proj", shape.width, queries, queries**-0.5),
            ("mlp.gate_proj", shape.feed_forward, shape.width, even),
            ("mlp.up_proj", shape.feed_forward, shape.width, even),
            ("mlp.down_proj", shape.width, shape.feed_forward, shape.feed_forward**-0.5),
        ):
            found[f"{block}{name}.weight"] = matrix(rows, columns, spread)
    found["model.norm.weight"] = flat
    output = matrix(VOCABULARY, shape.width, 4 * even)  # far apart, so that greedy answers have no near ties
    output[silent] = 0
    found["lm_head.weight"] = output
    return found


def _write_tensors(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """The safetensors layout: the length of a JSON header, the header, the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())
