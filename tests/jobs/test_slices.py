"""A slice's answers depend on the slice, the model and the settings: not on earlier slices, failures or threads."""

import json
from pathlib import Path
from typing import Any

from dgpt2_quant.jobs.lines import CustomIds, Line, numbered
from dgpt2_quant.jobs.slices import Answer, JobSettings, SliceRunner, line_seed
from dgpt2_quant.runtime import Model

from .conftest import FAILING, some_lines

SETTINGS = JobSettings(("tiny:F32",), parallel=4)


def lines_of(*given: dict[str, Any], first: int = 1) -> list[Line]:
    found = list(numbered((json.dumps(line).encode() for line in given), 1 << 20, CustomIds()))
    return [Line(line.number + first - 1, line.data) for line in found]


def run(model: Model, lines: list[Line], settings: JobSettings = SETTINGS) -> list[Answer]:
    runner = SliceRunner(model, settings)
    try:
        return runner(lines)
    finally:
        runner.close()


def test_answers_do_not_depend_on_earlier_slices_or_threads(tiny: Path, model: Model) -> None:
    slices = [lines_of(*some_lines(20, seed), first=20 * seed + 1) for seed in range(3)]
    prompts = [{"prompt": json.loads(line.data).get("prompt", ""), "max_tokens": 1} for line in slices[2]]
    with Model.load(tiny, threads=2) as other:
        runner = SliceRunner(other, SETTINGS)
        for lines in (slices[0], lines_of(*prompts), slices[1]):  # some of the prompts are in the cache
            runner(lines)
        assert runner(slices[2]) == run(model, slices[2])
        runner.close()


def test_answers_are_in_the_order_of_the_lines_and_as_long_as_requested(model: Model) -> None:
    given = [{"prompt": "the " * number, "max_tokens": 20 - number, "ignore_eos": True} for number in range(1, 12)]
    found = run(model, lines_of(*given))
    assert [json.loads(answer.text)["line"] for answer in found] == list(range(1, 12))
    assert [answer.tokens for answer in found] == [line["max_tokens"] for line in given]


def test_a_line_has_a_seed_by_its_number_unless_it_names_one(model: Model) -> None:
    def texts(*lines: Line, seed: int = 0) -> list[str]:
        settings = JobSettings(("tiny",), seed=seed, parallel=1)
        return [json.loads(answer.text)["text"] for answer in run(model, list(lines), settings)]

    plain, seeded = b'{"prompt": "the"}', b'{"prompt": "the", "seed": 5}'
    first, second, named = texts(Line(1, plain), Line(2, plain), Line(3, seeded))
    assert first != second
    assert texts(Line(2, plain)) == [second]  # alone, with parallel=1
    assert texts(Line(9, seeded), seed=3) == [named]
    assert texts(Line(1, plain), seed=3) != [first]
    assert [line_seed(0, 1), line_seed(0, 2), line_seed(1, 1)] == [1436992348, 1234656084, 2440825346]


def test_a_failing_text_is_an_error_of_its_line_and_harms_no_other(fragile: Path) -> None:
    good = [{"prompt": "the in", "max_tokens": 20}, {"prompt": "an", "max_tokens": 9}]
    bad: dict[str, Any] = {"prompt": [FAILING] * 200, "max_tokens": 5}
    with Model.load(fragile, threads=1) as model:
        runner = SliceRunner(model, SETTINGS)
        first = runner(lines_of(good[0], bad, good[1], bad))
        assert [answer.is_error for answer in first] == [False, True, False, True]
        assert json.loads(first[1].text)["error"]["code"] == "generation_failed"
        later = lines_of(*good * 4, bad, *good * 4, first=5)  # also in the slot of the bad one
        found = runner(later)
        assert found == run(model, later)
        assert [json.loads(answer.text)["line"] for answer in found if answer.is_error] == [13]
        runner.close()


def test_what_no_option_allows_is_an_error_of_its_line(model: Model) -> None:
    wrong: dict[str, tuple[Any, str]] = {
        "unknown_field": ({"prompt": "the", "max_tokns": 3}, "did you mean `max_tokens`?"),
        "missing_field": ({"max_tokens": 3}, "must have the field `prompt`"),
        "invalid_value": ({"prompt": "the", "temperature": "hot"}, "`temperature` must be 0 to 100, not 'hot'"),
        "context_length_exceeded": ({"prompt": [1] * 300}, "at most 256 tokens to fit the context, not 300"),
    }
    cases = [
        *wrong.items(),
        ("invalid_value", ({"task": "sing", "text": "la"}, "`task` must be generate, classify or score")),
        ("invalid_value", ({"task": "classify", "text": "the"}, "has no classification head")),
        ("invalid_value", ({"task": "score", "text": ""}, "must have 1-256 tokens, not 0")),
        ("invalid_value", ({"prompt": 5}, "`prompt` must be a text or a list, not 5")),
        ("invalid_value", ({"prompt": [1, "a"]}, "token")),
        ("invalid_value", ({"prompt": "a", "logit_bias": {"x": 1}}, "`logit_bias` must map token ids")),
        ("invalid_value", ({"prompt": "a", "seed": 1.5}, "`seed` must be an integer")),
    ]
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    cases += [
        ("invalid_json", ({"prompt": "a", "id": deep}, "nested at most 100 deep")),
        ("invalid_value", ({"prompt": "a", "dry_sequence_breakers": ["a" * 9999]}, "aaa...")),
    ]
    found = run(model, lines_of(*(line for _, (line, _) in cases)))
    for answer, (code, (_, words)) in zip(found, cases, strict=True):
        error = json.loads(answer.text)["error"]
        assert answer.is_error
        assert error["code"] == code
        assert words in error["message"]


def test_plain_lines_have_their_id_the_defaults_of_the_job_and_scores(model: Model) -> None:
    settings = JobSettings(("tiny",), options={"max_tokens": 3, "ignore_eos": True})
    given = [
        {"prompt": "the", "id": {"any": 1}},
        {"prompt": "the", "max_tokens": 2.0, "logprobs": 1, "temperature": None},
        {"task": "score", "text": "the in"},
    ]
    first, second, third = (json.loads(answer.text) for answer in run(model, lines_of(*given), settings))
    assert (first["line"], first["id"], first["tokens"], first["finish_reason"]) == (1, {"any": 1}, 3, "length")
    assert (second["tokens"], len(second["logprobs"]), len(second["logprobs"][0]["top"])) == (2, 2, 1)
    expected = model.score("the in").tolist()[1:]
    assert third["logprobs"] == [None, *expected]
    assert third["logprob"] == sum(expected)
