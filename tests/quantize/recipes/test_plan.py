"""Plans have the sizes and types of the files, to the byte; wrong calls fail before the work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import DgptQuantError, GGUFError, ModelNotFoundError, UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.quant_types import QUANT_TYPES
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, Statistics, read_importance
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.converted_file import ConvertedFile

from ...checkpoints import make_checkpoint

pytestmark = pytest.mark.tables

FREE = [name for name, quant_type in QUANT_TYPES.items() if not quant_type.needs_imatrix]
NEEDY = [name for name, quant_type in QUANT_TYPES.items() if quant_type.needs_imatrix]
SOME = ["Q4_K_M", "Q2_K_S", "Q8_0", "F16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a text, a checkpoint, its F32 and Q8_0 files, and an importance matrix over the text."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "text.txt").write_text("then the in an " * 40)
    checkpoint = str(make_checkpoint(folder / "tiny", layers=1, width=256, inner=256, context=32))
    convert(checkpoint, type=["F32", "Q8_0"], output=folder)
    imatrix(checkpoint, text=folder / "text.txt", output=folder / "imatrix.gguf")
    return folder


def planned(folder: Path, model: str, output: Path, **arguments: Any) -> list[ConvertedFile]:
    return convert(str(folder / model), output=output, dry_run=True, **arguments)


def assert_as_planned(plans: list[ConvertedFile], files: list[ConvertedFile]) -> None:
    for plan, file in zip(plans, files, strict=True):
        assert plan.bytes == file.bytes == Path(file.path).stat().st_size, file.type
        header = read_header(Path(file.path))
        assert {name: t.type for name, t in header.tensors.items()} == dict(plan.plan.types)
        assert {name: t.shape for name, t in header.tensors.items()} == dict(plan.plan.shapes)
        for same in ("model", "type", "recipe", "path", "bits_per_weight", "parameters", "tensors"):
            assert getattr(plan, same) == getattr(file, same)
        assert (plan.sha256, plan.seconds) == (None, 0.0)
        assert file.sha256


@pytest.mark.parametrize("model", ["tiny", "tiny.F32.gguf"])
def test_the_size_of_every_quant_type_is_known_to_the_byte(model: str, folder: Path, tmp_path: Path) -> None:
    plans = planned(folder, model, tmp_path, type=FREE)
    assert_as_planned(plans, convert(str(folder / model), type=FREE, output=tmp_path))


@pytest.mark.parametrize("model", ["tiny", "tiny.F32.gguf"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"imatrix": "imatrix.gguf"},
        {"calibrate": "text.txt"},
        {"tensor_type": ["ffn_down=q6_k", "attn=f16"]},
        {"imatrix": "imatrix.gguf", "tensor_type": ["ffn_up=iq2_xs", "^token_embd=q5_1"]},
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_the_size_is_known_with_importance_and_overrides(
    arguments: dict[str, Any], model: str, folder: Path, tmp_path: Path
) -> None:
    weighed = {key: folder / name for key, name in arguments.items() if key != "tensor_type"}
    call = {**arguments, **weighed, "type": SOME if weighed else ["Q4_K_M", "Q8_0"]}
    plans = planned(folder, model, tmp_path, **call)
    assert list(tmp_path.iterdir()) == []
    assert_as_planned(plans, convert(str(folder / model), output=tmp_path, **call))


def test_the_size_of_a_requantized_file_is_known(folder: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"type": ["Q4_0", "Q8_0"], "allow_requantize": True}
    plans = planned(folder, "tiny.Q8_0.gguf", tmp_path, **call)
    assert_as_planned(plans, convert(str(folder / "tiny.Q8_0.gguf"), output=tmp_path, **call))


def test_one_quant_type_that_needs_an_importance_matrix_is_planned_and_made(folder: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"type": "IQ2_XS", "imatrix": folder / "imatrix.gguf"}
    assert_as_planned(planned(folder, "tiny", tmp_path, **call), convert(str(folder / "tiny"), output=tmp_path, **call))


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_dry_run_writes_nothing(
    calibrated: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[tuple[int, int, str]] = []
    before = {path: path.stat() for path in folder.rglob("*")}
    for output in (None, tmp_path / "new" / "folder", tmp_path / "new" / "it.gguf"):
        text = folder / "text.txt" if calibrated else None
        convert(
            str(folder / "tiny"),
            type="Q4_0",
            output=output,
            calibrate=text,
            dry_run=True,
            progress=lambda *news: calls.append(news),
        )
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == {
        p: s.st_mtime_ns for p, s in before.items()
    }
    assert calls == []


def test_a_dry_run_allows_an_existing_target(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.Q4_0.gguf").write_bytes(b"precious")
    (plan,) = planned(folder, "tiny", tmp_path, type="Q4_0")
    assert plan.path == str(tmp_path / "tiny.Q4_0.gguf")
    assert (tmp_path / "tiny.Q4_0.gguf").read_bytes() == b"precious"


def test_a_dry_run_downloads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelNotFoundError, match="offline, and owner/uncached"):
        convert("owner/uncached", type="Q4_0", output=tmp_path / "out", dry_run=True)
    assert list(tmp_path.iterdir()) == []


def test_the_json_of_a_plan_lists_every_tensor(folder: Path, tmp_path: Path) -> None:
    plans = planned(folder, "tiny", tmp_path, type=["Q4_K_M", "Q4_1"])
    files = convert(str(folder / "tiny"), type=["Q4_K_M", "Q4_1"], output=tmp_path)
    for plan, file in zip(plans, files, strict=True):
        document = json.loads(json.dumps(plan.to_json()))
        written = read_header(Path(file.path)).tensors.values()
        assert document.pop("plan") == [
            {"name": t.name, "type": t.type.name, "shape": list(t.shape), "bytes": t.nbytes} for t in written
        ]
        assert document["sha256"] is None
        assert document.keys() == file.to_json().keys()
        assert plan.plan.data_bytes == file.bytes - min(tensor.start for tensor in written)
        assert sum(tensor.nbytes for tensor in written) <= plan.plan.data_bytes
        assert plan.plan.bits_per_weight == pytest.approx(read_header(Path(file.path)).bits_per_weight)


@pytest.mark.parametrize("quant_type", NEEDY)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_quant_type_that_needs_an_importance_matrix_is_refused_before_the_model_is_opened(
    quant_type: str, dry_run: bool, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{quant_type} needs an importance matrix") as caught:
        convert("no/such/model", type=["F16", quant_type.lower()], output=tmp_path / "out", dry_run=dry_run)
    assert "`imatrix`" in caught.value.hint
    assert "`calibrate`" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"imatrix": "gone.gguf"}, ModelNotFoundError, "there is no file .*gone.gguf"),
        ({"imatrix": "bad.gguf"}, GGUFError, "bad.gguf is not a GGUF file"),
        ({"calibrate": "gone.txt"}, ModelNotFoundError, "no text .*gone.txt"),
        ({"calibrate": "bad.gguf"}, UsageError, "bad.gguf is not UTF-8"),
        (
            {"imatrix": "bad.gguf", "calibrate": "calibration"},
            UsageError,
            "`imatrix` and `calibrate` cannot",
        ),
        ({"tensor_type": ["ffn_up=q9"]}, UsageError, "must end in a tensor type, not 'q9'"),
        ({"type": "q9"}, UsageError, "unknown quant type 'q9'"),
    ],
    ids=str,
)
def test_a_wrong_call_is_refused_before_the_model_is_opened(
    arguments: dict[str, Any],
    error: type[DgptQuantError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.gguf").write_bytes(b"garbage\xff")
    with pytest.raises(error, match=message):
        convert("no/such/model", **{"type": "Q4_0", "output": "out"} | arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("quant_type", "lacks", "overrides"),
    [
        ("Q2_K_S", "blk.0.ffn_up.weight", []),
        ("IQ2_XS", "blk.0.ffn_up.weight", []),
        ("Q4_0", "blk.0.ffn_up.weight", ["ffn_up=iq2_xs"]),
        ("Q4_0", "token_embd.weight", ["token_embd=iq1_s"]),
    ],
)
def test_a_needed_entry_that_the_importance_matrix_lacks_is_named(
    quant_type: str, lacks: str, overrides: list[str], dry_run: bool, folder: Path, tmp_path: Path
) -> None:
    whole = read_importance(folder / "imatrix.gguf")
    entries = {name: entry for name, entry in whole.entries.items() if name != lacks}
    ImportanceMatrix(entries, ["part"], 1, 32).write(tmp_path / "part.gguf")
    call: dict[str, Any] = {
        "type": quant_type,
        "tensor_type": overrides,
        "dry_run": dry_run,
        "output": tmp_path / "out",
    }
    with pytest.raises(UsageError, match=f"the importance matrix has no entry for {lacks}, which needs one at "):
        convert(str(folder / "tiny"), imatrix=tmp_path / "part.gguf", **call)
    assert not (tmp_path / "out").exists()


def test_an_importance_matrix_of_llama_imatrix_lacks_the_head_and_serves(folder: Path, tmp_path: Path) -> None:
    whole = read_importance(folder / "imatrix.gguf")
    entries = {name: entry for name, entry in whole.entries.items() if name != "token_embd.weight"}
    ImportanceMatrix(entries, ["part"], 1, 32).write(tmp_path / "part.gguf")
    call: dict[str, Any] = {"type": ["Q4_K_M", "Q2_K_S"], "imatrix": tmp_path / "part.gguf"}
    assert_as_planned(planned(folder, "tiny", tmp_path, **call), convert(str(folder / "tiny"), output=tmp_path, **call))


def test_entries_for_other_tensors_are_ignored(folder: Path, tmp_path: Path) -> None:
    whole = read_importance(folder / "imatrix.gguf")
    more = {**whole.entries, "blk.7.ffn_gate.weight": Statistics(np.ones(5, np.float32), None, 3.0)}
    ImportanceMatrix(more, whole.datasets, 1, 32).write(tmp_path / "more.gguf")
    (one,) = convert(str(folder / "tiny"), type="Q4_0", output=tmp_path / "a", imatrix=tmp_path / "more.gguf")
    (other,) = convert(str(folder / "tiny"), type="Q4_0", output=tmp_path / "b", imatrix=folder / "imatrix.gguf")
    starts = [min(t.start for t in read_header(Path(file.path)).tensors.values()) for file in (one, other)]
    data = [Path(file.path).read_bytes()[start:] for file, start in zip((one, other), starts, strict=True)]
    assert data[0] == data[1]


def test_metadata_names_overrides_and_importance_matrix(folder: Path, tmp_path: Path) -> None:
    matrix = read_importance(folder / "imatrix.gguf")
    call: dict[str, Any] = {"imatrix": folder / "imatrix.gguf", "tensor_type": ["ffn_(up|down)=Q6_K", "qkv=f16"]}
    (file,) = convert(str(folder / "tiny"), type="Q4_0", output=tmp_path, **call)
    metadata = read_header(Path(file.path)).metadata
    keys = [key for key in metadata if "imatrix" in key or "tensor_types" in key]
    assert {key: metadata[key] for key in keys} == {
        "dgpt2_quant.tensor_types": ["ffn_(up|down)=Q6_K", "qkv=F16"],
        "dgpt2_quant.imatrix.sha256": matrix.sha256,
        "quantize.imatrix.dataset": "text.txt",
        "quantize.imatrix.entries_count": 5,
        "quantize.imatrix.chunks_count": matrix.chunk_count,
    }
    (plain,) = convert(str(folder / "tiny"), type="Q4_0", output=tmp_path / "plain")
    assert read_header(Path(plain.path)).metadata.keys() == metadata.keys() - set(keys)


def test_a_text_that_is_too_short_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the")
    with pytest.raises(UsageError, match=r"short\.txt has 2 tokens"):
        convert(str(folder / "tiny"), type="Q4_0", output=tmp_path / "out", calibrate=tmp_path / "short.txt")
    assert not (tmp_path / "out").exists()
