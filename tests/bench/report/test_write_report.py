"""The report of a hand-made result: every number stands where its heading says, and nothing is markup by chance."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.bench.document.blocks import Items, Picture, Section, Table, Text, quoted, visible
from dgpt2_quant.bench.report import html_page as report_html
from dgpt2_quant.bench.report.advice import RULES, with_advice
from dgpt2_quant.bench.report.html_page import to_html
from dgpt2_quant.bench.report.markdown import escaped, to_markdown
from dgpt2_quant.bench.report.plots import PLOTS
from dgpt2_quant.bench.report.summary import COLUMNS, remarks, report_sections, table_rows
from dgpt2_quant.bench.report.write_report import refuse_reports, write_report
from dgpt2_quant.core.errors import OutputError

from ..documents import document, environment, interval, peer, result

TWO = with_advice(
    document(
        result("Q8_0", disturbed=False),
        result(
            "Q4_0",
            bytes=900_000,
            kld_mean=0.25,
            disturbed=True,
            load_disturbed=True,
            top1_agreement=1.0,
            peak_rss_bytes=50_400_000,
        ),
        peers=[peer("Other", prompt_tps=None, load_ms=None)],
        skipped_peers=[{"name": "Absent", "reason": "it is not installed"}],
    )
)
HOSTILE = '<script>alert("x")</script> | `b` *c* _d_ [e](http://f) & \\ \n# g\x1b[31m\u202e $h$'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("report") / "new" / "report"
    write_report(TWO, where)
    return where


def markdown(whole: Any = TWO) -> str:
    return to_markdown(report_sections(whole, with_plots=False), {})


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables(text: str, title: str) -> list[dict[str, str]]:
    """The rows of the first table after a title, by their columns."""
    lines = text[text.index(f"# {title}\n") :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    stop = next(index for index, line in enumerate(lines) if index > start and not line.startswith("|"))
    head, rule, *rows = map(cells, lines[start:stop])
    assert {len(line) for line in (rule, *rows)} == {len(head)}
    return [dict(zip(head, row, strict=True)) for row in rows]


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
    assert (other["prompt t/s"], other["decode t/s"], other["load ms"]) == (
        "900 (850-950) †", "301 (250-320) †", "12 †",
    )  # fmt: skip
    assert remarks(TWO)[1] == "† disturbed: other programs used the machine while this was timed."
    assert not any("†" in remark for remark in remarks(document(result("Q4_0"))))
    assert table_rows(document(result("Q4_0", recipe="lean")))[0][0] == "Q4_0 lean"


def test_the_sections_and_their_order() -> None:
    titles = [line.lstrip("# ") for line in markdown().splitlines() if line.startswith("#")]
    assert titles == [
        "tiny: 2 files compared with F32",
        "Advice",
        "All files",
        "Plots",
        "Quality",
        "Which differences are real",
        "By the reference's confidence",
        "Speed",
        "Speed by setting",
        "Peers",
        "Worst tokens",
        "Method",
        "Measured on",
    ]
    bare = document(result("Q4_0", by_confidence=[], worst=[], speed=[]), pairs=[], noise_floor=None)
    left_out = {"Which differences are real", "By the reference's confidence", "Speed by setting", "Peers"}
    assert not any(f"# {title}\n" in markdown(bare) for title in left_out | {"Worst tokens"})
    assert "# tiny: 1 file compared with F32\n" in markdown(bare)


def test_the_quality_table_ends_with_the_noise_floor() -> None:
    first, _, floor = tables(markdown(), "Quality")
    assert first == {
        "type": "Q8_0",
        "PPL ratio (95 %)": "1.0050 (0.9045 to 1.1055)",
        "KLD mean (95 %)": "0.00123 (0.00111 to 0.00135)",
        "median": "0.00090",
        "90 %": "0.00200",
        "95 %": "0.00400",
        "99 %": "0.04560",
        "99.9 %": "0.250",
        "max": "1.750",
        "top-1": "98.70 %",
        "mean Δp": "-0.12 %",
        "RMS Δp": "1.23 %",
        "NLL corr.": "0.99870",
    }
    assert (floor["type"], floor["KLD mean (95 %)"], floor["99 %"]) == ("noise floor", "1.0e-09", "5.0e-09")
    assert (floor["max"], floor["median"], floor["top-1"]) == ("4.0e-08", "", "100.00 %")
    assert "batches of 32 tokens on 1 thread" in markdown()


def test_pairs_say_which_differences_are_real() -> None:
    (pair,) = tables(markdown(), "Which differences are real")
    assert (pair["first"], pair["second"]) == ("Q8_0", "Q4_0")
    assert pair["KLD difference (95 %)"] == "0.01000 (0.00900 to 0.01100)"
    assert (pair["by KLD"], pair["by perplexity"]) == ("second worse", "second worse")
    unsure = {**TWO["pairs"][0], "kld_difference": {"value": 0.0, "low": -1e-3, "high": 1e-3}}
    unsure["nll_difference"] = {"value": -2e-3, "low": -3e-3, "high": -1e-3}
    (pair,) = tables(markdown({**TWO, "pairs": [unsure]}), "Which differences are real")
    assert (pair["by KLD"], pair["by perplexity"]) == ("no difference", "second better")


def test_of_many_files_the_pairs_of_neighbours_are_shown() -> None:
    many = document(*(result(f"Q{size}", bytes=size) for size in (3, 9, 5, 7, 4, 8, 6)))
    shown = tables(markdown(many), "Which differences are real")
    assert {frozenset((row["first"], row["second"])) for row in shown} == {
        frozenset((f"Q{size}", f"Q{size + 1}")) for size in range(3, 9)
    }
    assert "Shown are neighbours by size, of 21 pairs" in markdown(many)


def test_other_tables() -> None:
    text = markdown()
    by_confidence = tables(text, "By the reference's confidence")
    assert by_confidence[0] == {"type": "Q8_0", "0-50 % (4,000 tokens)": "0.00200, 97.0 %", "50-100 % (0 tokens)": ""}
    speeds = tables(text, "Speed")
    assert speeds[0]["decode ratio"] == "3.00 (2.70-3.30)"
    assert speeds[1]["decode ratio"] == "3.00 (2.70-3.30) †"
    assert "† disturbed: other programs used the machine." in text
    assert [row["disturbed"] for row in speeds] == ["no", "yes"]
    assert "J/token" not in speeds[0]
    grid = tables(text, "Speed by setting")
    assert [(row["measure"], row["batch"], row["Q8_0"]) for row in grid] == [
        ("decode", "1", "300"), ("decode", "4", "600"), ("decode", "8", "849"),
    ]  # fmt: skip
    (other,) = tables(text, "Peers")
    assert (other["peer"], other["prompt t/s"], other["decode ratio"], other["sane"]) == (
        "Other", "", "0.80 (0.72-0.88)", "yes",
    )  # fmt: skip
    assert "- Absent was skipped: it is not installed" in text
    with_energy = {**TWO, "results": [{**TWO["results"][0], "joules_per_token": 0.0123}]}
    assert tables(markdown(with_energy), "Speed")[0]["J/token"] == "0.0123"


def test_a_disturbed_point_of_the_grid_is_marked() -> None:
    points = [{**TWO["results"][0]["speed"][0], "disturbed": True}]
    assert tables(markdown(document(result("Q4_0", speed=points))), "Speed by setting")[0]["Q4_0"] == "300 †"


def test_a_wide_grid_is_split() -> None:
    text = markdown(document(*(result(f"Q{number}") for number in range(11))))
    heads = [cells(line)[5:] for line in text.splitlines() if line.startswith("| measure |")]
    assert heads == [[f"Q{number}" for number in range(8)], ["Q8", "Q9", "Q10"]]


def test_what_was_measured_and_where() -> None:
    text = markdown()
    for part in (
        "1,234,567 parameters",
        "abababababababab",
        "tale.txt, 12,345 tokens",
        "chunks of 512 tokens",
        "of 5 interleaved rounds",
        "machine: A Processor 9000, 4 cores, 2 threads, 8 GiB, Linux-6, load 0.25",
        "dgpt2-quant 1.2.3, llama-cpp-python 0.3.36, Python 3.12.1",
    ):
        assert part in text
    assert all(escaped(rule) in text for rule in RULES)
    strided = {**TWO, "text": {**TWO["text"], "method": "strided", "stride": 256}}
    assert "windows of 512 tokens, 256 new ones" in markdown(strided)


def test_several_runs() -> None:
    rows = [TWO["results"][0], {**TWO["results"][1], "run": 1}]
    text = markdown(with_advice({**TWO, "results": rows, "runs": [environment(), environment(cpu="Another")]}))
    assert "run 2: Another" in text
    assert [row["run"] for row in tables(text, "Speed")] == ["1", "2"]
    assert "only these ratios can be compared" in text


def test_remarks() -> None:
    reference, mark, *advice = remarks(TWO)
    assert mark.startswith("† disturbed")
    assert reference == "Reference F32: perplexity 20.400 ± 0.240 over 6,120 tokens."
    assert advice == TWO["advice"]
    assert advice[0].startswith("Ship Q4_0")
    assert all(f"- {escaped(remark)}" in markdown() for remark in remarks(TWO))


def test_files(folder: Path) -> None:
    names = ["bench.json", "report.md", "report.html"]
    names += [f"plots/{plot}.{kind}" for plot in PLOTS for kind in ("png", "svg")]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == sorted(names)
    assert json.loads((folder / "bench.json").read_text("utf-8")) == TWO
    text = (folder / "report.md").read_text("utf-8")
    linked = re.findall(r"\]\((.+?)\)", text)
    assert linked == [f"plots/{plot}.png" for plot in PLOTS]
    assert all((folder / link).is_file() for link in linked)


def test_without_matplotlib_only_plots_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert write_report(TWO, tmp_path) == [tmp_path / name for name in ("bench.json", "report.md", "report.html")]
    for name in ("report.md", "report.html"):
        assert "pip install" in (text := (tmp_path / name).read_text("utf-8"))
        assert "<figure" not in text
        assert "plots/" not in text


@pytest.mark.parametrize("name", ["bench.json", "report.md", "report.html", "plots/batch.svg"])
def test_an_existing_report_is_kept_without_overwrite(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for refused in (lambda: refuse_reports(tmp_path), lambda: write_report(TWO, tmp_path)):
        with pytest.raises(OutputError, match=rf"{name} already exists"):
            refused()
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / name).read_text() == "mine"
    refuse_reports(tmp_path, overwrite=True)


class Page(HTMLParser):
    """What a browser would make of it: elements with their attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.seen = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.seen += data


def test_the_page_is_one_file_without_network(folder: Path) -> None:
    text = (folder / "report.html").read_text("utf-8")
    page = Page(text)
    assert sum(tag == "svg" for tag, _ in page.elements) == len(PLOTS)
    assert not {tag for tag, _ in page.elements} & {"link", "img", "iframe", "object", "image"}
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_ids_of_drawings_are_unique(folder: Path) -> None:
    page = Page((folder / "report.html").read_text("utf-8"))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', (folder / "report.html").read_text("utf-8"))
    assert used
    assert set(used) <= set(names)


def test_drawings_use_the_colours_of_the_page(folder: Path) -> None:
    page = (folder / "report.html").read_text("utf-8")
    drawing = page[page.index("<svg") : page.rindex("</svg>")]
    assert "var(--ink)" in drawing
    assert "#fefefe" not in drawing


def test_numbers_in_the_page_are_aligned_right(folder: Path) -> None:
    text = (folder / "report.html").read_text("utf-8")
    assert '<th scope="col">type</th><th scope="col" class="n">MB</th>' in text
    assert '<tr><th scope="row">Q8_0</th><td class="n">1.50</td>' in text


def test_the_policy_allows_only_the_script_of_the_page() -> None:
    import base64
    import hashlib

    text = to_html([Section("x")], {})
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert script == report_html._SCRIPT


def hostile() -> Any:
    token = {"kld": 1.0, "reference_p": 0.5, "level_p": 0.1}
    token |= dict.fromkeys(("before", "token", "reference_top", "level_top"), HOSTILE)
    whole = document(
        result(HOSTILE, recipe=HOSTILE, worst=[token]),
        result("Q4_0", ppl_ratio_interval=interval(1.0)),
        model={"name": HOSTILE, "source_sha256": HOSTILE, "parameters": 1},
        environment=environment(cpu=HOSTILE),
        runs=[environment(cpu=HOSTILE)],
        peers=[peer(HOSTILE, version=HOSTILE, precision=HOSTILE, disturbed=True)],
        skipped_peers=[{"name": HOSTILE, "reason": HOSTILE}],
        noise_floor={**document()["noise_floor"], "how": HOSTILE},
    )
    whole["text"]["name"] = HOSTILE
    whole["reference"]["type"] = HOSTILE
    return with_advice(whole)


def test_nothing_hostile_is_markup(tmp_path: Path) -> None:
    write_report(hostile(), tmp_path)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert sum(tag == "script" for tag, _ in page.elements) == 1  # ours
    assert '<script>alert("x")</script> | `b` *c*' in page.seen
    text = (tmp_path / "report.md").read_text("utf-8")
    plain = re.sub(r"</?(details|summary)>|&#\d+;|!\[.*?\]\(plots/\w+\.png\)", "", text)
    assert not re.search(r"[<>&`*\[\]\\$]", plain)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert len([line for line in text.splitlines() if line.startswith("# ")]) == 1
    for content in (page.seen, text, "".join(remarks(hostile()))):
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", content)


@pytest.mark.parametrize(
    ("plain", "markdown"),
    [
        ("Q4_K_M of 5 %", "Q4_K_M of 5 %"),
        ("a|b", "a&#124;b"),
        ("_x_ <y> `z`", "&#95;x&#95; &#60;y&#62; &#96;z&#96;"),
        ("&amp; \\", "&#38;amp; &#92;"),
        ("# x", "&#35; x"),
        ("- x", "&#45; x"),
        ("12. x", "12&#46; x"),
        ("https://a.b www.a.b @c", "https&#58;//a.b www&#46;a.b &#64;c"),
        ("a\nb\u2028c", "a&#92;nb&#92;u2028c"),
    ],
)
def test_escaped_in_markdown(plain: str, markdown: str) -> None:
    assert escaped(plain) == markdown


def test_invisible_characters_are_escaped() -> None:
    assert visible("a\tb\n\x00\u200b\U000e0041é\u00a0") == "a\\tb\\n\\x00\\u200b\\ue0041é\u00a0"
    assert quoted(' "x\\\n') == '" \\"x\\\\\\n"'
    assert quoted("abcdefgh", longest=5) == '"…efgh"'


def test_blocks() -> None:
    blocks = [Text("a < b"), Items(["c", "d"]), Table(["t", "n"], [["x", "1"], ["y", ""]]), Picture("batch", "e & f")]
    sections = [Section("One", level=1), Section("Two", blocks), Section("Three", [Text("g")], level=3, folded=True)]
    assert to_markdown(sections, {"batch": "p/b.png"}).split("\n\n") == [
        "# One",
        "## Two",
        "a &#60; b",
        "- c\n- d",
        "| t | n |\n| --- | ---: |\n| x | 1 |\n| y |  |",
        "![e &#38; f](p/b.png)",
        "<details><summary>Three</summary>",
        "g",
        "</details>\n",
    ]
    assert "p/b.png" not in to_markdown(sections, {})
    text = to_html(sections, {"batch": '<?xml?><svg><!-- x --><path id="a"/></svg>'})
    for part in ("<h1>One</h1>", "<p>a &lt; b</p>", "<li>d</li>", '<td class="n">1</td>', '<path id="batch-a"/>'):
        assert part in text
    assert "<details><summary>Three</summary>\n<p>g</p>\n</details>" in text
