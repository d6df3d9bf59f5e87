"""What scripts rely on: exit statuses, what goes to which stream, and the shapes of the JSON."""

import dataclasses
import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.cli.main import VERBS
from dgpt2_quant.core.quant_types import BENCH_TYPES, QUANT_TYPES
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL
from dgpt2_quant.runtime.request import DEFAULT_MAX_TOKENS
from dgpt2_quant.runtime.sampling.settings import Sampling

from ..checkpoints import make_checkpoint
from .program import TOOL
from .program import run_bytes as dgpt2

FREE = [name for name, quant_type in QUANT_TYPES.items() if not quant_type.needs_imatrix]


def document(result: subprocess.CompletedProcess[bytes]) -> Any:
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = dgpt2(verb, "-h")
    assert result.returncode == 0
    assert f"Usage: dgpt2-quant {verb}" in result.stdout.decode()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from dgpt2_quant.cli.main import main; sys.argv = ['dgpt2-quant', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = ('numpy', 'llama_cpp', 'huggingface_hub', 'gguf', 'rich')\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stderr.decode().strip() == "[]"


def test_types_lists_the_registry() -> None:
    listed = document(dgpt2("types", "--json"))
    assert [entry["type"] for entry in listed] == list(QUANT_TYPES)
    assert set(listed[0]) == {"type", "aliases", "bits_per_weight", "needs_imatrix", "description", "ci"}
    plain = dgpt2("types").stdout.decode()
    assert all(name.lower() in plain for name in QUANT_TYPES)


def test_convert_and_inspect(tmp_path: Path) -> None:
    [entry] = document(dgpt2("convert", "storybook", "-t", "q4_k", "-o", tmp_path, "--json"))
    path = tmp_path / "storybook.Q4_K_M.gguf"
    assert entry["path"] == str(path)
    assert entry["bytes"] == path.stat().st_size
    assert set(entry) == {
        "model", "type", "recipe", "path", "bytes", "bits_per_weight", "parameters", "sha256", "seconds", "tensors",
    }  # fmt: skip
    described = document(dgpt2("inspect", path, "--json"))
    assert set(described) == {
        "path", "bytes", "architecture", "parameters", "bits_per_weight", "type", "recipe", "context", "vocabulary",
        "special_tokens", "added_tokens", "chat_templates", "adapters", "head", "metadata", "tensors",
    }  # fmt: skip
    assert described["type"] == entry["type"] == "Q4_K_M"
    assert described["parameters"] == entry["parameters"] == 6966528
    assert described["bits_per_weight"] == entry["bits_per_weight"]
    shown = dgpt2("inspect", path, "--tensors").stdout.decode()
    assert "blk.5.ffn_up.weight" in shown
    assert "tokenizer.ggml.pre" in shown


def test_convert_all(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", width=256, inner=256)
    done = dgpt2("convert", model, "--all", "-o", tmp_path / "out", "--json")
    files = document(done)
    assert b"Skipping IQ3_XS IQ3_XXS Q2_K_S" in done.stderr
    assert b"they need --imatrix or --calibrate" in done.stderr
    assert sorted(Path(file["path"]).name for file in files) == sorted(
        path.name for path in (tmp_path / "out").iterdir()
    )
    assert [file["type"] for file in files] == FREE


def test_run_prints_the_prompt_and_its_continuation(storybook_files: dict[str, Path]) -> None:
    model = storybook_files["Q8_0"]
    plain = dgpt2("run", "Once upon a time", "-m", model, "-n", "12", "--seed", "3")
    assert plain.returncode == 0
    assert plain.stderr == b""  # no terminal, nothing to remark
    at_once = dgpt2("run", "-", "-m", model, "-n", "12", "--seed", "3", "--no-stream", stdin=b"Once upon a time")
    assert at_once.stdout == plain.stdout
    answer = document(dgpt2("run", "Once upon a time", "-m", model, "-n", "12", "--seed", "3", "--json"))
    assert plain.stdout.decode() == "Once upon a time" + answer["sequences"][0]["text"] + "\n"
    assert set(answer) == {"model", "type", "prompt", "seed", "sequences", "timing"}
    assert set(answer["sequences"][0]) == {"text", "tokens", "finish_reason"}
    assert set(answer["timing"]) == {
        "load_ms", "prompt_tokens", "prompt_tps", "decode_tokens", "decode_tps", "first_token_ms", "threads",
    }  # fmt: skip
    assert (answer["type"], answer["seed"], answer["timing"]["decode_tokens"]) == ("Q8_0", 3, 12)


def test_run_converts_a_checkpoint_once_and_says_so(tmp_path: Path) -> None:
    call = ("run", "The king", "-m", "storybook", "-t", "q4_0", "-n", "5", "--seed", "1")
    first, second = (dgpt2(*call, DGPT2_QUANT_CACHE=str(tmp_path)) for _ in range(2))
    assert b"Converting storybook to Q4_0" in first.stderr
    assert second.stderr == b""
    assert first.stdout == second.stdout
    assert first.stdout.startswith(b"The king")


def test_several_sequences_have_their_own_seeds(storybook_files: dict[str, Path]) -> None:
    call = ("run", "The king", "-m", storybook_files["Q8_0"], "-n", "8", "--json")
    both = document(dgpt2(*call, "--seed", "5", "--num-return-sequences", "2"))["sequences"]
    single = [document(dgpt2(*call, "--seed", seed))["sequences"][0] for seed in ("5", "6")]
    assert both == single


def test_stop_text_is_not_printed(storybook_files: dict[str, Path]) -> None:
    call = ("run", "The king", "-m", storybook_files["Q8_0"], "--temperature", "0", "-n", "40")
    full = dgpt2(*call).stdout.decode()
    stop = full.split()[6]
    answer = document(dgpt2(*call, "--stop", stop, "--json"))["sequences"][0]
    assert answer["finish_reason"] == "stop"
    assert stop not in answer["text"]
    assert full.startswith("The king" + answer["text"])


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["convert", "storybook", "-t", "q4_z"], 2, "q4_z"),
        (["convert", "storybook"], 2, "--type"),
        (["convert", "storybook", "--all", "-t", "f16"], 2, "--all"),
        (["bench", "-m", "storybook", "--reference", "q8_0"], 2, "Q8_0"),
        (["bench", "-m", "storybook", "--text", "word " * 100], 1, "File name too long"),
        (["convert", "no/such/folder", "-t", "q8_0"], 1, "no/such/folder"),
        (["convert", "storybook", "-t", "f16", "-t", "q8_0", "-o", "x.gguf"], 2, "x.gguf"),
        (["run", "x", "-m", "missing.gguf"], 1, "missing.gguf"),
        (["run", "x"], 1, "storybook"),  # the default model, offline: the hint names what works
        (["run", "x", "--top-p", "7"], 2, "--top-p must be 0 to 1, not 7.0"),  # before the default model is looked for
        (["run", "x", "--threads", "many"], 2, "many"),
        (["run", "x", "--threads", "0"], 2, '--threads must be 1-512 or "auto", not 0'),
        (["features", "x", "--threads", "0"], 2, '--threads must be 1-512 or "auto", not 0'),
        (["run", "x", "-m", "storybook", "--no-such-flag"], 2, "--no-such-flag"),
        (["run", "word " * 600, "-m", "storybook"], 2, "512"),
        (["inspect", "missing.gguf"], 1, "missing.gguf"),
        (["bench", "-m", "storybook", "--text", "missing.txt", "-t", "q8_0"], 1, "missing.txt"),
        (["bench", "-m", "storybook", "-t", "q9"], 2, "q9"),
        (["tpyes"], 2, "types"),
    ],
)
def test_errors_are_a_sentence_and_a_status(
    arguments: list[str], status: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dgpt2(*arguments)
    error = result.stderr.decode()
    assert result.returncode == status, error
    assert says in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob("dgpt2-quant-bench*"))


def test_debug_shows_the_traceback() -> None:
    result = dgpt2("inspect", "missing.gguf", DGPT2_QUANT_DEBUG="1")
    assert result.returncode == 1
    assert b"Traceback" in result.stderr
    assert b"Error: there is no file missing.gguf" in result.stderr


@pytest.fixture
def _sigint_arrives() -> Iterator[None]:
    """A shell starts background jobs with Ctrl-C ignored, and children inherit that: a handler of ours they do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_sigint_arrives")
def test_ctrl_c_ends_a_run_cleanly(storybook_files: dict[str, Path]) -> None:
    call = [TOOL, "run", "Once", "-m", str(storybook_files["F32"]), "-n", "100000", "--seed", "1"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.read(12).startswith(b"Once")
        child.send_signal(signal.SIGINT)
        out, error = child.communicate(timeout=30)
    assert child.returncode == 130
    assert out.endswith(b"\n")  # the prompt of the shell begins on a line of its own
    assert b"Traceback" not in error


@pytest.mark.usefixtures("_sigint_arrives")
def test_ctrl_c_leaves_no_half_written_file(tmp_path: Path) -> None:
    for delay in (0.25, 0.35, 0.45):
        with subprocess.Popen(
            [TOOL, "convert", "storybook", "--all", "-o", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            time.sleep(delay)
            child.send_signal(signal.SIGINT)
            child.communicate(timeout=30)
        left = [path.name for path in tmp_path.iterdir()]
        if child.returncode == 0:  # it was faster
            assert len(left) == len(FREE)
            return
        assert child.returncode in (130, -signal.SIGINT)  # the latter while Python itself still starts
        assert not [name for name in left if name.endswith(".part")]


def test_the_defaults_of_run_are_those_of_the_library() -> None:
    defaults = {name: p.default for name, p in inspect.signature(VERBS["run"]).parameters.items()}
    shared = [field for field in dataclasses.fields(Sampling) if field.name in defaults]
    assert len(shared) > 10
    for field in shared:
        assert defaults[field.name] == field.default
    assert (defaults["max_tokens"], defaults["model"]) == (DEFAULT_MAX_TOKENS, DEFAULT_MODEL)
    assert " ".join(name.lower() for name in BENCH_TYPES) in (VERBS["bench"].__doc__ or "")


def test_a_prompt_from_echo_has_no_line_end(storybook_files: dict[str, Path]) -> None:
    call = ("run", "-", "-m", storybook_files["Q8_0"], "-n", "3", "--seed", "1")
    assert dgpt2(*call, stdin=b"The king\n").stdout == dgpt2(*call, stdin=b"The king").stdout


def test_bench_prints_the_table_and_writes_the_report(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The king went into the wood, and there he met an old woman. " * 9)
    model = make_checkpoint(tmp_path / "model", context=256)
    quick = ("--rounds", "1", "--threads", "1", "--prompt-sizes", "8", "--depths", "0", "--batches", "1")
    call = ("bench", "-m", model, "-t", "q4_0", "--text", tmp_path / "text.txt", *quick)
    first = document(dgpt2(*call, "-o", tmp_path / "out", "--json"))
    assert first == json.loads((tmp_path / "out" / "bench.json").read_text("utf-8"))
    again = dgpt2(*call, "-o", tmp_path / "out")
    assert again.returncode == 1
    assert b"--overwrite" in again.stderr
    assert again.stdout == b""  # refused before anything was measured
    (tmp_path / "file").write_text("in the way")
    lost = dgpt2(*call, "-o", tmp_path / "file" / "out")
    assert lost.returncode == 1
