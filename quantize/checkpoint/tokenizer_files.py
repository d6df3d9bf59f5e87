"""Reads what the files of a checkpoint folder state about its tokenizer, with the precedence of Transformers.

`tokenizer.json` goes before `vocab.json` + `merges.txt`. A tokenizer that GPT-2's byte-level BPE in llama.cpp cannot
reproduce is refused by name; what it can only reproduce in part is one warning.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgpt2_quant.core.errors import CheckpointError

from .json_file import read_json
from .known_keys import check_keys
from .tokenizer_steps import NO_WAY, added_to_texts, check_pre_tokenizer, without_empty_steps

END_OF_TEXT = "<|endoftext|>"
# the names of Transformers' `SPECIAL_TOKENS_ATTRIBUTES`, in the order in which it adds them
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_OF_GPT2 = {"bos": END_OF_TEXT, "eos": END_OF_TEXT, "unk": END_OF_TEXT}  # the defaults of GPT2Tokenizer
_GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer")
_OTHER_KINDS = {  # files of other kinds of tokenizers
    "bpe.codes": "a BPE of words",
    "vocab.txt": "a WordPiece tokenizer",
    "spiece.model": "a SentencePiece tokenizer",
    "sentencepiece.bpe.model": "a SentencePiece tokenizer",
    "sentencepiece.model": "a SentencePiece tokenizer",
    "spm.model": "a SentencePiece tokenizer",
    "tokenizer.model": "a SentencePiece tokenizer",
}
_NOT_OURS = "and only byte-level BPEs can be converted"
_SHOWN = 4  # tokens that a message names
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AddedToken:
    """A token that is looked for in the text before the BPE. `number` is None where no file states one."""

    text: str
    number: int | None
    special: bool
    flags: tuple[str, ...] = ()  # of lstrip, rstrip and single_word


@dataclass
class TokenizerFiles:
    """The tokenizer as its files state it.

    `vocabulary` and `merges` are those of the BPE; `roles` maps `eos` and so on to the token's text, and `by_default`
    has those that no file states; `first` and `last` are the tokens that are added to every text.
    """

    folder: Path
    vocabulary: dict[str, int]
    merges: list[str]
    added: dict[str, AddedToken] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    by_default: set[str] = field(default_factory=set)
    named: list[str] = field(default_factory=list)  # special tokens beyond those with a role
    first: str | None = None
    last: str | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    prefix_space: bool = False  # whether a blank is put before each text


def read_tokenizer_files(folder: Path, config: dict[str, Any]) -> TokenizerFiles:
    """Raises `CheckpointError` for files that are missing, broken, or of a tokenizer that is not GPT-2's kind."""
    settings = _optional(folder / "tokenizer_config.json")
    fast = folder / "tokenizer.json"
    pair = folder / "vocab.json", folder / "merges.txt"
    content = read_json(fast) if fast.is_file() else None
    check_keys("tokenizer_config.json", settings)
    if content is not None:
        check_keys("tokenizer.json", content)
        files = _from_fast(folder, content)
        if all(path.is_file() for path in pair):
            _warn_of_another_pair(files, *pair)
    elif all(path.is_file() for path in pair):
        files = TokenizerFiles(folder, read_json(pair[0]), _read_merges(pair[1]))
    else:
        raise _no_tokenizer(folder)
    files.prefix_space = files.prefix_space or bool(settings.get("add_prefix_space"))
    _read_names(files, settings, config, content)
    if content is None:  # with tokenizer.json its post_processor decides
        files.first = files.roles.get("bos") if settings.get("add_bos_token") is True else None
        files.last = files.roles.get("eos") if settings.get("add_eos_token") is True else None
    files.chat_templates = _chat_templates(folder, settings)
    if settings.get("split_special_tokens"):
        _log.warning(
            "%s: split_special_tokens: Transformers reads special tokens in a text as letters; here, turn"
            " `parse_special` off for that",
            folder,
        )
    return files


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _no_tokenizer(folder: Path) -> CheckpointError:
    for name, kind in _OTHER_KINDS.items():
        if (folder / name).is_file():
            return CheckpointError(f"{folder} has {name}: {kind}, {_NOT_OURS}", NO_WAY)
    if (folder / "encoder.json").is_file() and (folder / "vocab.bpe").is_file():
        return CheckpointError(
            f"{folder} has encoder.json and vocab.bpe, OpenAI's names of GPT-2's tokenizer",
            "Rename them to vocab.json and merges.txt.",
        )
    pair = {name: (folder / name).is_file() for name in ("vocab.json", "merges.txt")}
    if any(pair.values()):
        there, lost = sorted(pair, key=pair.__getitem__, reverse=True)
        return CheckpointError(
            f"{folder} has {there}, but neither {lost} nor tokenizer.json",
            "Fetch the missing file, or save the tokenizer again: `tokenizer.save_pretrained(folder)`.",
        )
    return CheckpointError(
        f"{folder} has no tokenizer: neither vocab.json with merges.txt nor tokenizer.json",
        "Save it into the folder: `tokenizer.save_pretrained(folder)`.",
    )


def _from_fast(folder: Path, content: dict[str, Any]) -> TokenizerFiles:
    path = folder / "tokenizer.json"
    model = content.get("model")
    model = model if isinstance(model, dict) else {}
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise CheckpointError(f"{path} has a {kind} model, {_NOT_OURS}", NO_WAY)
    prefix_space = check_pre_tokenizer(path, content)
    for name, value in [
        ("normalizer", without_empty_steps(content.get("normalizer"))),
        *((name, model.get(name)) for name in ("end_of_word_suffix", "continuing_subword_prefix", "byte_fallback")),
    ]:
        if value:
            raise CheckpointError(
                f"{path} has a {name}, which llama.cpp's GPT-2 tokenizer lacks: texts would be read differently",
                NO_WAY,
            )
    if model.get("unk_token") and (missing := [text for text in byte_letters() if text not in model.get("vocab", ())]):
        _log.warning(
            "%s: %d bytes have no token (%s); they are left out of a text instead of being read as %r",
            path,
            len(missing),
            ", ".join(map(repr, missing[:_SHOWN])),
            model["unk_token"],
        )
    if model.get("ignore_merges"):
        _log.warning("%s: ignore_merges has no effect: a word that is a token is still read by its merges", path)
    if model.get("dropout"):
        _log.warning("%s: dropout: texts are read with all merges, as GPT2Tokenizer reads them", path)
    try:
        if not isinstance(model["merges"], list):
            raise TypeError("merges is not a list")
        merges = [_merge(merge) for merge in model["merges"]]
        files = TokenizerFiles(folder, dict(model["vocab"]), merges, prefix_space=prefix_space)
        for entry in content.get("added_tokens") or []:
            _add(files, entry, entry["id"])
        files.first, files.last = added_to_texts(path, content.get("post_processor"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a valid tokenizer.json: {error!r}") from error
    return files


def byte_letters() -> list[str]:
    """The 256 bytes as GPT-2 spells them: a printable one stands for itself, the others begin at U+0100."""
    itself = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in itself else chr(next(others)) for byte in range(256)]


def _add(files: TokenizerFiles, entry: Any, number: Any) -> None:
    if not isinstance(entry["content"], str):
        raise TypeError("a token is not a string")
    if type(number) is not int or number < 0:
        raise ValueError(f"its id is {number!r}, not an integer from 0 up")
    flags = tuple(name for name in ("lstrip", "rstrip", "single_word") if entry.get(name))
    files.added[entry["content"]] = AddedToken(entry["content"], number, bool(entry.get("special")), flags)


def _read_names(
    files: TokenizerFiles, settings: dict[str, Any], config: dict[str, Any], content: dict[str, Any] | None
) -> None:
    """The tokens with a role, and the added ones that `tokenizer.json` does not list.

    As Transformers does: `special_tokens_map.json` and `added_tokens.json` count only where tokenizer_config.json has
    no `added_tokens_decoder`.
    """
    folder = files.folder
    decoder = settings.get("added_tokens_decoder")
    if decoder is not None:
        try:
            for number, entry in decoder.items():
                if entry["content"] not in files.added:
                    _add(files, entry, int(number))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: invalid added_tokens_decoder ({error})"
            ) from error
        mapped: dict[str, Any] = {}
    else:
        mapped = _optional(folder / "special_tokens_map.json")
    names = {**settings, **mapped}
    kind = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if kind is None or kind in _GPT2_CLASSES:
        files.roles |= _OF_GPT2
        files.by_default = {*_OF_GPT2}
    elif kind not in _PLAIN_CLASSES:
        if content is None:
            raise CheckpointError(
                f"{folder}: its tokenizer_class is {kind!r}, not GPT2Tokenizer, and it has no tokenizer.json",
                "Save one, which states how texts are read: `AutoTokenizer.from_pretrained(folder)"
                ".save_pretrained(folder)`.",
            )
        _log.warning("%s: its tokenizer_class is %s; texts are read as tokenizer.json states", folder, kind)
    for key, value in names.items():
        if not key.endswith("_token") or key.startswith("add_"):
            continue
        text = _text(value)
        if (role := key.removesuffix("_token")) in ROLES:
            files.roles.pop(role, None)
            files.by_default.discard(role)
            if text is not None:
                files.roles[role] = text
        elif isinstance(value, str):
            files.named.append(value)
        if text is not None and isinstance(value, dict):
            _note_flags(files, text, value)
    files.named += _extra_tokens(settings, mapped)
    if decoder is None and content is None:
        special = {*files.roles.values(), *files.named}
        for text, number in _optional(folder / "added_tokens.json").items():
            try:
                _add(files, {"content": text, "special": text in special}, number)
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{folder / 'added_tokens.json'}: {text!r}: {error}") from error
    files.roles = {role: files.roles[role] for role in ROLES if role in files.roles}


def _extra_tokens(settings: dict[str, Any], mapped: dict[str, Any]) -> list[str]:
    """The special tokens without a role. The older key counts only where the newer one is absent, as in Transformers 5.

    `settings` are those of tokenizer_config.json, `mapped` those of special_tokens_map.json.
    """
    old, new = "additional_special_tokens", "extra_special_tokens"
    extra, additional = settings.get(new), settings.get(old)
    if not extra and old in settings:
        extra, additional = additional, None
    specific = settings.get("model_specific_special_tokens")
    values: list[Any] = [*specific.values()] if isinstance(specific, dict) else []
    if isinstance(extra, dict):
        values += extra.values()
        extra = None
    if isinstance(mapped.get(new), list):
        extra = [*(extra or []), *mapped[new]]
    elif isinstance(mapped.get(new), dict):
        values += mapped[new].values()
    if extra is None:
        extra = mapped.get(old, additional)
    values += extra if isinstance(extra, list) else []
    return [text for value in values if (text := _text(value)) is not None]


def _text(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _note_flags(files: TokenizerFiles, text: str, value: dict[str, Any]) -> None:
    """A token that only its role states, with flags."""
    if text not in files.added and any(value.get(name) for name in ("lstrip", "rstrip", "single_word")):
        flags = tuple(name for name in ("lstrip", "rstrip", "single_word") if value.get(name))
        files.added[text] = AddedToken(text, None, True, flags)


def _chat_templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """By name. Files go before the setting, as in Transformers."""
    found: dict[str, str] = {}
    stated = settings.get("chat_template")
    if isinstance(stated, str):
        found["default"] = stated
    elif isinstance(stated, list):
        for entry in stated:
            if (
                isinstance(entry, dict)
                and isinstance(entry.get("name"), str)
                and isinstance(entry.get("template"), str)
            ):
                found[entry["name"]] = entry["template"]
    elif isinstance(stated, dict):
        found |= {name: text for name, text in stated.items() if isinstance(name, str) and isinstance(text, str)}
    paths = {"default": folder / "chat_template.jinja"}
    paths |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    from_files = {name: _read_text(path) for name, path in paths.items() if path.is_file()}
    return from_files or found


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}", "Save it in UTF-8, or fetch it again.") from error


def _merge(merge: Any) -> str:
    """As merges.txt has it, from that or from a pair."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise TypeError(f"{merge!r} is not a merge of two tokens")
    return " ".join(parts)


def _read_merges(path: Path) -> list[str]:
    merges = [line.rstrip("\r") for line in _read_text(path).split("\n")]
    merges = [line for line in merges if line and not line.startswith("#version")]
    for line in merges:
        if len(line.split(" ")) != 2:
            raise CheckpointError(f"{path}: {line!r} is not a merge of two tokens")
    return merges


def _warn_of_another_pair(files: TokenizerFiles, vocabulary_file: Path, merges_file: Path) -> None:
    """Says so where `vocab.json` and `merges.txt` are of another tokenizer than `tokenizer.json`, which is used."""
    try:
        vocabulary, merges = read_json(vocabulary_file), _read_merges(merges_file)
    except CheckpointError as error:
        _log.warning("%s; tokenizer.json is used", error.message)
        return
    ours = {**files.vocabulary, **{text: added.number for text, added in files.added.items()}}
    differing = [text for text, number in vocabulary.items() if ours.get(text) != number]
    missing = [text for text in files.vocabulary if text not in vocabulary and text not in files.added]
    if differing or missing or merges != files.merges:
        what = ", ".join(map(repr, (differing or missing)[:_SHOWN])) or "their merges"
        _log.warning(
            "%s: tokenizer.json is used; vocab.json and merges.txt are of another tokenizer (%s differ)",
            files.folder,
            what,
        )
