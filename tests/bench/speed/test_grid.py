"""The settings that speed is measured at."""

import pytest
from dgpt2_quant.bench.speed.grid import Grid, Point, parse_counts
from dgpt2_quant.core.errors import UsageError


def test_the_usual_points() -> None:
    assert Grid().points(1024, 2) == [
        Point("prompt", 16, 0, 1, 2),
        Point("prompt", 128, 0, 1, 2),
        Point("decode", 32, 0, 1, 2),
        Point("decode", 32, 256, 1, 2),
        Point("decode", 32, 0, 4, 2),
        Point("decode", 32, 0, 8, 2),
        Point("decode", 32, 0, 1, 1),
        Point("prompt", 128, 0, 1, 1),
    ]


def test_on_one_thread_none_is_there_twice() -> None:
    points = Grid().points(1024, 1)
    assert len(points) == len(set(points)) == 6


def test_a_small_model_gets_what_fits() -> None:
    points = Grid().points(64, 1)
    assert max(point.depth + point.tokens for point in points) <= 64
    assert [point.tokens for point in points if point.measure == "prompt"] == [16, 64]
    for positions in (4, 5, 16, 100, 300):
        assert all(1 < point.tokens <= positions - point.depth for point in Grid().points(positions, 2))


def test_what_was_asked_for() -> None:
    grid = Grid(prompt_sizes=(512, 1), depths=(), batches=(16,), thread_counts=(3,))
    assert grid.points(512, 2) == [
        Point("prompt", 512, 0, 1, 2),
        Point("prompt", 1, 0, 1, 2),
        Point("decode", 32, 0, 16, 2),
        Point("decode", 32, 0, 1, 3),
        Point("prompt", 128, 0, 1, 3),
    ]
    assert Grid.none().points(512, 2) == []
    assert Grid((), (480,), (), ()).points(512, 2) == [Point("decode", 32, 480, 1, 2)]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(prompt_sizes=(16, 513)), "a prompt of 513 tokens can not be timed: the model has 512 positions"),
        (Grid(prompt_sizes=(0,)), "a prompt of 0 tokens can not be timed"),
        (Grid(depths=(481,)), "32 tokens behind 481 can not be timed: the model has 512 positions"),
        (Grid(depths=(-1,)), "32 tokens behind -1 can not be timed"),
        (Grid(batches=(257,)), "257 sequences at a time were asked for; 1 to 256 are possible"),
        (Grid(batches=(0,)), "0 sequences at a time"),
        (Grid(thread_counts=(100_000,)), "100000 threads were asked for"),
    ],
)
def test_what_does_not_fit_is_an_error_with_the_limit(grid: Grid, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grid.points(512, 2)


def test_the_hint_tells_what_fits() -> None:
    with pytest.raises(UsageError) as error:
        Grid(depths=(500,)).points(512, 2)
    assert error.value.hint == "Take numbers from 0 to 480."


@pytest.mark.parametrize(
    ("text", "numbers"), [("1", (1,)), ("1,4,8", (1, 4, 8)), (" 16 , 128", (16, 128)), ("8,4", (8, 4)), ("007", (7,))]
)
def test_counts(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_counts(text, "--batches") == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--batches is ''; it takes whole numbers with commas"),
        ("1,", "--batches is '1,'"),
        ("1;4", "--batches is '1;4'"),
        ("-1", "--batches is '-1'"),
        ("1.5", "--batches is '1.5'"),
        ("²", "--batches is '²'"),
        ("9" * 5000, "--batches is '9999"),
        ("0", "--batches has 0; it takes numbers from 1 on"),
        ("4,1,4", "--batches has 4 twice"),
    ],
)
def test_no_counts(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_counts(text, "--batches")


def test_a_depth_may_be_0() -> None:
    assert parse_counts("0,256", "--depths", least=0) == (0, 256)
