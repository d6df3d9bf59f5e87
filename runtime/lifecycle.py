"""What is closed at the end of a `with` block."""

from typing import Self


class Closing:
    """Gives a class that has `close` its `with`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
