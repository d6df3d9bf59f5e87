"""Trains `storybook`: byte-level BPE, then a GPT-2 of 6 layers, on two CPU cores for 75 minutes.

usage: train_storybook.py BOOKS_FOLDER OUT_FOLDER [MINUTES]

BOOKS_FOLDER has one UTF-8 file for each book; those in HELD_OUT are for validation. Needs the extra `peers`. The
schedule depends on the clock: a faster machine sees more tokens, and the weights differ from run to run.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import ByteLevelBPETokenizer

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel

HELD_OUT = {
    "the-olive-fairy-book",
    "the-princess-and-the-goblin",
    "the-carved-lions",
    "the-story-of-doctor-dolittle",
    "the-happy-prince",
}
SHAPE = {"vocab_size": 8192, "n_embd": 256, "n_layer": 6, "n_head": 4}
DROPPED = 3  # the last merges are dropped afterwards: a row count that 8 does not divide, as in GPT-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("minutes", type=float, nargs="?", default=75)
    arguments = parser.parse_args()
    make(arguments.books, arguments.out, arguments.minutes)


def make(books: Path, out: Path, minutes: float) -> None:
    import torch

    out.mkdir(parents=True, exist_ok=True)
    files = sorted(books.glob("*.txt"))
    held = [file for file in files if file.stem in HELD_OUT]
    kept = [file for file in files if file.stem not in HELD_OUT]
    random.Random(0).shuffle(kept)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train(
        [str(file) for file in kept], vocab_size=SHAPE["vocab_size"], min_frequency=2, special_tokens=["<|endoftext|>"]
    )
    tokenizer.save_model(str(out))
    model = train(encode(tokenizer, kept), minutes, **SHAPE)
    valid = encode(tokenizer, held)
    model.eval()
    with torch.inference_mode():
        parts = [valid[i : i + 512][None].long() for i in range(0, min(len(valid), 512 * 100) - 511, 512)]
        nll = [model(part, labels=part).loss.item() for part in parts]
    print("validation perplexity", math.exp(float(np.mean(nll))))
    model.save_pretrained(out)
    shrink(out)


def encode(tokenizer: ByteLevelBPETokenizer, files: list[Path]) -> "torch.Tensor":
    """The books' tokens one after another, each book ended by <|endoftext|>."""
    import torch

    return torch.from_numpy(
        np.concatenate([np.array([*tokenizer.encode(f.read_text("utf-8")).ids, 0], np.int32) for f in files])
    )


def train(tokens: "torch.Tensor", minutes: float, **shape: Any) -> "GPT2LMHeadModel":
    """Trains a model of this shape, given as keys of GPT2Config."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_positions=512,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **shape,
    )
    model = GPT2LMHeadModel(config)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1, betas=(0.9, 0.95))
    rng = torch.Generator().manual_seed(1)
    start, step = time.time(), 0
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        length, batch = (512, 4) if done > 0.75 else (256, 8)
        at = torch.randint(0, len(tokens) - length - 1, (batch,), generator=rng)
        x = torch.stack([tokens[i : i + length] for i in at]).long()
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1, (step + 1) / 200) * (0.475 * (1 + math.cos(math.pi * done)) + 0.05)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].reshape(-1, config.vocab_size).float(), x[:, 1:].reshape(-1)
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
    return model


def shrink(out: Path) -> None:
    """Drops the last three tokens and merges, and stores F16."""
    vocab = json.loads((out / "vocab.json").read_text("utf-8"))
    rows = len(vocab) - DROPPED
    gone = {token for token, number in vocab.items() if number >= rows}
    kept = {token: number for token, number in vocab.items() if number < rows}
    (out / "vocab.json").write_text(json.dumps(kept, ensure_ascii=False), "utf-8")
    lines = (out / "merges.txt").read_text("utf-8").split("\n")
    (out / "merges.txt").write_text("\n".join(line for line in lines if line.replace(" ", "") not in gone), "utf-8")
    weights = load_file(out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    if config.get("tie_word_embeddings", True):
        weights.pop("lm_head.weight", None)
    for name in {"transformer.wte.weight", "lm_head.weight"} & weights.keys():
        weights[name] = weights[name][:rows]
    halves = {name: np.ascontiguousarray(data.astype(np.float16)) for name, data in weights.items()}
    save_file(halves, out / "model.safetensors", metadata={"format": "pt"})
    config["vocab_size"] = rows
    (out / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
