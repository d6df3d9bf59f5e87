"""Which tensor types the recipe `lean` gives at a quant type, where no search chooses them.

The blocks' matrices all get the level's own type: mixes are for the search, which measures them. The embedding, which
is a third to a half of a small model, is chosen with the level: at four bits in the formats that llama.cpp multiplies
fastest once the vocabulary is padded.
"""

from typing import Literal, get_args

from .errors import UsageError
from .quant_types import QuantType, TensorType

Prefer = Literal["quality", "speed", "size"]
PREFERENCES: tuple[Prefer, ...] = get_args(Prefer)

POSITION_TYPE = TensorType.Q8_0  # it is only looked up
_FASTEST = {TensorType.Q4_0, TensorType.IQ4_NL, TensorType.Q4_K}
_HEADS = {"Q5_K_M": TensorType.Q6_K, "IQ4_XS": TensorType.IQ4_NL}
_BETTER = {4: TensorType.Q6_K, 5: TensorType.Q8_0, 6: TensorType.Q8_0}  # by whole bits


def find_preference(name: str | None) -> Prefer | None:
    """Raises `UsageError` for a name that is none."""
    if name is None or name in PREFERENCES:
        return name
    raise UsageError(f"{name!r} can not be preferred; there are {', '.join(PREFERENCES)}")


def body_type(quant_type: QuantType) -> TensorType:
    """Of the matrices in the blocks."""
    return TensorType.Q8_0 if quant_type.name == "MXFP4_MOE" else quant_type.base


def head_type(quant_type: QuantType, prefer: Prefer | None = None) -> TensorType:
    """Of the embedding, and of the output matrix where it is another one."""
    base = body_type(quant_type)
    bits = int(base.bits_per_weight)
    if bits < 4:
        return TensorType.Q6_K if prefer == "quality" else TensorType.Q4_K
    if prefer == "quality" and bits in _BETTER:
        return _BETTER[bits]
    if prefer == "speed" and bits in (4, 5, 6):
        return base if base in _FASTEST else TensorType.Q4_K
    if prefer == "size":
        return base
    return _HEADS.get(quant_type.name, base)
