"""The measuring scripts in `tools/`, each with one round on a small model; programs of llama.cpp are stood in for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.quantize.checkpoint.resolve import resolve

TOOLS = Path(__file__).resolve().parents[2] / "tools"
pytestmark = pytest.mark.slow

# Each prints what the script reads of the program of that name, and llama-quantize and the converter write a file.
LLAMA_CPP = """
import json, pathlib, sys
sys.path.insert(0, {tools!r})
words = sys.argv[1:]
name = pathlib.Path(sys.argv[0]).name
if name == "llama-bench":
    print(json.dumps([{{"avg_ts": 100.0}}]))
elif name == "llama-batched-bench":
    print("a line before", json.dumps({{"speed_tg": 100.0}}), sep="\\n")
elif name == "llama-quantize":
    pathlib.Path(words[1]).touch()
elif name == "convert_hf_to_gguf.py":
    pathlib.Path(words[words.index("--outfile") + 1]).touch()
elif "--kl-divergence" in words:
    from measure_quality import FIGURES
    for label, _ in FIGURES.values():
        print(f"{{label}}: 0.5 ± 0.1")
else:
    print("0.01.000.500 I perplexity: calculating perplexity over 4 chunks, n_ctx=512, batch_size=2048")
    print("0.03.000.500 I Final estimate: PPL = 60.0 +/- 1.0")
"""


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama.cpp")
    for name in ("llama-bench", "llama-batched-bench", "llama-quantize", "llama-perplexity", "convert_hf_to_gguf.py"):
        program = folder / name
        program.write_text(f"#!{sys.executable}\n{LLAMA_CPP.format(tools=str(TOOLS))}")
        program.chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def _tools_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """The beginning of the bundled text."""
    whole = (resolve("storybook").folder / "evaluation.txt").read_text("utf-8")
    file = tmp_path / "beginning.txt"
    file.write_text(whole[:6000], "utf-8")
    return file


def run(script: str, *arguments: object) -> Any:
    """The document on the last line."""
    command = [sys.executable, TOOLS / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_generation(storybook_files: dict[str, Path], llama_cpp: Path) -> None:
    import doc_tables
    from time_generation import PARTS

    model = storybook_files["Q4_0"]
    document = run("time_generation.py", "all", model, "--rounds", 1, "--threads", 1, "--llama-cpp-bin", llama_cpp)
    assert document["threads"] == document["rounds"] == 1
    parts = document["Q4_0"]
    assert list(parts) == list(PARTS)
    decode = parts["decode"]["greedy"]
    assert list(decode["ratio"]) == ["create_completion, streamed", "create_completion", "llama-bench"]
    assert decode["ratio"]["llama-bench"] == pytest.approx(decode["tps"]["ours"]["median"] / 100, rel=0.01)
    assert parts["bandwidth"]["bytes_per_token"] < model.stat().st_size
    for setting in parts["overhead"].values():
        assert setting["bare_ms"] > 0
    assert parts["startup"]["help"]["median"] < parts["startup"]["run"]["median"]
    for table in (doc_tables.generation_table, doc_tables.overhead_table):
        assert len(table(document)) > 4
    assert len(doc_tables.lookup_table({"a model": parts["lookup"]})) == 3


def test_batch(storybook_files: dict[str, Path], tmp_path: Path) -> None:
    output, sizes = tmp_path / "batch.json", ("--lines", 6, "--tokens", 4, "--slice", 3, "--rounds", 1, "--threads", 1)
    document = run("time_batch.py", output, storybook_files["Q4_0"], *sizes)
    assert set(document["ratio"]) == {"batch_lines", "Model.generate", "Llama.create_completion"}
    assert json.loads(output.read_text())["tps"] == document["tps"]


def test_versions(storybook_files: dict[str, Path]) -> None:
    parts = ["greedy 16", "top-k 16", "8 texts of 8", "prompt of 4", "position 10, flash", "position 300, plain"]
    flags = [flag for part in parts for flag in ("--part", part)]
    other = f"the same={sys.executable}"
    document = run("time_versions.py", storybook_files["Q4_0"], "--python", other, "--rounds", 1, *flags)
    assert list(document["parts"]) == parts
    for found in document["parts"].values():
        ours, theirs = found["installed"], found["the same"]
        assert ours["ratio"] == 1
        assert theirs["ratio"] == pytest.approx(ours["median"] / theirs["median"], rel=0.01)


def test_governor(storybook_files: dict[str, Path], tmp_path: Path) -> None:
    import doc_tables

    plot = tmp_path / "plot.svg"
    model = storybook_files["Q4_0"]
    document = run("time_governor.py", model, "--rounds", 1, "--seconds", 1.5, "--plot", plot)
    assert document["timeline"]["load_from_s"] == pytest.approx(1.5, abs=1)
    assert len(doc_tables.governor_table(document)) == 2 + len(document["load"])
    assert plot.read_text("utf-8").startswith("<?xml")


def test_conversions(storybook_files: dict[str, Path], llama_cpp: Path) -> None:
    document = run("time_conversion.py", "quantize", storybook_files["F32"], "--type", "q4_0", "--rounds", 1)
    found = document["types"]["Q4_0"]
    assert found["ours_s"]["median"] > 0
    assert found["theirs_s"]["median"] > 0
    document = run("time_conversion.py", "large", resolve("storybook").folder, "--type", "q4_0", "--rounds", 1)
    assert 0 < document["ratio"] < 1
    assert document["peak_mb"] > 10


def test_the_conversion_that_llama_cpp_does_in_four_calls(llama_cpp: Path, tmp_path: Path) -> None:
    small = ["--layers", "1", "--width", "64", "--heads", "4"]
    subprocess.run([sys.executable, TOOLS / "random_distilgpt2.py", tmp_path, *small], check=True)
    script = llama_cpp / "convert_hf_to_gguf.py"
    peer = ["--convert-script", script, "--llama-cpp-bin", llama_cpp, "--tokenizer", tmp_path]
    document = run("time_conversion.py", "convert", *peer, "--rounds", 1)
    assert document["ratio"] == pytest.approx(document["ours_s"]["median"] / document["theirs_s"]["median"], rel=0.1)
    assert document["ours_peak_mb"] < 700


def test_perplexity_next_to_llama_perplexity(storybook_files: dict[str, Path], llama_cpp: Path, text: Path) -> None:
    import doc_tables

    files = [storybook_files["F32"], storybook_files["Q4_0"]]
    flags = ["--llama-cpp-bin", llama_cpp, "--text", text, "--rounds", 1]
    document = run("measure_quality.py", "perplexity", *files, *flags)
    reference, quantized = document["perplexity"]
    assert reference["llama_perplexity"] == 60
    assert reference["llama_tps"] == 4 * 512 / 2
    assert quantized["perplexity"] > reference["perplexity"]
    [found] = document["divergence"]
    assert found["figures"]["top1_agreement"][1] == pytest.approx(0.005)
    assert len(doc_tables.perplexity_table(document)) == 4


def test_roundings(short_files: dict[str, Path], text: Path) -> None:
    model = short_files["F32"].parent / "storybook"
    document = run("measure_quality.py", "roundings", "--model", model, "--text", text)
    assert len(document["roundings"]) == 12
    for row in document["roundings"]:
        assert 0 < row["weights"]["kld"]["value"] < row["both"]["kld"]["value"] < 0.1


def test_pads(storybook_files: dict[str, Path], text: Path) -> None:
    [found] = run("measure_quality.py", "pads", storybook_files["Q4_0"], "--text", text)["files"]
    assert found["pads"] == found["share_max"] == 0
    assert found["perplexity"] == found["perplexity_without_pads"]


def test_gate(text: Path) -> None:
    import doc_tables

    document = run("measure_quality.py", "gate", "--level", "q4_k_m", "--runs", 1, "--rounds", 1, "--text", text)
    assert document["flagged_of_the_same_build"] == 0
    assert len(document["planted"]) == 5
    assert all(row["caught"] for row in document["planted"])
    assert "0 of 1 runs" in doc_tables.gate_lines(document)[0]


def test_recipes_side_by_side(short_files: dict[str, Path], text: Path, tmp_path: Path) -> None:
    import doc_tables
    from dgpt2_quant.quantize.calibration.collect import imatrix

    model, output = short_files["F32"].parent / "storybook", tmp_path / "lean.json"
    imatrix(str(model), text=text, output=tmp_path / "imatrix.gguf")  # sampling a text takes longer than the rest
    flags = ["--model", model, "--text", text, "--imatrix", tmp_path / "imatrix.gguf", "--level", "q4_k_m"]
    flags += ["--rounds", "1"]
    command = [sys.executable, TOOLS / "compare_recipes.py", output, *flags, "--search", "--ablation", "--speed"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text("utf-8"))
    files = {file["name"]: file for file in document["files"]}
    assert files["lean, size of Q4_K_M"]["bytes"] <= files["stock Q4_K_M"]["bytes"]
    for file in files.values():
        assert list(file["quality"]) == ["beginning.txt"]
        assert file["kind"] == "ablated" or list(file["tps"]) == ["1", "8"]
    pairs = {(pair["a"], pair["b"]): pair for pair in document["pairs"]}
    pair = pairs["lean Q4_K_M", "stock Q4_K_M"]
    assert pair["kld_ratio"]["low"] < pair["kld_ratio"]["value"] < pair["kld_ratio"]["high"] < 1
    assert list(pair["speed_ratio"]) == ["1", "8"]
    assert pairs["lean, size of Q4_K_M, without all", "lean, size of Q4_K_M"]["kld_ratio"]["value"] > 1
    assert "8 at once, tokens/s" in done.stdout
    doc_tables.size_kld_plot(document, "beginning.txt").savefig(tmp_path / "plot.svg")


def test_ten_thousand_interrupts() -> None:
    found = run("stress.py", "interrupts", 10_000, "--seed", 1)
    assert found["sent"] == sum(found["received"].values()) == 10_000


def test_two_hundred_reloads() -> None:
    found = run("stress.py", "soak", "--cycles", 200)
    assert found["threads"] == 1


def test_training_a_head(tmp_path: Path) -> None:
    folder = tmp_path / "speech"
    command = [sys.executable, TOOLS / "train_head.py", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    from dgpt2_quant.bench.tasks.evaluate import evaluate

    (document,) = evaluate(str(folder), task="classify", type="q8_0", data=folder / "test.csv")
    found = document["results"][0]["metrics"]
    assert found["accuracy"]["low"] > 0.75  # narration alone is 0.64
    assert found["macro_f1"]["low"] > 0.5


@pytest.mark.peer
def test_training_a_model(tmp_path: Path) -> None:
    """For a second: the files of a checkpoint that can be converted."""
    books = tmp_path / "books"
    books.mkdir()
    source = resolve("storybook").folder
    for name, title in {"calibration": "a-book", "evaluation": "the-happy-prince"}.items():
        (books / f"{title}.txt").write_text((source / f"{name}.txt").read_text("utf-8"), "utf-8")
    command = [sys.executable, TOOLS / "train_storybook.py", books, tmp_path / "model", "0.02"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "validation perplexity" in done.stdout
    from dgpt2_quant.quantize.convert import convert

    [file] = convert(str(tmp_path / "model"), type="q8_0", output=tmp_path)
    assert file.parameters > 5_000_000


def test_lean_of_large_models() -> None:
    import doc_tables

    document = run("time_lean.py", "--model", "6x64", "--layers", "1", "2", "--positions", "4", "--threads", "1")
    assert document["layers_measured"] == [1, 2]
    found = document["models"]["6x64"]
    less, more = (each["lean_s"] for each in found["measured"])
    assert found["lean_s"] == round(less + 5 * (more - less))
    assert 100 < found["peak_mb"] < 1000
    (row,) = doc_tables.large_models_table(document)[2:]
    assert row.startswith("| 6x64, 6 x 64 | ")
