"""A release folder: its files, its card, and what a second call does."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dgpt2_quant.core.errors import OutputError, UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.quant_types import find_type
from dgpt2_quant.publish.base_model import limits_of, read_base_model
from dgpt2_quant.publish.card import card_text, recommended
from dgpt2_quant.publish.folder import found_by_type
from dgpt2_quant.publish.release import Release
from dgpt2_quant.publish.request import Request, read_request
from dgpt2_quant.publish.verify import verify
from dgpt2_quant.quantize.checkpoint.resolve import Source
from filelock import FileLock

from ..classifiers import make_classifier
from .conftest import make

TEXTS = {".gitattributes", "LICENSE", "README.md", "SHA256SUMS", "bench.json", "params", "release.json", "template"}
HUB_LABEL = re.compile(r"(F16|BF16|F32|I?Q\d(?:_[0-9A-Z]+)*)")  # the Hub takes the last match in upper case


def files_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Hash and time of all files, hidden ones included."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def front_of(folder: Path) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((folder / "README.md").read_text("utf-8").split("---\n")[1])
    return found


def test_the_folder_has_the_files_that_the_hub_and_other_programs_expect(made: Release) -> None:
    found = files_of(made.folder)
    ggufs = {f"storybook.{name}.gguf" for name in ("F16", "Q8_0", "Q4_0")}
    plots = {name for name in found if name.startswith("plots/")}
    assert found.keys() == {*TEXTS, *ggufs, "imatrix.gguf", *plots} == set(made.files)
    assert {"plots/size_kld.png", "plots/speed_kld.png"} <= plots
    for line in (made.folder / "SHA256SUMS").read_text("utf-8").splitlines():
        sha256, name = line.split("  ")
        assert found.pop(name)[0] == sha256
    assert found.keys() == {"SHA256SUMS"}
    assert (made.folder / "template").read_text("utf-8") == "{{ .Prompt }}"
    assert json.loads((made.folder / "params").read_text("utf-8")) == {"num_ctx": 512, "stop": ["<|endoftext|>"]}
    assert "*.gguf filter=lfs" in (made.folder / ".gitattributes").read_text("utf-8")
    assert "Apache License" in (made.folder / "LICENSE").read_text("utf-8")


def test_front_matter_is_what_the_hub_reads(made: Release) -> None:
    front = front_of(made.folder)
    assert (front["license"], front["language"], front["pipeline_tag"]) == ("apache-2.0", ["en"], "text-generation")
    assert {"gguf", "gpt2", "imatrix"} <= set(front["tags"])  # type: ignore[call-overload]
    assert "base_model" not in front
    assert "base_model_relation" not in front
    (model,) = front["model-index"]  # type: ignore[misc]
    values = {metric["name"]: metric["value"] for metric in model["results"][0]["metrics"]}
    for row in made.document["results"]:
        assert values[f"perplexity ({row['type']})"] == pytest.approx(row["perplexity"], rel=1e-5)
        assert values[f"kl_divergence ({row['type']})"] == pytest.approx(row["kld_mean"], rel=1e-5)


def test_a_card_with_a_repository_and_a_base_model(made: Release, checkpoint: Path, copied: Path) -> None:
    again = make(checkpoint, copied, repo="me/tales-GGUF", base_model="me/tales", license="MIT")
    front, card = front_of(copied), (copied / "README.md").read_text("utf-8")
    assert (front["base_model"], front["base_model_relation"]) == ("me/tales", "quantized")
    assert (front["license"], front["quantized_by"]) == ("mit", "me")
    assert not (copied / "LICENSE").exists()  # which was Apache's
    assert "llama-server -hf me/tales-GGUF:Q" in card
    assert "ollama run hf.co/me/tales-GGUF:Q" in card
    assert "[me/tales](https://huggingface.co/me/tales)" in card
    assert again.document == made.document  # was not measured again


def test_every_row_of_the_card_is_that_of_bench_json(made: Release) -> None:
    card = (made.folder / "README.md").read_text("utf-8")
    bench = json.loads((made.folder / "bench.json").read_text("utf-8"))
    for row in bench["results"]:
        (line,) = (line for line in card.splitlines() if line.startswith(f"| [{row['path']}]"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[2] == f"{row['bytes'] / 1e6:.2f}" == f"{(made.folder / row['path']).stat().st_size / 1e6:.2f}"
        assert float(cells[3]) == round(row["bits_per_weight"], 2)
        assert cells[6] == f"{100 * row['top1_agreement']:.1f} %"
        assert cells[9].startswith(f"{row['decode_tps']['median']:.0f} (")
    assert "| (reference, not included) | F32 | " in card
    assert bench["environment"]["cpu"].split("@")[0].strip().split("(")[0] in card
    assert f"{bench['reference']['tokens_scored']:,} of {bench['text']['tokens']:,} tokens" in card
    assert all(result["path"] == Path(result["path"]).name for result in bench["results"])


def test_the_card_names_neither_folders_nor_a_registry(made: Release) -> None:
    for name in TEXTS - {"LICENSE"}:
        text = (made.folder / name).read_text("utf-8")
        assert not [word for word in (str(made.folder.parent), "/root", "/tmp", "/home", "pypi") if word in text], name


def test_file_names_end_in_the_label_that_the_hub_finds(checkpoint: Path, tmp_path: Path) -> None:
    for recipe, name in (("stock", "storybook"), ("lean", "storybook.lean")):
        request = ask(checkpoint, tmp_path / recipe, recipe=recipe)
        for quant_type, path in request.paths.items():
            assert HUB_LABEL.findall(path.name.upper().removesuffix(".GGUF"))[-1] == quant_type.name
        assert request.paths[find_type("q4_k_m")].name == f"{name}.Q4_K_M.gguf"
        assert request.paths[find_type("f16")].name == "storybook.F16.gguf"  # `lean` does not change it
        for quant_type, path in request.paths.items():  # llama.cpp's `-hf NAME:TYPE`: common/download.cpp
            names = [one.name for one in request.paths.values()]
            assert [name for name in names if re.search(f"{quant_type}[.-]", name, re.IGNORECASE)] == [path.name]
        assert "--rounds 7" in request.record["command"]
        assert ("--recipe lean" in request.record["command"]) == (recipe == "lean")
        assert not request.folder.exists()


def ask(checkpoint: Path, folder: Path, **options: Any) -> Request:
    unset = ("type", "calibration_license", "repo", "license", "base_model", "revision", "announce")
    defaults = {"rounds": 7, "recipe": "stock", "calibrate": "sampled", "text": "evaluation", "offline": True}
    return read_request(str(checkpoint), output=folder, **{**dict.fromkeys(unset), **defaults, **options})


def test_quantized_files_have_the_importance_matrix_of_the_folder(made: Release) -> None:
    sha256 = files_of(made.folder)["imatrix.gguf"][0]
    stated = {
        row["type"]: read_header(made.folder / row["path"]).metadata.get("dgpt2_quant.imatrix.sha256")
        for row in made.document["results"]
    }
    assert stated == {"F16": None, "Q8_0": None, "Q4_0": sha256}  # llama.cpp rounds to Q8_0 without it
    calibration = made.record["calibration"]
    assert calibration
    assert calibration["license"] == "CC0-1.0"
    assert calibration["file_sha256"] == sha256


def test_a_second_call_changes_nothing(checkpoint: Path, copied: Path) -> None:
    """Not even where another matplotlib would draw other plots."""
    plot = copied / "plots" / "size_kld.png"
    drawn = hashlib.sha256(plot.read_bytes()).hexdigest()
    plot.write_bytes(b"by another version")
    sums = (copied / "SHA256SUMS").read_text("utf-8").replace(drawn, hashlib.sha256(plot.read_bytes()).hexdigest())
    (copied / "SHA256SUMS").write_text(sums, "utf-8")
    before = files_of(copied)
    make(checkpoint, copied)
    assert files_of(copied) == before


def test_an_interrupted_call_continues_and_takes_another_type(made: Release, checkpoint: Path, copied: Path) -> None:
    shutil.rmtree(copied / "plots")
    removed = {"SHA256SUMS", "README.md", "bench.json", "storybook.Q4_0.gguf", "params", "template"}
    for name in removed:
        (copied / name).unlink()
    before = files_of(copied)
    again = make(checkpoint, copied, type=["f16", "q8_0", "q4_0", "q6_k"])
    after = files_of(copied)
    kept = {name for name in before if name.endswith((".gguf", "LICENSE", ".gitattributes"))}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert {*removed, "storybook.Q6_K.gguf", "plots/size_kld.png"} <= set(again.files) == after.keys()
    assert [row["type"] for row in again.document["results"]] == ["F16", "Q8_0", "Q4_0", "Q6_K"]


def test_a_call_interrupted_at_the_end_measures_nothing_again(checkpoint: Path, copied: Path) -> None:
    before = files_of(copied)
    (copied / "SHA256SUMS").unlink()
    make(checkpoint, copied)
    after = files_of(copied)
    assert after.pop("SHA256SUMS")[0] == before.pop("SHA256SUMS")[0]
    assert after == before


def test_a_file_that_is_removed_from_a_release_leaves_no_trace(checkpoint: Path, copied: Path) -> None:
    (copied / "storybook.Q4_0.gguf").unlink()
    bench = json.loads((copied / "bench.json").read_text("utf-8"))
    bench["results"] = [row for row in bench["results"] if row["type"] != "Q4_0"]  # as measured without it
    (copied / "bench.json").write_text(json.dumps(bench), "utf-8")
    again = make(checkpoint, copied, type=["f16", "q8_0"])
    assert [one["file"] for one in again.record["bias"]] == ["storybook.F16.gguf", "storybook.Q8_0.gguf"]
    assert "storybook.Q4_0.gguf" not in (copied / "README.md").read_text("utf-8")
    assert not [check for check in verify(copied, threads=1) if check.problem]


def test_a_folder_with_something_else_is_refused(checkpoint: Path, copied: Path, tmp_path: Path) -> None:
    before = files_of(copied)
    with pytest.raises(OutputError, match="has a release with another recipe"):
        make(checkpoint, copied, recipe="lean")
    with pytest.raises(OutputError, match="has a release with another calibration"):
        make(checkpoint, copied, calibrate="evaluation")
    with pytest.raises(OutputError, match=r"has storybook.F16.gguf, which is not a file of this release"):
        make(checkpoint, copied, type=["q8_0", "q4_0"])
    assert files_of(copied) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine", "utf-8")
    with pytest.raises(OutputError, match=r"README.md exists, and .* has no release.json"):
        make(checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text("utf-8") == "mine"
    with pytest.raises(OutputError, match="is not a folder"):
        make(checkpoint, tmp_path / "mine" / "README.md")
    with pytest.raises(OutputError, match="is the folder of the checkpoint"):
        make(checkpoint, checkpoint.parent / "." / "storybook", overwrite=True)
    with FileLock(copied / ".release.lock"), pytest.raises(OutputError, match="another process is making a release in"):
        make(checkpoint, copied)


def test_a_release_that_cannot_succeed_is_refused_before_the_work(checkpoint: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time", "utf-8")
    with pytest.raises(UsageError, match=r"short\.txt: the text has 4 tokens, and needs at least one chunk of 512"):
        ask(checkpoint, tmp_path / "new", text=short)
    with pytest.raises(UsageError, match="is a classifier"):
        ask(make_classifier(tmp_path / "classifier"), tmp_path / "new")
    with pytest.raises(UsageError, match=r"`license` must be an identifier of the Hub, not 'MIT License'"):
        ask(checkpoint, tmp_path / "new", license="MIT License")
    assert not (tmp_path / "new").exists()


def test_the_card_names_the_file_where_its_type_finds_another(made: Release) -> None:
    assert found_by_type(["g.BF16.gguf", "g.F16.gguf"], "F16") == "g.BF16.gguf"
    assert found_by_type(["gpt2-q4_0-mine.F16.gguf", "gpt2-q4_0-mine.Q4_0.gguf"], "Q4_0") == "gpt2-q4_0-mine.F16.gguf"
    assert found_by_type(["imatrix.gguf", "g.Q4_K.gguf", "g.Q4_K_M.gguf"], "Q4_K_M") == "g.Q4_K_M.gguf"
    tag = recommended(made.document)["type"]
    paths = [f"my ({tag}-) {'z' if row['type'] == tag else 'a'}.{row['type']}.gguf" for row in made.document["results"]]
    results = [{**row, "path": path} for row, path in zip(made.document["results"], paths, strict=True)]
    card = card_text(made.record, {**made.document, "results": results}, [])  # type: ignore[typeddict-item]
    assert f"llama-server -hf USER/storybook-GGUF -hff 'my ({tag}-) z.{tag}.gguf'" in card
    assert f"ollama run 'hf.co/USER/storybook-GGUF:my ({tag}-) z.{tag}.gguf'" in card
    assert f"By type llama.cpp does not find my ({tag}-) z.{tag}.gguf: use `-hff`" in card
    assert f"(my%20%28{tag}-%29%20z.{tag}.gguf)" in card


def test_a_reference_that_is_in_the_folder_is_one_row(made: Release) -> None:
    results = [{**made.document["results"][0], "type": "F32", "path": "m.F32.gguf"}, *made.document["results"]]
    document = {**made.document, "results": results}
    rows = [line for line in card_text(made.record, document, []).splitlines() if "| F32 |" in line]  # type: ignore[arg-type]
    assert [row.split(" | ")[0] for row in rows] == ["| [m.F32.gguf](m.F32.gguf)"]


def test_the_card_of_a_merged_adapter_with_a_chat_template(made: Release) -> None:
    model = {"base_model": "me/base", "repository": "me/base", "adapters": ["lora"], "has_chat_template": True}
    model |= {"license": "other", "license_name": "my-license", "license_link": "LICENSE"}
    card = card_text({**made.record, "model": {**made.record["model"], **model}}, made.document, [])  # type: ignore[typeddict-item]
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["base_model_relation"], front["license_name"], front["license_link"]) == (
        "finetune",
        "my-license",
        "LICENSE",
    )
    assert "with the LoRA adapter lora merged" in card
    assert "It has a chat template" in card
    assert "/v1/chat" not in card


def test_a_file_that_changed_is_not_released_again(checkpoint: Path, copied: Path) -> None:
    path = copied / "storybook.Q4_0.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(OutputError, match=r"Q4_0.gguf has changed since it was released"):
        make(checkpoint, copied)


@pytest.mark.parametrize("name", ["x", "a/b/c", "me/../x", "https://huggingface.co/me/x", "me/x.git", ""])
def test_names_that_the_hub_does_not_take_are_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must be a name on the Hub, owner/name"):
        make(checkpoint, tmp_path / "new", repo=name)
    assert not (tmp_path / "new").exists()


def test_limits_are_taken_from_headings_and_bold_words() -> None:
    card = (
        "---\nlicense: mit\n---\n# Model\n\nIt writes.\n\n## Uses\n\nFor fun.\n\n"
        "### Limitations and bias\n\n**CONTENT WARNING: read** [this](https://x.y/z).\n\n"
        "```python\n>>> code\n```\n\n| a | b |\n\nIt repeats _stereotypes_.\n\n## Training\n\nOn text.\n\n"
        "**Not for** facts.\n"
    )
    assert limits_of(card) == "CONTENT WARNING: read this. It repeats _stereotypes_. Not for facts."
    assert limits_of("# Model\n\nIt writes.\n") == ""
    long = limits_of("## Risks\n\n" + "A sentence of a long list. " * 100)
    assert len(long) < 910
    assert long.endswith(". …")


@pytest.mark.parametrize(
    ("card", "license", "languages"),
    [
        ("---\nlicense: mit\nlanguage: [en, de]\n---\n", "mit", ("en", "de")),
        ("---\nlanguage: en\n---\n", None, ("en",)),
        ("---\nlanguage: {a: [\n---\nbroken", None, ()),
        ("---\r\nlicense:\r\n- mit\r\nlanguage: [no, en]\r\n---\r\n", "mit", ("no", "en")),  # YAML's `no` is false
        ("---\nlicense: [mit, gpl-3.0]\n---\n", "other", ()),
        ("---\nlicense: mit\nbase_model: a: b\n---\n", "mit", ()),
        ("---\n- mit\n---\n", None, ()),
        ("# Limits\n\n" + "[<" * 500_000, None, ()),
        ("no front matter", None, ()),
        (None, None, ()),
    ],
)
def test_base_cards_of_all_kinds(
    card: str | None, license: str | None, languages: tuple[str, ...], tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card, "utf-8")
    base = read_base_model(Source("m", tmp_path, None, None))
    assert (base.license, base.languages) == (license, languages)
