"""Saves the recipe that a search found, even if its file cannot be written.

A search takes minutes, and its recipe has some kilobytes. So the recipe is saved first, next to the file's place, or
in the cache if that fails.
"""

import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dgpt2_quant.core.atomic_file import refuse_existing
from dgpt2_quant.core.cache_folder import cache_folder
from dgpt2_quant.core.errors import OutputError
from dgpt2_quant.quantize.recipes.recipe_file import Recipe

_log = logging.getLogger(__name__)


def recipe_path(path: Path) -> Path:
    """The path of the recipe of a searched file."""
    return path.with_name(f"{path.name}.recipe.json")


def refuse_existing_search(path: Path, overwrite: bool) -> None:
    """As `refuse_existing`, for the file of a search and its recipe."""
    refuse_existing(path, overwrite)
    try:
        refuse_existing(recipe_path(path), overwrite)
    except OutputError as error:
        hint = "Convert with it as `recipe`, or search again with `overwrite`."
        raise OutputError(error.message, hint if recipe_path(path).is_file() else error.hint) from error


@contextmanager
def saved_recipe(recipe: Recipe, path: Path, overwrite: bool) -> Iterator[None]:
    """Saves the recipe of the file `path`. Warns where it is if the block, which writes the file, fails."""
    saved, why = recipe_path(path), None
    try:
        recipe.write(saved, overwrite=overwrite)
    except OutputError as error:
        why, saved = error, cache_folder() / "recipes" / f"{path.name}.{secrets.token_hex(6)}.recipe.json"
        try:
            recipe.write(saved)
        except OutputError:  # then it is kept in the log
            _log.warning("the recipe cannot be saved; it is: %s", json.dumps(recipe.to_json()))
            raise error from None
    try:
        if why:
            raise why
        yield
    except BaseException:
        _log.warning("the recipe is saved; `recipe` %s converts without another search", saved)
        raise
