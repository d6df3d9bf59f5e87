"""Sampling settings: refused values, and their effects on a text."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime import Model, Sampling

PROMPT = "Once upon a time"


def text(model: Model, max_tokens: int = 24, seed: int = 0, **sampling: Any) -> str:
    ((completion,),) = model.generate(PROMPT, max_tokens=max_tokens, seed=seed, **sampling)
    return completion.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_k", 2**31),
        ("top_p", -0.01),
        ("top_p", 1.01),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("min_p", math.nan),
        ("repeat_penalty", 0),
        ("repeat_penalty", -1.1),
        ("repeat_penalty", 101),
        ("typical_p", -0.01),
        ("typical_p", 1.01),
        ("typical_p", math.nan),
        ("frequency_penalty", -101),
        ("frequency_penalty", 101),
        ("presence_penalty", -100.5),
        ("presence_penalty", math.inf),
        ("repeat_last_n", -2),
        ("repeat_last_n", 2**31),
        ("dry_multiplier", -0.1),
        ("dry_multiplier", 101),
        ("dry_base", 0.9),
        ("dry_base", 101),
        ("dry_allowed_length", -1),
        ("dry_allowed_length", 2**31),
        ("dry_penalty_last_n", -2),
        ("dry_penalty_last_n", 2**31),
        ("mirostat", -1),
        ("mirostat", 3),
        ("mirostat_tau", -0.1),
        ("mirostat_tau", 101),
        ("mirostat_eta", -0.1),
        ("mirostat_eta", 1.1),
        pytest.param("temperature", 10**400, id="temperature-10**400"),
        ("temperature", True),
        ("top_p", "0.9"),
        ("min_p", None),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"`{name}` must be .*, not {re.escape(repr(value))}") as caught:
        Sampling(**{name: value})
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat"])
def test_counts_must_be_whole_numbers(name: str) -> None:
    with pytest.raises(UsageError, match=rf"`{name}` must be an integer, not 2\.0"):
        Sampling(**{name: 2.0})


def test_mirostat_1_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`mirostat` must be 0 \(off\) or 2, not 1"):
        Sampling(mirostat=1)


@pytest.mark.parametrize(
    "bias",
    [
        None,
        [1, 2],
        {"5": 1.0},
        {5: "1"},
        {5: None},
        {5: True},
        {True: 1.0},
        {5.0: 1.0},
        {5: math.nan},
        {5: math.inf},
        {5: 1e39},  # infinite in 32 bits
        {5: 10**400},
    ],
    ids=lambda bias: str(bias)[:20],
)
def test_a_bias_maps_token_ids_to_numbers(bias: Any) -> None:
    with pytest.raises(UsageError, match="logit_bias"):
        Sampling(logit_bias=bias)


@pytest.mark.parametrize("breakers", ["\n", [""], ["x" * 41], ["語" * 14], [b"x"], [3], None, 3, ["\ud83d"], ["a\0b"]])
def test_breakers_are_short_texts(breakers: Any) -> None:
    with pytest.raises(UsageError, match="`dry_sequence_breakers` must be texts of 1-40 bytes, not "):
        Sampling(dry_sequence_breakers=breakers)


def test_there_are_at_most_32_breakers() -> None:
    Sampling(dry_sequence_breakers=["x"] * 32)
    with pytest.raises(UsageError, match="`dry_sequence_breakers` must be at most 32 texts, not 33"):
        Sampling(dry_sequence_breakers=["x"] * 33)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"temperature": 100},
        {"top_k": 0},
        {"top_k": 2**31 - 1},
        {"top_p": 0},
        {"top_p": 1},
        {"min_p": 0},
        {"min_p": 1},
        {"repeat_penalty": 0.01},
        {"repeat_penalty": 100},
        {"typical_p": 0},
        {"typical_p": 0, "top_k": 0},
        {"frequency_penalty": -100, "presence_penalty": 100, "repeat_last_n": -1},
        {"frequency_penalty": 100, "presence_penalty": -100, "repeat_last_n": 2**31 - 1},
        {"repeat_penalty": 2, "repeat_last_n": 0},
        {"dry_multiplier": 100, "dry_base": 100, "dry_allowed_length": 0, "dry_penalty_last_n": 2**31 - 1},
        {"dry_multiplier": 100, "dry_base": 1, "dry_allowed_length": 2**31 - 1, "dry_penalty_last_n": -1},
        {"dry_multiplier": 1, "dry_penalty_last_n": 0},
        {"dry_multiplier": 1, "dry_sequence_breakers": ["x" * 40]},
        {"dry_multiplier": 1, "dry_sequence_breakers": []},
        {"mirostat": 2, "mirostat_tau": 0, "mirostat_eta": 0},
        {"mirostat": 2, "mirostat_tau": 100, "mirostat_eta": 1},
        {"logit_bias": {0: -math.inf, 8188: 1_000_000}},
    ],
)
def test_the_ends_of_the_ranges_generate(storybook: Model, sampling: dict[str, Any]) -> None:
    ((completion,),) = storybook.generate(PROMPT, max_tokens=3, seed=0, **sampling)
    assert completion.tokens == 3


def test_an_unknown_setting_is_named(storybook: Model) -> None:
    with pytest.raises(UsageError, match="there is no option `top_kk`") as caught:
        storybook.stream(PROMPT, top_kk=3)  # type: ignore[call-arg]
    assert caught.value.hint == "Did you mean `top_k`?"
    with pytest.raises(UsageError, match="there is no option `beams`") as caught:
        storybook.stream(PROMPT, beams=3)  # type: ignore[call-arg]
    assert "The options are max_tokens, seed" in caught.value.hint


def test_temperature_0_is_greedy(storybook: Model) -> None:
    tokens = storybook.tokenize(PROMPT)
    prompt = len(tokens)
    for _ in range(12):
        tokens.append(int(storybook.logits(tokens, len(tokens) - 1).argmax()))
    assert text(storybook, 12, temperature=0) == storybook.detokenize(tokens[prompt:])


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"min_p": 1}, {"top_p": 0}, {"temperature": 1e-6}])
def test_filters_that_leave_one_token_are_greedy(storybook: Model, sampling: dict[str, Any]) -> None:
    greedy = text(storybook, temperature=0)
    assert text(storybook, seed=1, **{"temperature": 2, **sampling}) == greedy
    assert text(storybook, seed=2, **{"temperature": 2, **sampling}) == greedy


def test_the_repeat_penalty_ends_a_loop(storybook: Model) -> None:
    loop = text(storybook, 60, temperature=0)
    assert loop.count("so beautiful that she was") > 3
    assert text(storybook, 60, temperature=0, repeat_penalty=1.3).count("so beautiful that she was") <= 1


def test_the_repeat_penalty_knows_the_prompt(storybook: Model) -> None:
    loop = storybook.tokenize(PROMPT + text(storybook, 40, temperature=0))
    words = {storybook.detokenize([token]) for token in loop}
    assert next(storybook.stream(loop, temperature=0, max_tokens=1)) in words
    assert next(storybook.stream(loop, temperature=0, max_tokens=1, repeat_penalty=100)) not in words


def test_the_seed_fixes_the_text(storybook: Model) -> None:
    texts = [text(storybook, seed=seed) for seed in range(5)]
    assert [text(storybook, seed=seed) for seed in range(5)] == texts
    assert all(one != other for one, other in pairwise(texts))


@pytest.mark.parametrize("seed", [2**32 - 1, 2**32 - 2, 2**40 + 3])
def test_every_number_is_a_seed(storybook: Model, seed: int) -> None:
    # llama.cpp chooses a random seed for 2**32 - 1
    assert text(storybook, seed=seed) == text(storybook, seed=seed)


def test_seed_minus_1_is_a_random_one(storybook: Model) -> None:
    """As in llama.cpp."""
    seeds = [storybook.stream(PROMPT, seed=-1).seed for _ in range(2)]
    seeds += [storybook.batch(PROMPT, seed=-1, num_return_sequences=2).seeds[0] for _ in range(2)]
    assert len(set(seeds)) == 4


def test_the_random_seed_reproduces_the_text(storybook: Model) -> None:
    first, second = storybook.stream(PROMPT, max_tokens=16), storybook.stream(PROMPT, max_tokens=16)
    assert first.seed != second.seed
    written = "".join(first)
    assert "".join(storybook.stream(PROMPT, max_tokens=16, seed=first.seed)) == written
    assert "".join(second) != written
