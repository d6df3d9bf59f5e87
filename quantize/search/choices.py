"""The options of a search: the tensor types that each matrix can get, their costs, and the budget for all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from dgpt2_quant.core.gguf_file import padded, tensor_bytes
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix
from dgpt2_quant.quantize.checkpoint.source import ModelSource
from dgpt2_quant.quantize.lean.model import LeanModel
from dgpt2_quant.quantize.recipes.plan import plan_of_recipe
from dgpt2_quant.quantize.recipes.recipe_file import Recipe, nearest_type
from dgpt2_quant.quantize.recipes.tensor_types import ROUNDABLE

from .knapsack import Option
from .sensitivity import HEAD, LOOKUP, Effects
from .target import Target

# Without Q4_0: IQ4_NL has as many bits and lost less in every matrix of storybook.
SEARCHED_TYPES = tuple(
    sorted(
        (kind for kind in (*ROUNDABLE, TensorType.F16) if kind is not TensorType.Q4_0),
        key=lambda kind: kind.bits_per_weight,
    )
)
_FAST_TYPES = {TensorType.Q4_K, TensorType.IQ4_NL, TensorType.Q6_K, TensorType.Q8_0, TensorType.F16}
_SLOWER = 2  # llama.cpp's kernels for all other types take about twice the time per byte on x86 (docs/decisions.md)
_POSITION_TYPES = (TensorType.Q5_1, TensorType.Q8_0, TensorType.F16)
_FEWER, _MORE = 2.1, 4.1  # bits per weight around the target mean: types beyond are rarely chosen
_EIGHT = TensorType.Q8_0.bits_per_weight  # is always among them
_SLACK = 64  # bytes by which a header's size depends on the quant type's name
_ENTRY = 96  # bytes of one more tensor in a header
_EMBEDDING, _OUTPUT, _POSITION = "token_embd.weight", "output.weight", "position_embd.weight"


class Options:
    """The options of a model for a target."""

    def __init__(self, source: ModelSource, importance: ImportanceMatrix, model: LeanModel, target: Target) -> None:
        self._source, self._importance, self._model = source, importance, model
        # with pad tokens, which a file has at some types: it is no larger than planned
        fast = dict.fromkeys((_EMBEDDING, *([] if model.tied else [_OUTPUT])), TensorType.IQ4_NL)
        self.shapes = model.sizes(fast).shapes(tied=model.tied)
        matrices = {name: shape for name, shape in self.shapes.items() if len(shape) == 2}
        smallest = {name: _possible(name, shape)[0] for name, shape in matrices.items()} | fast
        least = sum(self._bytes(name, kind) for name, kind in smallest.items())
        self.fixed_bytes = self.file_bytes(self.recipe(smallest)) - least + _SLACK
        self._aim: float | None = None  # the mean bits per weight of a size
        self.budget = 0.0  # bytes for the matrices
        if target.bytes is not None:
            self.budget = target.bytes - self.fixed_bytes
            self._aim = 8 * self.budget / sum(shape[0] * shape[1] for shape in matrices.values())
        elif target.bits_per_weight is not None:
            self._aim = target.bits_per_weight
            vectors = sum(shape[0] for shape in self.shapes.values() if len(shape) == 1)
            weights = vectors + sum(shape[0] * shape[1] for shape in matrices.values())
            self.budget = target.bits_per_weight * weights / 8 - 4 * vectors

    def types_of(self, name: str) -> list[TensorType]:
        """The types of a matrix that matter for the target; `name` may be `LOOKUP` or `HEAD`."""
        possible = _possible(name, self.shapes.get(name, self.shapes[_EMBEDDING]))
        return possible if self._aim is None or name == _POSITION else _around(self._aim, possible)

    def groups(self, effects: Effects) -> list[list[Option]]:
        """The options of the embedding, of the position table, and of each matrix of the blocks."""
        matrices = [n for n, shape in self.shapes.items() if len(shape) == 2 and n.startswith("blk.")]
        each = [[self._option(name, kind, effects) for kind in self.types_of(name)] for name in (_POSITION, *matrices)]
        return [_undominated(group) for group in (self._embedding(effects), *each)]

    def complete(self, types: Mapping[str, TensorType]) -> dict[str, TensorType]:
        """The types, with F32 for vectors."""
        return {**dict.fromkeys(self.shapes, TensorType.F32), **types}

    def recipe(self, types: Mapping[str, TensorType], found: Mapping[str, Any] | None = None) -> Recipe:
        shapes = {**self.shapes, _OUTPUT: self.shapes[_EMBEDDING]}
        return Recipe("lean", nearest_type(types, shapes), types, self._model.skip_steps, found)

    def file_bytes(self, recipe: Recipe) -> int:
        plan = plan_of_recipe(self._source, recipe, self._importance.entries)
        return plan.file_bytes(self._source, self._importance.metadata())

    def _embedding(self, effects: Effects) -> list[Option]:
        kinds = self.types_of(_EMBEDDING)
        tied = [self._option(_EMBEDDING, kind, effects) for kind in kinds] if self._model.tied else []
        split = [
            Option(
                {_EMBEDDING: lookup, _OUTPUT: output},
                self._bytes(_EMBEDDING, lookup) + self._bytes(_EMBEDDING, output) + (_ENTRY if self._model.tied else 0),
                self._time(_EMBEDDING, output),
                effects[LOOKUP][lookup.name] + effects[HEAD][output.name],
            )
            for lookup in kinds
            for output in kinds
        ]
        return tied + split

    def _option(self, name: str, kind: TensorType, effects: Effects) -> Option:
        return Option({name: kind}, self._bytes(name, kind), self._time(name, kind), effects[name][kind.name])

    def _bytes(self, name: str, kind: TensorType) -> int:
        return padded(tensor_bytes(self.shapes[name], kind))

    def _time(self, name: str, kind: TensorType) -> float:
        """The relative time of a token; the position table is only looked up."""
        if name == _POSITION:
            return 0.0
        return tensor_bytes(self.shapes[name], kind) * (1 if kind in _FAST_TYPES else _SLOWER)


def _possible(name: str, shape: tuple[int, ...]) -> list[TensorType]:
    """The types whose blocks divide a row."""
    kinds = _POSITION_TYPES if name == _POSITION else SEARCHED_TYPES
    return [kind for kind in kinds if shape[1] % kind.block == 0]


def _around(aim: float, kinds: Sequence[TensorType]) -> list[TensorType]:
    """Those near this number of bits per weight; where none is below, or above, the nearest beyond, too."""
    low, high = min(aim - _FEWER, _EIGHT), max(aim + _MORE, _EIGHT)
    found = [kind for kind in kinds if low <= kind.bits_per_weight <= high]
    if not any(kind.bits_per_weight <= aim for kind in found):
        found = [kind for kind in kinds if kind.bits_per_weight < low][-1:] + found
    if not any(kind.bits_per_weight >= aim for kind in found):
        found += [kind for kind in kinds if kind.bits_per_weight > high][:1]
    return found


def _undominated(options: Sequence[Option]) -> list[Option]:
    """Drops options that another one equals or beats in bytes, time and loss."""
    left: list[Option] = []
    for option in sorted(options, key=lambda o: (o.bytes, o.time, o.loss)):
        if not any(o.time <= option.time and o.loss <= option.loss for o in left):
            left.append(option)
    return left
