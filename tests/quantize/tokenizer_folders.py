"""Random tokenizer folders: the kinds that checkpoints on the Hub have, combined at random by a seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgpt2_quant.quantize.checkpoint.tokenizer_steps import GPT2_PATTERNS

from ..checkpoints import printable_bytes, write_json

LETTERS = printable_bytes()
ENGLISH = [
    "the",
    "king",
    "queen",
    "lived",
    "in",
    "an",
    "old",
    "castle",
    "and",
    "said",
    "to",
    "her",
    "er",
    "ing",
    " ",
    "s",
]
OTHERS = [
    "король",
    "в",
    "замке",
    "王様",
    "と",
    "女王",
    "über",
    "straße",
    "قلعة",
]  # byte-level vocabularies of languages
SPECIAL = ["<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|user|>", "<|bot|>", "[SEP]", "<|eos|>"]
PLAIN = ["<url>", "@name", "two words", "日本", "#tag", "the", "words <"]
TEXTS = ["", " ", "\n", "  \n\n  ", "\t", "It's 10,000 o'clock; don't!", "naïve café 日本語 🙂", "<", "<|", "|>", "</"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CLASSES = ["GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"]


def byte_spelling(text: str) -> str:
    return "".join(LETTERS[byte] for byte in text.encode())


def random_bpe(chance: random.Random) -> tuple[list[str], list[str]]:
    """(tokens, merges) of a small byte-level BPE, its merges learned from words in a random order."""
    tokens, merges = list(LETTERS), []
    words = [*ENGLISH, *(OTHERS if chance.random() < 0.3 else [])]
    for word in chance.sample(words, len(words)):
        pieces = list(byte_spelling((" " if chance.random() < 0.5 else "") + word.strip()))
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


@dataclass
class Folder:
    """The files of a tokenizer before they are written; None is a file that is absent."""

    chance: random.Random
    vocabulary: dict[str, int]
    merges: list[str]
    numbers: dict[str, int]  # added tokens included
    special: list[str]
    plain: list[str]
    roles: dict[str, str]
    rows: int
    settings: dict[str, Any] = field(default_factory=dict)
    names: dict[str, Any] | None = None  # special_tokens_map.json
    added: dict[str, int] | None = None  # added_tokens.json
    fast: dict[str, Any] | None = None
    pair: tuple[dict[str, int], list[str]] | None = None  # vocab.json and merges.txt
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] | None = None
    more: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        contents = {
            "tokenizer_config.json": self.settings or None,
            "special_tokens_map.json": self.names,
            "added_tokens.json": self.added,
            "tokenizer.json": self.fast,
            "config.json": self.config,
            "generation_config.json": self.generation,
        }
        if self.pair is not None:
            contents["vocab.json"] = self.pair[0]
            (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *self.pair[1], ""]), "utf-8")
        for name, content in contents.items():
            if content is not None:
                write_json(folder / name, content)
        for name, text in self.more.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, "utf-8")


def random_folder(seed: int) -> Folder:
    """A tokenizer's files, with up to two of the twists below."""
    chance = random.Random(seed)
    tokens, merges = random_bpe(chance)
    special = chance.sample(SPECIAL, chance.randint(1, 5))
    plain = chance.sample(PLAIN, chance.choice([0, 0, 1, 2]))
    inside = [text for text in special if chance.random() < 0.4]  # in the vocabulary itself
    tokens = [*tokens, *inside] if chance.random() < 0.5 else [*inside, *tokens]
    added = [text for text in (*special, *plain) if text not in tokens]
    numbers = {text: number for number, text in enumerate([*tokens, *added])}
    roles = {role: chance.choice(special) for role in ("bos", "eos", "unk", "pad", "mask") if chance.random() < 0.6}
    rows = len(numbers) + chance.choice([0, 0, 7])
    it = Folder(chance, {text: numbers[text] for text in tokens}, merges, numbers, special, plain, roles, rows)
    flags = {text: {name: chance.random() < 0.03 for name in ("lstrip", "rstrip", "single_word")} for text in numbers}
    entries = [
        {"id": numbers[text], "content": text, **flags[text], "normalized": False, "special": text in special}
        for text in sorted({*special, *plain}, key=lambda text: numbers[text])
    ]
    kind = chance.choice(["pair", "pair", "fast", "fast", "both"])
    if chance.random() < 0.7:
        it.settings["tokenizer_class"] = chance.choice(CLASSES[:2] if kind == "pair" else CLASSES)
    if kind != "fast":
        it.pair = it.vocabulary, merges
    if kind != "pair":
        it.fast = _fast(it, entries)
    elif added and chance.random() < 0.5:
        it.added = {text: numbers[text] for text in added}
    elif added:
        it.settings["added_tokens_decoder"] = {str(entry["id"]): entry for entry in entries}
        for entry in entries:
            it.settings["added_tokens_decoder"][str(entry["id"])] = {k: v for k, v in entry.items() if k != "id"}
    names: dict[str, Any] = {f"{role}_token": text for role, text in roles.items()}
    if chance.random() < 0.3:
        names["additional_special_tokens"] = chance.sample(special, 1)
    it.settings |= names if chance.random() < 0.5 else {}
    it.names = names if chance.random() < 0.5 else None
    it.config = {"model_type": "gpt2", "vocab_size": rows}
    for role in ("bos", "eos"):
        if chance.random() < 0.5:
            it.config[f"{role}_token_id"] = chance.choice([0, 50256, *(numbers[text] for text in special)])
    if chance.random() < 0.4:
        ends = [numbers[text] for text in chance.sample(special, chance.randint(1, min(2, len(special))))]
        it.generation = {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    for twist in chance.sample([*TWISTS.values()], chance.choice([0, 0, 1, 1, 2])):
        twist(it)
    return it


def _fast(it: Folder, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """`tokenizer.json`."""
    chance = it.chance
    model = {
        **{"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "fuse_unk": False},
        **{"end_of_word_suffix": "", "byte_fallback": False, "ignore_merges": False, "vocab": it.vocabulary},
        "merges": [merge.split(" ") for merge in it.merges] if chance.random() < 0.5 else it.merges,
    }
    return {
        **{"version": "1.0", "truncation": None, "padding": None, "added_tokens": entries, "normalizer": None},
        "pre_tokenizer": chance.choice([BYTE_LEVEL, {"type": "Sequence", "pretokenizers": [BYTE_LEVEL]}]),
        "post_processor": chance.choice([None, BYTE_LEVEL]),
        "decoder": BYTE_LEVEL,
        "model": model,
    }


def _stale_pair(it: Folder) -> None:
    """Files of a base model, left next to those of its fine-tune."""
    it.pair = {text: number for number, text in enumerate(reversed(LETTERS))}, ["a b"]


def _unsound_merge(it: Folder) -> None:
    dropped = it.chance.choice(it.merges).replace(" ", "")
    del it.vocabulary[dropped]


def _characters(it: Folder) -> None:
    """A BPE of words that end in `</w>`, as of the first GPT."""
    for text in ("e</w>", "he</w>", "s</w>"):
        it.vocabulary[text] = it.rows
        it.rows += 1
    it.merges += ["h e</w>"]


def _template(it: Folder) -> None:
    begin = it.chance.sample(it.special, it.chance.choice([0, 1, 1]))
    end = it.chance.sample(it.special, it.chance.choice([0, 0, 1]))
    single: list[Any] = [{"SpecialToken": {"id": text, "type_id": 0}} for text in begin]
    single += [{"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": text, "type_id": 0}} for text in end]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [it.numbers[text]], "tokens": [text]} for text in begin + end},
    }
    both = {"type": "Sequence", "processors": [BYTE_LEVEL, template]}
    _change_fast(it, post_processor=it.chance.choice([template, both]))


def _roberta(it: Folder) -> None:
    cls, sep = it.chance.choice(it.special), it.chance.choice(it.special)
    ends = {"sep": [sep, it.numbers[sep]], "cls": [cls, it.numbers[cls]]}
    _change_fast(
        it, post_processor={"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": False}
    )


def _change_fast(it: Folder, **changes: Any) -> None:
    if it.fast is not None:
        it.fast = {**it.fast, **changes}


def _pre_tokenizer(it: Folder) -> None:
    digits, unsplit = {"type": "Digits", "individual_digits": True}, {**BYTE_LEVEL, "use_regex": False}
    nested = {"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [BYTE_LEVEL]}]}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    pattern = it.chance.choice([*GPT2_PATTERNS, r"\p{N}{1,3}"])
    behavior = {"behavior": it.chance.choice(["Isolated", "Removed", "Contiguous"]), "invert": it.chance.random() < 0.5}
    split = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}, **behavior}, unsplit],
    }
    steps = [{"type": "Sequence", "pretokenizers": [digits, BYTE_LEVEL]}, nested, metaspace, unsplit, None, split]
    _change_fast(it, pre_tokenizer=it.chance.choice([*steps, {**BYTE_LEVEL, "add_prefix_space": True}]))


def _normalizer(it: Folder) -> None:
    steps = [{"type": "Lowercase"}, {"type": "NFC"}, {"type": "Replace", "pattern": {"String": "e"}, "content": "a"}]
    _change_fast(
        it, normalizer={"type": "Sequence", "normalizers": it.chance.choice([[], *([step] for step in steps)])}
    )


def _model(it: Folder) -> None:
    """Options of the BPE, and models that are none."""
    if it.fast is not None:
        unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", -1.0]], "byte_fallback": False}
        word_piece = {"type": "WordPiece", "unk_token": "e", "continuing_subword_prefix": "##", "vocab": it.vocabulary}
        options = [{"ignore_merges": True}, {"fuse_unk": True, "unk_token": "e"}, {"byte_fallback": True}]
        bpe = {**it.fast["model"], **it.chance.choice(options)}
        it.fast["model"] = it.chance.choice([unigram, {**word_piece, "max_input_chars_per_word": 100}, bpe, bpe, bpe])


def _word_piece_files(it: Folder) -> None:
    it.pair, it.fast = None, None
    it.more["vocab.txt"] = "\n".join(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "the", "king", ""])


def _missing_letters(it: Folder) -> None:
    """Bytes that are no tokens; a BPE of the tokenizers library can put `unk_token` there."""
    for letter in it.chance.sample([text for text in LETTERS if text not in "".join(it.merges)], 5):
        del it.vocabulary[letter]
    if it.fast is not None and it.chance.random() < 0.5:
        it.fast["model"]["unk_token"] = it.chance.choice([*it.vocabulary])


def _fewer_rows(it: Folder) -> None:
    it.rows = it.config["vocab_size"] = len(it.numbers) - it.chance.randint(1, 3)


def _chat_template(it: Folder) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    several = [{"name": "default", "template": template}, {"name": "tool_use", "template": "{{ tools }}"}]
    it.settings["chat_template"] = it.chance.choice([template, several])
    if it.chance.random() < 0.5:
        it.more["chat_template.jinja"] = "{{ messages }}"
        it.more["additional_chat_templates/tool-use.jinja"] = "{{ tools }}"


def _added_ends(it: Folder) -> None:
    it.settings |= {f"add_{role}_token": it.chance.random() < 0.7 for role in ("bos", "eos")}


def _settings(it: Folder) -> None:
    """Settings that Transformers heeds, or does not."""
    name = it.chance.choice(it.special)
    found = [
        {"split_special_tokens": True},
        {"add_prefix_space": True},
        {"clean_up_tokenization_spaces": True, "model_max_length": 8, "errors": "ignore", "padding_side": "left"},
        {"do_lower_case": True},
        {"extra_special_tokens": {"image_token": name}},
        {"extra_special_tokens": ["<new>"]},
        {"model_specific_special_tokens": {"image_token": "<new>"}},
        {"additional_special_tokens": ["the", "<new>"]},
        {"image_token": "<new>"},
        {"pad_token": "[PAD]"},
        {"eos_token": {"content": name, "lstrip": True, "__type": "AddedToken", "special": True}},
        {"pad_token": {"content": "e", "__type": "AddedToken", "special": True}},
        {"tokenizer_class": it.chance.choice(["RobertaTokenizer", "CodeGenTokenizer", "LlamaTokenizerFast"])},
    ]
    it.settings |= it.chance.choice(found)


def _entries(it: Folder) -> None:
    """Added tokens that `tokenizer.json` has as no other file would: normalized, renumbered, or of a word."""
    if it.fast is None:
        return
    entry = it.chance.choice(it.fast["added_tokens"])
    numbers = [entry["id"], entry["id"] + 1, it.rows + 3]
    it.fast["added_tokens"] = [
        {**one, "normalized": True, "id": it.chance.choice(numbers) if one is entry else one["id"]}
        for one in it.fast["added_tokens"]
    ]


TWISTS: dict[str, Callable[[Folder], None]] = {
    "a stale pair": _stale_pair,
    "an unsound merge": _unsound_merge,
    "a BPE of characters": _characters,
    "a template": _template,
    "Roberta's ends": _roberta,
    "a pre-tokenizer": _pre_tokenizer,
    "a normalizer": _normalizer,
    "a model": _model,
    "WordPiece files": _word_piece_files,
    "missing letters": _missing_letters,
    "fewer rows": _fewer_rows,
    "a chat template": _chat_template,
    "added ends": _added_ends,
    "settings": _settings,
    "entries": _entries,
}


def random_texts(seed: int, count: int = 50) -> list[str]:
    """Texts with words, special tokens in every neighbourhood, and odd characters."""
    chance = random.Random(seed)
    found = list(TEXTS)
    while len(found) < count:
        parts = []
        for _ in range(chance.randint(1, 7)):
            parts.append(
                chance.choice([*ENGLISH, *OTHERS, *SPECIAL, *PLAIN, "e", "x7", "日", "don't", "  ", "<new>", "É"])
            )
            parts.append(chance.choice(["", " ", " ", "\n", ", "]))
        found.append("".join(parts))
    return found[:count]
