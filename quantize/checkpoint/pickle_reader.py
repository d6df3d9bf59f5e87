"""Reads a pickle that holds containers, numbers, texts and tensors, and refuses all others.

Python's unpickler calls what a pickle names. This one calls nothing: it interprets the opcodes that containers need,
and a name means something only if it is in the caller's table. Opcodes: Lib/pickletools.py; format: PEP 307, PEP 3154.
"""

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from dgpt2_quant.core.errors import CheckpointError

_LARGEST_READ = 1 << 22  # bytes of one text or number, and of one line
LARGEST_PICKLE = 100_000_000  # bytes, as of a safetensors header
_LARGEST_NUMBER = 1024  # bits
_MOST_OPCODES = 2_000_000  # the weights and the optimizer state of GPT-2 XL take 50,000
_VALUES = {
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT"),
    *("BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class RefusedPickleError(CheckpointError):
    """The pickle asks for more than containers, numbers, texts and tensors."""


class MalformedPickleError(CheckpointError):
    """Bytes that are not a whole pickle."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names, such as `torch.FloatStorage`. Nothing is imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Bounded:
    """A file whose reads are limited, each and in total, to what a pickle of tensors needs."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = file.tell() + LARGEST_PICKLE

    def read(self, count: int) -> bytes:
        if count > _LARGEST_READ:
            raise MalformedPickleError(f"a text or number of {count} bytes")
        if self._file.tell() > self._end:
            raise MalformedPickleError(f"more than {LARGEST_PICKLE} bytes")
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline(_LARGEST_READ)

    def tell(self) -> int:
        return self._file.tell()


class _Reader:
    """`functions` maps names to what stands for a call of them; `values` are names that may appear uncalled.

    `persistent` is given what a persistent id refers to.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        values: Callable[[str], bool],
        persistent: Callable[[Any], Any],
    ) -> None:
        self._functions, self._values, self._persistent = functions, values, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, file: BinaryIO) -> Any:
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(_Bounded(file))):  # type: ignore[arg-type]
                if count > _MOST_OPCODES:
                    raise MalformedPickleError(f"more than {_MOST_OPCODES} opcodes")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except CheckpointError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise MalformedPickleError(str(error) or type(error).__name__) from error
        raise MalformedPickleError("it ends too early")

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        if opcode in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > _LARGEST_NUMBER:
                raise MalformedPickleError(f"a number of {argument.bit_length()} bits")
            stack.append(_CONSTANTS.get(opcode, argument))
        elif opcode in _TUPLES:
            self._replace(_TUPLES[opcode], tuple)
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif not self._container(opcode) and not self._reference(opcode, argument):
            raise RefusedPickleError(f"the opcode {opcode}")

    def _container(self, opcode: str) -> bool:
        """Whether the opcode is one of lists, tuples, dictionaries and sets."""
        stack = self._stack
        match opcode:
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "MARK":
                stack.append(_MARK)
            case "LIST":
                stack.append(self._marked())
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "DICT":
                stack.append(dict(_pairs(self._marked())))
            case "APPEND":
                item = stack.pop()
                self._top(list).append(item)
            case "APPENDS":
                items = self._marked()
                self._top(list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._top(dict).update(_pairs([key, value]))
            case "SETITEMS":
                items = self._marked()
                self._top(dict).update(_pairs(items))
            case "ADDITEMS":
                items = self._marked()
                self._top(set).update(map(check_key, items))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._marked()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME":
                pass
            case _:
                return False
        return True

    def _reference(self, opcode: str, argument: Any) -> bool:
        """Whether the opcode is one of names, calls and persistent ids."""
        stack = self._stack
        match opcode:
            case "GLOBAL":
                module, _, name = argument.partition(" ")
                stack.append(self._named(Name(module, name)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self._named(Name(str(module)[:200], str(name)[:200])))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, Name) or str(function) not in self._functions:
                    raise RefusedPickleError(f"a call of {shown(function)}")
                if not isinstance(arguments, tuple):
                    raise MalformedPickleError(f"{function} is called with {shown(arguments)}")
                stack.append(self._functions[str(function)](*arguments))
            case "BUILD":  # of an OrderedDict, to which PyTorch adds `_metadata`
                state = stack.pop()
                if not isinstance(stack[-1], dict) or not isinstance(state, dict):
                    raise RefusedPickleError(f"attributes of {shown(stack[-1])}")
            case "BINPERSID":
                stack.append(self._persistent(stack.pop()))
            case "INST" | "OBJ" | "NEWOBJ" | "NEWOBJ_EX":
                named = Name(*argument.split(" ", 1)) if opcode == "INST" else _first_name(stack)
                raise RefusedPickleError(f"an object of {shown(named)}")
            case _:
                return False
        return True

    def _named(self, name: Name) -> Name:
        if str(name) in self._functions or self._values(str(name)):
            return name
        raise RefusedPickleError(str(name))

    def _replace(self, count: int, kind: type) -> None:
        if len(self._stack) < count:
            raise MalformedPickleError("a tuple of more items than the stack has")
        self._stack[-count:] = [kind(self._stack[-count:])]

    def _marked(self) -> list[Any]:
        """Takes what was pushed since the last mark."""
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise MalformedPickleError("no mark")

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise MalformedPickleError(f"items for {shown(self._stack[-1])}")
        return self._stack[-1]


def read_pickle(
    file: BinaryIO,
    functions: Mapping[str, Callable[..., Any]],
    values: Callable[[str], bool],
    persistent: Callable[[Any], Any],
) -> Any:
    """The object of the pickle that begins at the file's position; the file is left after it.

    `functions` maps a name such as `torch._utils._rebuild_tensor_v2` to what is called in its place, `values` says
    which names may appear uncalled, `persistent` resolves persistent ids. Raises `RefusedPickleError`, whose
    message is the name of what was asked for, and `MalformedPickleError`.
    """
    return _Reader(functions, values, persistent).read(file)


def check_key(key: Any) -> Any:
    """The key itself, if it is a text or a number: the hash of nested tuples can take exponential time."""
    if not isinstance(key, str | int | float | bytes | None):
        raise MalformedPickleError(f"the key {shown(key)}")
    return key


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(map(check_key, items[::2]), items[1::2], strict=True)


def _first_name(stack: list[Any]) -> Any:
    return next((item for item in reversed(stack) if isinstance(item, Name)), "an unnamed class")


def shown(what: Any) -> str:
    """For messages; the text of nested containers can take exponential memory."""
    return str(what)[:200] if isinstance(what, Name | str) else f"a {type(what).__name__}"
