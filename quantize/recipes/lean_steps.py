"""The steps of the recipe `lean`; each can be skipped (`without`)."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, fields

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Steps:
    """The steps that are on."""

    padding: bool = True
    """Pads the vocabulary to a multiple of 8."""
    centring: bool = True
    """Shifts the inputs of the matrices, and the embedding, to the mean 0."""
    scaling: bool = True
    """Scales columns of the matrices with their inputs."""
    feedback: bool = True
    """Spreads a weight's rounding error over the weights that are rounded after it (GPTQ)."""
    gradients: bool = True
    """Weights errors by their effect on the model's predictions."""
    compensation: bool = True
    """Corrects in each matrix the error that the matrices before it left."""
    sweeps: bool = True
    """Rounds every column again, given all the others."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """The names of the steps that are off."""
        return tuple(field.name for field in fields(self) if not getattr(self, field.name))

    def possible_with(self, importance: ImportanceMatrix) -> "Steps":
        """Without the steps for which the importance matrix lacks data; warns of them."""
        lacking: dict[str, str] = {}
        if any(entry.mean is None for entry in importance.entries.values()):
            lacking["centring"] = "the sums of the inputs"
        if not importance.tokens:
            for name in ("feedback", "gradients", "compensation", "sweeps"):
                lacking[name] = "the text that it was collected on"
        if given_up := [name for name in STEPS if name in lacking and getattr(self, name)]:
            _log.warning(
                "the importance matrix lacks %s; skipped: %s. `dgpt2-quant imatrix` makes one with all data.",
                " and ".join(dict.fromkeys(lacking[name] for name in given_up)),
                ", ".join(given_up),
            )
        return Steps(**{name: getattr(self, name) and name not in lacking for name in STEPS})


STEPS = tuple(field.name for field in fields(Steps))


def steps_without(names: Iterable[str]) -> Steps:
    """All steps except these. Raises `UsageError` for an unknown name."""
    names = tuple(names)
    for name in names:
        if name not in STEPS:
            raise UsageError(f"`without` must be {', '.join(STEPS[:-1])} or {STEPS[-1]}, not {name!r}")
    return Steps(**dict.fromkeys(names, False))
