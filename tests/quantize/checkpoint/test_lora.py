"""LoRA adapters of PEFT: the converted file computes the same as base and adapter; what differs is refused.

The adapters are generated in PEFT's format, and applied to the base's weights here in plain NumPy.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.cli.main import app
from dgpt2_quant.core.errors import CheckpointError, ModelNotFoundError, UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.calibration.numpy_gpt2 import from_gguf
from dgpt2_quant.quantize.checkpoint.lora import parse_lora
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.describe import DescribedAdapter, describe
from dgpt2_quant.quantize.store.converted_models import model_file
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from ...checkpoints import TOKENS, make_checkpoint, write_json, write_weights
from ..fake_hub import Repository, serve
from ..forward import forward
from ..pytorch_writer import Tensor, save_zip
from .test_layouts import TEXT, relative

WIDTH, ROWS, RANK = 64, len(TOKENS), 4
SHAPES = {  # (inputs, outputs)
    "attn.c_attn": (WIDTH, 3 * WIDTH),
    "attn.c_proj": (WIDTH, WIDTH),
    "mlp.c_fc": (WIDTH, 4 * WIDTH),
    "mlp.c_proj": (4 * WIDTH, WIDTH),
}
PREFIX = "base_model.model.transformer."
State = dict[str, npt.NDArray[Any]]


def normal(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def lora_of(layer: str, rank: int = RANK, seed: int = 1) -> State:
    inputs, outputs = SHAPES[layer.partition(".")[2].partition(".")[2]]
    name = f"{PREFIX}{layer}"
    return {
        f"{name}.lora_A.weight": normal(seed, rank, inputs),
        f"{name}.lora_B.weight": normal(seed + 1, outputs, rank),
    }


def embedding_lora(name: str, rows: int, seed: int = 5) -> State:
    return {
        f"{PREFIX}{name}.lora_embedding_A": normal(seed, RANK, rows),
        f"{PREFIX}{name}.lora_embedding_B": normal(seed + 1, WIDTH, RANK),
    }


def save_adapter(folder: Path, state: State, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    usual = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8, "bias": "none"}
    usual |= {"fan_in_fan_out": True, "lora_dropout": 0.1, "target_modules": ["c_attn"], "inference_mode": True}
    usual |= {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False, "peft_version": "0.18"}
    write_json(folder / "adapter_config.json", usual | config)
    save_file(state, folder / "adapter_model.safetensors")
    return folder


def updated(base: Path, merged: Path, changes: Mapping[str, Any]) -> Path:
    """A copy of the base with tensors changed: what the adapter means, written as a checkpoint.

    A function changes the tensor of that name, in float64; an array replaces it.
    """
    make_checkpoint(merged)
    tensors = {name: data.astype(np.float64) for name, data in load_file(base / "model.safetensors").items()}
    for name, change in changes.items():
        key = name if name == "lm_head.weight" else f"transformer.{name}"
        before = tensors.get(key, tensors["transformer.wte.weight"])
        tensors[key] = change(before) if callable(change) else change
    write_weights(merged, tensors, "F64")
    return merged


def product(state: State, layer: str) -> npt.NDArray[np.float64]:
    """B A, as (inputs, outputs), as GPT-2's Conv1D stores weights."""
    a, b = (state[f"{PREFIX}{layer}.lora_{part}.weight"].astype(np.float64) for part in "AB")
    return np.transpose(b @ a)


def convert_with(base: Path, *lora: str | Path, output: Path, **options: Any) -> Path:
    [file] = convert(str(base), type=["F32"], lora=lora, output=output, threads=1, **options)
    return Path(file.path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "base")


def check(base: Path, adapter: Path, changes: Mapping[str, Any]) -> Path:
    """Compares the converted logits with those of a checkpoint in which `changes` are made."""
    path = convert_with(base, adapter, output=base.parent / "out")
    merged = updated(base, base.parent / "merged", changes)
    assert relative(from_gguf(path, np.float64).logits(TEXT), forward(merged, TEXT).logits) < 2e-6
    plain = forward(base, TEXT).logits
    assert relative(forward(merged, TEXT).logits, plain) > 1e-3  # the adapter does something
    return path


EVERY_LAYER = [f"h.{number}.{part}" for number in range(2) for part in SHAPES]


def test_every_target_and_the_usual_scale(base: Path, tmp_path: Path) -> None:
    state = {}
    for seed, layer in enumerate(EVERY_LAYER):
        state |= lora_of(layer, seed=10 * seed)
    adapter = save_adapter(tmp_path / "poet", state)
    changes = {f"{layer}.weight": lambda w, layer=layer: w + 2 * product(state, layer) for layer in EVERY_LAYER}
    path = check(base, adapter, changes)
    metadata = read_header(path).metadata
    assert path.name == "base-poet.F32.gguf"
    [noted] = metadata["dgpt2_quant.adapters"]
    assert noted.startswith("poet=1 sha256:")
    plain = read_header(convert_with(base, output=tmp_path / "plain")).metadata
    assert metadata["dgpt2_quant.source.sha256"] != plain["dgpt2_quant.source.sha256"]
    assert "dgpt2_quant.adapters" not in plain


@pytest.mark.parametrize(
    ("config", "rank", "scale"),
    [
        ({"use_rslora": True}, RANK, 8 / 2),
        ({"rank_pattern": {"h.0.attn.c_attn": 2}}, 2, 8 / 2),
        ({"rank_pattern": {"c_attn": 2}, "alpha_pattern": {"attn.c_attn": 3}}, 2, 3 / 2),
        ({"alpha_pattern": {"c_fc": 5, "c_attn": 6, "h.0.attn.c_attn": 7}}, RANK, 6 / 4),
        ({"alpha_pattern": {r"^transformer\.h\.0\.attn\.c_attn": 12}}, RANK, 12 / 4),
        ({"alpha_pattern": {r"h\.\d+\.attn\.c_attn": 12}}, RANK, 12 / 4),
        ({"alpha_pattern": {"attn": 12, "h.1.attn.c_attn": 12}}, RANK, 8 / 4),
        ({"lora_alpha": 0.5, "future_key": None, "other": False, "more": {}}, RANK, 0.5 / 4),
    ],
)
def test_scales(config: dict[str, Any], rank: int, scale: float, base: Path, tmp_path: Path) -> None:
    layer = "h.0.attn.c_attn"
    state = lora_of(layer, rank)
    check(
        base,
        save_adapter(tmp_path / "poet", state, **config),
        {f"{layer}.weight": lambda w: w + scale * product(state, layer)},
    )


def test_dora(base: Path, tmp_path: Path) -> None:
    layer = "h.1.attn.c_attn"
    state = lora_of(layer)
    lengths = 1 + normal(9, 3 * WIDTH)
    adapter = save_adapter(
        tmp_path / "poet", state | {f"{PREFIX}{layer}.lora_magnitude_vector": lengths}, use_dora=True
    )

    def changed(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        direction = weights + 2 * product(state, layer)
        return direction / np.sqrt((direction**2).sum(axis=0)) * lengths

    check(base, adapter, {f"{layer}.weight": changed})


@pytest.mark.parametrize("name", ["wte", "wpe"])
def test_embedding(name: str, base: Path, tmp_path: Path) -> None:
    """PEFT changes the embedding only; an output matrix tied to it is computed from the old one."""
    rows = {"wte": ROWS, "wpe": 64}[name]
    state = embedding_lora(name, rows)
    a, b = (state[f"{PREFIX}{name}.lora_embedding_{part}"].astype(np.float64) for part in "AB")
    head = load_file(base / "model.safetensors")["transformer.wte.weight"].astype(np.float64)
    changes: dict[str, Any] = {f"{name}.weight": lambda w: w + 2 * (b @ a).T}
    if name == "wte":
        changes["lm_head.weight"] = head
    path = check(base, save_adapter(tmp_path / "poet", state), changes)
    assert ("output.weight" in read_header(path).tensors) == (name == "wte")


def test_a_tied_output_matrix_is_untied(base: Path, tmp_path: Path) -> None:
    a, b = normal(3, RANK, WIDTH), normal(4, ROWS, RANK)
    name = "base_model.model.lm_head"
    adapter = save_adapter(tmp_path / "poet", {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b})
    delta = b.astype(np.float64) @ a.astype(np.float64)
    check(base, adapter, {"lm_head.weight": lambda w: w + 2 * delta})


@pytest.mark.parametrize("names", [["wte"], ["lm_head"], ["wte", "lm_head"], ["h.0.mlp.c_fc"], ["ln_f"]])
@pytest.mark.parametrize("file", ["safetensors", "bin"])
def test_modules_to_save(names: list[str], file: str, base: Path, tmp_path: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    before = tensors["transformer.wte.weight"]
    changes: dict[str, Any] = {"lm_head.weight": before.astype(np.float64)} if names == ["wte"] else {}
    state = lora_of("h.0.attn.c_attn")
    changes["h.0.attn.c_attn.weight"] = lambda w: w + 2 * product(state, "h.0.attn.c_attn")
    for seed, name in enumerate(names):
        for kind in ("weight", "bias"):
            key = f"{name}.{kind}"
            old = before if name == "lm_head" else tensors.get(f"transformer.{key}")
            if old is not None and key != "lm_head.bias":
                new = old + normal(20 + seed, *old.shape)
                changes[key] = new.astype(np.float64)
                prefix = "base_model.model." if name == "lm_head" else PREFIX
                state[f"{prefix}{key}"] = new
    adapter = save_adapter(tmp_path / "poet", state, modules_to_save=names)
    if file == "bin":
        (adapter / "adapter_model.safetensors").unlink()
        save_zip(adapter / "adapter_model.bin", {name: Tensor(data) for name, data in state.items()})
    check(base, adapter, changes)


def test_an_unchanged_copy_keeps_the_output_matrix_tied(base: Path, tmp_path: Path) -> None:
    """PEFT saves embeddings with `save_embedding_layers`, trained or not."""
    before = load_file(base / "model.safetensors")["transformer.wte.weight"]
    copies = {f"{PREFIX}wte.weight": before, "base_model.model.lm_head.weight": before.copy()}
    adapter = save_adapter(tmp_path / "poet", lora_of("h.0.attn.c_attn") | copies)
    assert "output.weight" not in read_header(convert_with(base, adapter, output=tmp_path)).tensors


def test_biases(base: Path, tmp_path: Path) -> None:
    layer, norm = "h.0.attn.c_attn", "h.1.ln_1.bias"
    state = lora_of(layer)
    new, added, whole = normal(7, 3 * WIDTH), normal(8, 3 * WIDTH), normal(9, WIDTH)
    extra = {f"{PREFIX}{layer}.base_layer.bias": new, f"{PREFIX}{layer}.lora_B.bias": added, PREFIX + norm: whole}
    adapter = save_adapter(tmp_path / "poet", state | extra, bias="all", lora_bias=True)
    check(
        base,
        adapter,
        {
            f"{layer}.weight": lambda w: w + 2 * product(state, layer),
            f"{layer}.bias": new.astype(np.float64) + 2 * added.astype(np.float64),
            norm: whole.astype(np.float64),
        },
    )


def test_several_adapters_with_weights(base: Path, tmp_path: Path) -> None:
    first, second = lora_of("h.0.attn.c_attn"), lora_of("h.0.attn.c_attn", seed=30)
    one, two = save_adapter(tmp_path / "one", first), save_adapter(tmp_path / "two", second, lora_alpha=4)
    path = convert_with(base, f"{one}=0.5", f"{two}=-2", output=tmp_path / "out")
    assert path.name == "base-one-two.F32.gguf"

    def changed(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return weights + 0.5 * 2 * product(first, "h.0.attn.c_attn") - 2 * product(second, "h.0.attn.c_attn")

    merged = updated(base, tmp_path / "merged", {"h.0.attn.c_attn.weight": changed})
    assert relative(from_gguf(path, np.float64).logits(TEXT), forward(merged, TEXT).logits) < 2e-6
    assert describe(path).adapters == [DescribedAdapter("one", 0.5), DescribedAdapter("two", -2)]
    assert "adapters       one=0.5, two=-2\n" in CliRunner().invoke(app, ["inspect", str(path)]).output
    other = convert_with(base, f"{one}=0.25", two, output=tmp_path / "other")
    hashes = {read_header(file).metadata["dgpt2_quant.source.sha256"] for file in (path, other)}
    assert len(hashes) == 2


def test_an_adapter_alone_is_converted_with_its_base(base: Path, tmp_path: Path) -> None:
    state = lora_of("h.0.mlp.c_proj")
    adapter = save_adapter(tmp_path / "poet", state, base_model_name_or_path=str(base))
    alone, named = convert_with(adapter, output=tmp_path), convert_with(base, adapter, output=tmp_path)
    assert alone.name == "poet.F32.gguf"
    np.testing.assert_array_equal(from_gguf(alone).logits(TEXT), from_gguf(named).logits(TEXT))
    name, cached = model_file(str(adapter), type="F32", threads=1)
    assert name == "poet"
    np.testing.assert_array_equal(from_gguf(cached).logits(TEXT), from_gguf(named).logits(TEXT))
    save_adapter(adapter, lora_of("h.0.mlp.c_proj", seed=90), base_model_name_or_path=str(base))
    assert model_file(str(adapter), type="F32", threads=1)[1] != cached


def test_an_adapter_on_the_hub_is_merged(base: Path, tmp_path: Path) -> None:
    """The download runs in a child process: huggingface_hub reads its environment when it is imported."""
    adapter = save_adapter(tmp_path / "poet", lora_of("h.0.mlp.c_proj"))
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}
    code = "import sys; from dgpt2_quant.cli.main import main; main()"
    command = [sys.executable, "-c", code, "convert", base, "-t", "f32", "--lora", "owner/poet=0.5", "--overwrite"]
    with serve() as hub:
        hub.repositories |= {
            "owner/poet": Repository(files | {"model.safetensors": b"-", "optimizer.pt": b"-"}),
            "owner/model": Repository({"config.json": b"{}", "model.safetensors": b"-"}),
        }
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

        def program(*arguments: str) -> "subprocess.CompletedProcess[str]":
            whole = [*map(str, command), *arguments]
            return subprocess.run(whole, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

        assert "there is no folder owner/poet, and: offline" in program("--offline").stderr
        fresh = program()
        assert fresh.returncode == 0, fresh.stderr
        assert {Path(request.path).name for request in hub.downloads("owner/poet")} == set(files)
        found = (tmp_path / "base-poet.F32.gguf").read_bytes()
        convert_with(base, f"{adapter}=0.5", output=tmp_path / "expected")
        assert found == (tmp_path / "expected" / "base-poet.F32.gguf").read_bytes()
        seen = len(hub.requests)
        assert program("--offline").returncode == 0
        assert len(hub.requests) == seen
        other = program("--lora", "owner/model").stderr
        assert "owner/model on the Hub has no adapter_config.json" in other


def test_weights_of_nanogpt_take_an_adapter(base: Path, tmp_path: Path) -> None:
    """Linear orientation, and an update of a bias that the base does without."""
    tensors = load_file(base / "model.safetensors")
    linear = {n: np.ascontiguousarray(t.T) if ".h." in n and t.ndim == 2 else t for n, t in tensors.items()}
    for name in [name for name in linear if name.endswith(".bias")]:
        del linear[name]
        tensors[name] = np.zeros_like(tensors[name])
    write_weights(base, tensors)
    state, layer = lora_of("h.0.attn.c_attn"), "h.0.attn.c_attn"
    adapter = save_adapter(tmp_path / "poet", state | {f"{PREFIX}{layer}.lora_B.bias": normal(8, 192)}, lora_bias=True)
    expected = convert_with(base, adapter, output=tmp_path / "one")
    write_weights(base, linear)
    found = convert_with(base, adapter, output=tmp_path / "two")
    np.testing.assert_array_equal(from_gguf(found).logits(TEXT), from_gguf(expected).logits(TEXT))


REFUSED: dict[str, dict[str, Any]] = {
    "peft_type is 'LOHA'": {"peft_type": "LOHA"},
    "'PREFIX_TUNING', which puts learned vectors before each text": {"peft_type": "PREFIX_TUNING"},
    "peft_type is None": {"peft_type": None},
    "init_lora_weights 'pissa_niter_4'": {"init_lora_weights": "pissa_niter_4"},
    "init_lora_weights 'olora'": {"init_lora_weights": "olora"},
    "layer_replication repeats layers": {"layer_replication": [[0, 2], [1, 2]]},
    "trainable_token_indices trains single tokens": {"trainable_token_indices": [1, 2]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1]},
    "target_parameters": {"target_parameters": ["x"]},
    "use_qalora": {"use_qalora": True},
    "ensure_weight_tying": {"ensure_weight_tying": True},
    "use_something_new is not known here": {"use_something_new": True},
    "states rank 8": {"r": 8},
    "states rank 2": {"rank_pattern": {"c_attn": 2}},
    "alpha None": {"lora_alpha": None},
    "alpha inf": {"lora_alpha": float("inf")},
    "'((a+)+)+$', which is not a layer's name": {"rank_pattern": {"((a+)+)+$": 4}},
    "'(', which is not a layer's name": {"alpha_pattern": {"(": 4}},
    "which is not a layer's name": {"rank_pattern": {".*" * 30 + "x": 4}},
    "is not a table of layers": {"rank_pattern": [1]},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_merged_exactly_is_refused(words: str, base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "poet", lora_of("h.0.attn.c_attn"), **REFUSED[words])
    with pytest.raises(CheckpointError) as caught:
        convert_with(base, adapter, output=tmp_path / "out")
    assert words in caught.value.message
    assert str(adapter) in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


C_ATTN = lora_of("h.0.attn.c_attn")
A, B = (f"{PREFIX}h.0.attn.c_attn.lora_{part}.weight" for part in "AB")
BROKEN: dict[str, State] = {
    "lacks a matrix": {A: C_ATTN[A]},
    "matrices of the shapes": {A: C_ATTN[A][:2], B: C_ATTN[B]},
    "'h.9.attn.c_attn.weight', which the model lacks": lora_of("h.9.attn.c_attn"),
    "'adapter.weight', which the model lacks": {"base_model.model.adapter.weight": normal(1, 2, WIDTH)},
    "has the shape [96, 64], the weights [192, 64]": {A: C_ATTN[A], B: C_ATTN[B][:96]},
    "the magnitudes of h.0.attn.c_attn": C_ATTN | {f"{PREFIX}h.0.attn.c_attn.lora_magnitude_vector": normal(1, 5)},
    "the bias of h.0.attn.c_attn": C_ATTN | {f"{PREFIX}h.0.attn.c_attn.lora_B.bias": normal(1, 5)},
    "DoRA of the embedding wte": embedding_lora("wte", ROWS) | {f"{PREFIX}wte.lora_magnitude_vector": normal(1, 64)},
    "a tensor of the shape [262, 32]": {f"{PREFIX}wte.weight": normal(1, ROWS, 32)},
    "has no tensors": {},
}


@pytest.mark.parametrize("words", BROKEN)
def test_broken_adapters_are_refused(words: str, base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "poet", BROKEN[words])
    with pytest.raises(CheckpointError) as caught:
        convert_with(base, adapter, output=tmp_path / "out", dry_run=True)
    assert words in caught.value.message
    assert str(adapter) in caught.value.message


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("wte.weight", {f"{PREFIX}wte.weight": normal(1, 300, WIDTH)}),
        ("lm_head.weight", {"base_model.model.lm_head.modules_to_save.weight": normal(1, 300, WIDTH)}),
        ("wte.weight", embedding_lora("wte", 300)),
    ],
)
def test_a_resized_embedding_is_refused_with_the_number_of_tokens(
    name: str, state: State, base: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "poet", C_ATTN | state)
    with pytest.raises(CheckpointError) as caught:
        convert_with(base, adapter, output=tmp_path / "out")
    assert f"{adapter}: it was trained with 300 tokens ({name}), and the model has 262" in caught.value.message
    assert "resize_token_embeddings(300)" in caught.value.hint


def test_another_tokenizer_is_named_in_one_warning(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = save_adapter(tmp_path / "poet", lora_of("h.0.attn.c_attn"))
    for name in ("vocab.json", "merges.txt"):
        (adapter / name).write_bytes((base / name).read_bytes())
    convert_with(base, adapter, output=tmp_path / "same")
    assert not caplog.records
    write_json(adapter / "tokenizer_config.json", {"chat_template": "{{ messages }}"})
    model = open_model(str(base), lora=[adapter])
    assert model.tokenizer() is model.tokenizer()
    [warning] = [record.getMessage() for record in caplog.records]
    assert f"{adapter} has a tokenizer or chat template" in warning


def test_adapters_that_exclude_each_other_are_refused(base: Path, tmp_path: Path) -> None:
    key = "h.0.attn.c_attn.weight"
    adds = save_adapter(tmp_path / "adds", lora_of("h.0.attn.c_attn"))
    replaces = save_adapter(tmp_path / "replaces", {PREFIX + key: normal(1, 64, 192)})
    with pytest.raises(CheckpointError, match=f"replaces replaces '{key}', which .*adds changes as well"):
        convert_with(base, adds, replaces, output=tmp_path / "out")


def test_folders_without_an_adapter_are_refused(base: Path, tmp_path: Path) -> None:
    for words, adapter in [("no adapter_config.json", base), ("there is no folder", tmp_path / "nowhere")]:
        with pytest.raises(CheckpointError, match=words):
            convert_with(base, adapter, output=tmp_path / "out")
    for name in ("a" * 5000, "a" * 5000 + "=0.5", "a\0"):
        with pytest.raises(ModelNotFoundError, match="cannot read the adapter a"):
            convert_with(base, name, output=tmp_path / "out")
    adapter = save_adapter(tmp_path / "poet", lora_of("h.0.attn.c_attn"))
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        convert_with(base, adapter / "adapter_model.safetensors", output=tmp_path / "out")
    with pytest.raises(UsageError, match="`lora` is for checkpoints"):
        convert_with(tmp_path / "some.gguf", adapter, output=tmp_path / "out")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither adapter_model\.safetensors nor"):
        convert_with(base, adapter, output=tmp_path / "out")


@pytest.mark.parametrize("config", [{"use_dora": True}, {"modules_to_save": ["wte"]}, {"bias": "all"}])
def test_a_weight_needs_an_adapter_that_only_adds(config: dict[str, Any], base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "poet", lora_of("h.0.attn.c_attn"), **config)
    with pytest.raises(UsageError, match=r"the weight of an adapter with .* must be 1"):
        convert_with(base, f"{adapter}=0.5", output=tmp_path / "out")


def test_the_weight_follows_the_last_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "rank=8").mkdir()
    for text, weight in [("a", 1.0), ("a=2", 2.0), ("a=b=-.5", -0.5), (f"{tmp_path}/rank=8", 1.0)]:
        assert parse_lora(text)[1] == weight
    for text in ("a=x", "a=nan", "a=inf", "a="):
        with pytest.raises(UsageError, match="is not a number"):
            parse_lora(text)


CASES: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["c_attn", "c_proj", "c_fc"]},
    "rslora": {"target_modules": ["c_attn"], "use_rslora": True},
    "dora": {"target_modules": ["c_attn", "c_proj"], "use_dora": True},
    "patterns": {"target_modules": ["c_attn", "c_fc"], "rank_pattern": {"c_fc": 2}, "alpha_pattern": {"h.0": 3}},
    "dora with rslora": {"target_modules": ["c_fc"], "use_dora": True, "use_rslora": True},
    "embedding": {"target_modules": ["wte", "c_attn"]},
    "positions": {"target_modules": ["wpe"]},
    "lora bias": {"target_modules": ["c_attn"], "lora_bias": True},
    "head": {"target_modules": ["lm_head"]},
    "copies": {"target_modules": ["c_attn"], "modules_to_save": ["wte", "ln_f"]},
    "biases": {"target_modules": ["c_attn"], "bias": "all"},
}


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")  # PEFT's, of targets that suit this model
@pytest.mark.parametrize("case", CASES)
def test_peft_gives_the_same_logits(case: str, base: Path, tmp_path: Path) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    import transformers

    torch.manual_seed(0)
    config = peft.LoraConfig(r=RANK, lora_alpha=8, task_type="CAUSAL_LM", init_lora_weights=False, **CASES[case])
    model = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "poet")
    path = convert_with(base, tmp_path / "poet", output=tmp_path / "out")
    model = model.eval().double()
    with torch.no_grad():
        logits = model(torch.tensor([TEXT])).logits[0].numpy()
    assert relative(from_gguf(path, np.float64).logits(TEXT), logits) < 2e-6
