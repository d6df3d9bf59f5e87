"""Parameters in messages: the library writes `target_size`, the command line prints --target-size.

A message of the library names a parameter in backticks, exactly as the keyword argument is spelled. Names that are no
option of the verb that runs stay as they are.
"""

import logging
import re
from collections.abc import Iterable

import typer
from typer.core import TyperArgument, TyperOption

_spellings: dict[str, str] = {}  # of the verb that runs


def use_flags_of(parameters: Iterable[object]) -> None:
    """Prints the parameters of this verb as flags from here on, also in warnings."""
    _spellings.clear()
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.name:
            _spellings[parameter.name] = max(parameter.opts, key=len)
        elif isinstance(parameter, TyperArgument) and parameter.name:
            _spellings[parameter.name] = parameter.metavar or parameter.name.upper()
    logger = logging.getLogger("dgpt2_quant")
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_Handler(logging.WARNING))


def in_flags(text: str) -> str:
    """`target_size` becomes --target-size."""
    return re.sub(r"`(\w+)`", lambda name: _spellings.get(name[1], name[0]), text)


class _Handler(logging.Handler):
    """Warnings on stderr, as Python prints them where nothing is configured, with flags."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(in_flags(record.getMessage()), err=True)
