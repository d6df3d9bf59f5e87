"""How many threads decode."""

from typing import Literal

from dgpt2_quant.quantize.cores import usable_cores
from dgpt2_quant.quantize.errors import UsageError

MOST_THREADS = 512


class Governor:
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def observe(self, rows: int, seconds: float) -> None:
        pass


def check_threads(threads: int | Literal["auto"]) -> None:
    """Raises `UsageError` for what is neither a possible number nor "auto"."""
    if threads != "auto" and (type(threads) is not int or not 1 <= threads <= MOST_THREADS):
        raise UsageError(f"{threads} threads were asked for; 1 to {MOST_THREADS} are possible, or auto")


def make_governor(threads: int | Literal["auto"]) -> Governor:
    return Governor(usable_cores() if threads == "auto" else threads)
