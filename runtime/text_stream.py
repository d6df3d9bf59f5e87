"""Token bytes to text for streaming: whole characters only, and no part of a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of tokens into text to show.

    A character whose bytes are spread over several tokens is held back until it is complete; bytes that are not UTF-8
    become U+FFFD. Text that may be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, stop: Sequence[str] = (), incomplete: bytes = b"") -> None:
        """`incomplete` are the first bytes of a character, which the next ones complete."""
        self.stopped_by: str | None = None
        self._stop = [text for text in stop if text]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._decoder.decode(incomplete)
        self._whole = not incomplete

    @property
    def stopped(self) -> bool:
        return self.stopped_by is not None

    def feed(self, data: bytes) -> str:
        """The text to show now. Afterwards, `stopped` states whether a stop string occurred (it is not shown)."""
        if self._whole and data.isascii():
            text = data.decode("ascii")
        else:
            text = self._decoder.decode(data)
            self._whole = self._decoder.getstate()[0] == b""
        return self._release(text) if self._stop else text

    def finish(self) -> str:
        """The text that was held back, after the last token."""
        text = self._release(self._decoder.decode(b"", final=True))
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        # the stop string that is complete first, so that token boundaries do not matter
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.stopped_by = min(found)
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
