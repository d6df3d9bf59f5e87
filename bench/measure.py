"""Measures files: quality against the reference, then load time and memory, then speed. Each file is loaded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dgpt2_quant.bench.data.open_models import open_models
from dgpt2_quant.bench.document.files import BenchedFile, read_files
from dgpt2_quant.bench.document.schema import WrongToken
from dgpt2_quant.bench.quality.compare_files import Quality, compare_files
from dgpt2_quant.bench.quality.per_token import TokenTexts, lines, worst, write_lines
from dgpt2_quant.bench.quality.reference_cache import LIMIT
from dgpt2_quant.bench.quality.windows import LLAMA_CPP, Windowing
from dgpt2_quant.bench.speed.footprint import Footprint, measure_footprint
from dgpt2_quant.bench.speed.grid import USUAL, Grid
from dgpt2_quant.bench.speed.peers import PeerSpec
from dgpt2_quant.bench.speed.rounds import PATIENCE, Speeds, measure_speed
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.text import NamedText


@dataclass(frozen=True)
class Subject:
    """What is measured: the model's name, the hash of its source, its reference file, its other files, and peers."""

    name: str
    source_sha256: str
    reference: Path
    files: Sequence[Path]
    peers: Sequence[PeerSpec] = ()


@dataclass(frozen=True)
class Settings:
    """How it is measured; the fields are keywords of `bench`."""

    windowing: Windowing = LLAMA_CPP
    reference_cache: int = LIMIT
    rounds: int = 5
    threads: int | None = None
    grid: Grid = USUAL
    patience: float = PATIENCE
    per_token: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Measured:
    """What was measured; lists are in the order of `files`."""

    reference: BenchedFile
    files: list[BenchedFile]
    quality: Quality
    worst: list[list[WrongToken]]
    footprints: list[Footprint]
    speeds: Speeds


def measure(subject: Subject, text: NamedText, settings: Settings, progress: Progress | None = None) -> Measured:
    """Measures the files of a subject. Raises `DgptQuantError`, for settings that do not fit before the work."""
    (reference,), files = read_files([subject.reference]), read_files(subject.files)
    positions = min(file.header.metadata["gpt2.context_length"] for file in (reference, *files))
    threads = threads_or_all(settings.threads)
    settings.grid.points(positions, threads)
    with open_models([subject.reference, *subject.files], threads) as models:
        quality = compare_files(
            subject.reference,
            subject.files,
            text.text,
            parse_special=text.parse_special,
            windowing=settings.windowing,
            reference_cache=settings.reference_cache,
            models=models,
            progress=progress,
        )
        texts = TokenTexts(models[subject.reference], quality.windows)
        if settings.per_token is not None:
            documents = lines(quality, [file.name for file in files], texts)
            write_lines(documents, settings.per_token, overwrite=settings.overwrite)
        footprints = []
        for number, path in enumerate(subject.files):
            report = partial(progress, number, len(subject.files)) if progress else None
            footprints.append(measure_footprint(path, threads=threads, report=report))
        speeds = measure_speed(
            subject.reference,
            subject.files,
            rounds=settings.rounds,
            grid=settings.grid,
            peers=subject.peers,
            patience=settings.patience,
            models=models,
            progress=progress,
        )
        found = [worst(quality, scores, texts) for scores in quality.files]
    return Measured(reference, files, quality, found, footprints, speeds)
