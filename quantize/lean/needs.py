"""What a conversion with `lean` needs, by the model's shape: memory, disk space for scratch, and work.

The figures were fitted to measurements (`python tools/time_lean.py`; docs/quantization.md).
"""

import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from pathlib import Path

from dgpt2_quant.core.cache_folder import cache_folder
from dgpt2_quant.core.errors import OutputError, RuntimeFailure
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.memory import available_memory
from dgpt2_quant.quantize.calibration.block_weights import KEPT_BYTES
from dgpt2_quant.quantize.calibration.sample_text import sampling_bytes
from dgpt2_quant.quantize.recipes.plan import Plan

FISHER_TOKENS = 4096  # of the calibration text: gradients cost twice a forward pass, and their means settle soon
STREAM_TOKENS = 16_384  # of it go through the quantized model; more gained nothing measurable
_PROGRAM = 130_000_000  # bytes of the program and its libraries
_FREED = 62_000_000  # bytes per thread that were freed and not returned to the system
_FACTORING = 46  # bytes per element of the largest matrix of moments
_SCORED_TOKENS = 2048  # on which a search measures


@dataclass(frozen=True)
class Needs:
    """For a calibration text of `chunks` times `length` tokens; `calibration` is its `Calibration.step`.

    Work is in units of about a floating point operation of a matrix product.
    """

    sizes: Hyperparameters
    chunks: int = 0
    length: int = 0
    calibration: str | None = None

    def require(self, threads: int, files: int = 1, *, searches: bool = False) -> None:
        """Raises `RuntimeFailure` where memory is too small, and `OutputError` where the cache's disk is."""
        what = "a search" if searches else "`lean`"
        needed, left = self.memory(threads, searches=searches), available_memory()
        if left is not None and needed > left:
            hint = "Use a machine with more memory, or the recipe stock."
            if replace(self, calibration="collecting").memory(threads, searches=searches) <= left:
                hint = "Give a text with `calibrate`: to generate one, all weights must be in memory."
            raise RuntimeFailure(
                f"{what} needs about {_gigabytes(needed)} of memory for this model; {_gigabytes(left)} are available",
                hint,
            )
        folder = next((path for path in (cache_folder(), *cache_folder().parents) if path.exists()), Path())
        if (size := self.scratch(files)) > (free := shutil.disk_usage(folder).free):
            raise OutputError(
                f"{what} needs about {_gigabytes(size)} of disk space for this model; {_gigabytes(free)} are"
                f" free in {folder}",
                "Set DGPT2_QUANT_CACHE to a folder with more space.",
            )

    def memory(self, threads: int, *, searches: bool = False) -> int:
        """Bytes at the peak."""
        width, inner, vocabulary = self.sizes.width, self.sizes.inner, self.sizes.vocabulary
        tokens = min(STREAM_TOKENS, self.chunks * self.length)
        weights = min(4 * self.weights, max(KEPT_BYTES, 4 * vocabulary * width))
        if searches:  # the model, its states on the text, and a quantized model
            weights = 8 * self.weights + 4 * _SCORED_TOKENS * (2 * self.sizes.layers * width + vocabulary)
        of_layers = 8 * tokens * (width + inner) + _FACTORING * inner**2
        of_logits = 8 * vocabulary * self.length * min(threads, 2)
        peak = weights + max(of_layers, of_logits, 8 * vocabulary * width) + _FREED * (2 + threads)
        if self.calibration == "sampling":
            peak = max(peak, sampling_bytes(self.sizes, self.chunks, self.length))
        return _PROGRAM + peak

    def scratch(self, files: int = 1) -> int:
        """Bytes of the factors of G, of states of the text, and of the quantized tensors."""
        width, layers = self.sizes.width, self.sizes.layers
        states = 8 * layers * FISHER_TOKENS * width
        kept = 16 * STREAM_TOKENS * width + (states if states > KEPT_BYTES else 0)
        return 44 * layers * width**2 + kept + files * self.weights

    @property
    def weights(self) -> int:
        return sum(map(prod, self.sizes.shapes().values()))

    def work(self, plans: Collection[Plan]) -> float:
        """Of the whole conversion to these files."""
        lean = [plan for plan in plans if plan.recipe != "stock"]
        files = len(lean) + any(plan.recipe == "stock" for plan in plans)
        embeddings = sum(1 + ("output.weight" in plan.types) for plan in lean)
        models = sum(1 for _ in groupby(plan.skip_steps for plan in lean))
        work = self.calibrating + models * self.gradients + embeddings * self.embedding
        return work + len(lean) * self.blocks + files * self.writing

    @property
    def calibrating(self) -> float:
        each = {"sampling": 3.2 * self.weights, "collecting": 2.4 * self._block_weights}
        return self.chunks * self.length * each.get(self.calibration or "", 0)

    @property
    def gradients(self) -> float:
        tokens, head = min(FISHER_TOKENS, self.chunks * self.length), self.sizes.vocabulary * self.sizes.width
        return tokens * (14 * self._block_weights + 2 * head) + 80 * self.sizes.layers * self.sizes.width**3

    @property
    def embedding(self) -> float:
        return 24 * self.sizes.vocabulary * self.sizes.width**2

    @property
    def blocks(self) -> float:
        tokens, width, inner = min(STREAM_TOKENS, self.chunks * self.length), self.sizes.width, self.sizes.inner
        rounding = 24 * self.sizes.layers * (4 * width**3 + width**2 * inner + width * inner**2)
        return 10 * tokens * self._block_weights + rounding

    @property
    def writing(self) -> float:
        return 1000 * self.weights

    @property
    def _block_weights(self) -> int:
        return self.sizes.layers * (4 * self.sizes.width**2 + 2 * self.sizes.width * self.sizes.inner)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
