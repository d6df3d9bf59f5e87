"""How a text is cut: llama.cpp's chunks, and windows with a stride."""

from typing import Any

import pytest
from dgpt2_quant.bench.quality.windows import Windowing
from dgpt2_quant.core.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st


def chunks(count: int, context: int) -> list[list[int]]:
    return [list(window.tokens) for window in Windowing(context=context).windows(range(count))]


def test_whole_chunks_only() -> None:
    assert chunks(11, 4) == chunks(8, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert chunks(6, 6) == [[0, 1, 2, 3, 4, 5]]


def test_the_scored_tokens_of_a_chunk_are_those_of_its_second_half() -> None:
    (window,) = Windowing(context=8).windows(range(100, 108))
    # the logits at 4, 5 and 6 predict the tokens at 5, 6 and 7
    assert (window.first, window.targets.tolist()) == (4, [105, 106, 107])
    assert len(Windowing().windows(range(512))[0].targets) == 255


def scored(count: int, context: int, stride: int) -> list[tuple[int, int]]:
    """(token, how many tokens of context it had) of all that are scored by the strided method."""
    found = []
    for window in Windowing("strided", context, stride).windows(range(count)):
        assert len(window.tokens) <= context
        assert list(window.tokens) == list(range(window.tokens[0], window.tokens[0] + len(window.tokens)))
        for token in window.targets:
            found.append((int(token), int(token) - window.tokens[0]))
    return found


def test_windows_that_overlap() -> None:
    # 0123, then 2345: 4 and 5 are scored with 2 and 3 before them, then 4567, then 678
    assert scored(9, 4, 2) == [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (6, 2), (7, 3), (8, 2)]


def test_a_stride_of_one_gives_the_full_context() -> None:
    assert scored(6, 3, 1) == [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]


def test_a_stride_of_the_whole_context_skips_first_tokens() -> None:
    assert [token for token, _ in scored(9, 4, 4)] == [1, 2, 3, 5, 6, 7]


@given(st.integers(3, 80), st.integers(4, 30), st.integers(1, 30))
def test_every_token_is_scored_once(count: int, context: int, stride: int) -> None:
    stride = min(stride, context - 1)
    found = scored(count, context, stride)
    assert [token for token, _ in found] == list(range(1, count))
    # as the documentation's loop has it: at least context - stride before each, but at the beginning of the text
    assert all(before >= min(token, context - stride) for token, before in found)


@pytest.mark.parametrize(
    ("windowing", "positions", "message"),
    [
        (Windowing(context=3), 512, "a context of 3 positions is too short"),
        (Windowing(context=512), 2, "a context of 2 positions is too short"),
        (Windowing("strided", 64, 65), 512, "`stride` must be 1-64 for a context of 64, not 65"),
        (Windowing("strided", 64, 0), 512, "`stride` must be .* not 0"),
        (Windowing("strided", 64, 64), 32, "`stride` must be 1-32 for a context of 32, not 64"),
        (Windowing("llama.cpp", 64, 8), 512, "`stride` needs the strided method"),
        (Windowing("sliding", 64), 512, "`method` must be one of llama.cpp, strided, not 'sliding'"),  # type: ignore[arg-type]
    ],
)
def test_impossible_windowings_are_refused(windowing: Windowing, positions: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        windowing.fitted(positions)


def test_windows_are_never_longer_than_the_model() -> None:
    assert Windowing(context=4096).fitted(512) == Windowing(context=512)
    assert Windowing("strided", 4096).fitted(512) == Windowing("strided", 512, 256)


@pytest.mark.parametrize(
    ("windowing", "count", "message"),
    [
        (Windowing(), 511, "the text has 511 tokens, and needs at least one chunk of 512"),
        (Windowing("strided", 512, 256), 2, "the text has 2 tokens, and needs at least 3"),
        (Windowing(context=4), 7, "one chunk of 4 tokens is too short to score"),
    ],
)
def test_a_text_that_is_too_short(windowing: Windowing, count: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        windowing.windows(range(count))


def test_one_short_window_by_the_strided_method() -> None:
    (window,) = Windowing("strided", 512, 256).windows(range(3))
    assert (window.first, window.targets.tolist()) == (0, [1, 2])


def test_windows_compare_by_value() -> None:
    options: dict[str, Any] = {"method": "strided", "context": 8, "stride": 2}
    assert Windowing(**options).windows(range(20)) == Windowing(**options).windows(range(20))


def test_the_token_that_begins_every_text_is_the_first_of_each_chunk() -> None:
    """As in llama-perplexity; a strided window has it only where the text has it."""
    tokens = list(range(40))
    found = Windowing("llama.cpp", 16).windows(tokens, 99)
    assert [list(window.tokens) for window in found] == [[99, *tokens[1:16]], [99, *tokens[17:32]]]
    strided = Windowing("strided", 16, 8).windows(tokens, 99)
    assert [list(window.tokens) for window in strided] == [
        list(window.tokens) for window in Windowing("strided", 16, 8).windows(tokens)
    ]
