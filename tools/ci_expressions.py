"""GitHub's `${{ }}` expressions, as far as this repository's workflows use them.

Contexts with dotted names, 'strings', numbers, `!`, `==`, `!=`, `&&`, `||`, parentheses and the functions that the
caller gives. What it does not know it refuses: a workflow must not mean one thing here and another on GitHub.
The rules are those of "Evaluate expressions in workflows and actions" in GitHub's documentation.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Functions = Mapping[str, Callable[..., Any]]

_TOKEN = re.compile(
    r"\s*(?:(?P<string>'(?:[^']|'')*')|(?P<number>-?\d+(?:\.\d+)?)|(?P<name>[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*)"
    r"|(?P<sign>==|!=|&&|\|\||[!(),]))"
)
_IN_TEXT = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)


class ExpressionError(Exception):
    """An expression that is wrong, or that this tool does not know."""


def fill(value: Any, contexts: Mapping[str, Any], functions: Functions) -> Any:
    """A value of a workflow file with its expressions evaluated, lists and mappings through and through.

    A text that is one expression takes its type; in a longer text they become text.
    """
    if isinstance(value, dict):
        return {key: fill(item, contexts, functions) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, contexts, functions) for item in value]
    if not isinstance(value, str):
        return value
    if whole := _IN_TEXT.fullmatch(value.strip()):
        return evaluate(whole[1], contexts, functions)
    return _IN_TEXT.sub(lambda found: to_text(evaluate(found[1], contexts, functions)), value)


def to_text(value: Any) -> str:
    """As an expression appears in a text or in an environment variable."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        raise ExpressionError(f"a list or an object in a text: {value}; use toJSON")
    return str(value)


def evaluate(text: str, contexts: Mapping[str, Any], functions: Functions) -> Any:
    """The value of one expression, without its `${{ }}`."""
    tokens = []
    position = 0
    while text[position:].strip():
        found = _TOKEN.match(text, position)
        if not found:
            raise ExpressionError(f"{text.strip()!r} has something unknown at {text[position:].strip()!r}")
        tokens.append((found.lastgroup or "", found[found.lastgroup or 0]))
        position = found.end()
    parser = _Parser(text.strip(), tokens, contexts, functions)
    value = parser.disjunction()
    if parser.tokens:
        raise ExpressionError(f"{text.strip()!r} goes on after its end with {parser.tokens[0][1]!r}")
    return value


class _Parser:
    """By recursive descent, from `||` (binds least) down to a value. Both sides are evaluated: nothing has effects."""

    def __init__(
        self, text: str, tokens: list[tuple[str, str]], contexts: Mapping[str, Any], functions: Functions
    ) -> None:
        self.text, self.tokens, self.contexts, self.functions = text, tokens, contexts, functions

    def disjunction(self) -> Any:
        value = self._conjunction()
        while self._take("||"):
            other = self._conjunction()
            value = value or other
        return value

    def _conjunction(self) -> Any:
        value = self._comparison()
        while self._take("&&"):
            other = self._comparison()
            value = value and other
        return value

    def _comparison(self) -> Any:
        value = self._negation()
        while sign := self._take("==", "!="):
            value = (_folded(value) == _folded(self._negation())) == (sign == "==")
        return value

    def _negation(self) -> Any:
        if self._take("!"):
            return not self._negation()
        if self._take("("):
            value = self.disjunction()
            self._expect(")")
            return value
        kind, token = self.tokens.pop(0) if self.tokens else ("", "")
        if kind == "string":
            return token[1:-1].replace("''", "'")
        if kind == "number":
            return float(token)
        if kind != "name":
            raise ExpressionError(f"{self.text!r}: a value was expected, not {token!r}")
        return self._call(token) if self._take("(") else self._look_up(token)

    def _call(self, name: str) -> Any:
        if name not in self.functions:
            raise ExpressionError(f"{self.text!r}: the function {name} is not known here")
        arguments = []
        while not self._take(")"):
            arguments.append(self.disjunction())
            if not self._take(","):
                self._expect(")")
                break
        return self.functions[name](*arguments)

    def _look_up(self, name: str) -> Any:
        if name in ("true", "false", "null"):
            return {"true": True, "false": False, "null": None}[name]
        first, *rest = name.split(".")
        if first not in self.contexts:
            raise ExpressionError(f"{self.text!r}: there is no context {first} here")
        value = self.contexts[first]
        for key in rest:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def _take(self, *signs: str) -> str | None:
        if self.tokens and self.tokens[0] in [("sign", sign) for sign in signs]:
            return self.tokens.pop(0)[1]
        return None

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise ExpressionError(f"{self.text!r}: {sign!r} is missing")


def _folded(value: Any) -> Any:
    """What `==` compares: text without regard to case, and nothing equal to the empty text."""
    if value is None:
        return ""
    return value.casefold() if isinstance(value, str) else value
