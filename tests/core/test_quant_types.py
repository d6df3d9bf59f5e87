"""The registry compared with llama.cpp's C library, its constants, and gguf-py."""

import gguf
import llama_cpp
import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.ggml import library
from dgpt2_quant.core.quant_types import (
    BENCH_TYPES,
    DEFAULT_TYPE,
    DEMO_TYPES,
    QUANT_TYPES,
    QuantType,
    TensorType,
    find_type,
    find_types,
    name_of_file_type,
)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("q4_k", "Q4_K_M"),
        ("Q4_K", "Q4_K_M"),
        ("q5_k", "Q5_K_M"),
        (" Q8_0 ", "Q8_0"),
        ("bf16", "BF16"),
        ("Q4_0", "Q4_0"),
    ],
)
def test_type_is_found_by_name_or_alias(spelling: str, name: str) -> None:
    assert find_type(spelling) is QUANT_TYPES[name]


def test_every_type_is_found_by_its_name() -> None:
    assert [find_type(name.lower()) for name in QUANT_TYPES] == list(QUANT_TYPES.values())
    assert find_type(QUANT_TYPES["Q8_0"]) is QUANT_TYPES["Q8_0"]
    assert str(QUANT_TYPES["Q8_0"]) == "Q8_0"


def test_several_types_keep_order_without_duplicates() -> None:
    assert [t.name for t in find_types(["q8_0", "q4_k", "Q4_K_M", "f16", "Q8_0"])] == ["Q8_0", "Q4_K_M", "F16"]
    assert find_types([]) == []


@pytest.mark.parametrize(("wrong", "right"), [("q4_k_n", "q4_k_m"), ("q80", "q8_0"), ("fp16", "f16"), ("q5", "q5_k")])
def test_unknown_type_suggests_the_closest(wrong: str, right: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_type(wrong)
    assert repr(wrong) in caught.value.message
    assert all(name.lower() in caught.value.message.split() for name in QUANT_TYPES)
    assert f"Did you mean {right}?" in caught.value.hint
    assert caught.value.exit_status == 2


def test_no_suggestion_without_similarity() -> None:
    with pytest.raises(UsageError) as caught:
        find_type("zzz")
    assert "Did you mean" not in caught.value.hint
    assert "dgpt2-quant types" in caught.value.hint


@pytest.mark.parametrize("tensor_type", TensorType, ids=lambda t: t.name)
def test_block_sizes_equal_those_of_ggml(tensor_type: TensorType) -> None:
    assert library().ggml_get_type_traits(tensor_type).contents.type_name.decode().upper() == tensor_type.name
    if tensor_type is not TensorType.Q2_0:  # newer than gguf-py 0.19
        theirs = gguf.GGMLQuantizationType[tensor_type.name]
        assert theirs == tensor_type
        assert gguf.GGML_QUANT_SIZES[theirs] == (tensor_type.block, tensor_type.block_bytes)
    for blocks in (1, 3, 7):
        width = blocks * tensor_type.block
        assert tensor_type.row_bytes(width) == library().ggml_row_size(tensor_type, width)
    assert tensor_type.bits_per_weight == 8 * tensor_type.block_bytes / tensor_type.block


def test_only_float_types_are_unquantized() -> None:
    assert [t.name for t in TensorType if not t.is_quantized] == ["F32", "F16", "BF16"]


@pytest.mark.parametrize("quant_type", QUANT_TYPES.values(), ids=str)
def test_file_types_equal_those_of_llama_cpp(quant_type: QuantType) -> None:
    mostly = "ALL" if quant_type.name == "F32" else "MOSTLY"
    assert name_of_file_type(quant_type.file_type) == quant_type.name
    if quant_type.name == "Q2_0":  # newer than the bindings' list, and gguf-py's; llama_model_quantize knows it
        return
    assert quant_type.file_type == getattr(llama_cpp, f"LLAMA_FTYPE_{mostly}_{quant_type.name}")
    assert gguf.LlamaFileType(quant_type.file_type).name == f"{mostly}_{quant_type.name}"


def test_file_types_are_unique() -> None:
    assert len({t.file_type for t in QUANT_TYPES.values()}) == len(QUANT_TYPES)
    assert name_of_file_type(None) is None
    assert name_of_file_type(1024) is None


def test_nominal_bits_per_weight() -> None:
    for quant_type in QUANT_TYPES.values():
        base = quant_type.base.bits_per_weight
        if quant_type.name == quant_type.base.name and quant_type.base.block <= 64:
            assert quant_type.bits_per_weight == base
        elif quant_type.name != "MXFP4_MOE":
            assert round(base, 2) <= quant_type.bits_per_weight < base + 1


def test_default_lists_contain_known_types() -> None:
    assert {*BENCH_TYPES, DEFAULT_TYPE} <= QUANT_TYPES.keys()
    assert DEMO_TYPES == ("F16", "Q8_0", "Q5_K_M", "Q4_0")
