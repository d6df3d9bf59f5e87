"""Names of models and files: default names differ by recipe, and are never a commit or step number."""

import shutil
from pathlib import Path

import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.calibration import calibration
from dgpt2_quant.quantize.calibration import collect as calibrate
from dgpt2_quant.quantize.checkpoint.model_name import clean_name, folder_name, name_of_file
from dgpt2_quant.quantize.checkpoint.resolve import resolve
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.converted_file import ConvertedFile

from ...checkpoints import make_checkpoint

COMMIT = "2290a62682d06624634c1f46a6ad5be0f47f38aa"


@pytest.fixture(autouse=True)
def _a_short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (calibrate, calibration):
        monkeypatch.setattr(module, "SAMPLED_TOKENS", 256)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(make_checkpoint(tmp_path / "tiny", layers=1, width=32, inner=32, context=16))


def name_in(file: ConvertedFile) -> object:
    metadata = read_header(Path(file.path)).metadata
    assert metadata["general.name"] == metadata["general.basename"]
    return metadata["general.name"]


def test_file_names_contain_the_recipe(model: str, tmp_path: Path) -> None:
    """All are written to one folder without --overwrite."""
    out = tmp_path / "out"
    files = convert(model, type="q4_0", output=out) + convert(model, type=["f16", "q4_0"], recipe="lean", output=out)
    files += convert(model, target_bpw=12.0, output=out) + convert(model, target_size="40kB", output=out)
    files += convert(model, max_kld=0.5, output=out)
    names = [Path(file.path).name for file in files]
    assert names == [
        "tiny.Q4_0.gguf",
        "tiny.F16.gguf",  # lean does not change F16, so the name is that of stock
        "tiny.lean.Q4_0.gguf",
        "tiny.search-12bpw.gguf",
        "tiny.search-0.04MB.gguf",
        "tiny.search-kld0.5.gguf",
    ]
    recipe = out / "tiny.search-12bpw.gguf.recipe.json"
    (again,) = convert(model, recipe=recipe, output=out)
    assert Path(again.path).name == f"tiny.search-12bpw.{again.type}.gguf"
    shutil.copy(recipe, tmp_path / "lean.json")
    (named,) = convert(model, recipe=tmp_path / "lean.json", output=out)
    assert Path(named.path).name == f"tiny.recipe.{named.type}.gguf"
    assert {name_of_file(Path(file.path).stem) for file in files} == {"tiny"}


@pytest.mark.parametrize(
    ("path", "card", "name"),
    [
        ("my-gpt2", "", "my-gpt2"),
        ("my-gpt2", "base_model: openai-community/gpt2", "my-gpt2"),
        ("my-gpt2/checkpoint-1500", "", "my-gpt2"),
        ("my-gpt2/checkpoint-1500", "license: mit\nbase_model: openai-community/gpt2", "gpt2"),
        ("my-gpt2/checkpoint-1500", "base_model:\n- 'owner/one'\n- owner/other", "one"),
        ("my-gpt2/checkpoint-1500", 'base_model: ["/data/models/local-gpt2/"]', "local-gpt2"),
        ("my-gpt2/checkpoint-1500", "base_model: null", "my-gpt2"),
        ("my-gpt2/checkpoint-1500/checkpoint-1", "", "my-gpt2"),
        (f"my-gpt2/{COMMIT}", "", "my-gpt2"),
        (f"downloads/{COMMIT}", "base_model: distilbert/distilgpt2", "distilgpt2"),
        (f"models--owner--my-gpt2/snapshots/{COMMIT}", "base_model: openai-community/gpt2", "my-gpt2"),
        (f"models--gpt2/snapshots/{COMMIT}", "", "models--gpt2"),
        ("checkpoint-best", "", "checkpoint-best"),
        ("my model", "", "my-model"),
    ],
)
def test_name_from_a_folder(path: str, card: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / path
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if card:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# base_model: none\n")
    assert resolve(str(folder)).name == resolve(f"{folder}/").name == name


def test_name_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-gpt2" / "checkpoint-10"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (tmp_path / "latest").symlink_to(folder)
    monkeypatch.chdir(folder)
    assert [resolve(written).name for written in (".", "./", "../checkpoint-10")] == ["my-gpt2"] * 3
    assert resolve("../../latest").name == "latest"
    assert folder_name(Path("/")) == "model"


def test_given_name_is_used(model: str, tmp_path: Path) -> None:
    (named,) = convert(model, type="f16", name="My Stories/v2", output=tmp_path)
    assert (Path(named.path).name, name_in(named)) == ("My-Stories-v2.F16.gguf", "My Stories/v2")
    (kept,) = convert(named.path, type="q8_0", output=tmp_path)
    assert (Path(kept.path).name, name_in(kept)) == ("My-Stories-v2.Q8_0.gguf", "My Stories/v2")
    (other,) = convert(named.path, type="q8_0", name="other", output=tmp_path)
    assert (Path(other.path).name, name_in(other)) == ("other.Q8_0.gguf", "other")
    for name in ("", "  ", "a\nb", "a\0b"):
        with pytest.raises(UsageError, match="`name` cannot be"):
            convert(model, type="f16", name=name, output=tmp_path)


def test_names_are_valid_in_file_names() -> None:
    assert clean_name("../../etc/passwd") == "etc-passwd"
    assert clean_name(".hidden") == "hidden"
    assert clean_name("-o") == "o"
    assert clean_name('a"b<c>|d?*:\\e\x7f') == "a-b-c-d-e"
    assert clean_name("模型") == "模型"
    assert len(clean_name("é" * 300).encode()) <= 120
    assert clean_name("..") == clean_name("\udcff\udcfe"[:0]) == "model"


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("distilgpt2.Q4_K_M", "distilgpt2"),
        ("distilgpt2-q4_k_m", "distilgpt2"),
        ("distilgpt2.lean.Q4_K_M", "distilgpt2"),
        ("distilgpt2.search-48MB", "distilgpt2"),
        ("distilgpt2.search-4.5bpw.Q4_K_M", "distilgpt2"),
        ("distilgpt2.search-kld0.01", "distilgpt2"),
        ("re.search-engine", "re.search-engine"),
        ("lean.Q4_K_M", "lean"),
        ("model", "model"),
    ],
)
def test_name_from_a_file(stem: str, name: str) -> None:
    assert name_of_file(stem) == name
