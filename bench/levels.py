"""What a benchmark compares: GGUF files of one model, and what each is called."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.quantize.gguf_file import GGUFHeader, read_header

from .figures import level_name


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

    A file that does not tell its recipe, and each of several of one type and recipe, goes by its file's name, or by its
    path where that is the same, too. Raises `GGUFError` for what is no sound file, `UsageError` for one named twice.
    """
    if twice := [path for path, times in Counter(files).items() if times > 1]:
        raise UsageError(f"{twice[0]} is named twice", "Leave it out once.")
    levels = [_read(path) for path in files]
    for call in (lambda path: path.name, str):
        often = Counter(level.name for level in levels)
        levels = [replace(one, recipe=call(one.path)) if often[one.name] > 1 else one for one in levels]
    return levels


def _read(path: Path) -> Level:
    header = read_header(path, arrays=False)
    recipe = header.metadata.get("dgpt2_quant.recipe")
    return Level(header, header.quant_type or path.stem, recipe if isinstance(recipe, str) else path.name)
