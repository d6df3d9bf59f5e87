"""Scores how continuations join prompts that end inside a word, after a blank, or after a newline.

usage: score_token_healing.py [--model M] [--type TYPE] [--cuts N] [--temperature T] [--boundaries N]

The prompts are the bundled evaluation text, cut at random places.

- right: the joins where no blank follows white space, and the word that spans the cut, or else the first word after it,
  is known: it occurs in the bundled texts, or is one token of three or more letters. The rules are token healing,
  `none` (the model continues the prompt) and `blank` (a blank comes first, always, as in Write With Transformer).
- boundaries: cuts inside words and at their ends. At `several` of them more than one token boundary is possible; the
  one of the text was the earliest of them, or the likeliest, which token healing takes.

The last line is JSON.
"""

import argparse
import json
import random
import re

from dgpt2_quant.core.text import load_text
from dgpt2_quant.runtime import Model

BEFORE = 400  # characters of each prompt
PLACES = {  # and the share of the cuts
    "inside a word": (r"(?<=\w)(?=\w)", 0.5),
    "after a blank": (r"(?<=\w )(?=\w)", 0.3),
    "after a newline": (r"(?<=\n)(?=\w)", 0.2),
}
WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--type", default="q8_0")
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--boundaries", type=int, default=1000)
    asked = parser.parse_args()
    text = load_text("evaluation").text
    words = {word.lower() for name in ("evaluation", "calibration") for word in WORD.findall(load_text(name).text)}
    prompts = {
        place: [before for before, _ in cut(text, pattern, round(asked.cuts * share))]
        for place, (pattern, share) in PLACES.items()
    }
    right: dict[str, dict[str, int]] = {}
    wrong: dict[str, list[str]] = {}
    with Model.from_pretrained(asked.model, type=asked.type) as model:
        tokens = [model.detokenize([token]) for token in range(model.real_vocabulary)]
        words |= {token[1:].lower() for token in tokens if len(token) > 3 and re.fullmatch(r" [^\W\d_]+", token)}
        for rule in ("none", "blank", "token_healing"):
            right[rule], wrong[rule] = dict.fromkeys(PLACES, 0), []
            for place, befores in prompts.items():
                for prompt in befores:
                    given = prompt.rstrip() if rule == "blank" else prompt
                    options = {"token_healing": rule == "token_healing", "temperature": asked.temperature, "seed": 1}
                    shown = "".join(model.stream(given, max_tokens=10, **options))
                    shown = f" {shown.lstrip(' ')}" if rule == "blank" else shown
                    if joins(prompt, shown, words):
                        right[rule][place] += 1
                    else:
                        wrong[rule].append(f"{prompt[-12:]}|{shown[:12]}")
        found = boundaries(model, cut(text, r"(?<=\w)(?=.)", asked.boundaries))
    of = {place: len(befores) for place, befores in prompts.items()}
    print(json.dumps({**vars(asked), "of": of, "right": right, "boundaries": found, "wrong": wrong}))


def cut(text: str, pattern: str, count: int) -> list[tuple[str, str]]:
    """The text before and after random places where the pattern matches."""
    ends = [match.start() for match in re.finditer(pattern, text) if match.start() > BEFORE]
    chosen = random.Random(1).sample(ends, count)
    return [(text[text.index(" ", end - BEFORE) + 1 : end], text[end : end + BEFORE]) for end in chosen]


def joins(prompt: str, shown: str, words: set[str]) -> bool:
    if prompt[-1].isspace() and shown.startswith(" "):
        return False
    word = next((word for word in WORD.finditer(prompt + shown) if word.end() >= len(prompt)), None)
    return word is not None and word[0].lower() in words


def boundaries(model: Model, places: list[tuple[str, str]]) -> dict[str, int]:
    found = {"cuts": len(places), "several": 0, "earliest": 0, "likeliest": 0}
    for prompt, after in places:
        sequence = model.new_sequence(prompt, token_healing=True, temperature=0, max_tokens=1)
        cuts = sequence.request.cuts
        if len(cuts) > 1:
            model.write([sequence]).run()
            end = true = 0
            for token in model.tokenize(prompt + after):
                end += len(model.token_bytes(token))
                if end < len(prompt.encode()):
                    true = end
            lengths = {cut.length: len(prompt.encode()) - len(cut.rest) for cut in cuts}
            found["several"] += 1
            found["earliest"] += lengths[cuts[0].length] == true
            found["likeliest"] += lengths[len(sequence.prompt)] == true
    return found


if __name__ == "__main__":
    main()
