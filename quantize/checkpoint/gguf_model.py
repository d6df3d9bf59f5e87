"""A GGUF file as the source of a conversion: checks it, and reads its tensors and metadata.

As in llama-quantize, all metadata are kept, and tensors that no recipe changes keep their type.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import GGUFError, UsageError
from dgpt2_quant.core.ggml import dequantize
from dgpt2_quant.core.gguf_file import GGUFHeader, TensorInfo, encode_value, read_header, require_file
from dgpt2_quant.core.gpt2_gguf import MEANS_GPT2, SPLIT_AS_GPT2, check_begin_and_end, check_gpt2, check_tokens
from dgpt2_quant.core.head import head_of
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.read_at import read_at

from .folder import file_sha256
from .metadata import ROLE_KEYS, chat_templates, is_quant_type_key
from .model_name import name_of_file
from .rows import BlockReader, RowReader, from_bfloat16
from .tokenizer import Tokenizer, TokenType

_SOURCE = "dgpt2_quant.source.sha256"
_PRE = "tokenizer.ggml.pre"
_COMPARED_AT_ONCE = 1 << 24  # bytes


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file."""

    path: Path
    info: TensorInfo

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def label(self) -> str:
        return repr(self.info.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def stored(self) -> TensorType:
        return self.info.type

    def read(self) -> npt.NDArray[np.floating[Any]]:
        """Reads the tensor as float32, or float16 as stored. Raises `GGUFError` for a scale that is not finite."""
        return self.reader()(0, self.rows).reshape(self.shape)

    def reader(self) -> RowReader:
        """Reads and decodes rows, called with (first row, number of rows)."""
        read_blocks = self.block_reader()
        return lambda first, rows: self._decode(read_blocks(first, rows))

    def block_reader(self) -> BlockReader:
        """Reads encoded rows, called with (first row, number of rows). Raises `CheckpointError` on read errors."""
        row_bytes = self.info.nbytes // self.rows

        def read_blocks(first: int, rows: int) -> npt.NDArray[np.uint8]:
            data = np.empty((rows, row_bytes), np.uint8)
            read_at(self.path, self.info.start + first * row_bytes, data.reshape(-1).data)
            return data

        return read_blocks

    @property
    def rows(self) -> int:
        """The number of rows; a vector is one row."""
        return prod(self.shape[:-1])

    def _decode(self, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.floating[Any]]:
        if self.stored is TensorType.F16:
            return blocks.view(np.float16)
        if self.stored is TensorType.BF16:
            return from_bfloat16(blocks.view(np.uint16))
        return dequantize(self.label, blocks, self.stored, (len(blocks), self.shape[-1]))


class GGUFModel:
    """A GGUF file as a source of conversions."""

    def __init__(self, name: str | None, header: GGUFHeader) -> None:
        """Without `name`, the file's name is used, and `general.name` in the metadata is kept."""
        self.name = name or name_of_file(header.path.stem)
        self._names = {f"general.{key}": encode_value(name) for key in ("name", "basename")} if name else {}
        self.sizes = Hyperparameters.from_metadata(header.metadata)
        self._header = header
        tensors = {name: GGUFTensor(header.path, info) for name, info in header.tensors.items()}
        tied = "output.weight" not in tensors or _same(tensors["output.weight"], tensors["token_embd.weight"])
        self.tensors = [tensors[name] for name in self.sizes.shapes(tied=tied)]

    def sha256(self) -> str:
        return file_sha256(self._header.path)

    def origin(self) -> str:
        """The checkpoint's hash, if the file states it (unchecked); else the hash of the file."""
        return str(self._header.metadata.get(_SOURCE) or self.sha256())

    def metadata(self, sha256: str, type_metadata: dict[str, Any]) -> dict[str, Any]:
        """The file's metadata, in order, with `type_metadata` in place of the former quant type's."""
        kept = {key: value for key, value in self._header.encoded.items() if not is_quant_type_key(key)}
        kept.pop("general.alignment", None)  # of this file; written ones have the usual one
        if was := self._quantized_as:
            type_metadata = {**type_metadata, "dgpt2_quant.requantized_from": was}
        if _SOURCE not in kept:
            type_metadata = {**type_metadata, _SOURCE: sha256}
        keys = [key for key in self._header.encoded if key in kept or is_quant_type_key(key)]
        place = next((key for key in keys if is_quant_type_key(key)), None)
        before = keys[: keys.index(place)] if place else [key for key in kept if not key.startswith("tokenizer.")]
        first = {key: kept[key] for key in before}
        found = first | type_metadata | {key: value for key, value in kept.items() if key not in first}
        found |= self._names
        # without the key llama.cpp would split texts in another way
        return {**found, _PRE: "gpt-2"} if self.pre_tokenizer() in MEANS_GPT2 else found

    def pre_tokenizer(self) -> str:
        """The name of the pre-tokenizer, empty without one. Raises `GGUFError` if it differs from GPT-2's."""
        pre = self._header.metadata.get(_PRE, "")
        if pre not in SPLIT_AS_GPT2 and pre not in MEANS_GPT2:
            raise GGUFError(
                f"{self._header.path}: tokenizer.ggml.pre is {pre!r}, which does not split texts as GPT-2 does",
                "Convert the original checkpoint instead.",
            )
        return str(pre)

    def tokenizer(self) -> Tokenizer:
        metadata = read_header(self._header.path).metadata  # includes 100,000 strings, which a conversion does not need
        self.pre_tokenizer()
        tokens = metadata["tokenizer.ggml.tokens"]
        types = metadata.get("tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens))
        bos, eos = (metadata.get(f"tokenizer.ggml.{name}_token_id", 0) for name in ("bos", "eos"))
        others = {role: metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in ROLE_KEYS.items()}
        add_bos, add_eos = (bool(metadata.get(f"tokenizer.ggml.add_{name}_token")) for name in ("bos", "eos"))
        return Tokenizer(
            tokens,
            types,
            metadata["tokenizer.ggml.merges"],
            bos,
            eos,
            {role: number for role, number in others.items() if number is not None},
            add_bos,
            add_eos,
            chat_templates(metadata),
        )

    @cached_property
    def _quantized_as(self) -> str | None:
        quantized = any(tensor.stored.is_quantized for tensor in self.tensors)
        before = self._header.metadata.get("dgpt2_quant.requantized_from")
        return (self._header.quant_type or "an unknown type") if quantized else before


def open_gguf_model(
    path: Path, *, revision: str | None = None, allow_requantize: bool = False, name: str | None = None
) -> GGUFModel:
    """Opens and checks a GGUF file of a GPT-2.

    Raises `ModelNotFoundError`, `GGUFError` for a file that is not a valid GPT-2, and `UsageError` for a quantized one
    (without `allow_requantize`) or if a revision is given.
    """
    if revision is not None:
        raise UsageError(f"`revision` needs a Hub name; {path} is a file", "Omit `revision`.")
    path = require_file(path)
    header = read_header(path, arrays=False)
    if header.metadata.get("split.count", 1) != 1:
        raise GGUFError(f"{path} is one of several parts", "Merge them with `llama-gguf-split --merge`.")
    # the same checks as before a file is run: the result of the conversion must pass them
    check_gpt2(header)
    check_begin_and_end(header)
    full = read_header(path)
    check_tokens(full)
    try:
        head_of(full.metadata, full.metadata["gpt2.embedding_length"])
    except ValueError as error:
        raise GGUFError(f"{path}: {error}", "Convert the original checkpoint instead.") from error
    model = GGUFModel(name, header)
    model.pre_tokenizer()
    quantized = next((tensor for tensor in model.tensors if tensor.stored.is_quantized), None)
    if quantized and not allow_requantize:
        raise UsageError(
            f"{path} is already quantized ({quantized.label} is {quantized.stored.name}) and would lose quality again",
            "Convert the original checkpoint, or an F32 or F16 file of it; or set `allow_requantize`.",
        )
    return model


def _same(head: GGUFTensor, embedding: GGUFTensor) -> bool:
    if head.stored is not embedding.stored:
        return False
    parts = [np.empty(min(_COMPARED_AT_ONCE, head.info.nbytes), np.uint8) for _ in range(2)]
    for begin in range(0, head.info.nbytes, _COMPARED_AT_ONCE):
        size = min(_COMPARED_AT_ONCE, head.info.nbytes - begin)
        for tensor, part in zip((head, embedding), parts, strict=True):
            read_at(tensor.path, tensor.info.start + begin, part[:size].data)
        if not np.array_equal(parts[0][:size], parts[1][:size]):
            return False
    return True
