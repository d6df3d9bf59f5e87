"""The advice of a report: which quant type to ship, with reasons.

Every sentence follows from a rule in `RULES`, which the report prints too. Intervals are 95 % intervals by (paired)
bootstrap; ranges of speeds are over the rounds.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from dgpt2_quant.bench.document.blocks import shortened
from dgpt2_quant.bench.document.format_numbers import change, label, name_of, of_several_runs, percent, small
from dgpt2_quant.bench.document.schema import BenchJson, PeerJson, Recommended, Result

WITHIN = 1.01  # ratio to the reference's perplexity that counts as no real loss
RULES = (
    "A file is within 1 % if its perplexity is at most 1.01 times the reference's. Of these files, ship the smallest "
    "if size matters, the one with the fastest decoding if speed matters. If the 95 % interval of the ratio exceeds "
    "1.01, the advice says so, and names the smallest file whose whole interval is within 1 %.",
    "If no file is within 1 %, the nearest to the reference is named, and none is recommended.",
    "Two files have no clear difference in speed if their ratios to the reference's speed overlap over the rounds.",
    "A file is dominated if another one is smaller, decodes faster and has a smaller KL divergence.",
    "Of two neighbours by size, the smaller one is preferred unless the paired interval shows that its KL divergence "
    "is larger.",
    "A file is at the noise floor if the lower end of its KL divergence's interval is not above the divergence of the "
    "reference from itself, computed in another way.",
    "Speeds of several runs are compared by their ratio to the reference in the same round, because machines may "
    "differ.",
    "If other programs disturbed a timing, the choice of the fastest says so, and that timing makes no file dominated.",
    "There is a warning for disturbed timings, for fewer than three rounds, for rounds that were skipped on a busy "
    "machine, and for a 99.9 % quantile with fewer than ten tokens above it.",
)
_TAIL = 10  # tokens above a quantile that make it reliable
_NAMES = 8  # in a sentence


def recommend(results: Sequence[Result]) -> Recommended:
    """The smallest file, and the fastest to decode, of those within 1 % of the reference's perplexity."""
    good = [result for result in results if result["ppl_ratio"] <= WITHIN]
    smallest = min(good, key=_size, default=None)
    fastest = max(good, key=_speed_of(good), default=None)
    disturbed = [row["disturbed"] for row in good]
    return {
        "smallest_within_1pct_ppl": name_of(smallest) if smallest else None,
        "fastest_within_1pct_ppl": name_of(fastest) if fastest else None,
        "fastest_disturbed": True if True in disturbed else None if None in disturbed else False,
    }


def advise(document: BenchJson) -> list[str]:
    """The advice in sentences, the most important first; the document's own `advice` is not read."""
    results = document["results"]
    if not results:
        return []
    return [
        *_what_to_ship(document),
        *_equal_to_reference(document),
        *_at_the_floor(document),
        *_dominated(results),
        *_same_for_less(document),
        *_peers(document),
        *_warnings(document),
    ]


def with_advice(document: BenchJson) -> BenchJson:
    """The document with new `recommended` and `advice`, from its figures."""
    return {**document, "recommended": recommend(document["results"]), "advice": advise(document)}


def _what_to_ship(document: BenchJson) -> list[str]:
    results, base = document["results"], document["reference"]["type"]
    good = [result for result in results if result["ppl_ratio"] <= WITHIN]
    if not good:
        nearest = min(results, key=lambda result: result["ppl_ratio"])
        return [
            f"No file is within 1 % of {base}'s perplexity, so none is recommended. The nearest is {_name(nearest)},"
            f" {_loss(nearest)}."
        ]
    smallest = min(good, key=_size)
    size = f"{smallest['bytes'] / 1e6:.1f} MB, {percent(smallest['bytes'] / document['reference']['bytes'], 0)}"
    lines = [
        f"Ship {_name(smallest)}: the smallest file ({size} of {base}'s size) within 1 % of {base}'s perplexity,"
        f" {_loss(smallest)}."
    ]
    if smallest["ppl_ratio_interval"]["high"] > WITHIN:
        sure = min((row for row in good if row["ppl_ratio_interval"]["high"] <= WITHIN), key=_size, default=None)
        which = f"The smallest file with its whole interval within 1 % is {_name(sure)}" if sure else "No file's is"
        lines.append(f"This interval exceeds 1 %: a longer text may give another result. {which}.")
    return [*lines, _fastest(good, smallest, base)]


def _fastest(good: Sequence[Result], smallest: Result, base: str) -> str:
    speed = _speed_of(good)
    fastest = max(good, key=speed)
    least = fastest["decode_ratio"]["min"]
    close = [row for row in good if row is not fastest and row["decode_ratio"]["max"] >= least]
    line = (
        f"{'It also' if fastest is smallest else 'Of these, ' + _name(fastest)} decodes fastest, at"
        f" {fastest['decode_ratio']['median']:.2f} times {base}'s speed"
    )
    if close:
        line += f"; over the rounds this overlaps with {_names(close)}"
    if any(row["disturbed"] for row in good):
        line += "; other programs disturbed the timing: measure again on a quiet machine to choose by speed"
    return line + "."


def _equal_to_reference(document: BenchJson) -> list[str]:
    base = document["reference"]["type"]
    same = [
        row
        for row in document["results"]
        if row["kld_mean"] > 0 and row["ppl_ratio_interval"]["low"] <= 1 <= row["ppl_ratio_interval"]["high"]
    ]
    if not same:
        return []
    return [
        f"Perplexity on this text does not distinguish {_names(same)} from {base}: the 95 % interval of the ratio"
        " contains 1. The KL divergence shows which is nearer."
    ]


def _at_the_floor(document: BenchJson) -> list[str]:
    floor = document["noise_floor"]
    if not floor:
        return []
    base = document["reference"]["type"]
    at_it = [
        row for row in document["results"] if row["type"] != base and row["kld_interval"]["low"] <= floor["kld_mean"]
    ]
    if not at_it:
        return []
    return [
        f"{_names(at_it)} {'is' if len(at_it) == 1 else 'are'} at the noise floor: no further from {base} than it is"
        f" from itself ({floor['how']})."
    ]


def _dominated(results: Sequence[Result]) -> list[str]:
    found = []
    speed = _speed_of(results)
    for row in results:
        better = [
            other
            for other in results
            if other["bytes"] < row["bytes"] and speed(other) > speed(row) and other["kld_mean"] < row["kld_mean"]
            if not (other["disturbed"] or row["disturbed"])
        ]
        if better:
            found.append(f"{_name(row)} ({_name(min(better, key=lambda other: other['kld_mean']))})")
    if not found:
        return []
    return [
        "Do not use these; the file in brackets is smaller, faster and nearer to the reference: " + _listed(found) + "."
    ]


def _same_for_less(document: BenchJson) -> list[str]:
    ordered = sorted(document["results"], key=_size)
    by_name = {(pair["a"], pair["b"]): pair["kld_difference"] for pair in document["pairs"]}
    found = []
    for smaller, larger in pairwise(ordered):
        names = name_of(larger), name_of(smaller)
        if names in by_name:
            further = by_name[names]["low"] > 0  # how much worse the second is
        elif names[::-1] in by_name:
            further = by_name[names[::-1]]["high"] < 0
        else:
            continue
        if not further and smaller["bytes"] < larger["bytes"]:
            found.append(f"{_name(smaller)} instead of {_name(larger)}")
    if not found:
        return []
    return [
        f"Use {_listed(found)}: smaller, and not measurably further from the reference (paired 95 % interval of the KL"
        " divergence)."
    ]


def _peers(document: BenchJson) -> list[str]:
    lines = []
    timed = [peer for peer in document["peers"] if peer["sane"] is not False]
    fastest = max(document["results"], key=lambda row: row["decode_ratio"]["median"])
    if timed:
        best = max(timed, key=lambda peer: peer["decode_ratio"]["median"])
        times = fastest["decode_ratio"]["median"] / best["decode_ratio"]["median"]
        lines.append(
            f"The fastest peer is {_peer(best)}, at {best['decode_ratio']['median']:.2f} times the reference's decode"
            f" speed; {_name(fastest)} decodes {times:.1f} times as fast as that"
            + (", but other programs disturbed the timing." if fastest["disturbed"] or best["disturbed"] else ".")
        )
    if insane := [peer for peer in document["peers"] if peer["sane"] is False]:
        lines.append(
            f"The reference finds the output of {_listed([_peer(peer) for peer in insane])} unlikely: do not rely on"
            " these speeds."
        )
    return lines


def _warnings(document: BenchJson) -> list[str]:
    lines = []
    disturbed = [_name(row) for row in document["results"] if row["disturbed"]]
    disturbed += [_peer(peer) for peer in document["peers"] if peer["disturbed"]]
    if disturbed:
        lines.append(
            f"Other programs used the machine while these were timed: {_listed(disturbed)}. Their speeds are disturbed."
        )
    if loaded := [_name(row) for row in document["results"] if row.get("load_disturbed")]:
        lines.append(f"Other programs disturbed the load time and the first token of {_listed(loaded)}.")
    if left_out := _rounds_left_out(document):
        lines.append(left_out)
    if (rounds := min(row["decode_ratio"]["rounds"] for row in document["results"])) < 3:
        lines.append(f"Speeds are from {rounds} round{'s' if rounds > 1 else ''}: their spread is unknown.")
    if of_several_runs(document):
        lines.append(
            "The files were measured in several runs, perhaps on different machines: compare speeds only by their"
            " ratio to the reference."
        )
    tokens = document["reference"]["tokens_scored"]
    if tokens < 1000 * _TAIL:
        lines.append(
            f"{tokens:,} tokens were scored, of which about {tokens / 1000:.0f} are above the 99.9 % quantile: too few"
            f" to choose by it ({1000 * _TAIL:,} tokens would give {_TAIL})."
        )
    return lines


def _rounds_left_out(document: BenchJson) -> str | None:
    for row in document["results"]:
        asked, rounds = document["runs"][row["run"]].get("rounds_asked", 0), row["decode_ratio"]["rounds"]
        if rounds < asked:
            return f"The machine was busy: {rounds} of {asked} rounds were measured. A longer patience measures more."
    return None


def _loss(row: Result) -> str:
    interval = row["ppl_ratio_interval"]
    return (
        f"{change(row['ppl_ratio'] - 1)} (95 % interval {change(interval['low'] - 1)} to"
        f" {change(interval['high'] - 1)}), KL divergence {small(row['kld_mean'])}"
    )


def _speed_of(results: Sequence[Result]) -> Callable[[Result], float]:
    """The key to compare speeds: tokens per second in one run, over several the ratio to the reference."""
    if len({row["run"] for row in results}) > 1:
        return lambda row: row["decode_ratio"]["median"]
    return lambda row: row["decode_tps"]["median"]


def _size(row: Result) -> int:
    return row["bytes"]


def _name(row: Result) -> str:
    return shortened(label(row))


def _peer(peer: PeerJson) -> str:
    return shortened(f"{peer['name']} {peer['precision']}", 40)


def _names(rows: Sequence[Result]) -> str:
    return _listed([_name(row) for row in rows])


def _listed(names: Sequence[str]) -> str:
    if len(names) > _NAMES:
        return f"{', '.join(names[:_NAMES])} and {len(names) - _NAMES} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
