"""`pipeline("text-generation")` for those who come from Transformers: the same calls and output shapes, on llama.cpp.

from dgpt2_quant.runtime import pipeline, set_seed

generator = pipeline("text-generation", model="distilgpt2")
set_seed(42)
generator("Hello, I'm a language model", max_length=20, num_return_sequences=5)

Names, defaults and meanings are those of TextGenerationPipeline and GenerationConfig in Transformers 5. The texts for a
seed are others than PyTorch's: another generator of random numbers, and quantized weights.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dgpt2_quant.quantize.errors import UsageError

from .closing import Closing
from .draft import Draft
from .model import PARALLEL, Model
from .request import check_count

_random = random.Random()
_DEFAULTS: Mapping[str, Any] = {
    "max_new_tokens": 256,
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "num_return_sequences": 1,
    "return_full_text": True,
    "return_tensors": False,
    "prefix": "",
    "handle_long_generation": None,
    "stop_strings": (),
    "batch_size": PARALLEL,
    "prompt_lookup_num_tokens": None,
    "max_length": None,
    "min_length": None,
    "min_new_tokens": None,
}
_OTHER_NAMES: Mapping[str, str | None] = {"stop_sequence": "stop_strings", "return_text": None, "pad_token_id": None}
# for the others None is a value of its own: off
_NONE_IS_DEFAULT = (
    "num_return_sequences",
    "prefix",
    "batch_size",
    "do_sample",
    "return_full_text",
    "return_tensors",
    "max_new_tokens",
)
# options that are often given, and their values that change nothing here
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "use_cache": (None, True),
    "clean_up_tokenization_spaces": (None, False),
    "truncation": (None, False),
}


def set_seed(seed: int) -> None:
    """Makes the pipelines' next calls reproducible."""
    _random.seed(seed)


def pipeline(
    task: str = "text-generation",
    model: str | Path | Model = "distilbert/distilgpt2",
    *,
    type: str | None = None,
    revision: str | None = None,
    threads: int | Literal["auto"] = "auto",
    device: int | str | None = None,
    **options: Any,
) -> "TextGenerationPipeline":
    """A generator of text. `model` is what the command line takes, a .gguf file, or a loaded `Model`.

    A checkpoint is converted first, to `type` (default q4_k_m), into the cache. `options` become the defaults of its
    calls. Raises `UsageError` for another task or device, or an option that is not known.
    """
    if task != "text-generation":
        raise UsageError(f"the task is {task!r}; a GPT-2 is for text-generation")
    if device not in (None, -1, "cpu"):
        raise UsageError(f"the device is {device!r}; this runs on the CPU", "Leave it out.")
    if isinstance(model, Model):
        return TextGenerationPipeline(model, **options)
    from dgpt2_quant.quantize.store import model_file

    _settings(options, {})  # a wrong one is told before a model is converted
    _, path = model_file(str(model), type=type, revision=revision)
    return TextGenerationPipeline(Model.load(path, threads=threads), **options)


class TextGenerationPipeline(Closing):
    """Call it with a text or several; `model` is the `Model` behind it. `options` are defaults for the calls."""

    def __init__(self, model: Model, **options: Any) -> None:
        _settings(options, {})
        self.model = model
        self._options = options

    def __call__(self, text_inputs: str | Sequence[str], **options: Any) -> Any:
        """`[{"generated_text": ...}, ...]` for a text, one for each sequence; a list of such lists for a list.

        `max_new_tokens` counts new tokens, `max_length` the prompt's too (the former wins), and so do
        `min_new_tokens` and `min_length`. `do_sample=False` takes the likeliest token. `return_full_text=False` leaves
        the prompt away; `return_tensors=True` gives `generated_token_ids` instead of texts. Stop strings are cut off.
        Raises `UsageError` for an option that is not known here, or a value that can not be.
        """
        settings = _settings(options, self._options)
        if not isinstance(text_inputs, Iterable):
            raise UsageError(f"{text_inputs!r} is no text", "Give a text, or a list of texts.")
        texts = [text_inputs] if isinstance(text_inputs, str) else list(text_inputs)
        if not all(isinstance(text, str) for text in texts):
            raise UsageError("a GPT-2 continues texts; it has no chats", "Give a text, or a list of texts.")
        count = check_count("num_return_sequences", settings["num_return_sequences"], 1)
        if count > 1 and not settings["do_sample"]:
            raise UsageError(f"num_return_sequences is {count} without sampling: they would all be the same text")
        drafts = [self._draft(text, settings) for text in texts for _ in range(count)]
        completions = self.model.write(drafts, parallel=settings["batch_size"]).run()
        records: list[dict[str, Any]] = []
        for number, completion in enumerate(completions):
            if settings["return_tensors"]:
                ids = [*drafts[number].request.prompt, *completion.token_ids]
                records.append({"generated_token_ids": ids})
            else:
                prompt = texts[number // count] if settings["return_full_text"] else ""
                records.append({"generated_text": prompt + completion.text})
        lists = [records[start : start + count] for start in range(0, len(records), count)]
        return lists[0] if isinstance(text_inputs, str) else lists

    def _draft(self, text: str, settings: Mapping[str, Any]) -> Draft:
        prompt = self.model.tokenize(settings["prefix"] + text)
        length = len(prompt) or 1
        if settings["max_new_tokens"] is not None:
            max_tokens = check_count("max_new_tokens", settings["max_new_tokens"])
        else:
            max_tokens = check_count("max_length", settings["max_length"]) - length
            if max_tokens <= 0:
                raise UsageError(
                    f"the prompt has {length} tokens, and max_length is {settings['max_length']}",
                    "Raise max_length, or use max_new_tokens.",
                )
        temperature = 1.0 if settings["temperature"] is None else settings["temperature"]
        min_tokens = settings["min_new_tokens"]
        if min_tokens is None:
            min_tokens = max(0, check_count("min_length", settings["min_length"] or 0) - length)
        if settings["handle_long_generation"] == "hole":
            prompt = self._end_of(prompt, max_tokens)
        return self.model.make_draft(
            prompt,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            seed=_random.getrandbits(32),
            stop=settings["stop_strings"] or (),
            temperature=temperature if settings["do_sample"] else 0,
            top_k=settings["top_k"] or 0,
            top_p=settings["top_p"] if settings["top_p"] is not None else 1.0,
            min_p=settings["min_p"] or 0.0,
            typical_p=settings["typical_p"] if settings["typical_p"] is not None else 1.0,
            repeat_penalty=settings["repetition_penalty"] or 1.0,
            repeat_last_n=-1,
            lookup=settings["prompt_lookup_num_tokens"],
        )

    def _end_of(self, prompt: list[int], max_tokens: int) -> list[int]:
        """What of a prompt leaves room for so many new tokens."""
        kept = self.model.positions - max_tokens
        if kept <= 0:
            raise UsageError(
                f"{max_tokens} new tokens leave no room for a prompt: this model has {self.model.positions} positions",
                "Lower max_new_tokens or max_length.",
            )
        return prompt[-kept:]

    def close(self) -> None:
        """Closes the model."""
        self.model.close()


def _settings(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call, with the pipeline's and then Transformers' for what it does not say."""
    found = dict(_DEFAULTS)
    for given in (defaults, options):
        for name, value in given.items():
            known = _OTHER_NAMES.get(name, name)
            if known is None or value in _WITHOUT_EFFECT.get(name, ()) or (value is None and known in _NONE_IS_DEFAULT):
                continue
            if known not in _DEFAULTS:
                raise UsageError(f"{name}={value!r} is not for this pipeline", f"It takes {', '.join(_DEFAULTS)}.")
            found[known] = value
        if given.get("max_length") is not None and given.get("max_new_tokens") is None:
            found["max_new_tokens"] = None  # its default would win otherwise
    if found["handle_long_generation"] not in (None, "hole"):
        raise UsageError(f"handle_long_generation is {found['handle_long_generation']!r}; it is None or 'hole'")
    return found
