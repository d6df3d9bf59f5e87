"""`convert --json`: the description of a file that was converted, or planned."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dgpt2_quant.quantize.checkpoint.source import ModelSource
from dgpt2_quant.quantize.recipes.plan import Plan


@dataclass(frozen=True)
class ConvertedFile:
    """One entry of `convert --json`. `seconds` is of the whole call, `tensors` counts them by tensor type.

    `sha256` is None in a dry run. `plan` is what was, or would be, written; `padding` the pad tokens (`Padding`);
    `found` the figures of a search (`Recipe.found`).
    """

    model: str
    type: str
    recipe: str
    path: str
    bytes: int
    bits_per_weight: float
    parameters: int
    sha256: str | None
    seconds: float
    tensors: dict[str, int]
    plan: Plan
    padding: Mapping[str, Any] | None = None
    found: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        source: ModelSource,
        plan: Plan,
        path: Path,
        nbytes: int,
        sha256: str | None = None,
        seconds: float = 0.0,
        padding: Mapping[str, Any] | None = None,
    ) -> "ConvertedFile":
        return cls(
            model=source.name,
            type=plan.quant_type.name,
            recipe=plan.recipe,
            path=str(path),
            bytes=nbytes,
            bits_per_weight=round(plan.bits_per_weight, 3),
            parameters=plan.parameters,
            sha256=sha256,
            seconds=seconds,
            tensors=plan.counts(),
            plan=plan,
            padding=padding,
        )

    def to_json(self) -> dict[str, Any]:
        document = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("plan", "padding", "found")}
        if self.padding is not None:
            document["padding"] = dict(self.padding)
        if self.found is not None:
            document["search"] = dict(self.found)
        if self.sha256 is None:
            document["plan"] = [
                {"name": n, "type": t.name, "shape": list(self.plan.shapes[n]), "bytes": self.plan.tensor_bytes(n)}
                for n, t in self.plan.types.items()
            ]
        return document
