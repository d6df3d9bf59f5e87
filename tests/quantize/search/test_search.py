"""The search for types, on a model so small that it can be looked at from all sides."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import DgptQuantError, OutputError, UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize import convert as convert_module
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.convert import ConvertedFile, convert
from dgpt2_quant.quantize.recipes.lean_plan import nominal_level, read_recipe
from dgpt2_quant.quantize.search import search as module
from dgpt2_quant.quantize.search.search import find_target
from dgpt2_quant.quantize.store.cache_entries import cache_entries
from dgpt2_quant.runtime import Model

from ..checkpoints import make_checkpoint


class Tiny:
    def __init__(self, folder: Path, **changed: Any) -> None:
        settings = {"layers": 1, "width": 64, "context": 32, "vocabulary": 300} | changed
        self.model = str(make_checkpoint(folder / "tiny", **settings))
        self.imatrix = folder / "imatrix.gguf"
        imatrix(self.model, text="sampled", ctx_size=32, chunks=12, output=self.imatrix)

    def convert(self, output: Path, **options: Any) -> ConvertedFile:
        (file,) = convert(self.model, output=output, **{"imatrix": self.imatrix, **options})
        return file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("search"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path_factory.getbasetemp() / "search-cache"))


def test_a_size_is_kept_and_used(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, layers=2)
    small, large = (tiny.convert(tmp_path / t / "it.gguf", type=t, recipe="lean").bytes for t in ("q4_0", "q8_0"))
    target = (small + large) // 2
    file = tiny.convert(tmp_path / "it.gguf", target_size=target)
    assert target - 3000 < file.bytes <= target
    assert file.bytes == (tmp_path / "it.gguf").stat().st_size
    assert len(set(file.plan.types.values())) > 2
    found = read_recipe(tmp_path / "it.gguf.recipe.json").found
    assert found is not None
    assert found["bytes"] == file.bytes
    assert found["bound"] <= found["kld_predicted"] * (1 + 1e-6)
    assert 0.3 < found["kld"] / found["kld_predicted"] < 3
    with Model.load(tmp_path / "it.gguf") as model:
        assert model.generate("a", max_tokens=4, seed=1)


def test_a_recipe_makes_the_same_file_again(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny.convert(tmp_path / "it.gguf", target_bpw=7.0)
    assert file.bits_per_weight <= 7.0
    again = tiny.convert(tmp_path / "again.gguf", recipe=str(tmp_path / "it.gguf.recipe.json"))
    assert again.sha256 == file.sha256
    assert again.type == file.type == nominal_level(file.plan.types, file.plan.shapes).name


def test_more_bytes_are_no_worse_and_a_looser_limit_no_larger(tiny: Tiny, tmp_path: Path) -> None:
    losses, sizes = [], []
    for bits in (5.5, 7.0, 9.0):
        tiny.convert(tmp_path / f"{bits}.gguf", target_bpw=bits)
        losses.append((read_recipe(tmp_path / f"{bits}.gguf.recipe.json").found or {})["kld_predicted"])
    assert losses == sorted(losses, reverse=True)
    for limit in (losses[0], losses[1]):
        file = tiny.convert(tmp_path / f"kld{limit}.gguf", max_kld=limit)
        assert (read_recipe(tmp_path / f"kld{limit}.gguf.recipe.json").found or {})["kld"] <= limit
        sizes.append(file.bytes)
    assert sizes[0] < sizes[1]


def test_effects_are_measured_once(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny.convert(tmp_path / "a.gguf", target_bpw=6.5)

    def fail(*args: Any, **options: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(
        "dgpt2_quant.quantize.search.sensitivity._measured", lambda *args: iter(()) if not args[3] else fail()
    )
    assert tiny.convert(tmp_path / "b.gguf", target_bpw=6.5).sha256 == first.sha256


def test_an_interrupted_search_goes_on(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "own"))
    measured: list[str] = []
    real = module.measure_effects.__globals__["_measured"]

    def counting(model: Any, predictions: Any, name: str, types: Any, inputs: Any) -> Any:
        if types:
            measured.append(name)
        if len(measured) == 5:
            measured.append("")
            raise KeyboardInterrupt
        return real(model, predictions, name, types, inputs)

    monkeypatch.setattr("dgpt2_quant.quantize.search.sensitivity._measured", counting)
    with pytest.raises(KeyboardInterrupt):
        tiny.convert(tmp_path / "it.gguf", target_bpw=6.5)
    assert not (tmp_path / "it.gguf").exists()
    before = measured[:4]
    measured[:] = ["x"] * 10  # so that it does not stop again
    tiny.convert(tmp_path / "it.gguf", target_bpw=6.5)
    assert not set(before) & set(measured)


def test_speed_is_preferred_by_measured_times(tiny: Tiny, tmp_path: Path) -> None:
    def times(sizes: Any, types: Any) -> Any:
        return lambda shape, kind: 1.0 if kind is TensorType.Q5_0 else 2.0

    best = tiny.convert(tmp_path / "best.gguf", target_bpw=7.0)
    fast = tiny.convert(tmp_path / "fast.gguf", target_bpw=7.0, prefer="speed", measure_times=times)
    assert list(fast.plan.types.values()).count(TensorType.Q5_0) > list(best.plan.types.values()).count(TensorType.Q5_0)
    small = tiny.convert(tmp_path / "small.gguf", target_bpw=7.0, prefer="size")
    assert small.bytes < best.bytes
    with pytest.raises(UsageError, match="speed"):
        tiny.convert(tmp_path / "no.gguf", target_bpw=7.0, prefer="speed")


def test_the_type_that_is_only_faster_is_left_out_where_speed_does_not_count(tiny: Tiny, tmp_path: Path) -> None:
    def times(sizes: Any, types: Any) -> Any:
        return lambda shape, kind: 1.0 if kind is TensorType.Q4_0 else 2.0

    for prefer, there in (("speed", True), ("quality", False), ("size", False)):
        file = tiny.convert(tmp_path / f"{prefer}.gguf", target_bpw=6.0, prefer=prefer, measure_times=times)
        assert (TensorType.Q4_0 in file.plan.types.values()) is there


def test_every_size_between_the_smallest_and_the_largest_is_reached(tmp_path: Path) -> None:
    """Rows of 32 and 96 have no K-quants, and so no type between six bits and eight and a half."""
    small = Tiny(tmp_path, layers=1, width=32, inner=96, heads=2)
    for size in range(28_000, 40_000, 1_000):
        file = small.convert(tmp_path / "it.gguf", target_size=size, overwrite=True)
        assert size - 2500 < file.bytes <= size


def test_rows_that_no_block_divides(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "odd", layers=1, width=40, context=32)
    options: dict[str, Any] = {"output": tmp_path / "it.gguf", "calibrate": "sampled", "imatrix": None}
    with pytest.raises(UsageError, match="the target is too small: the smallest file"):
        convert(str(model), target_bpw=5.0, **options)
    (file,) = convert(str(model), target_bpw=18.0, **options)
    assert set(file.plan.types.values()) == {TensorType.F16, TensorType.F32}


def test_a_split_embedding_is_an_option(tiny: Tiny, tmp_path: Path) -> None:
    """Half of it slow, half fast: then lookup and output get types of their own."""
    tiny.convert(tmp_path / "it.gguf", target_bpw=6.5)
    document = json.loads((tmp_path / "it.gguf.recipe.json").read_text())
    document["types"] |= {"token_embd.weight": "Q8_0", "output.weight": "Q4_0"}
    (tmp_path / "split.json").write_text(json.dumps(document))
    file = tiny.convert(tmp_path / "split.gguf", recipe=str(tmp_path / "split.json"))
    tensors = read_header(tmp_path / "split.gguf").tensors
    assert (tensors["token_embd.weight"].type, tensors["output.weight"].type) == (TensorType.Q8_0, TensorType.Q4_0)
    assert tensors["output.weight"].shape == tensors["token_embd.weight"].shape
    with Model.load(tmp_path / "split.gguf") as model:
        assert model.generate("a", max_tokens=4, seed=1)
    dry = tiny.convert(tmp_path / "dry.gguf", recipe=str(tmp_path / "split.json"), dry_run=True)
    assert dry.bytes == file.bytes


def test_more_room_than_any_type_takes(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny.convert(tmp_path / "it.gguf", target_size="5MB")
    assert file.plan.types["blk.0.ffn_up.weight"] in (TensorType.Q8_0, TensorType.F16)


def test_what_is_preferred_costs_a_quarter_more_loss_at_most(tiny: Tiny, tmp_path: Path) -> None:
    losses = []
    for prefer in ("quality", "size"):
        tiny.convert(tmp_path / f"{prefer}.gguf", target_bpw=7.0, prefer=prefer)
        losses.append((read_recipe(tmp_path / f"{prefer}.gguf.recipe.json").found or {})["kld_predicted"])
    assert losses[0] <= losses[1] <= 1.25 * losses[0] * (1 + 1e-9)


@pytest.mark.parametrize("there", ["tiny.search-12bpw.gguf", "tiny.search-12bpw.gguf.recipe.json"])
def test_what_is_in_the_way_in_a_folder_is_told_before_the_search(
    there: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / there).write_text("mine")
    monkeypatch.setattr("dgpt2_quant.quantize.convert.search", None)
    with pytest.raises(OutputError, match="already exists") as raised:
        tiny.convert(tmp_path, target_bpw=12)
    assert ("--recipe" in raised.value.hint) is there.endswith(".json")
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_a_recipe_that_was_found_is_kept_when_its_file_can_not_be_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = convert_module.write_files

    def too_large(*args: Any, **options: Any) -> Any:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # as a full disk
        try:
            return real(*args, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(convert_module, "write_files", too_large)
    with pytest.raises(OutputError):
        tiny.convert(tmp_path / "it.gguf", target_bpw=7.0)
    recipe = tmp_path / "it.gguf.recipe.json"
    assert list(tmp_path.iterdir()) == [recipe]
    assert str(recipe) in caplog.messages[-1]
    monkeypatch.undo()
    (file,) = convert(tiny.model, recipe=recipe, imatrix=tiny.imatrix, output=tmp_path / "it.gguf")
    assert file.bytes == (tmp_path / "it.gguf").stat().st_size


def test_a_recipe_that_can_not_lie_next_to_its_file_is_kept_in_the_cache(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, folder = convert_module.search, tmp_path / "out"

    def removed(*args: Any, **options: Any) -> Any:
        found = real(*args, **options)
        folder.write_text("somebody put a file where the folder would be")
        return found

    monkeypatch.setattr(convert_module, "search", removed)
    with pytest.raises(OutputError):
        tiny.convert(folder / "it.gguf", target_bpw=7.0)
    (kept,) = [entry.path for entry in cache_entries() if entry.kind == "recipe"]
    assert str(kept) in caplog.messages[-1]
    assert read_recipe(kept).found


def test_a_file_that_is_there_is_told_before_the_search(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it.gguf").write_text("mine")
    monkeypatch.setattr("dgpt2_quant.quantize.convert.search", None)
    with pytest.raises(OutputError, match="already exists"):
        tiny.convert(tmp_path / "it.gguf", target_bpw=6.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_size": 10}, "too small"),
        ({"target_bpw": 0.5}, "too small"),
        ({"max_kld": 1e-12}, "no mix of types"),
        ({"target_size": -1}, "above 0"),
        ({"target_bpw": float("nan")}, "above 0"),
        ({"target_size": "much"}, "no size"),
        ({"target_size": 10**6, "max_kld": 0.1}, "more than one target"),
        ({"target_size": 10**6, "type": "q4_0"}, "says all types itself"),
        ({"target_bpw": 6.5, "prefer": "beauty"}, "can not be preferred"),
        ({"target_bpw": 6.5, "without": ["haste"]}, "no step"),
        ({"target_bpw": 6.5, "imatrix": None, "calibrate": "nowhere.txt"}, "no text"),
    ],
)
def test_what_can_not_be_is_told(tiny: Tiny, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DgptQuantError, match=message):
        tiny.convert(tmp_path / "it.gguf", **options)
    assert not list(tmp_path.iterdir())


def test_an_existing_recipe_is_not_overwritten(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "it.gguf.recipe.json").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        tiny.convert(tmp_path / "it.gguf", target_bpw=6.5)
    assert [path.name for path in tmp_path.iterdir()] == ["it.gguf.recipe.json"]


def test_targets() -> None:
    assert find_target(None, None, None, None) is None
    target = find_target("48MB", None, None, "speed")
    assert target is not None
    assert (target.bytes, target.prefer) == (48_000_000, "speed")
    assert target.label == "search-48MB"


def test_a_cut_memo_is_measured_anew(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "own"))
    first = tiny.convert(tmp_path / "a.gguf", target_bpw=6.5)
    (memo,) = [entry.path for entry in cache_entries() if entry.kind == "effects"]
    content = memo.read_bytes()
    for broken in (content[:-20], b"[1]", b'{"lookup": {"Q8_0": null}}'):
        memo.write_bytes(broken)
        caplog.clear()
        assert tiny.convert(tmp_path / "b.gguf", target_bpw=6.5, overwrite=True).sha256 == first.sha256
        assert [text for text in caplog.messages if "damaged" in text] == [f"{memo} is damaged, and is made again"]
        assert memo.read_bytes() == content
