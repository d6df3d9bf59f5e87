"""How a long call tells how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is being done), in units of the caller's own."""
