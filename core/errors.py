"""Exception classes; all derive from `DgptQuantError`.

An error that a user can cause states the wrong value, the allowed values and the next step. The command line prints it
as `Error: ...` and `Hint: ...`, and exits with its `exit_status`.
"""


class DgptQuantError(Exception):
    """Base class: `message` states the value and what is allowed, `hint` the next step."""

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DgptQuantError, ValueError):
    """A wrong argument: an unknown quant type, a value out of range (exit status 2)."""

    exit_status = 2


class ModelNotFoundError(DgptQuantError):
    """A model or file that does not exist: not on disk, not in the cache, not on the Hub."""


class CheckpointError(DgptQuantError):
    """A checkpoint that is broken, incomplete, or not a GPT-2."""


class GGUFError(DgptQuantError):
    """A GGUF file that is broken, or not a GPT-2 that llama.cpp can run."""


class OutputError(DgptQuantError):
    """Output that cannot be written: the file exists, the disk is full, the folder is not writable."""


class ResultError(DgptQuantError):
    """A results file that is broken or too old, or results that cannot be combined."""


class RuntimeFailure(DgptQuantError):
    """llama.cpp rejected a file, a batch or a context, or the system refused a resource."""


class OverloadedError(RuntimeFailure):
    """Too many waiting requests: try again later."""


class WaitTimeoutError(RuntimeFailure, TimeoutError):
    """No result within the timeout."""
