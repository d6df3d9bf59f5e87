"""Whether a newer benchmark is worse than an older one: what `compare` tells, and the gate of CI.

Both must be of the same checkpoint, text, context, method and reference. The tolerances, and why they are so:

- **Mean KL divergence**: 1 % more, plus rounding: the old document's noise floor, 1e-6 nats at least and 1e-4 at most.
  The new one's is not asked, or a change that raises it would widen its own allowance. One build on one machine gives
  the same number to the last bit, whatever its thread count. Another instruction set rounds differently: the same files
  by AVX2 and by AVX-512 differed by up to 1.0 % here, 3.9 % in the 99 % quantile. A gate that compares such builds
  wants `--kld-tolerance 0.03` (docs/ci.md). One tensor of `storybook` at one level lower costs 2 to 190 % in most
  cases.
- **99 % quantile of the KL divergence**: 2 %, twice that of the mean, for it hangs on few tokens.
- **Perplexity**: 0.5 %. It is the blunter measure: a change that brings the distribution nearer to the reference's can
  raise it by some tenths of a per cent.
- **Size**: 0.1 %, for metadata that grow.
- **Bits per weight**: a level's mix is a function of type and recipe, so the same level with *fewer* bits has tensors
  that are stored lower. Some of those cost less than the tolerances (one of Q8_0's attention outputs in Q6_K changes
  the mean by 0.3 % in either direction, which is luck). A level that lost bits is therefore worse, unless it shows a
  gain for it: a mean KL divergence that is better by more than the tolerance, and neither its 99 % quantile nor the
  perplexity worse.
- **Speed** is not compared unless a tolerance is given: the medians of `decode_ratio` and `prompt_ratio`, speeds over
  the reference's in the same round, so that a faster or slower machine does not matter. On a shared machine a median
  of five rounds may be a quarter lower by chance; a level is slower if no new round was as fast as any old one, either.
  Disturbed timings are told and not compared.
- A level that is missing is worse; a new one is told. Top-1 agreement is shown and not compared: it is coarse (a step
  is one token), and no change of it comes without one of the KL divergence.
- **The reference's own perplexity** may differ by 0.1 %, up or down: more, and it is the measuring that changed.
- **The noise floor** may grow to ten times the old one's, and to 1e-5 nats in any case: more, and the reference no
  longer agrees with itself. Where one of the two was not measured, that is not compared.
"""

from dataclasses import dataclass
from typing import TypedDict

from dgpt2_quant.bench.document.format_numbers import change, label, small
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
_BITS = 0.0005  # half of the last digit that is written
_SAME_REFERENCE = 0.001


class Tolerances(TypedDict):
    """Fractions of the old value; without one for speed it is not compared."""

    kld: float
    ppl: float
    size: float
    speed: float | None


class Change(TypedDict):
    """One figure of a level; `change` is relative to the old one (null where that is 0), `compared` tells whether it
    counts, and `worse` whether it is worse by more than its tolerance."""

    type: str
    recipe: str
    figure: str
    old: float
    new: float
    change: float | None
    compared: bool
    worse: bool


class Comparison(TypedDict):
    """`worse` is the verdict, `reasons` says why, sentence by sentence; `missing` and `added` are levels that only the
    old and only the new document has; `notes` are what else is to be known."""

    worse: bool
    reasons: list[str]
    notes: list[str]
    missing: list[str]
    added: list[str]
    tolerances: Tolerances
    changes: list[Change]


def compare(
    old: BenchJson,
    new: BenchJson,
    *,
    kld_tolerance: float = KLD_TOLERANCE,
    ppl_tolerance: float = PPL_TOLERANCE,
    size_tolerance: float = SIZE_TOLERANCE,
    speed_tolerance: float | None = None,
) -> Comparison:
    """Raises `ResultError` for documents that can not be compared, `UsageError` for a tolerance below 0."""
    tolerances: Tolerances = {
        "kld": kld_tolerance,
        "ppl": ppl_tolerance,
        "size": size_tolerance,
        "speed": speed_tolerance,
    }
    for name, value in tolerances.items():
        if isinstance(value, int | float) and not 0 <= value < float("inf"):
            raise UsageError(f"a {name} tolerance of {value}; it is a fraction of the old value, 0 or more")
    refuse_different(old, new, "the old and the new document")
    before, after = _levels(old), _levels(new)
    floor = rounding(old["noise_floor"])
    changes: list[Change] = []
    reasons, notes = _reference(old, new) + _floor(old["noise_floor"], new["noise_floor"]), []
    for key, row in before.items():
        if key in after:
            compared = _Level(row, after[key], tolerances, floor)
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
    """Raises `ResultError` that names the key in which two documents differ that has to be the same in both."""
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
                f"{names} can not be laid side by side: {key} is {_shown(first)} in one and {_shown(second)} in the"
                " other",
                "Measure both with the same model, text, context, method and reference"
                + (", and special tokens read the same way (--parse-special)." if key == "text.tokens" else "."),
            )


def rounding(floor: NoiseFloor | None) -> float:
    """By how much two mean KL divergences of the same file may differ, in nats: another processor rounds otherwise."""
    return min(_MOST_ROUNDING, max(_ROUNDING, floor["kld_mean"] if floor else 0.0))


def same_reference(one: BenchJson, other: BenchJson) -> bool:
    """Whether the references' own perplexities differ by no more than rounding does."""
    return abs(other["reference"]["perplexity"] / one["reference"]["perplexity"] - 1) <= _SAME_REFERENCE


def same_quality(one: Result, other: Result, floor: float) -> bool:
    """Whether two measurements of a level differ by no more than rounding does; `floor` is from `rounding`."""
    near = abs(other["kld_mean"] - one["kld_mean"]) <= KLD_TOLERANCE * one["kld_mean"] + floor
    return near and abs(other["perplexity"] / one["perplexity"] - 1) <= _SAME_REFERENCE


@dataclass(frozen=True)
class _Level:
    """One level in both documents."""

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
                    f"{name}: {one['new']:.3f} bits per weight, {one['old']:.3f} before: tensors are stored lower, and"
                    " nothing was gained by it. If that is meant, take the new document for the old one from now on."
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
            found.append(f"{label(self.new)}: other processes disturbed a timing; its speeds are not compared.")
        if self._lost_bits() and self._gained():
            found.append(f"{label(self.new)} has fewer bits per weight, and is nearer to the reference all the same.")
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
        """By the medians, and by all rounds: chance moves a median far, and seldom every round."""
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
        """A token in the tail is further from the reference than the mean, and so is its rounding."""
        mean = max(self.old["kld_mean"], 1e-12)
        return self.floor * max(1.0, self.old["kld_p99"] / mean)

    def _disturbed(self) -> bool:
        return bool(self.old["disturbed"] or self.new["disturbed"])


def number(value: float) -> str:
    """A figure in a table: whole bytes, or as many digits as tell two of them apart."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if value >= 1 else small(value)


def _reference(old: BenchJson, new: BenchJson) -> list[str]:
    if same_reference(old, new):
        return []
    before, after = old["reference"]["perplexity"], new["reference"]["perplexity"]
    return [
        f"The reference's own perplexity is {after:.3f}, {before:.3f} before, {change(after / before - 1)}: on the same"
        " text that is a change of the measuring, or of the reference's file."
    ]


def _floor(old: NoiseFloor | None, new: NoiseFloor | None) -> list[str]:
    if not old or not new or new["kld_mean"] <= max(_SMALL_FLOOR, _FLOOR_GROWTH * old["kld_mean"]):
        return []
    return [
        f"The noise floor is {small(new['kld_mean'])}, {small(old['kld_mean'])} before: the reference differs from"
        " itself by far more, so something is wrong with the kernels or with the measuring."
    ]


def _levels(document: BenchJson) -> dict[tuple[str, str], Result]:
    return {(row["type"], row["recipe"]): row for row in document["results"]}


def _shown(value: object) -> str:
    return repr(f"{value[:16]}..." if isinstance(value, str) and len(value) > 24 else value)
