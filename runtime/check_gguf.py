"""Checks a GGUF file before llama.cpp loads it, because a malformed one can end the process."""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import GGUFError
from dgpt2_quant.core.gguf_file import GGUFHeader, read_header
from dgpt2_quant.core.gpt2_gguf import MEANS_GPT2, SPLIT_AS_GPT2, check_begin_and_end, check_gpt2, check_tokens
from dgpt2_quant.core.head import Head, head_of
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import QUANT_TYPES, Bits, TensorType
from dgpt2_quant.runtime.native.context import MAX_BATCH

# The byte limit of a context: a fixed limit, and a limit for each byte of weights. No real model needs more
# (GPT-2 XL at one bit per weight: 3 for each), and a file of a few kilobytes cannot claim gigabytes.
_ALWAYS_ALLOWED, _ALLOWED_PER_BYTE = 256 << 20, 8
_MAX_PADDING = 1 << 16  # bytes after the last tensor
_PIECE = 1 << 19  # bytes read and checked at a time: they fit the processor's cache
_ORIGINAL = "Convert the original checkpoint instead."
_log = logging.getLogger(__name__)


def check_model_file(path: Path) -> GGUFHeader:
    """Reads a GPT-2 GGUF file; checks that its header is consistent and that llama.cpp can compute with its tensors.

    Raises `GGUFError`.
    """
    header = read_header(path)
    check_gpt2(header)
    check_tokens(header)
    for tensor in header.tensors.values():
        if len(tensor.shape) == 1 and tensor.type.name != "F32":
            raise _refused(
                path,
                f"tensor {tensor.name!r} must be F32, like all biases and norms, not {tensor.type.name}",
                f"Convert it again with `dgpt2-quant convert {path.name} --type ...`.",
            )
    check_begin_and_end(header)
    _check_tokenizer(header)
    _check_end(header)
    _check_memory(header)
    _check_values(header)
    return header


def lacks_pre_tokenizer(header: GGUFHeader) -> bool:
    """Whether the file does not state how texts are split, like files from before May 2024.

    llama.cpp splits them with a pattern that is not GPT-2's, and overflows its stack on a long run of punctuation.
    """
    return not header.metadata.get("tokenizer.ggml.pre")


def read_head(header: GGUFHeader) -> Head | None:
    """The classification head of a checked file. Raises `GGUFError` for one that is not sound."""
    try:
        return head_of(header.metadata, Hyperparameters.from_metadata(header.metadata).width)
    except ValueError as error:
        raise _refused(header.path, str(error), "Convert the checkpoint again with `dgpt2-quant convert`.") from error


def _check_tokenizer(header: GGUFHeader) -> None:
    """Refuses other tokenizers, for which llama.cpp has defaults that are not GPT-2's."""
    quant_type = header.quant_type if header.quant_type in QUANT_TYPES else "TYPE"
    again = f"dgpt2-quant convert {shlex.quote(str(header.path))} -t {quant_type.lower()} -o NEW.gguf"
    if any(tensor.type.is_quantized for tensor in header.tensors.values()):
        again += " --allow-requantize"
    pre = header.metadata.get("tokenizer.ggml.pre")
    if lacks_pre_tokenizer(header):
        _log.warning(
            "%s has no tokenizer.ggml.pre: texts are split as GPT-2 splits them, but llama.cpp's programs split them"
            " otherwise; `%s` adds the key",
            header.path,
            again,
        )
    elif pre not in SPLIT_AS_GPT2:
        hint = (
            f"If its tokenizer is GPT-2's, write the file with the right key: `{again}`."
            if pre in MEANS_GPT2
            else _ORIGINAL
        )
        raise _refused(header.path, f"its tokenizer.ggml.pre is {pre!r}, not gpt-2", hint)


def _check_end(header: GGUFHeader) -> None:
    """Refuses data after the last tensor, and large gaps: llama.cpp maps and reads all of a file."""
    tensors = header.tensors.values()
    end, weights = max(tensor.start + tensor.nbytes for tensor in tensors), sum(tensor.nbytes for tensor in tensors)
    if end - weights > (most := _ALWAYS_ALLOWED + _ALLOWED_PER_BYTE * weights):
        alignment = header.metadata.get("general.alignment")
        raise _refused(
            header.path,
            f"with its alignment of {alignment}, {end - weights} bytes are before and between its tensors; at most"
            f" {most} are allowed",
            "Check that it is the right file, or convert it again with `dgpt2-quant convert`.",
        )
    if header.file_bytes > end + _MAX_PADDING:
        raise _refused(
            header.path,
            f"{header.file_bytes - end} bytes follow its last tensor; at most {_MAX_PADDING} are allowed",
            "Check that it is the right file, or convert it again with `dgpt2-quant convert`.",
        )


def _check_memory(header: GGUFHeader) -> None:
    sizes = Hyperparameters.from_metadata(header.metadata)
    weights = sum(tensor.nbytes for tensor in header.tensors.values())
    needed, most = context_bytes(sizes), _ALWAYS_ALLOWED + _ALLOWED_PER_BYTE * weights
    if needed > most:
        raise _refused(
            header.path,
            f"with {sizes.context} positions, {sizes.heads} heads and {sizes.layers} layers a context takes "
            f"{needed >> 20} MiB; for {weights} bytes of weights at most {most >> 20} MiB are allowed",
            "Check that it is the right file, or convert it again with `dgpt2-quant convert`.",
        )


def context_bytes(sizes: Hyperparameters) -> int:
    """About the memory that llama.cpp allocates for a text of all positions, with both caches of a DepthContext."""
    batch, cells = min(sizes.context, MAX_BATCH), sizes.context
    cache = 2 * 2 * 2 * sizes.layers * cells * sizes.width  # two caches of keys and values in F16
    scores = 4 * batch * cells * (sizes.heads + 1)  # and the mask
    rows = 4 * batch * (sizes.vocabulary + 2 * sizes.inner + 8 * sizes.width)
    graph = sizes.layers << 21  # measured; few of its pages are ever touched
    return cache + scores + rows + graph


def _check_values(header: GGUFHeader) -> None:
    """Refuses infinities and NaN: one spreads to every logit, and samplers cannot handle that.

    Reads all tensors. The file is not mapped, because a truncation by another process would cause a bus error.
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
                        raise _refused(
                            header.path,
                            f"it ends within tensor {tensor.name!r}",
                            "Wait until it is complete, or fetch it again.",
                        )
                    if not all_finite(piece, tensor.type):
                        what = "scale" if tensor.type.is_quantized else "value"
                        raise _refused(
                            header.path,
                            f"tensor {tensor.name!r} has a {what} that is not finite (infinity or NaN)",
                            "The file is damaged: download it again, or convert it again with `dgpt2-quant convert`.",
                        )
    except OSError as error:
        raise GGUFError(f"{header.path} cannot be read: {error.strerror}", "Check its permissions.") from error


def all_finite(blocks: npt.NDArray[np.uint8], tensor_type: TensorType) -> bool:
    """Whether whole blocks, given as bytes, have no infinite or NaN value or scale."""
    return not any(_has_full(exponent, blocks, tensor_type.block_bytes) for exponent in tensor_type.exponents)


def _has_full(exponent: Sequence[Bits], blocks: npt.NDArray[np.uint8], block_bytes: int) -> bool:
    """Whether any of the blocks has an exponent with all bits set."""
    full: npt.NDArray[np.bool_] | None = None
    for at, size, mask in exponent:
        words = np.ndarray((len(blocks) // block_bytes,), f"<u{size}", blocks.data, at, (block_bytes,))
        bits = words & words.dtype.type(mask)
        if bits.max() < mask:  # nearly always
            return False
        full = bits == mask if full is None else full & (bits == mask)
    return full is not None and bool(full.any())


def _refused(path: Path, why: str, hint: str) -> GGUFError:
    return GGUFError(f"{path} cannot be run: {why}", hint)
