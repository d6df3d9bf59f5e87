"""The one error base of the project.

Every error that a user can cause says which value was wrong, what was allowed, and what to try next. The command
line turns it into `Error: ...` and `Hint: ...`, and into an exit status.
"""


class DgptQuantError(Exception):
    """A clear error: `message` names the value and what was allowed, `hint` is the next thing to try."""

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DgptQuantError, ValueError):
    """The call itself is wrong: an unknown type, a value out of range (exit status 2)."""

    exit_status = 2


class ModelNotFoundError(DgptQuantError):
    """No checkpoint or file of that name: not here, not in the cache, not on the Hub."""


class CheckpointError(DgptQuantError):
    """A checkpoint that is broken, incomplete, or not a GPT-2."""


class GGUFError(DgptQuantError):
    """A GGUF file that is broken, or that is not a GPT-2 that llama.cpp can run."""


class OutputError(DgptQuantError):
    """A result that can not be written: it exists already, the disk is full, the folder is not writable."""


class ResultError(DgptQuantError):
    """A file of measured results that is broken or too old, or results that do not belong together."""


class RuntimeFailure(DgptQuantError):
    """llama.cpp refused a file, a batch or a context."""


class OverloadedError(RuntimeFailure):
    """More requests than may wait: try again later."""


class WaitTimeoutError(RuntimeFailure, TimeoutError):
    """Nothing came within the time that the caller would wait."""
