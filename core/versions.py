"""Which llama.cpp is bound: its structs are laid out here and in llama-cpp-python by hand, for one version."""

from importlib.metadata import PackageNotFoundError, version

from .errors import DgptQuantError

PACKAGE, SUPPORTED = "llama-cpp-python", "0.3.36"  # as in pyproject.toml


def check_version() -> None:
    """Raises `DgptQuantError` unless the supported version is installed; a local suffix (0.3.36+cpu) is fine."""
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        installed = "none"
    if installed.split("+")[0] != SUPPORTED:
        raise DgptQuantError(
            f"{PACKAGE} {installed} is installed; this program works with {SUPPORTED} only, as C structs change"
            " between versions",
            f"Install that one: `pip install {PACKAGE}=={SUPPORTED}`.",
        )


def check_layout(what: str, found: object, expected: object) -> None:
    """Raises `DgptQuantError` where the library lays out a struct in another way than this package does."""
    if found != expected:
        raise DgptQuantError(
            f"the installed llama.cpp library does not match its Python bindings: {what} is {found}, not {expected}",
            f"Install them again: `pip install --force-reinstall {PACKAGE}=={SUPPORTED}`.",
        )


def tool_version() -> str:
    """The installed version of this project."""
    from importlib.metadata import version  # late: it takes as long to import as half of the rest

    return version("dgpt2-quant")
