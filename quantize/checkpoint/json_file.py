"""Reads a JSON object from a file of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.file_kinds import HEAD_BYTES, other_kind


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file. Raises `CheckpointError` that names the file."""
    try:
        data = path.read_bytes()
        if found := other_kind(data[:HEAD_BYTES]):
            raise CheckpointError(f"{path} is {found[0]}", found[1])
        content = json.loads(data)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing", "A checkpoint folder contains config, weights and tokenizer."
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}", "Fetch or save it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object", "Fetch or save it again.")
    return content
