"""The search for types: for a size, or for a loss, the best mix that measurement can find.

Each type's effect on each matrix is measured (effects.py), the sum of them is minimised (allocate.py), and what comes
out is measured as a whole, for effects do not just add up: of the best mix with each of several types of the embedding,
the one that measures best is taken, and a limit of loss is approached until the measured one keeps it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.cache import cache_folder, cache_version, read_entry
from dgpt2_quant.core.errors import OutputError, UsageError
from dgpt2_quant.core.gguf_file import padded, tensor_bytes
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.core.parallel import calculating
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.sizes import parse_bytes
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix
from dgpt2_quant.quantize.checkpoint.naming import clean_name
from dgpt2_quant.quantize.checkpoint.source import ModelSource
from dgpt2_quant.quantize.lean.model import LeanModel
from dgpt2_quant.quantize.recipes.lean_mix import ROUNDABLE, Prefer, find_preference
from dgpt2_quant.quantize.recipes.lean_plan import Recipe, nominal_level, plan_of_recipe
from dgpt2_quant.quantize.recipes.plan import Plan

from .knapsack import Allocation, Amount, Option, allocate, lower_bound
from .sensitivity import HEAD, LOOKUP, Effects, Predictions, measure_effects, simulated_loss

Times = Callable[[tuple[int, ...], TensorType], float]
"""Seconds a token that a matrix of the shape takes at the type."""

SEARCHED_TYPES = tuple(sorted((*ROUNDABLE, TensorType.F16), key=lambda kind: kind.bits_per_weight))
_FASTER = (TensorType.Q4_0,)  # than IQ4_NL, which has as many bits and loses less: only where speed counts
_TABLE_TYPES = (TensorType.Q5_1, TensorType.Q8_0, TensorType.F16)  # of the position table
_FEWER, _MORE = 2.1, 4.1  # bits a weight around the mean that is aimed at: types beyond are hardly ever chosen
_EIGHT = TensorType.Q8_0.bits_per_weight  # is always among them
_HELD_BACK = 4  # chunks of the calibration text on which losses are measured, and nothing else is done
_CANDIDATES = 3  # mixes that are measured as a whole for a size
_SLACK = 64  # bytes by which a file's head differs with the level's name
_ENTRY = 96  # bytes that one more tensor takes in a file's head
_NEARLY = 1.25  # what is preferred may cost so much more loss than the best
_AMOUNTS: dict[Prefer, Amount] = {"quality": "loss", "speed": "seconds", "size": "bytes"}
_TRIES = 6  # to keep a limit of loss
_CLOSE = 0.93  # of the limit: near enough


@dataclass(frozen=True)
class Target:
    """What to search for: one of a file's size, bits a weight, or a mean KL divergence in nats."""

    bytes: int | None = None
    bits_per_weight: float | None = None
    max_kld: float | None = None
    prefer: Prefer | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.bytes, self.bits_per_weight, self.max_kld) if value is not None]
        if len(given) != 1:
            raise UsageError("more than one target was given", "Choose a size, bits per weight, or a KL divergence.")
        if not 0 < given[0] < float("inf"):
            raise UsageError(f"the target is {given[0]}; it has to be above 0")

    @property
    def label(self) -> str:
        """What its files are called by, after the model's name: it is known before the search."""
        if self.bytes is not None:
            return f"search-{self.bytes / 1e6:g}MB"
        if self.bits_per_weight is not None:
            return f"search-{self.bits_per_weight:g}bpw"
        return f"search-kld{self.max_kld:g}"


def find_target(
    size: int | str | None, bits_per_weight: float | None, max_kld: float | None, prefer: str | None
) -> Target | None:
    """What was asked for; None where no target was given. Raises `UsageError` for what can not be one."""
    if size is None and bits_per_weight is None and max_kld is None:
        return None
    wanted = parse_bytes(size) if isinstance(size, str) else size
    return Target(wanted, bits_per_weight, max_kld, find_preference(prefer))


@calculating()
def search(
    source: ModelSource,
    importance: ImportanceMatrix,
    target: Target,
    *,
    without: Sequence[str] = (),
    file_bytes: Callable[[Plan], int],
    times: Times | None = None,
    progress: Progress | None = None,
) -> Recipe:
    """The recipe that reaches the target. `file_bytes` tells the exact size of a plan's file.

    Raises `UsageError` for a target that can not be reached, saying how far it goes.
    """
    if target.prefer == "speed" and times is None:
        raise UsageError("to prefer speed, the search has to be given the time that each type takes")
    kept_back, rest = _split(importance)
    model = LeanModel(source, rest, without, progress)
    problem = _Problem(source, importance, model, target, tuple(without), file_bytes, times)
    predictions = Predictions(model.reference, kept_back)
    key = [source.sha256(), importance.sha256, cache_version(), sorted(model.steps.left_out)]
    name = f"{clean_name(source.name)}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"
    memo = cache_folder() / "effects" / name
    problem.effects = measure_effects(
        model, predictions, problem.kinds_of, read_entry(memo, _effects) or {}, partial(_keep, memo), progress
    )

    def measured(allocation: Allocation) -> float:
        return simulated_loss(predictions, model.tensors(problem.complete(allocation.types)))

    return problem.within_loss(measured) if target.max_kld is not None else problem.within_bytes(measured)


class _Problem:
    """The groups of options, and what the target says of them."""

    def __init__(
        self,
        source: ModelSource,
        importance: ImportanceMatrix,
        model: LeanModel,
        target: Target,
        without: tuple[str, ...],
        file_bytes: Callable[[Plan], int],
        times: Times | None,
    ) -> None:
        self.source, self.importance, self.model, self.target = source, importance, model, target
        self.without, self.file_bytes, self.times = without, file_bytes, times
        self.shapes = model.sizes.shapes(tied=model.tied)
        self.effects: Effects = {}
        self.fixed = 0
        smallest = {name: self.kinds_of(name)[0] for name, shape in self.shapes.items() if len(shape) == 2}
        matrices = sum(self._bytes(name, kind) for name, kind in smallest.items())
        self.fixed = file_bytes(self._plan(smallest)) - matrices + _SLACK

    def kinds_of(self, name: str) -> list[TensorType]:
        """The types of a matrix that matter for the target."""
        shape = self.shapes.get(name, self.shapes["token_embd.weight"])
        if name == "position_embd.weight":
            return [kind for kind in _TABLE_TYPES if shape[1] % kind.block == 0]
        kinds = [kind for kind in SEARCHED_TYPES if shape[1] % kind.block == 0]
        if self.times is None:
            kinds = [kind for kind in kinds if kind not in _FASTER]
        aim = self._aim() if self.fixed else None
        return kinds if aim is None else _around(aim, kinds)

    def within_bytes(self, measured: Callable[[Allocation], float]) -> Recipe:
        """The best of some mixes, each best with another type of the embedding."""
        budget = self._budget()
        groups = self.groups()
        best = allocate(groups, "loss", {"bytes": budget})
        if best is None:
            least = sum(min(option.bytes for option in group) for group in groups) + self.fixed
            raise UsageError(
                f"the target is too small: the smallest file that the search knows of has {least:,} bytes",
                "Ask for a larger one; below, `convert -t iq2_xs --calibrate TEXTFILE` and the like go on.",
            )
        limit = _NEARLY * max(best.total("loss"), 1e-12)
        by_head = [self._solved([[option], *groups[1:]], budget, limit) for option in groups[0]]
        tried = sorted(filter(None, by_head), key=self._merit)[:_CANDIDATES] or [best]
        losses = [(measured(found), number) for number, found in enumerate(tried)]
        loss, number = min(losses) if self.target.prefer in (None, "quality") else losses[0]
        return self._recipe(tried[number], loss, [v for v, _ in losses], lower_bound(groups, "loss", {"bytes": budget}))

    def within_loss(self, measured: Callable[[Allocation], float]) -> Recipe:
        """The smallest, or fastest, mix whose measured loss keeps the limit."""
        wanted = limit = self.target.max_kld or 0.0
        groups = self.groups()
        minimise: Amount = "seconds" if self.target.prefer == "speed" else "bytes"
        kept: tuple[float, Allocation] | None = None
        losses: list[float] = []
        for _ in range(_TRIES):
            found = allocate(groups, minimise, {"loss": limit})
            if found is None:
                break
            losses.append(measured(found))
            if losses[-1] <= wanted:
                if kept is None or found.total(minimise) < kept[1].total(minimise):
                    kept = losses[-1], found
                if losses[-1] >= _CLOSE * wanted:
                    break
            # each mix that misses it leaves more room, for sums of effects come only near what is measured
            room = 0.95 ** (1 + sum(loss > wanted for loss in losses)) if losses[-1] > wanted else 0.98
            limit *= room * wanted / max(losses[-1], 1e-12)
        if kept is None:
            best = losses[-1] if losses else sum(min(option.loss for option in group) for group in groups)
            raise UsageError(
                f"no mix of types was found with a mean KL divergence of {wanted:g}; the nearest has {best:.3g}",
                "Ask for more, or convert to f16.",
            )
        bound = lower_bound(groups, minimise, {"loss": kept[1].total("loss")})
        return self._recipe(kept[1], kept[0], losses, bound)

    def groups(self) -> list[list[Option]]:
        """The embedding first, then the position table, then the blocks' matrices."""
        matrices = [n for n, shape in self.shapes.items() if len(shape) == 2 and n.startswith("blk.")]
        each = [[self._option(name, k) for k in self.kinds_of(name)] for name in ("position_embd.weight", *matrices)]
        return [_undominated(group) for group in (self._embedding(), *each)]

    def complete(self, types: Mapping[str, TensorType]) -> dict[str, TensorType]:
        """With F32 for what is no matrix."""
        return {**dict.fromkeys(self.shapes, TensorType.F32), **types}

    def _aim(self) -> float | None:
        """The mean bits a weight that a size comes down to."""
        if self.target.bits_per_weight is not None:
            return self.target.bits_per_weight
        if self.target.bytes is None:
            return None
        weights = sum(shape[0] * shape[1] for shape in self.shapes.values() if len(shape) == 2)
        return 8 * (self.target.bytes - self.fixed) / weights

    def _budget(self) -> float:
        """Bytes for the matrices."""
        if self.target.bytes is not None:
            return self.target.bytes - self.fixed
        sizes = [shape[0] * (shape[1] if len(shape) == 2 else 1) for shape in self.shapes.values()]
        vectors = 4 * sum(shape[0] for shape in self.shapes.values() if len(shape) == 1)
        return (self.target.bits_per_weight or 0) * sum(sizes) / 8 - vectors

    def _solved(self, groups: Sequence[Sequence[Option]], budget: float, limit: float) -> Allocation | None:
        """The mix with the least of what is preferred whose loss keeps the limit."""
        found = allocate(groups, "loss", {"bytes": budget})
        if found is None or found.total("loss") > limit:
            return None
        if self.target.prefer in (None, "quality"):
            return found
        return allocate(groups, _AMOUNTS[self.target.prefer], {"bytes": budget, "loss": limit}) or found

    def _merit(self, found: Allocation) -> float:
        return found.total(_AMOUNTS[self.target.prefer or "quality"])

    def _embedding(self) -> list[Option]:
        kinds = self.kinds_of("token_embd.weight")
        pairs = [self._pair(lookup, output) for lookup in kinds for output in kinds]
        tied = [self._option("token_embd.weight", kind) for kind in kinds] if self.model.tied else []
        return tied + pairs

    def _pair(self, lookup: TensorType, output: TensorType) -> Option:
        name = "token_embd.weight"
        return Option(
            {name: lookup, "output.weight": output},
            self._bytes(name, lookup) + self._bytes(name, output) + (_ENTRY if self.model.tied else 0),
            self._seconds(name, output),
            self.effects[LOOKUP][lookup.name] + self.effects[HEAD][output.name],
        )

    def _option(self, name: str, kind: TensorType) -> Option:
        loss = self.effects[name][kind.name]
        return Option({name: kind}, self._bytes(name, kind), self._seconds(name, kind), loss)

    def _bytes(self, name: str, kind: TensorType) -> int:
        return padded(tensor_bytes(self.shapes[name], kind))

    def _seconds(self, name: str, kind: TensorType) -> float:
        if self.times is None or name == "position_embd.weight":
            return 0.0
        return self.times(self.shapes[name], kind)

    def _shapes_of(self, types: Mapping[str, TensorType]) -> dict[str, tuple[int, ...]]:
        return {
            **self.shapes,
            **({"output.weight": self.shapes["token_embd.weight"]} if "output.weight" in types else {}),
        }

    def _plan(self, types: Mapping[str, TensorType]) -> Plan:
        level = nominal_level(types, self._shapes_of(types))
        return plan_of_recipe(self.source, Recipe("lean", level, types, self.without), self.importance)

    def _recipe(self, found: Allocation, loss: float, losses: Sequence[float], bound: float) -> Recipe:
        recipe = Recipe("lean", nominal_level(found.types, self._shapes_of(found.types)), found.types, self.without)
        told: dict[str, Any] = {
            "target": {k: v for k, v in vars(self.target).items() if v is not None},
            "bytes": self.file_bytes(plan_of_recipe(self.source, recipe, self.importance)),
            "kld": loss,
            "kld_predicted": found.total("loss"),
            "bound": bound,
            "kld_of_candidates": list(losses),
        }
        if self.times is not None:
            told["seconds_per_token"] = found.total("seconds")
        return replace(recipe, found=told)


def _around(aim: float, kinds: Sequence[TensorType]) -> list[TensorType]:
    """Those not too far from so many bits a weight; where a row has none below, or above, the nearest beyond."""
    low, high = min(aim - _FEWER, _EIGHT), max(aim + _MORE, _EIGHT)
    found = [kind for kind in kinds if low <= kind.bits_per_weight <= high]
    if not any(kind.bits_per_weight <= aim for kind in found):
        found = [kind for kind in kinds if kind.bits_per_weight < low][-1:] + found
    if not any(kind.bits_per_weight >= aim for kind in found):
        found += [kind for kind in kinds if kind.bits_per_weight > high][:1]
    return found


def _split(importance: ImportanceMatrix) -> tuple[list[Sequence[int]], ImportanceMatrix]:
    """The chunks to measure on, and the matrix with the others."""
    chunks = importance.chunks
    if len(chunks) < 2:
        raise UsageError(
            f"the importance matrix has {len(chunks)} chunks of text in it; a search needs at least 2",
            "Make one with `dgpt2-quant imatrix`, from a longer text or `--text sampled`.",
        )
    held = max(1, min(_HELD_BACK, len(chunks) // 4))
    size = importance.chunk_size
    return chunks[-held:], replace(importance, tokens=list(importance.tokens)[: -held * size])


def _undominated(options: Sequence[Option]) -> list[Option]:
    """Without those than which another one is better, or as good, in everything."""
    left: list[Option] = []
    for option in sorted(options, key=lambda o: (o.bytes, o.seconds, o.loss)):
        if not any(o.seconds <= option.seconds and o.loss <= option.loss for o in left):
            left.append(option)
    return left


def _effects(memo: Path) -> Effects:
    """Raises one of Python's own errors for a file that holds none."""
    found = json.loads(memo.read_bytes())
    return {str(n): {str(t): float(loss) for t, loss in of.items()} for n, of in found.items()}


def _keep(memo: Path, effects: Effects) -> None:
    with suppress(OutputError), output_file(memo, overwrite=True) as file:  # it only saves time
        file.write(to_json_text(effects).encode())
