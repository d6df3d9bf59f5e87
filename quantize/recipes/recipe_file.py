"""Recipe files: a tensor type for each matrix of a model. A search writes them; `convert` reads them as `recipe`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import require_file
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.core.quant_types import QUANT_TYPES, QuantType, TensorType, find_type
from dgpt2_quant.quantize.checkpoint.model_name import clean_name

from .lean_steps import steps_without
from .tensor_types import RECIPES

_FORMAT = "dgpt2-quant recipe"
_VERSION = 1
_LARGEST = 1 << 22  # bytes; the deepest model has 2050 matrices
_HINT = "`dgpt2-quant convert --target-size` writes one."


@dataclass(frozen=True)
class Recipe:
    """A tensor type for each matrix, by name, and the steps of `lean` to skip.

    A type for `output.weight` splits the embedding of a model whose own is tied. `quant_type` names the file, `found`
    holds the figures of the search (keys as in the file).
    """

    name: str
    quant_type: QuantType
    types: Mapping[str, TensorType]
    skip_steps: tuple[str, ...] = ()
    found: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """A document that `read_recipe` reads."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "type": self.quant_type.name,
            "without": list(self.skip_steps),
            "types": {name: tensor_type.name for name, tensor_type in self.types.items()},
            **({"found": dict(self.found)} if self.found else {}),
        }

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Raises `OutputError`."""
        with output_file(path, overwrite=overwrite) as file:
            file.write((to_json_text(self.to_json()) + "\n").encode())

    def label(self, model: str) -> str:
        """The part after the model's name in the names of its files: the recipe file's name without the model's."""
        label = clean_name(self.name).removesuffix(".json").removesuffix(".recipe").removesuffix(".gguf")
        label = label.removeprefix(f"{model}.")
        return "recipe" if label in (*RECIPES, self.quant_type.name, model) else label


def read_recipe(path: str | Path) -> Recipe:
    """Reads a recipe file. Raises `ModelNotFoundError` if it is missing, and `UsageError` for other content."""
    path = require_file(Path(path), _HINT)
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        document = json.loads(text)
        if document["format"] != _FORMAT or document["version"] != _VERSION:
            raise ValueError(f"its format is {document['format']!r}, version {document['version']!r}")
        by_name = {tensor_type.name: tensor_type for tensor_type in TensorType}
        types = {str(name): by_name[kind] for name, kind in document["types"].items()}
        skip_steps = steps_without(list(document["without"])).left_out
        found = document.get("found")
        return Recipe(path.name, find_type(document["type"]), types, skip_steps, None if found is None else dict(found))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise UsageError(f"{path} is not a recipe of this tool ({error!s:.200})", _HINT) from error


def nearest_type(types: Mapping[str, TensorType], shapes: Mapping[str, tuple[int, ...]]) -> QuantType:
    """The quant type that names a mix: the K-quant or Q8_0 whose nominal bits are nearest to the mix's own."""
    matrices = [(prod(shapes[name]), kind.bits_per_weight) for name, kind in types.items() if len(shapes[name]) == 2]
    mean = sum(count * bits for count, bits in matrices) / sum(count for count, _ in matrices)
    named = [QUANT_TYPES[name] for name in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")]
    return min(named, key=lambda quant_type: abs(quant_type.bits_per_weight - mean))
