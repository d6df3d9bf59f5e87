"""Times one `convert` call against llama.cpp's own road, in turns.

usage: time_convert.py --convert-script llama.cpp/convert_hf_to_gguf.py --llama-cpp-bin DIR --peer-python PYTHON
       --tokenizer FOLDER

Ours: a DistilGPT2-size F32 checkpoint, mask buffers and all, to F16, Q8_0, Q5_K_M and Q4_0 in one call. Theirs: the
converter to F16 (from a copy without the buffers: it stops on them), then llama-quantize three times. Each contestant
is a fresh process, the page cache is warm for both, and outputs go to the same disk. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TYPES = ("Q8_0", "Q5_K_M", "Q4_0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convert-script", type=Path, required=True, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--llama-cpp-bin", type=Path, required=True, help="the folder of llama-quantize")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with torch and transformers")
    parser.add_argument("--tokenizer", type=Path, required=True, help="GPT-2's own: the peer knows it by its hash")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(arguments, Path(scratch))))


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, object]:
    maker = Path(__file__).with_name("random_distilgpt2.py")
    for folder, *flags in (("with",), ("without", "--without-buffers")):
        command = [sys.executable, maker, scratch / folder, "--tokenizer", arguments.tokenizer, *flags]
        subprocess.run(command, check=True)
    ours: list[float] = []
    theirs: list[list[float]] = []
    peaks: list[int] = []
    for number in range(arguments.rounds + 1):
        seconds, peak = ours_once(scratch, arguments.threads)
        parts = theirs_once(arguments, scratch)
        print(f"round {number}: ours {seconds:.2f} s, theirs {sum(parts):.2f} s", file=sys.stderr)
        if number:  # the first warms up
            ours.append(seconds)
            theirs.append(parts)
            peaks.append(peak)
    sums = [sum(parts) for parts in theirs]
    return {
        "ours_s": spread(ours),
        "theirs_s": spread(sums),
        "theirs_convert_s": spread([parts[0] for parts in theirs]),
        "theirs_quantize_s": spread([sum(parts[1:]) for parts in theirs]),
        "ratio": round(statistics.median(a / b for a, b in zip(ours, sums, strict=True)), 3),
        "ours_peak_mb": round(max(peaks) / 1e6),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "loadavg": os.getloadavg(),
    }


def ours_once(scratch: Path, threads: int) -> tuple[float, int]:
    out = scratch / "ours"
    shutil.rmtree(out, ignore_errors=True)
    types = [flag for name in ("F16", *TYPES) for flag in ("-t", name)]
    command = [Path(sys.executable).with_name("dgpt2-quant"), "convert", scratch / "with", *types, "-o", out]
    started = time.monotonic()
    child = subprocess.Popen(
        [*command, "--threads", str(threads)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"dgpt2-quant convert failed with {child.returncode}")
    return seconds, usage.ru_maxrss * 1024


def theirs_once(arguments: argparse.Namespace, scratch: Path) -> list[float]:
    out = scratch / "theirs"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    f16 = out / "F16.gguf"
    script = [arguments.peer_python, arguments.convert_script, scratch / "without"]
    commands = [[*script, "--outtype", "f16", "--outfile", f16]]
    for name in TYPES:
        commands.append(
            [arguments.llama_cpp_bin / "llama-quantize", f16, out / f"{name}.gguf", name, str(arguments.threads)]
        )
    parts = []
    for command in commands:
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        parts.append(time.monotonic() - started)
    return parts


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


if __name__ == "__main__":
    main()
