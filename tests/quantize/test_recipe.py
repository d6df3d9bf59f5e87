"""The stock recipe against the real thing: llama.cpp quantizes our F32 file in this process, and we compare.

Which tensor gets more bits depends on the depth, on the head being tied, and on the row's length; so each is varied.
Every tensor must come out with the same type and the same bytes.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.quantize.gguf_file import read_header
from dgpt2_quant.quantize.hyperparameters import Hyperparameters
from dgpt2_quant.quantize.quant_types import QUANT_TYPES, TensorType
from dgpt2_quant.quantize.recipe import tensor_types
from dgpt2_quant.runtime.library import bindings

from .checkpoints import make_checkpoint

MIXES = ["Q5_K_M", "Q4_K_M"]  # the levels whose types depend on the depth
LEVELS = [name for name in QUANT_TYPES if name != "F32"]


def quantized_by_llama_cpp(source: Path, level: str, target: Path) -> Path:
    llama_cpp = bindings()  # its log goes to a logger that nobody listens to
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANT_TYPES[level].file_type
    params.nthread = 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    return target


def contents(path: Path) -> dict[str, tuple[str, tuple[int, ...], npt.NDArray[np.uint8]]]:
    data = np.fromfile(path, np.uint8)
    tensors = read_header(path).tensors.values()
    return {t.name: (t.type.name, t.shape, data[t.start : t.start + t.nbytes]) for t in tensors}


def compare(folder: Path, levels: list[str], **shape: Any) -> dict[str, dict[str, str]]:
    """Compares all tensors of all levels; returns our types by level and name."""
    checkpoint = make_checkpoint(folder / "model", context=8, **shape)
    files = {file.type: Path(file.path) for file in convert(str(checkpoint), type=["F32", *levels], output=folder)}
    found = {}
    for level in levels:
        ours, theirs = (
            contents(files[level]),
            contents(quantized_by_llama_cpp(files["F32"], level, folder / "theirs.gguf")),
        )
        assert {name: kind for name, (kind, _, _) in ours.items()} == {
            name: kind for name, (kind, _, _) in theirs.items()
        }
        for name, (_, form, data) in theirs.items():
            assert ours[name][1] == form
            assert np.array_equal(ours[name][2], data), f"{name} at {level} has other bytes"
        found[level] = {name: kind for name, (kind, _, _) in ours.items()}
        theirs_says = read_header(folder / "theirs.gguf").metadata["general.file_type"]
        assert read_header(files[level]).metadata["general.file_type"] == theirs_says
    shutil.rmtree(folder)  # pytest keeps the folders of the last runs, and these are large
    return found


@pytest.mark.parametrize("head", ["absent", "untied"])
def test_every_level_is_what_llama_cpp_makes(head: str, tmp_path: Path) -> None:
    found = compare(tmp_path, LEVELS, layers=6, width=256, inner=256, head=head)
    assert {level: types["token_embd.weight"] for level, types in found.items()} == {
        "F16": "F16",
        "BF16": "BF16",
        "Q8_0": "Q8_0",
        "Q5_K_M": "Q6_K" if head == "absent" else "Q5_K",
        "Q4_K_M": "Q6_K" if head == "absent" else "Q4_K",
        "Q4_0": "Q6_K" if head == "absent" else "Q4_0",
    }


@pytest.mark.parametrize(
    ("layers", "head"),
    [(1, "absent"), (12, "absent"), (12, "untied"), (24, "untied"), (36, "absent"), (48, "absent"), (48, "untied")],
)
def test_mixes_are_llama_cpps_at_every_depth(layers: int, head: str, tmp_path: Path) -> None:
    # rows of zeros are quantized in no time: the types are in question here, and the bytes of the first few
    row = np.random.default_rng(0).normal(0, 0.1, (256, 16))
    parts = {"attn.c_attn": 768, "attn.c_proj": 256, "mlp.c_fc": 256, "mlp.c_proj": 256}
    thin = {part: np.pad(row, ((0, 0), (0, outputs - 16))) for part, outputs in parts.items()}
    changed = {f"h.{n}.{part}.weight": data for n in range(layers) for part, data in thin.items()}
    found = compare(tmp_path, MIXES, layers=layers, width=256, inner=256, head=head, changed=changed)
    for types in found.values():
        raised = [n for n in range(layers) if types[f"blk.{n}.ffn_down.weight"] == "Q6_K"]
        assert raised == [n for n in range(layers) if types[f"blk.{n}.attn_qkv.weight"] == "Q6_K"]
        if layers == 12:  # the first and the last eighth, and every third between
            assert raised == [0, 3, 6, 9, 10, 11]


@pytest.mark.parametrize("head", ["absent", "untied"])
@pytest.mark.parametrize(("width", "inner"), [(64, 256), (64, 96), (48, 192), (48, 40), (256, 48), (320, 64)])
def test_rows_that_blocks_do_not_divide_fall_back_as_llama_cpps(
    width: int, inner: int, head: str, tmp_path: Path
) -> None:
    found = compare(tmp_path, LEVELS, layers=3, width=width, inner=inner, head=head)
    if width == 48:
        assert {types["token_embd.weight"] for types in found.values()} == {"F16", "BF16"}
    elif width in (64, 320):
        assert found["Q4_K_M"]["blk.0.ffn_up.weight"] == "Q5_0"
        assert found["Q5_K_M"]["blk.0.ffn_up.weight"] == "Q5_1"


def test_gpt2_xls_width_falls_back_to_blocks_of_32() -> None:
    sizes = Hyperparameters(48, 1600, 25, 6400, 1024, 50257, 1e-5)
    types = tensor_types(sizes.shapes(), QUANT_TYPES["Q4_K_M"])
    assert types["blk.0.attn_qkv.weight"] is TensorType.Q8_0
    assert types["blk.6.attn_qkv.weight"] is TensorType.Q5_0
    assert types["blk.6.ffn_down.weight"] is TensorType.Q4_K  # 6400 columns
    assert types["token_embd.weight"] is TensorType.Q8_0
    assert types["position_embd.weight"] is TensorType.F32


def test_distilgpt2_at_q4_k_m_has_the_known_size() -> None:
    sizes = Hyperparameters(6, 768, 12, 3072, 1024, 50257, 1e-5)
    shapes = sizes.shapes()
    types = tensor_types(shapes, QUANT_TYPES["Q4_K_M"])
    data = sum(np.prod(shape[:-1], dtype=int) * types[name].row_bytes(shape[-1]) for name, shape in shapes.items())
    assert data / 1e6 == pytest.approx(61.0, abs=0.3)  # 62.8 MB with the head and its tokens
    assert {types[name] for name in shapes if len(shapes[name]) == 1} == {TensorType.F32}


def test_an_unknown_recipe_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"unknown recipe 'best'; there are stock"):
        tensor_types({}, QUANT_TYPES["F16"], "best")
