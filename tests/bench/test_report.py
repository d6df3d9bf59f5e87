"""The report of a hand-made result: every number stands where its heading says."""

import json
from pathlib import Path

import pytest
from dgpt2_quant.bench.report import COLUMNS, markdown, remarks, table_rows, write_report
from dgpt2_quant.quantize.errors import OutputError

from .documents import document, result

TWO = document(
    result("Q8_0"),
    result("Q4_0", kld_mean=0.25, disturbed=True, top1_agreement=1.0, peak_rss_bytes=50_400_000),
    smallest="Q4_0",
    fastest="Q8_0",
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_for_the_columns() -> None:
    row, other = (dict(zip(COLUMNS, row, strict=True)) for row in table_rows(TWO))
    assert row == {
        "type": "Q8_0",
        "MB": "1.50",
        "bpw": "4.57",
        "perplexity": "20.500 ± 0.250",
        "KLD mean": "0.00123",
        "KLD 99.9%": "0.250",
        "top-1": "98.7 %",
        "prompt t/s": "900 (850-950)",
        "decode t/s": "301 (250-320)",
        "load ms": "12",
        "peak MB": "64",
    }
    assert (other["type"], other["KLD mean"], other["top-1"], other["peak MB"]) == ("Q4_0", "0.250", "100.0 %", "50")


def test_markdown_tables() -> None:
    lines = markdown(TWO).splitlines()
    assert lines[0] == "# tiny: 2 quantization levels"
    tables = [index for index, line in enumerate(lines) if line.startswith("| type |")]
    assert len(tables) == 2
    for start, first in zip(tables, (COLUMNS[1], "PPL ratio"), strict=True):
        head, rule, *rows = (cells(line) for line in lines[start : start + 4])
        assert head[1] == first
        assert {len(head)} == {len(line) for line in (rule, *rows)}
        assert rule == ["---", *["---:"] * (len(head) - 1)]
        assert [row[0] for row in rows] == ["Q8_0", "Q4_0"]
        assert lines[start + 4] == ""  # nothing more in the table
    second = cells(lines[tables[1] + 2])
    assert second == ["Q8_0", "1.0050", "0.00090", "0.04560", "1.750", "1.23 %", "7.2"]


def test_markdown_says_what_was_measured_and_where() -> None:
    text = markdown(TWO)
    for part in (
        "1,234,567 parameters",
        "abababababababab",
        "tale.txt, 12,345 tokens",
        "chunks of 512 tokens",
        "of 5 rounds",
        "A Processor 9000, 4 cores, 2 threads, Linux-6, load 0.25",
        "dgpt2-quant 1.2.3, llama-cpp-python 0.3.36, Python 3.12.1",
    ):
        assert part in text


def test_remarks() -> None:
    reference, within, disturbed = remarks(TWO)
    assert reference == "Reference F32: perplexity 20.400 ± 0.240 over 6,120 tokens."
    assert within == "Within 1 % of its perplexity: smallest Q4_0, fastest Q8_0."
    assert "while these were timed: Q4_0." in disturbed
    assert all(f"- {remark}" in markdown(TWO) for remark in remarks(TWO))


def test_remarks_when_nothing_is_good_enough_and_nothing_was_disturbed() -> None:
    found = remarks(document(result("Q4_0"), result("Q8_0", disturbed=None)))
    assert found[1:] == ["No level stays within 1 % of its perplexity."]


def test_files(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    assert write_report(TWO, folder) == [folder / "bench.json", folder / "report.md"]
    assert json.loads((folder / "bench.json").read_text("utf-8")) == TWO
    assert (folder / "report.md").read_text("utf-8") == markdown(TWO)
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "report.md"]


def test_an_existing_report_stays_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(OutputError, match=r"report\.md exists already"):
        write_report(TWO, tmp_path)
    assert (tmp_path / "report.md").read_text() == "mine"
    write_report(TWO, tmp_path, overwrite=True)
    assert (tmp_path / "report.md").read_text("utf-8") == markdown(TWO)
