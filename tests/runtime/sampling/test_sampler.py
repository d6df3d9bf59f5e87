"""The sampler, compared with llama.cpp's chain over the whole vocabulary: equal tokens, or equal distributions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.native.model import NativeModel
from dgpt2_quant.runtime.native.sampler import NativeSampler
from dgpt2_quant.runtime.sampling.sampler import Sampler
from dgpt2_quant.runtime.sampling.settings import Sampling
from hypothesis import given, settings
from hypothesis import strategies as st

Row = npt.NDArray[np.float32]

POSITIONS = 512
PROMPT = [300, 301, 302, 303, 300, 301, 302]
OFF: dict[str, Any] = {"top_k": 0, "top_p": 1, "min_p": 0}


@pytest.fixture(scope="module")
def native(short_files: dict[str, Path]) -> Iterator[NativeModel]:
    model = NativeModel(short_files["Q4_0"])
    yield model
    model.close()


def rows(vocabulary: int, count: int, seed: int = 0) -> list[Row]:
    """Logits like a model's: a few of the first thousand tokens stand out, and often the same ones."""
    random = np.random.default_rng(seed)
    usual = 4 * random.standard_normal(vocabulary)
    usual[1000:] -= 6
    return [(usual + random.standard_normal(vocabulary)).astype(np.float32) for _ in range(count)]


def of_c(native: NativeModel, wanted: Sampling, seed: int | None) -> NativeSampler:
    """llama.cpp's samplers in its order, every one of them over all that the one before left."""
    steps: list[tuple[Any, ...]] = list(wanted.penalties(native.vocabulary, POSITIONS))
    if wanted.mirostat:
        steps += [("temp", wanted.temperature), ("mirostat_v2", seed, wanted.mirostat_tau, wanted.mirostat_eta)]
    else:
        steps += [("top_k", wanted.top_k), ("typical", wanted.typical_p, 1), ("top_p", wanted.top_p, 1)]
        steps += [("min_p", wanted.min_p, 1), ("temp", wanted.temperature)]
        steps += [] if seed is None else [("dist", seed)]
    return NativeSampler(native, steps)


def same_tokens(native: NativeModel, wanted: Sampling, draws: int, seed: int = 7) -> list[int]:
    """Draws from both, and compares each token; returns them."""
    ours, theirs = Sampler(native, wanted, seed, POSITIONS, PROMPT), of_c(native, wanted, seed)
    everything = np.arange(native.vocabulary)
    for token in PROMPT:
        theirs.accept(token)
    found, expected = [], []
    for row in rows(native.vocabulary, 10, seed) * (draws // 10):
        index = theirs.apply(everything, row)
        expected.append(int(theirs.ids[index]))
        token = ours.sample(row.copy())
        assert token is not None
        found.append(token)
        if token != expected[-1]:
            break
        theirs.accept(token)
    ours.close()
    theirs.close()
    assert found == expected
    return found


filters = {
    "top_k": st.sampled_from([1, 2, 7, 40, 128, 129, 500, 9000]),
    "top_p": st.sampled_from([0, 0.3, 0.9, 0.95, 1]),
    "min_p": st.sampled_from([0, 0.01, 0.05, 0.5]),
    "typical_p": st.sampled_from([0.2, 0.9, 1, 1]),
    "temperature": st.sampled_from([0.1, 0.8, 1, 3]),
}
penalties = {
    "repeat_penalty": st.sampled_from([0.5, 1, 1.3, 5]),
    "frequency_penalty": st.sampled_from([-1, 0, 0.7]),
    "presence_penalty": st.sampled_from([0, 1.5]),
    "repeat_last_n": st.sampled_from([-1, 0, 1, 5, 64, 10_000]),
}
dry = {
    "dry_multiplier": st.sampled_from([0, 0.8, 5]),
    "dry_base": st.sampled_from([1, 1.75]),
    "dry_allowed_length": st.sampled_from([0, 1, 2]),
    "dry_penalty_last_n": st.sampled_from([-1, 0, 3, 64]),
    "dry_sequence_breakers": st.sampled_from([(), ("\n", ":"), ("the", "\n", " and he")]),
}


class TestTheSameTokens:
    @given(st.builds(Sampling, **filters))
    @settings(deadline=None, derandomize=True, max_examples=20)
    def test_filters_after_a_top_k(self, native: NativeModel, wanted: Sampling) -> None:
        same_tokens(native, wanted, 200)

    @given(st.builds(Sampling, **filters, **penalties))
    @settings(deadline=None, derandomize=True, max_examples=20)
    def test_with_penalties(self, native: NativeModel, wanted: Sampling) -> None:
        same_tokens(native, wanted, 200)

    @given(st.builds(Sampling, **filters, **penalties, **dry))
    @settings(deadline=None, derandomize=True, max_examples=15)
    def test_with_dry(self, native: NativeModel, wanted: Sampling) -> None:
        same_tokens(native, wanted, 100)

    @pytest.mark.parametrize("temperature", [0.7, 1, 1.5])
    # with more surprise a thousand tokens are left, of which C's sum in float32 takes a neighbour now and then
    @pytest.mark.parametrize(("tau", "eta"), [(0.5, 0.1), (3, 0.1), (5, 1), (6, 0.3)])
    def test_mirostat(self, native: NativeModel, tau: float, eta: float, temperature: float) -> None:
        wanted = Sampling(temperature=temperature, mirostat=2, mirostat_tau=tau, mirostat_eta=eta)
        found = same_tokens(native, wanted, 100)
        assert len(set(found)) > 3

    def test_mirostat_with_penalties(self, native: NativeModel) -> None:
        same_tokens(native, Sampling(mirostat=2, repeat_penalty=1.3, dry_multiplier=1), 100)

    @given(st.builds(Sampling, **penalties, **dry, temperature=st.just(0)))
    @settings(deadline=None, derandomize=True, max_examples=15)
    def test_greedy_applies_penalties(self, native: NativeModel, wanted: Sampling) -> None:
        only_the_likeliest = {"top_k": 1, "typical_p": 1.0, "top_p": 1.0, "min_p": 0.0}
        assert same_tokens(native, wanted, 50) == same_tokens(
            native, Sampling(**{**vars(wanted), **only_the_likeliest}), 50
        )


class TestTheSameDistribution:
    @pytest.mark.parametrize(
        "wanted",
        [
            {},
            {"temperature": 0.3},
            {"temperature": 4},
            {"top_p": 0.6},
            {"top_p": 0.95, "min_p": 0.02},
            {"top_p": 0.999},
            {"min_p": 0.03, "temperature": 1.5},
            {"typical_p": 0.3},
            {"typical_p": 0.9, "top_p": 0.9, "min_p": 0.05, "temperature": 1.2},
            {"typical_p": 0.97},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("shape", ["peaked", "flat"])
    def test_without_a_top_k(self, native: NativeModel, wanted: dict[str, Any], shape: str) -> None:
        row = rows(native.vocabulary, 1)[0] if shape == "peaked" else np.linspace(0, 1, 8189, dtype=np.float32)
        sampling = Sampling(**{**OFF, "temperature": 1.0, **wanted})
        draws = 1000 if shape == "flat" else 2500 if len(wanted.keys() - {"temperature"}) else 6000
        chain = of_c(native, sampling, seed=None)
        chain.apply(np.arange(native.vocabulary), row)
        left = chain._array.size
        expected = np.zeros(native.vocabulary)
        expected[chain.ids[:left]] = np.exp(chain.logits[:left].astype(np.float64) - chain.logits[:left].max())
        expected *= draws / expected.sum()
        sampler = Sampler(native, sampling, 1, POSITIONS)
        counts = np.bincount([sampler.sample(row.copy()) or 0 for _ in range(draws)], minlength=native.vocabulary)
        # at the edge of a filter a rounding lets a token in or not
        assert counts[expected == 0].sum() <= 0.002 * draws
        assert_chi_square(counts, expected)
        chain.close()
        sampler.close()

    def test_unfiltered_sampling_reaches_every_block(self, native: NativeModel) -> None:
        # each block of tokens has one very likely token, and the last block is shorter than the others
        row = np.full(native.vocabulary, -50, np.float32)
        standing_out = np.append(np.arange(255, native.vocabulary, 256), native.vocabulary - 1)
        row[standing_out] = np.linspace(0, 1, len(standing_out))
        sampler = Sampler(native, Sampling(**OFF, temperature=1), 1, POSITIONS)
        found = {sampler.sample(row.copy()) for _ in range(1000)}
        sampler.close()
        assert found == set(standing_out.tolist())


def assert_chi_square(counts: npt.NDArray[np.intp], expected: npt.NDArray[np.float64]) -> None:
    """Pearson's test, five standard deviations wide; tokens of like probability make up cells of about ten draws."""
    order = np.argsort(-expected)
    cells = (np.cumsum(expected[order]) // 10).astype(int)
    seen, wanted = (np.bincount(cells, weights=values[order]) for values in (counts, expected))
    sizable = wanted > 5
    freedom = max(1, int(sizable.sum()) - 1)
    assert (np.square(seen - wanted)[sizable] / wanted[sizable]).sum() < freedom + 5 * np.sqrt(2 * freedom)


class TestBias:
    @pytest.mark.parametrize(
        "wanted", [{"temperature": 0}, {}, OFF, {"mirostat": 2}, {**OFF, "typical_p": 0.9}], ids=str
    )
    def test_a_bias_forbids_and_forces(self, native: NativeModel, wanted: dict[str, Any]) -> None:
        row = rows(native.vocabulary, 1)[0]
        likeliest = np.argsort(-row)[:5].tolist()
        forbidding = Sampler(native, Sampling(**wanted, logit_bias=dict.fromkeys(likeliest, -np.inf)), 1, POSITIONS)
        forcing = Sampler(native, Sampling(**wanted, logit_bias={8000: 1000.0}), 1, POSITIONS)
        assert not {forbidding.sample(row.copy()) for _ in range(50)} & set(likeliest)
        assert {forcing.sample(row.copy()) for _ in range(50)} == {8000}

    def test_it_is_added_before_the_penalties(self, native: NativeModel) -> None:
        row = np.full(native.vocabulary, -9, np.float32)
        row[[5, 6]] = 2.0, 2.1
        wanted = Sampling(temperature=0, logit_bias={5: 1}, repeat_penalty=2)
        assert Sampler(native, wanted, 1, POSITIONS, prompt=[9]).sample(row.copy()) == 5
        assert Sampler(native, wanted, 1, POSITIONS, prompt=[5]).sample(row.copy()) == 6  # (2 + 1) / 2 < 2.1

    @pytest.mark.parametrize("token", [-1, 8189, 2**31, 2**70])
    def test_a_bias_outside_the_vocabulary_is_refused(self, native: NativeModel, token: int) -> None:
        with pytest.raises(UsageError, match=f"token ids of `logit_bias` must be 0-8188, not {token}"):
            Sampler(native, Sampling(logit_bias={token: 1}), 1, POSITIONS)

    @pytest.mark.parametrize(
        "wanted",
        [
            {"temperature": 0},
            {},
            {"top_k": 0},
            {**OFF, "min_p": 0.1},
            OFF,
            {"top_k": 0, "typical_p": 0.9},
            {"mirostat": 2},
        ],
        ids=str,
    )
    def test_no_allowed_token_gives_none(self, native: NativeModel, wanted: dict[str, Any]) -> None:
        nothing = Sampling(**wanted, logit_bias=dict.fromkeys(range(native.vocabulary), -np.inf))
        assert Sampler(native, nothing, 1, POSITIONS).sample(rows(native.vocabulary, 1)[0]) is None


@pytest.mark.parametrize("temperature", [1e-12, 1e-30, 1e-42, 1e-320])
@pytest.mark.parametrize("wanted", [{}, OFF, {"mirostat": 2}], ids=str)
def test_a_tiny_temperature_is_greedy(native: NativeModel, wanted: dict[str, Any], temperature: float) -> None:
    row = rows(native.vocabulary, 1)[0]
    sampler = Sampler(native, Sampling(**wanted, temperature=temperature), 1, POSITIONS)
    assert [sampler.sample(row.copy()) for _ in range(5)] == [int(row.argmax())] * 5
