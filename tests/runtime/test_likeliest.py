"""The compiled search for the likeliest tokens: the same ones as NumPy's, or a -1 that leaves the row to it."""

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.runtime import Model, likeliest
from dgpt2_quant.runtime.candidates import at_least_likely
from hypothesis import given, settings
from hypothesis import strategies as st

Row = npt.NDArray[np.float32]

TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
compiled = pytest.mark.skipif(likeliest.find_likeliest is None, reason="there was no compiler")
rows = st.builds(
    lambda size, seed, step: np.round(np.random.default_rng(seed).normal(0, 4, size) / step) * step,
    st.one_of(st.integers(1, 100), st.sampled_from([255, 256, 257, 8189, 50257])),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-7, 0.1, 1.0, 5.0]),  # the coarser, the more tie
)


def found_in(logits: npt.NDArray[np.floating], count: int, capacity: int = 60_000) -> list[tuple[int, float]] | None:
    table = np.full(capacity + 1, -7, TOKEN_DATA)
    size = likeliest.Row().likeliest(logits, count, table.ctypes.data, capacity)  # type: ignore[arg-type]
    assert table[capacity]["id"] == -7, "wrote behind the end"
    return None if size < 0 else table[:size][["id", "logit"]].tolist()


def test_where_there_is_a_compiler_it_was_compiled() -> None:
    assert likeliest.find_likeliest is not None or not (shutil.which("cc") or shutil.which("gcc"))


@compiled
class TestTheSame:
    @given(rows, st.integers(1, 256))
    @settings(deadline=None, derandomize=True, max_examples=150)
    def test_as_numpy_finds(self, row: npt.NDArray[np.float64], count: int) -> None:
        logits = row.astype(np.float32)
        if count > len(logits):
            assert found_in(logits, count) is None
            return
        expected = at_least_likely(logits, count)
        assert found_in(logits, count) == list(zip(expected.tolist(), logits[expected].tolist(), strict=True))

    @given(rows, st.integers(1, 100))
    @settings(deadline=None, derandomize=True, max_examples=100)
    def test_with_forbidden_ones(self, row: npt.NDArray[np.float64], count: int) -> None:
        logits = row.astype(np.float32)
        logits[::3] = -np.inf
        possible = int(np.isfinite(logits).sum())
        found = found_in(logits, count)
        if possible < count:
            assert found is None
        else:
            assert found is not None
            assert [token for token, _ in found] == at_least_likely(logits, count).tolist()

    def test_a_row_that_moved(self) -> None:
        table = np.zeros(8, TOKEN_DATA)
        row = likeliest.Row()
        for logits in (np.eye(8, dtype=np.float32)[5], np.eye(8, dtype=np.float32)[2]):
            assert row.likeliest(logits, 1, table.ctypes.data, 8) == 1
            assert table["id"][0] == logits.argmax()


@compiled
@pytest.mark.parametrize(
    ("logits", "count", "capacity"),
    [
        (np.arange(500, dtype=np.float32), 257, 1000),
        (np.arange(500, dtype=np.float32), 0, 1000),
        (np.arange(500, dtype=np.float32), 40, 39),
        (np.zeros(500, np.float32), 40, 499),
        (np.full(500, np.nan, np.float32), 1, 1000),
        (np.full(500, -np.inf, np.float32), 1, 1000),
        (np.arange(500, dtype=np.float64), 40, 1000),
        (np.arange(1000, dtype=np.float32)[::2], 40, 1000),
    ],
    ids=["many", "none", "no room", "ties without room", "nan", "nothing", "float64", "gaps"],
)
def test_what_it_leaves_to_numpy(logits: npt.NDArray[np.floating], count: int, capacity: int) -> None:
    assert found_in(logits, count, capacity) is None


@compiled
def test_texts_are_the_same_without_it(storybook_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def texts(model: Model) -> list[str]:
        options = [{}, {"top_k": 300}, {"top_k": 3, "repeat_penalty": 1.5}, {"logit_bias": {5: -np.inf}, "top_p": 0.5}]
        return ["".join(model.stream("Once", max_tokens=60, seed=3, **given)) for given in options]  # type: ignore[arg-type]

    with Model.load(storybook_files["Q4_0"], threads=1) as model:
        with_it = texts(model)
        monkeypatch.setattr(likeliest, "find_likeliest", None)
        assert texts(model) == with_it
