"""The recipe `lean`, from a checkpoint to logits in llama.cpp: it runs there, and loses less than the stock one."""

import logging
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.errors import CheckpointError, DgptQuantError, UsageError
from dgpt2_quant.core.gguf_file import GGUFHeader, read_header
from dgpt2_quant.quantize.calibration import calibration
from dgpt2_quant.quantize.calibration import collect as calibrate
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, Statistics, read_importance
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, from_checkpoint, from_gguf, softmax
from dgpt2_quant.quantize.calibration.sample_text import sample
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.converted_file import ConvertedFile
from dgpt2_quant.quantize.lean import gptq as feedback
from dgpt2_quant.quantize.lean.model import LeanModel
from dgpt2_quant.quantize.recipes.lean_steps import STEPS
from dgpt2_quant.quantize.recipes.tensor_types import FAST_HEADS
from dgpt2_quant.runtime import Model

from ...checkpoints import TOKENS, make_checkpoint

CONTEXT, VOCABULARY = 32, len(TOKENS)
IN_32 = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"]
EMBEDDING = "token_embd.weight"
Logits = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tiny:
    """A checkpoint, and the importance matrix of what it writes itself."""

    folder: Path
    imatrix: Path

    @cache  # noqa: B019 - there are few of them
    def reference(self) -> Reference:
        return from_checkpoint(self.folder, np.float64)

    @cache  # noqa: B019
    def texts(self) -> list[list[int]]:
        """Of the same kind as those that were calibrated on; they begin with another token."""
        length = self.reference().sizes.context
        return np.reshape(sample(self.reference(), 5, 8, length), (8, length)).tolist()

    def convert(self, output: Path, type: Any = "Q4_0", recipe: str = "lean", **options: Any) -> list[ConvertedFile]:
        if "imatrix" not in options and "calibrate" not in options:
            options["imatrix"] = self.imatrix
        return convert(str(self.folder), type=type, output=output, recipe=recipe, **options)

    def loss(self, path: str) -> float:
        """The KL divergence of a file from the checkpoint in llama.cpp, in nats, over texts that were not seen."""
        vocabulary = self.reference().sizes.vocabulary
        losses = []
        with Model.load(Path(path)) as model:
            for text in self.texts():
                logits = model.logits(text).astype(np.float64)
                # a pad may be a copy of a real row, and as high
                assert (logits[:, vocabulary:].max(axis=1, initial=-np.inf) <= logits[:, :vocabulary].max(axis=1)).all()
                p, q = softmax(self.reference().logits(text)), softmax(logits[:, :vocabulary])
                losses.append((p * np.log(p / q)).sum(axis=1).mean())
        return float(np.mean(losses))


def make_tiny(folder: Path, chunks: int = 24, **options: Any) -> Tiny:
    settings = {"layers": 1, "width": 64, "inner": 64, "context": CONTEXT} | options
    checkpoint = make_checkpoint(folder / "tiny", **settings)
    imatrix(str(checkpoint), text="sampled", chunks=chunks, output=folder / "it.gguf")
    return Tiny(checkpoint, folder / "it.gguf")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def lean(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ConvertedFile]:
    """The quant types in blocks of 32, and F16, in one call."""
    files = tiny.convert(tmp_path_factory.mktemp("lean"), [*IN_32, "F16"])
    return {file.type: file for file in files}


def other_importance(tiny: Tiny, path: Path, **changed: Any) -> Path:
    replace(read_importance(tiny.imatrix), **changed).write(path)
    return path


def without_sums(matrix: ImportanceMatrix) -> dict[str, Statistics]:
    return {name: replace(entry, sums=None) for name, entry in matrix.entries.items()}


def same_types(file: ConvertedFile) -> list[str]:
    """Overrides that give the stock recipe a file's types."""
    names = [name for name, shape in file.plan.shapes.items() if len(shape) == 2 and name != "position_embd.weight"]
    return [f"^{name.replace('.', '[.]')}$={file.plan.types[name].name}" for name in names]


def types(path: str) -> dict[str, str]:
    return {name: tensor.type.name for name, tensor in read_header(Path(path)).tensors.items()}


def assert_it_loses_less_than_stock(tiny: Tiny, file: ConvertedFile, folder: Path, by: float) -> None:
    """At the same types, with the same importance matrix."""
    (stock,) = tiny.convert(folder / "stock", file.type, "stock", tensor_type=same_types(file))
    differing = {name for name, kind in types(stock.path).items() if types(file.path)[name] != kind}
    assert differing == {"position_embd.weight"}
    ours, theirs = tiny.loss(file.path), tiny.loss(stock.path)
    assert 0 < ours < by * theirs


@pytest.mark.parametrize("quant_type", IN_32)
def test_lean_loses_less_than_stock(
    quant_type: str, tiny: Tiny, lean: dict[str, ConvertedFile], tmp_path: Path
) -> None:
    # in 8 bits most of the loss is of the activations, which both round
    assert_it_loses_less_than_stock(tiny, lean[quant_type], tmp_path, 1.1 if quant_type == "Q8_0" else 0.9)


MIXES = {
    "Q4_K_M": ["attn_qkv=q4_k", "attn_output=q5_k", "ffn_up=q6_k", "ffn_down=q3_k", "token_embd=iq4_xs"],
    "Q2_K": ["attn_qkv=q2_k", "attn_output=iq4_xs", "ffn_up=q5_k", "ffn_down=q4_k", "token_embd=q6_k"],
    "Q3_K_S": ["attn_qkv=iq2_xs", "attn_output=iq3_s", "ffn_up=bf16", "ffn_down=f16", "token_embd=q8_0"],
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("wide"), 64, width=256, inner=256)


@pytest.mark.parametrize("quant_type", MIXES)
def test_blocks_of_256_lose_less_than_stock(
    quant_type: str, wide: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "_GROUPS", 4)  # for the time that it takes
    (file,) = wide.convert(tmp_path, quant_type, tensor_type=MIXES[quant_type])
    found = types(file.path)
    for override in MIXES[quant_type]:
        name, _, kind = override.partition("=")
        assert {kind.upper()} == {found[tensor] for tensor in found if name in tensor and tensor.endswith(".weight")}
    assert_it_loses_less_than_stock(
        wide, file, tmp_path, 1.1 if quant_type == "Q3_K_S" else 0.8
    )  # whose codes C chooses


def test_more_bits_lose_less_and_metadata_names_the_recipe(
    lean: dict[str, ConvertedFile], tiny: Tiny, tmp_path: Path
) -> None:
    losses = [tiny.loss(lean[quant_type].path) for quant_type in ("F16", "Q8_0", "Q5_0", "Q4_0")]
    assert losses == sorted(losses)
    assert losses[-1] < 0.05
    for quant_type, file in lean.items():
        header = read_header(Path(file.path))
        assert (file.recipe, header.quant_type) == ("stock" if quant_type == "F16" else "lean", quant_type)
        assert header.metadata["dgpt2_quant.recipe"] == file.recipe
        used = None if quant_type == "F16" else read_importance(tiny.imatrix).sha256
        assert header.metadata.get("dgpt2_quant.imatrix.sha256") == used
        assert header.tensors[EMBEDDING].shape == (VOCABULARY, 64)  # no pads: the embedding has no fast kernel
        assert "dgpt2_quant.padding" not in header.metadata
        assert file.parameters == header.parameters
    (stock,) = tiny.convert(tmp_path, "F16", "stock")
    assert stock.sha256 == lean["F16"].sha256  # `lean` has nothing to offer there


def test_numpy_computes_the_same_of_the_file(lean: dict[str, ConvertedFile]) -> None:
    """So the blocks are at their places, pads, biases and all."""
    text = list(range(100, 100 + CONTEXT))
    expected = from_gguf(lean["Q8_0"].path).logits(text)
    with Model.load(Path(lean["Q8_0"].path)) as model:
        np.testing.assert_allclose(model.logits(text)[:, :VOCABULARY], expected[:, :VOCABULARY], atol=0.15)


@pytest.mark.parametrize("options", [{}, {"threads": 1}, {"threads": 3}], ids=str)
def test_bytes_do_not_depend_on_threads_or_other_files(
    options: dict[str, int], tiny: Tiny, lean: dict[str, ConvertedFile], tmp_path: Path
) -> None:
    """Repeated, with any number of threads, and with or without other quant types."""
    (file,) = tiny.convert(tmp_path, "Q4_0", **options)
    assert Path(file.path).read_bytes() == Path(lean["Q4_0"].path).read_bytes()
    assert file.sha256 == lean["Q4_0"].sha256


@pytest.mark.parametrize("model", [{}, {"head": "untied"}], ids=str)
def test_a_dry_run_knows_the_size_to_the_byte(
    model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (calibrate, calibration):
        monkeypatch.setattr(module, "SAMPLED_TOKENS", 10 * CONTEXT)
    tiny = make_tiny(tmp_path, width=32, inner=32, **model)
    for options in ({}, {"without": ["padding"]}, {"prefer": "size", "calibrate": "sampled", "imatrix": None}):
        quant_types = ["Q4_0", "F16"]
        planned = tiny.convert(tmp_path / "out", quant_types, dry_run=True, **options)
        assert not (tmp_path / "out").exists()
        files = tiny.convert(tmp_path / "out", quant_types, **options)
        for plan, file in zip(planned, files, strict=True):
            assert plan.bytes == file.bytes == Path(file.path).stat().st_size
            assert types(file.path) == {name: kind.name for name, kind in plan.plan.types.items()}
            Path(file.path).unlink()
        (tmp_path / "out").rmdir()


def head_of(path: str) -> GGUFHeader:
    return read_header(Path(path))


@pytest.mark.parametrize("step", STEPS)
def test_each_step_can_be_skipped(step: str, tiny: Tiny, lean: dict[str, ConvertedFile], tmp_path: Path) -> None:
    prefer, every_step = None, lean["Q4_0"]
    if step == "padding":  # which only some types have
        prefer = "speed"
        (every_step,) = tiny.convert(tmp_path / "every", "Q4_0", prefer=prefer)
    (file,) = tiny.convert(tmp_path, "Q4_0", without=[step], prefer=prefer)
    header, every = head_of(file.path), head_of(every_step.path)
    assert header.metadata["dgpt2_quant.lean.without"] == [step]
    assert "dgpt2_quant.lean.without" not in every.metadata
    ours, theirs = from_gguf(file.path).weights, from_gguf(every_step.path).weights
    differing = {name for name in ours if not np.array_equal(ours[name], theirs[name])}
    trained = tiny.reference().weights
    match step:
        case "padding":
            assert differing == {EMBEDDING}
            assert np.array_equal(ours[EMBEDDING], theirs[EMBEDDING][:VOCABULARY])
        case "centring":
            gain, bias = (trained[f"blk.0.attn_norm.{part}"] for part in ("weight", "bias"))
            factor = ours["blk.0.attn_norm.weight"] / gain  # only scaled
            np.testing.assert_allclose(ours["blk.0.attn_norm.bias"], factor * bias, rtol=1e-4)
            assert "blk.0.attn_norm.bias" in differing
        case "scaling":
            np.testing.assert_array_equal(ours["blk.0.ffn_norm.weight"], trained["blk.0.ffn_norm.weight"])
            assert "blk.0.ffn_norm.weight" in differing
        case _:
            assert differing >= {"blk.0.ffn_down.weight"}
            assert not differing & {"blk.0.ffn_norm.weight", "blk.0.attn_norm.bias", "output_norm.weight"}
    assert tiny.loss(file.path) < 0.1


def test_errors_are_weighed_by_what_they_do_to_predictions(tiny: Tiny) -> None:
    source, importance = open_model(str(tiny.folder)), read_importance(tiny.imatrix)
    model = LeanModel(source, importance)
    assert model.outputs.keys() == {f"blk.0.{name}.weight" for name in ("attn_output", "attn_qkv", "ffn_down")}
    for name, side in model.outputs.items():
        assert side.upper.shape == (len(model.reference.weights[name]),) * 2
    assert LeanModel(source, importance, ["gradients"]).outputs == {}
    assert LeanModel(source, importance, ["feedback"]).outputs == {}


def test_without_any_step_the_blocks_are_the_c_quantizers(tiny: Tiny, tmp_path: Path) -> None:
    (bare,) = tiny.convert(tmp_path / "bare", "Q8_0", without=STEPS)
    (stock,) = tiny.convert(tmp_path / "stock", "Q8_0", "stock", imatrix=None)  # Q8_0 asks for no importance
    ours, theirs = from_gguf(bare.path).weights, from_gguf(stock.path).weights
    different = {name for name in ours if not np.array_equal(ours[name], theirs[name])}
    assert different == {"position_embd.weight"}
    assert head_of(bare.path).metadata["dgpt2_quant.lean.without"] == list(STEPS)


class TestOtherImportance:
    """Importance matrices that lack data, or that belong to another model."""

    def test_without_the_text(self, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = other_importance(tiny, tmp_path / "bare.gguf", tokens=())
        with caplog.at_level(logging.WARNING):
            (file,) = tiny.convert(tmp_path, "Q4_0", imatrix=path)
        (message,) = [record.getMessage() for record in caplog.records if "importance" in record.getMessage()]
        assert "lacks the text that it was collected on; skipped: feedback, gradients" in message
        assert "centring" not in message
        assert tiny.loss(file.path) < 0.05

    def test_of_llama_imatrix(self, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """It has neither the text nor the sums, and nothing for a tied embedding."""
        entries = without_sums(read_importance(tiny.imatrix))
        del entries[EMBEDDING]
        path = other_importance(tiny, tmp_path / "theirs.gguf", tokens=(), entries=entries)
        with caplog.at_level(logging.WARNING):
            (file,) = tiny.convert(tmp_path, "Q4_0", imatrix=path)
        assert "lacks the sums of the inputs and the text that it was collected on; skipped: centring" in caplog.text
        assert tiny.loss(file.path) < 0.05

    def test_with_the_text_but_no_sums(self, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = other_importance(tiny, tmp_path / "it.gguf", entries=without_sums(read_importance(tiny.imatrix)))
        with caplog.at_level(logging.WARNING):
            (file,) = tiny.convert(tmp_path, "Q4_0", imatrix=path)
        assert "lacks the sums of the inputs; skipped: centring." in caplog.text
        assert tiny.loss(file.path) < 0.05

    def test_no_warning_of_skipped_steps(self, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = other_importance(tiny, tmp_path / "it.gguf", entries=without_sums(read_importance(tiny.imatrix)))
        with caplog.at_level(logging.WARNING):
            tiny.convert(tmp_path, "Q4_0", imatrix=path, without=["centring"])
        assert "importance" not in caplog.text

    @pytest.mark.parametrize("recipe", ["lean", "stock"])
    def test_tokens_of_another_vocabulary(self, recipe: str, tiny: Tiny, tmp_path: Path) -> None:
        tokens = [*read_importance(tiny.imatrix).tokens[:-1], VOCABULARY]
        path = other_importance(tiny, tmp_path / "it.gguf", tokens=tokens)
        if recipe == "stock":  # which looks at no tokens
            assert tiny.convert(tmp_path, "Q4_0", recipe, imatrix=path)
            return
        with pytest.raises(UsageError, match=f"contains the token {VOCABULARY}, but the model has {VOCABULARY} tokens"):
            tiny.convert(tmp_path, "Q4_0", imatrix=path)

    def test_chunks_beyond_the_context(self, tiny: Tiny, tmp_path: Path) -> None:
        path = other_importance(tiny, tmp_path / "it.gguf", chunk_size=2 * CONTEXT, chunk_count=12)
        with pytest.raises(UsageError, match="chunks of 64 tokens, but the model has 32 positions"):
            tiny.convert(tmp_path, "Q4_0", imatrix=path)

    def test_of_another_width(self, tiny: Tiny, wide: Tiny, tmp_path: Path) -> None:
        for dry_run in (True, False):
            with pytest.raises(UsageError, match=r"has 256 columns for [\w.]+\.weight, the model 64"):
                tiny.convert(tmp_path, "Q4_0", imatrix=wide.imatrix, dry_run=dry_run)

    def test_with_a_matrix_missing(self, tiny: Tiny, tmp_path: Path) -> None:
        entries = dict(read_importance(tiny.imatrix).entries)
        del entries["blk.0.ffn_up.weight"]
        path = other_importance(tiny, tmp_path / "it.gguf", entries=entries)
        with pytest.raises(UsageError, match=r"no entry for blk\.0\.ffn_up\.weight, which needs one at Q4_0"):
            tiny.convert(tmp_path, "Q4_0", imatrix=path)


@pytest.mark.parametrize(
    ("model", "quant_type"),
    [
        ({"head": "untied"}, "Q4_0"),
        ({"layers": 3, "width": 32, "inner": 32}, "Q4_1"),
        ({"width": 96, "inner": 160}, "Q4_K_M"),  # to Q5_0
        ({"width": 40, "inner": 160}, "IQ4_XS"),  # to F16, and IQ4_NL
        ({"vocabulary": 264}, "Q5_0"),
        ({"vocabulary": 301}, "Q5_1"),
        ({"context": 1}, "Q4_0"),
        ({"changed": {"h.0.ln_2.weight": np.zeros(64)}}, "Q4_0"),  # inputs that are always the same
        ({"changed": {"h.0.mlp.c_fc.weight": np.zeros((64, 64)), "h.0.mlp.c_fc.bias": np.zeros(64)}}, "Q4_0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_models_of_any_shape(model: dict[str, Any], quant_type: str, tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path, **model)
    (file,) = tiny.convert(tmp_path, quant_type)
    vocabulary = tiny.reference().sizes.vocabulary
    heads = [EMBEDDING, "output.weight"] if model.get("head") == "untied" else [EMBEDDING]
    tensors = head_of(file.path).tensors
    assert ("output.weight" in tensors) is (len(heads) == 2)
    rows = -(-vocabulary // 8) * 8 if tensors[heads[-1]].type in FAST_HEADS else vocabulary
    assert {tensors[name].shape[0] for name in heads} == {rows}
    assert 0 <= tiny.loss(file.path) < 0.1


def test_a_gguf_file_gives_the_same_weights(tiny: Tiny, lean: dict[str, ConvertedFile], tmp_path: Path) -> None:
    (base,) = tiny.convert(tmp_path, "F32", "stock", imatrix=None)
    (file,) = convert(base.path, type="Q4_0", recipe="lean", imatrix=tiny.imatrix, output=tmp_path)
    ours, theirs = head_of(file.path), head_of(lean["Q4_0"].path)
    assert ours.metadata == theirs.metadata
    weights, same = from_gguf(file.path).weights, from_gguf(lean["Q4_0"].path).weights
    assert all(np.array_equal(weights[name], same[name]) for name in same)


def test_a_lean_file_is_a_source_too(tiny: Tiny, lean: dict[str, ConvertedFile], tmp_path: Path) -> None:
    """Its pad tokens are tokens then; nothing of `lean` is said of what is made from it."""
    (again,) = convert(lean["Q8_0"].path, type="Q8_0", output=tmp_path, allow_requantize=True)
    metadata = head_of(again.path).metadata
    assert not [key for key in metadata if key.startswith(("dgpt2_quant.lean", "dgpt2_quant.padding"))]
    assert tiny.loss(again.path) < 0.01


def test_overrides_decide_types_but_not_the_split(tiny: Tiny, tmp_path: Path) -> None:
    overrides = ["token_embd=q8_0", "ffn=f16", "attn_qkv=bf16", "attn_output=f32"]
    (file,) = tiny.convert(tmp_path, "Q4_0", tensor_type=overrides)
    found = types(file.path)
    names = ("token_embd", "blk.0.ffn_up", "blk.0.ffn_down", "blk.0.attn_qkv", "blk.0.attn_output")
    assert [found[f"{name}.weight"] for name in names] == ["Q8_0", "F16", "F16", "BF16", "F32"]
    assert tiny.loss(file.path) < 2e-3
    with pytest.raises(UsageError, match="matches no matrix"):
        tiny.convert(tmp_path, "Q4_1", tensor_type=["ffn_gate=f16"])


def test_when_one_file_fails_none_appears(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(0, 0.1, (64, 64))
    weights[3, 5] = 8e5  # at Q8_0 the scale is 6e3, at Q4_0 beyond F16
    tiny = make_tiny(tmp_path, changed={"h.0.mlp.c_proj.weight": weights})
    with pytest.raises(CheckpointError, match=r"ffn_down.*a scale overflows"):
        tiny.convert(tmp_path / "out", ["F32", "Q8_0", "Q4_0"])
    assert not list(tmp_path.glob("out/*"))
    assert tiny.convert(tmp_path / "out", "Q8_0")


def test_an_existing_file_is_refused_before_the_work(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "tiny.lean.Q4_0.gguf").write_text("mine")
    with pytest.raises(DgptQuantError, match="already exists"):
        tiny.convert(tmp_path, ["Q8_0", "Q4_0"], imatrix=None, calibrate="sampled")
    assert (tmp_path / "tiny.lean.Q4_0.gguf").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"without": ["feedbak"]}, "`without` must be padding, centring, .*, not 'feedbak'"),
        ({"prefer": "beauty"}, "`prefer` must be quality, speed or size, not 'beauty'"),
        ({"recipe": "stock", "without": ["sweeps"]}, "are for the recipe lean"),
        ({"recipe": "stock", "prefer": "size"}, "are for the recipe lean"),
        ({"recipe": "fat"}, "`recipe` must be stock, lean or a file .*, not 'fat'"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        tiny.convert(tmp_path, "Q4_0", **options)


def test_progress_is_of_the_whole_conversion(tiny: Tiny, tmp_path: Path) -> None:
    shown: list[tuple[int, int, str]] = []
    (tmp_path / "text.txt").write_text("0123456789" * 40)
    options: dict[str, Any] = {"calibrate": tmp_path / "text.txt", "progress": lambda *seen: shown.append(seen)}
    tiny.convert(tmp_path, ["Q4_0", "F16", "Q5_0"], **options)
    steps = [what for _, _, what in shown]
    assert [steps.count(what) for what in ("blk.0.attn_qkv", "gradients", "importance of 32 tokens")] == [2, 4, 1]
    places = [done for done, _, _ in shown]
    assert places == sorted(places)
    assert {total for _, total, _ in shown} == {places[-1]}
