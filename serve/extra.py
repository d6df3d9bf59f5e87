"""Checks that the packages of the extra `serve` are installed."""

from importlib.util import find_spec

from dgpt2_quant.core.errors import DgptQuantError

_PACKAGES = ("jinja2", "prometheus_client", "pydantic", "starlette", "uvicorn")


def require_extra() -> None:
    """Raises `DgptQuantError` with the line that installs what is missing."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise DgptQuantError(
            f"the server needs {', '.join(missing)}", "Install the extra: `pip install 'dgpt2-quant[serve]'`."
        )
