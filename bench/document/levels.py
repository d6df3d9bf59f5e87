"""What a benchmark compares: GGUF files of one model, and what each is called."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import GGUFHeader, read_header

from .format_numbers import level_name


@dataclass(frozen=True)
class Level:
    """A file, its quant type, and how it was made: the recipe, or, where that says too little, the file's name."""

    header: GGUFHeader
    type: str
    recipe: str

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def name(self) -> str:
        return level_name(self.type, self.recipe)


def read_levels(files: Sequence[Path]) -> list[Level]:
    """Of each file, all with names of their own.

    A file that does not tell its recipe goes by its file's name, and so does one behind another of its type and recipe;
    by its path where that is taken, too.
    Raises `GGUFError` for what is no sound file, `UsageError` for one that is named twice.
    """
    found: dict[str, Level] = {}
    for path in files:
        level = _read(path)
        called = [replace(level, recipe=recipe) for recipe in (level.recipe, path.name, str(path))]
        free = [one for one in called if one.name not in found]
        if not free or path in [other.path for other in found.values()]:
            raise UsageError(f"{path} is named twice", "Leave it out once.")
        found[free[0].name] = free[0]
    return list(found.values())


def _read(path: Path) -> Level:
    header = read_header(path, arrays=False)
    recipe = header.metadata.get("dgpt2_quant.recipe")
    return Level(header, header.quant_type or path.stem, recipe if isinstance(recipe, str) else path.name)
