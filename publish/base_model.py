"""What the checkpoint of a release states about itself: origin, license, languages, limits."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpt2_quant.quantize.checkpoint.model_card import card_license
from dgpt2_quant.quantize.checkpoint.resolve import LICENSE_FILES, Source

_ABOUT_LIMITS = r"\b(bias|biases|limit|limits|limitations?|risks?|out-of-scope|not for)\b"
_LONGEST_LIMITS = 900  # characters: a summary, next to the link to the whole card
_MARKUP = re.compile(r"^\s*(\||<|!\[|>>>|- \[)|^\s*```", re.MULTILINE)


@dataclass(frozen=True)
class BaseModel:
    """`repository` and `commit` are None unless the model is on the Hub; `limits` is text of the card, or empty."""

    name: str
    repository: str | None
    commit: str | None
    license: str | None
    languages: tuple[str, ...]
    limits: str
    license_file: Path | None


def read_base_model(source: Source) -> BaseModel:
    """Reads the model card and the license file of a checkpoint. What is missing is None or empty."""
    try:
        card = (source.folder / "README.md").read_text("utf-8", errors="replace")
    except OSError:
        card = ""
    license = card_license(source.folder)
    files = (source.folder / name for name in LICENSE_FILES)
    file = next((path for path in files if path.is_file()), None)
    return BaseModel(
        name=source.name,
        repository=source.repository,
        commit=source.commit,
        license=license,
        languages=tuple(_languages(card)),
        limits=limits_of(card),
        license_file=file or (_apache_license() if license == "apache-2.0" else None),
    )


def limits_of(card: str) -> str:
    """The beginning of the card's sections on limits and bias, as one paragraph of plain text; empty if there are none.

    A section begins with a heading, or with a paragraph whose first words are bold, that names limits or bias.
    """
    body = re.sub(r"\A---\r?\n.*?\n---\r?\n", "", card, flags=re.DOTALL)
    body = re.sub(r"^```.*?^```", "", body, flags=re.DOTALL | re.MULTILINE)
    found, inside = [], False
    for paragraph in re.split(r"\n\s*\n|\n(?=#)|(?<=\n)(?=#)", body):
        text = paragraph.strip()
        bold = re.match(r"\*\*(.+?)\*\*", text)
        if heading := re.match(r"#+\s*(.+)", text):
            inside = bool(re.search(_ABOUT_LIMITS, heading[1], re.IGNORECASE))
            text = text[heading.end() :].strip()
        wanted = inside or (bold and re.search(_ABOUT_LIMITS, bold[1], re.IGNORECASE))
        if wanted and text and not _MARKUP.search(text):
            found.append(_plain(text))
    return _shortened(" ".join(found))


def _plain(markdown: str) -> str:
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    text = re.sub(r"\[([^\]]*)\]\[[^\]]*\]", r"\1", text)
    text = re.sub(r"<[^>]+>", "", text)
    return " ".join(re.sub(r"[*`]+", "", text).split())


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST_LIMITS:
        return text
    cut = text[:_LONGEST_LIMITS]
    end = max(cut.rfind(mark) for mark in (". ", "! ", "? "))
    return cut[: end + 1] + " …" if end > 0 else cut + "…"


def _languages(card: str) -> list[str]:
    from huggingface_hub import ModelCard  # takes half a second

    try:
        stated: Any = ModelCard(card).data.get("language")
    except Exception:  # front matter of any kind, for which huggingface_hub and PyYAML raise errors of many classes
        return []
    return [name for name in ([stated] if isinstance(stated, str) else stated or []) if isinstance(name, str)]


def _apache_license() -> Path | None:
    """This package's own license file, whose text is the same for every work under the Apache License."""
    from importlib.metadata import files

    for file in files("dgpt2-quant") or []:
        if file.name == "LICENSE":
            return Path(str(file.locate()))
    return None
