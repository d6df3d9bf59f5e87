"""A parser of GBNF grammars, which reports the line and column of an error.

It produces the same rules as `llama_grammar_parser` in llama.cpp's src/llama-grammar.cpp, with the same numbers, so
that the rules which grammar.py checks are those which llama.cpp runs. The contents of character sets are not kept.
"""

import re
from typing import NoReturn

from dgpt2_quant.core.errors import UsageError

_DEEPEST = 100  # parentheses: llama.cpp reads them by recursion
_MOST_REPEATED = 2000  # MAX_REPETITION_THRESHOLD
_LARGEST = 1 << 18  # elements of all rules

_NAME, _DIGITS = re.compile(r"[A-Za-z0-9-]+"), re.compile(r"[0-9]+")
_SPACE, _BLANK = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*"), re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_CHARACTER = re.compile(r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[tnr\\"\[\]-])|[^\\]', re.DOTALL)
_TOKEN = re.compile(r"!?<(?:\[[0-9]+\]|(?!\[)[^>]*)>")

ONE = -1  # an element that matches a character or a token; other elements are numbers of rules
Rule = list[list[int]]  # alternatives, each of elements


def refuse(why: str) -> NoReturn:
    raise UsageError(f"`grammar` cannot be used: {why}", "See llama.cpp's grammars/README.md for GBNF.")


class Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.numbers: dict[str, int] = {}
        self.rules: list[Rule | None] = []
        self.tokens: list[str] = []
        self._at = self._depth = self._size = 0

    def parse(self) -> list[Rule]:
        """All rules by their numbers. Raises `UsageError`."""
        self._skip(_SPACE)
        while self._at < len(self.text):
            self._rule()
        names = {number: name for name, number in self.numbers.items()}
        defined = {number for number, rule in enumerate(self.rules) if rule is not None}
        used = {element for rule in self.rules if rule for part in rule for element in part} - {ONE}
        if missing := sorted((used | set(range(len(self.rules)))) - defined):
            refuse(f"the rule {names.get(missing[0], '?')!r} is used and not defined")
        if not self.rules:
            refuse("it has no rules")
        if "root" not in self.numbers:
            refuse(f"it has no rule 'root', only {', '.join(map(repr, list(self.numbers)[:3]))}")
        return [rule for rule in self.rules if rule is not None]

    def name(self, number: int) -> str:
        """The name of a rule, or of the rule that a group or a repetition belongs to."""
        found = next((name for name, other in self.numbers.items() if other == number), "root")
        return found.rpartition("_")[0] or found  # names have no underscores

    def _rule(self) -> None:
        name = self._take(_NAME, "the name of a rule")
        self._skip(_BLANK)
        number = self._number(name)
        self._expect("::=")
        self._skip(_SPACE)
        self._alternatives(name, number, nested=False)
        if self._at < len(self.text) and self.text[self._at] not in "\r\n":
            self._fail("expected the end of the line")
        self._skip(_SPACE)

    def _alternatives(self, name: str, number: int, *, nested: bool) -> None:
        rule = [self._sequence(name, nested)]
        while self._here() == "|":
            self._at += 1
            self._skip(_SPACE)
            rule.append(self._sequence(name, nested))
        self._define(number, rule)

    def _sequence(self, name: str, nested: bool) -> list[int]:
        space = _SPACE if nested else _BLANK
        found: list[int] = []
        last, made = 0, 1  # where the item that a repetition repeats begins, and its number of rules
        while here := self._here():
            if here in "*+?{":
                least, most = self._times(space)
                made = self._repeat(name, found, last, made, least, most)
            elif here in '"[':
                last, made = len(found), 1
                if self._characters('"' if here == '"' else "]"):
                    found.append(ONE)
            elif here in "<!":
                last, made = len(found), 1
                self.tokens.append(self._take(_TOKEN, "a token, <name> or <[id]>").removeprefix("!"))
                found.append(ONE)
            elif here == ".":
                last, made = len(found), 1
                self._at += 1
                found.append(ONE)
            elif here == "(":
                last, before = len(found), len(self.numbers)
                found.append(self._group(name))
                made = max(1, len(self.numbers) - before)
            elif matched := _NAME.match(self.text, self._at):
                last, made = len(found), 1
                self._at = matched.end()
                found.append(self._number(matched[0]))
            else:
                break
            self._skip(space)
        return found

    def _characters(self, end: str) -> bool:
        """Reads a literal or a set of characters. Returns whether it has any."""
        start = self._at
        self._at += 1
        if end == "]" and self._here() == "^":
            self._at += 1
        any_there = False
        while self._here() != end:
            if not self._here():
                self._fail(f"expected a closing {end} for column {self._column(start)}")
            self._take(_CHARACTER, 'an escape (\\n \\r \\t \\\\ \\" \\[ \\] \\- \\xHH \\uHHHH \\UHHHHHHHH)')
            any_there = True
        self._at += 1
        return any_there

    def _group(self, name: str) -> int:
        self._depth += 1
        if self._depth > _DEEPEST:
            refuse(f"its parentheses may be at most {_DEEPEST} deep")
        self._at += 1
        self._skip(_SPACE)
        number = self._generated(name)
        self._alternatives(name, number, nested=True)
        self._expect(")")
        self._depth -= 1
        return number

    def _times(self, space: re.Pattern[str]) -> tuple[int, int | None]:
        """The least and the most times of a repetition."""
        start = self._at
        self._at += 1
        match self.text[start]:
            case "*":
                return 0, None
            case "+":
                return 1, None
            case "?":
                return 0, 1
        self._skip(space)
        least: int = self._count()
        most: int | None = least
        self._skip(space)
        if self._here() == ",":
            self._at += 1
            self._skip(space)
            most = self._count() if _DIGITS.match(self.text, self._at) else None
            self._skip(space)
        self._expect("}")
        if most is not None and most < least:
            self._fail("the least number is more than the most", start)
        if least > _MOST_REPEATED:
            self._fail(f"at most {_MOST_REPEATED} repetitions are possible", start)
        return least, None if most is None or most > _MOST_REPEATED else most

    def _count(self) -> int:
        digits = self._take(_DIGITS, "a number")
        return int(digits.lstrip("0")[:19] or "0")  # Python reads at most 4,300 digits

    def _repeat(self, name: str, found: list[int], last: int, made: int, least: int, most: int | None) -> int:
        """Replaces a repetition by rules, as the comment in llama.cpp's `parse_sequence` describes."""
        item = found[last:]
        if not item:
            self._fail("expected something to repeat before this")
        times = most or least or 1
        if made * times > _MOST_REPEATED:
            self._fail(f"nested repetitions may make at most {_MOST_REPEATED} rules")
        if least == 0:
            del found[last:]
        else:
            found += item * (least - 1)
            self._grow(len(item) * least)
        number = None
        for index in range(1 if most is None else most - least):
            before, number = number, self._generated(name)
            again = [number] if most is None else [] if index == 0 or before is None else [before]
            self._define(number, [[*item, *again], []])
        if number is not None:
            found.append(number)
        return made * times

    def _number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    def _generated(self, name: str) -> int:
        number = len(self.numbers)
        self.numbers[f"{name}_{number}"] = number
        return number

    def _define(self, number: int, rule: Rule) -> None:
        self.rules.extend([None] * (number + 1 - len(self.rules)))
        self.rules[number] = rule
        self._grow(1 + sum(map(len, rule)))

    def _grow(self, count: int) -> None:
        self._size += count
        if self._size > _LARGEST:
            refuse(f"its repetitions may make at most {_LARGEST} elements")

    def _here(self) -> str:
        return self.text[self._at : self._at + 1]

    def _skip(self, space: re.Pattern[str]) -> None:
        if matched := space.match(self.text, self._at):
            self._at = matched.end()

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        matched = pattern.match(self.text, self._at)
        if matched is None:
            self._fail(f"expected {what}")
        self._at = matched.end()
        return matched[0]

    def _expect(self, text: str) -> None:
        if not self.text.startswith(text, self._at):
            self._fail(f"expected {text}")
        self._at += len(text)

    def _column(self, at: int) -> int:
        return at - self.text.rfind("\n", 0, at)

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        line = self.text.count("\n", 0, at) + 1
        seen = repr(self.text[at : at + 20]) if at < len(self.text) else "the end"
        refuse(f"line {line}, column {self._column(at)}: {what}, found {seen}")
