"""Runs that become one document, those that do not belong together, and files that are none."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.bench.document.read import read_document
from dgpt2_quant.bench.merge import merge
from dgpt2_quant.core.errors import ResultError, UsageError

from .documents import document, environment, peer, rate, result

FAST = environment(cpu="Fast", cores=16)


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), "utf-8")
    return path


def changed(content: Any, key: str, value: Any) -> Any:
    """A copy with another value at `a.b[0].c`; `...` for no such key at all."""
    content = copy.deepcopy(content)
    *way, last = [int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", key) if part]
    place = content
    for part in way:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    one = document(
        result("Q4_0", bytes=5), result("Q8_0", bytes=8), peers=[peer("A"), peer("B")],
        skipped_peers=[{"name": "C", "reason": "absent"}],
    )  # fmt: skip
    other = document(
        result("F16", bytes=16),
        environment=FAST,
        runs=[FAST],
        peers=[peer("B", decode_ratio=rate(7.0)), peer("C")],
        noise_floor={**one["noise_floor"], "kld_mean": 5e-9},
    )
    return write(tmp_path / "a.json", one), write(tmp_path / "b.json", other)


def test_two_runs(two: tuple[Path, Path]) -> None:
    merged = merge(two)
    assert [(row["type"], row["run"]) for row in merged["results"]] == [("F16", 1), ("Q8_0", 0), ("Q4_0", 0)]
    assert [run["cpu"] for run in merged["runs"]] == ["A Processor 9000", "Fast"]
    assert merged["environment"] == merged["runs"][0]
    assert [(one["name"], one["decode_ratio"]["median"]) for one in merged["peers"]] == [
        ("A", 0.8),
        ("B", 7.0),
        ("C", 0.8),
    ]
    assert merged["skipped_peers"] == []  # it was there in the other run
    assert [(pair["a"], pair["b"]) for pair in merged["pairs"]] == [("Q4_0", "Q8_0")]
    assert merged["noise_floor"]["kld_mean"] == 5e-9  # the higher one
    assert merged["recommended"]["smallest_within_1pct_ppl"] == "Q4_0"
    assert any("several runs" in line for line in merged["advice"])


def test_what_was_merged_can_be_merged_again(two: tuple[Path, Path], tmp_path: Path) -> None:
    again = write(tmp_path / "both.json", merge(two))
    third = environment(cpu="Third")
    other = write(tmp_path / "c.json", document(result("Q5_0", bytes=6), environment=third, runs=[third]))
    merged = merge([other, again])
    where = {row["type"]: merged["runs"][row["run"]]["cpu"] for row in merged["results"]}
    assert where == {"Q5_0": "Third", "F16": "Fast", "Q8_0": "A Processor 9000", "Q4_0": "A Processor 9000"}


def test_a_single_run_keeps_its_order_and_gets_new_advice(two: tuple[Path, Path]) -> None:
    merged = merge(two[:1])
    assert [row["type"] for row in merged["results"]] == ["Q4_0", "Q8_0"]
    assert merged["advice"]


def test_the_later_of_two_equal_files_is_kept(two: tuple[Path, Path], tmp_path: Path) -> None:
    again = result("Q4_0", bytes=5, decode_tps=rate(999.0), kld_mean=0.00123 * 1.005)
    later = write(tmp_path / "later.json", document(again, environment=FAST, runs=[FAST]))
    merged = merge([two[0], later])
    assert [(row["type"], row["decode_tps"]["median"], row["run"]) for row in merged["results"]] == [
        ("Q8_0", 300.6, 0), ("Q4_0", 999.0, 1),
    ]  # fmt: skip
    only = merge([write(tmp_path / "early.json", document(result("Q4_0", bytes=5))), later])
    assert [run["cpu"] for run in only["runs"]] == ["Fast"]  # nothing of the first is left
    assert only["results"][0]["run"] == 0


def test_another_recipe_is_another_row(two: tuple[Path, Path], tmp_path: Path) -> None:
    lean = write(tmp_path / "lean.json", document(result("Q4_0", recipe="lean", bytes=4, kld_mean=0.5)))
    merged = merge([two[0], lean])
    assert len(merged["results"]) == 3
    assert merged["pairs"] == merge([two[0]])["pairs"]
    assert "Q4_0 lean" not in str(merged["pairs"])


def test_the_reference_is_from_the_first_used_run(two: tuple[Path, Path], tmp_path: Path) -> None:
    def measured(name: str, cpu: str, speed: float, *levels: Any) -> Path:
        run = environment(cpu=cpu)
        reference = {**document()["reference"], "decode_tps": rate(speed), "perplexity": 20.4 * (1 + speed / 1e6)}
        return write(tmp_path / name, document(*levels, environment=run, runs=[run], reference=reference))

    q4, q8 = result("Q4_0", bytes=5), result("Q8_0", bytes=8)
    slow, fast = measured("slow.json", "Slow", 100.0, q4), measured("fast.json", "Fast", 900.0, q4)
    for files, cpu, speed in (([slow, fast], "Fast", 900.0), ([fast, slow], "Slow", 100.0)):
        merged = merge(files)
        assert (merged["environment"]["cpu"], merged["reference"]["decode_tps"]["median"]) == (cpu, speed)
    kept = merge([measured("both.json", "Both", 500.0, q4, q8), fast])
    assert (kept["environment"]["cpu"], kept["reference"]["decode_tps"]["median"]) == ("Both", 500.0)


@pytest.mark.parametrize(("by", "refused"), [(0.998, True), (0.9995, False), (1.0005, False), (1.002, True)])
def test_another_perplexity_of_the_reference_is_refused(by: float, refused: bool, two: tuple[Path, Path]) -> None:
    write(two[1], changed(json.loads(two[1].read_text()), "reference.perplexity", 20.4 * by))
    if not refused:
        assert len(merge(two)["results"]) == 3
        return
    with pytest.raises(
        ResultError, match=r"a\.json and .*b\.json cannot be compared: reference\.perplexity is 20\.4000 in one"
    ):
        merge(two)


@pytest.mark.parametrize("key", ["kld_mean", "perplexity"])
def test_the_same_file_with_another_quality_is_refused(key: str, two: tuple[Path, Path], tmp_path: Path) -> None:
    good = result("Q4_0", bytes=5)
    later = write(tmp_path / "later.json", document({**good, key: good[key] * 1.02}))  # type: ignore[literal-required]
    with pytest.raises(ResultError, match=rf"Q4_0 differs between .*a\.json and .*later\.json: .*{key}"):
        merge([two[0], later])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.source_sha256", "00" * 32),
        ("text.sha256", "00" * 32),
        ("text.context", 256),
        ("text.method", "strided"),
        ("text.stride", 128),
        ("reference.type", "F16"),
        ("reference.tokens_scored", 6_119),
    ],
)
def test_documents_that_do_not_match_are_refused(key: str, value: Any, two: tuple[Path, Path]) -> None:
    write(two[1], changed(json.loads(two[1].read_text()), key, value))
    with pytest.raises(ResultError, match=rf"a\.json and .*b\.json cannot be compared: {re.escape(key)} is"):
        merge(two)


def test_no_files_at_all() -> None:
    with pytest.raises(UsageError, match="`results` is empty"):
        merge([])


GOOD = document(result("Q4_0"), result("Q8_0"), peers=[peer("A")])


def test_a_valid_document_is_read_unchanged(tmp_path: Path) -> None:
    assert read_document(write(tmp_path / "a.json", GOOD)) == GOOD
    more = changed(changed(GOOD, "later", 1), "results[0].later", {"x": []})
    assert read_document(write(tmp_path / "a.json", more)) == GOOD  # what is not known is left out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("results[0].load_disturbed", True),
        ("reference.disturbed", None),
        ("runs[0].rounds_asked", 5),
        ("runs[0].disturbed_seconds", 61.5),
        ("recommended.fastest_disturbed", True),
    ],
)
def test_keys_that_older_documents_lack(key: str, value: Any, tmp_path: Path) -> None:
    newer = changed(GOOD, key, value)
    assert read_document(write(tmp_path / "a.json", newer)) == newer
    with pytest.raises(ResultError, match=re.escape(key)):
        read_document(write(tmp_path / "b.json", changed(GOOD, key, "much")))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("schema_version", 2, "schema version 2; this version of dgpt2-quant reads up to 1"),
        ("schema_version", "1", "lacks schema_version"),
        ("schema_version", ..., "lacks schema_version"),
        ("runs", ..., "lacks runs: it is incomplete, or of an older version"),
        ("results[1].kld_interval", ..., r"lacks results\[1\]\.kld_interval"),
        ("results[0].kld_interval.low", None, r"results\[0\]\.kld_interval\.low is not a number"),
        ("results[0].bytes", 1.5, r"results\[0\]\.bytes is not a whole number"),
        ("results[0].bytes", 0, r"results\[0\]\.bytes is 0, which is impossible"),
        ("results[0].perplexity", -3.0, r"perplexity is -3\.0, which"),
        ("results[0].perplexity", True, "perplexity is not a number"),
        ("results[0].perplexity", 10**400, "perplexity is out of range"),
        ("results[0].decode_ratio.median", 0.0, r"decode_ratio\.median is 0\.0"),
        ("results[0].top1_agreement", 1.5, r"top1_agreement is 1\.5"),
        ("results[0].disturbed", "no", "disturbed is not true or false"),
        ("results[0].type", 4, r"results\[0\]\.type is not a text"),
        ("results[0].type", "\ud800", "type is not a text"),
        ("results[0].worst", {}, "worst is not a list"),
        ("results[0]", [], r"results\[0\] is not an object"),
        ("results[1].run", 1, r"results\[1\]\.run is 1, but there are 1"),
        ("results[1].run", -1, r"run is -1"),
        ("results", [], "results is empty"),
        ("results[1].type", "Q4_0", r"results\[1\] is Q4_0, and so is results\[0\]"),
        ("results[0].kld_mean", 5e-324, r"results\[0\]\.kld_mean must be 0, or 1e-30 nats or more, not 5e-324"),
        ("results[0].kld_mean", 1e15, r"kld_mean must be at most 1e\+06 nats, not 10*\.0"),
        ("results[0].kld_interval.high", 1e7, r"kld_interval\.high must be "),
        ("results[0].kld_p99", 10**7, r"kld_p99 must be "),
        ("results[0].worst[0].kld", 1e7, r"worst\[0\]\.kld must be "),
        ("noise_floor.kld_mean", 1e-31, r"noise_floor\.kld_mean must be "),
        ("pairs[0].kld_difference.low", -1e7, r"kld_difference\.low must be "),
        ("reference.perplexity", 5e-324, r"reference\.perplexity must be 1e-09 or more, not 5e-324"),
        ("results[0].decode_ratio.min", 1e-300, r"decode_ratio\.min must be "),
        ("noise_floor.kld_mean", None, r"noise_floor\.kld_mean is not a number"),
        ("peers[0].load_ms", "soon", r"peers\[0\]\.load_ms is not a number"),
    ],
)
def test_a_broken_document_is_one_sentence(key: str, value: Any, says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.json", changed(GOOD, key, value))
    with pytest.raises(ResultError, match=rf"bad\.json .*{says}") as caught:
        read_document(path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "key", ["noise_floor", "results[0].disturbed", "results[0].nll_correlation", "peers[0].load_ms"]
)
def test_figures_that_may_be_null(key: str, tmp_path: Path) -> None:
    known, unknown = (
        read_document(write(tmp_path / name, part)) for name, part in (("a", GOOD), ("b", changed(GOOD, key, None)))
    )
    assert unknown == changed(known, key, None)


def test_signed_figures(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", changed(GOOD, "pairs[0].nll_difference.low", -0.5))
    assert read_document(path)["pairs"][0]["nll_difference"]["low"] == -0.5


@pytest.mark.parametrize("value", [0, 0.0, 1e-30, 1e6])
def test_divergences_at_the_limits(value: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", changed(GOOD, "results[0].kld_mean", value))
    assert read_document(path)["results"][0]["kld_mean"] == value


SOUND = json.dumps(GOOD)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b"null", "is not a JSON object"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"schema_version": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (SOUND.replace('"loadavg": 0.25', '"loadavg": NaN').encode(), "loadavg is out of range"),
        (SOUND.replace('"loadavg": 0.25', '"loadavg": 1e999').encode(), "loadavg is out of range"),
    ],
    ids=["empty", "python", "utf-16", "list", "null", "deep", "long", "nan", "infinite"],
)
def test_invalid_documents(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(ResultError, match=rf"bad\.json .*{says}"):
        read_document(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (lambda folder: folder / "none.json", "there is no file"),
        (lambda folder: folder, "is a folder"),
        (lambda folder: Path(os.devnull), "is not a regular file"),
        (lambda folder: folder / "a\0b", "not valid JSON|cannot be read"),
        (lambda folder: folder / ("x" * 300), "cannot be read"),
    ],
    ids=["absent", "folder", "device", "null", "long"],
)
def test_unreadable_files(name: Callable[[Path], Path], says: str, tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=says):
        read_document(name(tmp_path))


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    tool = Path(sys.executable).with_name("dgpt2-quant")
    done = subprocess.run([tool, "compare", pipe, pipe], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert f"{pipe} is not a regular file" in done.stderr
