"""Classification heads of checkpoints: what is carried to the file, and what is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import CheckpointError, GGUFError
from dgpt2_quant.core.gguf_file import GGUFHeader, read_header
from dgpt2_quant.core.head import Head, head_of
from dgpt2_quant.quantize.checkpoint.heads import CLASSES
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.describe import describe
from safetensors.numpy import load_file, save_file

from ...checkpoints import make_checkpoint, write_json
from ...classifiers import CLASSES as WRITTEN
from ...classifiers import add_tensors, make_classifier
from ...runtime.gguf_edit import rewrite
from .test_lora import lora_of, save_adapter

SCORE = "score.weight"
SUMMARY = "multiple_choice_head.summary"


def header_of(folder: Path, **options: Any) -> GGUFHeader:
    (file,) = convert(str(folder), type=["f32"], output=folder / "out", overwrite=True, **options)
    return read_header(Path(file.path))


def head_in(folder: Path, **options: Any) -> Head:
    head = head_of(header_of(folder, **options).metadata, 64)
    assert head is not None
    return head


@pytest.mark.parametrize("kind", WRITTEN)
def test_each_class_is_carried_with_exact_weights(kind: str, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", kind)
    head, stored = head_in(folder), load_file(folder / "model.safetensors")
    weight, *bias = (stored[name] for name in WRITTEN[kind][1])
    np.testing.assert_array_equal(head.weight, weight)
    assert (head.bias is None) == (not bias)
    assert not bias or np.array_equal(head.bias, bias[0])
    assert (head.kind, head.labels) == (kind, () if kind == "choice" else ("joy", "anger", "fear"))


def test_the_table_of_classes_is_the_one_that_is_tested() -> None:
    assert {(one.kind, one.name) for one in CLASSES} == {(kind, name) for kind, (name, _) in WRITTEN.items()}


@pytest.mark.parametrize("prefix", ["transformer.", "module.transformer.", "_orig_mod.transformer."])
def test_a_head_under_a_wrapper_is_found(prefix: str, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", prefix=prefix)
    wrapper = prefix.removesuffix("transformer.")
    stored = load_file(folder / "model.safetensors")
    add_tensors(folder, {SCORE: None, wrapper + SCORE: stored[SCORE]})
    np.testing.assert_array_equal(head_in(folder).weight, stored[SCORE])


def test_a_half_precision_head_is_carried_exactly(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model")
    half = load_file(folder / "model.safetensors")[SCORE].astype(np.float16)
    add_tensors(folder, {SCORE: half})
    np.testing.assert_array_equal(head_in(folder).weight, half.astype(np.float32))


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"id2label": None}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": None, "num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"2": "c", "0": "a", "1": "é"}}, ("a", "é", "c")),
    ],
)
def test_labels(config: dict[str, Any], labels: tuple[str, ...], tmp_path: Path) -> None:
    assert head_in(make_classifier(tmp_path / "model", config=config)).labels == labels


@pytest.mark.parametrize(
    ("problem", "count", "found"),
    [
        (None, 3, "single_label_classification"),
        (None, 1, "multi_label_classification"),  # Transformers' pipeline takes a sigmoid
        ("single_label_classification", 1, "multi_label_classification"),
        ("multi_label_classification", 3, "multi_label_classification"),
        ("regression", 1, "regression"),
        ("regression", 3, "regression"),
    ],
)
def test_problem_types(problem: str | None, count: int, found: str, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", labels="abc"[:count], config={"problem_type": problem})
    assert head_in(folder).problem_type == found


@pytest.mark.parametrize(("pad", "found"), [(None, None), (5, 5), (0, 0), (-1, None), (100_000, None)])
def test_the_pad_token_of_config_is_carried(pad: int | None, found: int | None, tmp_path: Path) -> None:
    assert head_in(make_classifier(tmp_path / "model", config={"pad_token_id": pad})).pad == found


@pytest.mark.parametrize(
    ("config", "pooling", "tanh"),
    [
        ({}, "last", False),
        ({"summary_type": "cls_index"}, "last", False),
        ({"summary_type": "mean", "summary_activation": "tanh"}, "mean", True),
        ({"summary_type": "first", "summary_activation": ""}, "first", False),
    ],
)
def test_the_summary_of_choices(config: dict[str, Any], pooling: str, tanh: bool, tmp_path: Path) -> None:
    head = head_in(make_classifier(tmp_path / "model", "choice", config=config))
    assert (head.pooling, head.tanh) == (pooling, tanh)


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "more labels than rows": ("text", {"id2label": {str(n): str(n) for n in range(4)}}, {}, "id2label has 4 labels.*3"),
    "ids that do not begin at 0": ("text", {"id2label": {"1": "a", "2": "b", "3": "c"}}, {}, "id2label has 3 labels"),
    "a label that is not text": ("text", {"id2label": {"0": 1, "1": "b", "2": "c"}}, {}, "id2label"),
    "another number of labels": ("text", {"id2label": None, "num_labels": 5}, {}, "num_labels is 5; the head has 3"),
    "another width": ("text", {}, {SCORE: np.zeros((3, 32), np.float32)}, r"\[3, 32\], not \(labels, 64\)"),
    "a vector": ("text", {}, {SCORE: np.zeros(64, np.float32)}, r"\[64\], not \(labels, 64\)"),
    "no labels": ("text", {}, {SCORE: np.zeros((0, 64), np.float32)}, r"\[0, 64\]"),
    "not finite": ("text", {}, {SCORE: np.full((3, 64), np.inf, np.float32)}, "not finite"),
    "an unknown problem type": ("text", {"problem_type": "ranking"}, {}, "problem_type is 'ranking'"),
    "two heads": ("text", {}, {"classifier.weight": np.zeros((3, 64), np.float32)}, "two heads were found, 'score.wei"),
    "a bias of another length": ("token", {}, {"classifier.bias": np.zeros(2, np.float32)}, r"\[2\], not \(3,\)"),
    "a classifier of another class": ("token", {"architectures": ["MyModel"]}, {}, r"says architectures \['MyModel'\]"),
    "a bias that Transformers would ignore": ("text", {}, {"score.bias": np.zeros(3, np.float32)}, "score.bias"),
    "a head for questions": ("text", {}, {SCORE: None, "qa_outputs.weight": np.zeros((2, 64), np.float32)}, "qa_outp"),
    "an attention summary": ("choice", {"summary_type": "attn"}, {}, "summary_type 'attn'"),
    "another activation": ("choice", {"summary_activation": "relu"}, {}, "summary_activation 'relu'"),
    "a summary that is no number": (
        "choice",
        {},
        {f"{SUMMARY}.weight": np.zeros((64, 64), np.float32)},
        "it has 64 rows",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_compute_something_else_is_refused(case: str, tmp_path: Path) -> None:
    kind, config, tensors, message = REFUSED[case]
    folder = make_classifier(tmp_path / "model", kind, config=config)
    add_tensors(folder, tensors)
    if f"{SUMMARY}.weight" in tensors:
        add_tensors(folder, {f"{SUMMARY}.bias": np.zeros(64, np.float32)})
    with pytest.raises(CheckpointError, match=message):
        header_of(folder)
    assert not (folder / "out").exists() or not list((folder / "out").iterdir())


def test_a_label_that_utf_8_lacks_is_refused(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["id2label"]["0"] = "\ud800"
    (folder / "config.json").write_text(json.dumps(config), "utf-8")  # as an escape
    with pytest.raises(CheckpointError, match="id2label"):
        header_of(folder)


def test_a_class_without_its_tensor_is_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_checkpoint(tmp_path / "model", config={"architectures": ["GPT2ForSequenceClassification"]})
    with caplog.at_level(logging.WARNING):
        assert head_of(header_of(folder).metadata, 64) is None
    assert caplog.messages == [
        f"{folder}: config.json says GPT2ForSequenceClassification, but the tensor 'score.weight' is absent:"
        " converted without a head"
    ]


def test_a_classifier_converts_without_a_warning_or_output_matrix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_classifier(tmp_path / "model", config={"tie_word_embeddings": False})
    with caplog.at_level(logging.WARNING):
        header = header_of(folder)
    assert not caplog.messages
    assert "output.weight" not in header.tensors


def test_a_head_survives_conversion_from_gguf(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", "token", config={"architectures": ["GPT2ForTokenClassification"]})
    first = header_of(folder)
    (file,) = convert(str(first.path), type=["q8_0"], output=tmp_path / "again")
    again = head_of(read_header(Path(file.path)).metadata, 64)
    assert again is not None
    assert again.labels == ("joy", "anger", "fear")
    np.testing.assert_array_equal(again.weight, load_file(folder / "model.safetensors")["classifier.weight"])


def test_a_gguf_whose_head_is_not_sound_is_refused_and_described(tmp_path: Path) -> None:
    path = rewrite(
        header_of(make_classifier(tmp_path / "model")).path,
        tmp_path / "bad.gguf",
        metadata={"dgpt2_quant.head.labels": ["a"]},
    )
    with pytest.raises(GGUFError, match="192 weights for 1 labels"):
        convert(str(path), type=["f16"], output=tmp_path / "again")
    head = describe(path).head
    assert head is not None
    assert head.kind == "not sound"


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json"])
def test_a_blank_before_each_text_is_carried(place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_classifier(tmp_path / "model", tokenizer="fast" if place == "tokenizer.json" else "files")
    if place == "tokenizer.json":
        content = json.loads((folder / place).read_text("utf-8"))
        content["pre_tokenizer"]["add_prefix_space"] = True
        write_json(folder / place, content)
    else:
        write_json(folder / place, {"add_prefix_space": True})
    assert head_in(folder).prefix_space
    assert [message for message in caplog.messages if "add_prefix_space" in message] == [
        f"{folder}: add_prefix_space: `classify` adds the blank before a text; text generation does not"
    ]


def test_token_types_are_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_classifier(tmp_path / "model")
    write_json(folder / "tokenizer_config.json", {"model_input_names": ["input_ids", "token_type_ids"]})
    head_in(folder)
    assert len([message for message in caplog.messages if "token_type_ids" in message]) == 1


def test_inspect_shows_the_head(tmp_path: Path) -> None:
    described = describe(header_of(make_classifier(tmp_path / "model")).path)
    assert described.head is not None
    assert json.loads(json.dumps(described.to_json()))["head"] == {
        "kind": "text",
        "labels": ["joy", "anger", "fear"],
        "problem_type": "single_label_classification",
    }


class TestAdapters:
    """PEFT saves the head of a classifier whole, next to its LoRA matrices, and no names of labels."""

    def adapter(self, folder: Path, rows: int = 3) -> Path:
        weight = np.random.default_rng(3).normal(size=(rows, 64)).astype(np.float32)
        save_adapter(
            folder,
            lora_of("h.0.attn.c_attn") | {"base_model.model.score.weight": weight},
            task_type="SEQ_CLS",
            modules_to_save=["classifier", "score"],
        )
        return folder

    def test_the_head_of_an_adapter_is_taken(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        base, adapter = make_checkpoint(tmp_path / "base"), self.adapter(tmp_path / "adapter")
        with caplog.at_level(logging.WARNING):
            head = head_in(base, lora=[str(adapter)])
        assert head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
        (weights,) = (p for p in adapter.iterdir() if p.suffix == ".safetensors")
        np.testing.assert_array_equal(head.weight, load_file(weights)["base_model.model.score.weight"])
        assert len(caplog.messages) == 1
        assert "3 labels without names" in caplog.messages[0]

    def test_it_has_the_labels_of_the_base_if_their_number_agrees(self, tmp_path: Path) -> None:
        base, adapter = make_classifier(tmp_path / "base"), self.adapter(tmp_path / "adapter")
        assert head_in(base, lora=[str(adapter)]).labels == ("joy", "anger", "fear")

    def test_a_classifier_of_tokens_on_a_language_model(self, tmp_path: Path) -> None:
        base = make_checkpoint(tmp_path / "base", config={"architectures": ["GPT2LMHeadModel"]})
        weights = {"classifier.weight": np.ones((3, 64), np.float32), "classifier.bias": np.ones(3, np.float32)}
        adapter = save_adapter(
            tmp_path / "adapter",
            lora_of("h.0.attn.c_attn") | {f"base_model.model.{name}": data for name, data in weights.items()},
            task_type="TOKEN_CLS",
            modules_to_save=["classifier", "score"],
        )
        head = head_in(base, lora=[str(adapter)])
        assert (head.kind, head.labels) == ("token", ("LABEL_0", "LABEL_1", "LABEL_2"))

    def test_an_adapter_of_another_kind_is_named(self, tmp_path: Path) -> None:
        base, adapter = make_classifier(tmp_path / "base", "token"), self.adapter(tmp_path / "adapter")
        with pytest.raises(CheckpointError, match=r"'score.weight' of .*adapter and 'classifier.weight' of .*base"):
            head_in(base, lora=[str(adapter)])

    def test_an_adapter_for_another_width_is_refused(self, tmp_path: Path) -> None:
        adapter = self.adapter(tmp_path / "adapter")
        path = next(p for p in adapter.iterdir() if p.suffix == ".safetensors")
        save_file(load_file(path) | {"base_model.model.score.weight": np.zeros((3, 32), np.float32)}, path)
        with pytest.raises(CheckpointError, match=r"\[3, 32\]"):
            head_in(make_checkpoint(tmp_path / "base"), lora=[str(adapter)])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kind", "words", "kind is 'words'"),
        ("problem_type", "guess", "problem_type"),
        ("pooling", 3, "pooling"),
        ("activation", "relu", "activation"),
        ("labels", ["a"], "192 weights for 1 labels"),
        ("labels", [1, 2, 3], "not strings"),
        ("labels", "abc", "192 weights for 0 labels"),
        ("weight", [1.0] * 191, "191 weights"),
        ("weight", [1] * 192, "not an array of FLOAT32"),
        ("weight", [float("nan")] * 192, "not finite"),
        ("weight", "text", "not an array"),
        ("bias", [1.0, 2.0], "192 weights"),
        ("pad_token_id", "x", "pad_token_id"),
    ],
)
def test_keys_that_are_not_sound_are_refused(key: str, value: Any, message: str) -> None:
    head = Head("text", np.ones((3, 64), np.float32), labels=("a", "b", "c"))
    metadata = head.to_metadata() | {f"dgpt2_quant.head.{key}": value}
    with pytest.raises(ValueError, match=message):
        head_of(metadata, 64)
