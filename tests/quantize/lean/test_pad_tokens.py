"""Pad tokens in the metadata of checkpoints and GGUF files."""

from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import GGUFError
from dgpt2_quant.core.gguf_file import EncodedValue, decode_value, encode_value
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.quantize.checkpoint.metadata import tokenizer_metadata, with_pad_tokens
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.checkpoint.tokenizer import Tokenizer, TokenType

SMALL = Tokenizer(["a", "b", "[PAD3]", "[PAD3]_", "ab"], [TokenType.NORMAL] * 5, ["a b"], 0, 4)


def values(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: decode_value(value) for key, value in metadata.items()}


def test_pad_tokens_are_unused_tokens_after_the_others() -> None:
    padded, plain = values(with_pad_tokens(tokenizer_metadata(SMALL), 3)), values(tokenizer_metadata(SMALL))
    assert padded.pop("tokenizer.ggml.tokens") == [*plain.pop("tokenizer.ggml.tokens"), "[PAD5]", "[PAD6]", "[PAD7]"]
    assert padded.pop("tokenizer.ggml.token_type") == [*plain.pop("tokenizer.ggml.token_type"), *[5] * 3]
    assert padded == plain


def test_pad_texts_are_unique() -> None:
    tokens = ["a", "[PAD3]", "[PAD4]_"]
    padded = with_pad_tokens(tokenizer_metadata(Tokenizer(tokens, [TokenType.NORMAL] * 3, ["a b"], 0, 0)), 3)
    assert values(padded)["tokenizer.ggml.tokens"] == [*tokens, "[PAD3]_", "[PAD4]", "[PAD5]"]


def test_checkpoint_and_file_agree(storybook_files: dict[str, Path]) -> None:
    for source in (open_model("storybook"), open_model(str(storybook_files["F32"]))):
        plain = source.metadata("0" * 64, {})
        padded = with_pad_tokens(plain, 3)
        assert list(padded) == list(plain)
        changed = {key for key, value in plain.items() if padded[key] != value}
        assert changed == {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type"}
        tokens, types = (decode_value(padded[f"tokenizer.ggml.{name}"]) for name in ("tokens", "token_type"))
        assert tokens[:8189] == source.tokenizer().tokens
        assert tokens[8189:] == ["[PAD8189]", "[PAD8190]", "[PAD8191]"]
        assert types[8189:] == [5, 5, 5]
        assert len(types) == source.sizes.padded(3).vocabulary == 8192


def test_scores_and_vocab_size_are_extended() -> None:
    metadata = {
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.scores": encode_value([0.5, -1.0]),
        "gpt2.vocab_size": encode_value(2),
    }
    found = values(with_pad_tokens(metadata, 1))
    assert found == {
        "tokenizer.ggml.tokens": ["a", "b", "[PAD2]"],
        "tokenizer.ggml.token_type": [1, 1, 5],  # missing in the file
        "tokenizer.ggml.scores": [0.5, -1.0, 0.0],
        "gpt2.vocab_size": 3,
    }


def test_other_metadata_are_unchanged() -> None:
    sizes = Hyperparameters(2, 64, 4, 256, 64, 100, 1e-5)
    shapes, padded = sizes.shapes(), sizes.padded(4).shapes()
    assert {name for name in shapes if shapes[name] != padded[name]} == {"token_embd.weight"}
    assert padded["token_embd.weight"] == (104, 64)


@pytest.mark.parametrize("value", ["text", True, 7, 1 << 40, 0.5, ["a", ""], [1, -2], [0.25, 1.5]], ids=str)
def test_decode_value_round_trip(value: Any) -> None:
    assert decode_value(encode_value(value)) == value


@pytest.mark.parametrize("data", [b"", b"\x08\0\0\0\xff", b"\x63\0\0\0"])
def test_invalid_value_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(GGUFError):
        decode_value(EncodedValue(data))
