"""Data sets by name: where each is published, and how it is downloaded.

Only a data set that is named is downloaded: from the Hugging Face Hub with its library (with its cache, mirrors and
tokens), or from the publisher into our cache. A local file can replace each data set, plain or as the published
archive.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dgpt2_quant.core.archive import MOST_BYTES, DataFile
from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.cache_folder import cache_folder
from dgpt2_quant.core.errors import ModelNotFoundError, UsageError
from dgpt2_quant.core.read_input import Announce, Input, input_exists, read_input
from dgpt2_quant.core.text import BUNDLED, NamedText, as_text, load_text

_TIMEOUT = 30  # seconds without a byte
_HEAD = 4096  # bytes that distinguish an HTML page from the data


@dataclass(frozen=True)
class Dataset:
    """Where a data set is published: `file` on the Hub (in `repository`, at `revision`) or at `url`; `member` of the
    archive; `sha256` of the data if the publisher gives it; `header` is part of the first line of a table; `text` is
    whether it is running text."""

    file: str
    member: str | None = None
    repository: str | None = None
    revision: str | None = None
    url: str | None = None
    sha256: str | None = None
    header: str = ""
    text: bool = False

    @property
    def wanted(self) -> str:
        """The name of the data file itself."""
        return self.member or self.file.rsplit("/", 1)[-1]

    @property
    def page(self) -> str:
        """The address for a manual download."""
        if self.url:
            return self.url
        return f"https://huggingface.co/datasets/{self.repository}/resolve/{self.revision or 'main'}/{self.file}"


def _wikitext() -> Dataset:
    # the file of llama.cpp's scripts/get-wikitext-2.sh. WikiText-103 differs only in its training text: "the validation
    # and test sets are the same" (Merity et al. 2016, arXiv:1609.07843, section 4.3)
    return Dataset(
        "wikitext-2-raw-v1.zip",
        "wiki.test.raw",
        repository="ggml-org/ci",
        sha256="173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
        text=True,
    )


def _cbt(member: str) -> Dataset:
    # the archive of Hill et al. 2016 (arXiv:1511.02301); later commits of this repository have Parquet files instead
    commit = "7503a0643517afe02a86e4750d375a9686008efa"
    return Dataset("data/CBTest.tgz", member, repository="cam-cst/cbt", revision=commit)


DATASETS = {
    "wikitext2": _wikitext(),
    "wikitext103": _wikitext(),
    # OpenAI's version, https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl; the hash is on the
    # page of the repository
    "lambada": Dataset(
        "data/lambada_test_en.jsonl",
        repository="EleutherAI/lambada_openai",
        sha256="4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
    ),
    "cbt-cn": _cbt("cbtest_CN_test_2500ex.txt"),
    "cbt-ne": _cbt("cbtest_NE_test_2500ex.txt"),
    "cbt-cn-valid": _cbt("cbtest_CN_valid_2000ex.txt"),
    "cbt-ne-valid": _cbt("cbtest_NE_valid_2000ex.txt"),
    "crows-pairs": Dataset(
        "crows_pairs_anonymized.csv",
        url="https://raw.githubusercontent.com/nyu-mll/crows-pairs/master/data/crows_pairs_anonymized.csv",
        header="sent_more",
    ),
    "enwik8": Dataset("enwik8.zip", "enwik8", url="https://mattmahoney.net/dc/enwik8.zip", text=True),
    "text8": Dataset("text8.zip", "text8", url="https://mattmahoney.net/dc/text8.zip", text=True),
}


RUNNING_TEXTS = {dataset.wanted for dataset in DATASETS.values() if dataset.text}
"""The members that are preferred in an archive of several files."""


def load_bench_text(
    text: str | Path | NamedText = "evaluation",
    *,
    parse_special: bool = True,
    keep_crlf: bool = False,
    offline: bool = False,
    announce: Announce | None = None,
) -> NamedText:
    """A text to score: an argument of `load_text`, or the name of a data set of running text.

    A file has precedence over a data set of the same name. Raises `ModelNotFoundError` or `UsageError`.
    """
    if isinstance(text, NamedText):
        return text
    name = str(text)
    if name in DATASETS and not input_exists(text):
        if not DATASETS[name].text:
            raise UsageError(f"the data set {name} is not running text", f"Name a file, or one of: {_texts()}.")
        found = as_text(load_dataset(name, offline=offline), parse_special=parse_special, keep_crlf=keep_crlf)
        return found.announced(announce)
    try:
        return load_text(
            text, prefer=RUNNING_TEXTS, parse_special=parse_special, keep_crlf=keep_crlf, announce=announce
        )
    except ModelNotFoundError as error:
        hint = f"Name a file, - for stdin, or one of: {', '.join(BUNDLED)}, {_texts()}."
        raise ModelNotFoundError(error.message, hint) from error


def _texts() -> str:
    return ", ".join(key for key, dataset in DATASETS.items() if dataset.text)


def numbered_lines(file: DataFile) -> Iterator[tuple[int, str]]:
    """(number, line) of each line of a file, from 1."""
    yield from enumerate(as_text(file).text.split("\n"), 1)  # splitlines() splits at other characters too


def load_dataset(name: str, data: Input | None = None, *, offline: bool = False) -> DataFile:
    """The data set of that name, or its replacement `data`, plain or as the published archive.

    Raises `ModelNotFoundError` if it is not available, `UsageError` for a broken file.
    """
    dataset = DATASETS[name]
    if data is not None:
        return data.file(dataset.member)
    path = _from_hub(name, dataset, offline) if dataset.repository else _from_url(name, dataset, offline)
    # resolved, because the Hub's cache has a symbolic link
    hint = f"Delete {path.resolve()} to download it again, or set `data` to your copy of {dataset.wanted}."
    try:
        read = read_input(path, "data set")
        found = read.file(dataset.member)
    except UsageError as error:
        raise UsageError(error.message, hint) from error
    if dataset.sha256 and found.sha256 != dataset.sha256:
        message = f"{path} is not the published {dataset.wanted}: its sha256 is {found.sha256}"
        raise UsageError(message, hint)
    if not _can_be(dataset, read.content[:_HEAD]):
        raise UsageError(f"{path} is not {dataset.file}", hint)
    return found


def _from_hub(name: str, dataset: Dataset, offline: bool) -> Path:
    from importlib.metadata import version

    from httpx2 import HTTPError  # the HTTP client of huggingface_hub
    from huggingface_hub import constants, errors, hf_hub_download

    offline = offline or constants.is_offline_mode()
    try:
        return Path(
            hf_hub_download(
                str(dataset.repository),
                dataset.file,
                repo_type="dataset",
                revision=dataset.revision,
                library_name="dgpt2-quant",
                library_version=version("dgpt2-quant"),
                local_files_only=offline,
            )
        )
    except errors.LocalEntryNotFoundError as error:
        if offline:
            raise _not_here(name, dataset) from error
        raise _unreachable(name, dataset, error.__cause__ or error) from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _unreachable(name, dataset, error) from error


def _from_url(name: str, dataset: Dataset, offline: bool) -> Path:
    """The published file in our cache, downloaded if it is missing."""
    from huggingface_hub import constants

    assert dataset.url is not None
    # the key includes the address: another site may publish another file under the same name
    key = hashlib.sha256(dataset.url.encode()).hexdigest()[:16]
    path = cache_folder() / "datasets" / f"{key}-{dataset.file}"
    if path.is_file():
        return path
    if offline or constants.is_offline_mode():
        raise _not_here(name, dataset)
    from httpx2 import HTTPError, stream

    try:
        with (
            stream("GET", str(dataset.url), follow_redirects=True, timeout=_TIMEOUT) as response,
            output_file(path, overwrite=True) as file,
        ):
            response.raise_for_status()
            size, head = 0, b""
            for part in response.iter_bytes():
                size += len(part)
                head += part[: _HEAD - len(head)]
                if size > MOST_BYTES:
                    raise UsageError(f"{dataset.url} has more than {MOST_BYTES >> 20} MiB")
                file.write(part)
            if not _can_be(dataset, head):  # for example a login page, which the cache would keep
                raise _unreachable(name, dataset, ValueError(f"the answer is not {dataset.file}"))
    except HTTPError as error:
        raise _unreachable(name, dataset, error) from error
    return path


def _can_be(dataset: Dataset, head: bytes) -> bool:
    """Whether the first bytes can be those of the published file."""
    if dataset.file.endswith(".zip"):
        return head.startswith(b"PK\x03\x04")
    line = head.partition(b"\n")[0]
    return not head.lstrip().startswith(b"<") and dataset.header.encode() in line


def _not_here(name: str, dataset: Dataset) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"offline, and the data set {name} is not in the cache",
        f"{_manually(dataset)} Or run once without `offline` and HF_HUB_OFFLINE.",
    )


def _unreachable(name: str, dataset: Dataset, error: BaseException) -> ModelNotFoundError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return ModelNotFoundError(f"cannot download the data set {name}: {reason}", _manually(dataset))


def _manually(dataset: Dataset) -> str:
    return f"Get {dataset.wanted} from {dataset.page}, and set `data` to the file (`text` for a text to score)."
