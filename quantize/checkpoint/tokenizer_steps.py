"""The steps of `tokenizer.json` around its BPE (normalizer, pre-tokenizer, post-processor), as far as GGUF has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgpt2_quant.core.errors import CheckpointError

NO_WAY = "This model cannot be converted with its own tokenizer."
# GPT-2's way to split a text, as OpenAI, the tokenizers library and tiktoken write it; all give the same parts
GPT2_PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
)


def check_pre_tokenizer(path: Path, content: dict[str, Any]) -> bool:
    """Whether it puts a blank before a text. Raises `CheckpointError` for another one than GPT-2's, however spelled."""
    found = [*_parts(content.get("pre_tokenizer"), "pretokenizers")]
    names = [str(part.get("type")) for part in found]
    if names == ["Split", "ByteLevel"] and _splits_as_gpt2(found[0]) and not found[1].get("use_regex", True):
        found, names = [{**found[1], "use_regex": True}], names[1:]
    if names != ["ByteLevel"]:
        shown = " + ".join(names) or "missing"
        raise CheckpointError(
            f"{path}: its pre-tokenizer is {shown}, and not GPT-2's ByteLevel: texts would be split differently",
            NO_WAY,
        )
    if not found[0].get("use_regex", True):
        raise CheckpointError(
            f"{path}: its pre-tokenizer has use_regex False, unlike GPT-2's: texts would be split differently", NO_WAY
        )
    return bool(found[0].get("add_prefix_space", False))


def _splits_as_gpt2(step: dict[str, Any]) -> bool:
    """Whether a Split has GPT-2's pattern; ByteLevel after it does not split then."""
    pattern, behavior = step.get("pattern"), step.get("behavior")
    if not isinstance(pattern, dict) or pattern.get("Regex") not in GPT2_PATTERNS:
        return False
    # each character is part of a match, so what becomes of the rest does not matter
    return (behavior, step.get("invert", False)) in (("Isolated", False), ("Removed", True), ("Isolated", True))


def _parts(step: Any, key: str) -> Iterator[dict[str, Any]]:
    """The steps of a pipeline, of which a Sequence has several."""
    if isinstance(step, dict) and step.get("type") == "Sequence":
        inner = step.get(key)
        for part in inner if isinstance(inner, list) else []:
            yield from _parts(part, key)
    elif isinstance(step, dict):
        yield step


def without_empty_steps(step: Any) -> Any:
    """The normalizer's steps, without those that do nothing."""
    return [*_parts(step, "normalizers")] if isinstance(step, dict) else step


def added_to_texts(path: Path, processor: Any) -> tuple[str | None, str | None]:
    """The special tokens that a post-processor puts before and after every text."""
    first: str | None = None
    last: str | None = None
    for part in _parts(processor, "processors"):
        match part.get("type"):
            case "ByteLevel":  # moves offsets only
                continue
            case "TemplateProcessing":
                pieces = [next(iter(piece.items())) for piece in part["single"]]
                kinds = [kind for kind, _ in pieces]
                at = kinds.index("Sequence")
                before, after = [[str(what["id"]) for _, what in some] for some in (pieces[:at], pieces[at + 1 :])]
            case "RobertaProcessing" | "BertProcessing":
                before, after = [str(part["cls"][0])], [str(part["sep"][0])]
            case other:
                raise CheckpointError(f"{path}: its post-processor is {other}, which GGUF cannot express")
        if len(before) > 1 or len(after) > 1 or (before and first) or (after and last):
            raise CheckpointError(f"{path}: it adds {before + after} to every text; GGUF can express one at each end")
        first, last = (before[0] if before else first), (after[0] if after else last)
    return first, last
