"""Reads what a checkpoint states about itself in its model card: license, languages, limits."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpt2_quant.quantize.checkpoint.model_card import card_license
from dgpt2_quant.quantize.checkpoint.resolve import LICENSE_FILES, Source

LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_ABOUT_LIMITS = r"\b(bias|biases|limit|limits|limitations?|risks?|out-of-scope|not for)\b"
_LONGEST_CARD = 200_000  # characters; the rest is not read
_LONGEST_PARAGRAPH = 5000  # characters; matching markup in a line of brackets takes quadratic time
_LONGEST_LIMITS = 900  # characters: a summary, next to the link to the whole card
_MARKUP = re.compile(r"^\s*(\||<|!\[|>>>|- \[)|^\s*```", re.MULTILINE)


@dataclass(frozen=True)
class BaseModel:
    """`license` is the Hub's identifier, with `license_name` and `license_link` if it is `other`, or None; `limits` is
    text of the card, or empty."""

    license: str | None
    license_name: str | None
    license_link: str | None
    languages: tuple[str, ...]
    limits: str
    license_file: Path | None


def read_base_model(source: Source) -> BaseModel:
    """Reads the model card and the license file of a checkpoint. What is missing is None or empty."""
    try:
        with (source.folder / "README.md").open("rb") as stream:
            card = stream.read(_LONGEST_CARD).decode("utf-8-sig", errors="replace")
    except OSError:
        card = ""
    stated = _front_matter(card)
    licenses = [text.lower() for text in _texts(stated.get("license") or card_license(source.folder))]
    license, name = " ".join(licenses) or None, next(iter(_texts(stated.get("license_name"))), None)
    if license and not LICENSE_ID.fullmatch(license):  # words, or several: the Hub refuses them as an identifier
        license, name = "other", name or re.sub(r"[^a-z0-9.]+", "-", license).strip("-")
    files = (source.folder / name for name in LICENSE_FILES)
    file = next((path for path in files if path.is_file()), None)
    return BaseModel(
        license=license,
        license_name=name if license == "other" else None,
        license_link=next(iter(_texts(stated.get("license_link"))), None) if license == "other" else None,
        languages=tuple(_texts(stated.get("language"))),
        limits=limits_of(card),
        license_file=file,
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
            found.append(_plain(text[:_LONGEST_PARAGRAPH]))
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


def _front_matter(card: str) -> dict[str, Any]:
    if not card.startswith("---"):
        return {}
    from huggingface_hub import ModelCard  # takes half a second

    try:
        data: Any = ModelCard(card, ignore_metadata_errors=True).data
        found: dict[str, Any] = data.to_dict()
    except Exception:  # front matter of any kind, for which huggingface_hub and PyYAML raise errors of many classes
        return {}
    return found


def _texts(value: Any) -> list[str]:
    """The texts of a value that can be one or a list; YAML reads the language code `no` as false."""
    values = value if isinstance(value, list) else [value]
    found = ["no" if one is False else one.strip() for one in values if one is False or isinstance(one, str)]
    return [text for text in found if text]


def apache_license() -> Path | None:
    """This package's own license file, whose text is the same for every work under the Apache License."""
    from importlib.metadata import files

    for file in files("dgpt2-quant") or []:
        if file.name == "LICENSE":
            return Path(str(file.locate()))
    return None
