"""`pipeline("text-generation")` as in Transformers: the same calls and output shapes, on llama.cpp.

from dgpt2_quant.runtime import pipeline, set_seed

generator = pipeline("text-generation", model="distilgpt2")
set_seed(42)
generator("Hello, I'm a language model", max_length=20, num_return_sequences=5)

Names, defaults and meanings are those of TextGenerationPipeline and GenerationConfig in Transformers 5. A seed gives
other texts than with PyTorch, whose random numbers and weights differ.
"""

import io
import random
import reprlib
from collections import abc
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from dgpt2_quant.core.errors import UsageError

from .lifecycle import Closing
from .model import PARALLEL, Model, check_parallel
from .request import check_count, check_flag
from .sequence import Sequence

_random = random.Random()
# the options with an effect, and Transformers' defaults
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
    "truncation": False,
    "stop_strings": (),
    "eos_token_id": None,
    "batch_size": PARALLEL,
    "prompt_lookup_num_tokens": None,
    "max_length": None,
    "min_length": None,
    "min_new_tokens": None,
    "add_special_tokens": None,  # None and True: as the file states
}
_OTHER_NAMES: Mapping[str, str] = {"stop_sequence": "stop_strings"}
# for the other options None means off
_NONE_IS_DEFAULT = (
    "num_return_sequences",
    "prefix",
    "truncation",
    "batch_size",
    "do_sample",
    "return_full_text",
    "return_tensors",
    "max_new_tokens",
    "repetition_penalty",
)
# Other options in Transformers' tutorials, and their values without effect here; other values are refused. (None has
# no effect for any option.)
_ANY: Any = object()
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "pad_token_id": _ANY,  # texts of different lengths decode together without padding
    "return_text": (True,),
    "tokenizer": _ANY,  # the file has its own
    "feature_extractor": (),
    "framework": ("pt",),
    "torch_dtype": ("auto", "float32", "float16", "bfloat16"),  # the quant type decides
    "dtype": ("auto", "float32", "float16", "bfloat16"),
    "device_map": ("auto", "cpu"),
    "trust_remote_code": (True, False),  # none is ever run
    "use_fast": (True, False),
    "token": (),
    "use_auth_token": (),
    "model_kwargs": ({},),
    "generate_kwargs": ({},),
    "num_workers": (0,),
    "binary_output": (False,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "early_stopping": (False,),  # of beams
    "length_penalty": (1.0,),
    "diversity_penalty": (0.0,),
    "use_cache": (True,),
    "clean_up_tokenization_spaces": (False,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "renormalize_logits": (False, True),
    "remove_invalid_values": (False, True),
    "output_scores": (False,),
    "output_logits": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "return_dict_in_generate": (False,),
    "synced_gpus": (False,),
    "streamer": (),
    "padding": (False, True),
    "padding_side": ("left", "right"),
    "bad_words_ids": (),
    "force_words_ids": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "bos_token_id": _ANY,  # only for an empty prompt, which begins with the file's own
    "logits_processor": ((), []),
    "stopping_criteria": ((), []),
    "generation_config": (),
    "assistant_model": (),
    "attention_mask": (),
    "exponential_decay_length_penalty": (),
    "sequence_bias": (),
    "max_time": (),
    "cache_implementation": (),
    "tokenizer_encode_kwargs": ({},),
}


def set_seed(seed: int) -> None:
    """Makes the next calls of pipelines reproducible."""
    _random.seed(seed)


def pipeline(
    task: str = "text-generation",
    model: str | Path | Model | None = "distilbert/distilgpt2",
    *,
    type: str | None = None,
    revision: str | None = None,
    threads: int | Literal["auto"] = "auto",
    device: int | str | None = None,
    **options: Any,
) -> "TextGenerationPipeline":
    """A text generator. `model` is a loaded `Model`, or what `Model.from_pretrained` takes with `type` and `revision`.

    `options` become the defaults of its calls; options of Transformers that change nothing here, such as `torch_dtype`,
    are accepted. Raises `UsageError` for another task or device, or an unknown option.
    """
    if task not in ("text-generation", None):
        raise UsageError(f"`task` must be text-generation, not {task!r}")
    if str(device) not in ("None", "-1", "cpu"):  # also torch.device("cpu")
        raise UsageError(f"`device` must be 'cpu' or -1, not {device!r}", "Omit it.")
    _settings(options, {})  # before a download or a conversion
    if not isinstance(model, Model):
        name = "distilbert/distilgpt2" if model is None else str(model)
        model = Model.from_pretrained(name, type=type, revision=revision, threads=threads)
    return TextGenerationPipeline(model, **options)


class TextGenerationPipeline(Closing):
    """Generates text when called with one text or several. `options` are defaults for the calls."""

    def __init__(self, model: Model, **options: Any) -> None:
        _settings(options, {})
        self.model = model
        self._options = options

    def __call__(self, text_inputs: Any, **options: Any) -> Any:
        """Returns `[{"generated_text": ...}, ...]` for a text, and a list of such lists for a list of texts.

        For a generator, a data set or another lazy source of texts, returns an iterator of such lists, which gives each
        list when its batch of `batch_size` sequences is complete.

        `max_new_tokens` counts new tokens, `max_length` the prompt's too (the former takes precedence), and likewise
        `min_new_tokens` and `min_length`. `do_sample=False` is greedy. `return_full_text=False` omits the prompt;
        `return_tensors=True` returns `generated_token_ids` instead of texts. Stop strings are cut off.
        Raises `UsageError` for an unknown option, or a value out of range.
        """
        settings = _settings(options, self._options)
        if isinstance(text_inputs, str):
            return self._write([text_inputs], settings)[0]
        if isinstance(text_inputs, list | tuple):
            return self._write([_text(text) for text in text_inputs], settings)
        is_data_set = hasattr(text_inputs, "__getitem__") and hasattr(text_inputs, "__len__")
        if (isinstance(text_inputs, Iterator) or is_data_set) and not isinstance(text_inputs, _NO_TEXTS):
            return self._write_lazily(text_inputs, settings)
        raise UsageError(
            f"`text_inputs` must be a text or texts, not {reprlib.repr(text_inputs)}",
            "Give a str, a list or a generator.",
        )

    def _write_lazily(self, source: Any, settings: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
        count = max(1, settings["batch_size"] // self._count(settings))
        texts = iter(source) if hasattr(source, "__iter__") else (source[index] for index in range(len(source)))
        while some := [_text(text) for text in islice(texts, count)]:
            yield from self._write(some, settings)

    def _count(self, settings: Mapping[str, Any]) -> int:
        count = check_count("num_return_sequences", settings["num_return_sequences"], 1)
        if count > 1 and not settings["do_sample"]:
            raise UsageError(
                f"`num_return_sequences` must be 1 without `do_sample`, not {count}: all texts would be equal"
            )
        return count

    def _write(self, texts: abc.Sequence[str], settings: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
        count = self._count(settings)
        sequences = [self._sequence(text, settings) for text in texts for _ in range(count)]
        completions = self.model.write(sequences, parallel=settings["batch_size"]).run()
        records: list[dict[str, Any]] = []
        for number, completion in enumerate(completions):
            if settings["return_tensors"]:
                ids = [*sequences[number].request.prompt, *completion.token_ids]
                records.append({"generated_token_ids": ids})
                continue
            text = completion.text
            if completion.token_ids and completion.token_ids[-1] in sequences[number].request.stop_token_ids:
                text += self.model.detokenize(
                    completion.token_ids[-1:]
                )  # Transformers keeps a stop token that has text
            records.append({"generated_text": (texts[number // count] if settings["return_full_text"] else "") + text})
        return [records[start : start + count] for start in range(0, len(records), count)]

    def _sequence(self, text: str, settings: Mapping[str, Any]) -> Sequence:
        with_special = settings["add_special_tokens"]
        prompt = self.model.tokenize(
            settings["prefix"] + text,
            add_special=None if with_special is None else check_flag("add_special_tokens", with_special),
        )
        length = len(prompt) or 1
        if settings["max_new_tokens"] is not None:
            max_tokens = check_count("max_new_tokens", settings["max_new_tokens"])
        else:
            max_tokens = check_count("max_length", settings["max_length"]) - length
            if max_tokens <= 0:
                raise UsageError(
                    f"`max_length` must be more than the prompt's {length} tokens, not {settings['max_length']}",
                    "Raise it, or use `max_new_tokens`.",
                )
        ends = settings["eos_token_id"]
        temperature = 1.0 if settings["temperature"] is None else settings["temperature"]
        min_tokens = settings["min_new_tokens"]
        if min_tokens is None:
            min_tokens = max(0, check_count("min_length", settings["min_length"] or 0) - length)
        if settings["handle_long_generation"] == "hole":
            prompt = self._end_of(prompt, max_tokens)
        elif settings["truncation"]:
            prompt = prompt[: self.model.positions]
        return self.model.new_sequence(
            prompt,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            seed=_random.getrandbits(32),
            stop=settings["stop_strings"] or (),
            # they replace the model's own
            stop_token_ids=(ends,) if isinstance(ends, int) else ends,
            ignore_eos=ends is not None,
            temperature=temperature if settings["do_sample"] else 0,
            top_k=settings["top_k"] or 0,
            top_p=settings["top_p"] if settings["top_p"] is not None else 1.0,
            min_p=settings["min_p"] or 0.0,
            typical_p=settings["typical_p"] if settings["typical_p"] is not None else 1.0,
            repeat_penalty=settings["repetition_penalty"],
            repeat_last_n=-1,
            lookup=settings["prompt_lookup_num_tokens"],
        )

    def _end_of(self, prompt: list[int], max_tokens: int) -> list[int]:
        """The end of a prompt that leaves room for `max_tokens` new tokens."""
        kept = self.model.positions - max_tokens
        if kept <= 0:
            raise UsageError(
                f"`max_new_tokens` must be at most {self.model.positions - 1} to leave a prompt room, not {max_tokens}",
                "Lower it, or `max_length`.",
            )
        return prompt[-kept:]

    def close(self) -> None:
        """Closes the model."""
        self.model.close()


_NO_TEXTS = (Mapping, bytes, bytearray, memoryview, io.IOBase)


def _text(text: Any) -> str:
    if isinstance(text, list | tuple | dict):
        raise UsageError("a GPT-2 continues texts and cannot chat", "Give a text, or a list of texts.")
    if not isinstance(text, str):
        raise UsageError(f"each text must be a str, not {reprlib.repr(text)}")
    return text


def _settings(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a call; missing ones are the pipeline's, then Transformers' defaults."""
    found = dict(_DEFAULTS)
    for given in (defaults, options):
        for name, value in given.items():
            known = _OTHER_NAMES.get(name, name)
            if known in _NEUTRAL:
                _check_neutral(name, value)
            elif known not in _DEFAULTS:
                raise UsageError(f"there is no option `{name}`", f"The options are {', '.join(_DEFAULTS)}.")
            elif value is not None or known not in _NONE_IS_DEFAULT:
                found[known] = value
        if given.get("max_length") is not None and given.get("max_new_tokens") is None:
            found["max_new_tokens"] = None  # otherwise its default would take precedence
    found["batch_size"] = check_parallel(found["batch_size"], "batch_size")
    for name in ("do_sample", "return_full_text", "return_tensors"):
        found[name] = check_flag(name, found[name])
    if found["truncation"] not in (True, False, "longest_first", "only_first", "do_not_truncate"):
        raise UsageError(f"`truncation` must be True or False, not {found['truncation']!r}")
    found["truncation"] = found["truncation"] not in (False, "do_not_truncate")
    if found["handle_long_generation"] not in (None, "hole"):
        raise UsageError(f"`handle_long_generation` must be None or 'hole', not {found['handle_long_generation']!r}")
    return found


def _check_neutral(name: str, value: Any) -> None:
    """Raises `UsageError` for a value that has an effect in Transformers, but not here."""
    neutral = _NEUTRAL[name]
    if neutral is _ANY or value is None:
        return
    spelled = str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value
    if not any(spelled == allowed and isinstance(spelled, bool) == isinstance(allowed, bool) for allowed in neutral):
        there = " or ".join(map(repr, neutral)) or "None"
        raise UsageError(f"`{name}` must be {there} in this pipeline, not {value!r}", "Omit it.")
