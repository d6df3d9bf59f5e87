"""Recipes: which tensor type each tensor of a model gets at a quant type.

A recipe chooses; what the user sets by hand (`--tensor-type`) goes before it; and a type whose blocks do not divide a
row is replaced by one whose blocks do. These three, and which of them comes first, are as in llama.cpp's
`llama_tensor_get_type` and `tensor_type_fallback` (src/llama-quant.cpp).
"""

import logging
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.hyperparameters import block_of
from dgpt2_quant.core.quant_types import QuantType, TensorType, nearest

from .lean_mix import POSITION_TYPE, Prefer, body_type, head_type
from .stock import StockMix

RECIPES = ("stock", "lean")
_log = logging.getLogger(__name__)

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
    """What `--tensor-type REGEX=TYPE` says: a type for every matrix in whose name the expression is found."""

    pattern: re.Pattern[str]
    type: TensorType

    def __str__(self) -> str:
        return f"{self.pattern.pattern}={self.type.name}"


def find_override(text: str | Override) -> Override:
    """Reads `REGEX=TYPE`, for example `ffn_down=q6_k`. Raises `UsageError` that says which half is wrong."""
    if isinstance(text, Override):
        return text
    expression, _, name = text.rpartition("=")
    if not expression:
        raise UsageError(f"{text!r} is no REGEX=TYPE", "For example --tensor-type 'ffn_down=q6_k'.")
    names = {tensor_type.name.lower(): tensor_type for tensor_type in TensorType}
    if (found := names.get(name.strip().lower())) is None:
        near = nearest(name.strip().lower(), names)
        raise UsageError(
            f"unknown tensor type {name!r} in {text!r}; there are {' '.join(names)}",
            f"Did you mean {near}?" if near else "See `dgpt2-quant convert --help`.",
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a later Python will read otherwise
            return Override(re.compile(expression, re.IGNORECASE), found)  # llama-quantize lowers it
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        raise UsageError(f"{expression!r} is no regular expression: {error}", "'.*' matches every matrix.") from error


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

    The first of the `overrides` that matches a matrix counts; as in llama-quantize they change nothing at F32, F16 and
    BF16. The position table keeps the type that it is `stored` in (F32 if that is not said), but with `lean`, which
    also asks what to `prefer`.

    Raises `UsageError` for an unknown recipe, or a type whose blocks fit the rows in no way.
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
                (stored or {}).get(name, TensorType.F32) if recipe == "stock" else _position(quant_type, shape)
            )
        elif not quant_type.base.is_quantized:
            types[name] = quant_type.base
        else:
            by_hand = next((override for override in overrides if override.pattern.search(name)), None)
            if by_hand:
                chosen = by_hand.type
            elif recipe == "stock":
                chosen = mix.choose(name, shape[1])
            else:
                chosen = head_type(quant_type, prefer) if block_of(name) is None else body_type(quant_type)
            types[name] = fitting(name, chosen, shape[1])
    return types


def check_recipe(recipe: str) -> None:
    """Raises `UsageError` for a name that is none."""
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}; there are {', '.join(RECIPES)}, and files that end in .json")


def applied_overrides(
    overrides: Iterable[Override],
    types: Mapping[str, TensorType],
    shapes: Mapping[str, tuple[int, ...]],
    quant_type: QuantType,
) -> tuple[Override, ...]:
    """What `overrides` made of a model, for its metadata: the expressions that set a type, with the type that came out
    (another one where its blocks do not divide the rows). Reports what came out otherwise than it was asked for."""
    given, applied = tuple(overrides), dict[Override, None]()
    if not quant_type.base.is_quantized:
        if given:
            _log.warning("%s: types set by hand change nothing there, as in llama-quantize", quant_type)
        return ()
    for override in given:
        names = [name for name in _matrices(shapes) if override.pattern.search(name)]
        decided = [n for n in names if next(o for o in given if o.pattern.search(n)) == override]
        if not decided:
            _log.warning("--tensor-type %s changes nothing: those before it match the same matrices", override)
        for name in decided:
            applied[Override(override.pattern, types[name])] = None
            if types[name] is not override.type:
                _log.warning(
                    "--tensor-type %s: the rows of %s do not fit; it gets %s", override, name, types[name].name
                )
    return tuple(applied)


def without_effect(overrides: Iterable[Override], shapes: Mapping[str, tuple[int, ...]]) -> list[Override]:
    """Those that match no matrix which a recipe gives a type."""
    names = _matrices(shapes)
    return [override for override in overrides if not any(map(override.pattern.search, names))]


def _matrices(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Those that a recipe gives a type."""
    return [name for name, shape in shapes.items() if len(shape) == 2 and name != "position_embd.weight"]


def lacking_importance(
    types: Mapping[str, TensorType], quant_type: QuantType, present: Collection[str] = ()
) -> str | None:
    """The first tensor whose type can not be made, as its importance is not `present`; None if all is well.

    llama.cpp's rule (`tensor_requires_imatrix`), which lets embeddings pass; but there its C code would then end the
    process for some types, so these are not let pass here.
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


def _position(quant_type: QuantType, shape: tuple[int, ...]) -> TensorType:
    if not quant_type.base.is_quantized:
        return TensorType.F16 if quant_type.base is TensorType.F16 else TensorType.F32
    return POSITION_TYPE if shape[1] % POSITION_TYPE.block == 0 else TensorType.F16


def fitting(name: str, tensor_type: TensorType, columns: int) -> TensorType:
    """The type, or one near it whose blocks divide a row. Raises `UsageError` where there is none."""
    if columns % tensor_type.block == 0:
        return tensor_type
    if tensor_type not in _FALLBACK and tensor_type.block > 32:
        raise UsageError(
            f"{tensor_type.name} has blocks of {tensor_type.block}, and the rows of {name} have {columns} weights",
            "llama.cpp knows no replacement for it; choose another type for this model.",
        )
    fallback = _FALLBACK.get(tensor_type, tensor_type)
    return TensorType.F16 if columns % fallback.block else fallback
