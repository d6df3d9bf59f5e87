"""The stock recipe against the real thing: llama.cpp quantizes our F32 file in this process, and we compare.

Which tensor gets more bits depends on the depth, a tied head, the row's length, an importance matrix, and overrides, so
each is varied. Every tensor must have the same type and the same bytes.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.hyperparameters import Hyperparameters, matmul_weights
from dgpt2_quant.core.quant_types import QUANT_TYPES, TensorType, find_type
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, Statistics
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.recipes.tensor_types import (
    PREFERENCES,
    ROUNDABLE,
    find_override,
    find_preference,
    has_lean,
    lean_embedding,
    lean_matrix,
    tensor_types,
)

from ...checkpoints import make_checkpoint
from ..oracle import assert_same_tensors, contents, llama_quantize

pytestmark = pytest.mark.tables

TYPES = [name for name in QUANT_TYPES if name != "F32"]
FREE = [name for name in TYPES if not QUANT_TYPES[name].needs_imatrix]


def random_importance(shapes: dict[str, tuple[int, ...]]) -> ImportanceMatrix:
    """For every matrix that activations meet; the sums and counts are such that dividing them rounds."""
    random = np.random.default_rng(0)
    entries = {
        name: Statistics(random.gamma(0.5, 100, shapes[name][1]).astype(np.float32), None, 97.0)
        for name in matmul_weights(shapes)
    }
    return ImportanceMatrix(entries, ["random"], 1, 97)


def compare(
    folder: Path,
    quant_types: Sequence[str],
    *,
    imatrix: bool = False,
    overrides: Sequence[str] = (),
    types_only: bool = False,
    **shape: Any,
) -> dict[str, dict[str, str]]:
    """Compares all tensors, or only planned types; returns our types by quant type and name."""
    checkpoint = make_checkpoint(folder / "model", context=8, **shape)
    (base,) = convert(str(checkpoint), type="F32", output=folder)
    matrix = random_importance(dict(base.plan.shapes)) if imatrix else None
    if matrix:
        matrix.write(folder / "imatrix.gguf")
    files = convert(
        str(checkpoint),
        type=quant_types,
        output=folder,
        imatrix=folder / "imatrix.gguf" if matrix else None,
        tensor_type=overrides,
        dry_run=types_only,
    )
    found = {}
    for file in files:
        made = llama_quantize(
            Path(base.path),
            file.type,
            folder / "theirs.gguf",
            importance={name: entry.mean_squares for name, entry in matrix.entries.items()} if matrix else None,
            overrides=[(o.pattern.pattern, o.type) for o in map(find_override, overrides)],
        )
        assert made, f"llama.cpp makes no {file.type} of it"
        if types_only:
            found[file.type] = {name: kind.name for name, kind in file.plan.types.items()}
            assert found[file.type] == {name: kind for name, (kind, _, _) in contents(folder / "theirs.gguf").items()}
        else:
            found[file.type] = assert_same_tensors(Path(file.path), folder / "theirs.gguf")
    shutil.rmtree(folder)  # pytest keeps the folders of the last runs, and these are large
    return found


def thin(layers: int, inner: int) -> dict[str, Any]:
    """A model of width 256 with two rows in each matrix, and zeros, which are quantized in no time.

    For where the types are in question, and the bytes of a few rows will do.
    """
    random = np.random.default_rng(0)
    shapes = {
        "attn.c_attn": (256, 768),
        "attn.c_proj": (256, 256),
        "mlp.c_fc": (256, inner),
        "mlp.c_proj": (inner, 256),
    }
    changed = {}
    for part, (inputs, outputs) in shapes.items():
        matrix = np.zeros((inputs, outputs))
        matrix[:, :2] = random.normal(0, 0.1, (inputs, 2))
        changed |= {f"h.{n}.{part}.weight": matrix for n in range(layers)}
    return {"layers": layers, "width": 256, "inner": inner, "changed": changed}


def mixed(quant_types: Sequence[str], layers: int, imatrix: bool) -> list[str]:
    """Those quant types whose layers are not all alike."""
    shapes = Hyperparameters(layers, 256, 4, 256, 8, 262, 1e-5).shapes()
    found = []
    for quant_type in quant_types:
        types = tensor_types(shapes, QUANT_TYPES[quant_type], has_imatrix=imatrix)
        if any(kind is not types[f"blk.0.{name.split('.', 2)[2]}"] for name, kind in types.items() if "blk" in name):
            found.append(quant_type)
    return found


# neither a head of its own nor an importance matrix changes anything with the depth: all four at six layers only
DEPTHS = [(6, "absent", True), (6, "untied", False)]
DEEP = [
    (6, "absent", False),
    (6, "untied", True),
    (12, "absent", True),
    (12, "untied", False),
    (24, "untied", True),
    (36, "absent", False),
    (48, "untied", False),
]


@pytest.mark.parametrize(
    ("layers", "head", "imatrix"), [*DEPTHS, *(pytest.param(*deep, marks=pytest.mark.slow) for deep in DEEP)]
)
def test_every_quant_type_at_every_depth_has_llama_cpps_types(
    layers: int, head: str, imatrix: bool, tmp_path: Path
) -> None:
    quant_types, shape = TYPES if imatrix else FREE, thin(layers, 256)
    if layers > 12:  # there all are compared, and most found to be alike in every layer
        quant_types = [
            name
            for name in quant_types
            if name in {*mixed(quant_types, 12, imatrix), *mixed(quant_types, layers, imatrix)}
        ]
    # what depth decides are the types; six layers show that the bytes are those of the types
    found = compare(tmp_path / "it", quant_types, imatrix=imatrix, head=head, types_only=layers > 6, **shape)
    raised = [n for n in range(layers) if found["Q4_K_M"][f"blk.{n}.ffn_down.weight"] == "Q6_K"]
    assert raised == [n for n in range(layers) if found["Q4_K_M"][f"blk.{n}.attn_qkv.weight"] == "Q6_K"]
    if layers == 12:  # the first and the last eighth, and every third between
        assert raised == [0, 3, 6, 9, 10, 11]


@pytest.mark.parametrize(("head", "imatrix"), [("absent", True), ("untied", False)])
def test_dense_rows_have_llama_cpps_bytes_at_every_quant_type(head: str, imatrix: bool, tmp_path: Path) -> None:
    quant_types = TYPES if imatrix else FREE
    found = compare(tmp_path / "it", quant_types, imatrix=imatrix, layers=1, width=256, inner=256, head=head)
    embedding = {name: types["token_embd.weight"] for name, types in found.items()}
    tied = head == "absent"
    assert [embedding[name] for name in ("F16", "BF16", "Q8_0")] == ["F16", "BF16", "Q8_0"]
    assert [embedding[name] for name in ("Q5_K_M", "Q4_0")] == (["Q6_K", "Q6_K"] if tied else ["Q5_K", "Q4_0"])


WIDTHS = [(64, 256), (64, 96), (48, 192), (48, 40), (256, 48), (320, 64), (384, 128)]
UNDIVIDED = [(*width, index % 3 == 0) for index, width in enumerate(WIDTHS)]
MORE_UNDIVIDED = [(*width, index % 3 != 0) for index, width in enumerate(WIDTHS)]


@pytest.mark.parametrize(
    ("width", "inner", "imatrix"), [*UNDIVIDED, *(pytest.param(*it, marks=pytest.mark.slow) for it in MORE_UNDIVIDED)]
)
def test_rows_that_blocks_do_not_divide_get_llama_cpps_replacement(
    width: int, inner: int, imatrix: bool, tmp_path: Path
) -> None:
    head = "untied" if imatrix == (WIDTHS.index((width, inner)) % 2 == 0) else "absent"
    quant_types = [name for name in (TYPES if imatrix else FREE) if name != "Q1_0" or width % 128 == inner % 128 == 0]
    found = compare(tmp_path / "it", quant_types, imatrix=imatrix, layers=1, width=width, inner=inner, head=head)
    if width == 48:
        assert {types["token_embd.weight"] for types in found.values()} == {"F16", "BF16"}
    elif width in (64, 320):
        assert found["Q4_K_M"]["blk.0.ffn_up.weight"] == "Q5_0"
        assert found["Q5_K_M"]["blk.0.ffn_up.weight"] == "Q5_1"


@pytest.mark.parametrize("imatrix", [False, True], ids=["without imatrix", "with imatrix"])
@pytest.mark.parametrize(
    "overrides",
    [
        ["ffn_down=q8_0"],
        ["blk.[01].ffn_down=q4_0", "ffn_down=f16", "attn_output=iq4_nl"],  # the first that matches
        [r"^blk\.0\.attn_qkv=q5_1"],  # not counted: those after it move up
        ["token_embd=q4_k"],
        ["weight=mxfp4", "token_embd=q8_0"],
        ["output=bf16"],
        ["(attn|ffn)_(qkv|up)\\.weight$=nvfp4", "blk.*down=f32"],
        [".*=tq2_0"],
    ],
    ids=" ".join,
)
def test_overrides_give_llama_cpps_types(overrides: list[str], imatrix: bool, tmp_path: Path) -> None:
    quant_types = ["Q4_K_M", "Q3_K_M", "Q4_0", "F16"]
    compare(tmp_path / "it", quant_types, imatrix=imatrix, overrides=overrides, **thin(5, 320))


def test_blocks_without_a_replacement_are_refused_as_in_llama_cpp(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", width=96, inner=96)
    (base,) = convert(str(checkpoint), type="F32", output=tmp_path)
    assert not llama_quantize(Path(base.path), "Q1_0", tmp_path / "theirs.gguf")
    with pytest.raises(UsageError, match=r"Q1_0 has blocks of 128, and the rows of .* have 96 weights"):
        convert(str(checkpoint), type="Q1_0", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quant_type", [name for name in TYPES if QUANT_TYPES[name].needs_imatrix])
def test_llama_cpp_also_needs_importance_for_these_types(quant_type: str, tmp_path: Path) -> None:
    (base,) = convert(str(make_checkpoint(tmp_path / "model", width=256, inner=256)), type="F32", output=tmp_path)
    assert not llama_quantize(Path(base.path), quant_type, tmp_path / "theirs.gguf")


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
    with pytest.raises(UsageError, match=r"`recipe` must be stock, lean or a file .*, not 'best'"):
        tensor_types({}, QUANT_TYPES["F16"], "best")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("ffn_down", "`tensor_type` must be REGEX=TYPE, not 'ffn_down'", "`ffn_down=q6_k`"),
        ("=q4_k", "`tensor_type` must be REGEX=TYPE, not '=q4_k'", "ffn_down"),
        ("ffn_down=q4_k_m", "must end in a tensor type, not 'q4_k_m'", "Did you mean q4_k?"),
        ("ffn_down=", "must end in a tensor type, not ''", "convert --help"),
        ("ffn_(down=q4_k", "must begin with a regular expression, not 'ffn_(down'", "every matrix"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_override(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_an_expression_may_hold_an_equals_sign() -> None:
    override = find_override("(?=blk)=Q6_K")
    assert (override.pattern.pattern, override.type) == ("(?=blk)", TensorType.Q6_K)


@pytest.mark.parametrize("expression", ["ffn_gate", "position_embd", "norm", "bias"])
def test_an_override_that_matches_no_matrix_is_refused(expression: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"`tensor_type` {expression}=Q8_0 matches no matrix"):
        convert("storybook", type="Q4_0", output=tmp_path, tensor_type=[f"{expression}=q8_0"])


@pytest.mark.parametrize(
    ("expression", "tensor"), [("ffn_up=iq2_xxs", "blk.0.ffn_up.weight"), ("token_embd=iq1_s", "token_embd.weight")]
)
def test_an_override_that_needs_importance_is_refused_without(expression: str, tensor: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tensor} at IQ.* needs an importance matrix") as caught:
        convert("storybook", type="Q4_0", output=tmp_path, tensor_type=[expression])
    assert "`imatrix`" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_lean_gives_the_blocks_the_quant_types_own_type_where_gptq_can_round_to_it() -> None:
    for quant_type in QUANT_TYPES.values():
        own = TensorType.Q8_0 if quant_type.name == "MXFP4_MOE" else quant_type.base
        assert lean_matrix(quant_type) is own
        assert has_lean(quant_type) is (own in ROUNDABLE)
    assert not any(has_lean(QUANT_TYPES[name]) for name in ("F32", "BF16", "IQ3_S", "IQ1_M", "TQ2_0", "Q2_0"))


def test_preferences_order_the_types_of_leans_embedding() -> None:
    for quant_type in QUANT_TYPES.values():
        if not has_lean(quant_type):
            continue
        chosen = {prefer: lean_embedding(quant_type, prefer) for prefer in (*PREFERENCES, None)}
        bits = {prefer: kind.bits_per_weight for prefer, kind in chosen.items()}
        assert bits["size"] <= bits[None] <= bits["quality"], quant_type
        assert bits["speed"] <= bits["quality"]
    embeddings = {name: lean_embedding(find_type(name)) for name in ("q8_0", "q6_k", "q5_k", "q4_0", "q4_k_s", "q3_k")}
    assert [kind.name for kind in embeddings.values()] == ["Q8_0", "Q6_K", "Q6_K", "Q6_K", "Q6_K", "Q5_K"]
    assert lean_embedding(find_type("q5_k"), "speed") is TensorType.Q4_K
    assert lean_embedding(find_type("q4_0"), "speed") is TensorType.Q4_0


def test_unknown_preferences_are_refused() -> None:
    assert [find_preference(name) for name in (None, *PREFERENCES)] == [None, *PREFERENCES]
    with pytest.raises(UsageError, match="`prefer` must be quality, speed or size, not 'Size'"):
        find_preference("Size")
