"""`inspect` on files of ours, of other tools, and on other content."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from dgpt2_quant.cli.main import app
from dgpt2_quant.core.errors import GGUFError, ModelNotFoundError
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.describe import DescribedTensor, DescribedToken, describe
from typer.testing import CliRunner

from ..checkpoints import TOKENS, make_checkpoint, write_json


def test_a_file_of_ours_is_described(storybook_files: dict[str, Path]) -> None:
    path = storybook_files["Q4_K_M"]
    found = describe(path)
    assert (found.path, found.bytes) == (str(path), path.stat().st_size)
    assert (found.architecture, found.type, found.recipe) == ("gpt2", "Q4_K_M", "stock")
    assert (found.context, found.vocabulary) == (512, 8189)
    end = DescribedToken(0, "<|endoftext|>")
    assert (found.special_tokens, found.added_tokens, found.chat_templates) == ({"bos": end, "eos": end}, [], [])
    assert found.parameters == 6_966_528
    assert 4.5 < found.bits_per_weight < 7
    assert found.counts() == {"F32": 51, "Q4_K": 20, "Q6_K": 5}
    assert len(found.tensors) == 76
    assert sum(tensor.bytes for tensor in found.tensors) < found.bytes
    assert found.metadata["general.name"] == "storybook"


def test_shapes_are_those_of_numpy(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", width=64, inner=96)
    (file,) = convert(str(folder), type=["q8_0"], output=tmp_path)
    tensors = {tensor.name: tensor for tensor in describe(file.path).tensors}
    assert tensors["blk.0.ffn_up.weight"] == DescribedTensor("blk.0.ffn_up.weight", "Q8_0", [96, 64], 96 * 2 * 34)
    assert tensors["blk.0.ffn_down.bias"] == DescribedTensor("blk.0.ffn_down.bias", "F32", [64], 256)
    assert tensors["token_embd.weight"].shape == [len(TOKENS), 64]


def test_bits_per_weight_equal_those_of_convert(tmp_path: Path) -> None:
    for file in convert("storybook", type=["f32", "f16", "q8_0", "q4_0"], output=tmp_path):
        found = describe(file.path)
        assert (found.bits_per_weight, found.parameters) == (file.bits_per_weight, file.parameters)
        assert found.counts() == file.tensors


def test_special_tokens_added_ones_and_chat_templates_are_shown(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", layers=1, vocabulary=len(TOKENS) + 3)
    settings = {"bos_token": "<s>", "pad_token": "<pad>", "add_bos_token": True, "chat_template": "{{ messages }}"}
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "added_tokens.json", {"<s>": len(TOKENS), "<pad>": len(TOKENS) + 1, "<e>": len(TOKENS) + 2})
    write_json(folder / "generation_config.json", {"eos_token_id": [len(TOKENS) - 1, len(TOKENS) + 2]})
    (file,) = convert(str(folder), type="Q8_0", output=tmp_path)
    found = describe(file.path)
    assert {role: token.text for role, token in found.special_tokens.items()} == {
        **{"bos": "<s>", "eos": "<|endoftext|>", "eot": "<e>", "pad": "<pad>"}
    }
    assert (found.added_tokens, found.chat_templates) == (["bos"], ["default"])
    shown = CliRunner().invoke(app, ["inspect", file.path]).stdout
    assert f"bos            '<s>' ({len(TOKENS)})\n" in shown
    assert f"eot            '<e>' ({len(TOKENS) + 2})\n" in shown
    assert "added          bos before each text\n" in shown
    assert "chat template  default\n" in shown


def test_the_description_is_json(storybook_files: dict[str, Path]) -> None:
    found = describe(str(storybook_files["Q8_0"]))
    content = json.loads(json.dumps(found.to_json()))
    assert content["metadata"]["tokenizer.ggml.tokens"] == found.metadata["tokenizer.ggml.tokens"]
    assert content["tensors"][0] == {
        "name": "output_norm.bias",
        "type": "F32",
        "shape": [256],
        "bytes": 1024,
    }


def test_a_file_of_another_tool_and_architecture_is_described(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", arch="llama")
    writer.add_context_length(77)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_tensor("some.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = describe(tmp_path / "other.gguf")
    assert (found.architecture, found.context, found.type) == ("llama", 77, "Q4_K_M")
    assert (found.recipe, found.vocabulary) == (None, None)
    assert (found.parameters, found.bits_per_weight, found.counts()) == (64, 32.0, {"F32": 1})


def test_a_file_without_tensors_is_described(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", arch="gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    found = describe(tmp_path / "vocabulary.gguf")
    assert (found.parameters, found.bits_per_weight, found.counts(), found.type) == (0, 0.0, {}, None)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "tiny") / "model.safetensors"
    with pytest.raises(GGUFError) as caught:
        describe(path)
    assert f"{path} is not a valid GGUF file" in caught.value.message
    assert "dgpt2-quant convert" in caught.value.hint


@pytest.mark.parametrize("name", ["none.gguf", "."])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        describe(tmp_path / name)
