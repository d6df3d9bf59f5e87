"""Metadata names settings that changed the file, not settings without effect."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.ggml import quantize
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.recipes import plan as module

from ..checkpoints import make_checkpoint

TEXT = "then the in an " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model, a text, and an importance matrix over it."""
    folder = tmp_path_factory.mktemp("claims")
    make_checkpoint(folder / "tiny", layers=1, width=64, inner=64, context=32)
    (folder / "text.txt").write_text(TEXT)
    imatrix(str(folder / "tiny"), text=folder / "text.txt", output=folder / "it.gguf")
    return folder


def claims(folder: Path, out: Path, quant_type: str, **options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The file's metadata about its settings, and its tensors' types."""
    (file,) = convert(str(folder / "tiny"), type=quant_type, output=out / "it.gguf", **options)
    header = read_header(Path(file.path))
    parts = ("dgpt2_quant.tensor_types", "dgpt2_quant.lean.", "dgpt2_quant.imatrix.", "quantize.imatrix.")
    return {k: v for k, v in header.metadata.items() if k.startswith(parts)}, {
        name: tensor.type.name for name, tensor in header.tensors.items()
    }


@pytest.mark.parametrize("quant_type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("recipe", ["stock", "lean"])
def test_nothing_is_claimed_where_nothing_is_quantized(
    quant_type: str, recipe: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = convert(str(folder / "tiny"), type=quant_type, output=tmp_path / "plain.gguf")
    options: dict[str, Any] = {"imatrix": folder / "it.gguf", "tensor_type": ["ffn_down=q8_0"], "recipe": recipe}
    if recipe == "lean":
        options |= {"prefer": "size", "without": ["feedback"]}
    with caplog.at_level(logging.WARNING):
        said, _ = claims(folder, tmp_path, quant_type, **options)
    assert said == {}
    assert (tmp_path / "it.gguf").read_bytes() == Path(plain[0].path).read_bytes()
    assert any("`tensor_type` has no effect" in text for text in caplog.messages)
    assert any("importance matrix has no effect" in text for text in caplog.messages)
    assert any("lean has no effect" in text for text in caplog.messages) is (recipe == "lean")


def test_importance_is_not_collected_where_it_changes_nothing(folder: Path, tmp_path: Path) -> None:
    for quant_type, is_collected in (("F16", False), ("Q8_0", False), ("Q4_0", True)):
        shown: list[str] = []
        options: dict[str, Any] = {"overwrite": True, "progress": lambda *news, shown=shown: shown.append(news[2])}
        said, _ = claims(folder, tmp_path, quant_type, calibrate=folder / "text.txt", **options)
        assert bool(said) is is_collected
        assert any("importance" in what for what in shown) is is_collected


def test_an_importance_matrix_is_claimed_where_it_decides(folder: Path, tmp_path: Path) -> None:
    """Q8_0 is rounded the same with and without one, but a matrix that is set to Q4_0 in it is not."""
    without = convert(str(folder / "tiny"), type="Q8_0", output=tmp_path / "without.gguf")
    said, _ = claims(folder, tmp_path, "Q8_0", imatrix=folder / "it.gguf")
    assert said == {}
    assert (tmp_path / "it.gguf").read_bytes() == Path(without[0].path).read_bytes()
    options: dict[str, Any] = {"imatrix": folder / "it.gguf", "overwrite": True}
    assert claims(folder, tmp_path, "Q8_0", tensor_type=["ffn_up=q4_0"], **options)[0].keys() > {
        "dgpt2_quant.imatrix.sha256"
    }
    assert "dgpt2_quant.imatrix.sha256" in claims(folder, tmp_path, "Q4_0", **options)[0]
    assert "dgpt2_quant.imatrix.sha256" in claims(folder, tmp_path, "Q8_0", recipe="lean", **options)[0]


def test_of_several_types_only_the_weighed_one_names_the_importance_matrix(folder: Path, tmp_path: Path) -> None:
    alone = convert(str(folder / "tiny"), type="Q4_0", output=tmp_path / "alone.gguf", imatrix=folder / "it.gguf")
    files = convert(str(folder / "tiny"), type=["F16", "Q4_0"], output=tmp_path, imatrix=folder / "it.gguf")
    assert files[1].sha256 == alone[0].sha256
    assert "quantize.imatrix.dataset" not in read_header(Path(files[0].path)).metadata


def test_metadata_names_the_types_that_overrides_resulted_in(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No K-quant divides rows of 64 weights; the second expression is shadowed by the first."""
    overrides = ["ffn_down=q6_k", "ffn_down=q4_0", "attn_.*=q5_1"]
    said, types = claims(folder, tmp_path, "Q4_0", tensor_type=overrides)
    assert said == {"dgpt2_quant.tensor_types": ["ffn_down=Q8_0", "attn_.*=Q5_1"]}
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.0.attn_qkv.weight"] == types["blk.0.attn_output.weight"] == "Q5_1"
    assert any("blk.0.ffn_down.weight do not fit; it gets Q8_0" in text for text in caplog.messages)
    assert any("ffn_down=Q4_0 has no effect" in text for text in caplog.messages)


@pytest.mark.parametrize("expression", ["nothing", "position_embd", "attn_norm", r"\.bias$"])
@pytest.mark.parametrize("recipe", ["stock", "lean"])
def test_an_override_that_matches_no_matrix_is_refused(
    expression: str, recipe: str, folder: Path, tmp_path: Path
) -> None:
    for quant_type in ("Q4_0", "F16"):
        with pytest.raises(UsageError, match="matches no matrix"):
            claims(folder, tmp_path, quant_type, tensor_type=[f"{expression}=q8_0"], recipe=recipe)


def test_unweighted_types_are_those_of_the_c_code() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((8, 256)).astype(np.float32)
    importance = (random.random(256) ** 4 * 10 + 1e-3).astype(np.float32)
    same = set()
    for kind in TensorType:
        if kind.name.startswith("IQ"):  # some need importance, and the tables of all take seconds
            continue
        (weighed,), (plain,) = (quantize("it", rows, [kind], given) for given in (importance, None))
        if np.array_equal(weighed, plain):
            same.add(kind)
    assert same == module.UNWEIGHTED
