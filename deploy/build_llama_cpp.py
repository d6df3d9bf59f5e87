"""Builds a wheel of llama-cpp-python for a named instruction set, so that its users need no compiler.

usage: build_llama_cpp.py {x86-64-v2,x86-64-v3,x86-64-v4,arm64} [-o FOLDER]

The release workflow and the Dockerfile call it, in an environment with build-requirements.txt. The version and the hash
of the source are those of constraints.txt, the build settings those of pyproject.toml. A wheel's tags cannot name an
instruction set, so its version does: 0.3.36+v3. `llama-cpp-python==0.3.36` accepts it.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llama-cpp-python"

# CMake's flags for each instruction set; those of .github/ci/uv-*.toml agree with two of them. The names of x86-64 are
# those of its ABI, and v4 is AVX-512 without VNNI and BF16. arm64 has dot products and half precision, as every server
# since Graviton2, Apple's M1 and the Raspberry Pi 5 have.
INSTRUCTION_SETS = {
    "x86-64-v2": "-DGGML_SSE42=ON -DGGML_AVX=OFF -DGGML_AVX2=OFF -DGGML_BMI2=OFF -DGGML_FMA=OFF -DGGML_F16C=OFF",
    "x86-64-v3": "-DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON",
    "x86-64-v4": "-DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON"
    " -DGGML_AVX512=ON",
    "arm64": "-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16",
}
# The install step writes each library three times, because a wheel has no symbolic links. The bindings open libllama.so
# and libggml.so, and these need the other libraries by the names with one number.
_COPIES = "llama_cpp/lib/*.so.*.*;llama_cpp/lib/libllama.so.*;llama_cpp/lib/libggml-*.so"


def local_version(instruction_set: str) -> str:
    """The local part of the wheel's version: v3 for x86-64-v3."""
    return instruction_set.removeprefix("x86-64-")


def build_variables(instruction_set: str) -> dict[str, str]:
    """The environment variables of the build: those of pyproject.toml, without the flags of this processor."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    variables: dict[str, str] = tools["uv"]["extra-build-variables"][PACKAGE]
    named = f"-DGGML_NATIVE=OFF {INSTRUCTION_SETS[instruction_set]}"
    return {
        **variables,
        "CMAKE_ARGS": variables["CMAKE_ARGS"].replace("-DGGML_NATIVE=ON", named),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()),
        "SKBUILD_WHEEL_EXCLUDE": _COPIES,
    }


def download(folder: Path) -> Path:
    """Downloads the source package into a folder, checks its hash, and returns its unpacked folder."""
    constraints = (ROOT / "constraints.txt").read_text("utf-8")
    [pinned] = re.findall(rf"^{PACKAGE}==.*(?:\\\n.*)+", constraints, re.M)
    (folder / "requirements.txt").write_text(pinned, "utf-8")
    flags = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes"]
    run("-m", "pip", "download", "--quiet", *flags, "-d", folder, "-r", folder / "requirements.txt")
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def set_version(source: Path, local: str) -> None:
    """Appends a local version to the source's version, from which the build takes all its metadata."""
    module = source / "llama_cpp" / "__init__.py"
    text, count = re.subn(r'^__version__ = "[\d.]+', rf"\g<0>+{local}", module.read_text("utf-8"), flags=re.M)
    if count != 1:
        raise SystemExit(f"{module} has no line such as: __version__ = '0.3.36'")
    module.write_text(text, "utf-8")


def run(*arguments: str | Path, **variables: str) -> None:
    """Runs this Python with the programs of its environment first in PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([sys.executable, *arguments], env={**os.environ, **variables, "PATH": path}, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instruction_set", choices=INSTRUCTION_SETS)
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"), metavar="FOLDER")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = download(folder)
        set_version(source, local_version(arguments.instruction_set))
        flags = ["--no-deps", "--no-build-isolation", "-w", folder]
        run("-m", "pip", "wheel", "--quiet", *flags, source, **build_variables(arguments.instruction_set))
        [wheel] = folder.glob("*.whl")
        # adds libgomp to the wheel, and writes the oldest supported glibc into its tag
        run("-m", "auditwheel", "repair", "--only-plat", "-w", arguments.output, wheel)


if __name__ == "__main__":
    main()
