"""Identifies the build of llama.cpp and its instruction set: texts have the same bits only where both are equal."""

import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .bindings import bindings


class Build(NamedTuple):
    """`llama_cpp` is the package's version with a hash of its libraries, `instructions` the sets that are used."""

    llama_cpp: str
    instructions: str


def native_build() -> Build:
    """The build that this process has loaded."""
    lib = bindings()
    digest = hashlib.sha256()
    folder = Path(lib.__file__).parent / "lib"
    for path in sorted({path.resolve() for path in folder.iterdir() if re.search(r"\.(so|dylib)(\.|$)", path.name)}):
        digest.update(path.read_bytes())
    used = re.findall(r"(\w+) = 1\b", lib.llama_print_system_info().decode("utf-8", "replace"))
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]  # NumPy samples; it chooses kernels at run time
    return Build(
        f"{version('llama-cpp-python')} {digest.hexdigest()[:16]}",
        f"ggml {' '.join(used)}; NumPy {np.__version__} {' '.join(found)}",
    )
