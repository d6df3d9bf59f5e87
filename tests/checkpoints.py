"""Writes tiny random GPT-2 checkpoints in Hugging Face layout, in every variant found on the Hub.

The safetensors library writes the weights (BF16, which NumPy lacks, is encoded here), so the reader is compared with
the format's own implementation.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Tensors = dict[str, npt.NDArray[Any]]

MERGES = ["Ġ t", "h e", "i n", "Ġt he", "a n"]
END_OF_TEXT = "<|endoftext|>"


def printable_bytes() -> list[str]:
    """GPT-2's byte-to-Unicode table: printable bytes stand for themselves, the rest begin at U+0100."""
    itself = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in itself else chr(next(others)) for byte in range(256)]


TOKENS = [*printable_bytes(), *(merge.replace(" ", "") for merge in MERGES), END_OF_TEXT]


def make_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    inner: int | None = None,
    context: int = 64,
    vocabulary: int = len(TOKENS),
    dtype: Literal["F32", "F16", "F64", "BF16"] = "F32",
    shards: int = 1,
    prefix: str = "transformer.",
    masks: bool = False,
    head: Literal["absent", "tied", "untied"] = "absent",
    tokenizer: Literal["files", "fast"] | None = "files",
    config: Mapping[str, Any] | None = None,
    changed: Mapping[str, npt.NDArray[Any] | None] | None = None,
) -> Path:
    """Writes a checkpoint and returns its folder. Equal arguments give equal weights.

    `config` is merged into `config.json`, where None removes a key; `changed` replaces tensors by name without the
    prefix, where None removes one. A `vocabulary` larger than the tokenizer's gives padded rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_layer": layers,
        "n_embd": width,
        "n_head": heads,
        "n_positions": context,
        "vocab_size": vocabulary,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": len(TOKENS) - 1,
        "eos_token_id": len(TOKENS) - 1,
    }
    if inner is not None:
        settings["n_inner"] = inner
    settings |= config or {}
    write_json(folder / "config.json", {key: value for key, value in settings.items() if value is not None})
    tensors = random_tensors(seed, layers, width, inner or 4 * width, context, vocabulary)
    tensors |= changed or {}
    tensors = {prefix + name: data for name, data in tensors.items() if data is not None}
    if masks:
        for layer in range(layers):
            mask = np.tril(np.ones((context, context), np.float32))
            tensors[f"{prefix}h.{layer}.attn.bias"] = mask.reshape(1, 1, context, context)
            tensors[f"{prefix}h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    if head == "tied":
        tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"].copy()
    elif head == "untied":
        tensors["lm_head.weight"] = np.random.default_rng(seed + 1).normal(0, 0.1, (vocabulary, width))
    write_weights(folder, tensors, dtype, shards)
    if tokenizer == "files":
        write_json(folder / "vocab.json", {token: number for number, token in enumerate(TOKENS)})
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), "utf-8")
    elif tokenizer == "fast":
        write_json(folder / "tokenizer.json", fast_tokenizer())
    return folder


def random_tensors(seed: int, layers: int, width: int, inner: int, context: int, vocabulary: int) -> Tensors:
    """A GPT-2's tensors by Transformers' names without prefix, in float64, with a realistic spread."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocabulary, width), "wpe.weight": (context, width)}
    for layer in range(layers):
        linear = {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, inner),
            "mlp.c_proj": (inner, width),
        }
        for part, shape in linear.items():
            shapes |= {f"h.{layer}.{part}.weight": shape, f"h.{layer}.{part}.bias": shape[1:]}
    tensors: Tensors = {name: random.normal(0, 0.1, shape) for name, shape in shapes.items()}
    norms = [f"h.{layer}.{norm}" for layer in range(layers) for norm in ("ln_1", "ln_2")] + ["ln_f"]
    for norm in norms:
        tensors |= {f"{norm}.weight": random.normal(1, 0.2, width), f"{norm}.bias": random.normal(0, 0.1, width)}
    return tensors


def write_weights(folder: Path, tensors: Tensors, dtype: str = "F32", shards: int = 1) -> None:
    """Writes `model.safetensors`, or the given number of shards and their index."""
    if shards == 1:
        _write_file(folder / "model.safetensors", tensors, dtype)
        return
    files = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    places = {name: files[index % shards] for index, name in enumerate(tensors)}
    for file in files:
        _write_file(folder / file, {name: tensors[name] for name in tensors if places[name] == file}, dtype)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def fast_tokenizer() -> dict[str, Any]:
    """The same tokenizer in the format of the tokenizers library."""
    return {
        "version": "1.0",
        "added_tokens": [{"id": len(TOKENS) - 1, "content": END_OF_TEXT, "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(TOKENS[:-1])},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def raw_safetensors(header: Any, data: bytes = b"") -> bytes:
    """Encodes a safetensors file; `header` is an object, or bytes used as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def bfloat16(data: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The upper halves of float32 values (truncated, not rounded)."""
    return (np.ascontiguousarray(data, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def _write_file(path: Path, tensors: Tensors, dtype: str) -> None:
    if dtype != "BF16":
        wanted = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]
        save_file({name: np.array(data, wanted, order="C") for name, data in tensors.items()}, path)
        return
    header, chunks, at = {}, [], 0
    for name, data in tensors.items():
        chunk = bfloat16(data).tobytes()
        header[name] = {"dtype": "BF16", "shape": data.shape, "data_offsets": [at, at + len(chunk)]}
        chunks.append(chunk)
        at += len(chunk)
    path.write_bytes(raw_safetensors(header, b"".join(chunks)))
