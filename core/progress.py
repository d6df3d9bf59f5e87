"""The type of progress callbacks."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, description), in any unit."""
