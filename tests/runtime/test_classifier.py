"""Labels by a classification head, compared with NumPy, and with Transformers' models and pipelines (marker peer)."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.errors import GGUFError, RuntimeFailure, UsageError
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Classification, Model
from safetensors.numpy import load_file

from ..checkpoints import END_OF_TEXT, TOKENS, write_json
from ..classifiers import CLASSES, add_tensors, make_classifier
from ..quantize.forward import forward
from .gguf_edit import rewrite

TEXT = "the thin man in the hat, an in-the-end tenor"
TEXTS = (TEXT, "x", "naïve 世界 the 🙂 end", " leading, and trailing \n", "the" + END_OF_TEXT)
CLOSE = 5e-3  # llama.cpp looks its GELU up in a table of 16-bit numbers
TAGS = ("O", "B-PER", "I-PER", "geo-loc")


@contextmanager
def loaded(folder: Path, **options: Any) -> Iterator[Model]:
    (file,) = convert(str(folder), type=["f32"], output=folder / "out", overwrite=True)
    with Model.load(file.path, threads=1, **options) as model:
        yield model


def expected(folder: Path, tokens: list[int], kind: str = "text") -> npt.NDArray[np.float64]:
    """The head's logits at each position, in float64."""
    weight, *bias = (load_file(folder / "model.safetensors")[name] for name in CLASSES[kind][1])
    found: npt.NDArray[np.float64] = forward(folder, tokens).hidden @ weight.T.astype(float) + sum(bias)
    return found


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: npt.NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return found


SCORES: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "single_label_classification": softmax,
    "multi_label_classification": lambda logits: 1 / (1 + np.exp(-logits)),
    "regression": lambda logits: logits,
}


@pytest.mark.parametrize("problem", SCORES)
def test_scores_of_each_problem_type(problem: str, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", config={"problem_type": problem})
    with loaded(folder) as model:
        found = model.classify(TEXTS)
        for text, one in zip(TEXTS, found, strict=True):
            tokens = model.tokenize(text)
            logits = expected(folder, tokens)[-1]
            assert one.tokens == len(tokens)
            np.testing.assert_allclose([row.logit for row in one.scores], logits, atol=CLOSE)
            np.testing.assert_allclose([row.score for row in one.scores], SCORES[problem](logits), atol=CLOSE)
            assert one.best == one.scores[int(logits.argmax())]
            assert one == model.classify(text)[0]  # alone, bit for bit


@pytest.mark.parametrize("pad", [None, len(TOKENS) - 1, TOKENS.index("Ġt")])
def test_the_last_token_that_is_not_padding_decides(pad: int | None, tmp_path: Path) -> None:
    """Also where the text itself ends with the pad token, and where it has no other, as in Transformers."""
    folder = make_classifier(tmp_path / "model", config={"pad_token_id": pad})
    texts = ("the hat" + 2 * END_OF_TEXT, END_OF_TEXT + "the", 3 * END_OF_TEXT, "the t t t")
    with loaded(folder) as model:
        for text, one in zip(texts, model.classify(texts), strict=True):
            tokens = model.tokenize(text)
            at = max((i for i, token in enumerate(tokens) if token != pad), default=0)
            np.testing.assert_allclose(
                [row.logit for row in one.scores], expected(folder, tokens)[at], atol=CLOSE, err_msg=text
            )


@pytest.mark.parametrize(("summary", "activation"), [("cls_index", None), ("first", "tanh"), ("mean", None)])
def test_choices_are_compared(summary: str, activation: str | None, tmp_path: Path) -> None:
    config = {"summary_type": summary, "summary_activation": activation}
    folder = make_classifier(tmp_path / "model", "choice", config=config)
    with loaded(folder) as model:
        (found,) = model.classify([TEXTS[:3]])
        logits = []
        for text in TEXTS[:3]:
            rows = expected(folder, model.tokenize(text), "choice")[:, 0]
            pooled = {"cls_index": rows[-1], "first": rows[0], "mean": rows.mean()}[summary]
            logits.append(np.tanh(pooled) if activation else pooled)
    np.testing.assert_allclose([row.logit for row in found.scores], logits, atol=CLOSE)
    np.testing.assert_allclose([row.score for row in found.scores], softmax(np.array(logits)), atol=CLOSE)
    assert [row.label for row in found.scores] == list(TEXTS[:3])


def test_each_token_has_a_place_in_the_text(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", "token", ("A", "B", "C"))
    with loaded(folder) as model:
        for text, one in zip(TEXTS, model.classify(TEXTS, aggregation="none"), strict=True):
            tokens = model.tokenize(text)
            scores = softmax(expected(folder, tokens, "token"))
            assert [span.label for span in one.spans] == ["ABC"[row.argmax()] for row in scores]
            np.testing.assert_allclose([span.score for span in one.spans], scores.max(axis=1), atol=CLOSE)
            assert all(span.text == text[span.start : span.end] for span in one.spans)
            covered = {at for span in one.spans for at in range(span.start, span.end)}
            assert {text[at] for at in set(range(len(text))) - covered} <= {" ", "\n"}


def test_neighbours_of_one_label_become_a_span(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", "token", TAGS)
    with loaded(folder) as model:
        text = "then ten thin tan-the titans than that"  # no blank is a token of its own
        (tokens,), (spans,) = (model.classify(text, aggregation=how) for how in ("none", "simple"))
    assert len(tokens.spans) > len(spans.spans) > 1
    assert {span.label for span in spans.spans} <= {"PER", "loc"}
    assert {span.label for span in tokens.spans} <= {*TAGS} - {"O"}
    for span in spans.spans:
        within = [one for one in tokens.spans if span.start <= one.start and one.end <= span.end]
        assert span.score == pytest.approx(np.mean([one.score for one in within]))
        assert not any(one.label.startswith("B-") for one in within[1:])


def test_added_tokens_have_no_span_but_count(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", "token", ("A", "B", "C"))
    (file,) = convert(str(folder), type=["f32"], output=folder / "out")
    flags = {f"tokenizer.ggml.add_{end}_token": True for end in ("bos", "eos")}
    changed = rewrite(Path(file.path), folder / "added.gguf", metadata=flags)
    with Model.load(changed, threads=1) as model:
        (found,) = model.classify("the hat", aggregation="none")
        tokens = model.tokenize("the hat")
        assert tokens[0] == tokens[-1] == len(TOKENS) - 1
        assert found.tokens == len(tokens)
        labels = expected(folder, tokens, "token")[1:-1].argmax(axis=1)
    assert [span.label for span in found.spans] == ["ABC"[label] for label in labels]
    assert found.spans[-1].end == len("the hat")


def test_a_blank_is_put_before_each_text(tmp_path: Path) -> None:
    """As the tokenizer with which GPT-2 classifies tokens, and at the same places of the text."""
    from transformers import AutoTokenizer

    folder = make_classifier(tmp_path / "model", "token", ("A", "B", "C"), tokenizer="fast")
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["pre_tokenizer"]["add_prefix_space"] = True
    write_json(folder / "tokenizer.json", content)
    tokenizer = AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    with loaded(folder) as model:
        for text in ("the thin hat", " the", "тот é", "  in"):
            read = tokenizer(text, return_offsets_mapping=True)
            (found,) = model.classify(text, aggregation="none", ignore_labels=())
            labels = expected(folder, read["input_ids"], "token").argmax(axis=1)
            assert found.tokens == len(read["input_ids"])
            assert [span.label for span in found.spans] == ["ABC"[label] for label in labels]
            places = [(start, end) for start, end in read["offset_mapping"]]
            for span, (start, end) in zip(found.spans, places, strict=True):
                assert span.text == text[span.start : span.end]
                assert span.text.strip() == text[start:end].strip()


def test_numbers_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model")
    add_tensors(folder, {"score.weight": np.full((3, 64), 3e38, np.float32)})
    with loaded(folder) as model, pytest.raises(RuntimeFailure, match="not finite"):
        model.classify("the hat")


def test_chosen_labels_are_left_out(tmp_path: Path) -> None:
    with loaded(make_classifier(tmp_path / "model", "token", TAGS)) as model:
        (every,) = model.classify(TEXT, aggregation="none", ignore_labels=())
        (some,) = model.classify(TEXT, aggregation="none", ignore_labels=("O", "B-PER"))
    assert [span for span in every.spans if span.label not in ("O", "B-PER")] == list(some.spans)
    assert "O" in {span.label for span in every.spans}


class TestLongTexts:
    def test_are_refused(self, tmp_path: Path) -> None:
        with loaded(make_classifier(tmp_path / "model")) as model, pytest.raises(UsageError, match="at most 64 tokens"):
            model.classify(["the", "the " * 100])

    def test_lose_their_end_with_truncate(self, tmp_path: Path) -> None:
        folder = make_classifier(tmp_path / "model")
        with loaded(folder) as model:
            (found,) = model.classify("the " * 100, truncate=True)
            tokens = model.tokenize("the " * 100)[:64]
            logits = expected(folder, tokens)[-1]
        assert (found.tokens, found.truncated) == (64, True)
        np.testing.assert_allclose([row.logit for row in found.scores], logits, atol=CLOSE)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("", "at least 1 token; '' has none"),
        (["the", ""], "at least 1 token"),
        ([["the"]], "must be a str"),
        ([3], "must be a str, not 3"),
        (b"the", "must be a str or a list"),
        (None, "must be a str or a list"),
    ],
)
def test_texts_that_cannot_be_classified(texts: Any, message: str, tmp_path: Path) -> None:
    with loaded(make_classifier(tmp_path / "model")) as model, pytest.raises(UsageError, match=message):
        model.classify(texts)


def test_choices_must_be_lists(tmp_path: Path) -> None:
    with loaded(make_classifier(tmp_path / "model", "choice")) as model:
        for texts in ("the", ["the"], [[]], [["the"]]):
            with pytest.raises(UsageError, match="compares choices"):
                model.classify(texts)


def test_a_language_model_has_no_head(storybook: Model) -> None:
    with pytest.raises(UsageError, match="no classification head"):
        storybook.classify("the")


def test_a_head_that_is_not_sound_is_refused_when_the_file_is_loaded(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model")
    (file,) = convert(str(folder), type=["f32"], output=folder / "out")
    changed = rewrite(Path(file.path), tmp_path / "bad.gguf", metadata={"dgpt2_quant.head.labels": ["a"]})
    with pytest.raises(GGUFError, match="192 weights for 1 labels"):
        Model.load(changed)


def test_threads_may_classify_and_generate_together(tmp_path: Path) -> None:
    with loaded(make_classifier(tmp_path / "model")) as model:
        alone = model.classify(TEXTS), model.generate("the", max_tokens=8, seed=1)[0][0].text
        found: list[list[Classification]] = []
        workers = [threading.Thread(target=lambda: found.append(model.classify(TEXTS))) for _ in range(4)]
        for worker in workers:
            worker.start()
        text = model.generate("the", max_tokens=8, seed=1)[0][0].text
        for worker in workers:
            worker.join()
    assert all(one == alone[0] for one in found)
    assert len(found) == 4
    assert text == alone[1]


@pytest.mark.peer
class TestTransformers:
    @pytest.fixture(autouse=True)
    def _quiet(self) -> Iterator[None]:
        from transformers.utils import logging

        logging.disable_progress_bar()
        yield
        logging.enable_progress_bar()

    @pytest.mark.parametrize(
        ("problem", "count"),
        [
            (None, 3),
            (None, 1),
            ("single_label_classification", 2),
            ("multi_label_classification", 3),
            ("regression", 1),
        ],
    )
    def test_text_classification_is_the_same(self, problem: str | None, count: int, tmp_path: Path) -> None:
        from transformers import pipeline

        labels = ("joy", "anger", "fear")[:count]
        folder = make_classifier(tmp_path / "model", labels=labels, config={"problem_type": problem, "pad_token_id": 5})
        theirs = pipeline("text-classification", str(folder), device="cpu")
        with loaded(folder) as model:
            for text, one in zip(TEXTS, model.classify(TEXTS), strict=True):
                wanted = {row["label"]: row["score"] for row in theirs(text, top_k=None)}
                assert {row.label: row.score for row in one.scores} == pytest.approx(wanted, abs=CLOSE)

    @pytest.mark.parametrize("aggregation", ["none", "simple"])
    def test_token_classification_is_the_same(self, aggregation: Any, tmp_path: Path) -> None:
        from transformers import pipeline

        folder = make_classifier(tmp_path / "model", "token", TAGS)
        theirs = pipeline("token-classification", str(folder), device="cpu", aggregation_strategy=aggregation)
        with loaded(folder) as model:
            for text, one in zip(TEXTS, model.classify(TEXTS, aggregation=aggregation), strict=True):
                wanted = theirs(text)
                assert [span.label for span in one.spans] == [
                    row.get("entity_group") or row["entity"] for row in wanted
                ]
                assert [span.score for span in one.spans] == pytest.approx([row["score"] for row in wanted], abs=CLOSE)
                # theirs may include the white space of a token
                assert [span.text for span in one.spans] == [
                    text[row["start"] : row["end"]].strip() or text[row["start"] : row["end"]] for row in wanted
                ]

    def test_multiple_choice_is_the_same(self, tmp_path: Path) -> None:
        import torch
        from transformers import GPT2DoubleHeadsModel

        folder = make_classifier(tmp_path / "model", "choice")
        theirs = GPT2DoubleHeadsModel.from_pretrained(folder)
        with loaded(folder) as model, torch.no_grad():
            (found,) = model.classify([TEXTS[:3]])
            wanted = [theirs(torch.tensor([[model.tokenize(text)]])).mc_logits.item() for text in TEXTS[:3]]
        assert [row.logit for row in found.scores] == pytest.approx(wanted, abs=CLOSE)
