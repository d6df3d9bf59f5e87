"""The bindings of llama.cpp's library, loaded once and checked; its log; and owners of what its long calls create.

The messages that llama.cpp logs while it loads a model or creates a context go to the logger `dgpt2_quant.llama_cpp`,
which is silent unless the program configures a handler. Its other messages are dropped: a callback into Python could
arrive in the main thread during a decode, and ctypes would drop the exception of a signal handler that runs in it.
"""

import _thread
import ctypes
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import numpy as np
from dgpt2_quant.core.cores import bounded_spin
from dgpt2_quant.core.versions import check_layout, check_version

from .forks import survive_forks
from .huge_pages import ask_for_huge_pages, give_memory_back, huge_pages_for_new_memory
from .native_thread import Owned, in_native_thread

log = logging.getLogger("dgpt2_quant.llama_cpp")
log.addHandler(logging.NullHandler())

# `enum ggml_log_level` (ggml.h); 5 continues the line before
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR, 5: logging.DEBUG}
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # struct llama_token_data
# exceptions of log handlers in callbacks from C, by thread
_raised: dict[int, BaseException] = {}
_loggers, _switch = 0, threading.Lock()  # the threads within `_logging`, none of them the main one


@cache
def bindings() -> Any:
    """The bindings, initialised once. Their import is slow, so it is done when a model is first loaded.

    Raises `DgptQuantError` when another version of llama-cpp-python is installed.
    """
    return in_native_thread(_load_bindings)


def _load_bindings() -> Any:
    check_version()
    with bounded_spin():
        import llama_cpp

    check_layout("the size of llama_token_data", ctypes.sizeof(llama_cpp.llama_token_data), TOKEN_DATA.itemsize)
    # these defaults are at the beginning and the end of their structs
    context, model = llama_cpp.llama_context_default_params(), llama_cpp.llama_model_default_params()
    check_layout("a context's default", (context.n_ctx, context.n_batch, context.n_seq_max), (512, 2048, 1))
    check_layout("a context's default", (context.no_perf, context.op_offload, context.kv_unified), (True, True, False))
    check_layout("a model's default", (model.main_gpu, model.vocab_only, model.use_extra_bufts), (0, False, True))
    llama_cpp.llama_log_set(_quiet(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    survive_forks(llama_cpp.llama_cpp._lib)
    return llama_cpp


@cache
def _quiet(llama_cpp: Any) -> Any:
    return llama_cpp.llama_log_callback("".format)  # takes any arguments and does nothing, without Python code


@cache
def _log_callback(llama_cpp: Any) -> Any:
    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def write(level: int, text: bytes, _user_data: object) -> None:
        try:
            ask_for_huge_pages(text)
            log.log(_LEVELS.get(level, logging.INFO), text.decode("utf-8", "replace").rstrip())
        except KeyboardInterrupt:  # in the main thread, in a decode while another thread loads
            _thread.interrupt_main()
        except BaseException as error:
            _raised[threading.get_ident()] = error  # ctypes would drop it; it is raised after C returns

    return write  # the cache keeps it: C has a pointer to it


@contextmanager
def _logging() -> Iterator[None]:
    """Logs llama.cpp's messages into Python until the block ends, in the last of several threads."""
    global _loggers
    lib = bindings()
    with _switch:
        _loggers += 1
        lib.llama_log_set(_log_callback(lib), ctypes.c_void_p(0))
    try:
        yield
    finally:
        with _switch:
            _loggers -= 1
            if not _loggers:
                lib.llama_log_set(_quiet(lib), ctypes.c_void_p(0))


def own(
    make: Callable[[], int | None], free: Callable[[int], object], *keeps: object, huge_pages: bool
) -> Owned | None:
    """The owner of what a long call of C creates, in the native thread; None if it fails."""
    with _logging(), huge_pages_for_new_memory() if huge_pages else nullcontext():
        pointer = make()

    def free_for_good(pointer: int) -> None:
        free(pointer)
        give_memory_back()

    owner = Owned(pointer, free_for_good, *keeps) if pointer else None
    if error := _raised.pop(threading.get_ident(), None):
        raise error
    return owner


def encoded(argument: Any) -> Any:
    """Texts as C strings, and tuples of texts as arrays of C strings."""
    if isinstance(argument, str):
        return argument.encode("utf-8")
    if isinstance(argument, tuple):
        return (ctypes.c_char_p * len(argument))(*(text.encode("utf-8") for text in argument))
    return argument
