"""Evaluates quant types on the tasks of the GPT-2 model card and on bias probes, with the change from F16.

This is the verb `eval`. docs/tasks.md has the measure, data and definition of each task.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dgpt2_quant.bench.data.datasets import DATASETS, RUNNING_TEXTS, load_dataset
from dgpt2_quant.bench.data.special_text import noting_special
from dgpt2_quant.bench.document.environment import describe_environment
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import DEFAULT_TYPE, QuantType, find_type, find_types
from dgpt2_quant.core.read_input import Input, input_exists, read_input
from dgpt2_quant.core.text import NamedText, as_text
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL, is_gguf_name
from dgpt2_quant.quantize.store.converted_models import model_file, model_files
from dgpt2_quant.runtime.model import Model

from .card_prompts import CardPrompts, prompts_file
from .cbt import ChildrensBookTest
from .classify import Classify
from .crows_pairs import CrowsPairs
from .lambada import Lambada
from .metrics import Probe, Scores, Settings, summarize
from .schema import TaskJson, TaskModel, TaskResult
from .text import TEST_BYTES, BitsPerByte, WikiText, text_windowing

REFERENCE = "F16"


@dataclass(frozen=True)
class Task:
    """A task: `data` is its default data set, None if it has none, "" if its data is built in; `text` is whether it
    takes running text, in windows."""

    probe: Callable[[DataFile, Settings], Probe]
    data: str | None
    text: bool = False


TASKS = {
    "lambada": Task(Lambada, "lambada"),
    "cbt-cn": Task(ChildrensBookTest, "cbt-cn"),
    "cbt-ne": Task(ChildrensBookTest, "cbt-ne"),
    "wikitext2": Task(WikiText, "wikitext2", text=True),
    "wikitext103": Task(WikiText, "wikitext103", text=True),
    "enwik8": Task(partial(BitsPerByte, tail=TEST_BYTES), "enwik8", text=True),
    "text8": Task(partial(BitsPerByte, tail=TEST_BYTES), "text8", text=True),
    "bpb": Task(BitsPerByte, None, text=True),
    "crows-pairs": Task(CrowsPairs, "crows-pairs"),
    "card-prompts": Task(CardPrompts, ""),
    "classify": Task(Classify, None),
}
GROUPS = {"cbt": ["cbt-cn", "cbt-ne"], "bias": ["crows-pairs", "card-prompts"]}


@dataclass(frozen=True)
class _Files:
    """The files to measure by quant type, the reference, if any, first; `asked` are the requested types."""

    model: TaskModel
    paths: Mapping[str, Path]
    asked: Sequence[str]
    reference: str | None


def evaluate(
    model: str = DEFAULT_MODEL,
    *,
    task: str,
    type: str | QuantType | Sequence[str | QuantType] | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    ctx_size: int | None = None,
    stride: int | None = None,
    parse_special: bool = True,
    keep_crlf: bool = False,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> list[TaskJson]:
    """Evaluates quant types of a model on a task, or on a group of tasks (`cbt`, `bias`): one document per task.

    `type` defaults to `q4_k_m`; F16 is measured too, for the changes. A `.gguf` file as `model` is measured alone.
    `data` is an input (`read_input`) in the published format or archive, or the name of another data set. `limit` is
    the number of items, `ctx_size` the context size, `stride` that of windows of a text. Special tokens in texts are
    parsed unless `parse_special` is false. Raises `DgptQuantError`.
    """
    names = find_tasks(task)
    _check_asked(task, names, data, stride)
    for name, value in {"limit": limit, "ctx_size": ctx_size, "stride": stride}.items():
        if value is not None and value < 1:
            raise UsageError(f"`{name}` must be 1 or more, not {value}")
    settings = Settings(limit, ctx_size, stride, parse_special, keep_crlf)
    files = _data(task, names, data, offline, announce)  # reports wrong data before the work
    probes = {name: TASKS[name].probe(file, settings) for name, file in files.items()}
    models = _models(model, type, revision, offline, threads, progress, announce)
    path = next(iter(models.paths.values()))
    texts = {name: _as_text(file, settings, path, TASKS[name].text, announce) for name, file in files.items()}
    scores: dict[str, dict[str, Scores]] = {name: {} for name in names}
    contexts: dict[str, tuple[int, int | None]] = {}
    for quant_type, path in models.paths.items():
        with Model.load(path, ctx_size=ctx_size, threads=threads_or_all(threads)) as loaded:
            for name in names:
                scores[name][quant_type] = probes[name].measure(loaded, _reporter(progress, f"{name}, {quant_type}"))
                window = text_windowing(loaded, settings) if TASKS[name].text else None
                contexts[name] = (window.context, window.stride) if window else (loaded.positions, None)
    environment = describe_environment(threads)
    return [
        {
            "task": name,
            "data": {
                "name": files[name].name,
                "sha256": files[name].sha256,
                "items": len(scores[name][models.asked[0]].parts[0]),
                "parse_special": parse_special,
                "notes": list(texts[name].notes),
            },
            "model": models.model,
            "context": contexts[name][0],
            "stride": contexts[name][1],
            "results": [_result(probes[name], scores[name], one, models.reference) for one in models.asked],
            "environment": environment,
        }
        for name in names
    ]


def find_tasks(name: str) -> list[str]:
    """The task of that name, or the tasks of a group. Raises `UsageError` for any other name."""
    if name in TASKS:
        return [name]
    if name not in GROUPS:
        raise UsageError(f"`task` must be one of {', '.join([*TASKS, *GROUPS])}, not {name!r}")
    return GROUPS[name]


def _check_asked(task: str, names: Sequence[str], data: str | Path | None, stride: int | None) -> None:
    """Raises `UsageError` if data or stride do not fit the tasks."""
    if data is not None and not any(TASKS[name].data != "" for name in names):
        raise UsageError(f"`data` has no effect: the data of {task} is built in", "Omit `data`.")
    if data is None and (lacking := next((name for name in names if TASKS[name].data is None), None)):
        what = "a file, or to a data set such as enwik8" if TASKS[lacking].text else "a CSV or JSONL file"
        raise UsageError(f"{task} needs data", f"Set `data` to {what}.")
    if stride is not None and not any(TASKS[name].text for name in names):
        raise UsageError(f"`stride` has no effect: {task} has no windows", "Omit `stride`.")


def _data(
    task: str, names: Sequence[str], data: str | Path | None, offline: bool, announce: Callable[[str], None] | None
) -> dict[str, DataFile]:
    """The data of each task; an input is read once for all tasks."""
    takers = [name for name in names if TASKS[name].data != ""]
    other = str(data) if data is not None and str(data) in DATASETS and not input_exists(data) else None
    read = None if data is None or other else read_input(data, "data file", announce=announce)
    if len(takers) > 1 and (other or (read and read.packing not in ("zip", "tar"))):
        raise UsageError(
            f"`data` must be an archive for {task}, which takes {len(takers)} files",
            f"Set `task` to one of {', '.join(takers)}.",
        )
    return {name: _data_of(name, other, read, offline) for name in names}


def _data_of(name: str, other: str | None, read: Input | None, offline: bool) -> DataFile:
    """A task's own data set, the `other` data set, or the input."""
    own = TASKS[name].data
    if own == "":
        return prompts_file()
    if other and TASKS[name].text and not DATASETS[other].text:
        raise UsageError(f"the data set {other} is not running text", "Name a file, or enwik8, text8, wikitext2.")
    if read and not own:
        return read.file(prefer=RUNNING_TEXTS)
    return load_dataset(str(other or own), read, offline=offline)


def _as_text(
    file: DataFile, settings: Settings, path: Path, running: bool, announce: Callable[[str], None] | None
) -> NamedText:
    """A task's data as text, with notes on changes to it; on line ends only for running text."""
    text = as_text(file, parse_special=settings.parse_special, keep_crlf=settings.keep_crlf)
    return noting_special(text.announced(announce) if running else replace(text, notes=()), path, announce)


def _models(
    model: str,
    type: str | QuantType | Sequence[str | QuantType] | None,
    revision: str | None,
    offline: bool,
    threads: int | None,
    progress: Progress | None,
    announce: Callable[[str], None] | None,
) -> _Files:
    if is_gguf_name(model):
        if type:
            raise UsageError(f"`type` has no effect: {model} is a file", "Omit `type`.")
        name, path = model_file(model, revision=revision)
        quant_type = read_header(path, arrays=False).quant_type or name
        return _Files({"name": name, "source_sha256": None}, {quant_type: path}, [quant_type], None)
    asked, reference = find_types(type or DEFAULT_TYPE), find_type(REFERENCE)
    stored = model_files(
        model,
        types=[reference, *asked],
        revision=revision,
        offline=offline,
        threads=threads,
        progress=progress,
        announce=announce,
    )
    return _Files(
        {"name": stored.name, "source_sha256": stored.source_sha256},
        {quant_type.name: path for quant_type, path in stored.files.items()},
        [quant_type.name for quant_type in asked],
        reference.name,
    )


def _result(probe: Probe, scores: Mapping[str, Scores], quant_type: str, reference: str | None) -> TaskResult:
    found: TaskResult = {
        "type": quant_type,
        "metrics": summarize(probe.metrics, scores[quant_type], scores[reference] if reference else None),
    }
    if "prompts" in scores[quant_type].details:
        found["prompts"] = scores[quant_type].details["prompts"]
        found["pairs"] = scores[quant_type].details["pairs"]
    return found


def _reporter(progress: Progress | None, what: str) -> Callable[[int, int], None]:
    def advance(done: int, total: int) -> None:
        if progress:
            progress(done, total, what)

    return advance
