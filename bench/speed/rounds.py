"""Prompt and decode speed, with the contestants interleaved.

On a shared machine a timing says little by itself. So in every round each contestant is timed once, in turn (A B C A B
C), after a round that warms up, with a prompt that nothing has cached. What means something then is the median over
the rounds, and above all the ratio of two speeds in the same round; the reference is a contestant for that reason.

A measurement that was disturbed is repeated, and marked where it stays so. Disturbed measurements share a budget of
time, the patience. Once it is spent nothing is repeated, and the rounds end as soon as each contestant has one.
"""

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter

from dgpt2_quant.bench.document.environment import ram_bytes
from dgpt2_quant.bench.document.schema import PeerJson, RateJson, SkippedPeer, SpeedPoint
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.runtime.model import Model

from .disturbance import any_disturbed
from .energy import EnergyMeter
from .grid import Grid, Point
from .peer_process import PeerFailed
from .peers import LOAD_TIMEOUT, Peer, PeerSpec
from .timing import Sample, time_point, time_text

PROMPT_TOKENS = 128
DECODE_TOKENS = 64
GRID_ROUNDS = 3  # at the most: there are many points
PATIENCE = 60.0  # seconds that disturbed measurements may take in all
MOST_PATIENCE = 1e6
_REPEATS = 2  # of one measurement
_REPEATED_SHARE = 1 / 3  # of all measurements


@dataclass(frozen=True)
class Speed:
    """One file. Ratios are to the reference in the same round; `joules_per_token` are those of decoding, None where the
    machine does not tell; `disturbed` None where unknown."""

    prompt_tps: RateJson
    decode_tps: RateJson
    prompt_ratio: RateJson
    decode_ratio: RateJson
    joules_per_token: float | None
    disturbed: bool | None
    points: list[SpeedPoint]


@dataclass(frozen=True)
class Speeds:
    """`files` in the order in which they were given; peers that failed on the way are among the skipped.
    `disturbed_seconds` is what disturbed measurements took."""

    reference: Speed
    files: list[Speed]
    peers: list[PeerJson]
    skipped_peers: list[SkippedPeer]
    disturbed_seconds: float


def measure(
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
    progress: Progress | None = None,
) -> Speeds:
    """Times the reference, each file and each peer in each round: a prompt, then greedy decoding behind it, at batch 1;
    then each file at each point of the grid, in rounds of their own.

    An end-of-text token does not end it: all decode the same number of tokens. The reference may be among the files,
    and is timed once. All files are in memory at once; where that would take more than half of it, they are mapped, and
    each turn may read from the disk.
    Disturbed measurements take `patience` seconds in all; then nothing is repeated, and rounds are left out (never the
    first). Raises `UsageError` for a model with too few positions; a peer that cannot take part is not an error.
    """
    if rounds < 1:
        raise UsageError(f"{rounds} rounds were asked for; at least 1 is needed")
    check_patience(patience)
    count = threads_or_all(threads)  # a governor would change the number between two measurements
    paths = dict.fromkeys([reference, *files])
    huge_pages = 2 * sum(path.stat().st_size for path in paths if path.is_file()) <= (ram_bytes() or 0)
    with ExitStack() as stack:
        models = {path: stack.enter_context(Model.load(path, threads=count, huge_pages=huge_pages)) for path in paths}
        positions = min(model.positions for model in models.values())
        if positions < 4:
            raise UsageError(f"{reference} has {positions} positions, too few to measure speed with")
        points = (grid or Grid()).points(positions, count)
        session = _Session(
            [_File(model, count) for model in models.values()],
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
    found = {path: session.speed(file) for path, file in zip(models, session.files, strict=True)}
    return Speeds(
        found[reference],
        [found[path] for path in files],
        session.peer_rows(),
        session.skipped,
        session.disturbed_seconds,
    )


def check_patience(patience: float) -> None:
    """Raises `UsageError` for what is not a number of seconds from 0."""
    if not 0 <= patience <= MOST_PATIENCE:
        raise UsageError(f"the patience is {patience:g} s; it is a number of seconds from 0 to {MOST_PATIENCE:g}")


class _File:
    """One of our files in the rounds."""

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
    """The contestants, what they have done so far, and how often they may still repeat it."""

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
        """Round -1, which warms up, then each round; only the first one once the patience is spent."""
        for number in range(-1, rounds):
            if number == 0 or not self._is_impatient:
                yield number

    def admit(self, spec: PeerSpec, stack: ExitStack, threads: int, positions: int, planned: int) -> None:
        """Starts a peer, or notes why not."""

        def waiting(seconds: float, timeout: float) -> None:
            self._report(f"waiting for {spec} ({seconds:.0f} of at most {timeout:.0f} s)", planned)

        waiting(0, LOAD_TIMEOUT)
        try:
            self.peers.append(stack.enter_context(Peer(spec, threads=threads, positions=positions, waiting=waiting)))
        except PeerFailed as failure:
            self._skip(spec, failure)

    def round(self, number: int) -> None:
        """Each contestant once; round -1 counts for nothing, but that the peers' tokens are looked at."""
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
        """Each file once at each point; round -1 warms up."""
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
        """The first measurement that was not disturbed, or the last that there may be."""
        for attempt in range(_REPEATS + 1):
            self._report(f"{what}, again because it was disturbed{_load()}" if attempt else what)
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
        """Measures that number of rounds."""
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


def _load() -> str:
    """The machine's load of the last minute, where it is known."""
    return f" (load {os.getloadavg()[0]:.1f})" if hasattr(os, "getloadavg") else ""


def make_prompt(vocabulary: int, length: int, number: int) -> list[int]:
    """Token ids that differ in the first one from number to number, so that nothing cached serves for them."""
    known = vocabulary - vocabulary // 8  # the last ids may be padding, which other libraries do not know
    return [(7 + 31 * index + 1009 * number) % known for index in range(length)]


def rate(values: Sequence[float]) -> RateJson:
    """Speeds, or ratios, of the rounds."""
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
    """None where one of them is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known and len(known) == len(values) else None
