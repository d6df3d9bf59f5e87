"""Prompt and decode speed of files and peers, measured in interleaved rounds.

On a shared machine a single timing says little. So every round times each contestant once, in turn (A B C A B C),
after a warm-up round, with a prompt that is not cached. The results are the median over the rounds, and the ratio to
the reference's speed in the same round, which is more reliable.

A disturbed measurement is repeated, and marked if it stays disturbed. Disturbed measurements share a budget of time,
the patience. When it is spent, nothing is repeated, and the rounds end as soon as each contestant has one.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter

from dgpt2_quant.bench.data.open_models import open_models
from dgpt2_quant.bench.document.schema import PeerJson, RateJson, SkippedPeer, SpeedPoint
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.runtime.model import Model

from .disturbance import any_disturbed, load_average
from .energy import EnergyMeter
from .grid import Grid, Point
from .peer_process import PeerFailed
from .peers import LOAD_TIMEOUT, Peer, PeerSpec
from .timing import Sample, time_point, time_text

PROMPT_TOKENS = 128
DECODE_TOKENS = 64
GRID_ROUNDS = 3  # at most: there are many points
PATIENCE = 60.0  # seconds that disturbed measurements may take in all
MOST_PATIENCE = 1e6
_REPEATS = 2  # of one measurement
_REPEATED_SHARE = 1 / 3  # of all measurements, at most


@dataclass(frozen=True)
class Speed:
    """The speed of one file. Ratios are to the reference in the same round; `joules_per_token` is for decoding, None if
    the machine does not report energy; `disturbed` is None if unknown."""

    prompt_tps: RateJson
    decode_tps: RateJson
    prompt_ratio: RateJson
    decode_ratio: RateJson
    joules_per_token: float | None
    disturbed: bool | None
    points: list[SpeedPoint]


@dataclass(frozen=True)
class Speeds:
    """`files` are in the order given; peers that failed are among `skipped_peers`; `disturbed_seconds` is the time that
    disturbed measurements took."""

    reference: Speed
    files: list[Speed]
    peers: list[PeerJson]
    skipped_peers: list[SkippedPeer]
    disturbed_seconds: float


def measure_speed(
    reference: Path,
    files: Sequence[Path],
    *,
    rounds: int = 5,
    threads: int | None = None,
    grid: Grid | None = None,
    peers: Sequence[PeerSpec] = (),
    patience: float = PATIENCE,
    prompt_tokens: int = PROMPT_TOKENS,
    decode_tokens: int = DECODE_TOKENS,
    models: Mapping[Path, Model] | None = None,
    progress: Progress | None = None,
) -> Speeds:
    """Times the reference, each file and each peer in every round: a prompt, then greedy decoding after it, at batch 1.
    Then times each file at each point of the grid, in separate rounds.

    All decode the same number of tokens, past an end-of-text token too. The reference may be one of the files; it is
    timed once. `models` are the files if they are open already; otherwise each is loaded on `threads`. When disturbed
    measurements have taken `patience` seconds in all, nothing is repeated, and rounds after the first are skipped.
    Raises `UsageError` for a model with too few positions; a peer that cannot take part is not an error.
    """
    if rounds < 1:
        raise UsageError(f"`rounds` must be 1 or more, not {rounds}")
    check_patience(patience)
    paths = dict.fromkeys([reference, *files])
    with ExitStack() as stack:
        # a fixed number of threads: a governor would change it between two measurements
        opened = models or stack.enter_context(open_models(paths, threads_or_all(threads)))
        count = opened[reference].threads
        positions = min(opened[path].positions for path in paths)
        if positions < 4:
            raise UsageError(f"{reference} has {positions} positions, and measuring speed needs 4 or more")
        points = (grid or Grid()).points(positions, count)
        session = _Session(
            [_File(opened[path], count) for path in paths],
            prompt_tokens=min(prompt_tokens, positions // 2),
            decode_tokens=max(2, min(decode_tokens, positions // 2)),
            rounds=rounds,
            points=points,
            patience=patience,
            progress=progress,
        )
        for spec in peers:
            session.admit(spec, stack, count, positions, len(peers))
        for number in session.rounds_left(rounds):
            session.round(number)
        for number in session.rounds_left(session.grid_rounds):
            session.grid_round(number)
    found = {path: session.speed(file) for path, file in zip(paths, session.files, strict=True)}
    return Speeds(
        found[reference],
        [found[path] for path in files],
        session.peer_rows(),
        session.skipped,
        session.disturbed_seconds,
    )


def check_patience(patience: float) -> None:
    """Raises `UsageError` for a value out of range."""
    if not 0 <= patience <= MOST_PATIENCE:
        raise UsageError(f"`patience` must be 0 to {MOST_PATIENCE:g} seconds, not {patience:g}")


class _File:
    """A file in the rounds."""

    def __init__(self, model: Model, threads: int) -> None:
        self.model = model
        self.name = str(model.quant_type or model.path.stem)
        self.samples: list[Sample] = []
        self.points: dict[Point, list[Sample]] = {}
        self._threads = threads
        self._meter = EnergyMeter()

    def time(self, prompt: Sequence[int], tokens: int) -> Sample:
        return time_text(self.model, prompt, tokens, self._threads, self._meter)

    def time_point(self, point: Point, prompt: Sequence[int]) -> Sample:
        return time_point(self.model, point, prompt, self._threads, self._meter)


@dataclass
class _Session:
    """The contestants, their samples so far, and the budget of repetitions."""

    files: list[_File]
    prompt_tokens: int
    decode_tokens: int
    rounds: int
    points: Sequence[Point]
    patience: float
    progress: Progress | None
    peers: list[Peer] = field(default_factory=list)
    skipped: list[SkippedPeer] = field(default_factory=list)
    disturbed_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.grid_rounds = min(self.rounds, GRID_ROUNDS) if self.points else -1
        self._vocabulary = min(file.model.vocabulary for file in self.files)
        self._done = self._repeated = 0

    def rounds_left(self, rounds: int) -> Iterator[int]:
        """Round -1, the warm-up, then each round; when the patience is spent, only the first one."""
        for number in range(-1, rounds):
            if number == 0 or not self._is_impatient:
                yield number

    def admit(self, spec: PeerSpec, stack: ExitStack, threads: int, positions: int, planned: int) -> None:
        """Starts a peer, or records why it is skipped."""

        def waiting(seconds: float, timeout: float) -> None:
            self._report(f"waiting for {spec} ({seconds:.0f} of at most {timeout:.0f} s)", planned)

        waiting(0, LOAD_TIMEOUT)
        try:
            self.peers.append(stack.enter_context(Peer(spec, threads=threads, positions=positions, waiting=waiting)))
        except PeerFailed as failure:
            self._skip(spec, failure)

    def round(self, number: int) -> None:
        """Times each contestant once. The warm-up, round -1, only checks the tokens of the peers."""
        where = _round_name(number, self.rounds)
        for file in self.files:
            what = f"speed, {where}, {file.name}"
            sample = self._settled(number, partial(file.time, tokens=self.decode_tokens), what)
            file.samples += [sample] if number >= 0 else []
        for peer in list(self.peers):
            what = f"speed, {where}, {peer.spec}"
            try:
                sample = self._settled(number, partial(peer.time, tokens=self.decode_tokens), what)
                if number >= 0:
                    peer.samples.append(sample)
                else:
                    peer.check(self.files[0].model)
            except PeerFailed as failure:
                self.peers.remove(peer)
                peer.close()
                self._skip(peer.spec, failure)

    def grid_round(self, number: int) -> None:
        """Times each file once at each point; round -1 is the warm-up."""
        where = _round_name(number, self.grid_rounds)
        for point in self.points:
            for file in self.files:
                length = point.tokens if point.measure == "prompt" else max(point.depth, 1)
                what = f"speed, {where}, {point}, {file.name}"
                sample = self._settled(number, partial(file.time_point, point), what, length)
                if number >= 0:
                    file.points.setdefault(point, []).append(sample)

    def _settled(
        self, number: int, time: Callable[[Sequence[int]], Sample], what: str, prompt_tokens: int | None = None
    ) -> Sample:
        """The first measurement that was not disturbed, or the last one allowed."""
        for attempt in range(_REPEATS + 1):
            self._report(f"{what}, again because it was disturbed{load_average()}" if attempt else what)
            unlike_others = (_REPEATS + 1) * (number + 1) + attempt
            started = perf_counter()
            sample = time(make_prompt(self._vocabulary, prompt_tokens or self.prompt_tokens, unlike_others))
            if not sample.usage.disturbed:
                break
            self.disturbed_seconds += perf_counter() - started
            repeats = int(self._planned(self.rounds, self.grid_rounds) * _REPEATED_SHARE)
            if number < 0 or attempt == _REPEATS or self._repeated >= repeats or self._is_impatient:
                break
            self._repeated += 1
        self._done += 1
        return sample

    @property
    def _is_impatient(self) -> bool:
        return self.disturbed_seconds > self.patience

    def _planned(self, rounds: int, grid_rounds: int, peers: int = 0) -> int:
        """The number of measurements in these rounds."""
        contestants = len(self.files) + max(peers, len(self.peers))
        return contestants * rounds + len(self.files) * len(self.points) * max(grid_rounds, 0)

    def _report(self, what: str, peers: int = 0) -> None:
        if self.progress:
            self.progress(self._done, self._planned(self.rounds + 1, self.grid_rounds + 1, peers), what)

    def speed(self, file: _File) -> Speed:
        base = self.files[0].samples
        joules = [sample.joules_per_token for sample in file.samples]
        return Speed(
            prompt_tps=rate([sample.prompt_tps for sample in file.samples]),
            decode_tps=rate([sample.decode_tps for sample in file.samples]),
            prompt_ratio=rate([a.prompt_tps / b.prompt_tps for a, b in zip(file.samples, base, strict=True)]),
            decode_ratio=rate([a.decode_tps / b.decode_tps for a, b in zip(file.samples, base, strict=True)]),
            joules_per_token=_median(joules),
            disturbed=any_disturbed([sample.usage for sample in file.samples]),
            points=[_point(point, samples) for point, samples in file.points.items()],
        )

    def peer_rows(self) -> list[PeerJson]:
        base = self.files[0].samples
        return [
            {
                "name": peer.spec.name,
                "version": peer.version,
                "precision": peer.spec.precision,
                "load_ms": peer.load_ms,
                "peak_rss_bytes": peer.peak_rss_bytes,
                "prompt_tps": rate([sample.prompt_tps for sample in peer.samples]),
                "decode_tps": rate([sample.decode_tps for sample in peer.samples]),
                "decode_ratio": rate([a.decode_tps / b.decode_tps for a, b in zip(peer.samples, base, strict=True)]),
                "sane": peer.sane,
                "disturbed": any_disturbed([sample.usage for sample in peer.samples]),
            }
            for peer in self.peers
        ]

    def _skip(self, spec: PeerSpec, failure: PeerFailed) -> None:
        self.skipped.append({"name": str(spec), "reason": str(failure)})


def _round_name(number: int, rounds: int) -> str:
    return f"round {number + 1} of {rounds}" if number >= 0 else "warm-up"


def make_prompt(vocabulary: int, length: int, number: int) -> list[int]:
    """Token ids whose first one differs for each number, so that no cached prompt can be reused."""
    known = vocabulary - vocabulary // 8  # the last ids may be padding, which other libraries lack
    return [(7 + 31 * index + 1009 * number) % known for index in range(length)]


def rate(values: Sequence[float]) -> RateJson:
    """Median and range of speeds or ratios over the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def _point(point: Point, samples: Sequence[Sample]) -> SpeedPoint:
    speeds = [sample.prompt_tps if point.measure == "prompt" else sample.decode_tps for sample in samples]
    return {
        "measure": point.measure,
        "tokens": point.tokens,
        "depth": point.depth,
        "batch": point.batch,
        "threads": point.threads,
        "tps": rate(speeds),
        "joules_per_token": _median([sample.joules_per_token for sample in samples]),
        "disturbed": any_disturbed([sample.usage for sample in samples]),
    }


def _median(values: Sequence[float | None]) -> float | None:
    """The median; None if a value is None."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known and len(known) == len(values) else None
