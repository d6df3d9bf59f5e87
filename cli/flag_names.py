"""Turns the parameters in messages into flags: `target_size` into --target-size.

A message of the library names a parameter in backticks, spelled as the keyword argument. Names that are not options of
the running verb are unchanged.
"""

import logging
import re
from collections.abc import Iterable

import typer
from typer.core import TyperArgument, TyperOption

_spellings: dict[str, str] = {}  # of the running verb


def use_flags_of(parameters: Iterable[object]) -> None:
    """Sets the parameters that messages and warnings show as flags."""
    _spellings.clear()
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.name:
            _spellings[parameter.name] = max(parameter.opts, key=len)
        elif isinstance(parameter, TyperArgument) and parameter.name:
            _spellings[parameter.name] = (parameter.metavar or parameter.name.upper()).removesuffix("|-")
    logger = logging.getLogger("dgpt2_quant")
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_Handler(logging.WARNING))


def in_flags(text: str) -> str:
    """`target_size` becomes --target-size."""
    return re.sub(r"`(\w+)`", lambda name: _spellings.get(name[1], name[0]), text)


class _Handler(logging.Handler):
    """Prints warnings to stderr, with flags."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(in_flags(record.getMessage()), err=True)
