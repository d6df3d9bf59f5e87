"""Peers: `llama_cpp.Llama` for real; for the rest, workers and libraries that this file writes, good ones and bad."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.bench.speed import child_process as children
from dgpt2_quant.bench.speed import peer_process, peers, timing
from dgpt2_quant.bench.speed.grid import Grid
from dgpt2_quant.bench.speed.peer_process import PeerFailed
from dgpt2_quant.bench.speed.peers import Peer, PeerSpec, is_sane, llama_bench_for, peers_for
from dgpt2_quant.bench.speed.rounds import Speeds, make_prompt, measure_speed
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime import Model

from ..processes import await_end

# The fast way to answer; each test changes a line of it.
GOOD = """
import json, os, sys
print(json.dumps({"version": "1.2", "load_ms": 5.0, "threads": sys.argv[1:]}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    answer = {"prompt_tps": 300.0, "decode_tps": 30.0, "tokens": [1] * asked["tokens"], "peak_rss_bytes": 1000,
              "asked": 2.0, "waited": 0.0, "available": 2.0, "others": -0.01}
    print(json.dumps(answer), flush=True)
"""
ANSWER = "    print(json.dumps(answer), flush=True)"
QUICK: dict[str, Any] = {"rounds": 2, "threads": 1, "grid": Grid.none(), "prompt_tokens": 8, "decode_tokens": 4}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TEXT_SECONDS", 0.0)
    monkeypatch.setattr(peers, "TEXT_SECONDS", 0.0)
    monkeypatch.setattr(peers, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., PeerSpec]:
    """Writes a worker."""

    def write(old: str = "", new: str = "", name: str = "Fake") -> PeerSpec:
        assert old in GOOD
        script = tmp_path / f"{name}.py"
        script.write_text(GOOD.replace(old, new) if old else GOOD)
        return PeerSpec(name, "F32", (sys.executable, str(script)))

    return write


@pytest.fixture(autouse=True)
def nobody_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Every process that a test starts is gone at its end, and so is its folder."""
    started: list[int] = []
    folders: list[str] = []
    start = peer_process.Worker.__init__

    def watched(worker: Any, *arguments: Any) -> None:
        start(worker, *arguments)
        started.append(worker._process.pid)
        folders.append(worker._folder.name)

    monkeypatch.setattr(peer_process.Worker, "__init__", watched)
    yield started
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert not any(map(os.path.exists, folders))


def run(files: dict[str, Path], *specs: PeerSpec, **options: Any) -> Speeds:
    return measure_speed(files["F32"], [], peers=specs, **{**QUICK, **options})


def test_a_peer_takes_part_in_every_round(short_files: dict[str, Path], fake: Callable[..., PeerSpec]) -> None:
    seen: list[Any] = []
    found = run(short_files, fake(), progress=lambda *step: seen.append(step))
    (row,) = found.peers
    assert row["decode_tps"] == {"median": 30.0, "min": 30.0, "max": 30.0, "rounds": 2}
    assert row["prompt_tps"] == {"median": 300.0, "min": 300.0, "max": 300.0, "rounds": 2}
    ratio, ours = row["decode_ratio"], found.reference.decode_tps
    assert (ratio["min"], ratio["max"]) == (pytest.approx(30 / ours["max"]), pytest.approx(30 / ours["min"]))
    assert (row["name"], row["precision"], row["version"]) == ("Fake", "F32", "1.2")
    assert (row["load_ms"], row["peak_rss_bytes"], row["disturbed"]) == (5.0, 1000, False)
    assert found.skipped_peers == []
    assert seen[0] == (0, 6, "waiting for Fake F32 (0 of at most 900 s)")
    assert [step for step in seen[1:] if "disturbed" not in step[2]] == [  # as it may be, while tests run
        (step, 6, f"speed, {where}, {who}")
        for step, (where, who) in enumerate(product(("warm-up", "round 1 of 2", "round 2 of 2"), ("F32", "Fake F32")))
    ]


def test_the_environment_of_a_worker(fake: Callable[..., PeerSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "passive")
    names = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"]
    report = f"[os.environ.get(name) for name in {names}] + sys.argv[1:] + os.listdir('.')"
    spec = fake('"1.2"', f"str({report})")
    with Peer(spec, threads=3, positions=64) as peer:
        assert peer.version == str([None, None, None, "3", "3", "64", "stderr"])


def test_a_disturbed_peer_is_marked(short_files: dict[str, Path], fake: Callable[..., PeerSpec]) -> None:
    found = run(short_files, fake('"waited": 0.0', '"waited": 1.0'))
    assert found.peers[0]["disturbed"] is True
    found = run(short_files, fake('"waited": 0.0, "available": 2.0, "others": -0.01', '"available": 2.0'))
    assert found.peers[0]["disturbed"] is None


def test_greedy_tokens_that_the_reference_finds_likely(short_files: dict[str, Path]) -> None:
    with Model.load(short_files["F32"], threads=1) as reference:
        prompt = make_prompt(reference.vocabulary, 32, 0)
        for level in ("F32", "Q4_0"):
            with Model.load(short_files[level], threads=1) as model:
                ((text,),) = model.generate([prompt], max_tokens=24, temperature=0, ignore_eos=True)
            assert is_sane(reference, prompt, text.token_ids)
        likely = list(text.token_ids)
        assert not is_sane(reference, prompt, make_prompt(reference.vocabulary, 24, 5))
        unlikely = int(reference.logits(prompt)[-1].argmin())
        assert not is_sane(reference, prompt, [unlikely, *likely[1:]])  # as of another prompt
        assert not is_sane(reference, prompt, [*likely[:-1], reference.vocabulary])
        assert not is_sane(reference, prompt, [*likely[:-1], -1])


def test_random_tokens_are_not_sane(short_files: dict[str, Path], fake: Callable[..., PeerSpec]) -> None:
    spec = fake('[1] * asked["tokens"]', '[(4000 + 97 * n) % 8000 for n in range(asked["tokens"])]')
    assert run(short_files, spec, decode_tokens=24).peers[0]["sane"] is False


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("import json", "raise SystemExit('no way')\nimport json", "it ended with status 1: no way"),
        ("import json", "import absent_library\nimport json", "No module named 'absent_library'"),
        ("for line", "os.kill(os.getpid(), 11)\nfor line", r"it was ended by a signal \(Segmentation fault.*\)"),
        ('{"version"', '{"absent": "no such library", "version"', "not installed: no such library"),
        ('"load_ms": 5.0', '"load_ms": "fast"', "it answered 'fast' for load_ms"),
        (ANSWER, "    print('Hello!', flush=True)", r"it answered b'Hello!'"),
        (ANSWER, "    print('[1]', flush=True)", r"it answered \[1\]"),
        (ANSWER, "    print('[' * 100000, flush=True)", r"it answered b'\[\[\["),
        (ANSWER, "    print('x' * (2 << 20), flush=True)", r"it answered b'xxx"),
        (ANSWER, "    raise ValueError('bad weights')", "it ended with status 1: .*ValueError: bad weights"),
        (ANSWER, "    os.close(1); sys.stdin.readlines()", "it has closed its output"),
        ("300.0", "float('nan')", "it answered nan for prompt_tps"),
        ('"decode_tps": 30.0', '"decode_tps": -30.0', r"it answered -30\.0 for decode_tps"),
        ('"decode_tps": 30.0', '"decode_tps": 0', "it answered 0 for decode_tps"),
        ('[1] * asked["tokens"]', "[1]", r"it should generate 4 tokens, and answered \[1\]"),
        ('[1] * asked["tokens"]', '["a"] * 4', "it should generate 4 tokens, and answered"),
        ('"peak_rss_bytes": 1000', '"peak_rss_bytes": None', "it answered None for peak_rss_bytes"),
    ],
)
def test_a_failing_peer_is_skipped_with_its_stderr(
    short_files: dict[str, Path],
    fake: Callable[..., PeerSpec],
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    reason: str,
) -> None:
    monkeypatch.setattr(peer_process, "END_TIMEOUT", 0.2)
    found = run(short_files, fake(old, new, "Bad"), fake())
    assert [row["name"] for row in found.peers] == ["Fake"]  # the others go on
    (skipped,) = found.skipped_peers
    assert skipped["name"] == "Bad F32"
    assert re.search(reason, skipped["reason"]), skipped["reason"]


@pytest.mark.parametrize(("where", "limit"), [("import json", "LOAD_TIMEOUT"), ("    asked", "ANSWER_TIMEOUT")])
def test_a_peer_that_hangs(
    short_files: dict[str, Path],
    fake: Callable[..., PeerSpec],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    limit: str,
) -> None:
    monkeypatch.setattr(peers, limit, 0.7)
    indent = where[: len(where) - len(where.lstrip())]
    slow = f"{indent}import sys, time; print('still thinking', file=sys.stderr, flush=True); time.sleep(999)\n"
    (skipped,) = run(short_files, fake(where, slow + where)).skipped_peers
    assert skipped["reason"] == "it said nothing for 0.7 s; last: still thinking"


def test_a_peer_that_fails_later_has_no_row(short_files: dict[str, Path], fake: Callable[..., PeerSpec]) -> None:
    late = "for turn, line in enumerate(sys.stdin):\n    if turn == 2: sys.exit('tired')"
    found = run(short_files, fake("for line in sys.stdin:", late))
    assert found.peers == []
    assert found.skipped_peers == [{"name": "Fake F32", "reason": "it ended with status 1: tired"}]


def test_a_missing_program(short_files: dict[str, Path]) -> None:
    (skipped,) = run(short_files, PeerSpec("Gone", "F32", ("/nonexistent/program",))).skipped_peers
    assert skipped["reason"].startswith("it cannot be started: ")


def test_processes_of_a_peer_end_with_it(fake: Callable[..., PeerSpec]) -> None:
    say = 'print(json.dumps({"version": '
    start = "import subprocess; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(999)'])\n"
    with Peer(fake(f'{say}"1.2"', f"{start}{say}child.pid"), threads=1, positions=8) as peer:
        child = int(peer.version)
        os.kill(child, 0)
    end = time.monotonic() + 5
    while _runs(child):
        assert time.monotonic() < end
        time.sleep(0.02)


def _runs(process: int) -> bool:
    """A process that nobody has waited for yet is over all the same."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        return not Path("/proc/self").exists()


def test_ctrl_c(
    short_files: dict[str, Path],
    fake: Callable[..., PeerSpec],
    monkeypatch: pytest.MonkeyPatch,
    nobody_is_left: list[int],
) -> None:
    interrupt = f"import time; os.kill({os.getpid()}, {int(signal.SIGINT)}); time.sleep(99)"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(short_files, fake(name="One"), fake("    asked", f"    {interrupt}\n    asked"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(nobody_is_left) == 2


def test_llama_for_real(short_files: dict[str, Path], tmp_path: Path) -> None:
    (spec, *_) = peers_for(tmp_path, [short_files["Q4_0"]])
    assert str(spec) == "llama_cpp.Llama Q4_0"
    found = run(short_files, spec, prompt_tokens=32, decode_tokens=16)
    assert found.skipped_peers == []
    (row,) = found.peers
    assert row["sane"] is True
    assert row["version"] == version("llama-cpp-python")
    assert row["load_ms"] > 0  # type: ignore[operator]
    assert short_files["Q4_0"].stat().st_size < row["peak_rss_bytes"] < 1 << 30  # type: ignore[operator]
    assert row["decode_tps"]["rounds"] == 2
    assert row["prompt_tps"]["min"] > row["decode_tps"]["min"] > 0  # type: ignore[index]
    # without flash attention, as Llama has it: it rounds differently, and on some processors chooses another token
    alike = Model.load(short_files["Q4_0"], threads=1, flash_attention=False)
    with Peer(spec, threads=1, positions=512) as peer, alike as model:
        prompt = make_prompt(model.vocabulary, 32, 0)
        peer.time(prompt, 16)
        ((ours,),) = model.generate([prompt], max_tokens=16, temperature=0, ignore_eos=True)
        assert peer._text == (prompt, list(ours.token_ids))


def test_the_usual_peers(short_files: dict[str, Path], tmp_path: Path) -> None:
    specs = peers_for(tmp_path, [short_files["Q4_0"], short_files["Q8_0"]])
    assert [str(spec) for spec in specs] == [
        "llama_cpp.Llama Q4_0",
        "llama_cpp.Llama Q8_0",
        "Transformers F32",
        "Transformers BF16",
        "CTranslate2 F32",
        "CTranslate2 INT8",
    ]


def library(folder: Path, name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a module before any that is installed."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_missing_libraries_are_skipped(
    short_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "ctranslate2"):
        library(tmp_path, name, f"raise ImportError('no {name} for you')", monkeypatch)
    specs = peers_for(tmp_path, [])
    assert run(short_files, specs[0], specs[2]).skipped_peers == [
        {"name": "Transformers F32", "reason": "not installed: no torch for you"},
        {"name": "CTranslate2 F32", "reason": "not installed: no ctranslate2 for you"},
    ]


CONVERTERS = """
import json, pathlib, sys
class TransformersConverter:
    def __init__(self, source): self.source = source
    def convert(self, folder, quantization):
        if self.source.endswith("broken"): sys.exit("these are no weights")
        pathlib.Path(folder).mkdir()
        pathlib.Path(folder, "vocabulary.json").write_text(json.dumps([f"w{n}" for n in range(9000)]))
        pathlib.Path(folder, "kind").write_text(quantization)
"""
GENERATOR = """
import pathlib, types
class Generator:
    def __init__(self, folder, compute_type, intra_threads, **_):
        assert (compute_type, intra_threads) == ("int8", 1) and pathlib.Path(folder, "kind").read_text() == "int8"
    def generate_batch(self, texts, max_length, min_length, callback, **_):
        (text,) = texts
        for _ in range(max_length): callback(None)
        return [types.SimpleNamespace(sequences_ids=[[int(text[0][1:]), *[5] * (min_length - 1)]])]
"""


def test_a_checkpoint_is_converted_for_ctranslate2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ctranslate2"
    package.mkdir()
    (package / "__init__.py").write_text(GENERATOR)
    (package / "converters.py").write_text(CONVERTERS)
    for name in ("torch", "transformers"):
        library(tmp_path, name, "", monkeypatch)
    (*_, spec) = peers_for(tmp_path, [])
    assert str(spec) == "CTranslate2 INT8"
    with Peer(spec, threads=1, positions=64) as peer:
        peer.time([8, 9, 10], 4)
        assert peer._text == ([8, 9, 10], [8, 5, 5, 5])
    (*_, spec) = peers_for(tmp_path / "broken", [])
    with pytest.raises(PeerFailed, match="the conversion failed: these are no weights"):
        Peer(spec, threads=1, positions=64)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["Transformers F32", "Transformers BF16", "CTranslate2 F32", "CTranslate2 INT8"])
def test_the_real_libraries(short_files: dict[str, Path], name: str) -> None:
    checkpoint = short_files["F32"].parent / "storybook"
    (spec,) = [spec for spec in peers_for(checkpoint, []) if str(spec) == name]
    found = run(short_files, spec, prompt_tokens=32, decode_tokens=16)
    assert found.skipped_peers == []
    assert found.peers[0]["sane"] is True


def llama_bench(folder: Path, answer: str) -> Path:
    program = folder / "llama-bench"
    options = "options = dict(zip(sys.argv[1::2], sys.argv[2::2]))"
    program.write_text(f"#!{sys.executable}\nimport json, sys\n{options}\n{answer}\n")
    program.chmod(0o755)
    return folder


def test_llama_bench(short_files: dict[str, Path], tmp_path: Path) -> None:
    folder = llama_bench(
        tmp_path,
        f"open({str(tmp_path / 'seen')!r}, 'a').write(json.dumps(options) + chr(10))\n"
        "tps = 70 if options['-n'] == '0' else 20\n"
        "print(json.dumps([{'build_number': 7, 'build_commit': 'abc', 'avg_ts': tps}]))",
    )
    (row,) = run(short_files, *llama_bench_for([short_files["Q4_0"]], folder)).peers
    assert (row["name"], row["precision"], row["version"]) == ("llama-bench", "Q4_0", "b7 (abc)")
    assert (row["prompt_tps"]["median"], row["decode_tps"]["median"]) == (70, 20)  # type: ignore[index]
    assert (row["load_ms"], row["peak_rss_bytes"], row["sane"]) == (None, None, None)
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert len(seen) >= 2 * 3
    assert all((one["-m"], one["-t"], one["-r"]) == (str(short_files["Q4_0"]), "1", "1") for one in seen)
    assert [(one["-p"], one["-n"], one.get("-d")) for one in seen[:2]] == [("8", "0", None), ("0", "4", "8")]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("sys.exit('invalid parameter: -d')", "it ended with status 1: invalid parameter: -d"),
        ("print('pp8: 99 t/s')", "it answered b'pp8: 99 t/s"),
        ("print('[]')", "it answered []"),
        ("print('[{}]')", "it answered None for avg_ts"),
        ("import time; time.sleep(99)", "it took more than 0.5 s"),
    ],
)
def test_a_bad_llama_bench(
    short_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, reason: str
) -> None:
    monkeypatch.setattr(peers, "ANSWER_TIMEOUT", 0.5 if "sleep" in answer else 60)
    found = run(short_files, *llama_bench_for([short_files["Q4_0"]], llama_bench(tmp_path, answer)))
    (skipped,) = found.skipped_peers
    assert skipped["name"] == "llama-bench Q4_0"
    assert skipped["reason"].startswith(reason)


def test_what_a_llama_bench_has_started_ends_with_it(
    short_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "ANSWER_TIMEOUT", 0.5)
    monkeypatch.setattr(children, "WAIT_SECONDS", 0.1)
    start = "import subprocess\nchild = subprocess.Popen(['sleep', '999'])"
    folder = llama_bench(tmp_path, f"{start}\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\nchild.wait()")
    seen: list[str] = []
    found = run(
        short_files,
        *llama_bench_for([short_files["Q4_0"]], folder),
        progress=lambda _, __, what: seen.append(what),
    )
    assert found.skipped_peers == [{"name": "llama-bench Q4_0", "reason": "it took more than 0.5 s"}]
    assert "waiting for llama-bench Q4_0 (0 of at most 0 s)" in seen[1:]
    await_end(int((tmp_path / "pid").read_text()))


def test_a_missing_llama_bench(short_files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`llama_cpp_bin` must be a folder with llama-bench"):
        llama_bench_for([short_files["Q4_0"]], tmp_path)
