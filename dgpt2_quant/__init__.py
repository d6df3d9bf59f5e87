"""GGUF quantization and fast CPU inference for the GPT-2 family.

The names below load when they are first used, so that `import dgpt2_quant` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgpt2_quant.core.errors import (
        CheckpointError,
        DgptQuantError,
        GGUFError,
        ModelNotFoundError,
        OutputError,
        OverloadedError,
        ResultError,
        RuntimeFailure,
        UsageError,
        WaitTimeoutError,
    )
    from dgpt2_quant.runtime import Model, Scheduler, pipeline, set_seed

    __version__: str

__all__ = [
    "CheckpointError",
    "DgptQuantError",
    "GGUFError",
    "Model",
    "ModelNotFoundError",
    "OutputError",
    "OverloadedError",
    "ResultError",
    "RuntimeFailure",
    "Scheduler",
    "UsageError",
    "WaitTimeoutError",
    "__version__",
    "pipeline",
    "set_seed",
]
_FROM_RUNTIME = ("Model", "Scheduler", "pipeline", "set_seed")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("dgpt2-quant")
    else:
        module = "runtime" if name in _FROM_RUNTIME else "core.errors"
        found = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = found  # the next access does not come here
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
