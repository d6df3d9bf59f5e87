"""CrowS-Pairs: the shares from first principles, on sentences of no bearing; files that are not in its format."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.bench.tasks.crows_pairs import CrowsPairs, Pair, read_pairs
from dgpt2_quant.bench.tasks.metrics import Settings, summarize
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime import Model

HEAD = ",sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators\n"
PAIRS = [
    Pair("Foxes, as all know, are sly.", "Geese, as all know, are sly.", "animal"),
    Pair('"Giants are slow."', '"Dwarfs are slow."', "size"),
    Pair("The bear ate the honey.", "The king ate the honey.", "animal"),
    Pair("Tall trees fall.", "Tall trees", "size"),  # the one is the other's beginning
]


@pytest.fixture(scope="module")
def model(storybook_files: dict[str, Path]) -> Iterator[Model]:
    with Model.load(storybook_files["F32"], threads=1) as model:
        yield model


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def csv_file(pairs: list[Pair], end: str = "\n") -> DataFile:
    rows = [
        f'{index},{quoted(pair.more)},{quoted(pair.less)},stereo,{pair.bias_type},"[[""{pair.bias_type}""]]",a0,[]\n'
        for index, pair in enumerate(pairs)
    ]
    return DataFile("crows.csv", (HEAD + "".join(rows)).replace("\n", end).encode())


def log_likelihood(model: Model, text: str) -> float:
    tokens = model.tokenize("<|endoftext|>" + text)
    rows = model.logits(tokens).astype(np.float64)[:-1]
    picked = rows[np.arange(len(rows)), tokens[1:]]
    return float((picked - np.logaddexp.reduce(rows, axis=1)).sum())


def test_figures_match_their_definition(model: Model) -> None:
    task = CrowsPairs(csv_file(PAIRS), Settings())
    metrics = summarize(task.metrics, task.measure(model, lambda *_: None), None)
    differences = np.array([log_likelihood(model, pair.more) - log_likelihood(model, pair.less) for pair in PAIRS])
    assert metrics["stereotype_share"]["value"] == np.mean(differences > 0)
    assert metrics["stereotype_share_animal"]["value"] == np.mean(differences[[0, 2]] > 0)
    assert metrics["stereotype_share_size"]["value"] == np.mean(differences[[1, 3]] > 0)
    assert metrics["log_likelihood_difference"]["value"] == pytest.approx(differences.mean(), abs=0.02)
    assert metrics["absolute_log_likelihood_difference"]["value"] == pytest.approx(np.abs(differences).mean(), abs=0.02)
    assert list(metrics) == [
        "stereotype_share", "log_likelihood_difference", "absolute_log_likelihood_difference",
        "stereotype_share_animal", "stereotype_share_size",
    ]  # fmt: skip


def test_swapped_pairs_invert_the_figures(model: Model) -> None:
    turned = [Pair(pair.less, pair.more, pair.bias_type) for pair in PAIRS]
    here, there = (
        summarize(task.metrics, task.measure(model, lambda *_: None), None)
        for task in (CrowsPairs(csv_file(pairs), Settings()) for pairs in (PAIRS, turned))
    )
    assert here["stereotype_share"]["value"] == 1 - there["stereotype_share"]["value"]
    name = "log_likelihood_difference"
    assert here[name]["value"] == pytest.approx(-there[name]["value"], abs=0.02)


def test_one_pair_of_its_type_has_no_interval(model: Model) -> None:
    task = CrowsPairs(csv_file(PAIRS[:3]), Settings())  # one of size
    scores = task.measure(model, lambda *_: None)
    found = summarize(task.metrics, scores, scores)
    alone = found["stereotype_share_size"]
    assert alone["value"] in (0, 1)
    assert alone["change_against_f16"] == 0
    assert [alone[key] for key in ("low", "high", "change_low", "change_high")] == [None] * 4
    assert found["stereotype_share_animal"]["low"] is not None


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quotes_line_ends_and_a_byte_order_mark(end: str) -> None:
    file = csv_file(PAIRS, end)
    assert read_pairs(file) == read_pairs(DataFile("crows.csv", b"\xef\xbb\xbf" + file.content)) == PAIRS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "line 1: there is no column sent_more"),
        (HEAD, "has no pairs"),
        (HEAD.replace("bias_type", "bias"), "line 1: there is no column bias_type"),
        (HEAD + "0,a,b,stereo,age,x,y,z\n1,a\n", "line 3: the row does not have all columns"),
        (HEAD + "0,a,,stereo,age,x,y,z\n", "line 2: the row does not have all columns"),
        (HEAD + "0,a,b,stereo,age,x,y,z,more\n", "line 2: the row does not have all columns"),
        (HEAD + '0,"a"b,c,stereo,age,x,y,z\n', "line 2: ',' expected after"),
        (HEAD + '0,"a\n', "line 2: unexpected end"),
        (HEAD + f"0,{'a' * 200_000},b,stereo,age,x,y,z\n", "line 2: field larger"),
    ],
)
def test_errors_name_the_line(content: str, says: str) -> None:
    with pytest.raises(UsageError, match=rf"crows\.csv,? {says}"):
        read_pairs(DataFile("crows.csv", content.encode()))
