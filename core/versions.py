"""Checks the llama-cpp-python version and struct layouts: the bindings fit exactly one version of llama.cpp."""

from importlib.metadata import PackageNotFoundError, version

from .errors import DgptQuantError

PACKAGE, SUPPORTED = "llama-cpp-python", "0.3.36"  # as in pyproject.toml


def check_version() -> None:
    """Raises `DgptQuantError` unless the supported version is installed; a local suffix (0.3.36+cpu) is accepted."""
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        installed = "none"
    if installed.split("+")[0] != SUPPORTED:
        raise DgptQuantError(
            f"{PACKAGE} {installed} is installed, but only {SUPPORTED} works: C structs change between versions",
            f"Install it: `pip install {PACKAGE}=={SUPPORTED}`.",
        )


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
