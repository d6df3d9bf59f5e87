"""Random tokenizer folders: the kinds that checkpoints on the Hub have, combined at random by a seed."""

import random
from pathlib import Path
from typing import Any

from ..checkpoints import printable_bytes, write_json

WORDS = ["the", "king", "queen", "lived", "in", "an", "old", "castle", "and", "said", "to", "her", "er", "ing", "Ġ", "s"]
SPECIAL = ["<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|user|>", "<|bot|>", "[SEP]", "<|eos|>"]
PLAIN = ["<url>", "@name", "two words", "日本", "#tag"]
TEXTS = ["", " ", "\n", "  \n\n  ", "\t", "It's 10,000 o'clock; don't!", "naïve café 日本語 🙂", "<", "<|", "|>", "</", "<s"]


def random_bpe(chance: random.Random) -> tuple[list[str], list[str]]:
    """(tokens, merges) of a small byte-level BPE, its merges learned from WORDS in a random order."""
    tokens, merges = printable_bytes(), []
    for word in chance.sample(WORDS, len(WORDS)):
        pieces = list(("Ġ" if chance.random() < 0.5 else "") + word.replace("Ġ", ""))
        for merge in merges:  # as far as it is merged already
            left, right = merge.split(" ")
            at = 0
            while at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == (left, right):
                    pieces[at : at + 2] = [left + right]
                else:
                    at += 1
        while len(pieces) > 1:
            left, right = pieces[:2]
            pieces[:2] = [left + right]
            merges.append(f"{left} {right}")
            tokens.append(left + right)
    return list(dict.fromkeys(tokens)), list(dict.fromkeys(merges))


def make_folder(folder: Path, seed: int) -> tuple[dict[str, Any], int]:
    """Writes a tokenizer's files. Returns the config and the number of rows that the embedding has."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    tokens, merges = random_bpe(chance)
    special = chance.sample(SPECIAL, chance.randint(1, 5))
    plain = chance.sample(PLAIN, chance.choice([0, 0, 1, 2]))
    inside = [text for text in special if chance.random() < 0.4]  # in the vocabulary itself
    tokens = [*tokens, *inside] if chance.random() < 0.5 else [*inside, *tokens]
    added = [text for text in (*special, *plain) if text not in inside]
    numbers = {text: number for number, text in enumerate([*tokens, *added])}
    flags = {text: flag(chance) for text in numbers}
    vocabulary = {text: numbers[text] for text in tokens}
    roles = {role: chance.choice(special) for role in ("bos", "eos", "unk", "pad", "mask") if chance.random() < 0.6}
    kind = chance.choice(["pair", "pair", "fast", "fast", "both", "stale"])
    settings: dict[str, Any] = {}
    if chance.random() < 0.7:
        settings["tokenizer_class"] = chance.choice(["GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"])
    if kind == "pair" and settings.get("tokenizer_class") == "PreTrainedTokenizerFast":
        settings["tokenizer_class"] = "GPT2Tokenizer"
    if kind != "pair":
        write_json(folder / "tokenizer.json", fast(chance, vocabulary, merges, numbers, flags, special, plain, inside, roles))
    if kind == "stale":
        write_json(folder / "vocab.json", {text: number for number, text in enumerate(reversed(printable_bytes()))})
        (folder / "merges.txt").write_text("#version: 0.2\na b\n", "utf-8")
    elif kind != "fast":
        write_json(folder / "vocab.json", vocabulary)
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    if kind == "pair" and added:
        if chance.random() < 0.5:
            write_json(folder / "added_tokens.json", {text: numbers[text] for text in added})
        else:
            settings["added_tokens_decoder"] = {
                str(numbers[text]): {"content": text, **flags[text], "normalized": False, "special": text in special}
                for text in (*added, *inside)
            }
    names = {f"{role}_token": text for role, text in roles.items()}
    if chance.random() < 0.3:
        names["additional_special_tokens"] = chance.sample(special, 1)
    if chance.random() < 0.5:
        settings |= names
    if chance.random() < 0.5:
        write_json(folder / "special_tokens_map.json", names)
    if chance.random() < 0.2:
        settings["add_bos_token"] = chance.random() < 0.5
    if settings or chance.random() < 0.3:
        write_json(folder / "tokenizer_config.json", settings)
    config: dict[str, Any] = {"model_type": "gpt2", "vocab_size": len(numbers) + chance.choice([0, 0, 7])}
    for role in ("bos", "eos"):
        if chance.random() < 0.5:
            config[f"{role}_token_id"] = chance.choice([0, 50256, *(numbers[text] for text in special)])
    write_json(folder / "config.json", config)
    if chance.random() < 0.4:
        ends = [numbers[text] for text in chance.sample(special, chance.randint(1, min(2, len(special))))]
        write_json(folder / "generation_config.json", {"eos_token_id": ends if len(ends) > 1 else ends[0]})
    return config, config["vocab_size"]


def flag(chance: random.Random) -> dict[str, bool]:
    one = chance.choice([None] * 12 + ["lstrip", "rstrip", "single_word"])
    return {name: name == one for name in ("lstrip", "rstrip", "single_word")}


def fast(
    chance: random.Random,
    vocabulary: dict[str, int],
    merges: list[str],
    numbers: dict[str, int],
    flags: dict[str, dict[str, bool]],
    special: list[str],
    plain: list[str],
    inside: list[str],
    roles: dict[str, str],
) -> dict[str, Any]:
    """`tokenizer.json`."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    listed = sorted([*special, *plain], key=lambda text: numbers[text])
    processor: Any = chance.choice([None, level])
    if "bos" in roles and chance.random() < 0.3:
        text = roles["bos"]
        template = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {text: {"id": text, "ids": [numbers[text]], "tokens": [text]}},
        }
        processor = chance.choice([template, {"type": "Sequence", "processors": [level, template]}])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": numbers[text], "content": text, **flags[text], "normalized": False, "special": text in special}
            for text in listed
        ],
        "normalizer": None,
        "pre_tokenizer": chance.choice([level, {"type": "Sequence", "pretokenizers": [level]}]),
        "post_processor": processor,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": vocabulary,
            "merges": [merge.split(" ") for merge in merges] if chance.random() < 0.5 else merges,
        },
    }


def random_texts(seed: int, count: int = 50) -> list[str]:
    """Texts with words, special tokens in every neighbourhood, and odd characters."""
    chance = random.Random(seed)
    found = list(TEXTS)
    while len(found) < count:
        parts = []
        for _ in range(chance.randint(1, 7)):
            parts.append(chance.choice([*WORDS, *SPECIAL, *PLAIN, "e", "x7", "日", "don't", "  "]))
            parts.append(chance.choice(["", " ", " ", "\n", ", "]))
        found.append("".join(parts))
    return found[:count]
