"""Checks the llama-cpp-python version and struct layouts: the bindings fit exactly one version of llama.cpp."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .errors import DgptQuantError

PACKAGE, SUPPORTED = "llama-cpp-python", "0.3.36"  # as in pyproject.toml
# The instructions, as /proc/cpuinfo names them, of our wheels by their local version (deploy/build_llama_cpp.py). Other
# local versions are not checked.
INSTRUCTIONS = {
    "v2": {"sse4_2"},
    "v3": {"avx2", "bmi2", "f16c", "fma"},
    "v4": {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"},
    "arm64": {"asimddp", "asimdhp"},
}


def check_version(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Raises `DgptQuantError` unless the supported version is installed; a local suffix (0.3.36+cpu) is accepted.

    The suffix of a release's wheel names its instruction set. A processor that lacks it would end the process without
    a message.
    """
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        installed = "none"
    if installed.split("+")[0] != SUPPORTED:
        raise DgptQuantError(
            f"{PACKAGE} {installed} is installed, but only {SUPPORTED} works: C structs change between versions",
            f"Install it: `pip install {PACKAGE}=={SUPPORTED}`.",
        )
    needed = INSTRUCTIONS.get(installed.partition("+")[2])
    if needed and (missing := needed - (_instructions(cpuinfo) or needed)):
        raise DgptQuantError(
            f"{PACKAGE} {installed} is installed, but this processor lacks {', '.join(sorted(missing))}",
            "Install the wheel of another instruction set: docs/deploy.md lists them.",
        )


def _instructions(cpuinfo: Path) -> set[str] | None:
    """The instructions of the first processor; None where the system does not list them."""
    try:
        with cpuinfo.open(encoding="utf-8") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):  # x86, ARM
                    return set(value.split())
    except OSError:
        pass
    return None


def check_layout(what: str, found: object, expected: object) -> None:
    """Raises `DgptQuantError` if the library's struct layout differs from the expected one."""
    if found != expected:
        raise DgptQuantError(
            f"the llama.cpp library does not match its Python bindings: {what} is {found}, not {expected}",
            f"Reinstall them: `pip install --force-reinstall {PACKAGE}=={SUPPORTED}`.",
        )


def tool_version() -> str:
    """The installed version of this project."""
    from importlib.metadata import version  # slow to import, so not at the top

    return version("dgpt2-quant")
