"""Collecting importance: compared with an independent forward pass; resuming; refused inputs.

The texts are digits and spaces, for which the tiny tokenizer has no merges: each character is a token.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.errors import DgptQuantError, GGUFError, ModelNotFoundError, OutputError, UsageError
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.quantize.calibration.collect import cut, imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, merged, read_importance
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.convert import convert
from safetensors.numpy import load_file

from ...checkpoints import TOKENS, make_checkpoint, write_json
from ...runtime.gguf_edit import rewrite
from ..oracle import assert_same_tensors, contents, llama_quantize

Array = npt.NDArray[np.float64]
SIZE, CHUNKS = 16, 5
MATRICES = [f"blk.{n}.{name}.weight" for n in (0, 1) for name in ("attn_output", "attn_qkv", "ffn_down", "ffn_up")]
TIED, UNTIED = "token_embd.weight", "output.weight"


def digits(seed: int, length: int = SIZE * CHUNKS + SIZE // 2) -> str:
    return "".join(np.random.default_rng(seed).choice(list("0123456789 "), length))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "model", context=SIZE)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(digits(0))
    return tmp_path / "text.txt"


def inputs(folder: Path, tokens: list[int], heads: int = 4) -> dict[str, Array]:
    """The input of each matrix by llama.cpp's name, in float64, computed from the checkpoint's tensors."""
    stored = {name: data.astype(np.float64) for name, data in load_file(folder / "model.safetensors").items()}
    weights = {name.removeprefix("transformer."): data for name, data in stored.items()}
    seen: dict[str, Array] = {}

    def norm(x: Array, name: str) -> Array:
        normal = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Array, name: str, ours: str) -> Array:
        seen[f"{ours}.weight"] = x
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["wte.weight"][tokens] + weights["wpe.weight"][: len(tokens)]
    length, width = x.shape
    for n in (0, 1):
        fused = linear(norm(x, f"h.{n}.ln_1"), f"h.{n}.attn.c_attn", f"blk.{n}.attn_qkv")
        mixed = np.zeros_like(x)
        for head in range(heads):
            part = [fused[:, width * i + head * width // heads :][:, : width // heads] for i in range(3)]
            for at in range(length):
                scores = np.exp(part[1][: at + 1] @ part[0][at] / np.sqrt(width / heads))
                mixed[at, head * width // heads :][: width // heads] = scores @ part[2][: at + 1] / scores.sum()
        x = x + linear(mixed, f"h.{n}.attn.c_proj", f"blk.{n}.attn_output")
        up = linear(norm(x, f"h.{n}.ln_2"), f"h.{n}.mlp.c_fc", f"blk.{n}.ffn_up")
        active = up / (1 + np.exp(-np.sqrt(8 / np.pi) * (up + 0.044715 * up**3)))  # the tanh GELU, as a sigmoid
        x = x + linear(active, f"h.{n}.mlp.c_proj", f"blk.{n}.ffn_down")
    untied = not np.array_equal(weights.get("lm_head.weight", weights["wte.weight"]), weights["wte.weight"])
    seen[UNTIED if untied else TIED] = norm(x, "ln_f")
    return seen


@pytest.mark.parametrize("head", ["absent", "tied", "untied"])
def test_sums_equal_an_independent_forward_pass(head: Any, text: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", context=SIZE, head=head)
    result = imatrix(str(folder), text=text, output=tmp_path / "it.gguf")
    tokens = [TOKENS.index("Ġ" if letter == " " else letter) for letter in text.read_text()]
    expected = defaultdict(list)
    for chunk in range(CHUNKS):
        for name, x in inputs(folder, tokens[chunk * SIZE : (chunk + 1) * SIZE]).items():
            expected[name].append(x)
    assert result.entries.keys() == {*MATRICES, UNTIED if head == "untied" else TIED} == expected.keys()
    for name, entry in result.entries.items():
        x = np.concatenate(expected[name])
        assert entry.count == len(x) == SIZE * CHUNKS
        assert entry.mean is not None
        np.testing.assert_allclose(entry.mean_squares, np.square(x).mean(0), rtol=1e-5)
        np.testing.assert_allclose(entry.mean, x.mean(0), rtol=1e-5, atol=1e-6)
    assert (result.datasets, result.chunk_count, result.chunk_size) == (["text.txt"], CHUNKS, SIZE)
    found = read_importance(tmp_path / "it.gguf")
    assert (found.sha256, found.encode()) == (result.sha256, (tmp_path / "it.gguf").read_bytes())


@pytest.mark.parametrize(
    ("arguments", "chunks", "size"),
    [
        ({}, CHUNKS, SIZE),
        ({"ctx_size": 8}, 2 * CHUNKS + 1, 8),
        ({"ctx_size": 1}, SIZE * CHUNKS + 8, 1),
        ({"ctx_size": SIZE + 1}, CHUNKS, SIZE),  # the model has only SIZE positions
        ({"chunks": 2}, 2, SIZE),
        ({"chunks": 99}, CHUNKS, SIZE),
        ({"ctx_size": 8, "chunks": 3}, 3, 8),
    ],
    ids=str,
)
def test_text_is_split_into_chunks(
    arguments: dict[str, int], chunks: int, size: int, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    result = imatrix(str(checkpoint), text=text, output=tmp_path / "it.gguf", **arguments)  # type: ignore[arg-type]
    assert (result.chunk_count, result.chunk_size) == (chunks, size)
    assert {entry.count for entry in result.entries.values()} == {float(chunks * size)}


def test_short_text_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(digits(0, SIZE - 1))
    with pytest.raises(UsageError, match=r"short\.txt has 15 tokens, less than one chunk of 16") as caught:
        imatrix(str(checkpoint), text=tmp_path / "short.txt", output=tmp_path / "out" / "it.gguf")
    assert "`ctx_size`" in caught.value.hint
    assert not (tmp_path / "out").exists()
    assert imatrix(str(checkpoint), text=tmp_path / "short.txt", output=tmp_path / "it.gguf", ctx_size=15).chunk_count


@pytest.mark.parametrize("wrong", [{"ctx_size": 0}, {"ctx_size": -1}, {"chunks": 0}, {"chunks": -3}], ids=str)
def test_sizes_below_1_are_refused(wrong: dict[str, int], checkpoint: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        imatrix(str(checkpoint), text=text, output=tmp_path / "it.gguf", **wrong)  # type: ignore[arg-type]


def interrupt_after(chunk: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, what: str) -> None:
        if done == chunk:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("chunk", [1, 3, CHUNKS])
def test_interrupted_run_resumes(chunk: int, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    whole = imatrix(str(checkpoint), text=text, output=tmp_path / "whole.gguf")
    target, partial = tmp_path / "new" / "it.gguf", tmp_path / "new" / "it.gguf.partial"
    with pytest.raises(KeyboardInterrupt):
        imatrix(str(checkpoint), text=text, output=target, progress=interrupt_after(chunk))
    assert [path.name for path in target.parent.iterdir()] == [partial.name]
    seen: list[tuple[int, int]] = []
    imatrix(str(checkpoint), text=text, output=target, progress=lambda done, total, _: seen.append((done, total)))
    assert seen == [(done, CHUNKS) for done in range(chunk + 1, CHUNKS + 1)]
    assert target.read_bytes() == (tmp_path / "whole.gguf").read_bytes() == whole.encode()
    assert not partial.exists()


def test_run_interrupted_repeatedly(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    for chunk in (1, 2, 4):
        with pytest.raises(KeyboardInterrupt):
            imatrix(str(checkpoint), text=text, output=tmp_path / "it.gguf", progress=interrupt_after(chunk))
    imatrix(str(checkpoint), text=text, output=tmp_path / "it.gguf")
    imatrix(str(checkpoint), text=text, output=tmp_path / "whole.gguf")
    assert (tmp_path / "it.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("what", ["text", "model", "ctx_size", "chunks"])
def test_partial_file_of_another_run_is_not_used(what: str, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    other: dict[str, Any] = {"model": str(checkpoint), "text": text}
    if what == "text":
        (tmp_path / "other").mkdir()
        other["text"] = tmp_path / "other" / "text.txt"
        other["text"].write_text(digits(1))
    elif what == "model":
        other["model"] = str(make_checkpoint(tmp_path / "other" / "model", context=SIZE, seed=1))
    else:
        other[what] = {"ctx_size": 8, "chunks": 4}[what]
    with pytest.raises(KeyboardInterrupt):
        imatrix(**other, output=tmp_path / "it.gguf", progress=interrupt_after(2))
    seen: list[int] = []
    imatrix(str(checkpoint), text=text, output=tmp_path / "it.gguf", progress=lambda done, *_: seen.append(done))
    imatrix(str(checkpoint), text=text, output=tmp_path / "whole.gguf")
    assert seen == [1, 2, 3, 4, 5]
    assert (tmp_path / "it.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not (tmp_path / "it.gguf.partial").exists()


def npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def archive_without_a_key(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, chunks=np.array(2))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: path.write_bytes(b"PK\3\4" + bytes(99)),
        lambda path: path.write_bytes(b"\x93NUMPY\1\0" + bytes(99)),
        lambda path: path.write_bytes(b"\x80\4." * 9),  # the beginning of a pickle
        npy,
        archive_without_a_key,
        cut_short,
        damaged,
    ],
    ids=["empty", "garbage", "zip", "npy head", "pickle", "npy", "no key", "cut short", "damaged"],
)
def test_unreadable_partial_file_is_ignored(
    damage: Callable[[Path], Any], checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    target, partial = tmp_path / "it.gguf", tmp_path / "it.gguf.partial"
    with pytest.raises(KeyboardInterrupt):
        imatrix(str(checkpoint), text=text, output=target, progress=interrupt_after(2))
    damage(partial)
    seen: list[int] = []
    imatrix(str(checkpoint), text=text, output=target, progress=lambda done, *_: seen.append(done))
    assert seen == [1, 2, 3, 4, 5]
    assert not partial.exists()


def test_merge_while_collecting(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "second.txt").write_text(digits(2))
    one = imatrix(str(checkpoint), text=text, output=tmp_path / "one.gguf")
    other = imatrix(str(checkpoint), text=tmp_path / "second.txt", output=tmp_path / "other.gguf", chunks=2)
    both = imatrix(
        str(checkpoint), text=text, merge=[tmp_path / "other.gguf"], output=tmp_path / "both.gguf"
    )  # fmt: skip
    assert both.encode() == merged([one, other]).encode() == (tmp_path / "both.gguf").read_bytes()
    assert (both.datasets, both.chunk_count) == (["text.txt", "second.txt"], CHUNKS + 2)
    for name, entry in both.entries.items():
        assert entry.count == SIZE * (CHUNKS + 2)
        assert np.array_equal(entry.sum_squares, one.entries[name].sum_squares + other.entries[name].sum_squares)


def test_merge_without_a_model(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    one = imatrix(str(checkpoint), text=text, output=tmp_path / "one.gguf")
    twice = imatrix(
        "no/such/model", merge=[tmp_path / "one.gguf", str(tmp_path / "one.gguf")], output=tmp_path / "twice.gguf"
    )
    assert twice.encode() == merged([one, one]).encode()
    assert {entry.count for entry in twice.entries.values()} == {2.0 * SIZE * CHUNKS}


def test_no_text_and_no_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a text nor files to merge are given"):
        imatrix("no/such/model", output=tmp_path / "it.gguf")
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused_first(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    target = tmp_path / "it.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match="already exists"):
        imatrix("no/such/model", text="no such text", merge=["missing.gguf"], output=target)
    assert target.read_bytes() == b"precious"
    imatrix(str(checkpoint), text=text, output=target, overwrite=True)
    assert read_importance(target).chunk_count == CHUNKS


def test_missing_inputs_are_reported_before_the_model_is_opened(tmp_path: Path, text: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"there is no file .*gone\.gguf"):
        imatrix("no/such/model", text=text, merge=[tmp_path / "gone.gguf"], output=tmp_path / "it.gguf")
    with pytest.raises(ModelNotFoundError, match="no text 'gone"):
        imatrix("no/such/model", text="gone.txt", output=tmp_path / "it.gguf")


def test_convert_with_text_equals_convert_with_imatrix(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    levels = ["Q4_K_M", "Q5_1", "F16", "IQ4_NL"]
    imatrix(str(checkpoint), text=text, output=tmp_path / "it.gguf")
    once = convert(str(checkpoint), type=levels, output=tmp_path / "once", calibrate=text)
    twice = convert(str(checkpoint), type=levels, output=tmp_path / "twice", imatrix=tmp_path / "it.gguf")
    assert [file.sha256 for file in once] == [file.sha256 for file in twice]
    for file in once:
        assert Path(file.path).read_bytes() == (tmp_path / "twice" / Path(file.path).name).read_bytes()


def moments(matrix: ImportanceMatrix, name: str) -> Array:
    entry = matrix.entries[name]
    assert entry.mean is not None
    return np.stack([entry.mean_squares, entry.mean]).astype(np.float64)


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_gguf_file_gives_the_same_matrix(dtype: Any, text: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", context=SIZE, dtype=dtype, head="untied")
    (base,) = convert(str(folder), type="F32", output=tmp_path)
    one, other = (
        imatrix(model, text=text, output=tmp_path / f"{n}.gguf") for n, model in enumerate([str(folder), base.path])
    )
    assert one.entries.keys() == other.entries.keys()
    assert (one.datasets, one.chunk_count) == (other.datasets, other.chunk_count)
    for name in one.entries:
        np.testing.assert_allclose(moments(one, name), moments(other, name), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("head", ["absent", "untied"])
def test_llama_quantize_accepts_the_matrix(head: Any, text: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", context=SIZE, head=head)
    (base,) = convert(str(folder), type="F32", output=tmp_path)
    matrix = imatrix(str(folder), text=text, output=tmp_path / "it.gguf")
    (ours,) = convert(str(folder), type="Q4_0", output=tmp_path, imatrix=tmp_path / "it.gguf")
    means = {name: entry.mean_squares for name, entry in matrix.entries.items()}
    assert llama_quantize(Path(base.path), "Q4_0", tmp_path / "with.gguf", importance=means)
    assert llama_quantize(Path(base.path), "Q4_0", tmp_path / "without.gguf")
    assert_same_tensors(Path(ours.path), tmp_path / "with.gguf")
    weighed, plain = contents(tmp_path / "with.gguf"), contents(tmp_path / "without.gguf")
    quantized = {name for name, (kind, _, _) in weighed.items() if kind == "Q4_0"}
    assert {name for name, (_, _, data) in weighed.items() if not np.array_equal(data, plain[name][2])} == (
        matrix.entries.keys() & quantized
    )
    assert quantized == {*MATRICES, TIED} - ({TIED} if head == "absent" else set())  # Q6_K, or Q8_0 here


def test_file_is_reproducible(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    hashes = set()
    for name in ("one", "other"):
        imatrix(str(checkpoint), text=text, output=tmp_path / name / "it.gguf")
        hashes.add(hashlib.sha256((tmp_path / name / "it.gguf").read_bytes()).hexdigest())
    assert len(hashes) == 1


@pytest.mark.parametrize("value", [float("nan"), 1e25], ids=["NaN", "too large for float32's square"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_huge_sums_are_refused(value: float, text: Path, tmp_path: Path) -> None:
    damaged = {"h.0.mlp.c_fc.bias": np.full(256, value)}
    folder = make_checkpoint(tmp_path / "model", context=SIZE, changed=damaged)
    with pytest.raises(DgptQuantError, match="finite"):
        imatrix(str(folder), text=text, output=tmp_path / "it.gguf")
    assert not (tmp_path / "it.gguf").exists()


def test_folder_in_place_of_the_partial_file(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "it.gguf.partial").mkdir()
    try:
        imatrix(str(checkpoint), text=text, output=tmp_path / "it.gguf")
    except DgptQuantError:
        assert not (tmp_path / "it.gguf").exists()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"], ids=["long", "NUL"])
def test_invalid_output_is_refused(name: str, checkpoint: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(DgptQuantError):
        imatrix(str(checkpoint), text=text, output=tmp_path / name)


def test_token_types_must_be_a_list(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    (base,) = convert(str(checkpoint), type="F32", output=tmp_path)
    rewrite(Path(base.path), tmp_path / "odd.gguf", metadata={"tokenizer.ggml.token_type": 5})
    with pytest.raises(GGUFError, match="token_type"):
        imatrix(str(tmp_path / "odd.gguf"), text=text, output=tmp_path / "it.gguf")


def test_each_chunk_begins_with_the_token_that_every_text_begins_with(tmp_path: Path) -> None:
    """As in llama-imatrix."""
    folder = make_checkpoint(tmp_path / "model", context=SIZE)
    write_json(folder / "tokenizer_config.json", {"add_bos_token": True})
    text = NamedText("digits", "", digits(1))
    tokens, plain = (
        cut(open_model(str(path)), text, SIZE).tokens
        for path in (folder, make_checkpoint(tmp_path / "plain", context=SIZE))
    )
    end = len(TOKENS) - 1
    assert len(tokens) == SIZE * CHUNKS
    assert tokens[:3] == [end, *plain[:2]]
    assert [place for place, token in enumerate(tokens) if token == end] == list(range(0, SIZE * CHUNKS, SIZE))
