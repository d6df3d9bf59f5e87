"""GGUF quantization and fast CPU inference for the GPT-2 family.

The public names load when first used, so `import dgpt2_quant` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgpt2_quant.bench.bench import bench as benchmark
    from dgpt2_quant.bench.compare import compare
    from dgpt2_quant.bench.perplexity import perplexity
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
    from dgpt2_quant.jobs.batch import batch_lines
    from dgpt2_quant.publish.release import release
    from dgpt2_quant.quantize.convert import convert
    from dgpt2_quant.quantize.search.search import search
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
    "batch_lines",
    "benchmark",
    "compare",
    "convert",
    "perplexity",
    "pipeline",
    "release",
    "search",
    "set_seed",
]
_MODULES = {  # of the names that are not errors
    "Model": "runtime",
    "Scheduler": "runtime",
    "batch_lines": "jobs.batch",
    "benchmark": "bench.bench",
    "compare": "bench.compare",
    "convert": "quantize.convert",
    "perplexity": "bench.perplexity",
    "pipeline": "runtime",
    "release": "publish.release",
    "search": "quantize.search.search",
    "set_seed": "runtime",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("dgpt2-quant")
    else:
        module = import_module(f"{__name__}.{_MODULES.get(name, 'core.errors')}")
        found = getattr(module, "bench" if name == "benchmark" else name)
    globals()[name] = found  # later accesses do not call this function
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
