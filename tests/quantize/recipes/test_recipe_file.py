"""Recipe files, from any hand, and plans of the recipe `lean`."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import ModelNotFoundError, OutputError, UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.quant_types import QUANT_TYPES, TensorType
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import read_importance
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.recipes.plan import make_lean_plan, plan_of_recipe
from dgpt2_quant.quantize.recipes.recipe_file import Recipe, nearest_type, read_recipe
from dgpt2_quant.quantize.recipes.tensor_types import find_preference

from ...checkpoints import TOKENS, make_checkpoint

Names = Collection[str]
MATRICES = [f"blk.0.{name}.weight" for name in ("attn_output", "attn_qkv", "ffn_down", "ffn_up")]
TYPES = dict(
    zip(
        ["position_embd.weight", "token_embd.weight", *MATRICES],
        [TensorType[name] for name in ("F16", "Q4_0", "Q5_1", "Q8_0", "IQ4_NL", "Q4_1")],
        strict=True,
    )
)
RECIPE = Recipe("mine.json", QUANT_TYPES["Q5_1"], TYPES, ("gradients",), {"kld": 0.25, "turns": [1, 2]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two checkpoints, and an importance matrix of the first."""
    folder = tmp_path_factory.mktemp("plans")
    make_checkpoint(folder / "tiny", layers=1, width=32, inner=32, context=16)
    make_checkpoint(folder / "two", layers=2, width=32, inner=32, context=16, head="untied")
    imatrix(str(folder / "tiny"), text="sampled", chunks=8, output=folder / "it.gguf")
    return folder


@pytest.fixture
def source(folder: Path) -> ModelSource:
    return open_model(str(folder / "tiny"))


@pytest.fixture
def importance(folder: Path) -> Names:
    return read_importance(folder / "it.gguf").entries.keys()


def document(**changed: Any) -> dict[str, Any]:
    types = {name: kind.name for name, kind in TYPES.items()}
    fields = {"format": "dgpt2-quant recipe", "version": 1, "type": "Q5_1", "without": [], "types": types}
    return {key: value for key, value in {**fields, **changed}.items() if value is not None}


def written(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


class TestRecipeFiles:
    """Reading and writing."""

    def test_a_written_recipe_is_read_again(self, tmp_path: Path) -> None:
        RECIPE.write(tmp_path / "mine.json")
        assert read_recipe(tmp_path / "mine.json") == RECIPE
        plain = Recipe("plain.json", QUANT_TYPES["Q4_0"], TYPES)
        plain.write(tmp_path / "plain.json")
        assert read_recipe(str(tmp_path / "plain.json")) == plain
        assert (tmp_path / "plain.json").read_text().endswith("}\n")

    def test_an_existing_file_is_replaced_only_with_overwrite(self, tmp_path: Path) -> None:
        RECIPE.write(tmp_path / "mine.json")
        with pytest.raises(OutputError, match="already exists"):
            RECIPE.write(tmp_path / "mine.json")
        RECIPE.write(tmp_path / "mine.json", overwrite=True)

    def test_the_same_recipe_gives_the_same_bytes(self, tmp_path: Path) -> None:
        for name in ("mine.json", "other.json"):
            RECIPE.write(tmp_path / name)
        assert (tmp_path / "mine.json").read_bytes() == (tmp_path / "other.json").read_bytes()

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"\xff\xfe\x00",
            b"null",
            b"[1, 2]",
            b'"dgpt2-quant recipe"',
            b"[" * 100_000,
            b'{"format": ' + b"9" * 5000 + b"}",
            b'{"format": "dgpt2-quant recipe", "version": 1, "types": "' + b"x" * (1 << 22) + b'"}',
            document(format="another"),
            document(format=None),
            document(version=2),
            document(version="1"),
            document(type=None),
            document(type="Q9_9"),
            document(type=["Q4_0"]),
            document(type=7),
            document(types=None),
            document(types=[["blk.0.ffn_up.weight", "Q4_0"]]),
            document(types={"blk.0.ffn_up.weight": "Q9_9"}),
            document(types={"blk.0.ffn_up.weight": ["Q4_0"]}),
            document(types={"blk.0.ffn_up.weight": None}),
            document(without=None),
            document(without=["feedbak"]),
            document(without="feedback"),
            document(without=[["feedback"]]),
            document(without=5),
            document(found=[1, 2, 3]),
            document(found="text"),
        ],
        ids=lambda content: str(content)[:60],
    )
    def test_other_content_is_refused(self, content: Any, tmp_path: Path) -> None:
        path = written(tmp_path / "bad.json", content)
        with pytest.raises(UsageError, match=r"bad\.json is not a recipe of this tool") as caught:
            read_recipe(path)
        assert len(caught.value.message) < 500
        assert caught.value.hint
        with pytest.raises(UsageError):
            convert("no/such/model", recipe=path)  # before anything is looked for

    @pytest.mark.parametrize("name", ["gone.json", "folder.json", "a\0.json", "x" * 300 + ".json"])
    def test_a_missing_file_is_reported(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "folder.json").mkdir()
        with pytest.raises(ModelNotFoundError, match="there is no file"):
            read_recipe(tmp_path / name)


class TestPlansOfRecipes:
    """A recipe and a model."""

    def test_the_plan_has_the_types_of_the_recipe(self, source: ModelSource, importance: Names) -> None:
        plan = plan_of_recipe(source, RECIPE, importance)
        assert {name: kind for name, kind in plan.types.items() if kind is not TensorType.F32} == TYPES
        assert plan.shapes["token_embd.weight"] == (len(TOKENS) + 2, 32)
        assert (plan.quant_type.name, plan.skip_steps, plan.pads) == ("Q5_1", ("gradients",), 2)
        assert plan.uses_importance

    def test_a_type_for_the_output_splits_the_embedding(
        self, source: ModelSource, importance: Names, folder: Path, tmp_path: Path
    ) -> None:
        recipe = Recipe("split.json", QUANT_TYPES["Q4_0"], {**TYPES, "output.weight": TensorType.Q8_0}, ("padding",))
        plan = plan_of_recipe(source, recipe, importance)
        assert plan.types["output.weight"] is TensorType.Q8_0
        assert plan.shapes["output.weight"] == plan.shapes["token_embd.weight"] == (len(TOKENS), 32)
        recipe.write(tmp_path / "split.json")
        arguments: dict[str, Any] = {"recipe": tmp_path / "split.json", "imatrix": folder / "it.gguf"}
        (planned,) = convert(str(folder / "tiny"), output=tmp_path, dry_run=True, **arguments)
        (file,) = convert(str(folder / "tiny"), output=tmp_path, **arguments)
        assert planned.bytes == file.bytes == Path(file.path).stat().st_size
        tensors = read_header(Path(file.path)).tensors
        assert {name: tensors[name].type for name in recipe.types} == recipe.types
        assert (file.type, Path(file.path).name) == ("Q4_0", "tiny.split.Q4_0.gguf")

    def test_types_that_do_not_divide_the_rows_are_replaced(self, source: ModelSource, importance: Names) -> None:
        recipe = Recipe("k.json", QUANT_TYPES["Q4_K_M"], dict.fromkeys(TYPES, TensorType.Q4_K))
        found = plan_of_recipe(source, recipe, importance).types
        assert {found[name] for name in TYPES} == {TensorType.Q5_0}

    @pytest.mark.parametrize(
        ("types", "message"),
        [
            ({"blk.0.ffn_up.weight": None}, r"mine\.json has no type for blk\.0\.ffn_up\.weight"),
            ({"position_embd.weight": None}, r"has no type for position_embd\.weight"),
            (
                {"blk.1.ffn_up.weight": TensorType.Q4_0},
                r"names 'blk\.1\.ffn_up\.weight', which the model does not have",
            ),
            ({"\ud800" * 1000: TensorType.Q4_0}, r"names '(\\ud800)+.{1,5}, which the model does not have"),
            ({"blk.0.ffn_up.weight": TensorType.Q1_0}, "Q1_0 has blocks of 128"),
        ],
        ids=lambda value: str(list(value))[:40] if isinstance(value, dict) else "",
    )
    def test_a_recipe_for_another_model_is_refused(
        self, types: Any, message: str, source: ModelSource, importance: Names
    ) -> None:
        changed = {name: kind for name, kind in {**TYPES, **types}.items() if kind is not None}
        with pytest.raises(UsageError, match=message) as caught:
            plan_of_recipe(source, Recipe("mine.json", QUANT_TYPES["Q4_0"], changed), importance)
        caught.value.message.encode()  # it can be printed

    def test_a_recipe_for_a_shallower_model_is_refused(self, folder: Path, importance: Names) -> None:
        with pytest.raises(UsageError, match=r"has no type for output\.weight"):
            plan_of_recipe(open_model(str(folder / "two")), RECIPE, importance)

    @pytest.mark.parametrize(
        "options",
        [{"type": "q4_0"}, {"tensor_type": ["ffn=q8_0"]}, {"prefer": "size"}, {"without": ["sweeps"]}],
        ids=str,
    )
    def test_settings_that_a_recipe_decides_are_refused(
        self, options: dict[str, Any], folder: Path, tmp_path: Path
    ) -> None:
        path = written(tmp_path / "mine.json", document())
        with pytest.raises(UsageError, match="cannot be combined with the recipe file"):
            convert(str(folder / "tiny"), recipe=path, imatrix=folder / "it.gguf", output=tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


class TestLeanPlans:
    """Plans of the recipe `lean`."""

    @pytest.mark.parametrize("quant_type", [t for t in QUANT_TYPES.values() if t.base.is_quantized], ids=str)
    def test_every_quant_type_has_a_plan(
        self, quant_type: Any, source: ModelSource, importance: Names, folder: Path
    ) -> None:
        if quant_type.base is TensorType.Q1_0:  # its blocks do not divide rows of 32, and have no replacement
            with pytest.raises(UsageError, match="Q1_0 has blocks of 128"):
                make_lean_plan(source, quant_type, importance)
            return
        sizes = [
            make_lean_plan(source, quant_type, importance, prefer=find_preference(prefer)).data_bytes
            for prefer in ("size", None, "quality")
        ]
        assert sizes[0] <= sizes[1] <= sizes[2]

    def test_a_mix_is_named_by_the_quant_type_of_its_bits(self, source: ModelSource, importance: Names) -> None:
        shapes = plan_of_recipe(source, RECIPE, importance).shapes
        for name, wanted in {
            "Q2_K": "Q2_K",
            "Q4_K": "Q4_K_M",
            "Q5_K": "Q5_K_M",
            "Q6_K": "Q6_K",
            "F16": "Q8_0",
        }.items():
            assert nearest_type(dict.fromkeys(TYPES, TensorType[name]), shapes).name == wanted
        mixed = dict.fromkeys(TYPES, TensorType.Q2_K) | {"token_embd.weight": TensorType.Q8_0}
        assert nearest_type(mixed, shapes).name == "Q5_K_M"  # the embedding is the half of it

    def test_without_padding_the_vocabulary_stays(self, source: ModelSource, importance: Names) -> None:
        plan = make_lean_plan(source, QUANT_TYPES["Q4_0"], importance, skip_steps=("padding",))
        assert plan.shapes["token_embd.weight"] == (len(TOKENS), 32)

    def test_an_importance_matrix_of_another_model_is_refused(self, folder: Path, importance: Names) -> None:
        with pytest.raises(UsageError, match=r"has no entry for blk\.1\."):
            make_lean_plan(open_model(str(folder / "two")), QUANT_TYPES["Q4_0"], importance)
