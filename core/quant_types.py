"""The registry of quant types, and the tensor types (block formats) that they use.

A *tensor type* (`TensorType`) is a block format: how one tensor is stored. A *quant type* (`QuantType`) is what a user
chooses: it assigns a tensor type to each tensor of a model. The command line's choices, the CI matrix, the tables in
the documents and the tests derive from `QUANT_TYPES`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import IntEnum
from typing import NamedTuple

from .errors import UsageError


class Bits(NamedTuple):
    """Bits of a block: `mask` selects them from the little-endian word of `size` bytes at byte `at`."""

    at: int
    size: int
    mask: int


class TensorType(IntEnum):
    """Block formats by ggml's number for them (`enum ggml_type` in llama.cpp's ggml.h)."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41
    Q2_0 = 42

    @property
    def block(self) -> int:
        """The number of weights in a block."""
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        """The number of bytes of a block."""
        return _BLOCKS[self][1]

    @property
    def exponents(self) -> tuple[tuple[Bits, ...], ...]:
        """Where the exponents of a block's floats (values or scales) are.

        An exponent with all bits set is an infinity or NaN; all other parts of a block are integers.
        """
        return _EXPONENTS[self]

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block

    @property
    def is_quantized(self) -> bool:
        return self not in (TensorType.F32, TensorType.F16, TensorType.BF16)

    def row_bytes(self, width: int) -> int:
        """The number of bytes of a row of `width` weights, a multiple of `block`."""
        return width // self.block * self.block_bytes


# (weights, bytes) per block: ggml's `type_traits` table in ggml.c; the tests compare each with the C library.
_BLOCKS = {
    TensorType.F32: (1, 4),
    TensorType.F16: (1, 2),
    TensorType.BF16: (1, 2),
    TensorType.Q4_0: (32, 18),
    TensorType.Q4_1: (32, 20),
    TensorType.Q5_0: (32, 22),
    TensorType.Q5_1: (32, 24),
    TensorType.Q8_0: (32, 34),
    TensorType.Q2_K: (256, 84),
    TensorType.Q3_K: (256, 110),
    TensorType.Q4_K: (256, 144),
    TensorType.Q5_K: (256, 176),
    TensorType.Q6_K: (256, 210),
    TensorType.IQ2_XXS: (256, 66),
    TensorType.IQ2_XS: (256, 74),
    TensorType.IQ2_S: (256, 82),
    TensorType.IQ3_XXS: (256, 98),
    TensorType.IQ3_S: (256, 110),
    TensorType.IQ1_S: (256, 50),
    TensorType.IQ1_M: (256, 56),
    TensorType.IQ4_NL: (32, 18),
    TensorType.IQ4_XS: (256, 136),
    TensorType.TQ1_0: (256, 54),
    TensorType.TQ2_0: (256, 66),
    TensorType.MXFP4: (32, 17),
    TensorType.NVFP4: (64, 36),
    TensorType.Q1_0: (128, 18),
    TensorType.Q2_0: (64, 18),
}


def _halves(*places: int) -> tuple[tuple[Bits, ...], ...]:
    """The exponents of F16 values at these bytes."""
    return tuple((Bits(at, 2, 0x7C00),) for at in places)


# The block layouts of ggml-common.h; the tests compare them with ggml_validate_row_data.
_EXPONENTS = {
    TensorType.F32: ((Bits(0, 4, 0x7F800000),),),
    TensorType.F16: _halves(0),
    TensorType.BF16: ((Bits(0, 2, 0x7F80),),),
    TensorType.Q4_0: _halves(0),
    TensorType.Q4_1: _halves(0, 2),
    TensorType.Q5_0: _halves(0),
    TensorType.Q5_1: _halves(0, 2),
    TensorType.Q8_0: _halves(0),
    TensorType.Q2_K: _halves(80, 82),
    TensorType.Q3_K: _halves(108),
    TensorType.Q4_K: _halves(0, 2),
    TensorType.Q5_K: _halves(0, 2),
    TensorType.Q6_K: _halves(208),
    TensorType.IQ2_XXS: _halves(0),
    TensorType.IQ2_XS: _halves(0),
    TensorType.IQ2_S: _halves(0),
    TensorType.IQ3_XXS: _halves(0),
    TensorType.IQ3_S: _halves(0),
    TensorType.IQ1_S: _halves(0),
    # one F16 in the upper four bits of four words, the lowest first
    TensorType.IQ1_M: ((Bits(52, 2, 0xC000), Bits(54, 2, 0x7000)),),
    TensorType.IQ4_NL: _halves(0),
    TensorType.IQ4_XS: _halves(0),
    TensorType.TQ1_0: _halves(52),
    TensorType.TQ2_0: _halves(64),
    TensorType.MXFP4: ((Bits(0, 1, 0xFF),),),
    TensorType.NVFP4: (),  # without a sign bit, all bytes are finite; 0x7F counts as zero
    TensorType.Q1_0: _halves(0),
    TensorType.Q2_0: _halves(0),
}


@dataclass(frozen=True)
class QuantType:
    """A quant type.

    `base` is the tensor type of most weights, `file_type` the number in `general.file_type` (llama.cpp's `enum
    llama_ftype`). `bits_per_weight` is nominal: that of the base type or, for a mix, what llama.cpp's
    tools/quantize/README.md measured on Llama-3.1-8B. A GPT-2 needs more, because the embedding is a large part of it.
    `needs_imatrix`: llama.cpp refuses this type without an importance matrix.
    """

    name: str
    base: TensorType
    file_type: int
    bits_per_weight: float
    description: str
    aliases: tuple[str, ...] = ()
    needs_imatrix: bool = False
    ci: bool = False

    def __str__(self) -> str:
        return self.name

    def file_name(self, model: str) -> str:
        """`distilgpt2.Q4_K_M.gguf`, the naming used on the Hub."""
        return f"{model}.{self.name}.gguf"


QUANT_TYPES: dict[str, QuantType] = {
    quant_type.name: quant_type
    for quant_type in (
        QuantType("F32", TensorType.F32, 0, 32.0, "the weights as they were trained; the reference", ci=True),
        QuantType("F16", TensorType.F16, 1, 16.0, "half precision; no visible loss", ci=True),
        QuantType("BF16", TensorType.BF16, 32, 16.0, "F32's range with 8 bits of precision; for sources in BF16"),
        QuantType("Q8_0", TensorType.Q8_0, 7, 8.5, "8 bits in blocks of 32; nearly lossless", ci=True),
        QuantType("Q6_K", TensorType.Q6_K, 18, 6.56, "6 bits in blocks of 256", ci=True),
        QuantType("Q5_K_M", TensorType.Q5_K, 17, 5.7, "5 bits, the sensitive tensors 6", ("q5_k",), ci=True),
        QuantType("Q5_K_S", TensorType.Q5_K, 16, 5.57, "5 bits in blocks of 256"),
        QuantType("Q5_1", TensorType.Q5_1, 9, 6.0, "5 bits and a minimum in blocks of 32; older than Q5_K"),
        QuantType("Q5_0", TensorType.Q5_0, 8, 5.5, "5 bits in blocks of 32; older than Q5_K"),
        QuantType("Q4_K_M", TensorType.Q4_K, 15, 4.9, "4 bits, the sensitive tensors 6", ("q4_k",), ci=True),
        QuantType("Q4_K_S", TensorType.Q4_K, 14, 4.67, "4 bits, the first sensitive tensors 5"),
        QuantType("IQ4_NL", TensorType.IQ4_NL, 25, 4.5, "4 bits on an uneven scale, in blocks of 32"),
        QuantType("IQ4_XS", TensorType.IQ4_XS, 30, 4.46, "4 bits on an uneven scale, in blocks of 256"),
        QuantType("Q4_1", TensorType.Q4_1, 3, 5.0, "4 bits and a minimum in blocks of 32; older than Q4_K"),
        QuantType("Q4_0", TensorType.Q4_0, 2, 4.5, "4 bits in blocks of 32; the fastest kernels", ci=True),
        QuantType("Q3_K_L", TensorType.Q3_K, 13, 4.3, "3 bits, the sensitive tensors 5"),
        QuantType("Q3_K_M", TensorType.Q3_K, 12, 4.0, "3 bits, the sensitive tensors 4 or 5", ("q3_k",), ci=True),
        QuantType("IQ3_M", TensorType.IQ3_S, 27, 3.76, "3 bits from a codebook, the sensitive tensors 4"),
        QuantType("IQ3_S", TensorType.IQ3_S, 26, 3.66, "3 bits from a codebook"),
        QuantType("Q3_K_S", TensorType.Q3_K, 11, 3.64, "3 bits in blocks of 256"),
        QuantType("IQ3_XS", TensorType.IQ3_S, 22, 3.5, "3 bits from a codebook, some 3.06", needs_imatrix=True),
        QuantType("IQ3_XXS", TensorType.IQ3_XXS, 23, 3.25, "3 bits from a smaller codebook", needs_imatrix=True),
        QuantType("Q2_K", TensorType.Q2_K, 10, 3.16, "2 bits, the sensitive tensors 3"),
        QuantType("Q2_K_S", TensorType.Q2_K, 21, 2.97, "2 bits in blocks of 256", needs_imatrix=True),
        QuantType("IQ2_M", TensorType.IQ2_S, 29, 2.93, "2 bits from a codebook, the sensitive 3", needs_imatrix=True),
        QuantType("IQ2_S", TensorType.IQ2_XS, 28, 2.74, "IQ2_XS, the sensitive tensors 3 bits", needs_imatrix=True),
        QuantType("IQ2_XS", TensorType.IQ2_XS, 20, 2.59, "2 bits from a codebook", needs_imatrix=True),
        QuantType("IQ2_XXS", TensorType.IQ2_XXS, 19, 2.38, "2 bits from a smaller codebook", needs_imatrix=True),
        QuantType("Q2_0", TensorType.Q2_0, 41, 2.25, "2 bits in blocks of 64; for models trained so"),
        QuantType("TQ2_0", TensorType.TQ2_0, 37, 2.06, "ternary, fast; for models trained so"),
        QuantType("IQ1_M", TensorType.IQ1_M, 31, 2.15, "below 2 bits", needs_imatrix=True),
        QuantType("IQ1_S", TensorType.IQ1_S, 24, 2.0, "below 2 bits, the least that is not noise", needs_imatrix=True),
        QuantType("TQ1_0", TensorType.TQ1_0, 36, 1.69, "ternary, small; for models trained so"),
        QuantType("Q1_0", TensorType.Q1_0, 40, 1.125, "1 bit in blocks of 128; for models trained so"),
        QuantType("MXFP4_MOE", TensorType.MXFP4, 38, 8.5, "for mixtures of experts; a GPT-2 comes out as Q8_0"),
    )
}

DEFAULT_TYPE = "Q4_K_M"  # of the commands that run one model
BENCH_TYPES = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0")
DEMO_TYPES = ("F16", "Q8_0", "Q5_K_M", "Q4_0")

_BY_SPELLING = {
    spelling.lower(): quant_type
    for quant_type in QUANT_TYPES.values()
    for spelling in (quant_type.name, *quant_type.aliases)
}


def find_type(name: str | QuantType) -> QuantType:
    """The quant type of a name or alias, ignoring case.

    Raises `UsageError` that suggests the closest name.
    """
    if isinstance(name, QuantType):
        return name
    found = _BY_SPELLING.get(name.strip().lower())
    if found is None:
        near = nearest(name.strip().lower(), _BY_SPELLING)
        hint = f"Did you mean {near}? " if near else ""
        raise UsageError(
            f"unknown quant type {name!r}; the types are {' '.join(t.lower() for t in QUANT_TYPES)}",
            hint + "See `dgpt2-quant types`.",
        )
    return found


def is_type(name: str) -> bool:
    """Whether `name` is a quant type's name or alias, ignoring case."""
    return name.strip().lower() in _BY_SPELLING


def find_types(names: str | QuantType | Iterable[str | QuantType]) -> list[QuantType]:
    """The quant types of these names (or of one), in order, without duplicates. Raises `UsageError` as `find_type`."""
    if isinstance(names, str | QuantType):
        names = [names]
    return list(dict.fromkeys(find_type(name) for name in names))


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The most similar of `words`, the first of equals; None if none is similar."""
    likeness = {other: SequenceMatcher(None, word, other).ratio() for other in words}
    best = max(likeness, key=lambda other: likeness[other])
    return best if likeness[best] >= 0.5 else None


def name_of_file_type(file_type: int | None) -> str | None:
    """The quant type's name for a `general.file_type` number; None if unknown."""
    return next((t.name for t in QUANT_TYPES.values() if t.file_type == file_type), None)
