"""Random tokenizer folders, compared with `AutoTokenizer` and with gguf-py's `SpecialVocab`.

Each folder gives the same ids as Transformers, or is refused, or a warning names the reason of the difference.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import pytest
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.checkpoint.encode_text import encode_text
from dgpt2_quant.quantize.checkpoint.metadata import tokenizer_metadata
from dgpt2_quant.quantize.checkpoint.tokenizer import Tokenizer, TokenType, read_tokenizer
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model
from gguf.constants import Keys

from ...checkpoints import make_checkpoint
from ..tokenizer_folders import Folder, byte_spelling, random_folder, random_texts

SEEDS, MORE_SEEDS = range(100), range(5000)
# A warning about all texts, or, with the names of tokens, about the texts that have one of them
ABOUT_ALL = [
    "is not added to texts",
    "split_special_tokens",
    "its tokenizer_class is",
    "ignore_merges",
    "are left out of a text",
    "have the ids that the files state",  # others take the ids of tokens of the vocabulary
]
ABOUT_TOKENS = [
    "llama.cpp ignores these flags of added tokens",
    "llama.cpp reads as special tokens",
    "where added tokens overlap",
    "tokens are dropped",
]


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """As `Model.tokenize`, without a file: test_encode_text.py compares `encode_text` with llama.cpp."""
    found = encode_text(tokenizer, text)
    return [*[tokenizer.bos] * tokenizer.add_bos, *found, *[tokenizer.eos] * tokenizer.add_eos]


def is_explained(text: str, messages: list[str], tokens: list[str]) -> bool:
    """Whether a warning is about the difference in this text."""
    for message in messages:
        if any(words in message for words in ABOUT_ALL):
            return True
        named = message.endswith(("...", "...)")) or any(
            repr(token) in message and (token in text or token in byte_spelling(text)) for token in tokens
        )
        if named and any(words in message for words in ABOUT_TOKENS):
            return True
    return False


def compare(seed: int, folder: Path, auto_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> str:
    """The verdict on a folder. A verdict "silent" has the text."""
    it = random_folder(seed)
    it.write(folder)
    caplog.clear()
    try:
        tokenizer = read_tokenizer(folder, it.config, it.rows)
    except CheckpointError:
        return "refused"
    messages = list(caplog.messages)
    assert len(messages) == len(set(messages))
    theirs = auto_tokenizer.from_pretrained(folder)
    known = [*it.numbers, *theirs.get_vocab()]
    verdict = "equal"
    for text in random_texts(seed):
        if ids(tokenizer, text) != theirs(text)["input_ids"]:
            if not is_explained(text, messages, known):
                return f"silent: seed {seed}, {text!r}"
            verdict = "warned"
    return verdict


def tally(seeds: range, tmp_path: Path, auto_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> Counter[str]:
    return Counter(compare(seed, tmp_path / str(seed), auto_tokenizer, caplog) for seed in seeds)


def test_no_folder_gives_other_ids_than_transformers_without_a_warning(
    tmp_path: Path, auto_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = tally(SEEDS, tmp_path, auto_tokenizer, caplog)
    assert found.keys() == {"equal", "warned", "refused"}
    assert found["equal"] >= 30  # of 100: the kinds that can be carried are


@pytest.mark.slow
def test_no_folder_of_many_gives_other_ids_than_transformers_without_a_warning(
    tmp_path: Path, auto_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = tally(MORE_SEEDS, tmp_path, auto_tokenizer, caplog)
    assert found.keys() == {"equal", "warned", "refused"}, found


def special_vocab(folder: Path, tokenizer: Tokenizer) -> tuple[dict[str, int], dict[str, bool], Any]:
    found = gguf.SpecialVocab(folder, n_vocab=len(tokenizer.tokens))
    return found.special_token_ids, found.add_special_token, found.chat_template


def test_special_tokens_are_those_of_llama_cpps_converter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With `tokenizer.json`, which `SpecialVocab` needs. It differs where Transformers does as this project does:

    - `special_tokens_map.json`, `generation_config.json` and the defaults of `GPT2Tokenizer` count;
    - an id of `config.json` that is an ordinary token loses against a special one;
    - `add_bos_token` and `add_eos_token` do not count, as the post-processor decides; the tokens that it puts at the
      ends of a text are added, and are bos and eos, even where the settings call others so;
    - a template file goes before the setting.
    """
    compared: Counter[str] = Counter()
    for seed in range(600):
        it = random_folder(seed)
        folder = tmp_path / str(seed)
        it.write(folder)
        if it.fast is None:
            continue
        try:
            tokenizer = read_tokenizer(folder, it.config, it.rows)
        except CheckpointError:
            continue
        theirs, adds, template = special_vocab(folder, tokenizer)
        for role, number in {"bos": tokenizer.bos, "eos": tokenizer.eos, **tokenizer.others}.items():
            if is_settled(role, it) and role in theirs and not (tokenizer.add_bos or tokenizer.add_eos):
                assert theirs[role] == number, (seed, role)
                compared[role] += 1
        ours = {"bos": (tokenizer.bos, tokenizer.add_bos), "eos": (tokenizer.eos, tokenizer.add_eos)}
        for role, (number, added) in ours.items():
            named_so = it.settings.get(f"{role}_token") == tokenizer.tokens[number]
            if named_so and f"add_{role}_token" not in it.settings:
                assert adds.get(role, False) == added, (seed, role)
                compared[f"add {role}"] += added
        if "chat_template.jinja" not in it.more and template is not None:
            named = [{"name": "default", "template": template}] if isinstance(template, str) else template
            assert tokenizer.chat_templates == {one["name"]: one["template"] for one in named}
            compared["chat template"] += 1
    assert min(compared[name] for name in ("bos", "eos", "pad", "mask", "add bos", "chat template")) >= 2, compared


def is_settled(role: str, it: Folder) -> bool:
    """Whether only `tokenizer_config.json` states the role."""
    return it.names is None and it.generation is None and f"{role}_token" in it.settings


def test_the_keys_are_those_of_gguf(tmp_path: Path) -> None:
    """Written as `gguf.GGUFWriter` writes them, and read again."""
    others = {"eot": 5, "eom": 6, "unk": 7, "sep": 8, "pad": 9, "mask": 10}
    templates = {"default": "{{ a }}", "tool-use": "{{ b }}", "rag": "{{ c }}"}
    tokenizer = Tokenizer(["a", "b"], [TokenType.NORMAL] * 2, ["a b"], 1, 2, others, True, True, templates)
    writer = gguf.GGUFWriter(tmp_path / "it.gguf", "gpt2")
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    writer.add_eom_token_id(6)
    writer.add_unk_token_id(7)
    writer.add_sep_token_id(8)
    writer.add_pad_token_id(9)
    writer.add_mask_token_id(10)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_chat_template([{"name": name, "template": text} for name, text in templates.items()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    theirs = read_header(tmp_path / "it.gguf").encoded
    ours = {key: value for key, value in tokenizer_metadata(tokenizer).items() if key in theirs}
    names = Keys.Tokenizer.CHAT_TEMPLATES  # a set there, in any order
    assert sorted(read_header(tmp_path / "it.gguf").metadata[names]) == ["rag", "tool_use"]
    assert {**ours, names: b""} == {**{k: v for k, v in theirs.items() if k.startswith("tokenizer.")}, names: b""}


def test_converted_files_give_the_ids_of_transformers(tmp_path: Path, auto_tokenizer: Any) -> None:
    """The whole way: the folder is converted, and llama.cpp reads the texts."""
    compared = 0
    for seed in range(60):
        it = random_folder(seed)
        folder = tmp_path / str(seed)
        it.write(folder)
        config = {"bos_token_id": None, "eos_token_id": None, **it.config}
        make_checkpoint(folder, layers=1, width=32, heads=2, vocabulary=it.rows, tokenizer=None, config=config)
        try:
            (file,) = convert(str(folder), type="F16", output=folder)
        except CheckpointError:
            continue
        tokenizer = read_tokenizer(folder, it.config, it.rows)
        theirs = auto_tokenizer.from_pretrained(folder)
        with Model.load(file.path, threads=1) as model:
            for text in random_texts(seed, 20):
                found = model.tokenize(text)
                assert found == ids(tokenizer, text)
                compared += found == theirs(text)["input_ids"]
    assert compared > 400
