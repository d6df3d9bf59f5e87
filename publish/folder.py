"""Small files of a release: checksums, Ollama's settings, Git attributes; how they are read and written."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.errors import ResultError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.checkpoint.folder import file_sha256

CARD, BENCH, SUMS, IMATRIX, LICENSE = "README.md", "bench.json", "SHA256SUMS", "imatrix.gguf", "LICENSE"
_NO_MODEL = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")  # in names of files that llama.cpp ignores
_LARGEST_TEXT = 16 << 20  # bytes; a card or checksums take some KB
# without the first line, git's core.autocrlf would change the texts, and so their checksums
_ATTRIBUTES = "* -text\n*.gguf filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"


def fixed_files(gguf: Path) -> dict[str, str]:
    """Ollama's `template` and `params` (https://huggingface.co/docs/hub/ollama), and `.gitattributes`.

    The template passes the prompt on unchanged; without it programs apply a chat template to a base model. For a model
    with a chat template it is left out, so that programs use that one.
    """
    metadata = read_header(gguf).metadata
    params: dict[str, Any] = {"num_ctx": metadata.get("gpt2.context_length")}
    if "tokenizer.ggml.eos_token_id" in metadata:
        params["stop"] = [metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.eos_token_id"]]]
    template = {} if "tokenizer.chat_template" in metadata else {"template": "{{ .Prompt }}"}
    return {**template, "params": json.dumps(params, ensure_ascii=False) + "\n", ".gitattributes": _ATTRIBUTES}


def found_by_type(names: Iterable[str], quant_type: str) -> str | None:
    """The file that llama.cpp takes for `-hf REPO:TYPE`: the first whose name has the type (`find_best_model` in its
    common/download.cpp). So `:F16` finds BF16, and `:Q4_0` any file of a model that is named gpt2-q4_0-mine."""
    models = [name for name in sorted(names) if not any(word in name for word in _NO_MODEL)]
    return next((name for name in models if re.search(f"{quant_type}[.-]", name, re.IGNORECASE)), None)


def write(path: Path, content: str | bytes) -> bool:
    """Writes a file unless it has this content already; returns whether it was written. Raises `OutputError`."""
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == data:
        return False
    with output_file(path, overwrite=True) as file:
        file.write(data)
    return True


def read_text(path: Path) -> str:
    """The text of a file of a release. Raises `ResultError` for one that cannot be read or is too large."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would never end
            raise ResultError(f"{path} is not a file", "Make the release again.")
        with path.open("rb") as file:
            content = file.read(_LARGEST_TEXT + 1)
        if len(content) > _LARGEST_TEXT:
            raise ResultError(f"{path} is too large: more than {_LARGEST_TEXT >> 20} MiB", "Make the release again.")
        return content.decode("utf-8")
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read: {error}", "Make the release again.") from error


def sums_text(folder: Path, names: Iterable[str]) -> str:
    """`SHA256SUMS` in the format of sha256sum."""
    return "".join(f"{file_sha256(folder / name)}  {name}\n" for name in sorted(names))


def read_sums(folder: Path) -> dict[str, str]:
    """The hashes by file name; empty without `SHA256SUMS`. Raises `ResultError` for a broken one."""
    path = folder / SUMS
    if not path.exists():
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        sha256, separator, name = line.partition("  ")
        inside = name and not Path(name).is_absolute() and ".." not in Path(name).parts
        if len(sha256) != 64 or not separator or not inside or name in found:
            raise ResultError(f"{path}, line {number}, is not a checksum: {line[:80]!r}", "Make the release again.")
        found[name] = sha256
    return found
