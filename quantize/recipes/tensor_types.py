"""Recipes: which tensor type each tensor of a model gets at a quant type.

`stock` mixes types as llama-quantize does (stock.py). `lean` gives all matrices of the blocks the quant type's own
tensor type: mixes are for the search, which measures them. The embedding, which is a third to a half of a small model,
gets six bits, below four bits five: on no text that was tried is the file then worse than `stock`
(docs/quantization.md).

A type that the user sets (`tensor_type`) overrides the recipe's. A type whose blocks do not divide a row is replaced
by one whose blocks do. This order is that of llama.cpp's `llama_tensor_get_type` and `tensor_type_fallback`
(src/llama-quant.cpp).
"""

import logging
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.hyperparameters import block_of
from dgpt2_quant.core.quant_types import QuantType, TensorType, nearest

from .stock import StockMix

RECIPES = ("stock", "lean")
Prefer = Literal["quality", "speed", "size"]
PREFERENCES: tuple[Prefer, ...] = get_args(Prefer)
_log = logging.getLogger(__name__)

ROUNDABLE = (
    *(TensorType.Q4_0, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q5_1, TensorType.Q8_0),
    *(TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K),
    *(TensorType.IQ4_NL, TensorType.IQ4_XS),
)
"""The tensor types whose codes GPTQ chooses (`lean/block_codes`); the codebooks of the smaller IQ types are in C."""

FAST_HEADS = {TensorType.Q4_0, TensorType.IQ4_NL, TensorType.Q4_K}
"""The types of an output matrix that llama.cpp multiplies fast, if its rows are a multiple of 8."""

_POSITION_TYPE = TensorType.Q8_0  # the position table is only looked up; next to 8 bits its rounding would show

# Where a row does not divide into the type's blocks: the nearest type with blocks of 32.
_FALLBACK: dict[TensorType, TensorType] = dict.fromkeys(
    (t for t in TensorType if t.name.startswith("IQ") and t is not TensorType.IQ4_NL), TensorType.IQ4_NL
)
_FALLBACK |= dict.fromkeys(
    (TensorType.Q2_0, TensorType.Q2_K, TensorType.Q3_K, TensorType.TQ1_0, TensorType.TQ2_0), TensorType.Q4_0
)
_FALLBACK |= {TensorType.Q4_K: TensorType.Q5_0, TensorType.Q5_K: TensorType.Q5_1, TensorType.Q6_K: TensorType.Q8_0}
_NEED_IMPORTANCE = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")
_ABORT_WITHOUT = ("IQ2_XXS", "IQ2_XS", "IQ1_S")  # even for an embedding: ggml_quantize_requires_imatrix


@dataclass(frozen=True)
class Override:
    """One `REGEX=TYPE` of `tensor_type`: a type for every matrix whose name matches the expression."""

    pattern: re.Pattern[str]
    type: TensorType

    def __str__(self) -> str:
        return f"{self.pattern.pattern}={self.type.name}"


def find_override(text: str | Override) -> Override:
    """Reads `REGEX=TYPE`, for example `ffn_down=q6_k`. Raises `UsageError` that names the invalid half."""
    if isinstance(text, Override):
        return text
    expression, _, name = text.rpartition("=")
    if not expression:
        raise UsageError(f"`tensor_type` must be REGEX=TYPE, not {text!r}", "For example `ffn_down=q6_k`.")
    names = {tensor_type.name.lower(): tensor_type for tensor_type in TensorType}
    if (found := names.get(name.strip().lower())) is None:
        near = nearest(name.strip().lower(), names)
        raise UsageError(
            f"`tensor_type` {text!r} must end in a tensor type, not {name!r}: {' '.join(names)}",
            f"Did you mean {near}?" if near else "See `dgpt2-quant convert --help`.",
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # about syntax that a later Python will read otherwise
            return Override(re.compile(expression, re.IGNORECASE), found)  # llama-quantize ignores case, too
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        raise UsageError(
            f"`tensor_type` must begin with a regular expression, not {expression!r}: {error}",
            "'.*' matches every matrix.",
        ) from error


def find_preference(name: str | None) -> Prefer | None:
    """The preference of this name. Raises `UsageError` for an unknown one."""
    if name is None or name in PREFERENCES:
        return name
    raise UsageError(f"`prefer` must be {', '.join(PREFERENCES[:-1])} or {PREFERENCES[-1]}, not {name!r}")


def check_recipe(recipe: str) -> None:
    """Raises `UsageError` for an unknown name."""
    if recipe not in RECIPES:
        raise UsageError(
            f"`recipe` must be {', '.join(RECIPES)} or a file that ends in .json, not {recipe!r}",
            "A search writes such files: `dgpt2-quant convert --target-size`.",
        )


def tensor_types(
    shapes: Mapping[str, tuple[int, ...]],
    quant_type: QuantType,
    recipe: str = "stock",
    *,
    overrides: Iterable[Override] = (),
    has_imatrix: bool = False,
    stored: Mapping[str, TensorType] | None = None,
    prefer: Prefer | None = None,
) -> dict[str, TensorType]:
    """A tensor type for each tensor of the model. `shapes` are in llama-quantize's order (`Hyperparameters.shapes`).

    Of several `overrides` that match a matrix, the first counts; as in llama-quantize they change nothing at F32, F16
    and BF16. With `stock` the position table keeps the type that it is `stored` in (default: F32). `prefer` is for
    `lean`.

    Raises `UsageError` for an unknown recipe, or a type whose blocks do not fit the rows and that has no replacement.
    """
    check_recipe(recipe)
    layers = 1 + max((block_of(name) or 0 for name in shapes), default=0)
    head = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    mix, overrides = StockMix(quant_type, layers, head, has_imatrix), tuple(overrides)
    types = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            types[name] = TensorType.F32
        elif name == "position_embd.weight":
            types[name] = (
                (stored or {}).get(name, TensorType.F32) if recipe == "stock" else _lean_position(quant_type, shape)
            )
        elif not quant_type.base.is_quantized:
            types[name] = quant_type.base
        else:
            override = next((override for override in overrides if override.pattern.search(name)), None)
            if override:
                chosen = override.type
            elif recipe == "stock":
                chosen = mix.choose(name, shape[1])
            else:
                chosen = lean_embedding(quant_type, prefer) if block_of(name) is None else lean_matrix(quant_type)
            types[name] = fitting(name, chosen, shape[1])
    return types


def has_lean(quant_type: QuantType) -> bool:
    """Whether the recipe `lean` writes another file than `stock`: where GPTQ can round to the quant type.

    The codebooks of the small types are searched by llama.cpp without feedback, which is not always better than
    `stock`; the ternary types are for models whose weights were trained to have few values.
    """
    return lean_matrix(quant_type) in ROUNDABLE


def lean_matrix(quant_type: QuantType) -> TensorType:
    """The type of the blocks' matrices in the recipe `lean`."""
    return TensorType.Q8_0 if quant_type.name == "MXFP4_MOE" else quant_type.base


def lean_embedding(quant_type: QuantType, prefer: Prefer | None = None) -> TensorType:
    """The type of the embedding in the recipe `lean`, and of the output matrix of an untied model.

    Fewer bits than the default's cost more on texts unlike the calibration text than `lean` gains elsewhere.
    """
    base = lean_matrix(quant_type)
    bits = int(base.bits_per_weight)
    if bits > 6:
        return base
    if prefer == "quality":
        return TensorType.Q8_0 if bits >= 4 else TensorType.Q6_K
    if prefer == "speed":
        return base if base in FAST_HEADS else TensorType.Q4_K
    if prefer == "size":
        return base if bits >= 4 else TensorType.Q4_K
    return TensorType.Q6_K if bits >= 4 or quant_type.name == "Q3_K_L" else TensorType.Q5_K


def _lean_position(quant_type: QuantType, shape: tuple[int, ...]) -> TensorType:
    if not quant_type.base.is_quantized:
        return TensorType.F16 if quant_type.base is TensorType.F16 else TensorType.F32
    fits = shape[1] % _POSITION_TYPE.block == 0 and lean_matrix(quant_type) is not _POSITION_TYPE
    return _POSITION_TYPE if fits else TensorType.F16


def fitting(name: str, tensor_type: TensorType, columns: int) -> TensorType:
    """The type, or its replacement whose blocks divide a row. Raises `UsageError` where there is none."""
    if columns % tensor_type.block == 0:
        return tensor_type
    if tensor_type not in _FALLBACK and tensor_type.block > 32:
        raise UsageError(
            f"{tensor_type.name} has blocks of {tensor_type.block}, and the rows of {name} have {columns} weights",
            "llama.cpp has no replacement for it; choose another type for this model.",
        )
    fallback = _FALLBACK.get(tensor_type, tensor_type)
    return TensorType.F16 if columns % fallback.block else fallback


def applied_overrides(
    overrides: Iterable[Override],
    types: Mapping[str, TensorType],
    shapes: Mapping[str, tuple[int, ...]],
    quant_type: QuantType,
) -> tuple[Override, ...]:
    """The overrides that set a type, for the file's metadata, each with the type that resulted: another one where its
    blocks do not divide the rows. Warns of overrides without effect and of replaced types."""
    given, applied = tuple(overrides), dict[Override, None]()
    if not quant_type.base.is_quantized:
        if given:
            _log.warning("%s: `tensor_type` has no effect, as in llama-quantize", quant_type)
        return ()
    for override in given:
        names = [name for name in _matrices(shapes) if override.pattern.search(name)]
        decided = [n for n in names if next(o for o in given if o.pattern.search(n)) == override]
        if not decided:
            _log.warning("`tensor_type` %s has no effect: earlier ones match the same matrices", override)
        for name in decided:
            applied[Override(override.pattern, types[name])] = None
            if types[name] is not override.type:
                _log.warning(
                    "`tensor_type` %s: the rows of %s do not fit; it gets %s", override, name, types[name].name
                )
    return tuple(applied)


def refuse_unmatched(overrides: Iterable[Override], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `UsageError` for an override that matches no matrix."""
    for override in overrides:
        if not any(map(override.pattern.search, _matrices(shapes))):
            raise UsageError(
                f"`tensor_type` {override} matches no matrix of the model",
                "They are called token_embd.weight, output.weight, and blk.0.attn_qkv.weight, blk.0.attn_output.weight,"
                " blk.0.ffn_up.weight, blk.0.ffn_down.weight and so on.",
            )


def _matrices(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Those that a recipe gives a type."""
    return [name for name, shape in shapes.items() if len(shape) == 2 and name != "position_embd.weight"]


def lacking_importance(types: Mapping[str, TensorType], quant_type: QuantType, present: Collection[str]) -> str | None:
    """The first tensor whose type needs importance that is not `present`, or None.

    This is llama.cpp's rule (`tensor_requires_imatrix`), except that it lets embeddings pass, at some of whose types
    its C code would then end the process.
    """
    for name, tensor_type in types.items():
        if name in present:
            continue
        needed: tuple[str, ...] = _ABORT_WITHOUT
        if name not in ("token_embd.weight", "output.weight"):
            needed = (*_NEED_IMPORTANCE, "Q2_K") if quant_type.name == "Q2_K_S" else _NEED_IMPORTANCE
        if tensor_type.name in needed:
            return name
    return None
