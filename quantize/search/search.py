"""`search()`: finds the mix of tensor types with the least loss for a size, or the least size for a loss.

The effect of each type on each matrix is measured (sensitivity.py), and the sum of the effects is minimised
(knapsack.py). Effects do not simply add up, so whole mixes are measured. For a size these are the best mixes with
different types of the embedding; for a loss limit, one mix after another until one is within the limit.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path

from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.cache_folder import cache_folder, cache_version, read_entry
from dgpt2_quant.core.errors import OutputError, UsageError
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.core.parallel import calculating
from dgpt2_quant.core.progress import Progress, Stages
from dgpt2_quant.core.read_input import Announce
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.quantize.calibration.calibration import Calibration, read_given
from dgpt2_quant.quantize.calibration.collect import SAMPLED
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix
from dgpt2_quant.quantize.checkpoint.model_name import clean_name
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model
from dgpt2_quant.quantize.lean.model import LeanModel
from dgpt2_quant.quantize.recipes.lean_steps import steps_without
from dgpt2_quant.quantize.recipes.recipe_file import Recipe
from dgpt2_quant.quantize.recipes.tensor_types import Prefer

from .choices import Options
from .knapsack import Allocation, Amount, allocate, lower_bound
from .sensitivity import Effects, Predictions, measure_effects, simulated_loss
from .target import Target, find_target

_HELD_BACK = 4  # chunks of the calibration text, used only to measure losses
_CANDIDATES = 3  # mixes that are measured as a whole for a size
_NEARLY = 1.25  # times the least loss: the limit with `prefer`
_MINIMISED: dict[Prefer | None, Amount] = {None: "loss", "quality": "loss", "speed": "time", "size": "bytes"}
_TRIES = 6  # to meet a loss limit
_CLOSE = 0.93  # of the limit: close enough to stop

Measured = tuple[Allocation, float, list[float], float]
"""A mix, its measured loss, the losses of all measured mixes, and the lower bound of the minimised amount."""


def search(
    model: str = DEFAULT_MODEL,
    *,
    target_size: int | str | None = None,
    target_bpw: float | None = None,
    max_kld: float | None = None,
    prefer: str | None = None,
    without: Sequence[str] = (),
    imatrix: str | Path | None = None,
    calibrate: str | Path | NamedText | None = None,
    parse_special: bool = True,
    keep_crlf: bool = False,
    revision: str | None = None,
    offline: bool = False,
    threads: int | None = None,
    allow_requantize: bool = False,
    name: str | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> Recipe:
    """Finds the recipe that meets one target; parameters as for `convert`, which also writes the file.

    Raises `DgptQuantError`, and its kind `UsageError` for a target that cannot be met.
    """
    target, skip_steps = find_target(target_size, target_bpw, max_kld, prefer), steps_without(without).left_out
    if target is None:
        raise UsageError("one of `target_size`, `target_bpw` and `max_kld` must be given", "For example 48MB.")
    text = read_given(imatrix, calibrate, parse_special=parse_special, keep_crlf=keep_crlf, announce=announce)
    source = open_model(model, revision=revision, offline=offline, allow_requantize=allow_requantize, name=name)
    calibration = Calibration(source, imatrix, text or (None if imatrix else SAMPLED), announce)
    calibration.outline(uses_text=True)
    with calculating(threads):
        importance = calibration.collected(progress)
        assert importance
        return find_recipe(source, importance, target, skip_steps=skip_steps, progress=progress)


@calculating()
def find_recipe(
    source: ModelSource,
    importance: ImportanceMatrix,
    target: Target,
    *,
    skip_steps: Sequence[str] = (),
    progress: Progress | None = None,
) -> Recipe:
    """`search` for an open model. Raises `UsageError` for a target that cannot be met; it names the nearest."""
    held_back, rest = _split(importance)
    model = LeanModel(source, rest, skip_steps, Stages(progress), kept_bytes=inf)  # each effect passes the whole model
    options = Options(source, importance, model, target)
    predictions = Predictions(model.reference, held_back)
    key = [source.sha256(), importance.sha256, cache_version(), sorted(model.steps.left_out)]
    memo = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    path = cache_folder() / "effects" / f"{clean_name(source.name)}-{memo}.json"
    known = read_entry(path, _read_effects) or {}
    effects = measure_effects(model, predictions, options.types_of, known, partial(_write_effects, path), progress)

    def measured(allocation: Allocation) -> float:
        return simulated_loss(predictions, model.tensors(options.complete(allocation.types)))

    reach = _within_bytes if target.max_kld is None else _within_loss
    found, loss, losses, bound = reach(options, effects, target, measured)
    figures = {
        "target": {name: value for name, value in vars(target).items() if value is not None},
        "bytes": options.file_bytes(options.recipe(found.types)),
        "kld": loss,
        "kld_predicted": found.total("loss"),
        "bound": bound,
        "kld_of_candidates": losses,
    }
    return options.recipe(found.types, figures)


def _within_bytes(
    options: Options, effects: Effects, target: Target, measured: Callable[[Allocation], float]
) -> Measured:
    """The best of several mixes with different types of the embedding."""
    groups, budget = options.groups(effects), options.budget
    best = allocate(groups, "loss", {"bytes": budget})
    if best is None:
        least = sum(min(option.bytes for option in group) for group in groups) + options.fixed_bytes
        raise UsageError(
            f"the target is too small: the smallest file of the searched types has {least:,} bytes",
            "Choose a larger target, or a type of fewer bits: `dgpt2-quant convert -t iq2_xs --calibrate TEXTFILE`.",
        )
    limit, minimise = _NEARLY * max(best.total("loss"), 1e-12), _MINIMISED[target.prefer]
    mixes = []
    for embedding in groups[0]:
        chosen = [[embedding], *groups[1:]]
        mix = allocate(chosen, "loss", {"bytes": budget})
        if mix and mix.total("loss") <= limit:
            if minimise != "loss":
                mix = allocate(chosen, minimise, {"bytes": budget, "loss": limit}) or mix
            mixes.append(mix)
    tried = sorted(mixes, key=lambda mix: mix.total(minimise))[:_CANDIDATES] or [best]
    losses = [measured(mix) for mix in tried]
    number = losses.index(min(losses)) if minimise == "loss" else 0
    return tried[number], losses[number], losses, lower_bound(groups, "loss", {"bytes": budget})


def _within_loss(
    options: Options, effects: Effects, target: Target, measured: Callable[[Allocation], float]
) -> Measured:
    """The smallest, or fastest, mix whose measured loss is within the limit."""
    groups = options.groups(effects)
    minimise: Amount = "time" if target.prefer == "speed" else "bytes"
    wanted = limit = target.max_kld or 0.0
    kept: tuple[Allocation, float] | None = None
    losses: list[float] = []
    for _ in range(_TRIES):
        found = allocate(groups, minimise, {"loss": limit})
        if found is None:
            break
        losses.append(measured(found))
        if losses[-1] <= wanted:
            if kept is None or found.total(minimise) < kept[0].total(minimise):
                kept = found, losses[-1]
            if losses[-1] >= _CLOSE * wanted:
                break
        # the margin grows with each miss: a sum of effects only approximates the measured loss
        room = 0.95 ** (1 + sum(loss > wanted for loss in losses)) if losses[-1] > wanted else 0.98
        limit *= room * wanted / max(losses[-1], 1e-12)
    if kept is None:
        best = losses[-1] if losses else sum(min(option.loss for option in group) for group in groups)
        raise UsageError(
            f"no mix of types has a mean KL divergence of at most {wanted:g}; the nearest has {best:.3g}",
            "Choose a higher limit, or convert to f16.",
        )
    return *kept, losses, lower_bound(groups, minimise, {"loss": kept[0].total("loss")})


def _split(importance: ImportanceMatrix) -> tuple[list[Sequence[int]], ImportanceMatrix]:
    """The chunks to measure on, and the importance matrix without their tokens."""
    chunks = importance.chunks
    if len(chunks) < 2:
        raise UsageError(
            f"a search needs at least 2 chunks of calibration text in the importance matrix, not {len(chunks)}",
            "Make one from a longer text with `dgpt2-quant imatrix`.",
        )
    held = max(1, min(_HELD_BACK, len(chunks) // 4))
    size = importance.chunk_size
    return chunks[-held:], replace(importance, tokens=list(importance.tokens)[: -held * size])


def _read_effects(path: Path) -> Effects:
    """Raises a built-in error for a file without effects."""
    found = json.loads(path.read_bytes())
    return {str(n): {str(t): float(loss) for t, loss in of.items()} for n, of in found.items()}


def _write_effects(path: Path, effects: Effects) -> None:
    with suppress(OutputError), output_file(path, overwrite=True) as file:  # a cache, which may be missing
        file.write(to_json_text(effects).encode())
