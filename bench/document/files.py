"""The files of a benchmark: their headers, quant types, recipes and names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import GGUFHeader, read_header

from .format_numbers import full_name


@dataclass(frozen=True)
class BenchedFile:
    """A file, its quant type, and its recipe; the file's name where the header has no recipe, or it is not unique."""

    header: GGUFHeader
    type: str
    recipe: str

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def name(self) -> str:
        return full_name(self.type, self.recipe)


def read_files(paths: Sequence[Path]) -> list[BenchedFile]:
    """Reads the headers, and gives each file a unique name.

    A file without a recipe in its header is named by its file name, and so is a file with the type and recipe of an
    earlier one; by its path if that name is taken too. Raises `GGUFError` for a broken file, `UsageError` for one that
    is named twice.
    """
    found: dict[str, BenchedFile] = {}
    for path in paths:
        header = read_header(path, arrays=False)
        recipe = header.metadata.get("dgpt2_quant.recipe")
        file = BenchedFile(header, header.quant_type or path.stem, recipe if isinstance(recipe, str) else path.name)
        named = [replace(file, recipe=recipe) for recipe in (file.recipe, path.name, str(path))]
        free = [one for one in named if one.name not in found]
        if not free or path in [other.path for other in found.values()]:
            raise UsageError(f"{path} is named twice", "Name each file once.")
        found[free[0].name] = free[0]
    return list(found.values())
