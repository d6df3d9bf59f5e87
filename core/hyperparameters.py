"""GPT-2's hyperparameters, GGUF keys for them, and the tensor shapes that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# Layers: LLAMA_MAX_LAYERS in llama.cpp's src/llama-hparams.h. The others are larger than in any model, and small enough
# that no product of them overflows.
LARGEST = {
    "layers": 512,
    "context": 1 << 20,
    "width": 1 << 16,
    "inner": 1 << 18,
    "heads": 1 << 10,
    "vocabulary": 1 << 19,
}


@dataclass(frozen=True)
class Hyperparameters:
    """`context` positions, `width` of the residual stream, `inner` width of the MLP, `vocabulary` rows."""

    layers: int
    width: int
    heads: int
    inner: int
    context: int
    vocabulary: int
    norm_epsilon: float

    def shapes(self, *, tied: bool = True) -> dict[str, tuple[int, ...]]:
        """Each tensor's shape by llama.cpp's name, a matrix as (outputs, inputs), in the order of the file.

        This is the order in which llama-quantize walks a model (names sorted, blocks by number), because its mixes
        count tensors in that order. If `tied`, the embedding is also the output matrix.
        """
        width, inner = self.width, self.inner
        outside = {
            "output.weight": (self.vocabulary, width),
            "output_norm.bias": (width,),
            "output_norm.weight": (width,),
            "position_embd.weight": (self.context, width),
            "token_embd.weight": (self.vocabulary, width),
        }
        if tied:
            del outside["output.weight"]
        block = {
            "attn_norm.bias": (width,),
            "attn_norm.weight": (width,),
            "attn_output.bias": (width,),
            "attn_output.weight": (width, width),
            "attn_qkv.bias": (3 * width,),
            "attn_qkv.weight": (3 * width, width),
            "ffn_down.bias": (width,),
            "ffn_down.weight": (width, inner),
            "ffn_norm.bias": (width,),
            "ffn_norm.weight": (width,),
            "ffn_up.bias": (inner,),
            "ffn_up.weight": (inner, width),
        }
        return outside | {f"blk.{n}.{name}": shape for n in range(self.layers) for name, shape in block.items()}

    def padded(self, count: int) -> "Hyperparameters":
        """The same hyperparameters with `count` more rows in the vocabulary."""
        return replace(self, vocabulary=self.vocabulary + count)

    def to_metadata(self) -> dict[str, Any]:
        """The keys under `gpt2.`; the token table states the vocabulary's size."""
        return {key: getattr(self, field) for key, field in KEYS.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "Hyperparameters":
        """From a file's metadata, with the token table or its length. Raises `KeyError` for a missing key."""
        sizes = {field: metadata[key] for key, field in KEYS.items()}
        tokens = metadata["tokenizer.ggml.tokens"]
        return cls(**sizes, vocabulary=tokens if isinstance(tokens, int) else len(tokens))


# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
KEYS = {
    "gpt2.block_count": "layers",
    "gpt2.context_length": "context",
    "gpt2.embedding_length": "width",
    "gpt2.feed_forward_length": "inner",
    "gpt2.attention.head_count": "heads",
    "gpt2.attention.layer_norm_epsilon": "norm_epsilon",
}

PAD_MULTIPLE = 8  # rows that llama.cpp's repacked kernels process together


def pad_count(vocabulary: int, multiple: int = PAD_MULTIPLE) -> int:
    """The number of rows that fill the vocabulary to a multiple: 3 for 8,189."""
    return -vocabulary % multiple


def block_of(name: str) -> int | None:
    """The number of the block that a tensor belongs to; None outside the blocks."""
    return int(name.split(".")[1]) if name.startswith("blk.") else None


def matmul_weights(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The names of the matrices that activations are multiplied with: not the position table or an untied embedding."""
    looked_up = {"position_embd.weight", "token_embd.weight" if "output.weight" in shapes else ""}
    return [name for name, shape in shapes.items() if len(shape) == 2 and name not in looked_up]
