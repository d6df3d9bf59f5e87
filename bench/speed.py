"""Prompt and decode speed, with the contestants interleaved.

On a shared machine a timing says little by itself. So in every round each contestant is timed once, in turn (A B C A B
C), after a round that warms up, with a prompt that nothing has cached. What means something then is the median over
the rounds, and above all the ratio of two speeds in the same round; the reference is a contestant for that reason. A
measurement that was disturbed is repeated, within limits, and marked where it stays so.
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dgpt2_quant.quantize.cores import threads_or_all
from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.quantize.progress import Progress
from dgpt2_quant.runtime.model import Model

from .disturbance import any_disturbed
from .energy import EnergyMeter
from .environment import ram_bytes
from .grid import Grid, Point
from .peer_process import PeerFailed
from .peers import Peer, PeerSpec
from .schema import PeerJson, RateJson, SkippedPeer, SpeedPoint
from .timing import Sample, time_point, time_text

PROMPT_TOKENS = 128
DECODE_TOKENS = 64
GRID_ROUNDS = 3  # at the most: there are many points
_REPEATS = 2  # of one measurement
_REPEATED_SHARE = 1 / 3  # of all measurements, so that a busy machine takes a third longer and no more


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
    """`files` in the order in which they were given; peers that failed on the way are among the skipped."""

    reference: Speed
    files: list[Speed]
    peers: list[PeerJson]
    skipped_peers: list[SkippedPeer]


def measure(
    reference: Path,
    files: Sequence[Path],
    *,
    rounds: int = 5,
    threads: int | None = None,
    grid: Grid | None = None,
    peers: Sequence[PeerSpec] = (),
    prompt_tokens: int = PROMPT_TOKENS,
    decode_tokens: int = DECODE_TOKENS,
    progress: Progress | None = None,
) -> Speeds:
    """Times the reference, each file and each peer in each round: a prompt, then greedy decoding behind it, at batch 1;
    then each file at each point of the grid, in rounds of their own.

    An end-of-text token does not end it: all decode the same number of tokens. The reference may be among the files,
    and is timed once. All files are in memory at once; where that would take more than half of it, they are mapped, and
    each turn may read from the disk.
    Raises `UsageError` for a model with too few positions; a peer that can not take part is no error.
    """
    if rounds < 1:
        raise UsageError(f"{rounds} rounds were asked for; at least 1 is needed")
    count = threads_or_all(threads)  # a governor's trials are none of a file's speed
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
            steps=len(peers) + rounds + 1 + (min(rounds, GRID_ROUNDS) + 1 if points else 0),
            planned=(len(models) + len(peers)) * rounds + len(models) * len(points) * min(rounds, GRID_ROUNDS),
            progress=progress,
        )
        for spec in peers:
            session.admit(spec, stack, count, positions)
        for number in range(-1, rounds):  # the first round warms up
            session.round(number)
        for number in range(-1, min(rounds, GRID_ROUNDS) if points else -1):
            session.grid_round(number, points)
    found = {path: session.speed(file) for path, file in zip(models, session.files, strict=True)}
    return Speeds(found[reference], [found[path] for path in files], session.peer_rows(), session.skipped)


class _File:
    """One of our files in the rounds."""

    def __init__(self, model: Model, threads: int) -> None:
        self.model = model
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
    steps: int
    planned: int
    progress: Progress | None
    peers: list[Peer] = field(default_factory=list)
    skipped: list[SkippedPeer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._done = 0
        self._repeats = int(self.planned * _REPEATED_SHARE)
        self._vocabulary = min(file.model.vocabulary for file in self.files)

    def admit(self, spec: PeerSpec, stack: ExitStack, threads: int, positions: int) -> None:
        """Starts a peer, or notes why not."""
        try:
            self.peers.append(stack.enter_context(Peer(spec, threads=threads, positions=positions)))
        except PeerFailed as failure:
            self._skip(spec, failure)
        self._step()

    def round(self, number: int) -> None:
        """Each contestant once; round -1 counts for nothing, but that the peers' tokens are looked at."""
        for file in self.files:
            sample = self._settled(number, partial(file.time, tokens=self.decode_tokens))
            file.samples += [sample] if number >= 0 else []
        for peer in list(self.peers):
            try:
                sample = self._settled(number, partial(peer.time, tokens=self.decode_tokens))
                if number >= 0:
                    peer.samples.append(sample)
                else:
                    peer.check(self.files[0].model)
            except PeerFailed as failure:
                self.peers.remove(peer)
                peer.close()
                self._skip(peer.spec, failure)
        self._step()

    def grid_round(self, number: int, points: Sequence[Point]) -> None:
        """Each file once at each point; round -1 warms up."""
        for point in points:
            for file in self.files:
                length = point.tokens if point.measure == "prompt" else max(point.depth, 1)
                sample = self._settled(number, partial(file.time_point, point), length)
                if number >= 0:
                    file.points.setdefault(point, []).append(sample)
        self._step()

    def _settled(
        self, number: int, time: Callable[[Sequence[int]], Sample], prompt_tokens: int | None = None
    ) -> Sample:
        """The first measurement that was not disturbed, or the last that there may be."""
        for attempt in range(_REPEATS + 1):
            unlike_others = (_REPEATS + 1) * (number + 1) + attempt
            sample = time(make_prompt(self._vocabulary, prompt_tokens or self.prompt_tokens, unlike_others))
            if number < 0 or not sample.usage.disturbed or attempt == _REPEATS or not self._repeats:
                break
            self._repeats -= 1
        return sample

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

    def _step(self) -> None:
        self._done += 1
        if self.progress:
            self.progress(self._done, self.steps, "speed")


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
