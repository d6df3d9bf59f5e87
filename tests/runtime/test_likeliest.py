"""What is compiled: the same tokens as by NumPy, or a -1 that leaves the row to it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.quantize.errors import RuntimeFailure
from dgpt2_quant.runtime import Model, likeliest
from dgpt2_quant.runtime.candidates import at_least_likely
from dgpt2_quant.runtime.library import NativeModel, NativeSampler
from dgpt2_quant.runtime.likeliest import Chooser
from dgpt2_quant.runtime.sampler import Sampler
from dgpt2_quant.runtime.sampling import Sampling
from hypothesis import given, settings
from hypothesis import strategies as st

compiled = pytest.mark.skipif(likeliest.choose is None, reason="there was no compiler")
rows = st.builds(
    lambda size, seed, step: (np.round(np.random.default_rng(seed).normal(0, 4, size) / step) * step).astype("f4"),
    st.one_of(st.integers(1, 100), st.sampled_from([255, 256, 257, 8189, 50257])),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-7, 0.1, 1.0, 5.0]),  # the coarser, the more tie
)

Row = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def native(storybook_files: dict[str, Path]) -> Iterator[NativeModel]:
    model = NativeModel(storybook_files["Q4_0"])
    yield model
    model.close()


def dice(native: NativeModel, seed: int) -> NativeSampler:
    """A chain that draws among all that it is given, so that the token depends on every one of them."""
    return NativeSampler(native, [("temp", 2.0), ("dist", seed)])


def drawn(native: NativeModel, row: npt.NDArray[np.floating], count: int, draws: int = 4) -> list[int]:
    """Some tokens in a row, by what is compiled."""
    samplers = dice(native, 5)
    chooser = Chooser(count, samplers)
    found = [chooser.choose(row) for _ in range(draws)]  # type: ignore[arg-type]
    samplers.close()
    return found


def drawn_by_numpy(native: NativeModel, row: Row, count: int, draws: int = 4) -> list[int]:
    samplers = dice(native, 5)
    ids = at_least_likely(row, count)
    found = []
    for _ in range(draws):
        index = samplers.apply(ids, row[ids])
        found.append(int(samplers.ids[index]))
    samplers.close()
    return found


def test_where_there_is_a_compiler_it_was_compiled() -> None:
    assert likeliest.choose is not None or not (shutil.which("cc") or shutil.which("gcc"))


@compiled
class TestTheSame:
    @given(rows, st.integers(1, 256))
    @settings(deadline=None, derandomize=True, max_examples=150)
    def test_as_numpy_finds(self, native: NativeModel, row: Row, count: int) -> None:
        found = drawn(native, row, count)
        if count > len(row) or len(at_least_likely(row, count)) > 512:
            assert found == [-1] * 4
        else:
            assert found == drawn_by_numpy(native, row, count)

    @given(rows, st.integers(1, 100))
    @settings(deadline=None, derandomize=True, max_examples=100)
    def test_with_forbidden_ones(self, native: NativeModel, row: Row, count: int) -> None:
        row[::3] = -np.inf
        found = drawn(native, row, count)
        if np.isfinite(row).sum() < count or len(at_least_likely(row, count)) > 512:
            assert found == [-1] * 4
        else:
            assert found == drawn_by_numpy(native, row, count)

    @given(rows)
    @settings(deadline=None, derandomize=True, max_examples=150)
    def test_the_likeliest_of_all(self, row: Row) -> None:
        assert Chooser().choose(row) == row.argmax()
        row[row.argmin()] = -np.inf  # one that is forbidden is NumPy's
        assert Chooser().choose(row) == -1

    @pytest.mark.parametrize("size", [1, 31, 32, 33, 95, 96, 50257])
    def test_the_likeliest_at_every_place(self, size: int) -> None:
        for place in {0, 1, 30, 31, 32, 33, size // 2, size - 2, size - 1} & set(range(size)):
            row = np.zeros(size, np.float32)
            row[place] = 1
            assert Chooser().choose(row) == place

    def test_a_row_that_moved(self) -> None:
        chooser = Chooser()
        for place in (5, 2):
            assert chooser.choose(np.eye(8, dtype=np.float32)[place]) == place


UP = np.arange(500, dtype=np.float32)


@compiled
@pytest.mark.parametrize(
    ("row", "count"),
    [
        (UP, 257),
        (UP, 0),
        (np.zeros(513, np.float32), 40),
        (np.full(500, np.nan, np.float32), 1),
        (np.full(500, -np.inf, np.float32), 1),
        (np.where(UP == 7, np.inf, UP).astype(np.float32), 40),
        (UP.astype(np.float64), 40),
        (UP[::2], 40),
    ],
    ids=["many", "none", "ties without room", "nan", "nothing", "infinite", "float64", "gaps"],
)
def test_what_it_leaves_to_numpy(native: NativeModel, row: npt.NDArray[np.floating], count: int) -> None:
    assert drawn(native, row, count, 1) == [-1]


@compiled
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 40, 498, 499])
def test_no_likeliest_token_where_a_logit_is_wrong(native: NativeModel, wrong: float, place: int) -> None:
    row = UP.copy()
    row[place] = wrong
    assert Chooser().choose(row) == -1
    with pytest.raises(RuntimeFailure, match="not finite"):
        Sampler(native, Sampling(temperature=0), 0, 8).choose(row)


@compiled
def test_texts_are_the_same_without_it(storybook_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def texts(model: Model) -> list[str]:
        options = [{}, {"top_k": 300}, {"top_k": 3, "repeat_penalty": 1.5}, {"logit_bias": {5: -np.inf}, "top_p": 0.5}]
        options += [{"temperature": 0}, {"temperature": 0, "repeat_penalty": 1.5, "min_tokens": 9}]
        return ["".join(model.stream("Once", max_tokens=60, seed=3, **given)) for given in options]  # type: ignore[arg-type]

    with Model.load(storybook_files["Q4_0"], threads=1) as model:
        with_it = texts(model)
        monkeypatch.setattr(likeliest, "choose", None)
        assert texts(model) == with_it
