"""Which level to ship: the recommendation, and its reasons in words.

Every sentence follows from a rule of `RULES`, which the report prints too. The figures are those of the document:
intervals are of 95 %, by (paired) bootstrap; ranges of speeds are over the rounds.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from dgpt2_quant.bench.document.blocks import shortened
from dgpt2_quant.bench.document.format_numbers import change, label, name_of, of_several_runs, percent, small
from dgpt2_quant.bench.document.schema import BenchJson, PeerJson, Recommended, Result

WITHIN = 1.01  # of the reference's perplexity: what counts as no real loss
RULES = (
    "Within 1 % is a level whose perplexity is at most 1.01 times the reference's. The smallest file of those is the "
    "one to ship where size counts, the one that decodes fastest where speed does. Where the 95 % interval of the "
    "ratio reaches over 1.01, that is said, and the smallest level whose whole interval lies within is named.",
    "Nothing within 1 %: the nearest to the reference is named, and nothing is recommended.",
    "The fastest is not told apart from levels whose ratio to the reference's speed overlaps with its own, over the "
    "rounds.",
    "A level is dominated when another one is smaller, decodes faster and has the smaller KL divergence: no reason to"
    " take it.",
    "Of two neighbours by size, the smaller one is to be taken when the paired interval of their KL divergences has "
    "zero in it or lies on its side: it is not measurably further from the reference.",
    "A level is at the noise floor when its KL divergence may be (by its interval) no larger than that of the "
    "reference against itself by another road.",
    "Speeds of several runs are compared by their ratio to the reference in the same round, for the machines may "
    "differ.",
    "Where other programs disturbed a timing, the choice of the fastest says so, and that timing makes no level "
    "dominated.",
    "There is a warning for disturbed timings, for fewer than three rounds, for rounds that were left out on a busy "
    "machine, and for a 99.9 % quantile with fewer than ten tokens beyond it.",
)
_TAIL = 10  # tokens beyond a quantile, to tell of it
_NAMES = 8  # that a sentence lists


def recommend(results: Sequence[Result]) -> Recommended:
    """Among the levels within 1 % of the reference's perplexity: the smallest file, and the fastest to decode."""
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
    """The recommendation in words, the most important first; what the document says of advice itself is not read."""
    results = document["results"]
    if not results:
        return []
    return [
        *_what_to_ship(document),
        *_not_told_apart_from_reference(document),
        *_at_the_floor(document),
        *_dominated(results),
        *_same_for_less(document),
        *_peers(document),
        *_warnings(document),
    ]


def with_advice(document: BenchJson) -> BenchJson:
    """The document with `recommended` and `advice` as they follow from its figures."""
    return {**document, "recommended": recommend(document["results"]), "advice": advise(document)}


def _what_to_ship(document: BenchJson) -> list[str]:
    results, base = document["results"], document["reference"]["type"]
    good = [result for result in results if result["ppl_ratio"] <= WITHIN]
    if not good:
        nearest = min(results, key=lambda result: result["ppl_ratio"])
        return [
            f"No level stays within 1 % of {base}'s perplexity, so none can be recommended as lossless. The nearest is"
            f" {_name(nearest)}, {_loss(nearest)}."
        ]
    smallest = min(good, key=_size)
    size = f"{smallest['bytes'] / 1e6:.1f} MB, {percent(smallest['bytes'] / document['reference']['bytes'], 0)}"
    lines = [
        f"Ship {_name(smallest)}: the smallest file ({size} of {base}'s size) within 1 % of {base}'s perplexity,"
        f" {_loss(smallest)}."
    ]
    if smallest["ppl_ratio_interval"]["high"] > WITHIN:
        sure = min((row for row in good if row["ppl_ratio_interval"]["high"] <= WITHIN), key=_size, default=None)
        which = f"The smallest whose whole interval is within 1 % is {_name(sure)}" if sure else "No level's is"
        lines.append(f"That interval is not all within 1 %: a longer text may decide otherwise. {which}.")
    return [*lines, _fastest(good, smallest, base)]


def _fastest(good: Sequence[Result], smallest: Result, base: str) -> str:
    speed = _speed_of(good)
    fastest = max(good, key=speed)
    least = fastest["decode_ratio"]["min"]
    close = [row for row in good if row is not fastest and row["decode_ratio"]["max"] >= least]
    line = (
        f"{'It is also' if fastest is smallest else _name(fastest) + ' is'} the one of them that decodes fastest,"
        f" {fastest['decode_ratio']['median']:.2f} times {base}'s speed"
    )
    if close:
        line += f"; over the rounds that overlaps with {_names(close)}"
    if any(row["disturbed"] for row in good):
        line += "; but other programs disturbed the timing: measure again on a quiet machine before you choose by speed"
    return line + "."


def _not_told_apart_from_reference(document: BenchJson) -> list[str]:
    base = document["reference"]["type"]
    same = [
        row
        for row in document["results"]
        if row["kld_mean"] > 0 and row["ppl_ratio_interval"]["low"] <= 1 <= row["ppl_ratio_interval"]["high"]
    ]
    if not same:
        return []
    return [
        f"By perplexity this text does not tell {_names(same)} from {base}: the 95 % interval of the ratio has 1 in it."
        " Their KL divergences say which is nearer."
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
        f"{_names(at_it)} {'lies' if len(at_it) == 1 else 'lie'} at the noise floor: no further from"
        f" {base} than it is from itself ({floor['how']})."
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
        "No reason to take these, for the one in brackets is smaller, faster and nearer to the reference: "
        + _listed(found)
        + "."
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
            found.append(f"{_name(smaller)} rather than {_name(larger)}")
    if not found:
        return []
    return [
        f"Take {_listed(found)}: smaller, and not measurably further from the reference (paired 95 % interval of the KL"
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
            f"What {_listed([_peer(peer) for peer in insane])} wrote is not what the reference finds likely: do not"
            " count on those speeds."
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
        lines.append(f"They also disturbed the load time and the first token of {_listed(loaded)}.")
    if left_out := _rounds_left_out(document):
        lines.append(left_out)
    if (rounds := min(row["decode_ratio"]["rounds"] for row in document["results"])) < 3:
        lines.append(f"Speeds are of {rounds} round{'s' if rounds > 1 else ''}: their spread is not known.")
    if of_several_runs(document):
        lines.append(
            "The levels were measured in several runs, perhaps on different machines: compare speeds only by their"
            " ratio to the reference."
        )
    tokens = document["reference"]["tokens_scored"]
    if tokens < 1000 * _TAIL:
        lines.append(
            f"{tokens:,} tokens were scored, so that about {tokens / 1000:.0f} lie beyond the 99.9 % quantile:"
            f" too few to choose by it ({1000 * _TAIL:,} would leave {_TAIL})."
        )
    return lines


def _rounds_left_out(document: BenchJson) -> str | None:
    for row in document["results"]:
        asked, rounds = document["runs"][row["run"]].get("rounds_asked", 0), row["decode_ratio"]["rounds"]
        if rounds < asked:
            return f"The machine was busy: {rounds} of {asked} rounds were measured. A longer --patience measures more."
    return None


def _loss(row: Result) -> str:
    interval = row["ppl_ratio_interval"]
    return (
        f"{change(row['ppl_ratio'] - 1)} (95 % interval {change(interval['low'] - 1)} to"
        f" {change(interval['high'] - 1)}), KL divergence {small(row['kld_mean'])}"
    )


def _speed_of(results: Sequence[Result]) -> Callable[[Result], float]:
    """Tokens per second in one run; over several, the ratio to the reference."""
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
