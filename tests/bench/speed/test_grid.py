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


def test_points_are_unique_on_one_thread() -> None:
    points = Grid().points(1024, 1)
    assert len(points) == len(set(points)) == 6


def test_points_fit_a_small_model() -> None:
    points = Grid().points(64, 1)
    assert max(point.depth + point.tokens for point in points) <= 64
    assert [point.tokens for point in points if point.measure == "prompt"] == [16, 64]
    for positions in (4, 5, 16, 100, 300):
        assert all(1 < point.tokens <= positions - point.depth for point in Grid().points(positions, 2))


def test_given_values() -> None:
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
        (Grid(prompt_sizes=(16, 513)), "`prompt_sizes` must be 1-512, not 513"),
        (Grid(prompt_sizes=(0,)), "not 0"),
        (Grid(depths=(481,)), "`depths` must be 0-480, not 481"),
        (Grid(depths=(-1,)), "not -1"),
        (Grid(batches=(257,)), "257"),
        (Grid(batches=(0,)), "256"),
        (Grid(thread_counts=(100_000,)), "100000"),
    ],
)
def test_values_that_do_not_fit_are_refused(grid: Grid, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grid.points(512, 2)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [(None, None), ("1", (1,)), ("1,4,8", (1, 4, 8)), (" 16 , 128", (16, 128)), ("8,4", (8, 4)), ("007", (7,))],
)
def test_parse_counts(text: str | None, numbers: tuple[int, ...] | None) -> None:
    assert parse_counts(text, "batches") == numbers


@pytest.mark.parametrize("text", ["", "1,", "1;4", "-1", "1.5", "²", "9" * 5000, "0", "4,1,4"])
def test_parse_counts_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="`batches` "):
        parse_counts(text, "batches")


def test_a_depth_may_be_0() -> None:
    assert parse_counts("0,256", "depths", least=0) == (0, 256)
