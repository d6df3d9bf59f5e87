"""The steps of the recipe `lean`, each of which can be left out."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, fields

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Steps:
    """What `lean` does besides choosing types; each can be switched off by its name (`--without`)."""

    padding: bool = True
    """The vocabulary is filled up to a multiple of 8."""
    centring: bool = True
    """Inputs of the matrices, and the embedding, get the mean 0."""
    scaling: bool = True
    """Columns of the matrices are scaled with their inputs."""
    feedback: bool = True
    """A weight's rounding error is made good by those rounded after it."""
    gradients: bool = True
    """Errors are weighed by what they do to the model's predictions."""
    compensation: bool = True
    """A matrix makes good what the matrices before it have left over."""
    sweeps: bool = True
    """Every column is rounded again, given all the others."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(field.name for field in fields(self) if not getattr(self, field.name))

    def possible_with(self, importance: ImportanceMatrix) -> "Steps":
        """Without those for which the importance matrix has not what they need; says so in the log."""
        lacking: dict[str, str] = {}
        if any(entry.mean is None for entry in importance.entries.values()):
            lacking["centring"] = "the sums of the inputs"
        if not importance.tokens:
            for name in ("feedback", "gradients", "compensation", "sweeps"):
                lacking[name] = "the text that it was collected on"
        if given_up := [name for name in STEPS if name in lacking and getattr(self, name)]:
            _log.warning(
                "the importance matrix has not %s in it, so without %s; `dgpt2-quant imatrix` makes one that has",
                " and ".join(dict.fromkeys(lacking[name] for name in given_up)),
                ", ".join(given_up),
            )
        return Steps(**{name: getattr(self, name) and name not in lacking for name in STEPS})


STEPS = tuple(field.name for field in fields(Steps))


def steps_without(names: Iterable[str]) -> Steps:
    """All steps but these. Raises `UsageError` for a name that is none."""
    names = tuple(names)
    for name in names:
        if name not in STEPS:
            raise UsageError(f"there is no step {name!r} to leave out; there are {', '.join(STEPS)}")
    return Steps(**dict.fromkeys(names, False))
