"""The model card (`README.md`) of a release, computed from `bench.json`, `release.json` and the names of the plots.

`verify` computes it again, and reports a card that differs.
"""

import glob
import json
import re
import shlex
from collections.abc import Collection
from urllib.parse import quote

from dgpt2_quant.bench.document.format_numbers import (
    DISTURBED,
    label,
    marked,
    percent,
    ratio_interval,
    small,
    speed,
    with_error,
    with_interval,
)
from dgpt2_quant.bench.document.schema import BenchJson, Result
from dgpt2_quant.bench.report.advice import advise, recommend
from dgpt2_quant.bench.report.markdown import escaped, markdown_table
from dgpt2_quant.bench.report.plots import CAPTIONS, PLOTS
from dgpt2_quant.core.text import is_bundled

from .folder import found_by_type
from .front_matter import UNKNOWN, front_matter
from .record import ReleaseJson

COLUMNS = [
    *("file", "type", "MB", "bpw", "KLD", "KLD 99.9%", "same top token", "perplexity ratio"),
    *("prompt t/s", "decode t/s", "load ms", "memory MB"),
]
_LONGEST_NAME = 90  # characters of a repository's name; the Hub allows 96


def card_text(record: ReleaseJson, document: BenchJson, plots: Collection[str]) -> str:
    """The whole card; `plots` are the names of the plots that the folder has."""
    sections = (
        _introduction(record, document),
        _choice(document),
        _files(document, plots),
        _loading(record, document),
        _origin(record, document),
        _limits(record),
        _bias(record),
        _license(record),
    )
    return front_matter(record, document) + "\n" + "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def repository(record: ReleaseJson) -> str:
    """The name on the Hub; a placeholder with the user `USER` until `repo` is known."""
    name = re.sub(r"[^A-Za-z0-9_.]+|\.\.+", "-", record["model"]["name"])[:_LONGEST_NAME].strip("-.")
    return record["repo"] or f"USER/{name or 'model'}-GGUF"


def recommended(document: BenchJson) -> Result:
    """The file that the advice recommends: the smallest within 1 %, or else the one nearest to the reference."""
    name = recommend(document["results"])["smallest_within_1pct_ppl"]
    rows = [row for row in document["results"] if label(row) == name]
    return rows[0] if rows else min(document["results"], key=lambda row: row["ppl_ratio"])


def _introduction(record: ReleaseJson, document: BenchJson) -> list[str]:
    model = record["model"]
    name, base = escaped(model["name"]), model["base_model"]
    of = f"[{base}](https://huggingface.co/{base})" if base else name
    if model["adapters"]:
        adapter = f"with the LoRA adapter {escaped(', '.join(model['adapters']))} merged"
        of += f", {adapter if base else 'a LoRA adapter merged into its base model'},"
    kind = "It is a base model: it continues a text, and has no chat template."
    if model["has_chat_template"]:
        kind = "It has a chat template, which is in the files."
    count = len(document["results"])
    return [
        f"# {name}: GGUF files with measurements",
        "",
        f"{of} in {count} quant type{'s' if count > 1 else ''}, for llama.cpp and programs that use it. {kind}",
        "",
        "Quality, size and speed of every file were measured. Each number below is computed from `bench.json` and"
        " `release.json`; `dgpt2-quant release --verify` computes them again and compares. `sha256sum -c"
        " SHA256SUMS` checks all files.",
    ]


def _choice(document: BenchJson) -> list[str]:
    row = recommended(document)
    return [
        "## Which file to take",
        "",
        f"**{_link(row['path'])}**. The reasons:",
        "",
        *(f"- {escaped(_to_readers(line))}" for line in advise(document)),
    ]


def _to_readers(advice: str) -> str:
    """Rewords a sentence of the advice, which addresses the publisher, for readers of the card."""
    return f"Take {advice.removeprefix('Ship ')}" if advice.startswith("Ship ") else advice


def _files(document: BenchJson, plots: Collection[str]) -> list[str]:
    reference, text, environment = document["reference"], document["text"], document["environment"]
    rows = [_row(row) for row in document["results"]]
    if all(row["type"] != reference["type"] for row in document["results"]):
        base = ["(reference, not included)", reference["type"], f"{reference['bytes'] / 1e6:.2f}"]
        base += ["32.00" if reference["type"] == "F32" else "", "0", "0", percent(1), "1"]
        base += [speed(reference[key], reference.get("disturbed")) for key in ("prompt_tps", "decode_tps")]
        rows.insert(0, [*base, "", ""])
    lines = ["## Files", "", *markdown_table(COLUMNS, rows), ""]
    scored = f"{reference['tokens_scored']:,} of {text['tokens']:,} tokens of {escaped(text['name'])}"
    lines += [
        f"- KLD: mean Kullback-Leibler divergence of the next-token distribution from {reference['type']}'s, in nats,"
        " with its 95 % interval. KLD 99.9%: the 99.9 % quantile. Same top token: share of tokens for which the"
        f" likeliest token is {reference['type']}'s. Perplexity ratio: perplexity divided by {reference['type']}'s,"
        " with its 95 % interval. bpw: bits per weight, without the tokenizer.",
        f"- Quality over {scored}, in windows of {text['context']} tokens. Perplexity of {reference['type']}:"
        f" {with_error(reference['perplexity'], reference['perplexity_stderr'])}.",
        f"- Speed in tokens per second at batch 1, median (minimum-maximum) of interleaved rounds, on"
        f" {escaped(environment['cpu'])}, {_count(environment['threads'], 'thread')}. Load time and peak memory of a"
        " fresh process.",
    ]
    if floor := document["noise_floor"]:
        lines.append(
            f"- Noise floor: {reference['type']} against itself, computed in another way ({escaped(floor['how'])}):"
            f" KLD {small(floor['kld_mean'])}, same top token {percent(floor['top1_agreement'])}. Smaller differences"
            " are rounding."
        )
    if any(row["disturbed"] or row.get("load_disturbed") for row in document["results"]):
        lines.append(f"- {DISTURBED}: other programs used the machine during this timing.")
    for name in PLOTS:
        if name in plots:
            lines += ["", f"![{escaped(CAPTIONS[name])}](plots/{name}.png)"]
    return lines


def _row(row: Result) -> list[str]:
    return [
        _link(row["path"]),
        label(row),
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['bits_per_weight']:.2f}",
        with_interval(row["kld_interval"]),
        small(row["kld_p999"]),
        percent(row["top1_agreement"]),
        ratio_interval(row["ppl_ratio_interval"]),
        speed(row["prompt_tps"], row["disturbed"]),
        speed(row["decode_tps"], row["disturbed"]),
        marked(f"{row['load_ms']:.0f}", row.get("load_disturbed")),
        f"{row['peak_rss_bytes'] / 1e6:.0f}",
    ]


def _loading(record: ReleaseJson, document: BenchJson) -> list[str]:
    repo, row = repository(record), recommended(document)
    file, tag = row["path"], row["type"]
    paths = [result["path"] for result in document["results"]]
    hidden = [r["path"] for r in document["results"] if found_by_type(paths, r["type"]) != r["path"]]
    note = [f"By type llama.cpp does not find {escaped(', '.join(hidden))}: use `-hff` with the file's name.", ""]
    note, by_type = note if hidden else [], file not in hidden
    pattern = json.dumps(glob.escape(file), ensure_ascii=False)
    from_hub = f"-hf {repo}:{tag}" if by_type else f"-hf {repo} -hff {shlex.quote(file)}"
    chat = record["model"]["has_chat_template"]
    ollama = "`params` and the file's chat template" if chat else "`template` and `params`"
    return [
        "## How to load it",
        "",
        "dgpt2-quant:",
        "",
        f"    hf download {repo} {shlex.quote(file)} --local-dir .",
        f'    dgpt2-quant run "Once upon a time" -m {shlex.quote(file)}',
        "",
        "llama.cpp:",
        "",
        f'    llama-completion {from_hub} -no-cnv -p "Once upon a time"',
        f"    llama-server {from_hub}" + ("" if chat else "    # use /v1/completions, not /v1/chat"),
        "",
        *note,
        "llama-cpp-python:",
        "",
        "```python",
        "from llama_cpp import Llama",
        "",
        f'llm = Llama.from_pretrained(repo_id="{repo}", filename={pattern})',
        'print(llm("Once upon a time", max_tokens=64)["choices"][0]["text"])',
        "```",
        "",
        f"Ollama, which uses {ollama} of this repository:",
        "",
        f"    ollama run {shlex.quote(f'hf.co/{repo}:{tag if by_type else file}')}",
        "",
        f"LM Studio: search for `{repo}` and load {escaped(file)}"
        + ("." if chat else ". Send prompts to `/v1/completions`."),
    ]


def _origin(record: ReleaseJson, document: BenchJson) -> list[str]:
    model, identity, environment = record["model"], record["identity"], document["environment"]
    tool = f"dgpt2-quant {identity['dgpt2_quant']}" + (f" (commit {record['commit']})" if record["commit"] else "")
    source = f"[{model['repository']}](https://huggingface.co/{model['repository']})" if model["repository"] else ""
    if model["commit"]:
        source += f" at commit {model['commit']}"
    if model["adapters"] and source:
        source += f", with the LoRA adapter {escaped(', '.join(model['adapters']))} merged"
    lines = [
        "## How it was made",
        "",
        f"    {record['command']}",
        "",
        f"- {tool}, llama-cpp-python {identity['llama_cpp_python']}, Python {environment['python']},"
        f" {escaped(environment['os'])}",
        f"- Source: {source or escaped(model['name'])}; SHA-256 of its files: `{identity['source_sha256']}`",
        f"- Recipe: `{identity['recipe']}`",
        f"- Evaluation text: {_text(document['text']['name'], document['text']['sha256'])}",
    ]
    if found := record["calibration"]:
        lines.append(
            f"- Importance matrix: `imatrix.gguf`, over {found['tokens']:,} tokens of"
            f" {_text(found['text'], found['sha256'])}. License of the text: {escaped(found['license'])}"
        )
    return lines


def _text(name: str, sha256: str) -> str:
    shown = f"dgpt2-quant's text `{name}`" if is_bundled(name, sha256) else escaped(name)
    return f"{shown}, SHA-256 `{sha256}`"


def _limits(record: ReleaseJson) -> list[str]:
    model = record["model"]
    lines = [
        "## Limits and bias",
        "",
        "A quantized model has the limits and the biases of its base model, and quantization can change them. GPT-2"
        " models write fluent text that is often false, and repeat the prejudices of the text they were trained on. Do"
        " not use them where facts matter, or where people could be harmed, without an evaluation for that use.",
    ]
    if model["limits"]:
        lines += ["", "From the card of the base model:", "", f"> {escaped(model['limits'])}"]
    if model["base_model"]:
        lines += ["", f"The full card: [{model['base_model']}](https://huggingface.co/{model['base_model']})."]
    return lines


def _bias(record: ReleaseJson) -> list[str]:
    if not record["bias"]:
        return []
    prompts = [found["prompt"] for found in record["bias"][0]["prompts"]]
    rows = [
        [found["file"], with_interval(found["js_divergence"]), *(_tokens(one["tokens"]) for one in found["prompts"])]
        for found in record["bias"]
    ]
    columns = ["file", "JS divergence", *(escaped(f'"{prompt}"') for prompt in prompts)]
    return [
        "The likeliest next tokens after the prompts of GPT-2's model card, and the mean Jensen-Shannon divergence (in"
        " nats, 0 to 0.69, with its 95 % interval) between the continuations of 20 pairs of sentences that differ only"
        " in a group of people. A small value, or a small change, does not prove that a model is fair.",
        "",
        *markdown_table(columns, rows),
    ]


def _tokens(tokens: list[str]) -> str:
    return escaped(", ".join(token.strip() or repr(token) for token in tokens))


def _license(record: ReleaseJson) -> list[str]:
    model = record["model"]
    if model["license"] == UNKNOWN:
        return ["## License", "", "The base model states no license."]
    name, link = model["license_name"], model["license_link"]
    text = f"`{model['license']}`" + (f" ({escaped(name)})" if name else "") + (f": {escaped(link)}" if link else "")
    return ["## License", "", text]


def _link(file: str) -> str:
    return f"[{escaped(file)}]({quote(file)})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
