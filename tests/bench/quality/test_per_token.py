"""Which tokens a level gets wrong: lines that can be joined to the text, and the worst of them."""

import json
from pathlib import Path

import pytest
from dgpt2_quant.bench.perplexity import perplexity
from dgpt2_quant.bench.quality.compare_files import Quality, compare_files
from dgpt2_quant.bench.quality.per_token import TokenTexts, lines, worst, write_lines
from dgpt2_quant.bench.quality.windows import Windowing
from dgpt2_quant.core.errors import OutputError
from dgpt2_quant.core.text import load_text
from dgpt2_quant.runtime import Model

TEXT = load_text().text[:3000] + " déjà vu — naïve café 日本"
CUTS = [Windowing(context=64), Windowing("strided", 64, 16)]


@pytest.fixture(scope="module", params=CUTS, ids=str)
def quality(request: pytest.FixtureRequest, short_files: dict[str, Path]) -> Quality:
    files = [short_files["Q8_0"], short_files["Q4_0"]]
    return compare_files(short_files["F32"], files, TEXT, windowing=request.param, threads=1, reference_cache=0)


def test_a_line_for_each_scored_token(quality: Quality, short_files: dict[str, Path], tmp_path: Path) -> None:
    with Model.load(short_files["F32"], threads=1) as model:
        write_lines(lines(quality, ["Q8_0", "Q4_0"], TokenTexts(model, quality.windows)), tmp_path / "tokens.jsonl")
        found = [json.loads(line) for line in (tmp_path / "tokens.jsonl").read_text("utf-8").splitlines()]
        assert len(found) == len(quality.base.nll) > 300
        for index, line in enumerate(found):
            window = quality.windows[line["window"]]
            assert window.tokens[line["position"]] == line["token"]
            assert line["text"] == model.token_bytes(line["token"]).decode("utf-8", "replace")
            assert line["reference"]["nll"] == quality.base.nll[index]
            assert line["reference"]["top"] == model.token_bytes(int(quality.base.top[index])).decode(
                "utf-8", "replace"
            )
            assert line["levels"]["Q4_0"]["kld"] == quality.files[1].kld[index]
            assert set(line["levels"]) == {"Q8_0", "Q4_0"}
    places = [(line["window"], line["position"]) for line in found]
    assert places == sorted(set(places))
    if quality.windowing.method == "strided":
        assert [line["token"] for line in found] == list(quality.tokens[1:])


def test_the_worst_tokens(quality: Quality, short_files: dict[str, Path]) -> None:
    with Model.load(short_files["F32"], threads=1) as model:
        found = worst(quality, quality.files[1], TokenTexts(model, quality.windows), 7)
    assert [row["kld"] for row in found] == sorted(quality.files[1].kld.tolist(), reverse=True)[:7]
    for row in found:
        assert row["before"] + row["token"] in TEXT or "\ufffd" in row["before"] + row["token"]
        assert 0 < row["level_p"] < 1
        assert 0 < row["reference_p"] < 1


def test_per_token_of_perplexity(short_files: dict[str, Path], tmp_path: Path) -> None:
    text, target = tmp_path / "tale.txt", tmp_path / "tokens.jsonl"
    text.write_text(TEXT, "utf-8")
    options = {"text": text, "ctx_size": 64, "threads": 1, "per_token": target}
    found = perplexity(str(short_files["Q4_0"]), **options)  # type: ignore[arg-type]
    rows = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert len(rows) == found["tokens_scored"]
    assert sum(row["nll"] for row in rows) / len(rows) == pytest.approx(found["nll"])
    assert set(rows[0]) == {"window", "position", "token", "text", "nll", "top", "top_p"}
    with pytest.raises(OutputError, match=r"tokens\.jsonl already exists"):
        perplexity(str(short_files["Q4_0"]), **options)  # type: ignore[arg-type]
