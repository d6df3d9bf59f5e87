"""Conversion: the files, their descriptions, and calls that are refused."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import pytest
from dgpt2_quant.core.errors import OutputError, UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.quant_types import QUANT_TYPES
from dgpt2_quant.quantize.checkpoint.folder import source_sha256
from dgpt2_quant.quantize.checkpoint.resolve import Source, resolve
from dgpt2_quant.quantize.checkpoint.source import CheckpointModel
from dgpt2_quant.quantize.convert import convert, prepare
from dgpt2_quant.quantize.converted_file import ConvertedFile
from dgpt2_quant.quantize.recipes.plan import make_plan
from dgpt2_quant.quantize.write import write_files
from dgpt2_quant.runtime.native.bindings import _log_callback, _quiet, bindings

from ..checkpoints import make_checkpoint

TYPES = [name for name, quant_type in QUANT_TYPES.items() if not quant_type.needs_imatrix]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[ConvertedFile]:
    return convert("storybook", type=TYPES, output=tmp_path_factory.mktemp("all"), threads=2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_each_quant_type_gives_a_file_of_its_name(results: list[ConvertedFile]) -> None:
    folder = Path(results[0].path).parent
    assert names(folder) == sorted(f"storybook.{name}.gguf" for name in TYPES)
    assert [Path(result.path).name for result in results] == [f"storybook.{name}.gguf" for name in TYPES]


def test_descriptions_agree_with_the_files(results: list[ConvertedFile]) -> None:
    for result in results:
        path = Path(result.path)
        header = read_header(path)
        assert (result.model, result.recipe, result.type) == ("storybook", "stock", header.quant_type)
        assert result.bytes == path.stat().st_size
        assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert result.parameters == header.parameters == 8189 * 256 + 512 * 256 + 6 * (12 * 256 * 256 + 13 * 256) + 512
        assert result.bits_per_weight == pytest.approx(header.bits_per_weight, abs=5e-4)
        assert sum(result.tensors.values()) == len(header.tensors) == 4 + 6 * 12
        assert result.tensors["F32"] >= 4 + 6 * 8 - 1
        assert header.metadata["general.file_type"] == QUANT_TYPES[result.type].file_type
        assert result.seconds > 0
        assert json.loads(json.dumps(result.to_json()))["sha256"] == result.sha256
    bits = {result.type: result.bits_per_weight for result in results}
    assert (
        bits["F32"] == 32 > bits["F16"] > bits["Q8_0"] > bits["Q6_K"] > bits["Q4_K_M"] > bits["Q3_K_M"] > bits["Q2_K"]
    )


def test_metadata_names_the_model_and_its_source(results: list[ConvertedFile]) -> None:
    metadata = read_header(Path(results[-1].path)).metadata
    assert metadata["general.name"] == "storybook"
    assert metadata["general.size_label"] == "7M"
    assert metadata["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert metadata["dgpt2_quant.type"] == results[-1].type
    assert metadata["dgpt2_quant.version"] == version("dgpt2-quant")
    assert metadata["dgpt2_quant.source.sha256"] == source_sha256(resolve("storybook").folder)
    assert "general.base_model.count" not in metadata  # storybook is nobody's derivative


def test_metadata_names_the_hub_repository_as_base_model(tmp_path: Path) -> None:
    source = Source("tiny", make_checkpoint(tmp_path / "snapshot"), "owner/tiny", "c" * 40)
    model = CheckpointModel(source)
    plans = {tmp_path / "it.gguf": make_plan(model, QUANT_TYPES["Q8_0"])}
    (result,) = write_files(model, plans, prepare(model, plans))
    metadata = read_header(Path(result.path)).metadata
    assert metadata["general.name"] == "tiny"
    assert metadata["general.base_model.count"] == 1
    assert metadata["general.base_model.0.name"] == "tiny"
    assert metadata["general.base_model.0.organization"] == "owner"
    assert metadata["general.base_model.0.repo_url"] == "https://huggingface.co/owner/tiny"
    assert metadata["dgpt2_quant.source.commit"] == "c" * 40


@pytest.mark.parametrize("threads", [1, 2])
def test_bytes_do_not_depend_on_threads_or_other_types(
    threads: int, results: list[ConvertedFile], tmp_path: Path
) -> None:
    together = {result.type: result.sha256 for result in results}
    alone = {name: convert("storybook", type=[name], output=tmp_path, threads=threads)[0] for name in TYPES[-2:]}
    assert {name: file.sha256 for name, file in alone.items()} == {name: together[name] for name in alone}
    several = convert("storybook", type=TYPES[6::-1], output=tmp_path / "several", threads=threads)
    assert {file.type: file.sha256 for file in several} == {name: together[name] for name in TYPES[:7]}


def test_bytes_do_not_depend_on_the_parent_folder(tmp_path: Path) -> None:
    one, other = (make_checkpoint(tmp_path / place / "model", seed=3) for place in ("one", "other"))
    assert convert(str(one), type=["q8_0"], output=tmp_path / "a.gguf")[0].sha256 == (
        convert(str(other), type=["q8_0"], output=tmp_path / "b.gguf")[0].sha256
    )


def test_progress_counts_every_weight_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    convert("storybook", type=["f16", "q4_0"], output=tmp_path, progress=lambda *news: seen.append(news))
    done = [count for count, _, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] == seen[0][1]
    assert len({name for _, _, name in seen}) == len(seen) == 76


@pytest.mark.parametrize("quant_type", TYPES)
def test_llama_cpp_loads_the_file_without_a_warning(
    quant_type: str, results: list[ConvertedFile], caplog: pytest.LogCaptureFixture
) -> None:
    path = next(result.path for result in results if result.type == quant_type)
    llama_cpp = bindings()
    llama_cpp.llama_log_set(_log_callback(llama_cpp), None)  # to Python's logging
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    assert model
    params = llama_cpp.llama_context_default_params()
    try:
        for positions, warnings in ((0, 0), (2048, 1)):  # the second shows that warnings arrive here
            params.n_ctx = positions
            context = llama_cpp.llama_init_from_model(model, params)
            assert context
            llama_cpp.llama_free(context)
            assert len([r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]) >= warnings
            assert warnings or not caplog.records, caplog.text
    finally:
        llama_cpp.llama_log_set(_quiet(llama_cpp), None)
        llama_cpp.llama_model_free(model)


def test_output_can_name_the_file(tmp_path: Path) -> None:
    (result,) = convert("storybook", type=["q8_0"], output=tmp_path / "new" / "mine.gguf")
    assert result.path == str(tmp_path / "new" / "mine.gguf")
    assert names(tmp_path / "new") == ["mine.gguf"]


def test_the_current_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (result,) = convert(str(make_checkpoint(tmp_path / "tiny")), type=["f16"])
    assert (tmp_path / "tiny.F16.gguf").stat().st_size == result.bytes


def test_an_existing_target_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    target = tmp_path / "storybook.Q8_0.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError) as caught:
        convert("storybook", type=["f16", "q8_0"], output=tmp_path)
    assert str(target) in caught.value.message
    assert "`overwrite`" in caught.value.hint
    assert target.read_bytes() == b"precious"
    assert names(tmp_path) == [target.name]


def test_overwrite_replaces(tmp_path: Path, results: list[ConvertedFile]) -> None:
    target = tmp_path / "storybook.Q8_0.gguf"
    target.write_bytes(b"old")
    (result,) = convert("storybook", type=["q8_0"], output=tmp_path, overwrite=True)
    assert result.sha256 == next(r.sha256 for r in results if r.type == "Q8_0")
    assert hashlib.sha256(target.read_bytes()).hexdigest() == result.sha256
    assert names(tmp_path) == [target.name]


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        ({"type": []}, "`type` must name at least one quant type", "q4_k"),
        ({"type": ["q4_k_x"]}, "'q4_k_x'", "q4_k"),
        ({"type": ["f16"], "recipe": "magic"}, "'magic'", ""),
        ({"type": ["f16"], "threads": 0}, "`threads` must be at least 1, not 0", ""),
        ({"type": ["f16"], "threads": -1}, "`threads` must be at least 1, not -1", ""),
        (
            {"type": ["f16", "q8_0"], "output": "one.gguf"},
            "must be a folder for 2 types, not the file one.gguf",
            "folder",
        ),
    ],
)
def test_a_wrong_call_is_a_usage_error(
    call: dict[str, Any], message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        convert("storybook", **call)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert names(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("notes")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="out is a file, not a folder"):
            convert("storybook", type=["q8_0"], output=tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "notes"
