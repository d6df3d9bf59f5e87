"""Token bytes to text: nothing is lost or shown too early, wherever the tokens end."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from dgpt2_quant.runtime.text_stream import TextStream
from hypothesis import example, given
from hypothesis import strategies as st

# few different characters, so that stop strings are found often, and with one to four bytes each
TEXTS = st.text(st.sampled_from("ab é😀\n"), max_size=30)
FEW_LETTERS = st.text(st.sampled_from("ab é😀\n"), max_size=5)
CUTS = st.lists(st.integers(0, 120), max_size=30)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, list[str], list[int]]:
    """A text, stop strings (some of them parts of it), and where its bytes are cut."""
    text = draw(TEXTS)
    parts = st.builds(lambda at, length: text[at : at + length], st.integers(0, 30), st.integers(0, 6))
    return text, draw(st.lists(parts | FEW_LETTERS, max_size=4)), draw(CUTS)


def split(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    borders = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for begin, end in pairwise(borders):
        yield data[begin:end]


def shown(stream: TextStream, pieces: Iterator[bytes]) -> str:
    return "".join([*map(stream.feed, pieces), stream.finish()])


def up_to_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the stop string that is the first to be complete."""
    for end in range(1, len(text) + 1):
        if lengths := [len(stop) for stop in stops if stop and text[:end].endswith(stop)]:
            return text[: end - max(lengths)]
    return text


@given(cases())
@example(("aab b", ["aab ", "b"], []))
@example(("aab b", ["aab ", "b"], [1, 2, 3, 4]))
@example(("aab b", ["b", "ab"], []))
def test_text_ends_before_the_first_stop_string(case: tuple[str, list[str], list[int]]) -> None:
    text, stops, cuts = case
    stream = TextStream(stops)
    assert shown(stream, split(text.encode(), cuts)) == up_to_stop(text, stops)
    assert stream.stopped == (up_to_stop(text, stops) != text)


@given(cases())
def test_text_is_neither_shown_too_early_nor_held_too_long(case: tuple[str, list[str], list[int]]) -> None:
    text, stops, cuts = case
    expected, stream = up_to_stop(text, stops), TextStream(stops)
    fed, so_far = b"", ""
    for piece in split(text.encode(), cuts):
        fed += piece
        so_far += stream.feed(piece)
        assert expected.startswith(so_far)
        if stream.stopped:
            assert so_far == expected
        else:  # what waits, but for half a character, may become a stop string
            waiting = fed.decode(errors="ignore").removeprefix(so_far)
            assert not waiting or any(stop.startswith(waiting) and stop != waiting for stop in stops)


@given(st.binary(max_size=40), CUTS)
def test_any_bytes_become_text(data: bytes, cuts: list[int]) -> None:
    assert shown(TextStream(), split(data, cuts)) == data.decode("utf-8", "replace")


@given(st.text(max_size=60), CUTS)
@example("👩‍👩‍👧 and 🇫🇷", list(range(40)))
def test_any_text_is_unchanged(text: str, cuts: list[int]) -> None:
    assert shown(TextStream(), split(text.encode(), cuts)) == text


@pytest.mark.parametrize("character", ["é", "語", "😀"])
def test_a_character_is_shown_with_its_last_byte(character: str) -> None:
    stream = TextStream()
    *others, last = (bytes([byte]) for byte in character.encode())
    assert [stream.feed(byte) for byte in others] == [""] * len(others)
    assert stream.feed(last) == character


@pytest.mark.parametrize(
    ("data", "now", "rest"), [("a😀".encode()[:-1], "a", "�"), (b"a\xf0\x9fb", "a�b", ""), (b"\xff", "�", "")]
)
def test_bytes_that_are_not_utf8(data: bytes, now: str, rest: str) -> None:
    stream = TextStream()
    assert (stream.feed(data), stream.finish()) == (now, rest)


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    stream = TextStream(["THE END"])
    assert [stream.feed(data) for data in (b"so THE E", b"LF THE E")] == ["so ", "THE ELF "]
    assert stream.finish() == "THE E"
    assert not stream.stopped


def test_nothing_comes_after_a_stop_string() -> None:
    stream = TextStream(["\n\n"])
    assert stream.feed(b"one\n") == "one"
    assert stream.feed(b"\ntwo") == ""
    assert stream.stopped
    assert stream.feed(b"three") == ""
    assert stream.finish() == ""


def test_a_replacement_character_can_complete_a_stop_string() -> None:
    stream = TextStream(["b�"])
    assert stream.feed(b"ab\xf0") == "a"
    assert stream.finish() == ""
    assert stream.stopped


def test_empty_stop_strings_are_ignored() -> None:
    stream = TextStream(["", ""])
    assert stream.feed(b"text") == "text"
    assert not stream.stopped
