"""What is worse, what is not, and by how much: each tolerance from both sides, and a tensor planted for real."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.bench.compare import compare
from dgpt2_quant.core.errors import ResultError, UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime.model import Model

from .documents import document, rate, result

OLD = document(result("Q8_0"), result("Q4_0"))


def with_row(**changed: Any) -> Any:
    return document(result("Q8_0"), result("Q4_0", **changed))


def worse(new: Any, old: Any = OLD, **tolerances: float) -> list[str]:
    """The figures that are worse; the verdict, the reasons and the single changes have to agree."""
    found = compare(old, new, **tolerances)
    assert found["worse"] == bool(found["reasons"])
    figures = [change["figure"] for change in found["changes"] if change["worse"]]
    assert len(found["reasons"]) >= len(figures)
    return figures


def test_the_same_is_not_worse() -> None:
    found = compare(OLD, OLD)
    assert (found["worse"], found["reasons"], found["notes"], found["missing"], found["added"]) == (
        False,
        [],
        [],
        [],
        [],
    )
    assert {change["change"] for change in found["changes"]} == {0.0}


@pytest.mark.parametrize(
    ("figure", "allowed", "too_much"),
    [
        ("kld_mean", 0.00123 * 1.01, 0.00123 * 1.012),
        ("kld_p99", 0.0456 * 1.019, 0.0456 * 1.022),
        ("perplexity", 20.5 * 1.0049, 20.5 * 1.0051),
        ("bytes", 1_501_400, 1_501_600),
    ],
)
def test_tolerances(figure: str, allowed: float, too_much: float) -> None:
    assert worse(with_row(**{figure: allowed})) == []
    assert worse(with_row(**{figure: too_much})) == [figure]
    much = {"kld_tolerance": 0.5, "ppl_tolerance": 0.5, "size_tolerance": 0.5}
    assert worse(with_row(**{figure: too_much}), **much) == []


def test_better_is_not_worse() -> None:
    better = with_row(kld_mean=0.001, kld_p99=0.02, perplexity=20.0, bytes=1_000_000, top1_agreement=1.0)
    assert worse(better, kld_tolerance=0.0, ppl_tolerance=0.0, size_tolerance=0.0, speed_tolerance=0.0) == []


def test_top1_is_shown_and_not_compared() -> None:
    found = compare(OLD, with_row(top1_agreement=0.5))
    (shown,) = [c for c in found["changes"] if c["figure"] == "top1_agreement" and c["type"] == "Q4_0"]
    assert (shown["new"], shown["compared"], found["worse"]) == (0.5, False, False)


def test_rounding_of_another_processor_is_allowed() -> None:
    old, new = (document(result("F16", kld_mean=kld, kld_p99=8 * kld)) for kld in (1e-6, 1.9e-6))
    assert worse(new, old) == []
    assert worse(document(result("F16", kld_mean=3e-6, kld_p99=8e-6)), old) == ["kld_mean"]
    higher = {**old, "noise_floor": {**old["noise_floor"], "kld_mean": 3e-6}}
    new = document(result("F16", kld_mean=3.9e-6, kld_p99=8e-6))
    assert worse(new, higher) == []
    assert worse({**new, "noise_floor": higher["noise_floor"]}, old) == ["kld_mean"]  # no allowance of its own
    zero = document(result("F32", kld_mean=0.0, kld_p99=0.0))
    assert worse(zero, zero) == []
    assert worse(document(result("F32", kld_mean=1e-5, kld_p99=0.0)), zero) == ["kld_mean"]


def with_floor(noise: float | None, **row: Any) -> Any:
    floor = None if noise is None else {**OLD["noise_floor"], "kld_mean": noise}  # type: ignore[dict-item]
    return {**with_row(**row), "noise_floor": floor}


def test_the_allowance_of_a_noise_floor_is_limited() -> None:
    high = with_floor(1.0)
    assert worse(with_floor(1.0, kld_mean=0.00123 * 1.01 + 9e-5), high) == []
    assert worse(with_floor(1.0, kld_mean=0.00123 * 1.01 + 1.1e-4), high) == ["kld_mean"]
    assert worse(with_floor(1.0, kld_mean=0.0015), with_floor(None)) == ["kld_mean"]


@pytest.mark.parametrize(
    ("old", "new", "worse"),
    [
        (1e-9, 9e-6, False),
        (1e-9, 1.1e-5, True),
        (0.0, 1.1e-5, True),
        (5e-6, 4.9e-5, False),
        (5e-6, 5.1e-5, True),
        (1e-5, 1e-9, False),
        (None, 1.0, False),
        (1e-9, None, False),
    ],
)
def test_a_grown_noise_floor_is_worse(old: float | None, new: float | None, worse: bool) -> None:
    found = compare(with_floor(old), with_floor(new))
    assert found["worse"] is worse
    assert [reason.split(" is ")[0] for reason in found["reasons"]] == ["The noise floor"] * worse


def test_lost_bits_without_a_gain_are_worse() -> None:
    fewer = 4.567 - 0.006
    assert worse(with_row(bits_per_weight=fewer)) == ["bits_per_weight"]
    assert worse(with_row(bits_per_weight=fewer, kld_mean=0.00122)) == ["bits_per_weight"]  # luck
    gained: dict[str, Any] = {"bits_per_weight": fewer, "kld_mean": 0.0012}
    assert worse(with_row(**gained)) == []
    assert "fewer bits per weight, but is nearer" in compare(OLD, with_row(**gained))["notes"][0]
    assert worse(with_row(**gained, perplexity=20.51)) == ["bits_per_weight"]
    assert worse(with_row(**gained, kld_p99=0.0458)) == ["bits_per_weight"]
    assert worse(with_row(bits_per_weight=4.6)) == []


def test_speed_is_compared_by_ratio_if_a_tolerance_is_given() -> None:
    slow = with_row(decode_ratio=rate(2.4), decode_tps=rate(1.0))  # of rounds from 2.16 to 2.64, 2.7 to 3.3 before
    assert worse(slow) == []
    assert worse(slow, speed_tolerance=0.1) == ["decode_ratio"]
    assert worse(slow, speed_tolerance=0.25) == []
    assert worse(with_row(prompt_ratio=rate(1.1)), speed_tolerance=0.1) == ["prompt_ratio"]
    one_fast_round = with_row(decode_ratio={"median": 2.4, "min": 2.0, "max": 2.71, "rounds": 5})
    assert worse(one_fast_round, speed_tolerance=0.1) == []
    assert worse(with_row(decode_tps=rate(1.0)), speed_tolerance=0.1) == []  # another machine


@pytest.mark.parametrize("which", [0, 1])
def test_disturbed_timings_are_reported_not_compared(which: int) -> None:
    documents = [with_row(), with_row(decode_ratio=rate(1.0))]
    documents[which]["results"][1]["disturbed"] = True
    found = compare(*documents, speed_tolerance=0.1)
    assert not found["worse"]
    assert found["notes"] == ["Q4_0: other programs disturbed a timing; its speeds are not compared."]


def test_missing_and_new_files() -> None:
    found = compare(OLD, document(result("Q8_0"), result("Q4_0", recipe="lean")))
    assert found["worse"]
    assert (found["missing"], found["added"]) == (["Q4_0"], ["Q4_0 lean"])
    assert found["reasons"] == ["Q4_0 is missing in the new document."]
    assert found["notes"] == ["Q4_0 lean is new."]


def test_reasons_are_sentences() -> None:
    (reason,) = compare(OLD, with_row(kld_mean=0.0015))["reasons"]
    assert reason == "Q4_0: mean KL divergence 0.00150, 0.00123 before, +21.95 %."


@pytest.mark.parametrize("by", [0.998, 1.002])
def test_another_perplexity_of_the_reference_is_worse(by: float) -> None:
    new = with_row()
    new["reference"] = {**new["reference"], "perplexity": 20.4 * by}
    (reason,) = compare(OLD, new)["reasons"]
    assert reason.startswith("The reference's own perplexity is")


@pytest.mark.parametrize(
    ("part", "key"), [("model", "source_sha256"), ("text", "sha256"), ("text", "context"), ("reference", "type")]
)
def test_documents_that_cannot_be_compared(part: str, key: str) -> None:
    new: Any = with_row()
    new[part] = {**new[part], key: "other"}
    with pytest.raises(ResultError, match=rf"cannot be compared: {part}\.{key} is .* in one and 'other'"):
        compare(OLD, new)


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf"), -1])
def test_invalid_tolerances(tolerance: float) -> None:
    for name in ("kld_tolerance", "ppl_tolerance", "size_tolerance", "speed_tolerance"):
        with pytest.raises(UsageError, match="_tolerance` must be 0 or more"):
            compare(OLD, OLD, **{name: tolerance})


# In each pair a tensor is stored one level lower than the mix has it. The second one's KL divergence is *lower* than
# without that, by luck: its lost bits give it away.
PLANTED = [("q4_k_m", "blk.5.attn_output.weight=q3_k"), ("q8_0", "blk.0.attn_output.weight=q6_k")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Documents with the real figures of a level: as it is, measured twice, and with the planted tensor."""
    folder = tmp_path_factory.mktemp("planted")
    text = load_text().text[:4_300]

    def log_probs(path: Path) -> tuple[Any, Any]:
        rows, targets = [], []
        with Model.load(path, ctx_size=512, threads=2) as model:
            tokens = model.tokenize(text, special=False)
            for start in range(0, len(tokens) - 511, 512):
                chunk = tokens[start : start + 512]
                logits = model.logits(chunk, 256)[:-1].astype(np.float64)
                logits -= logits.max(axis=-1, keepdims=True)
                rows.append(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))
                targets += chunk[257:]
        return np.concatenate(rows), np.array(targets)

    (base,) = convert("storybook", type="f32", output=folder)
    reference, _ = log_probs(Path(base.path))

    def of(level: str, *tensors: str) -> Any:
        (file,) = convert("storybook", type=level, output=folder, tensor_type=tensors, overwrite=True)
        found, targets = log_probs(path := Path(file.path))
        kld = (np.exp(reference) * (reference - found)).sum(axis=-1)
        return document(
            result(
                file.type,
                bytes=file.bytes,
                bits_per_weight=round(read_header(path).bits_per_weight, 3),
                kld_mean=float(kld.mean()),
                kld_p99=float(np.quantile(kld, 0.99)),
                perplexity=float(np.exp(-found[np.arange(len(targets)), targets].mean())),
            )
        )

    return of


@pytest.mark.parametrize(("level", "tensor"), PLANTED)
def test_one_tensor_with_a_lower_type_is_caught(level: str, tensor: str, measured: Any) -> None:
    good, again, planted = measured(level), measured(level), measured(level, tensor)
    assert not compare(good, again)["worse"]
    assert compare(good, planted)["worse"]
