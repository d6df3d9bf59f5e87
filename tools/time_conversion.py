"""Times conversions, in turns with llama.cpp's own code.

usage: time_conversion.py convert --convert-script SCRIPT --llama-cpp-bin DIR --tokenizer FOLDER [--peer-python PYTHON]
       time_conversion.py quantize MODEL.F32.gguf [--type TYPE ...] [--imatrix FILE]
       time_conversion.py large FOLDER [--type TYPE ...]
       time_conversion.py pytorch [--type TYPE ...] [--peer-python PYTHON]

- convert: a DistilGPT2-size F32 checkpoint to F16, Q8_0, Q5_K_M and Q4_0 in one `convert`, compared with llama.cpp's
  convert_hf_to_gguf.py to F16 (from a copy without mask buffers, on which it stops) and llama-quantize three times.
  Each is a process of its own. SCRIPT needs a Python with torch and transformers, and GPT-2's vocabulary in FOLDER,
  which it recognises by its hash.
- quantize: `convert` from a GGUF file, type by type, compared with `llama_model_quantize` in the same process. Ours
  also hashes its output and brings it to the disk.
- large: a large checkpoint to several types in one `convert`, compared with reading the source and with llama.cpp's
  quantizer alone on weights in memory. A checkpoint of GPT-2 XL's shape, 6.2 GB, is written by
  `random_distilgpt2.py xl --layers 48 --width 1600 --heads 25 --shards 4 --without-buffers`.
- pytorch: `pytorch_model.bin` of DistilGPT2's size, which PyTorch writes, compared with the same weights as
  safetensors. PYTHON needs torch and safetensors.

The page cache is warm for all. Ratios are the median of the rounds' own. The last line is JSON.
"""

import argparse
import ctypes
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from dgpt2_quant.core.ggml import quantize as quantize_rows
from dgpt2_quant.core.quant_types import QUANT_TYPES, QuantType, find_types
from dgpt2_quant.quantize.calibration.imatrix_file import read_importance
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.convert import convert as convert_files
from dgpt2_quant.quantize.recipes.plan import make_plan
from dgpt2_quant.runtime.native.bindings import bindings
from harness import PROGRAM, add_turns, in_turns, median_ratio, print_document, run, seconds_of, spread

QUANTIZED = ("Q8_0", "Q5_K_M", "Q4_0")
PIECE = 1 << 17  # weights that the quantizer gets at once, as in a conversion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("convert")
    part.add_argument("--convert-script", type=Path, required=True, help="llama.cpp's convert_hf_to_gguf.py")
    part.add_argument("--llama-cpp-bin", type=Path, required=True, help="the folder of llama-quantize")
    part.add_argument("--peer-python", default=sys.executable, help="a Python with torch and transformers")
    part.add_argument("--tokenizer", type=Path, required=True, help="a folder with GPT-2's vocab.json and merges.txt")
    part.set_defaults(measure=convert)
    add_turns(part, rounds=5)
    part = parts.add_parser("quantize")
    part.add_argument("model", type=Path, help="a GGUF file of F32")
    part.add_argument("--type", action="append", help="by default all that need no importance matrix, or all with one")
    part.add_argument("--imatrix", type=Path)
    part.set_defaults(measure=quantize)
    add_turns(part, rounds=5)
    part = parts.add_parser("large")
    part.add_argument("folder", type=Path)
    part.add_argument("--type", action="append", help="q4_k_m and q8_0 by default")
    part.set_defaults(measure=large)
    add_turns(part, rounds=3)
    part = parts.add_parser("pytorch")
    part.add_argument("--type", action="append", help="q4_0 by default")
    part.add_argument("--peer-python", default=sys.executable, help="a Python with torch and safetensors")
    part.set_defaults(measure=pytorch)
    add_turns(part, rounds=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print_document(arguments, arguments.measure(arguments, Path(scratch)))


def convert(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    maker = Path(__file__).with_name("random_distilgpt2.py")
    for folder, *flags in (("with",), ("without", "--without-buffers")):
        run(sys.executable, maker, scratch / folder, "--tokenizer", arguments.tokenizer, *flags)
    peaks = []

    def ours(_number: int) -> float:
        types = [flag for name in ("F16", *QUANTIZED) for flag in ("-t", name)]
        command = [PROGRAM, "convert", scratch / "with", *types, "-o", empty(scratch / "ours")]
        seconds, peak = run(*command, "--threads", arguments.threads)
        peaks.append(peak)
        return seconds

    def theirs(_number: int) -> float:
        f16 = empty(scratch / "theirs") / "F16.gguf"
        script = [arguments.peer_python, arguments.convert_script, scratch / "without"]
        seconds, _ = run(*script, "--outtype", "f16", "--outfile", f16)
        program = arguments.llama_cpp_bin / "llama-quantize"
        return seconds + sum(
            run(program, f16, f16.with_name(f"{name}.gguf"), name, arguments.threads)[0] for name in QUANTIZED
        )

    seconds = in_turns({"ours_s": ours, "theirs_s": theirs}, arguments.rounds)
    return {
        **{name: spread(values, 2) for name, values in seconds.items()},
        "ratio": median_ratio(seconds["ours_s"], seconds["theirs_s"]),
        "ours_peak_mb": round(max(peaks) / 1e6),
    }


def empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def quantize(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    llama_cpp = bindings()
    entries = read_importance(arguments.imatrix).entries if arguments.imatrix else {}
    values = {name: entry.mean_squares for name, entry in entries.items()}
    table = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
    for entry, (name, squares) in zip(table, values.items(), strict=False):
        entry.name, entry.size = name.encode(), len(squares)
        entry.data = squares.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def ours(quant_type: QuantType, _number: int) -> float:
        settings = {"type": quant_type, "imatrix": arguments.imatrix, "threads": arguments.threads}
        return seconds_of(partial(convert_files, str(arguments.model), output=output, overwrite=True, **settings))

    def theirs(quant_type: QuantType, _number: int) -> float:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread = quant_type.file_type, arguments.threads
        if values:
            params.imatrix = table
        return seconds_of(llama_cpp.llama_model_quantize, str(arguments.model).encode(), str(output).encode(), params)

    output = scratch / "out.gguf"
    types = arguments.type or [t for t in QUANT_TYPES.values() if arguments.imatrix or not t.needs_imatrix]
    found = {}
    for quant_type in find_types(types):
        contestants = {"ours_s": partial(ours, quant_type), "theirs_s": partial(theirs, quant_type)}
        seconds = in_turns(contestants, arguments.rounds)
        ratio = median_ratio(seconds["theirs_s"], seconds["ours_s"])  # of speeds
        found[quant_type.name] = {**{name: spread(times, 2) for name, times in seconds.items()}, "ratio": ratio}
    return {"types": found}


def large(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    types = arguments.type or ["q4_k_m", "q8_0"]
    peaks = []

    def converted(_number: int) -> float:
        command = [PROGRAM, "convert", arguments.folder, "-o", empty(scratch / "out")]
        flags = [flag for name in types for flag in ("-t", name)]
        seconds, peak = run(*command, *flags, "--threads", arguments.threads)
        peaks.append(peak)
        return seconds

    def alone(_number: int) -> float:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(seconds_to_quantize, arguments.folder, types, arguments.threads).result()

    read = partial(seconds_of, read_all, arguments.folder)
    seconds = in_turns({"convert": converted, "read": lambda _: read(), "quantize": alone}, arguments.rounds)
    least = [sum(pair) for pair in zip(seconds["read"], seconds["quantize"], strict=True)]
    return {
        **{f"{name}_s": spread(values, 2) for name, values in seconds.items()},
        "ratio": median_ratio(least, seconds["convert"]),
        "peak_mb": round(max(peaks) / 1e6),
    }


def read_all(folder: Path) -> None:
    buffer = bytearray(1 << 20)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def seconds_to_quantize(folder: Path, types: list[str], threads: int) -> float:
    """Each tensor once for each block format that the files need."""
    source = open_model(str(folder))
    plans = [make_plan(source, quant_type) for quant_type in find_types(types)]
    total = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for tensor in source.tensors:
            formats = list({plan.types[tensor.name]: None for plan in plans})
            rows = np.ascontiguousarray(tensor.read(), np.float32).reshape(prod(tensor.shape[:-1]), tensor.shape[-1])
            step = max(1, PIECE // rows.shape[1])
            pieces = [rows[first : first + step] for first in range(0, len(rows), step)]
            quantized = partial(quantize_rows, tensor.name, tensor_types=formats)
            total += seconds_of(lambda pieces=pieces, quantized=quantized: list(pool.map(quantized, pieces)))
    return total


def pytorch(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    run(sys.executable, Path(__file__).with_name("random_distilgpt2.py"), scratch / "safetensors")
    shutil.copytree(scratch / "safetensors", scratch / "pytorch")
    weights = scratch / "pytorch" / "model.safetensors"
    save = "from sys import argv; import torch; from safetensors.torch import load_file;"
    run(
        arguments.peer_python,
        "-c",
        f"{save} torch.save(load_file(argv[1]), argv[2])",
        weights,
        weights.with_name("pytorch_model.bin"),
    )
    weights.unlink()
    peaks = []

    def converted(folder: str, _number: int) -> float:
        types = [flag for name in arguments.type or ["q4_0"] for flag in ("-t", name)]
        command = [PROGRAM, "convert", scratch / folder, *types, "-o", empty(scratch / "out")]
        seconds, peak = run(*command, "--threads", arguments.threads)
        if folder == "pytorch":
            peaks.append(peak)
        return seconds

    seconds = in_turns({name: partial(converted, name) for name in ("pytorch", "safetensors")}, arguments.rounds)
    return {
        **{f"{name}_s": spread(values, 2) for name, values in seconds.items()},
        "ratio": median_ratio(seconds["pytorch"], seconds["safetensors"]),
        "pytorch_peak_mb": round(max(peaks) / 1e6),
    }


if __name__ == "__main__":
    main()
