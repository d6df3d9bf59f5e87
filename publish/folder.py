"""The files of a release next to the GGUF files and the card: checksums, Ollama's settings, Git LFS, writing."""

import json
from collections.abc import Iterable
from pathlib import Path

from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.errors import ResultError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.checkpoint.folder import file_sha256

CARD, BENCH, SUMS, IMATRIX, LICENSE = "README.md", "bench.json", "SHA256SUMS", "imatrix.gguf", "LICENSE"
_ATTRIBUTES = "*.gguf filter=lfs diff=lfs merge=lfs -text\n*.png filter=lfs diff=lfs merge=lfs -text\n"


def fixed_files(gguf: Path) -> dict[str, str]:
    """Ollama's `template` and `params` (https://huggingface.co/docs/hub/ollama), and `.gitattributes`.

    The template passes the prompt on unchanged. Without it programs put a chat template around a base model.
    """
    metadata = read_header(gguf).metadata
    end = metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.eos_token_id"]]
    params = {"num_ctx": metadata["gpt2.context_length"], "stop": [end]}
    return {
        "template": "{{ .Prompt }}",
        "params": json.dumps(params, ensure_ascii=False) + "\n",
        ".gitattributes": _ATTRIBUTES,
    }


def write(path: Path, content: str | bytes) -> bool:
    """Writes a file unless it has this content already; returns whether it was written. Raises `OutputError`."""
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == data:
        return False
    with output_file(path, overwrite=True) as file:
        file.write(data)
    return True


def sums_text(folder: Path, names: Iterable[str]) -> str:
    """`SHA256SUMS` in the format of sha256sum."""
    return "".join(f"{file_sha256(folder / name)}  {name}\n" for name in sorted(names))


def read_sums(folder: Path) -> dict[str, str]:
    """The hashes by file name; empty without `SHA256SUMS`. Raises `ResultError` for a broken one."""
    path = folder / SUMS
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read: {error}", "Make the release again.") from error
    found = {}
    for number, line in enumerate(lines, 1):
        sha256, separator, name = line.partition("  ")
        inside = name and not Path(name).is_absolute() and ".." not in Path(name).parts
        if len(sha256) != 64 or not separator or not inside:
            raise ResultError(f"{path}, line {number}, is not a checksum: {line[:80]!r}", "Make the release again.")
        found[name] = sha256
    return found
