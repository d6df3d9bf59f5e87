"""Which tensor types the recipe `lean` gives at a quant type, where no search chooses them.

The blocks' matrices all get the level's own type: mixes are for the search, which measures them. The embedding, which
is a third to a half of a small model, is chosen with the level: the level's own type, at four bits one that llama.cpp
multiplies fast once the vocabulary is padded; a better one in the larger of the K-quants' mixes.
"""

from typing import Literal, get_args

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.quant_types import QuantType, TensorType

Prefer = Literal["quality", "speed", "size"]
PREFERENCES: tuple[Prefer, ...] = get_args(Prefer)

ROUNDABLE = (
    *(TensorType.Q4_0, TensorType.Q4_1, TensorType.Q5_0, TensorType.Q5_1, TensorType.Q8_0),
    *(TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K),
    *(TensorType.IQ4_NL, TensorType.IQ4_XS),
)
"""The tensor types whose codes GPTQ chooses (`lean/block_codes`); the codebooks of the smaller IQ types are C's."""
POSITION_TYPE = TensorType.Q8_0  # it is only looked up
_FASTEST = {TensorType.Q4_0, TensorType.IQ4_NL, TensorType.Q4_K}
_HEADS = {
    "Q3_K_M": TensorType.Q5_K,
    "Q3_K_L": TensorType.Q6_K,
    "IQ4_XS": TensorType.IQ4_NL,
    "Q4_K_M": TensorType.Q5_K,
    "Q5_K_M": TensorType.Q6_K,
}


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
    least = base if bits >= 4 else TensorType.Q4_K  # in fewer bits it would lose more than everything else
    if bits > 6 or prefer == "size":
        return least
    if prefer == "quality":
        return TensorType.Q8_0 if bits > 4 else TensorType.Q6_K
    if prefer == "speed":
        return base if base in _FASTEST else TensorType.Q4_K
    return _HEADS.get(quant_type.name, least)
