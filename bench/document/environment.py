"""The machine and the versions of a measurement."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from dgpt2_quant.core.cores import usable_cores

from .schema import Environment


def describe_environment(threads: int | None) -> Environment:
    """The environment for the document; `threads` None means all usable cores."""
    cores = usable_cores()
    return {
        "cpu": cpu_name(),
        "cores": cores,
        "threads": threads or cores,
        "ram_bytes": ram_bytes(),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "llama_cpp_python": version("llama-cpp-python"),
        "dgpt2_quant": version("dgpt2-quant"),
        "loadavg": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def cpu_name() -> str:
    """The name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def ram_bytes() -> int | None:
    """The machine's memory; None if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
