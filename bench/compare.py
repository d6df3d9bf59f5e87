"""Compares two benchmarks and decides whether the newer one is worse: the verb `compare`, and the gate of CI.

Both must have the same checkpoint, text, context, method and reference. The tolerances and their reasons:

- **Mean KL divergence**: 1 % more, plus rounding, which is the old document's noise floor, at least 1e-6 and at most
  1e-4 nats. (With the new noise floor, a change that raises it would widen its own allowance.) One build on one
  machine gives the same number to the last bit, on any number of threads. Other instruction sets round differently:
  with AVX2 and AVX-512 the same files differed by up to 1.0 %, and by 3.9 % in the 99 % quantile. A gate that compares
  such builds needs `kld_tolerance=0.03` (docs/ci.md). One tensor of `storybook` at the next lower quant type costs 2 to
  190 % in most cases.
- **99 % quantile of the KL divergence**: 2 %, twice that of the mean, because it depends on few tokens.
- **Perplexity**: 0.5 %. It is the coarser measure: a change that brings the distribution nearer to the reference's can
  raise it by some tenths of a per cent.
- **Size**: 0.1 %, because metadata may grow.
- **Bits per weight**: the mix of a file follows from quant type and recipe, so *fewer* bits of the same type mean
  tensors with a lower quant type. Some of those cost less than the tolerances (one of Q8_0's attention outputs in Q6_K
  changes the mean by 0.3 % in either direction, by chance). A file that lost bits is therefore worse, unless its mean
  KL divergence is better by more than the tolerance, and neither its 99 % quantile nor its perplexity is worse.
- **Speed** is compared only if a tolerance is given: the medians of `decode_ratio` and `prompt_ratio`, which are
  relative to the reference in the same round, so that the machine's speed does not matter. On a shared machine a median
  of five rounds may be a quarter lower by chance. So a file is slower only if no new round was as fast as any old one.
  Disturbed timings are reported, not compared.
- A missing file is worse; a new one is reported. Top-1 agreement is shown, not compared: it is coarse (a step is one
  token), and it does not change without the KL divergence.
- **The reference's own perplexity** may differ by 0.1 % in either direction; a larger difference means that the
  measurement changed.
- **The noise floor** may grow to ten times the old one, and to 1e-5 nats in any case; a higher one means that the
  reference no longer agrees with itself. It is not compared if one of the two was not measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from dgpt2_quant.bench.document.format_numbers import change, label, small
from dgpt2_quant.bench.document.read import read_document
from dgpt2_quant.bench.document.schema import BenchJson, NoiseFloor, Result
from dgpt2_quant.core.errors import ResultError, UsageError

KLD_TOLERANCE = 0.01
PPL_TOLERANCE = 0.005
SIZE_TOLERANCE = 0.001
_P99_FACTOR = 2.0
_ROUNDING = 1e-6  # nats; about a fifth of what F16 costs
_MOST_ROUNDING = 1e-4  # nats; about a fifth of what Q8_0 costs
_FLOOR_GROWTH = 10.0
_SMALL_FLOOR = 1e-5  # nats; that of `storybook` is 0.9e-5
_BITS = 0.0005  # half of the last written digit
_SAME_REFERENCE = 0.001


class Tolerances(TypedDict):
    """Fractions of the old value; speed is not compared if its tolerance is null."""

    kld: float
    ppl: float
    size: float
    speed: float | None


class Change(TypedDict):
    """One figure of a file: `change` is relative to the old value (null if that is 0), `compared` whether it counts,
    and `worse` whether it is worse by more than its tolerance."""

    type: str
    recipe: str
    figure: str
    old: float
    new: float
    change: float | None
    compared: bool
    worse: bool


class Comparison(TypedDict):
    """`worse` is the verdict, `reasons` and `notes` are sentences; `missing` and `added` are files
    that only the old or only the new document has."""

    worse: bool
    reasons: list[str]
    notes: list[str]
    missing: list[str]
    added: list[str]
    tolerances: Tolerances
    changes: list[Change]


def compare(
    old: BenchJson | str | Path,
    new: BenchJson | str | Path,
    *,
    kld_tolerance: float = KLD_TOLERANCE,
    ppl_tolerance: float = PPL_TOLERANCE,
    size_tolerance: float = SIZE_TOLERANCE,
    speed_tolerance: float | None = None,
) -> Comparison:
    """Compares two documents, or two files `bench.json`. Tolerances are fractions of the old value.

    Raises `ResultError` for documents that cannot be compared, `UsageError` for a tolerance below 0.
    """
    old, new = (read_document(Path(one)) if isinstance(one, str | Path) else one for one in (old, new))
    tolerances: Tolerances = {
        "kld": kld_tolerance,
        "ppl": ppl_tolerance,
        "size": size_tolerance,
        "speed": speed_tolerance,
    }
    for name, value in tolerances.items():
        if isinstance(value, int | float) and not 0 <= value < float("inf"):
            raise UsageError(f"`{name}_tolerance` must be 0 or more, a fraction of the old value, not {value}")
    refuse_different(old, new, "the old and the new document")
    before, after = ({(row["type"], row["recipe"]): row for row in one["results"]} for one in (old, new))
    floor = rounding(old["noise_floor"])
    changes: list[Change] = []
    reasons, notes = _reference(old, new) + _floor(old["noise_floor"], new["noise_floor"]), []
    for key, row in before.items():
        if key in after:
            compared = _Rows(row, after[key], tolerances, floor)
            changes += compared.changes()
            reasons += compared.reasons()
            notes += compared.notes()
    missing = [label(row) for key, row in before.items() if key not in after]
    added = [label(row) for key, row in after.items() if key not in before]
    reasons += [f"{name} is missing in the new document." for name in missing]
    notes += [f"{name} is new." for name in added]
    return {
        "worse": bool(reasons),
        "reasons": reasons,
        "notes": notes,
        "missing": missing,
        "added": added,
        "tolerances": tolerances,
        "changes": changes,
    }


def refuse_different(one: BenchJson, other: BenchJson, names: str) -> None:
    """Raises `ResultError` with the first key that must be the same in both documents, and is not."""
    same = [
        ("schema_version", one["schema_version"], other["schema_version"]),
        ("model.source_sha256", one["model"]["source_sha256"], other["model"]["source_sha256"]),
        ("text.sha256", one["text"]["sha256"], other["text"]["sha256"]),
        ("text.tokens", one["text"]["tokens"], other["text"]["tokens"]),
        ("text.context", one["text"]["context"], other["text"]["context"]),
        ("text.method", one["text"]["method"], other["text"]["method"]),
        ("text.stride", one["text"]["stride"], other["text"]["stride"]),
        ("reference.type", one["reference"]["type"], other["reference"]["type"]),
        ("reference.tokens_scored", one["reference"]["tokens_scored"], other["reference"]["tokens_scored"]),
    ]
    for key, first, second in same:
        if first != second:
            raise ResultError(
                f"{names} cannot be compared: {key} is {_shown(first)} in one and {_shown(second)} in the other",
                "Measure both with the same model, text, context, method and reference"
                + (", and the same `parse_special`." if key == "text.tokens" else "."),
            )


def rounding(floor: NoiseFloor | None) -> float:
    """The allowed difference of two mean KL divergences of the same file, in nats: processors round differently."""
    return min(_MOST_ROUNDING, max(_ROUNDING, floor["kld_mean"] if floor else 0.0))


def same_reference(one: BenchJson, other: BenchJson) -> bool:
    """Whether the references' own perplexities are equal within rounding."""
    return abs(other["reference"]["perplexity"] / one["reference"]["perplexity"] - 1) <= _SAME_REFERENCE


def same_quality(one: Result, other: Result, floor: float) -> bool:
    """Whether two measurements of a file are equal within rounding; `floor` is from `rounding`."""
    near = abs(other["kld_mean"] - one["kld_mean"]) <= KLD_TOLERANCE * one["kld_mean"] + floor
    return near and abs(other["perplexity"] / one["perplexity"] - 1) <= _SAME_REFERENCE


@dataclass(frozen=True)
class _Rows:
    """The rows of one file in both documents."""

    old: Result
    new: Result
    tolerances: Tolerances
    floor: float

    def changes(self) -> list[Change]:
        fast = self.tolerances["speed"] is not None and not self._disturbed()
        return [
            self._change("bytes", True, self._grew()),
            self._change("bits_per_weight", True, self._lost_bits() and not self._gained()),
            self._change("perplexity", True, self._above("perplexity", self.tolerances["ppl"], 0.0)),
            self._change("kld_mean", True, self._above("kld_mean", self.tolerances["kld"], self.floor)),
            self._change("kld_p99", True, self._above("kld_p99", self._p99(), self._p99_floor())),
            self._change("top1_agreement", False, False),
            self._change("decode_ratio", fast, fast and self._slower("decode_ratio")),
            self._change("prompt_ratio", fast, fast and self._slower("prompt_ratio")),
        ]

    def reasons(self) -> list[str]:
        name = label(self.new)
        found = []
        for one in self.changes():
            if one["worse"] and one["figure"] == "bits_per_weight":
                found.append(
                    f"{name}: {one['new']:.3f} bits per weight, {one['old']:.3f} before: tensors have lower quant"
                    " types, without a gain. If this is intended, compare with the new document from now on."
                )
            elif one["worse"]:
                words = {"bytes": "size in bytes", "kld_mean": "mean KL divergence", "kld_p99": "KL divergence, 99 %"}
                figure = words.get(one["figure"], one["figure"].replace("_", " "))
                by = "" if one["change"] is None else f", {change(one['change'])}"
                found.append(f"{name}: {figure} {number(one['new'])}, {number(one['old'])} before{by}.")
        return found

    def notes(self) -> list[str]:
        found = []
        if self._disturbed():
            found.append(f"{label(self.new)}: other programs disturbed a timing; its speeds are not compared.")
        if self._lost_bits() and self._gained():
            found.append(f"{label(self.new)} has fewer bits per weight, but is nearer to the reference.")
        return found

    def _change(self, figure: str, compared: bool, worse: bool) -> Change:
        before, after = self._figure(self.old, figure), self._figure(self.new, figure)
        return {
            "type": self.new["type"],
            "recipe": self.new["recipe"],
            "figure": figure,
            "old": before,
            "new": after,
            "change": after / before - 1 if before else None,
            "compared": compared,
            "worse": worse,
        }

    def _figure(self, row: Result, figure: str) -> float:
        value = row[figure]  # type: ignore[literal-required]
        return float(value["median"]) if isinstance(value, dict) else value

    def _above(self, figure: str, tolerance: float, allowance: float) -> bool:
        return self._figure(self.new, figure) > self._figure(self.old, figure) * (1 + tolerance) + allowance

    def _slower(self, figure: str) -> bool:
        """Compares medians and all rounds: chance moves a median far, but rarely every round."""
        tolerance = self.tolerances["speed"] or 0.0
        old, new = self.old[figure], self.new[figure]  # type: ignore[literal-required]
        return bool(new["median"] < old["median"] * (1 - tolerance) and new["max"] < old["min"])

    def _grew(self) -> bool:
        return self.new["bytes"] > self.old["bytes"] * (1 + self.tolerances["size"])

    def _lost_bits(self) -> bool:
        return self.new["bits_per_weight"] < self.old["bits_per_weight"] - _BITS

    def _gained(self) -> bool:
        nearer = self.new["kld_mean"] < self.old["kld_mean"] * (1 - self.tolerances["kld"]) - self.floor
        worse = self._above("kld_p99", 0.0, self._p99_floor()) or self._above("perplexity", 0.0, 0.0)
        return nearer and not worse

    def _p99(self) -> float:
        return _P99_FACTOR * self.tolerances["kld"]

    def _p99_floor(self) -> float:
        """Rounding in the tail, which is larger in proportion to the divergence."""
        mean = max(self.old["kld_mean"], 1e-12)
        return self.floor * max(1.0, self.old["kld_p99"] / mean)

    def _disturbed(self) -> bool:
        return bool(self.old["disturbed"] or self.new["disturbed"])


def number(value: float) -> str:
    """A figure in a table: whole bytes, or enough digits to distinguish two of them."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if value >= 1 else small(value)


def _reference(old: BenchJson, new: BenchJson) -> list[str]:
    if same_reference(old, new):
        return []
    before, after = old["reference"]["perplexity"], new["reference"]["perplexity"]
    return [
        f"The reference's own perplexity is {after:.3f}, {before:.3f} before, {change(after / before - 1)}: on the same"
        " text, the measurement or the reference file has changed."
    ]


def _floor(old: NoiseFloor | None, new: NoiseFloor | None) -> list[str]:
    if not old or not new or new["kld_mean"] <= max(_SMALL_FLOOR, _FLOOR_GROWTH * old["kld_mean"]):
        return []
    return [
        f"The noise floor is {small(new['kld_mean'])}, {small(old['kld_mean'])} before: the reference differs much more"
        " from itself, so the kernels or the measurement are wrong."
    ]


def _shown(value: object) -> str:
    return repr(f"{value[:16]}..." if isinstance(value, str) and len(value) > 24 else value)
