"""What is checked of a file before llama.cpp sees it: a malformed one can make the C library end the whole process."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dgpt2_quant.quantize.errors import GGUFError
from dgpt2_quant.quantize.gguf_file import GGUFHeader, TensorInfo, read_header
from dgpt2_quant.quantize.gpt2_file import check_gpt2, check_tokens
from dgpt2_quant.quantize.quant_types import Bits

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
    _check_values(header)
    return header


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
                    if file.readinto(memoryview(piece)) != len(piece):
                        raise _refused(header.path, f"it ends within tensor {tensor.name!r}", "Is it being written?")
                    _check_piece(header.path, tensor, piece)
    except OSError as error:
        raise GGUFError(f"{header.path} can not be read: {error.strerror}", "Is the path right?") from error


def _check_piece(path: Path, tensor: TensorInfo, piece: npt.NDArray[np.uint8]) -> None:
    for exponent in tensor.type.exponents:
        if _is_full(exponent, piece, tensor.type.block_bytes):
            what = "scale" if tensor.type.is_quantized else "value"
            raise _refused(
                path,
                f"tensor {tensor.name!r} ({tensor.type.name}) has a {what} that is not finite (infinity or NaN)",
                "The file is damaged; fetch it again, or make it again with `dgpt2-quant convert`.",
            )


def _is_full(exponent: Sequence[Bits], piece: npt.NDArray[np.uint8], block_bytes: int) -> bool:
    """Whether in any block all bits of an exponent are set."""
    count = len(piece) // block_bytes
    full: npt.NDArray[np.bool_] | None = None
    for at, size, mask in exponent:
        words = np.ndarray((count,), f"<u{size}", piece.data, at, (block_bytes,))
        bits = words & words.dtype.type(mask)
        if bits.max() < mask:  # the fast way out, which nearly every piece takes
            return False
        full = bits == mask if full is None else full & (bits == mask)
    return full is not None and bool(full.any())


def _refused(path: Path, why: str, hint: str) -> GGUFError:
    return GGUFError(f"{path} can not be run: {why}", hint)
