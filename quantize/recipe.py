"""Recipes: which tensor type each tensor of a model gets at a quant type.

`stock` is what llama-quantize does, so that our files can stand in for its files. The rules are those of
`llama_tensor_get_type` and `tensor_type_fallback` in llama.cpp's src/llama-quant.cpp (as vendored in
llama-cpp-python 0.3.36), for the architecture gpt2 and the levels of the registry; the tests compare them live
with `llama_model_quantize`.
"""

from collections.abc import Mapping

from .errors import UsageError
from .hyperparameters import block_of
from .quant_types import QuantType, TensorType

RECIPES = ("stock",)

# Where a row does not divide into the type's blocks: the nearest type with blocks of 32.
_FALLBACK = {
    TensorType.Q4_K: TensorType.Q5_0,
    TensorType.Q5_K: TensorType.Q5_1,
    TensorType.Q6_K: TensorType.Q8_0,
}
_MIXES_WITH_MORE_BITS = ("Q4_K_M", "Q5_K_M")


def tensor_types(
    shapes: Mapping[str, tuple[int, ...]], quant_type: QuantType, recipe: str = "stock"
) -> dict[str, TensorType]:
    """A tensor type for each tensor of the model. `shapes` are in llama-quantize's order (`Hyperparameters.shapes`).

    Raises `UsageError` for an unknown recipe.
    """
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe!r}; there are {', '.join(RECIPES)}")
    layers = 1 + max((block_of(name) or 0 for name in shapes), default=0)
    head = "output.weight" if "output.weight" in shapes else "token_embd.weight"
    return {name: _stock(name, shape, quant_type, layers, head) for name, shape in shapes.items()}


def _stock(name: str, shape: tuple[int, ...], quant_type: QuantType, layers: int, head: str) -> TensorType:
    if len(shape) == 1 or name == "position_embd.weight":
        return TensorType.F32
    base = quant_type.base
    if not base.is_quantized:
        return base
    columns = shape[1]
    if name == head:
        chosen = TensorType.Q8_0 if base is TensorType.Q8_0 or columns % base.block else TensorType.Q6_K
    elif (
        quant_type.name in _MIXES_WITH_MORE_BITS
        and _is_sensitive(name)
        and _gets_more_bits(block_of(name) or 0, layers)
    ):
        chosen = TensorType.Q6_K
    else:
        chosen = base
    return _fitting(chosen, columns)


def _is_sensitive(name: str) -> bool:
    return name.endswith((".attn_qkv.weight", ".ffn_down.weight"))


def _gets_more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between (`use_more_bits`)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(tensor_type: TensorType, columns: int) -> TensorType:
    if columns % tensor_type.block:
        tensor_type = _FALLBACK.get(tensor_type, tensor_type)
    return TensorType.F16 if columns % tensor_type.block else tensor_type
