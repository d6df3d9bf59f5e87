"""Progress callbacks, and one bar for work in several stages."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, description), in any unit."""

_WHOLE = 10_000


class Stages:
    """Reports several stages, one after the other, as parts of one whole.

    `total` is the sum of the stages' costs, in any unit. Without it each stage is reported as a whole of its own.
    """

    def __init__(self, progress: Progress | None = None, total: float | None = None) -> None:
        self._progress, self._total, self._end = progress, total, 0.0

    def begin(self, cost: float) -> Progress | None:
        """The callback of the next stage."""
        progress, whole = self._progress, self._total
        if progress is None or whole is None:
            return progress
        start = self._end
        self._end = start + cost

        def report(done: int, total: int, what: str) -> None:
            share = (start + cost * done / max(1, total)) / whole
            progress(min(_WHOLE, max(1, round(_WHOLE * share))), _WHOLE, what)

        return report
