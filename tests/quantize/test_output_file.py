"""A file appears whole or not at all, on both roads: without a name until it is complete, and beside its target."""

import errno
import os
import stat
from pathlib import Path

import pytest
from dgpt2_quant.quantize.errors import OutputError
from dgpt2_quant.quantize.output_file import output_file, refuse_existing


@pytest.fixture(params=["nameless", "named", "refused"], autouse=True)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the file is written: as Linux can, as other systems do, as Linux does where the file system can not."""
    road = str(request.param)
    if road == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif road == "refused":
        real = os.open

        def without(path: str | Path, flags: int, mode: int = 0o777) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return real(path, flags, mode)

        monkeypatch.setattr(os, "open", without)
    if road != "named" and not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no files without a name")
    return road


def begin(target: Path, error: type[BaseException], overwrite: bool) -> None:
    """Writes a part, and then fails."""
    with output_file(target, overwrite=overwrite) as file:
        file.write(bytes(100_000))
        raise error


def descriptors() -> int:
    """How many this process has open, where the system says."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with output_file(target) as file:
        file.write(b"half")
        file.flush()
        assert not target.exists()
        file.write(b" and half")
    assert target.read_bytes() == b"half and half"
    assert names(tmp_path) == ["model.gguf"]


def test_while_it_is_written_its_folder_shows_nothing_or_a_hidden_name(tmp_path: Path, road: str) -> None:
    with output_file(tmp_path / "model.gguf"):
        shown = names(tmp_path)
        assert len(shown) == (0 if road == "nameless" else 1)
        assert all(name.startswith(".model.gguf.") for name in shown)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_exception_in_the_block_leaves_nothing(error: type[BaseException], overwrite: bool, tmp_path: Path) -> None:
    with pytest.raises(error):
        begin(tmp_path / "model.gguf", error, overwrite)
    assert names(tmp_path) == []


def test_an_exception_leaves_what_would_have_been_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(RuntimeError):
        begin(target, RuntimeError, overwrite=True)
    assert target.read_bytes() == b"precious"
    assert names(tmp_path) == ["model.gguf"]


def test_an_existing_file_is_refused_at_once(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError) as caught, output_file(target):
        pytest.fail("the block has run")
    assert caught.value.message == f"{target} exists already"
    assert "--overwrite" in caught.value.hint
    assert target.read_bytes() == b"precious"


def test_overwrite_replaces_and_keeps_an_open_reader_whole(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"the old one")
    with target.open("rb") as reader:
        with output_file(target, overwrite=True) as file:
            file.write(b"new")
            assert target.read_bytes() == b"the old one"
        assert reader.read() == b"the old one"
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["model.gguf"]


def test_overwrite_writes_what_is_not_there_as_well(tmp_path: Path) -> None:
    with output_file(tmp_path / "model.gguf", overwrite=True) as file:
        file.write(b"new")
    assert (tmp_path / "model.gguf").read_bytes() == b"new"


def test_a_name_that_was_taken_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with pytest.raises(OutputError, match="it exists already") as caught, output_file(target):
        target.write_bytes(b"theirs")
    assert "--overwrite" in caught.value.hint
    assert target.read_bytes() == b"theirs"
    assert names(tmp_path) == ["model.gguf"]


def test_a_dangling_link_is_a_name_that_is_taken(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="it exists already"), output_file(target) as file:
        file.write(b"ours")
    assert names(tmp_path) == ["model.gguf"]
    assert target.is_symlink()


def test_folders_are_made(tmp_path: Path) -> None:
    with output_file(tmp_path / "a" / "b" / "model.gguf") as file:
        file.write(b"new")
    assert (tmp_path / "a" / "b" / "model.gguf").read_bytes() == b"new"


def test_it_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    with output_file(tmp_path / "ours") as file:
        file.write(b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.parametrize("name", ["x" * 250 + ".gguf", "é" * 124 + ".gguf", "日" * 83 + ".gguf"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_longest_names_are_possible(name: str, overwrite: bool, tmp_path: Path) -> None:
    with output_file(tmp_path / name, overwrite=overwrite) as file:
        file.write(b"new")
    assert names(tmp_path) == [name]


def test_a_name_that_is_too_long_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File name too long"), output_file(tmp_path / ("x" * 256)) as file:
        file.write(b"new")
    assert names(tmp_path) == []


def test_an_error_of_writing_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with pytest.raises(OutputError) as caught, output_file(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.message == f"{target} can not be written: the disk is full"
    assert "-o" in caught.value.hint
    assert names(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_can_not_be_replaced_by_a_file(overwrite: bool, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        refuse_existing(tmp_path, overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_can_not_be_a_folder(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    for target in (tmp_path / "notes" / "model.gguf", tmp_path / "notes" / "deeper" / "model.gguf"):
        with pytest.raises(OutputError, match="notes"), output_file(target, overwrite=overwrite):
            pytest.fail("the block has run")
    assert (tmp_path / "notes").read_text() == "precious"


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    open_before = descriptors()
    for number in range(5):
        with output_file(tmp_path / f"{number}.gguf") as file:
            file.write(b"new")
        with pytest.raises(RuntimeError), output_file(tmp_path / f"{number}.not"):
            raise RuntimeError
        with pytest.raises(OutputError), output_file(tmp_path / ("x" * 256)):
            pass
    assert descriptors() == open_before
