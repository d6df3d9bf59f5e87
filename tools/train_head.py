"""Trains a classification head on storybook's hidden states: narration, statement or question.

The sentences are those of the bundled texts. Direct speech stands in quotation marks there, and a question ends with a
question mark, so each sentence has a label; quotation marks and the last punctuation mark are removed. The head is
trained on calibration.txt, and evaluation.txt gives the examples to test with. Only the head is trained, by multinomial
logistic regression: storybook's weights stay.

usage: train_head.py FOLDER

    dgpt2-quant eval --task classify -m FOLDER --data FOLDER/test.csv -t q8_0 -t q4_k
"""

import argparse
import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dgpt2_quant.quantize.checkpoint.resolve import BUNDLED, resolve
from dgpt2_quant.quantize.store.converted_models import model_file
from dgpt2_quant.runtime import Model
from safetensors.numpy import load_file, save_file

LABELS = ("narration", "statement", "question")
_FEWEST_WORDS = 4
_STEPS, _RATE, _DECAY = 2000, 0.05, 1e-2


def examples(text: str) -> Iterator[tuple[str, str]]:
    """(sentence, label) of each sentence of at least four words."""
    for paragraph in text.split("\n\n"):
        for number, part in enumerate(" ".join(paragraph.split()).split('"')):
            for sentence in re.split(r"(?<=[.!?])\s+", part.strip()):
                label = "narration" if number % 2 == 0 else "question" if sentence.endswith("?") else "statement"
                words = sentence.rstrip(".!?,;:")
                if len(words.split()) >= _FEWEST_WORDS and not words.isupper():
                    yield words, label


def train(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The weights, (labels, width), of a logistic regression with classes of equal weight, by Adam."""
    wanted = np.eye(len(LABELS))[labels]
    shares = wanted / wanted.sum(axis=0)
    weight = np.zeros((len(LABELS), features.shape[1]))
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for step in range(1, _STEPS + 1):
        logits = features @ weight.T
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        errors = (powers / powers.sum(axis=1, keepdims=True) - wanted) * shares.sum(axis=1, keepdims=True)
        gradient = errors.T @ features / len(LABELS) + _DECAY * weight
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight -= _RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return weight.astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the checkpoint to write; it must not exist")
    folder: Path = parser.parse_args().folder
    bundled = resolve(BUNDLED).folder
    seen, unseen = (
        list(examples((bundled / f"{name}.txt").read_text("utf-8"))) for name in ("calibration", "evaluation")
    )
    with Model.load(model_file(BUNDLED, type="f32")[1]) as model:
        features = np.stack([model.features(text, pooling="last") for text, _ in seen])
    weight = train(features, np.array([LABELS.index(label) for _, label in seen]))
    folder.mkdir(parents=True)
    for name in ("README.md", "generation_config.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(bundled / name, folder)
    save_file(load_file(bundled / "model.safetensors") | {"score.weight": weight}, folder / "model.safetensors")
    config = json.loads((bundled / "config.json").read_text("utf-8"))
    config |= {
        "architectures": ["GPT2ForSequenceClassification"],
        "id2label": dict(enumerate(LABELS)),
        "problem_type": "single_label_classification",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    with (folder / "test.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *unseen])
    counts = [
        ", ".join(f"{sum(one == label for _, one in part)} {label}" for label in LABELS) for part in (seen, unseen)
    ]
    print(f"{folder}: trained on {len(seen)} sentences ({counts[0]}); test.csv has {len(unseen)} ({counts[1]})")


if __name__ == "__main__":
    main()
