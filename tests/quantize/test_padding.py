"""Pad rows: their bounds hold, against NumPy and in an unmodified llama.cpp, and no pad token ever wins there."""

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.quantize.final_norm import FinalNorm
from dgpt2_quant.quantize.ggml import dequantize, library, quantize
from dgpt2_quant.quantize.hull import Hull
from dgpt2_quant.quantize.padding import HEADROOM, PadRows, choose_pads, pad_count
from dgpt2_quant.quantize.quant_types import TensorType
from dgpt2_quant.runtime import Model
from dgpt2_quant.runtime.library import NativeModel, NativeSampler, bindings

from ..padded import WIDGET_PROMPTS, embedding, vector, with_embedding

WIDTH, TOKENS = 256, 600
TYPES = [TensorType[name] for name in ("Q4_0", "Q4_K", "IQ4_NL", "Q5_0", "Q5_1", "Q6_K", "Q8_0", "F16")]
ROWS = np.random.default_rng(0).normal(0, 0.1, (TOKENS, WIDTH)).astype(np.float32)
ROWS -= ROWS.mean(axis=0)
WEIGHT = np.random.default_rng(1).normal(1.4, 0.3, WIDTH)
BIAS = np.random.default_rng(2).normal(0.01, 0.05, WIDTH)

Row = npt.NDArray[np.float64]


def names(types: list[TensorType]) -> Any:
    return pytest.mark.parametrize("kind", types, ids=lambda kind: kind.name)


def pads(kind: TensorType, rows: Any = ROWS, bias: Any = BIAS, **options: Any) -> tuple[PadRows, Row]:
    """The pads for these rows, and the rows as they are stored."""
    (blocks,) = quantize("head", rows, [kind])
    blocks = np.ascontiguousarray(blocks).view(np.uint8).reshape(len(rows), -1)
    found = choose_pads("head", blocks, kind, 3, WEIGHT, bias, **options)
    return found, dequantize("head", blocks, kind, rows.shape).astype(np.float64)


def outputs(norm: FinalNorm, rows: Row) -> Row:
    """Outputs of the norm: at random, spikes, and where these rows are the largest and the least; (count, width)."""
    random = np.random.default_rng(5)
    z = np.concatenate([random.standard_normal((300, WIDTH)), np.eye(WIDTH)[:40], random.standard_cauchy((60, WIDTH))])
    z = np.concatenate([z, rows * norm.weight, -rows * norm.weight])
    for _ in range(2):  # of what is nearly all mean, nothing but rounding is left by the first time
        z -= z.mean(axis=1, keepdims=True)
        lengths = np.linalg.norm(z, axis=1, keepdims=True)
        z *= np.sqrt(WIDTH) / np.where(lengths > 0, lengths, 1)
    return np.asarray(norm.weight * z + norm.bias)


def test_the_count() -> None:
    assert [pad_count(n) for n in (8189, 50257, 8192)] == [3, 7, 0]
    assert pad_count(50257, 64) == 47
    with pytest.raises(UsageError, match="0 pad rows"):
        choose_pads("head", np.zeros((9, 4), np.uint8), TensorType.F32, 0, np.ones(1), np.ones(1))


class TestFinalNorm:
    norm = FinalNorm(WEIGHT, BIAS)

    def test_the_bounds_are_reached_and_never_passed(self) -> None:
        rows = ROWS[:50].astype(np.float64)
        logits = outputs(self.norm, rows) @ rows.T
        np.testing.assert_allclose(logits.max(axis=0), self.norm.largest(rows), rtol=1e-9)
        np.testing.assert_allclose(logits.min(axis=0), [self.norm.least(row) for row in rows], rtol=1e-9)
        for row in rows:
            assert self.norm.at_least(row) @ row == pytest.approx(self.norm.least(row), rel=1e-9)

    @pytest.mark.parametrize("scale", [1, 40, 400])
    def test_nothing_is_nearer_to_zero(self, scale: float) -> None:
        norm = FinalNorm(WEIGHT, scale * BIAS)
        nearest = norm.nearest()
        length = float(np.linalg.norm(nearest))
        assert 0 < length <= np.linalg.norm(outputs(norm, ROWS[:20].astype(np.float64)), axis=1).min()
        # so all of the ellipsoid is behind the plane through it: the point is the least of its own direction
        assert norm.least(nearest) == pytest.approx(length**2, rel=1e-6)

    def test_zero_is_the_nearest_where_it_is_an_output(self) -> None:
        assert not FinalNorm(WEIGHT, np.zeros(WIDTH)).nearest().any()


class _CpuTraits(ctypes.Structure):
    """The beginning of `struct ggml_type_traits_cpu` in ggml-cpu.h."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        (
            "vec_dot",
            ctypes.CFUNCTYPE(
                None,
                ctypes.c_int,
                ctypes.c_void_p,
                ctypes.c_size_t,
                ctypes.c_void_p,
                ctypes.c_size_t,
                ctypes.c_void_p,
                ctypes.c_size_t,
                ctypes.c_int,
            ),
        ),
        ("vec_dot_type", ctypes.c_int),
    )


@pytest.fixture(scope="module")
def kernels() -> Any:
    """llama.cpp's own table of them, by ggml's number of a type."""
    bindings()
    folder = Path(llama_cpp.__file__).parent / "lib"
    (path,) = (path for end in ("so", "dylib") if (path := folder / f"libggml-cpu.{end}").is_file())
    library = ctypes.CDLL(str(path))
    library.ggml_cpu_init()
    library.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_CpuTraits)
    return lambda number: library.ggml_get_type_traits_cpu(number).contents


def dot(kernels: Any, kind: TensorType, blocks: npt.NDArray[np.uint8], h: Row) -> float:
    """A row times activations, as llama.cpp computes it."""
    activations = np.ascontiguousarray(h, np.float32)
    number = kernels(int(kind)).vec_dot_type
    rounded = np.zeros(8 * len(h), np.uint8)
    if number == TensorType.F32:
        rounded[: 4 * len(h)] = activations.view(np.uint8)
    else:
        kernels(number).from_float(activations.ctypes.data, rounded.ctypes.data, len(h))
    found = np.zeros(1, np.float32)
    kernels(int(kind)).vec_dot(len(h), found.ctypes.data, 0, blocks.ctypes.data, 0, rounded.ctypes.data, 0, 1)
    return float(found[0])


SLOW = (TensorType.IQ1_M, TensorType.IQ2_S)  # to quantize to; of the family of others
FREE = [kind for kind in TensorType if kind not in SLOW and not library().ggml_quantize_requires_imatrix(kind)]


class TestRounding:
    @names(FREE)
    def test_the_kernels_stay_within_it(self, kernels: Any, kind: TensorType) -> None:
        norm = FinalNorm(WEIGHT, BIAS)
        (blocks,) = quantize("head", 5 * ROWS[:6], [kind])
        blocks = np.ascontiguousarray(blocks).view(np.uint8).reshape(6, -1)
        rows = dequantize("head", blocks, kind, (6, WIDTH))
        allowed = norm.rounding(rows, blocks, kind)
        for h in outputs(norm, rows.astype(np.float64))[::9]:
            for number in range(6):
                exact = float(h @ rows[number].astype(np.float64))
                assert abs(dot(kernels, kind, blocks[number], h) - exact) <= allowed[number]

    @names(FREE)
    def test_and_the_worst_activations_come_near_it(self, kernels: Any, kind: TensorType) -> None:
        """All at half a step, to the row's side: for blocks of 32 taken for 256, or the reverse, it would not hold."""
        (blocks,) = quantize("head", 5 * ROWS[:1], [kind])
        blocks = np.ascontiguousarray(blocks).view(np.uint8).reshape(1, -1)
        row = dequantize("head", blocks, kind, (1, WIDTH))
        sides, largest = np.where(row[0] < 0, -1, 1), np.where(np.arange(WIDTH) % 32 == 0, 127.0, 0)
        largest[0] *= 40  # so that the blocks' largest values differ
        steps = np.repeat(largest[::32], 32) / 127 if kind.name in IN_32 else np.full(WIDTH, largest[0] / 127)
        # rounded up by half a step, and the scale too, by all that F16 is off
        h = (1 + 2.0**-11 + 2.0**-16) * np.where(largest > 0, largest, 126.501 * steps) * sides
        if kind.name in ("F32", "F16", "BF16"):
            bits = {"F32": 24, "F16": 11, "BF16": 8}[kind.name]
            h = (1 + 2.0**-bits + 2.0 ** -(bits + 6)) * sides
        norm = FinalNorm(np.zeros(WIDTH), h)
        error = abs(dot(kernels, kind, blocks[0], h) - float(h @ row[0].astype(np.float64)))
        allowed = float(norm.rounding(row, blocks, kind)[0])
        assert error <= allowed
        assert kind is TensorType.F32 or error > 0.2 * allowed


# those that multiply with activations in blocks of 32
IN_32 = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4", "Q1_0", "Q2_0")


class TestHull:
    hull = Hull(ROWS)

    def test_what_is_inside(self) -> None:
        assert self.hull.contains(np.zeros(WIDTH))
        assert not self.hull.contains(ROWS[7].astype(np.float64))  # a corner
        assert not self.hull.contains(np.full(WIDTH, 9.0))
        assert not Hull(ROWS[:100]).contains(ROWS[:100].mean(axis=0).astype(np.float64))  # it is flat

    def test_the_best_is_above_by_the_spread_for_any_activations(self) -> None:
        point = 0.0003 * np.random.default_rng(3).standard_normal(WIDTH)
        spread = self.hull.spread(point)
        assert 0.005 < spread < 1
        h = np.random.default_rng(4).standard_cauchy((500, WIDTH))
        logits = h @ ROWS.T
        assert (logits.max(axis=1) - h @ point >= spread * logits.std(axis=1)).all()

    def test_the_gap_is_a_lower_bound(self) -> None:
        norm = FinalNorm(WEIGHT, 10 * BIAS)
        h = outputs(norm, norm.nearest()[None])
        for point in (np.zeros(WIDTH), ROWS[3].astype(np.float64), np.full(WIDTH, 0.1)):
            gap = self.hull.gap(point, norm)
            assert gap <= (h @ ROWS.T).max(axis=1).min() - (h @ point)[(h @ ROWS.T).max(axis=1).argmin()]
            assert (gap > 0) == (not point.any())
        assert self.hull.gap(np.zeros(WIDTH), FinalNorm(WEIGHT, 20 * BIAS)) > 0.05


class TestChoice:
    @names(TYPES)
    @pytest.mark.parametrize("bias", [0, 1, 10, 60])
    def test_no_input_makes_a_pad_win(self, kind: TensorType, bias: float) -> None:
        found, rows = pads(kind, bias=bias * BIAS, least_top=1.0)
        norm = FinalNorm(WEIGHT, bias * BIAS)
        np.testing.assert_array_equal(found.rows, dequantize("head", found.blocks, kind, found.rows.shape))
        h = outputs(norm, np.concatenate([found.rows.astype(np.float64)[:1], norm.nearest()[None]]))
        best, pad = (h @ rows.T).max(axis=1), h @ found.rows[0].astype(np.float64)
        assert (pad <= found.bound + 1e-6).all()
        assert (best >= found.least_best - 1e-9).all()
        assert found.always_loses
        assert (best - pad >= max(found.gap, 1e-9) - 1e-9).all()
        assert found.rounded_bound >= found.bound
        assert found.margin == pytest.approx(1 - found.rounded_bound)
        if found.method == "inside":
            assert (best - pad >= found.spread * (h @ rows.T).std(axis=1)).all()
            assert found.spread > 0
        else:
            assert found.rounded_bound <= min(found.least_best, 0) - 0.9 * HEADROOM

    def test_which_way_is_taken(self) -> None:
        assert [pads(kind)[0].method for kind in (TensorType.F16, TensorType.Q4_K)] == ["far below", "inside"]
        assert pads(TensorType.Q4_K, bias=60 * np.abs(BIAS))[0].method == "far below"
        assert pads(TensorType.F16, bias=0 * BIAS)[0].method == "inside"
        assert pads(TensorType.Q8_0)[0].bound == 0
        assert "no activations" in pads(TensorType.Q8_0)[0].in_words

    def test_a_low_level_is_gone_below(self) -> None:
        assert pads(TensorType.F16, bias=10 * BIAS, least_top=-90.0)[0].rounded_bound < -90 - 0.9 * HEADROOM

    def test_rows_that_are_all_on_one_side_lend_one_of_theirs(self) -> None:
        rows = ROWS + np.float32(3.0)
        found, stored = pads(TensorType.Q4_0, rows=rows)
        assert (found.method, found.always_loses, found.gap, found.spread) == ("copy", False, 0, 0)
        twins = np.flatnonzero((stored == found.rows[0]).all(axis=1))
        assert len(twins) == 1

    def test_the_document(self) -> None:
        document = pads(TensorType.Q6_K)[0].to_json()
        assert (document["count"], document["method"], document["margin"]) == (3, "inside", None)


@pytest.fixture(scope="module", params=[(kind, True) for kind in TYPES] + [(TensorType.Q4_0, False)], ids=str)
def in_a_file(
    request: pytest.FixtureRequest, storybook_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PadRows]:
    """Storybook with its embedding in a type, centred (which leaves its distribution) or as it is, and padded."""
    kind, is_centred = request.param
    source = storybook_files["F32"]
    rows = embedding(source)
    if is_centred:
        rows = rows - rows.mean(axis=0)  # and not the position table: the texts are not what matters here
    (blocks,) = quantize("head", rows, [kind])
    blocks = np.ascontiguousarray(blocks).view(np.uint8).reshape(len(rows), -1)
    norm = (vector(source, "output_norm.weight"), vector(source, "output_norm.bias"))
    found = choose_pads("head", blocks, kind, pad_count(len(rows)), *norm)
    target = tmp_path_factory.mktemp("padded") / "padded.gguf"
    return with_embedding(source, target, kind, np.concatenate([blocks, found.blocks]), len(found.blocks)), found


def test_in_llama_cpp_no_pad_token_wins(in_a_file: tuple[Path, PadRows]) -> None:
    path, found = in_a_file
    random = np.random.default_rng(0)
    with Model.load(path, threads=1) as model:
        real = model.real_vocabulary
        texts = [model.tokenize(prompt) for prompt in WIDGET_PROMPTS]
        texts += [random.integers(0, real, 60).tolist() for _ in range(3)]
        texts += [[token] * 40 for token in (0, 13, real - 1)] + [[real, real + 1, real + 2] * 5]
        rows = np.concatenate([model.logits(tokens) for tokens in texts])
        assert rows.shape[1] == real + 3
    best = rows[:, :real].max(axis=1)
    assert rows[:, real:].max() <= found.rounded_bound
    assert (rows[:, real:] < best[:, None]).all()
    assert (best >= found.least_best).all()
    assert (best - rows[:, real] >= found.spread * rows[:, :real].std(axis=1) - 1e-3).all()
    _check_samplers(path, rows)


def _check_samplers(path: Path, rows: npt.NDArray[np.float32]) -> None:
    """Over whole rows, as those who do not know of pad tokens call them: with llama.cpp's defaults, and hot."""
    native = NativeModel(path)
    try:
        chains: list[list[tuple[Any, ...]]] = [
            [("greedy",)],
            [("top_k", 40), ("top_p", 0.95, 1), ("min_p", 0.05, 1), ("temp", 0.8), ("dist", 1)],
            [("top_k", 40), ("temp", 2.0), ("dist", 2)],
        ]
        ids = np.arange(native.vocabulary)
        for chain in chains:
            sampler = NativeSampler(native, chain)
            for row in rows[:: len(rows) // 25]:
                index = sampler.apply(ids, row)
                assert sampler.ids[index] < native.real_vocabulary
            sampler.close()
    finally:
        native.close()
