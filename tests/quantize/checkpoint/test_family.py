"""The family of GPT-2: checkpoints of other sizes, labs, languages and versions of Transformers.

Each is converted and compared: logits with `forward.py`, token ids with `AutoTokenizer`, and its warnings with those
that are expected. Layouts of a single feature are in test_layouts.py.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.calibration.numpy_gpt2 import from_gguf
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model
from safetensors.numpy import load_file
from tokenizers import ByteLevelBPETokenizer

from ...checkpoints import END_OF_TEXT, TOKENS, fast_tokenizer, make_checkpoint, write_json
from ..forward import forward
from ..pytorch_writer import Tensor, save_legacy, save_zip
from .test_layouts import TEXT, relative

SIZE = len(TOKENS)
END = SIZE - 1
TEXTS = [
    f"the man in then the{END_OF_TEXT} the an",
    "Der König aß 12345 Äpfel.\r\n\n  Король жил в старом замке;  国王住在古堡。 \U0001f451",
    "<s> the king </s><pad><|user|>a smile<mask> ",
    "",
]
GELU = "exact GELU (gelu); llama.cpp computes its tanh approximation"


@dataclass(frozen=True)
class Member:
    """A checkpoint: arguments of `make_checkpoint`, then a change of its files, and the parts of its warnings.

    `metadata` are keys of the converted file, without `tokenizer.ggml.` for those that have no dot.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    finish: Sequence[Callable[[Path], Any]] = ()
    warnings: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def as_pytorch(legacy: bool = False, half: bool = False) -> Callable[[Path], None]:
    """Replaces the weights by `pytorch_model.bin`, with the mask buffers as bytes."""

    def change(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        for name, data in state.items():
            if name.endswith(".attn.bias"):
                state[name] = data.astype(np.bool_ if half else np.uint8)
            elif half:
                state[name] = data.astype(np.float16)
        saved = {name: Tensor(data) for name, data in state.items()}
        saved["lm_head.weight"] = saved["transformer.wte.weight"]
        (save_legacy if legacy else save_zip)(folder / "pytorch_model.bin", saved)

    return change


def files(**contents: Any) -> Callable[[Path], None]:
    """Writes JSON files, whose names lack `.json`; None removes one."""

    def change(folder: Path) -> None:
        for name, content in contents.items():
            path = folder / f"{name}.json"
            path.unlink() if content is None else write_json(path, content)

    return change


def trained_tokenizer(folder: Path) -> None:
    """A byte-level BPE of German, Russian and Chinese, with RoBERTa's special tokens."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS[1:2] * 3, vocab_size=320, min_frequency=2, special_tokens=special)
    tokenizer.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    assert len(vocabulary) == 320
    assert any(len(token.encode()) > 4 for token in vocabulary if not token.isascii())
    write_json(folder / "special_tokens_map.json", dict(zip(ROBERTA, special, strict=True)))


ROBERTA = ["bos_token", "pad_token", "eos_token", "unk_token", "mask_token"]
NAMES = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
ADDED = {name: {"content": END_OF_TEXT, **FLAGS} for name in NAMES}
ONES = dict.fromkeys(["num_beams", "repetition_penalty", "length_penalty", "num_return_sequences", "temperature"], 1)
SUMMARY = {
    **{"summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True},
    **{"summary_type": "cls_index", "summary_use_proj": True, "initializer_range": 0.02},
    **{"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1},
}
LM_HEAD = {"architectures": ["GPT2LMHeadModel"]}
ONE_LABEL = {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
VERSION_2 = {
    **SUMMARY,
    **ONE_LABEL,
    **ONES,
    **{"finetuning_task": None, "is_decoder": False, "output_past": True, "pruned_heads": {}, "xla_device": None},
    **{"torchscript": False, "use_bfloat16": False, "output_attentions": False, "output_hidden_states": False},
    **{"do_sample": False, "max_length": 20, "top_k": 50, "top_p": 1.0, "pad_token_id": 0, "eos_token_ids": 0},
    **{"n_ctx": 64, "decoder_start_token_id": None, "is_encoder_decoder": False, "prefix": None},
}
TASKS = {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}
VERSION_4 = {
    **SUMMARY,
    **LM_HEAD,
    **{"reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True},
    **{"torch_dtype": "float32", "transformers_version": "4.44.2", "use_cache": True},
}
VERSION_5 = {**VERSION_4, "torch_dtype": None, "dtype": "float32", "transformers_version": "5.24.0"}
VERSION_5 |= {"add_cross_attention": False, "tie_word_embeddings": True, "n_inner": None, "pad_token_id": None}
GENERATION = {"_from_model_config": True, "bos_token_id": END, "eos_token_id": END, "transformers_version": "4.44.2"}
SETTINGS_5 = {
    **{"add_prefix_space": False, "backend": "tokenizers", **NAMES, "errors": "replace", "is_local": True},
    **{"local_files_only": False, "model_max_length": 10**30, "pad_token": None, "tokenizer_class": "GPT2Tokenizer"},
}
NOTHING_ADDED = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]}
NOTHING_ADDED |= {"pair": [{"Sequence": {"id": part, "type_id": 0}} for part in "AB"], "special_tokens": {}}
SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"  # tiktoken's
SPLITS = [{"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}]
SPLITS += [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]
CHAT = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
DIALOGPT = {**SUMMARY, **LM_HEAD, "n_ctx": 64, "task_specific_params": {"conversational": {"max_length": 1000}}}
CEREBRAS = {
    **{"activation_function": "gelu", "n_inner": 544, "n_positions": 128, "layer_norm_epsilon": 1e-5, **LM_HEAD},
    **{"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "use_cache": True, "initializer_range": 0.02},
    **{"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False},
}
USER, SMILE = {"content": "<|user|>", **FLAGS, "special": True}, {"content": "smile", **FLAGS, "special": False}
DECODER = {str(END): {"content": END_OF_TEXT, **FLAGS, "special": True}, str(SIZE): USER, str(SIZE + 1): SMILE}

FAMILY: dict[str, Member] = {
    "25 heads, as XL": Member({"layers": 3, "width": 200, "heads": 25}),
    "5 heads of 16": Member({"layers": 1, "width": 80, "heads": 5}),
    "17 heads of 64, as Cerebras-GPT 256M": Member({"layers": 1, "width": 1088, "heads": 17, "context": 32}),
    "DialoGPT": Member(
        {"masks": True, "config": DIALOGPT},
        [as_pytorch(half=True), files(tokenizer_config={"model_max_length": 1024}, generation_config=GENERATION)],
    ),
    "DialoGPT with a chat template": Member(
        {"masks": True, "config": DIALOGPT},
        [as_pytorch(legacy=True), files(tokenizer_config={"model_max_length": 1024, "chat_template": CHAT})],
        metadata={"tokenizer.chat_template": CHAT, "add_bos_token": False},
    ),
    "DialoGPT that states only eos": Member(
        {"config": DIALOGPT | {"bos_token_id": None}}, metadata={"bos_token_id": END, "eos_token_id": END}
    ),
    "Cerebras-GPT": Member(
        {"width": 136, "heads": 17, "inner": 544, "context": 128, "config": CEREBRAS},
        [files(special_tokens_map=NAMES, tokenizer_config={"tokenizer_class": "GPT2Tokenizer", **NAMES})],
        [f"config.json states the {GELU}"],
        {"gpt2.feed_forward_length": 544, "gpt2.context_length": 128, "gpt2.attention.head_count": 17},
    ),
    "resized by one token": Member(
        {"vocabulary": SIZE + 1},
        [files(added_tokens={"<pad>": SIZE}, special_tokens_map={**NAMES, "pad_token": "<pad>"})],
        metadata={"padding_token_id": SIZE},
    ),
    "resized to a multiple of 64": Member(
        {"vocabulary": 320},
        [files(tokenizer_config={"added_tokens_decoder": DECODER, **NAMES})],
        [f"{320 - SIZE - 2} of the 320 rows of the embedding have no token"],
    ),
    "other languages": Member(
        {"vocabulary": 320, "tokenizer": None, "config": {"bos_token_id": 0, "eos_token_id": 2}},
        [trained_tokenizer],
        metadata={"bos_token_id": 0, "eos_token_id": 2, "padding_token_id": 1, "mask_token_id": 4},
    ),
    "Transformers 2": Member(
        {"masks": True, "config": {**VERSION_2, "bos_token_id": 0, "eos_token_id": 0}},
        [as_pytorch(legacy=True), files(tokenizer_config={"max_len": 1024}, special_tokens_map=NAMES, added_tokens={})],
        [
            f"eos is {END_OF_TEXT!r} ({END}) by its tokenizer, and 'Ā' (0) by config.json",
            f"bos is {END_OF_TEXT!r} ({END}) by its tokenizer, and 'Ā' (0) by config.json",
        ],
        {"eos_token_id": END, "bos_token_id": END},
    ),
    "Transformers 2 without a type": Member({"config": {**VERSION_2, **LM_HEAD, "model_type": None}}),
    "Transformers 3": Member(
        {"masks": True, "config": {**SUMMARY, **LM_HEAD, **TASKS, "gradient_checkpointing": False, "n_ctx": 64}},
        [
            as_pytorch(),
            files(
                special_tokens_map=ADDED,
                tokenizer_config={"errors": "replace", **ADDED, "model_max_length": 1024, "add_prefix_space": False},
            ),
        ],
    ),
    "Transformers 4": Member(
        {"config": VERSION_4},
        [
            files(
                tokenizer=fast_tokenizer(),
                special_tokens_map=NAMES,
                generation_config=GENERATION,
                tokenizer_config={
                    **{"added_tokens_decoder": dict([*DECODER.items()][:1]), "add_prefix_space": False},
                    **{
                        "clean_up_tokenization_spaces": True,
                        "unk_token": {"__type": "AddedToken", **ADDED["eos_token"]},
                    },
                    **{"tokenizer_class": "GPT2Tokenizer", "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT},
                },
            )
        ],
    ),
    "Transformers 5": Member(
        {"tokenizer": "fast", "config": VERSION_5},
        [
            files(
                tokenizer=fast_tokenizer() | {"post_processor": NOTHING_ADDED},
                tokenizer_config=SETTINGS_5,
                generation_config=GENERATION | {"transformers_version": "5.24.0", "output_attentions": False},
            )
        ],
    ),
    "converted from tiktoken": Member(
        {"tokenizer": None, "config": VERSION_5},
        [files(tokenizer=fast_tokenizer() | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITS}})],
    ),
    "Transformers 5, a list of ends": Member(
        {"tokenizer": "fast", "config": VERSION_5 | {"eos_token_id": [END, 7]}},
        [files(tokenizer_config=SETTINGS_5)],
        metadata={"eos_token_id": END, "eot_token_id": 7},
    ),
}


@pytest.mark.parametrize("name", FAMILY)
def test_family(name: str, tmp_path: Path, auto_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    member = FAMILY[name]
    folder = make_checkpoint(tmp_path / "model", **member.options)
    half = name == "DialoGPT"
    expected = forward(folder, TEXT, activation_function="gelu_new").logits
    for finish in member.finish:
        finish(folder)
    (file,) = convert(str(folder), type="F32", output=tmp_path / "out", threads=1)
    messages = list(caplog.messages)
    assert len(messages) == len(member.warnings), messages
    assert all(part in message for part, message in zip(member.warnings, messages, strict=True))
    assert relative(from_gguf(Path(file.path), np.float64).logits(TEXT), expected) < (2e-2 if half else 1e-9)
    metadata = read_header(Path(file.path)).metadata
    stated = {key: metadata[key if "." in key else f"tokenizer.ggml.{key}"] for key in member.metadata}
    assert stated == member.metadata
    theirs = auto_tokenizer.from_pretrained(folder, tokenizer_type="gpt2" if "without a type" in name else None)
    with Model.load(file.path, threads=1) as model:
        assert relative(model.logits(TEXT), expected) < 2e-2  # llama.cpp has keys, values and the GELU table in F16
        for text in TEXTS:
            assert model.tokenize(text) == theirs(text)["input_ids"]
