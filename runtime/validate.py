"""What is checked of a file before llama.cpp sees it: a malformed one can make the C library end the whole process."""

from pathlib import Path
from typing import Any

from dgpt2_quant.quantize.errors import GGUFError
from dgpt2_quant.quantize.gguf_file import GGUFHeader, read_header

_SIZES = {
    "gpt2.block_count": 512,  # llama.cpp's LLAMA_MAX_LAYERS
    "gpt2.context_length": 1 << 20,
    "gpt2.embedding_length": 1 << 16,
    "gpt2.feed_forward_length": 1 << 18,
    "gpt2.attention.head_count": 1 << 10,
}
# llama.cpp reads many more (expert_count, rope.scaling.type, attention.key_length ...) for every architecture, and
# ends the process on values that do not fit; those beside `_SIZES` were tried out
_KNOWN = {*_SIZES, "gpt2.attention.layer_norm_epsilon", "gpt2.attention.head_count_kv", "gpt2.vocab_size"}
_MAX_TOKENS = 1 << 22


def check_model_file(path: Path) -> GGUFHeader:
    """Reads the head of a GPT-2 GGUF and checks that its parts agree.

    Raises `GGUFError` that names what is wrong.
    """
    header = read_header(path)
    metadata = header.metadata
    if (architecture := metadata.get("general.architecture")) != "gpt2":
        raise _refused(path, f"its architecture is {architecture!r}; this runtime is for gpt2")
    if (kind := metadata.get("general.type", "model")) != "model":
        raise _refused(path, f"it is a {kind!r}, not a model")
    for key, largest in _SIZES.items():
        _check_size(path, key, metadata.get(key), largest)
    for key in metadata:
        if key.startswith("gpt2.") and key not in _KNOWN:
            raise _refused(path, f"it has the key {key!r}, which is none of a GPT-2")
    epsilon = metadata.get("gpt2.attention.layer_norm_epsilon")
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise _refused(path, f"its gpt2.attention.layer_norm_epsilon is {epsilon!r}")
    if metadata["gpt2.embedding_length"] % metadata["gpt2.attention.head_count"]:
        raise _refused(path, "its heads do not divide its width")
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise _refused(path, f"its tokenizer is {metadata.get('tokenizer.ggml.model')!r}, not gpt2")
    _check_vocabulary(path, metadata.get("tokenizer.ggml.tokens"))
    _check_tensors(header)
    return header


def expected_shapes(metadata: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by the file's own sizes; `output.weight` may be missing (tied to the embedding)."""
    width, inner = metadata["gpt2.embedding_length"], metadata["gpt2.feed_forward_length"]
    vocabulary = metadata["tokenizer.ggml.tokens"]
    vocabulary = vocabulary if isinstance(vocabulary, int) else len(vocabulary)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, width),
        "position_embd.weight": (metadata["gpt2.context_length"], width),
        "output_norm.weight": (width,),
        "output_norm.bias": (width,),
        "output.weight": (vocabulary, width),
    }
    linear = {
        "attn_qkv": (3 * width, width),
        "attn_output": (width, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    for block in range(metadata["gpt2.block_count"]):
        for part in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{block}.{part}.weight"] = shapes[f"blk.{block}.{part}.bias"] = (width,)
        for part, shape in linear.items():
            shapes[f"blk.{block}.{part}.weight"] = shape
            shapes[f"blk.{block}.{part}.bias"] = shape[:1]
    return shapes


def _check_vocabulary(path: Path, tokens: Any) -> None:
    if not isinstance(tokens, list) or not all(isinstance(text, str) for text in tokens):
        raise _refused(path, "its tokenizer.ggml.tokens is no list of texts")
    _check_size(path, "number of tokens", len(tokens), _MAX_TOKENS)
    # llama.cpp ends the process when two are the same, as it reads them: up to a zero byte, and the empty ones renamed
    texts = {text.partition("\0")[0] or f"[EMPTY_{index}]" for index, text in enumerate(tokens)}
    if len(texts) != len(tokens):
        raise _refused(path, f"{len(tokens) - len(texts)} of its {len(tokens)} tokens have the text of another one")


def _check_tensors(header: GGUFHeader) -> None:
    expected = expected_shapes(header.metadata)
    for name, shape in expected.items():
        tensor = header.tensors.get(name)
        if tensor is None:
            if name == "output.weight":
                continue
            raise _refused(header.path, f"it has no tensor {name!r}")
        if tensor.shape != shape:
            raise _refused(header.path, f"tensor {name!r} has the shape {list(tensor.shape)}, not {list(shape)}")
        if len(shape) == 1 and tensor.type.name != "F32":
            raise _refused(header.path, f"tensor {name!r} is {tensor.type.name}; biases and norms are F32")
    for name in header.tensors:
        if name not in expected:
            raise _refused(header.path, f"it has the tensor {name!r}, which llama.cpp's GPT-2 does not know")


def _check_size(path: Path, key: str, value: Any, largest: int) -> None:
    if type(value) is not int or not 1 <= value <= largest:
        raise _refused(path, f"its {key} is {value!r}, not 1 to {largest}")


def _refused(path: Path, why: str) -> GGUFError:
    return GGUFError(f"{path} can not be run: {why}", "Make it again with `dgpt2-quant convert`.")
