"""The search for types, on a very small model."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import DgptQuantError, OutputError, UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.converted_file import ConvertedFile
from dgpt2_quant.quantize.recipes.recipe_file import nearest_type, read_recipe
from dgpt2_quant.quantize.search.search import search
from dgpt2_quant.quantize.search.target import find_target
from dgpt2_quant.quantize.store.cache_entries import cache_entries
from dgpt2_quant.runtime import Model

from ...checkpoints import make_checkpoint


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


def effects_file() -> Path:
    (path,) = [entry.path for entry in cache_entries() if entry.kind == "effects"]
    return path


def when_measured(action: Callable[[], Any]) -> Callable[[int, int, str], None]:
    """A progress that acts once, when all effects are measured."""

    def progress(done: int, total: int, what: str) -> None:
        if what.startswith("effect of") and done == total:
            action()

    return progress


def never(*news: Any) -> None:
    raise AssertionError(f"work began: {news}")


def test_a_target_size_is_kept_and_nearly_filled(tmp_path: Path) -> None:
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


def test_a_saved_recipe_gives_the_same_file(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny.convert(tmp_path / "it.gguf", target_bpw=7.0)
    assert file.bits_per_weight <= 7.0
    again = tiny.convert(tmp_path / "again.gguf", recipe=str(tmp_path / "it.gguf.recipe.json"))
    assert again.sha256 == file.sha256
    assert again.type == file.type == nearest_type(file.plan.types, file.plan.shapes).name


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
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "own"))
    first = tiny.convert(tmp_path / "a.gguf", target_bpw=6.5)
    before = effects_file().stat()
    assert tiny.convert(tmp_path / "b.gguf", target_bpw=6.5).sha256 == first.sha256
    after = effects_file().stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_interrupted_search_goes_on(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "own"))

    def interrupt(done: int, total: int, what: str) -> None:
        if what.startswith("effect of") and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.convert(tmp_path / "it.gguf", target_bpw=6.5, progress=interrupt)
    assert not (tmp_path / "it.gguf").exists()
    known = json.loads(effects_file().read_bytes())
    assert len(known) == 4
    known["lookup"]["Q8_0"] = 0.125  # a measured one is smaller
    effects_file().write_text(json.dumps(known))
    tiny.convert(tmp_path / "it.gguf", target_bpw=6.5)
    whole = json.loads(effects_file().read_bytes())
    assert {name: whole[name] for name in known} == known
    assert len(whole) == 3 + 1 + 4


def test_speed_and_size_are_preferred(tiny: Tiny, tmp_path: Path) -> None:
    """Rows of 64 have no K-quants: of the types with fast kernels they have IQ4_NL, Q8_0 and F16."""
    files = {p: tiny.convert(tmp_path / f"{p}.gguf", target_bpw=7.0, prefer=p) for p in ("quality", "speed", "size")}

    def slow(file: ConvertedFile) -> int:
        """Bytes of the matrices whose kernels are slow."""
        types = {name: kind for name, kind in file.plan.types.items() if name != "position_embd.weight"}
        return sum(
            file.plan.tensor_bytes(name) for name, kind in types.items() if kind.name in ("Q4_1", "Q5_0", "Q5_1")
        )

    assert slow(files["speed"]) < slow(files["quality"])
    assert files["size"].bytes < files["quality"].bytes


def test_every_size_between_the_smallest_and_the_largest_is_reached(tmp_path: Path) -> None:
    """Rows of 32 and 96 have no K-quants, and so no type between six bits and eight and a half."""
    small = Tiny(tmp_path, layers=1, width=32, inner=96, heads=2)
    for size in range(28_000, 40_000, 1_000):
        file = small.convert(tmp_path / "it.gguf", target_size=size, overwrite=True)
        assert size - 2500 < file.bytes <= size


def test_rows_that_no_block_divides_get_f16(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "odd", layers=1, width=40, context=32)
    options: dict[str, Any] = {"output": tmp_path / "it.gguf", "calibrate": "sampled", "imatrix": None}
    with pytest.raises(UsageError, match="the target is too small: the smallest file"):
        convert(str(model), target_bpw=5.0, **options)
    (file,) = convert(str(model), target_bpw=18.0, **options)
    assert set(file.plan.types.values()) == {TensorType.F16, TensorType.F32}


def test_a_recipe_can_split_the_embedding(tiny: Tiny, tmp_path: Path) -> None:
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


def test_a_target_above_all_types_is_reached(tiny: Tiny, tmp_path: Path) -> None:
    file = tiny.convert(tmp_path / "it.gguf", target_size="5MB")
    assert file.plan.types["blk.0.ffn_up.weight"] in (TensorType.Q8_0, TensorType.F16)


def test_preferring_size_costs_at_most_a_quarter_more_loss(tiny: Tiny, tmp_path: Path) -> None:
    losses = []
    for prefer in ("quality", "size"):
        tiny.convert(tmp_path / f"{prefer}.gguf", target_bpw=7.0, prefer=prefer)
        losses.append((read_recipe(tmp_path / f"{prefer}.gguf.recipe.json").found or {})["kld_predicted"])
    assert losses[0] <= losses[1] <= 1.25 * losses[0] * (1 + 1e-9)


@pytest.mark.parametrize("there", ["tiny.search-12bpw.gguf", "tiny.search-12bpw.gguf.recipe.json"])
@pytest.mark.parametrize("named", [False, True])
def test_an_existing_file_is_refused_before_the_search(named: bool, there: str, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / there).write_text("mine")
    output = tmp_path / "tiny.search-12bpw.gguf" if named else tmp_path
    with pytest.raises(OutputError, match="already exists") as raised:
        tiny.convert(output, target_bpw=12, progress=never)
    assert ("`recipe`" in raised.value.hint) is there.endswith(".json")
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_the_recipe_is_kept_when_its_file_cannot_be_written(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = when_measured(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1])))  # like a full disk
    try:
        with pytest.raises(OutputError):
            tiny.convert(tmp_path / "it.gguf", target_bpw=7.0, progress=full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    recipe = tmp_path / "it.gguf.recipe.json"
    assert list(tmp_path.iterdir()) == [recipe]
    assert str(recipe) in caplog.messages[-1]
    file = tiny.convert(tmp_path / "it.gguf", recipe=recipe)
    assert file.bytes == (tmp_path / "it.gguf").stat().st_size


def test_a_recipe_that_cannot_be_saved_next_to_its_file_is_kept_in_the_cache(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "out"
    blocked = when_measured(lambda: folder.write_text("a file where the folder would be"))
    with pytest.raises(OutputError):
        tiny.convert(folder / "it.gguf", target_bpw=7.0, progress=blocked)
    (kept,) = [entry.path for entry in cache_entries() if entry.kind == "recipe"]
    assert str(kept) in caplog.messages[-1]
    assert read_recipe(kept).found


def test_search_returns_the_recipe_that_convert_saves(tiny: Tiny, tmp_path: Path) -> None:
    tiny.convert(tmp_path / "it.gguf", target_bpw=7.0)
    found = search(tiny.model, target_bpw=7.0, imatrix=tiny.imatrix)
    assert found.to_json() == read_recipe(tmp_path / "it.gguf.recipe.json").to_json()
    with pytest.raises(UsageError, match="one of `target_size`, `target_bpw` and `max_kld` must be given"):
        search(tiny.model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_size": 10}, "too small"),
        ({"target_bpw": 0.5}, "too small"),
        ({"max_kld": 1e-12}, "no mix of types"),
        ({"target_size": -1}, "above 0"),
        ({"target_bpw": float("nan")}, "above 0"),
        ({"target_size": "much"}, "is not a size"),
        ({"target_size": 10**6, "max_kld": 0.1}, "`target_size` and `max_kld` cannot be combined"),
        ({"target_size": 10**6, "type": "q4_0"}, "`type` cannot be combined with a target"),
        ({"target_bpw": 6.5, "prefer": "beauty"}, "`prefer` must be"),
        ({"target_bpw": 6.5, "without": ["haste"]}, "`without` must be padding"),
        ({"target_bpw": 6.5, "imatrix": None, "calibrate": "nowhere.txt"}, "no text"),
    ],
)
def test_wrong_settings_are_refused(tiny: Tiny, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DgptQuantError, match=message):
        tiny.convert(tmp_path / "it.gguf", **options)
    assert not list(tmp_path.iterdir())


def test_targets_have_labels() -> None:
    assert find_target(None, None, None, None) is None
    target = find_target("48MB", None, None, "speed")
    assert target is not None
    assert (target.bytes, target.prefer) == (48_000_000, "speed")
    assert target.label == "search-48MB"


def test_damaged_effects_in_the_cache_are_measured_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "own"))
    first = tiny.convert(tmp_path / "a.gguf", target_bpw=6.5)
    memo = effects_file()
    content = memo.read_bytes()
    for broken in (content[:-20], b"[1]", b'{"lookup": {"Q8_0": null}}'):
        memo.write_bytes(broken)
        caplog.clear()
        assert tiny.convert(tmp_path / "b.gguf", target_bpw=6.5, overwrite=True).sha256 == first.sha256
        assert [text for text in caplog.messages if "damaged" in text] == [
            f"{memo} is damaged and will be created again"
        ]
        assert memo.read_bytes() == content
