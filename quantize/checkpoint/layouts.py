"""The names under which programs save the tensors of a GPT-2. Another program's names are one more row of `LAYOUTS`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dgpt2_quant.core.errors import CheckpointError

from .safetensors_file import StoredTensor

# modules that wrap others: a compiler, FSDP, activation checkpointing, DeepSpeed
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_ADAPTER = re.compile(r"\.(?:lora_\w+|base_layer|lora_embedding_\w|modules_to_save)\b")
_QUANTIZED = re.compile(r"\.(?:qweight|qzeros|g_idx|SCB|absmax|quant_state|weight_format)\b")


@dataclass(frozen=True)
class Layout:
    """A program's names, without prefix. `outside` and `in_block` map llama.cpp's names to them."""

    programs: str
    embedding: str  # the tensor that the layout is recognized by; what precedes it is the prefix
    outside: Mapping[str, str]
    block: str
    in_block: Mapping[str, str]
    head: str
    buffers: re.Pattern[str]  # tensors that are not weights, such as causal masks

    def key(self, name: str) -> str:
        """The checkpoint's name of llama.cpp's tensor `name`."""
        if name == "output.weight":
            return self.head
        if name in self.outside:
            return self.outside[name]
        _, number, part, kind = name.split(".")
        return f"{self.block.format(number)}.{self.in_block[part]}.{kind}"


LAYOUTS = (
    Layout(
        "Transformers, nanoGPT, minGPT",
        "wte.weight",
        {
            "output_norm.bias": "ln_f.bias",
            "output_norm.weight": "ln_f.weight",
            "position_embd.weight": "wpe.weight",
            "token_embd.weight": "wte.weight",
        },
        "h.{}",
        {
            "attn_norm": "ln_1",
            "attn_output": "attn.c_proj",
            "attn_qkv": "attn.c_attn",
            "ffn_down": "mlp.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
        },
        "lm_head.weight",
        re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),  # `h.0.attn.c_attn.bias` is a weight
    ),
)


@dataclass(frozen=True)
class NamedTensors:
    """A checkpoint's tensors under the layout's names. `original` has the names in the files."""

    layout: Layout
    tensors: Mapping[str, StoredTensor]
    original: Mapping[str, str]
    prefix: str

    def shown(self, key: str) -> str:
        """The name in the files, or what it would be there."""
        return self.original.get(key, key if key == self.layout.head else self.prefix + key)


def without_wrappers(key: str) -> str:
    """The name without the modules that a compiler or a distributed run puts around others, and `module.` in front."""
    key = _WRAPPERS.sub("", key)
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return key


def name_tensors(source: Path, tensors: Mapping[str, StoredTensor]) -> NamedTensors:
    """Recognizes the layout and removes prefixes. Raises `CheckpointError` if no layout fits."""
    if adapted := next((key for key in tensors if _ADAPTER.search(key)), None):
        raise CheckpointError(
            f"{source} has the tensor {adapted!r}: PEFT's adapter is not merged",
            "Merge it and save again: `model = model.merge_and_unload()`, `model.save_pretrained(folder)`.",
        )
    if quantized := next((key for key in tensors if _QUANTIZED.search(key)), None):
        raise CheckpointError(
            f"{source} has the tensor {quantized!r}: its weights are already quantized", "Convert the original model."
        )
    for layout in LAYOUTS:
        found = [key for key in map(without_wrappers, tensors) if f".{key}".endswith(f".{layout.embedding}")]
        if len(found) > 1:
            raise CheckpointError(
                f"{source} has two embeddings, {found[0]!r} and {found[1]!r}: two models in one file",
                "Save one of them alone.",
            )
        if found:
            return _without_prefix(source, tensors, layout, found[0].removesuffix(layout.embedding))
        if (prefix := _prefix_without_embedding(layout, tensors)) is not None:
            raise missing_tensor(source, prefix + layout.embedding)
    shown = ", ".join(list(tensors)[:3])
    raise CheckpointError(
        f"{source} has none of the tensors that a GPT-2 has; it begins with {shown}",
        "llama.cpp's convert_hf_to_gguf.py converts the other architectures that llama.cpp has.",
    )


def missing_tensor(source: Path, name: str, strange: str | None = None) -> CheckpointError:
    """The error for a tensor that every GPT-2 of these sizes has; `strange` is one in the file that a GPT-2 lacks."""
    if strange is None:
        hint = "The weights are incomplete: download or save them again."
        return CheckpointError(f"{source} lacks the tensor {name!r}, which its sizes imply", hint)
    return CheckpointError(
        f"{source} lacks the tensor {name!r}, and has {strange!r}, which a GPT-2 lacks",
        "The weights are incomplete, or have the names of another program: save them with `save_pretrained()`.",
    )


def _prefix_without_embedding(layout: Layout, tensors: Mapping[str, StoredTensor]) -> str | None:
    """The prefix of another tensor of the layout; None if there is none."""
    endings = [*layout.outside.values(), layout.key("blk.0.attn_qkv.weight")]
    for key in map(without_wrappers, tensors):
        for ending in endings:
            if f".{key}".endswith(f".{ending}"):
                return key.removesuffix(ending)
    return None


def _without_prefix(source: Path, tensors: Mapping[str, StoredTensor], layout: Layout, prefix: str) -> NamedTensors:
    outer = prefix.removesuffix("transformer.")
    named: dict[str, StoredTensor] = {}
    original: dict[str, str] = {}
    for key, tensor in tensors.items():
        short = without_wrappers(key)
        short = short.removeprefix(prefix) if short.startswith(prefix) else short.removeprefix(outer)
        if short in named:
            raise CheckpointError(f"{source} has the tensor {short!r} twice, as {original[short]!r} and as {key!r}")
        named[short], original[short] = tensor, key
    return NamedTensors(layout, named, original, prefix)
