"""Writes a random checkpoint of DistilGPT2's shape: for measuring speed and size, not quality.

usage: random_distilgpt2.py FOLDER [--without-buffers] [--tokenizer FOLDER] [--layers N --width N --heads N]
       [--shards N]

Like `distilbert/distilgpt2` on the Hub it has 81,912,576 parameters in F32 and six causal-mask buffers (352.8 MB in
all). Its vocabulary of 50,257 tokens is invented unless --tokenizer names a folder with GPT-2's. The same arguments
write the same bytes.
"""

import argparse
import json
import shutil
from itertools import islice, product
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

VOCABULARY, CONTEXT = 50257, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without-buffers", action="store_true", help="which llama.cpp's converter does not accept")
    parser.add_argument("--tokenizer", type=Path, help="a folder with GPT-2's vocab.json and merges.txt")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--shards", type=int, default=1)
    arguments = parser.parse_args()
    write_small_files(arguments.folder, arguments.layers, arguments.width, arguments.heads)
    write_weights(
        arguments.folder, weights(arguments.layers, arguments.width, not arguments.without_buffers), arguments.shards
    )
    if arguments.tokenizer:
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(arguments.tokenizer / name, arguments.folder / name)


def write_small_files(folder: Path, layers: int, width: int, heads: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "n_layer": layers,
        "n_embd": width,
        "n_head": heads,
        "n_positions": CONTEXT,
        "n_ctx": CONTEXT,
        "vocab_size": VOCABULARY,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": VOCABULARY - 1,
        "eos_token_id": VOCABULARY - 1,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    write_tokenizer(folder)


def write_weights(folder: Path, tensors: dict[str, np.ndarray], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    places = {
        name: f"model-{1 + index * shards // len(names):05}-of-{shards:05}.safetensors"
        for index, name in enumerate(names)
    }
    for file in sorted(set(places.values())):
        save_file({n: tensors[n] for n in names if places[n] == file}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(data.nbytes for data in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def weights(layers: int, width: int, buffers: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(0.02)

    tensors = {"transformer.wte.weight": normal(VOCABULARY, width), "transformer.wpe.weight": normal(CONTEXT, width)}
    for layer in range(layers):
        name = f"transformer.h.{layer}"
        for part, shape in {
            "attn.c_attn": (width, 3 * width),
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, 4 * width),
            "mlp.c_proj": (4 * width, width),
        }.items():
            tensors[f"{name}.{part}.weight"] = normal(*shape)
            tensors[f"{name}.{part}.bias"] = normal(shape[1])
        for norm in ("ln_1", "ln_2"):
            tensors[f"{name}.{norm}.weight"] = 1 + normal(width)
            tensors[f"{name}.{norm}.bias"] = normal(width)
        if buffers:
            tensors[f"{name}.attn.bias"] = np.tri(CONTEXT, dtype=np.float32)[None, None]
    return tensors | {"transformer.ln_f.weight": 1 + normal(width), "transformer.ln_f.bias": normal(width)}


def write_tokenizer(folder: Path) -> None:
    """GPT-2's 256 byte tokens and 50,000 merges: letters to pairs, pairs and letters to triples."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    tokens = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]
    letters = [chr(256 + 32), *"etaoinshrdlucmfwypvbgkjqxz", *"ETAOINSHRDLUCMFWYPVBGKJQXZ", *".,'-0123456789"]
    pairs = [(left, right) for left, right in product(letters, letters[1:])]
    triples = ((left + right, last) for (left, right), last in product(pairs, letters[1:]))
    count = VOCABULARY - 1 - len(tokens)
    merges = pairs + list(islice(triples, count - len(pairs)))
    tokens += [left + right for left, right in merges] + ["<|endoftext|>"]
    assert len(tokens) == len(set(tokens)) == VOCABULARY
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
