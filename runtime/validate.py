"""What is checked of a file before llama.cpp sees it: a malformed one can make the C library end the whole process."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import GGUFError
from dgpt2_quant.core.gguf_file import GGUFHeader, read_header
from dgpt2_quant.core.gpt2_gguf import SPLIT_AS_GPT2, check_begin_and_end, check_gpt2, check_tokens
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import Bits, TensorType
from dgpt2_quant.runtime.native.model_context import MAX_BATCH

# A context may take that many bytes, and that many for each byte of weights. It is beyond any real model (GPT-2 XL at
# one bit a weight: 3 for each), and keeps a few kilobytes that claim a million positions from asking for gigabytes.
_ALWAYS_ALLOWED, _ALLOWED_PER_BYTE = 256 << 20, 8
_MOST_BEHIND = 1 << 16  # bytes behind the last tensor, where padding would be
_PIECE = 1 << 19  # bytes that are read and looked at in one go: they stay in the processor's cache


def check_model_file(path: Path) -> GGUFHeader:
    """Reads a GPT-2 GGUF; checks that the parts of its head agree and that llama.cpp can compute with its tensors.

    Raises `GGUFError` that names what is wrong.
    """
    header = read_header(path)
    check_gpt2(header)
    check_tokens(header)
    for tensor in header.tensors.values():
        if len(tensor.shape) == 1 and tensor.type.name != "F32":
            raise _refused(
                path,
                f"tensor {tensor.name!r} is {tensor.type.name}; biases and norms are F32",
                f"Make it again with `dgpt2-quant convert {path.name} --type ...`.",
            )
    check_begin_and_end(header)
    _check_tokenizer(header)
    _check_end(header)
    _check_memory(header)
    _check_values(header)
    return header


def _check_tokenizer(header: GGUFHeader) -> None:
    """llama.cpp has answers of its own to what is missing here, and they are not GPT-2's."""
    pre = header.metadata.get("tokenizer.ggml.pre")
    if pre not in SPLIT_AS_GPT2:
        again = f"`dgpt2-quant convert {header.path.name} --type ...` makes one of it that can be run."
        raise _refused(header.path, f"its tokenizer.ggml.pre is {pre!r}, not gpt-2", again)


def _check_end(header: GGUFHeader) -> None:
    """Where llama.cpp maps the file, it maps and reads all of it."""
    end = max(tensor.start + tensor.nbytes for tensor in header.tensors.values())
    if header.file_bytes > end + _MOST_BEHIND:
        raise _refused(
            header.path,
            f"{header.file_bytes - end} bytes lie behind its last tensor",
            "Is it the file that it should be? Make it again with `dgpt2-quant convert`.",
        )


def _check_memory(header: GGUFHeader) -> None:
    sizes = Hyperparameters.from_metadata(header.metadata)
    weights = sum(tensor.nbytes for tensor in header.tensors.values())
    needed, most = context_bytes(sizes), _ALWAYS_ALLOWED + _ALLOWED_PER_BYTE * weights
    if needed > most:
        raise _refused(
            header.path,
            f"with {sizes.context} positions, {sizes.heads} heads and {sizes.layers} layers a context would take "
            f"{needed >> 20} MiB, and for {weights} bytes of weights it is {most >> 20} at the most",
            "Is it the file that it should be? Make it again with `dgpt2-quant convert`.",
        )


def context_bytes(sizes: Hyperparameters) -> int:
    """About what llama.cpp allocates for a text of all positions, which may take two caches (depth_context.py)."""
    batch, cells = min(sizes.context, MAX_BATCH), sizes.context
    cache = 2 * 2 * 2 * sizes.layers * cells * sizes.width  # each of keys and values in F16
    scores = 4 * batch * cells * (sizes.heads + 1)  # and the mask
    rows = 4 * batch * (sizes.vocabulary + 2 * sizes.inner + 8 * sizes.width)
    graph = sizes.layers << 21  # measured; few of its pages are ever touched
    return cache + scores + rows + graph


def _check_values(header: GGUFHeader) -> None:
    """Reads all tensors once: one infinity or NaN spreads over every logit, and no sampler is made for that.

    The file is not mapped: one that another process cuts short would end this one with a bus error.
    """
    buffer = np.empty(_PIECE, np.uint8)
    try:
        with header.path.open("rb", buffering=0) as file:
            for tensor in header.tensors.values():
                file.seek(tensor.start)
                size = _PIECE // tensor.type.block_bytes * tensor.type.block_bytes
                for done in range(0, tensor.nbytes, size):
                    piece = buffer[: min(size, tensor.nbytes - done)]
                    if file.readinto(piece.data) != len(piece):
                        raise _refused(header.path, f"it ends within tensor {tensor.name!r}", "Is it being written?")
                    if not all_finite(piece, tensor.type):
                        what = "scale" if tensor.type.is_quantized else "value"
                        raise _refused(
                            header.path,
                            f"tensor {tensor.name!r} has a {what} that is not finite (infinity or NaN)",
                            "The file is damaged: fetch it again, or make it again with `dgpt2-quant convert`.",
                        )
    except OSError as error:
        raise GGUFError(f"{header.path} can not be read: {error.strerror}", "Is the path right?") from error


def all_finite(blocks: npt.NDArray[np.uint8], tensor_type: TensorType) -> bool:
    """Whether the bytes of whole blocks have neither a value nor a scale that is infinite or no number."""
    return not any(_has_full(exponent, blocks, tensor_type.block_bytes) for exponent in tensor_type.exponents)


def _has_full(exponent: Sequence[Bits], blocks: npt.NDArray[np.uint8], block_bytes: int) -> bool:
    """Whether in any of the blocks all bits of an exponent are set."""
    full: npt.NDArray[np.bool_] | None = None
    for at, size, mask in exponent:
        words = np.ndarray((len(blocks) // block_bytes,), f"<u{size}", blocks.data, at, (block_bytes,))
        bits = words & words.dtype.type(mask)
        if bits.max() < mask:  # the fast way out, which nearly all take
            return False
        full = bits == mask if full is None else full & (bits == mask)
    return full is not None and bool(full.any())


def _refused(path: Path, why: str, hint: str) -> GGUFError:
    return GGUFError(f"{path} can not be run: {why}", hint)
