"""Checks of a GBNF grammar before llama.cpp gets it.

llama.cpp writes the errors of a grammar to stderr or its log. Some grammars take it exponential time, and some end the
process: those that lead back to the same rule through parts that may be empty, which its search for left recursion
misses.
"""

from collections.abc import Sequence
from functools import lru_cache

from .gbnf_parser import ONE, Parser, Rule, refuse

_LONGEST = 1 << 16  # bytes
_MOST_PATHS = 1 << 20  # that llama.cpp follows in its search for left recursion
_MOST_RETURNS = 4  # from a recursion after which the rest may be empty: they multiply at each level
_MOST_OPTIONAL = 128  # parts in a row that may be empty: the time for a token grows with their number's cube


@lru_cache(maxsize=8)
def check_grammar(text: str) -> tuple[str, ...]:
    """The tokens that it names, as `<name>` or `<[id]>`. Raises `UsageError` if llama.cpp cannot run it."""
    if (size := len(text.encode("utf-8"))) > _LONGEST:
        refuse(f"it may have at most {_LONGEST} bytes, not {size}")
    parser = Parser(text)
    rules = parser.parse()
    _check_begins(parser, rules)
    empty = _empty(rules)
    _check_growth(parser, rules, empty)
    _check_returns(parser, rules, empty)
    return tuple(parser.tokens)


def _check_begins(parser: Parser, rules: Sequence[Rule]) -> None:
    """Left recursion, as `llama_grammar_detect_left_recursion` finds it, which revisits a rule on every path to it."""
    graph = [[rule for rule, _ in found] for found in _first(rules, [[] in rule for rule in rules])]
    paths = [0] * len(rules)
    for group in _strongly_connected(graph):
        rule = group[0]
        if len(group) > 1 or rule in graph[rule]:
            refuse(f"the rule {parser.name(rule)!r} may begin with itself (left recursion)")
        paths[rule] = 1 + sum(paths[other] for other in graph[rule])
        if paths[rule] > _MOST_PATHS:
            refuse(f"the rule {parser.name(rule)!r} begins in more than {_MOST_PATHS} ways")


def _check_growth(parser: Parser, rules: Sequence[Rule], empty: Sequence[bool]) -> None:
    """The number of places in the grammar where a text may be, which llama.cpp keeps for each token."""
    first = _first(rules, empty)
    places = [0] * len(rules)
    for group in _strongly_connected([[rule for rule, _ in found] for found in first]):
        for rule in group:
            if any(grows and other in group for other, grows in first[rule]):
                refuse(f"the rule {parser.name(rule)!r} may begin with itself, after parts that may be empty")
        for rule in group:
            for part in rules[rule]:
                count = 0
                for element in part:
                    count += 1 if element == ONE else max(1, places[element])
                    if element == ONE or not empty[element]:
                        break
                places[rule] = max(places[rule], count)
            if places[rule] > _MOST_OPTIONAL:
                refuse(
                    f"the rule {parser.name(rule)!r} may have at most {_MOST_OPTIONAL} optional parts in a row,"
                    f" not {places[rule]}"
                )


def _check_returns(parser: Parser, rules: Sequence[Rule], empty: Sequence[bool]) -> None:
    """The ways to continue after a recursion: `"if" x ("else" x)?` has one, `"(" x ")"` none, `x{0,9}` nine."""
    graph = [[element for part in rule for element in part if element != ONE] for rule in rules]
    for group in _strongly_connected(graph):
        members = set(group)
        returns = 0
        for rule in group:
            for part in rules[rule]:
                ends = len(part)  # the parts from here on may be empty
                while ends and part[ends - 1] != ONE and empty[part[ends - 1]]:
                    ends -= 1
                returns += sum(element in members for element in part[max(ends - 1, 0) : -1])
        if returns > _MOST_RETURNS:
            refuse(
                f"the rule {parser.name(min(group))!r} may lead back to itself with an optional rest at most"
                f" {_MOST_RETURNS} times, not {returns}"
            )


def _empty(rules: Sequence[Rule]) -> list[bool]:
    """Whether each rule matches the empty text."""
    users: list[list[int]] = [[] for _ in rules]
    for number, rule in enumerate(rules):
        for element in {element for part in rule for element in part} - {ONE}:
            users[element].append(number)
    found = [False] * len(rules)
    waiting = list(range(len(rules)))
    while waiting:
        number = waiting.pop()
        if not found[number] and any(all(e != ONE and found[e] for e in part) for part in rules[number]):
            found[number] = True
            waiting += users[number]
    return found


def _first(rules: Sequence[Rule], empty: Sequence[bool]) -> list[list[tuple[int, bool]]]:
    """For each rule, the rules that its alternatives may begin with, and whether anything follows them there."""
    found: list[list[tuple[int, bool]]] = []
    for rule in rules:
        begins = []
        for part in rule:
            for index, element in enumerate(part):
                if element == ONE:
                    break
                begins.append((element, index + 1 < len(part)))
                if not empty[element]:
                    break
        found.append(begins)
    return found


def _strongly_connected(graph: Sequence[Sequence[int]]) -> list[list[int]]:
    """Strongly connected groups of nodes, each after the groups that it leads to (Tarjan 1972)."""
    groups: list[list[int]] = []
    index = [-1] * len(graph)  # the order in which nodes are seen
    lowest = [0] * len(graph)  # the first that a node leads to; len(graph) once its group is known
    stack: list[int] = []
    seen = 0
    for root in range(len(graph)):
        way = [(root, 0)] if index[root] < 0 else []
        while way:
            node, at = way.pop()
            if at == 0:
                index[node] = lowest[node] = seen
                seen += 1
                stack.append(node)
            else:
                lowest[node] = min(lowest[node], lowest[graph[node][at - 1]])
            if at < len(graph[node]):
                way.append((node, at + 1))
                if index[graph[node][at]] < 0:
                    way.append((graph[node][at], 0))
            elif lowest[node] == index[node]:
                group: list[int] = []
                while not group or group[-1] != node:
                    group.append(stack.pop())
                    lowest[group[-1]] = len(graph)
                groups.append(group)
    return groups
