"""Grammars: texts fit them with any settings, how they end, and which grammars are refused."""

import json
import re
from typing import Any

import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime import Completion, Model
from dgpt2_quant.runtime.native.bindings import bindings
from dgpt2_quant.runtime.sampling.candidates import log_total
from dgpt2_quant.runtime.sampling.grammar import check_grammar
from hypothesis import given, settings
from hypothesis import strategies as st

PROMPT = "Once upon a time"
WORDS = ["castle", "king", "kingdom", "no, never", "語"]
OF_WORDS = "root ::= " + " | ".join(f'" {word}"' for word in WORDS)
OF_JSON = r"""
root   ::= "{" pair ("," pair){0,2} "}"
pair   ::= string ":" value
value  ::= string | number | "[" (value ("," value){0,2})? "]" | "true" | "null"
string ::= "\"" [a-z ]{1,8} "\""
number ::= "-"? ("0" | [1-9] [0-9]{0,3})
"""
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {},
    {"top_k": 0},
    {"top_k": 0, "top_p": 1, "min_p": 0, "temperature": 3},
    {"top_k": 0, "typical_p": 0.9},
    {"mirostat": 2},
    {"repeat_penalty": 1.3, "dry_multiplier": 0.8},
]


def written(model: Model, seed: int = 1, max_tokens: int = 120, **options: Any) -> Completion:
    ((completion,),) = model.generate(PROMPT, seed=seed, max_tokens=max_tokens, **options)
    return completion


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_a_choice_of_words(storybook: Model, options: dict[str, Any]) -> None:
    for seed in range(5):
        completion = written(storybook, seed, grammar=OF_WORDS, **options)
        assert completion.text.removeprefix(" ") in WORDS
        assert completion.finish_reason == "eos"


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_json(storybook: Model, options: dict[str, Any]) -> None:
    completion = written(storybook, grammar=OF_JSON, **options)
    assert 1 <= len(json.loads(completion.text)) <= 3
    assert completion.finish_reason == "eos"


def test_greedy_takes_the_most_likely_token_that_fits(storybook: Model) -> None:
    tokens = storybook.tokenize(PROMPT)
    row = storybook.logits(tokens, len(tokens) - 1)[0]
    fitting = [t for t in range(storybook.vocabulary) if re.fullmatch(rb" [xyz][a-z]*", storybook.token_bytes(t))]
    completion = written(storybook, grammar='root ::= " " [xyz] [a-z]* "."', temperature=0, max_tokens=1, logprobs=1)
    assert completion.token_ids == (max(fitting, key=lambda token: row[token]),)
    # the log-probabilities are the model's, not the grammar's
    assert completion.logprobs is not None
    assert completion.logprobs[0].logprob == pytest.approx(row[completion.token_ids[0]] - log_total(row), abs=0.02)


def test_max_tokens_cuts_it(storybook: Model) -> None:
    completion = written(storybook, grammar="root ::= [a-z ]+", max_tokens=9)
    assert re.fullmatch("[a-z ]+", completion.text)
    assert (completion.tokens, completion.finish_reason) == (9, "length")


def test_a_stop_string_in_it(storybook: Model) -> None:
    completion = written(storybook, grammar='root ::= " the king and" " the queen"', stop=" and")
    assert (completion.text, completion.finish_reason) == (" the king", "stop")


def test_an_empty_text_may_be_all(storybook: Model) -> None:
    assert written(storybook, grammar='root ::= ""') == Completion("", 1, "eos")


def test_where_no_token_is_allowed_the_text_ends(storybook: Model) -> None:
    completion = written(storybook, grammar='root ::= " yes"', min_tokens=50)  # and no end-of-text token either
    assert (completion.text, completion.finish_reason) == (" yes", "stop")


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_biases_that_forbid_every_fitting_token_end_the_text(storybook: Model, options: dict[str, Any]) -> None:
    biases = {token: float("-inf") for token in range(storybook.vocabulary) if b"a" in storybook.token_bytes(token)}
    completion = written(storybook, grammar='root ::= "a" "b"', logit_bias=biases, **options)
    assert completion == Completion("", 0, "stop")


def test_each_sequence_has_its_own_state(storybook: Model) -> None:
    (completions,) = storybook.generate(PROMPT, num_return_sequences=6, seed=1, grammar=OF_JSON, parallel=3)
    assert all(json.loads(completion.text) for completion in completions)
    assert len({completion.text for completion in completions}) == 6


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('root ::= "a', 'line 1, column 12: expected a closing " for column 10, found the end'),
        ('word ::= "a"', "no rule 'root', only 'word'"),
        ("root ::= x", "the rule 'x' is used and not defined"),
        ('root ::= root "a"', r"'root' may begin with itself \(left recursion\)"),
        ('root ::= a\na ::= b | "x"\nb ::= a "c"', r"'.' may begin with itself \(left recursion\)"),
        ('root ::= ("a"?)?*', r"'root' may begin with itself \(left recursion\)"),
        ('root ::= x*\nx ::= ""', r"'root' may begin with itself \(left recursion\)"),
        ('root ::= ("")*', None),
        ('root ::= ""*', "expected something to repeat before this"),
        ("x", "line 1, column 2: expected ::=, found the end"),
        ("  ", "it has no rules"),
        ("# only a remark", "it has no rules"),
        ("root ::= [", "expected a closing ]"),
        ('root ::= "a"{3,2', "expected }, found the end"),
        ('root ::= "a"\n  | "b"', "line 2, column 3: expected the name of a rule, found '| \"b\"'"),
        ('root ::= ("a"', r"expected \), found the end"),
        ('root ::= "a")', r"expected the end of the line, found '\)'"),
        (r'root ::= "\q"', r"expected an escape"),
        ("root ::= my_rule", "expected the end of the line, found '_rule'"),
        ('root ::= "a"{2001}', "at most 2000 repetitions"),
        ('root ::= ("a"{0,50}){0,50}', "nested repetitions"),
        ("root ::= <[8189]>", r"the token <\[8189\]>, which this vocabulary lacks"),
        ("root ::= <no such token>", "the token <no such token>"),
    ],
)
def test_errors_name_the_place_in_the_grammar(
    storybook: Model, grammar: str, message: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=message):
        storybook.stream(PROMPT, grammar=grammar)
    assert capfd.readouterr().err == ""
    assert written(storybook, temperature=0, max_tokens=4).text == ", and the King"  # and it still works


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (None, "`grammar` must be a text in GBNF, not None"),
        (b'root ::= "a"', "`grammar` must be a text in GBNF, not b'root"),
        ('root ::= "a\0"', "a zero byte"),
        ('root ::= "' + "語" * 22_000 + '"', "at most 65536 bytes, not 66011"),
        ("root ::= " + 101 * "(" + '"a"' + 101 * ")", "at most 100 deep"),
        ('root ::= "\ud83d"', "grammar"),
        ("# " + 200 * ")" + "\nroot ::= " + 101 * "(" + '"a"' + 101 * ")", "at most 100 deep"),
        (r'root ::= "\")" [\])] ")" ' + 101 * "(" + '"a"' + 101 * ")", "at most 100 deep"),
        ('root ::= "a"{3,2}', "the least number is more than the most"),
        ('root ::= ("a"{ 0003, # at the most\n 02 })', "more than the most"),
        ('root ::= "a"{' + 5000 * "9" + ",2}", "more than the most"),
        # llama.cpp's own search for left recursion misses it, and its memory grows without end
        ('root ::= a root "x" | "y"\na ::= b\nb ::= "b"?', "'root' may begin with itself, after parts that"),
        # it would search for minutes, or for ever
        ("root ::= a0\n" + "".join(f"a{n} ::= a{n + 1} | a{n + 1}\n" for n in range(60)) + 'a60 ::= "a"', "ways"),
        ('root ::= (("a"?){40}){40}', "at most 128 optional parts in a row, not 1600"),
        ("root ::= " + 300 * '"a"? ', "not 300"),
        ("root ::= " + 7000 * '"a"{2000}', "at most 262144 elements"),
    ],
)
def test_grammars_that_would_crash_or_stall_llama_cpp_are_refused(storybook: Model, grammar: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        storybook.stream(PROMPT, grammar=grammar)


def test_a_long_chain_of_rules_is_no_recursion() -> None:
    """Of ours neither: Python's is bounded."""
    check_grammar("root ::= a0\n" + "".join(f"a{n} ::= a{n + 1}\n" for n in range(4000)) + 'a4000 ::= "a"')


PARTS = st.sampled_from(
    ['"a"', '""', "[b-d]", ".", "root", "x", "y", "(", ")", "|", "*", "+", "?", "{2}", "{0,3}", "\n"]
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(PARTS, max_size=9), st.lists(PARTS, max_size=6), st.lists(PARTS, max_size=4))
def test_accepts_what_llama_cpp_accepts(storybook: Model, root: list[str], x: list[str], y: list[str]) -> None:
    grammar = "\n".join(f"{name} ::= {' '.join(parts)}" for name, parts in (("root", root), ("x", x), ("y", y)))
    lib, native = bindings(), storybook._open()
    try:
        check_grammar(grammar)
    except UsageError as error:
        if "after parts that may be empty" not in error.message:  # which llama.cpp does not survive
            assert not lib.llama_sampler_init_grammar(native.vocab, grammar.encode(), b"root")
    else:
        sampler = lib.llama_sampler_init_grammar(native.vocab, grammar.encode(), b"root")
        assert sampler
        lib.llama_sampler_free(sampler)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        ('root ::= "' + 101 * "(" + '"', 101 * "("),
        ('root ::= "a" # ' + 150 * "(", "a"),
        ('root ::= [({3,2}]{4} "{3,2}"', None),
        ('root ::= "a"{2,3} "\\"{3,2}"', None),
        ('root ::= "a"{2,' + 15 * "9" + '} "b"', None),
    ],
)
def test_parentheses_in_literals_and_comments_do_not_count(storybook: Model, grammar: str, text: str | None) -> None:
    found = written(storybook, grammar=grammar).text
    assert found
    assert text in (None, found)


def test_parentheses_as_deep_as_they_may_be(storybook: Model) -> None:
    grammar = "root ::= " + 100 * "(" + '"yes"' + 100 * ")"
    assert written(storybook, grammar=grammar).text == "yes"
