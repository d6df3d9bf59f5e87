"""Data sets by name and from files: archives that are not trusted, errors that name the line, downloads over HTTP."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from dgpt2_quant.bench.data import datasets
from dgpt2_quant.bench.data.datasets import DATASETS, Dataset, load_bench_text, load_dataset, numbered_lines
from dgpt2_quant.core import archive
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import ModelNotFoundError, UsageError
from dgpt2_quant.core.read_input import read_input
from dgpt2_quant.core.text import as_text

CONTENT = "Es war einmal ein König.\n".encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


PACK = {"zip": zipped, "tgz": tarred}


def read_data_file(path: str | Path, member: str | None = None, *, prefer: Collection[str] = ()) -> DataFile:
    return read_input(path, "data file").file(member, prefer=prefer)


class TestFiles:
    @pytest.mark.parametrize("kind", PACK)
    def test_a_member_of_an_archive_equals_the_file(self, tmp_path: Path, kind: str) -> None:
        members = {"top/other.txt": b"x", "top/data/king.txt": CONTENT, "top/last.txt": b"y"}
        packed = read_data_file(PACK[kind](tmp_path / f"a.{kind}", members), "king.txt")
        (tmp_path / "king.txt").write_bytes(CONTENT)
        assert packed == read_data_file(tmp_path / "king.txt", "king.txt") == DataFile("king.txt", CONTENT)
        assert packed.sha256 == SHA256
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"a.{kind}", "king.txt"])  # nothing unpacked

    @pytest.mark.parametrize("kind", PACK)
    def test_the_only_member_needs_no_name(self, tmp_path: Path, kind: str) -> None:
        one = PACK[kind](tmp_path / "one", {"../../king.txt": CONTENT})
        assert read_data_file(one) == DataFile("king.txt", CONTENT)
        two = PACK[kind](tmp_path / "two", {"a.txt": b"", "b.txt": b""})
        with pytest.raises(UsageError, match=r"two contains several files: a\.txt, b\.txt") as raised:
            read_data_file(two)
        assert raised.value.hint == "Unpack it, and name one of them."
        with pytest.raises(UsageError, match="empty contains no file"):
            read_data_file(PACK[kind](tmp_path / "empty", {"a/": b""} if kind == "zip" else {}))

    @pytest.mark.parametrize("kind", PACK)
    def test_of_several_members_the_preferred_one(self, tmp_path: Path, kind: str) -> None:
        members = {"w/wiki.train.raw": b"x", "w/wiki.test.raw": CONTENT, "w/LICENSE": b"y"}
        path = PACK[kind](tmp_path / "a", members)
        assert read_data_file(path, prefer=("enwik8", "wiki.test.raw")) == DataFile("wiki.test.raw", CONTENT)
        with pytest.raises(UsageError, match="a contains several files"):
            read_data_file(path, prefer=("wiki.train.raw", "wiki.test.raw"))

    @pytest.mark.parametrize("kind", PACK)
    def test_a_missing_member_is_named_with_what_is_there(self, tmp_path: Path, kind: str) -> None:
        path = PACK[kind](tmp_path / "a", {"x/queen.txt": b"", "king.txt.bak": b""})
        with pytest.raises(UsageError, match=r"does not contain king\.txt, but x/queen\.txt, king\.txt\.bak"):
            read_data_file(path, "king.txt")
        with pytest.raises(UsageError, match=r"does not contain king\.txt, but nothing"):
            read_data_file(PACK["tgz"](tmp_path / "empty", {}), "king.txt")

    @pytest.mark.parametrize("kind", PACK)
    def test_what_is_too_large_is_not_unpacked(self, tmp_path: Path, kind: str, monkeypatch: Any) -> None:
        monkeypatch.setattr(archive, "MOST_BYTES", 1 << 20)
        bomb = PACK[kind](tmp_path / "bomb", {"king.txt": bytes((1 << 20) + 1)})
        with pytest.raises(UsageError, match=r"king\.txt in .* has more than 1 MiB"):
            read_data_file(bomb, "king.txt")
        before = PACK["tgz"](tmp_path / "before", {"zeros": bytes(1 << 24) + b"0", "king.txt": CONTENT})
        with pytest.raises(UsageError, match="too large"):
            read_data_file(before, "king.txt")

    def test_a_header_that_claims_too_much(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(archive, "MOST_BYTES", 1 << 20)
        info = tarfile.TarInfo("names")
        info.type, info.size = tarfile.XHDTYPE, 1 << 33  # an extended header, which tarfile would read at once
        with gzip.open(tmp_path / "a.tgz", "wb") as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 21))
        with pytest.raises(UsageError, match=r"a\.tgz has a part of more than 1 MiB"):
            read_data_file(tmp_path / "a.tgz", "king.txt")

    def test_an_unusual_packing(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
            archive.writestr("king.txt", CONTENT)
        with pytest.raises(UsageError, match="unsupported compression method"):
            read_data_file(tmp_path / "a.zip", "king.txt")

    @pytest.mark.parametrize("cut", [10, 40, 300])
    @pytest.mark.parametrize("kind", PACK)
    def test_a_broken_archive(self, tmp_path: Path, kind: str, cut: int) -> None:
        whole = PACK[kind](tmp_path / "whole", {"king.txt": os.urandom(500)}).read_bytes()
        (tmp_path / "part").write_bytes(whole[:cut])
        with pytest.raises(UsageError, match="part"):
            read_data_file(tmp_path / "part", "king.txt")

    @pytest.mark.parametrize("content", [CONTENT, CONTENT * 100, b""])
    def test_a_gzip_file_of_one_text(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
        assert read_data_file(tmp_path / "a.jsonl.gz") == DataFile("a.jsonl", content)
        assert read_data_file(tmp_path / "a.jsonl.gz", "king.txt").content == content  # as a plain file of any name

    def test_a_gzip_file_of_one_text_is_bounded_too(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(archive, "MOST_BYTES", 1 << 20)
        (tmp_path / "a.gz").write_bytes(gzip.compress(b"a" * ((1 << 20) + 1)))
        with pytest.raises(UsageError, match=r"a\.gz has more than 1 MiB"):
            read_data_file(tmp_path / "a.gz")
        (tmp_path / "a.gz").write_bytes(gzip.compress(CONTENT)[:-9])
        with pytest.raises(UsageError, match=r"a\.gz"):
            read_data_file(tmp_path / "a.gz")

    def test_links_and_folders_are_not_members(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
            link = tarfile.TarInfo("king.txt")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        with pytest.raises(UsageError, match=r"does not contain king\.txt"):
            read_data_file(tmp_path / "a.tgz", "king.txt")

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"no data file '.*no\.txt'"):
            read_data_file(tmp_path / "no.txt")
        with pytest.raises(ModelNotFoundError, match=r"cannot read the data file .*: Is a directory"):
            read_data_file(tmp_path)
        with pytest.raises(ModelNotFoundError, match="null byte"):
            read_data_file("a\0b")

    def test_what_is_not_utf8_is_named_by_its_line(self) -> None:
        with pytest.raises(UsageError, match=r"king\.txt is not UTF-8: line 3,"):
            as_text(DataFile("king.txt", b"a\r\n\xc3\xb6\nb\xff\n"))

    def test_lines_end_with_lf_or_crlf_and_nothing_else(self) -> None:
        text = "\ufeffone\r\ntwo\u2028still two\x0c\n\nfour"
        assert list(numbered_lines(DataFile("a", text.encode()))) == [
            (1, "one"), (2, "two\u2028still two\x0c"), (3, ""), (4, "four"),
        ]  # fmt: skip


class TestBenchText:
    def test_bundled_texts_and_files_as_before(self, tmp_path: Path) -> None:
        assert load_bench_text().name == "evaluation"
        (tmp_path / "king.txt").write_bytes(CONTENT)
        found = load_bench_text(tmp_path / "king.txt")
        assert (found.name, found.sha256, found.text) == ("king.txt", SHA256, CONTENT.decode())

    def test_an_archive_of_one_file(self, tmp_path: Path) -> None:
        found = load_bench_text(str(zipped(tmp_path / "a.zip", {"king.txt": CONTENT})))
        assert (found.name, found.sha256, found.text) == ("king.txt", SHA256, CONTENT.decode())

    def test_the_packing_is_detected_by_content(self, tmp_path: Path) -> None:
        (tmp_path / "short.txt.gz").write_bytes(gzip.compress(CONTENT))
        found = load_bench_text(tmp_path / "short.txt.gz")
        assert (found.name, found.sha256, found.text) == ("short.txt", SHA256, CONTENT.decode())
        (tmp_path / "plain.gz").write_bytes(CONTENT)
        assert load_bench_text(tmp_path / "plain.gz").text == CONTENT.decode()
        assert load_bench_text(zipped(tmp_path / "packed.txt", {"king.txt": CONTENT})).text == CONTENT.decode()

    @pytest.mark.parametrize("member", ["wiki.test.raw", "enwik8", "text8"])
    def test_the_published_archive_of_a_running_text(self, tmp_path: Path, member: str) -> None:
        path = zipped(tmp_path / "a.zip", {"w/wiki.train.raw": b"x", f"w/{member}": CONTENT, "w/wiki.valid.raw": b"y"})
        found = load_bench_text(path)
        assert (found.name, found.text) == (member, CONTENT.decode())

    def test_a_file_has_precedence_over_a_data_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("wikitext2").write_bytes(CONTENT)
        assert load_bench_text("wikitext2").sha256 == SHA256

    def test_offline_the_error_names_file_and_flag(self) -> None:
        with pytest.raises(ModelNotFoundError, match="offline, and the data set wikitext2") as raised:
            load_bench_text("wikitext2", offline=True)
        assert "wiki.test.raw" in raised.value.hint
        assert "ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip" in raised.value.hint

    def test_other_names(self) -> None:
        with pytest.raises(UsageError, match="lambada is not running text"):
            load_bench_text("lambada")
        with pytest.raises(ModelNotFoundError) as raised:
            load_bench_text("wikitext")
        assert "evaluation, calibration, wikitext2, wikitext103" in raised.value.hint


@pytest.mark.parametrize("name", DATASETS)
def test_offline_errors_name_the_download(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"data set {name} ") as raised:
        load_dataset(name, offline=True)
    dataset = DATASETS[name]
    assert dataset.wanted in raised.value.hint
    assert dataset.page in raised.value.hint
    assert "`data`" in raised.value.hint
    assert (dataset.url is None) != (dataset.repository is None)


def test_hf_hub_offline_is_honoured_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("enwik8", "lambada"):
        with pytest.raises(ModelNotFoundError, match="offline"):
            load_dataset(name)


def test_a_local_archive_gives_the_member(tmp_path: Path) -> None:
    path = tarred(tmp_path / "CBTest.tgz", {"CBTest/data/cbtest_NE_test_2500ex.txt": CONTENT, "CBTest/README": b""})
    assert load_dataset("cbt-ne", read_input(path)) == DataFile("cbtest_NE_test_2500ex.txt", CONTENT)
    with pytest.raises(UsageError, match=r"cbtest_CN_test_2500ex\.txt"):
        load_dataset("cbt-cn", read_input(path))


class Server(ThreadingHTTPServer):
    """Files by path; counts the GET requests. What begins with `cut` breaks off."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.gets = files, list[str]()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("ETag", f'"{hashlib.sha256(content or b"").hexdigest()}"')
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.end_headers()
        if self.command == "GET":
            self.server.gets.append(self.path)
            if "cut" in self.path:
                self.close_connection = True
                content = (content or b"")[:10]
            self.wfile.write(content or b"")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Silent: stderr belongs to the test report."""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    with Server(files) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class TestDownload:
    @pytest.fixture(autouse=True)
    def _online(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[Server]:
        packed = zipped(tmp_path / "published.zip", {"king.txt": CONTENT}).read_bytes()
        with serving({"/king.zip": packed, "/cut/king.zip": packed}) as server:
            yield server

    def test_a_second_load_reads_the_cache(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        dataset = Dataset("king.zip", "king.txt", url=f"{server.url}/king.zip", text=True)
        monkeypatch.setitem(datasets.DATASETS, "king", dataset)
        assert load_bench_text("king").text == CONTENT.decode()
        assert load_dataset("king", offline=True) == DataFile("king.txt", CONTENT)
        assert server.gets == ["/king.zip"]

    @pytest.mark.parametrize("path", ["/nothing.zip", "/cut/king.zip"])
    def test_a_failed_download_leaves_no_file(
        self, server: Server, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setitem(datasets.DATASETS, "king", Dataset("king.zip", "king.txt", url=f"{server.url}{path}"))
        with pytest.raises(ModelNotFoundError, match="cannot download the data set king") as raised:
            load_dataset("king")
        assert "king.txt from http" in raised.value.hint
        assert "`data`" in raised.value.hint
        assert not [found for found in (tmp_path / "cache").rglob("*") if found.is_file()]

    @pytest.mark.parametrize(
        ("dataset", "content"),
        [
            (Dataset("king.zip", "king.txt"), b"<!DOCTYPE html><title>Log in</title>"),
            (Dataset("king.zip", "king.txt"), b""),
            (Dataset("king.csv", header="bias_type"), b"<html>bias_type</html>"),
            (Dataset("king.csv", header="bias_type"), b"please log in\nbias_type\n"),
            (Dataset("king.txt"), b" \n<!doctype html>"),
        ],
    )
    def test_a_page_instead_of_the_data_is_not_kept(
        self, dataset: Dataset, content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with serving({"/king": content}) as server:
            monkeypatch.setitem(datasets.DATASETS, "king", replace(dataset, url=f"{server.url}/king"))
            with pytest.raises(ModelNotFoundError, match=f"cannot download the data set king: .*{dataset.file}"):
                load_dataset("king")
        assert not [found for found in (tmp_path / "cache").rglob("*") if found.is_file()]

    def test_a_table_with_its_column_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content = b"\xef\xbb\xbf,sent_more,bias_type\r\n0,a,b\r\n"
        with serving({"/king": content}) as server:
            dataset = Dataset("king.csv", header="bias_type", url=f"{server.url}/king")
            monkeypatch.setitem(datasets.DATASETS, "king", dataset)
            assert load_dataset("king").content == load_dataset("king", offline=True).content == content

    @pytest.mark.parametrize("broken", [b"<html>Log in</html>", b"PK\x03\x04 and no more"])
    def test_a_broken_file_in_the_cache_is_named(
        self, server: Server, broken: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        dataset = Dataset("king.zip", "king.txt", url=f"{server.url}/king.zip")
        monkeypatch.setitem(datasets.DATASETS, "king", dataset)
        load_dataset("king")
        [cached] = [found for found in (tmp_path / "cache").rglob("*") if found.is_file()]
        cached.write_bytes(broken)
        with pytest.raises(UsageError) as raised:
            load_dataset("king")
        assert f"Delete {cached}" in raised.value.hint
        cached.unlink()
        assert load_dataset("king").content == CONTENT

    def test_no_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(datasets.DATASETS, "king", Dataset("king.txt", url="http://127.0.0.1:9/king.txt"))
        with pytest.raises(ModelNotFoundError, match="cannot download the data set king: ConnectError"):
            load_dataset("king")

    def test_another_content_than_the_published_one(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        dataset = Dataset("king.zip", "king.txt", url=f"{server.url}/king.zip", sha256="0" * 64)
        monkeypatch.setitem(datasets.DATASETS, "king", dataset)
        with pytest.raises(UsageError, match=f"is not the published king.txt: .* is {SHA256}") as raised:
            load_dataset("king")
        assert "Delete " in raised.value.hint

    def test_too_much(self, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(datasets, "MOST_BYTES", 10)
        monkeypatch.setitem(datasets.DATASETS, "king", Dataset("king.zip", "king.txt", url=f"{server.url}/king.zip"))
        with pytest.raises(UsageError, match=r"king\.zip has more than"):
            load_dataset("king")
        assert not [found for found in (tmp_path / "cache").rglob("*") if found.is_file()]


def test_from_the_hub_over_http(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads its settings when it is imported."""
    packed = zipped(tmp_path / "king.zip", {"wiki.test.raw": CONTENT}).read_bytes()
    code = (
        "from dataclasses import replace\nfrom dgpt2_quant.bench.data import datasets\n"
        "sets = datasets.DATASETS\nsets['wikitext2'] = replace(sets['wikitext2'], sha256=None)\n"
        "print(datasets.load_bench_text('wikitext2').sha256)"
    )
    outer = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    with serving({"/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip": packed}) as server:
        environment = outer | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        call = [sys.executable, "-c", code]
        first = subprocess.run(call, env=environment, capture_output=True, text=True, check=True)
        assert first.stdout.strip() == SHA256
        assert len([path for path in server.gets if path.startswith("/datasets/")]) == 1
    again = subprocess.run(
        call, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True
    )  # from the Hub's cache
    assert again.stdout.strip() == SHA256
