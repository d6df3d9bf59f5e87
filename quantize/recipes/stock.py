"""The recipe `stock`: the mixes of llama-quantize, so that our files can replace its files.

The rules are those of `llama_tensor_get_type_impl` in llama.cpp's src/llama-quant.cpp (as vendored in llama-cpp-python
0.3.36), for the architecture gpt2; the tests compare them live with `llama_model_quantize`. Their oddities are kept:
the fused QKV matrix counts as a value matrix; "the first eighth" of six layers is none; a matrix whose type the user
sets is not counted, so that those after it move up.
"""

from collections import Counter

from dgpt2_quant.core.quant_types import QuantType, TensorType

_CODEBOOKS_1_2 = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M")
_CODEBOOKS_2_MORE = ("IQ2_S", "IQ2_M")

# An untied embedding is only looked up, never multiplied with.
_LOOKUP = dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), TensorType.Q2_K)
_LOOKUP |= dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), TensorType.IQ3_S)
_LOOKUP |= dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), TensorType.Q4_K)

_QKV = dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), TensorType.Q2_K)
_QKV |= dict.fromkeys(_CODEBOOKS_2_MORE, TensorType.IQ3_S)
_QKV |= {"Q2_K": TensorType.Q3_K, "IQ3_M": TensorType.Q4_K, "Q3_K_L": TensorType.Q5_K}

_ATTENTION_OUTPUT = dict.fromkeys(("IQ1_S", "IQ1_M"), TensorType.IQ2_XXS)
_ATTENTION_OUTPUT |= dict.fromkeys(_CODEBOOKS_2_MORE, TensorType.IQ3_S)
_ATTENTION_OUTPUT |= {"IQ3_XXS": TensorType.IQ3_S, "Q2_K": TensorType.Q3_K, "Q3_K_M": TensorType.Q4_K}
_ATTENTION_OUTPUT |= {"Q3_K_L": TensorType.Q5_K, "IQ3_M": TensorType.Q4_K}

# The type of the first eighth of the ffn_down matrices, and whether it needs an importance matrix (None: either).
_FIRST_DOWN: dict[str, tuple[TensorType, bool | None]] = {}
_FIRST_DOWN |= dict.fromkeys(_CODEBOOKS_1_2, (TensorType.Q2_K, None))
_FIRST_DOWN |= dict.fromkeys(_CODEBOOKS_2_MORE, (TensorType.IQ3_S, None))
_FIRST_DOWN |= {"Q2_K_S": (TensorType.Q4_K, None), "IQ3_M": (TensorType.Q4_K, None), "Q4_K_S": (TensorType.Q5_K, None)}
_FIRST_DOWN |= {"IQ3_XXS": (TensorType.Q4_K, False), "IQ4_NL": (TensorType.Q5_K, False)}
_FIRST_DOWN |= {"IQ4_XS": (TensorType.Q5_K, False), "Q4_0": (TensorType.Q4_1, True), "Q5_0": (TensorType.Q5_1, True)}
_DOWN = {"Q2_K": TensorType.Q3_K, "Q3_K_M": TensorType.Q4_K, "Q3_K_L": TensorType.Q5_K}


class StockMix:
    """The types of one model's matrices at one quant type. It must see them in llama-quantize's order.

    `head` is the name of the output matrix or tied embedding; an importance matrix changes a few types.
    """

    def __init__(self, quant_type: QuantType, layers: int, head: str, has_imatrix: bool) -> None:
        self.name = quant_type.name
        self.base = quant_type.base
        self.layers = layers
        self.head = head
        self.has_imatrix = has_imatrix
        self.seen: Counter[str] = Counter()

    def choose(self, name: str, columns: int) -> TensorType:
        """The type for the matrix, without regard to whether its blocks divide a row."""
        if name == self.head:
            return self._head(columns)
        if self.name == "MXFP4_MOE":
            return TensorType.Q8_0
        if name == "token_embd.weight":
            return _LOOKUP.get(self.name, self.base)
        kind = name.split(".")[2]  # blk.N.KIND.weight
        index = self.seen[kind]
        self.seen[kind] += 1
        match kind:
            case "attn_qkv":
                return self._qkv(index)
            case "attn_output":
                return _ATTENTION_OUTPUT.get(self.name, self.base)
            case "ffn_down":
                return self._down(index)
        in_the_middle = self.layers // 8 <= index < 7 * self.layers // 8
        return TensorType.IQ3_XXS if self.name == "IQ3_XS" and in_the_middle else self.base

    def _head(self, columns: int) -> TensorType:
        if self.name in ("Q8_0", "MXFP4_MOE") or columns % self.base.block:
            return TensorType.Q8_0
        return TensorType.Q5_K if self.name in (*_CODEBOOKS_1_2, "IQ3_XXS") else TensorType.Q6_K

    def _qkv(self, index: int) -> TensorType:
        if self.name == "Q3_K_M":
            return TensorType.Q5_K if index < 2 else TensorType.Q4_K
        if self.name == "Q4_K_S" and index < 4:
            return TensorType.Q5_K
        if self.name == "IQ3_XXS" and not self.has_imatrix:
            return TensorType.IQ3_S
        return self._with_more_bits(index, _QKV.get(self.name, self.base))

    def _down(self, index: int) -> TensorType:
        if self.name == "Q3_K_M" and index < self.layers // 16:
            return TensorType.Q5_K
        if index < self.layers // 8 and self.name in _FIRST_DOWN:
            chosen, wanted = _FIRST_DOWN[self.name]
            return chosen if wanted in (None, self.has_imatrix) else self.base
        if self.name == "IQ3_XXS" and not self.has_imatrix:
            return TensorType.Q3_K
        return self._with_more_bits(index, _DOWN.get(self.name, self.base))

    def _with_more_bits(self, index: int, otherwise: TensorType) -> TensorType:
        """In a medium mix, six bits for the first and last eighth and every third between (`use_more_bits`)."""
        eighth = self.layers // 8
        raised = index < eighth or index >= 7 * self.layers // 8 or (index - eighth) % 3 == 2
        return TensorType.Q6_K if raised and self.name in ("Q4_K_M", "Q5_K_M") else otherwise
