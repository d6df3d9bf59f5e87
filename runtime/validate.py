"""What is checked of a file before llama.cpp sees it: a malformed one can make the C library end the whole process."""

from pathlib import Path

from dgpt2_quant.quantize.errors import GGUFError
from dgpt2_quant.quantize.gguf_file import GGUFHeader, read_header
from dgpt2_quant.quantize.gpt2_file import check_gpt2, check_tokens


def check_model_file(path: Path) -> GGUFHeader:
    """Reads the head of a GPT-2 GGUF and checks that its parts agree, and that llama.cpp can compute with them.

    Raises `GGUFError` that names what is wrong.
    """
    header = read_header(path)
    check_gpt2(header)
    check_tokens(header)
    for tensor in header.tensors.values():
        if len(tensor.shape) == 1 and tensor.type.name != "F32":
            raise GGUFError(
                f"{path} can not be run: tensor {tensor.name!r} is {tensor.type.name}; biases and norms are F32",
                f"Make it again with `dgpt2-quant convert {path.name} --type ...`.",
            )
    return header
