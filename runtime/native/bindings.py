"""llama.cpp's library, loaded once and checked: its bindings, its log, and what its long calls make.

What llama.cpp logs while it loads a model or makes a context goes to the logger `dgpt2_quant.llama_cpp`, which is
silent unless the program sets up a handler. Nothing else that it logs is passed on: a callback into Python could come
in the main thread, in the middle of a decode, and a signal handler that runs at its beginning would have its exception
dropped.
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

from .calls import Owned, in_native_thread
from .forks import survive_forks
from .huge_pages import ask_for_huge_pages, give_memory_back, huge_pages_for_new_memory

log = logging.getLogger("dgpt2_quant.llama_cpp")
log.addHandler(logging.NullHandler())

# `enum ggml_log_level` (ggml.h); 5 continues the line before
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR, 5: logging.DEBUG}
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # struct llama_token_data
# what a log handler raised in a callback from C, by thread
_raised: dict[int, BaseException] = {}
_loggers, _switch = 0, threading.Lock()  # the threads within `_logging`, none of them the main one


@cache
def bindings() -> Any:
    """The bindings, initialised once. Their import is slow, so it waits until a model is loaded.

    Raises `DgptQuantError` when another version of llama-cpp-python is installed.
    """
    return in_native_thread(_load_bindings)


def _load_bindings() -> Any:
    check_version()
    with bounded_spin():
        import llama_cpp

    check_layout("the size of llama_token_data", ctypes.sizeof(llama_cpp.llama_token_data), TOKEN_DATA.itemsize)
    # these defaults lie at the beginning and the end of their structs
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
    return llama_cpp.llama_log_callback("".format)  # it takes anything and does nothing, without any Python code


@cache
def _log_callback(llama_cpp: Any) -> Any:
    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def write(level: int, text: bytes, _user_data: object) -> None:
        try:
            ask_for_huge_pages(text)
            log.log(_LEVELS.get(level, logging.INFO), text.decode("utf-8", "replace").rstrip())
        except KeyboardInterrupt:  # of the main thread, in a decode while another thread loads
            _thread.interrupt_main()
        except BaseException as error:
            _raised[threading.get_ident()] = error  # ctypes would drop it: it is raised when C has returned

    return write  # kept by the cache: C holds a pointer to it


@contextmanager
def _logging() -> Iterator[None]:
    """In the block llama.cpp logs into Python; for several threads, until the last of them has left it."""
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
    """What a long call of C makes, in the native thread; None if it makes nothing."""
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
    """Texts as C strings, a tuple of them as an array of such."""
    if isinstance(argument, str):
        return argument.encode("utf-8")
    if isinstance(argument, tuple):
        return (ctypes.c_char_p * len(argument))(*(text.encode("utf-8") for text in argument))
    return argument
