"""Chooses the tokens that begin and end a text, out of all the files that name them.

Transformers reads them from generation_config.json (when it generates), config.json and the tokenizer's files, which
fine-tunes often leave in contradiction. A single ordinary word loses against a special token, with one warning that
names both; a list's first token is `eos`, the others `eot` and `eom`, at which llama.cpp stops as well.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgpt2_quant.core.errors import CheckpointError

from .json_file import read_json
from .tokenizer_files import END_OF_TEXT, TokenizerFiles

_FURTHER_ENDS = ("eot", "eom")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpecialTokens:
    """The numbers of the tokens with a role, and whether a text gets them at its ends."""

    bos: int
    eos: int
    others: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False


@dataclass(frozen=True)
class _Claim:
    """What one file says of a role: tokens, the first of which has it."""

    source: str
    tokens: tuple[int, ...]


def choose_special_tokens(
    files: TokenizerFiles, config: dict[str, Any], ids: Mapping[str, int], tokens: Sequence[str], special: set[str]
) -> SpecialTokens:
    """`ids` maps texts to numbers, `tokens` has the text of each row, `special` the special ones.

    Raises `CheckpointError` where nothing says which token ends a text.
    """
    others = {role: ids[text] for role, text in files.roles.items() if text in ids}
    for role in ("bos", "eos", "cls"):  # llama.cpp's GPT-2 has no cls
        others.pop(role, None)
    if others.get("unk") == ids.get(END_OF_TEXT):
        others.pop("unk", None)  # GPT2Tokenizer's default, which says nothing: bytes are never unknown
    ends = _choose("eos", files, config, ids, tokens, special)
    if files.last is not None and files.last in ids and ids[files.last] != ends[0]:
        # as gguf.SpecialVocab does: the token that ends every text ends a text
        ends = (ids[files.last], *ends)
    begins = _choose("bos", files, config, ids, tokens, special, otherwise=ends[0])
    bos = begins[0]
    if files.first is not None and files.first in ids and ids[files.first] != bos:
        _log.warning("%s: texts begin with %r, so that is bos, and not %r", files.folder, files.first, tokens[bos])
        bos = ids[files.first]
    for text in dict.fromkeys((files.first, files.last)):
        if text is not None and text not in ids:
            _log.warning("%s: %r is not added to texts: the embedding has no row for it", files.folder, text)
    if files.last in ids:
        _log.warning(
            "%s: each text ends with %r, prompts too, as in Transformers; llama-cli and llama-perplexity abort there",
            files.folder,
            files.last,
        )
    others |= dict(zip(_FURTHER_ENDS, ends[1:], strict=False))
    if dropped := ends[1 + len(_FURTHER_ENDS) :]:
        _log.warning("%s: GGUF has room for three ends of a text; left out: %s", files.folder, _shown(dropped, tokens))
    return SpecialTokens(bos, ends[0], others, files.first in ids, files.last in ids)


def _choose(
    role: str,
    files: TokenizerFiles,
    config: dict[str, Any],
    ids: Mapping[str, int],
    tokens: Sequence[str],
    special: set[str],
    otherwise: int | None = None,
) -> tuple[int, ...]:
    """The tokens of a role, the first of which has it."""
    claims = [*_claims(role, files, config, ids, len(tokens))]
    if not claims:
        if otherwise is not None:
            return (otherwise,)
        stated = config.get(f"{role}_token_id")
        raise CheckpointError(
            f"{files.folder}: "
            + (
                f"{role}_token_id is {stated!r} in config.json"
                if stated is not None
                else f"no file names its {role} token"
            )
            + f", but the vocabulary has {len(tokens)} tokens, and none is {END_OF_TEXT}",
            f"Set {role}_token_id in config.json to the id of the token that ends a text.",
        )
    looked_for = {ids[text] for text in (*special, *files.added) if text in ids}  # unlike ordinary words
    sound = [claim for claim in claims if looked_for & {*claim.tokens}]
    chosen = (sound or claims)[0]
    against = [claim for claim in claims if not {*claim.tokens} & {*chosen.tokens}]
    if against:
        _log.warning(
            "%s: %s is %s by %s, and %s by %s; the first is used",
            files.folder,
            role,
            _shown(chosen.tokens, tokens),
            chosen.source,
            _shown(against[0].tokens, tokens),
            against[0].source,
        )
    elif not sound and role == "eos":
        _log.warning(
            "%s: a text ends at %s, by %s, which is an ordinary token",
            files.folder,
            _shown(chosen.tokens, tokens),
            chosen.source,
        )
    return chosen.tokens


def _claims(
    role: str, files: TokenizerFiles, config: dict[str, Any], ids: Mapping[str, int], vocabulary: int
) -> list[_Claim]:
    """What the files state about the role, in order of precedence; ids without a row state nothing."""
    generation = files.folder / "generation_config.json"
    found = []
    stated = read_json(generation).get(f"{role}_token_id") if generation.is_file() else None
    value = config.get(f"{role}_token_id")
    if isinstance(stated, list) and len(stated) > 1:  # a list is deliberate
        found.append(_Claim("generation_config.json", _numbers("generation_config.json", role, stated)))
        stated = None
    elif stated is None and isinstance(value, list) and len(value) > 1:
        found.append(_Claim("config.json", _numbers("config.json", role, value)))
        value = None
    named = files.roles.get(role, "")  # no token is empty
    if named in ids and role not in files.by_default:
        found.append(_Claim("its tokenizer", (ids[named],)))
    if stated is not None:
        found.append(_Claim("generation_config.json", _numbers("generation_config.json", role, stated)))
    if value is not None:
        found.append(_Claim("config.json", _numbers("config.json", role, value)))
    kept = [_Claim(claim.source, tuple(n for n in claim.tokens if 0 <= n < vocabulary)) for claim in found]
    if role == "eos" and (lost := next((claim for claim in found if all(n >= vocabulary for n in claim.tokens)), None)):
        _log.warning(
            "%s: %s states eos_token_id %d, which none of the %d tokens has; it is ignored",
            files.folder,
            lost.source,
            lost.tokens[0],
            vocabulary,
        )
    kept = [claim for claim in kept if claim.tokens]
    if named in ids and role in files.by_default:
        kept.append(_Claim("GPT2Tokenizer's default", (ids[named],)))
    elif not kept and END_OF_TEXT in ids:
        kept.append(_Claim("its vocabulary", (ids[END_OF_TEXT],)))
    return kept


def _numbers(file: str, role: str, value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    for number in values:
        if type(number) is not int:
            raise CheckpointError(
                f"{file}: {role}_token_id is {value!r}, not a token id", "Set it to the number of the token."
            )
    return tuple(dict.fromkeys(values))


def _shown(numbers: Sequence[int], tokens: Sequence[str]) -> str:
    return ", ".join(f"{tokens[number]!r} ({number})" for number in numbers)
