"""Files with pad tokens after the real ones, and the prompts that they are tested with."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.gguf_file import encode_header, padded, read_header
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.checkpoint.metadata import with_pad_tokens

# nine, in the manner of a model card's examples
WIDGET_PROMPTS = [
    "My name is Clara and I am",
    "Hello, my name is",
    "In the middle of the forest there stood",
    "The most important thing about a good soup is",
    "The meaning of happiness is",
    "She opened the letter and",
    "Once there lived a miller who",
    "The nurse said that the doctor",
    "Long ago, when wishing still helped,",
]


def with_embedding(source: Path, target: Path, kind: TensorType, blocks: npt.NDArray[np.uint8], pads: int) -> Path:
    """A copy of a file with another embedding, (rows, bytes of a row), of which the last `pads` are of pad tokens."""
    header, data = read_header(source), source.read_bytes()
    shapes = {name: (tensor.shape, tensor.type) for name, tensor in header.tensors.items()}
    bodies = {name: data[t.start : t.start + t.nbytes] for name, t in header.tensors.items()}
    width = header.tensors["token_embd.weight"].shape[1]
    shapes["token_embd.weight"], bodies["token_embd.weight"] = ((len(blocks), width), kind), blocks.tobytes()
    head = encode_header(with_pad_tokens(header.encoded, pads), shapes)
    target.write_bytes(head + b"".join(bodies[name].ljust(padded(len(bodies[name])), b"\0") for name in shapes))
    return target


def embedding(source: Path) -> npt.NDArray[np.float32]:
    """That of a file in F32."""
    tensor = read_header(source).tensors["token_embd.weight"]
    rows = np.fromfile(source, "<f4", tensor.nbytes // 4, offset=tensor.start).reshape(tensor.shape)
    return np.asarray(rows, np.float32)


def vector(source: Path, name: str) -> npt.NDArray[np.float32]:
    """A norm's weight or bias."""
    tensor = read_header(source).tensors[name]
    return np.asarray(np.fromfile(source, "<f4", tensor.nbytes // 4, offset=tensor.start), np.float32)
