"""Scores and hidden states, compared with the forward pass in NumPy; scoring does not change a generation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, from_gguf
from dgpt2_quant.runtime import Model

TEXT = "There was once a poor woodcutter who lived in the forest with his wife and three daughters."
LONG = [7 * index % 250 for index in range(800)]  # for the model with 1,024 positions: more than one batch


@pytest.fixture(scope="module")
def reference(storybook_files: dict[str, Path]) -> Reference:
    return from_gguf(storybook_files["F32"], np.float64)


@pytest.fixture(scope="module")
def long(long_file: Path) -> Iterator[Model]:
    with Model.load(long_file, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def long_states(long_file: Path) -> npt.NDArray[np.float64]:
    """The reference's hidden states for `LONG`."""
    return np.asarray(from_gguf(long_file, np.float64).hidden(LONG), np.float64)


def logprobs(reference: Reference, tokens: list[int], states: Any = None) -> npt.NDArray[np.float64]:
    """Of each token but the first, by those before it."""
    states = reference.hidden(tokens) if states is None else states
    rows = np.asarray(states[: len(tokens) - 1] @ reference.weights[reference.head].T, np.float64)
    found: npt.NDArray[np.float64] = rows[np.arange(len(rows)), tokens[1:]] - np.logaddexp.reduce(rows, axis=1)
    return found


class TestScore:
    def test_it_is_the_log_softmax(self, storybook: Model, reference: Reference) -> None:
        tokens = storybook.tokenize(TEXT)
        found = storybook.score(tokens)
        assert (found.shape, found.dtype) == ((len(tokens),), np.float32)
        assert np.isnan(found[0])
        assert np.abs(found[1:] - logprobs(reference, tokens)).max() < 0.02

    def test_of_a_text(self, storybook: Model) -> None:
        assert np.array_equal(storybook.score(TEXT), storybook.score(storybook.tokenize(TEXT)), equal_nan=True)

    def test_of_the_first_token_after_the_beginning(self, storybook: Model, reference: Reference) -> None:
        found = storybook.score("<|endoftext|>" + TEXT)
        assert len(found) == len(storybook.tokenize(TEXT)) + 1
        assert found[1] == pytest.approx(logprobs(reference, [0, *storybook.tokenize(TEXT)])[0], abs=0.02)

    @pytest.mark.parametrize("length", [2, 512, 513, 800])
    def test_of_more_tokens_than_a_batch(
        self, long: Model, long_file: Path, long_states: npt.NDArray[np.float64], length: int
    ) -> None:
        found = long.score(LONG[:length])
        assert np.isnan(found).tolist() == [True] + [False] * (length - 1)
        assert np.abs(found[1:] - logprobs(from_gguf(long_file, np.float64), LONG[:length], long_states)).max() < 0.01

    def test_of_one_token(self, storybook: Model) -> None:
        assert np.isnan(storybook.score([5])).tolist() == [True]


class TestFeatures:
    # the difference is GELU, which llama.cpp looks up in a table of 16 bits
    def test_features_are_the_last_hidden_states(self, storybook: Model, reference: Reference) -> None:
        tokens = storybook.tokenize(TEXT)
        found = storybook.features(tokens)
        assert (found.shape, found.dtype) == ((len(tokens), storybook.width), np.float32)
        assert np.abs(found - reference.hidden(tokens)).max() < 0.005

    # llama.cpp rounds what it multiplies with weights of 8 bits to 8 bits itself
    @pytest.mark.parametrize(("level", "error"), [("F16", 0.01), ("Q8_0", 0.05), ("Q4_0", 0.05)])
    def test_of_quantized_weights(self, storybook_files: dict[str, Path], level: str, error: float) -> None:
        with Model.load(storybook_files[level], threads=1) as model:
            tokens = model.tokenize(TEXT)
            found = model.features(tokens)
        expected = from_gguf(storybook_files[level], np.float64).hidden(tokens)
        assert np.linalg.norm(found - expected) < error * np.linalg.norm(expected)
        cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosines.min() > 0.998

    @pytest.mark.parametrize("length", [1, 512, 513, 800])
    def test_of_more_tokens_than_a_batch(self, long: Model, long_states: npt.NDArray[np.float64], length: int) -> None:
        found = long.features(LONG[:length])
        assert np.abs(found - long_states[:length]).max() < 0.005

    def test_of_the_whole_context(self, long: Model) -> None:
        tokens = [LONG[index % 800] for index in range(1024)]
        assert np.array_equal(long.features(tokens)[:512], long.features(tokens[:512]))

    def test_pooling(self, storybook: Model) -> None:
        rows = storybook.features(TEXT, pooling="none")
        assert np.array_equal(rows, storybook.features(storybook.tokenize(TEXT)))
        mean, last = (storybook.features(TEXT, pooling=pooling) for pooling in ("mean", "last"))  # type: ignore[arg-type]
        assert mean.shape == last.shape == (storybook.width,)
        assert mean.dtype == last.dtype == np.float32
        assert np.allclose(mean, rows.mean(axis=0), atol=1e-6)
        assert np.array_equal(last, rows[-1])

    def test_features_are_copies(self, storybook: Model) -> None:
        found = [storybook.features([1, 2, 3]), storybook.features([1, 2, 3], pooling="last")]
        before = [each.copy() for each in found]
        storybook.features([4, 5, 6])
        assert all(np.array_equal(one, other) for one, other in zip(found, before, strict=True))

    @pytest.mark.parametrize("pooling", ["max", "", None, "Mean"])
    def test_an_unknown_pooling_is_refused(self, storybook: Model, pooling: Any) -> None:
        with pytest.raises(UsageError, match=f"`pooling` must be one of none, mean, last, not {pooling!r}"):
            storybook.features(TEXT, pooling=pooling)


@pytest.mark.parametrize("name", ["score", "features", "logits"])
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "1-512 tokens, not 0"),
        ([5] * 513, "1-512 tokens, not 513"),
        ([5, -1], "a token id must be 0-8188 in this vocabulary, not -1"),
        ([5, 8189], "not 8189"),
        ([5, 2**40], "not 1099511627776"),
        ([5, 1.5], r"not 1\.5"),
        (["a", "b"], "not a list of texts"),
    ],
)
def test_wrong_tokens_are_refused(storybook: Model, name: str, tokens: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        getattr(storybook, name)(tokens)


def test_an_empty_text_is_refused(storybook: Model) -> None:
    for use in (storybook.score, storybook.features):
        with pytest.raises(UsageError, match="tokens, not 0"):
            use("")


def test_scoring_changes_no_generation(storybook: Model) -> None:
    def text(prompt: str = TEXT) -> str:
        return "".join(storybook.stream(prompt, seed=1, temperature=1, max_tokens=40))

    expected = text()
    batch = storybook.generate([TEXT, "The wolf"], max_tokens=20, temperature=0)
    scores, states, logits = storybook.score(TEXT), storybook.features(TEXT), storybook.logits([1, 2, 3])
    for use in (storybook.score, storybook.features, storybook.logits):
        use(storybook.tokenize("The wolf and the seven kids"))
        assert text() == expected
        use(storybook.tokenize(TEXT))
        assert storybook.generate([TEXT, "The wolf"], max_tokens=20, temperature=0) == batch
        assert text() == expected
    assert np.array_equal(storybook.score(TEXT), scores, equal_nan=True)
    assert np.array_equal(storybook.features(TEXT), states)
    assert np.array_equal(storybook.logits([1, 2, 3]), logits)


def test_numpy_integers_are_token_ids(storybook: Model) -> None:
    tokens = storybook.tokenize(TEXT)
    array = np.array(tokens)
    assert np.array_equal(storybook.logits(array), storybook.logits(tokens))  # type: ignore[arg-type]
    assert np.array_equal(storybook.score(array)[1:], storybook.score(tokens)[1:])  # type: ignore[arg-type]
    assert np.array_equal(storybook.features(array), storybook.features(tokens))  # type: ignore[arg-type]
    assert "".join(storybook.stream(array, max_tokens=5, seed=1)) == "".join(  # type: ignore[arg-type]
        storybook.stream(tokens, max_tokens=5, seed=1)
    )


class TestContinuations:
    """Scores after a shared prefix, compared with `score` of the whole text."""

    @staticmethod
    def expected(model: Model, prefix: list[int], tokens: list[int]) -> tuple[npt.NDArray[Any], list[bool]]:
        rows = model.logits(prefix + tokens)[len(prefix) - 1 : -1]
        greedy = [int(row.argmax()) == token for row, token in zip(rows, tokens, strict=True)]
        return model.score(prefix + tokens)[len(prefix) :], greedy

    def test_continuation_scores_equal_those_of_the_whole_text(self, storybook: Model) -> None:
        prefix = storybook.tokenize(TEXT)
        continuations = [storybook.tokenize(text) for text in (" The wolf", " They lived happily ever after.", " x")]
        continuations.append([int(storybook.logits(prefix)[-1].argmax())])  # one token, and the greedy one
        found = storybook.score_continuations(prefix, continuations)
        for scores, tokens in zip(found, continuations, strict=True):
            log_probs, greedy = self.expected(storybook, prefix, tokens)
            assert (scores.log_probs.dtype, scores.greedy.dtype) == (np.float32, np.bool_)
            assert np.abs(scores.log_probs - log_probs).max() < 0.01
            assert scores.greedy.tolist() == greedy
        assert found[-1].greedy.tolist() == [True]

    def test_the_order_does_not_matter(self, storybook: Model) -> None:
        prefix, short, long = [5, 6, 7], [8], list(range(100, 160))
        one = storybook.score_continuations(prefix, [short, long, short])
        other = storybook.score_continuations(prefix, [long])
        assert np.array_equal(one[0].log_probs, one[2].log_probs)
        assert np.array_equal(one[1].log_probs, other[0].log_probs)

    @pytest.mark.parametrize(("before", "behind"), [(1, 700), (600, 100), (700, 1), (513, 2)])
    def test_of_more_tokens_than_a_batch(self, long: Model, before: int, behind: int) -> None:
        prefix, tokens = LONG[:before], [LONG[index % 800] for index in range(before, before + behind)]
        (found,) = long.score_continuations(prefix, [tokens])
        assert np.abs(found.log_probs - self.expected(long, prefix, tokens)[0]).max() < 0.01

    def test_of_none(self, storybook: Model) -> None:
        assert storybook.score_continuations([5], []) == []

    def test_pad_tokens_do_not_count(self, storybook: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storybook, "real_vocabulary", 100)  # as if all others only filled it up
        (found,) = storybook.score_continuations([5, 6], [[7, 8]])
        rows = storybook.logits([5, 6, 7])[1:, :100].astype(np.float64)
        assert found.log_probs == pytest.approx(
            [row[token] - np.logaddexp.reduce(row) for row, token in zip(rows, (7, 8), strict=True)], abs=0.01
        )
        assert found.greedy.tolist() == [int(row.argmax()) == token for row, token in zip(rows, (7, 8), strict=True)]

    def test_scoring_changes_no_generation(self, storybook: Model) -> None:
        before = "".join(storybook.stream(TEXT, seed=1, max_tokens=10))
        storybook.score_continuations([5], [[6]])
        assert "".join(storybook.stream(TEXT, seed=1, max_tokens=10)) == before

    @pytest.mark.parametrize(
        ("prefix", "continuation", "says"),
        [
            ([], [5], "tokens, not 0"),
            ([5], [], "at least 1 token, not 0"),
            ([5] * 500, [5] * 13, "1-512 tokens, not 513"),
            ([5], [8189], "0-8188 in this vocabulary, not 8189"),
        ],
    )
    def test_refused(self, storybook: Model, prefix: list[int], continuation: list[int], says: str) -> None:
        with pytest.raises(UsageError, match=says):
            storybook.score_continuations(prefix, [[5], continuation])
