"""Token bytes in, text out: whole characters only, and never a part of a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of tokens into text that can be shown at once.

    A character whose bytes are spread over tokens waits until it is whole; bytes that are no UTF-8 become U+FFFD. A
    text that might be the beginning of a stop string waits until that is decided.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stop = [text for text in stop if text]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._whole = True  # whether no character is in the middle of its bytes

    def feed(self, data: bytes) -> str:
        """What can be shown now. After it, `stopped` tells whether a stop string was met (it is not shown)."""
        if self._whole and data.isascii():
            text = data.decode("ascii")
        else:
            text = self._decoder.decode(data)
            self._whole = self._decoder.getstate()[0] == b""
        return self._release(text) if self._stop else text

    def finish(self) -> str:
        """What was still held back, when no more tokens come."""
        text = self._release(self._decoder.decode(b"", final=True))
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        # the one that is whole first, so that the text does not depend on where the tokens end
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
