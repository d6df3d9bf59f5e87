"""Atomic file output, on both paths: files without a name until complete, and hidden files next to the target."""

import errno
import fcntl
import os
import stat
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import pytest
from dgpt2_quant.core.atomic_file import output_file, refuse_existing
from dgpt2_quant.core.errors import OutputError


@pytest.fixture(params=["nameless", "named", "refused"], autouse=True)
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the file is written: as on Linux, as elsewhere, and as on Linux without O_TMPFILE."""
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
    """Writes a part, and fails."""
    with output_file(target, overwrite=overwrite) as file:
        file.write(bytes(100_000))
        raise error


def descriptors() -> int:
    """The number of open descriptors, if the system reports them."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with output_file(target) as file:
        file.write(b"half")
        file.flush()
        assert not target.exists()
        file.write(b" and half")
    assert target.read_bytes() == b"half and half"
    assert names(tmp_path) == ["model.gguf"]


def test_unfinished_file_is_invisible_or_hidden(tmp_path: Path, road: str) -> None:
    with output_file(tmp_path / "model.gguf"):
        shown = names(tmp_path)
        assert len(shown) == (0 if road == "nameless" else 1)
        assert all(name.startswith(".model.gguf.") for name in shown)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("overwrite", [False, True])
def test_exception_leaves_no_file(error: type[BaseException], overwrite: bool, tmp_path: Path) -> None:
    with pytest.raises(error):
        begin(tmp_path / "model.gguf", error, overwrite)
    assert names(tmp_path) == []


def test_exception_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(RuntimeError):
        begin(target, RuntimeError, overwrite=True)
    assert target.read_bytes() == b"precious"
    assert names(tmp_path) == ["model.gguf"]


def test_existing_file_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError) as caught, output_file(target):
        pytest.fail("the block has run")
    assert caught.value.message == f"{target} already exists"
    assert "`overwrite`" in caught.value.hint
    assert target.read_bytes() == b"precious"


def test_overwrite_does_not_disturb_an_open_reader(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.write_bytes(b"the old one")
    with target.open("rb") as reader:
        with output_file(target, overwrite=True) as file:
            file.write(b"new")
            assert target.read_bytes() == b"the old one"
        assert reader.read() == b"the old one"
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["model.gguf"]


def test_overwrite_creates_a_missing_file(tmp_path: Path) -> None:
    with output_file(tmp_path / "model.gguf", overwrite=True) as file:
        file.write(b"new")
    assert (tmp_path / "model.gguf").read_bytes() == b"new"


def test_file_created_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with pytest.raises(OutputError, match="it already exists") as caught, output_file(target):
        target.write_bytes(b"theirs")
    assert "`overwrite`" in caught.value.hint
    assert target.read_bytes() == b"theirs"
    assert names(tmp_path) == ["model.gguf"]


def test_broken_link_counts_as_existing(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="it already exists"), output_file(target) as file:
        file.write(b"ours")
    assert names(tmp_path) == ["model.gguf"]
    assert target.is_symlink()


def test_missing_folders_are_created(tmp_path: Path) -> None:
    with output_file(tmp_path / "a" / "b" / "model.gguf") as file:
        file.write(b"new")
    assert (tmp_path / "a" / "b" / "model.gguf").read_bytes() == b"new"


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    with output_file(tmp_path / "ours") as file:
        file.write(b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.parametrize("name", ["x" * 250 + ".gguf", "é" * 124 + ".gguf", "日" * 83 + ".gguf"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_longest_file_name(name: str, overwrite: bool, tmp_path: Path) -> None:
    with output_file(tmp_path / name, overwrite=overwrite) as file:
        file.write(b"new")
    assert names(tmp_path) == [name]


def test_too_long_file_name_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File name too long"), output_file(tmp_path / ("x" * 256)) as file:
        file.write(b"new")
    assert names(tmp_path) == []


def test_write_error_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with pytest.raises(OutputError) as caught, output_file(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.message == f"cannot write {target}: the disk is full"
    assert "`output`" in caught.value.hint
    assert names(tmp_path) == []


def write_interrupted_at(moment: int, target: Path, overwrite: bool) -> bool:
    """Whether there was such a moment: the Nth at which Python looks for signals, on entry to a function of its own
    and after one of C's."""
    seen = 0

    def interrupt(frame: FrameType, event: str, arg: object) -> None:
        nonlocal seen
        seen += event in ("call", "c_return")
        if seen == moment:
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        with output_file(target, overwrite=overwrite) as file:
            file.write(b"new")
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # scandir, of pathlib
def test_interrupt_at_any_line_leaves_no_file_or_folder(overwrite: bool, tmp_path: Path) -> None:
    """Regression: an interrupt on entry to `Path.unlink` left a hidden file, once in 10,000 runs."""
    target = tmp_path / "folder" / "x.gguf"
    with output_file(target):  # first run: imports and caches add no interrupts to the second
        pass
    moment = 0
    interrupted = True
    while interrupted:
        target.unlink(missing_ok=True)
        if target.parent.exists():
            target.parent.rmdir()
        if overwrite:
            target.parent.mkdir()
            target.write_bytes(b"old")
        moment += 1
        interrupted = write_interrupted_at(moment, target, overwrite)
        left = [path.name for path in target.parent.iterdir()] if target.parent.exists() else ["x.gguf"]
        assert left == ["x.gguf"], moment
    assert target.read_bytes() == b"new"
    assert moment > 100


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_is_not_replaced(overwrite: bool, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        refuse_existing(tmp_path, overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_path_inside_a_file_is_refused(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    for target in (tmp_path / "notes" / "model.gguf", tmp_path / "notes" / "deeper" / "model.gguf"):
        with pytest.raises(OutputError, match="notes"), output_file(target, overwrite=overwrite):
            pytest.fail("the block has run")
    assert (tmp_path / "notes").read_text() == "precious"


def test_descriptors_are_closed(tmp_path: Path) -> None:
    open_before = descriptors()
    for number in range(5):
        with output_file(tmp_path / f"{number}.gguf") as file:
            file.write(b"new")
        with pytest.raises(RuntimeError), output_file(tmp_path / f"{number}.not"):
            raise RuntimeError
        with pytest.raises(OutputError), output_file(tmp_path / ("x" * 256)):
            pass
    assert descriptors() == open_before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("overwrite", [False, True])
def test_created_folders_are_removed_after_an_error(
    error: type[BaseException], overwrite: bool, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    for target in ("model.gguf", "there/model.gguf", "there/new/model.gguf", "a/b/c/model.gguf"):
        with pytest.raises(error):
            begin(tmp_path / target, error, overwrite)
        assert names(tmp_path) == ["there"]
        assert names(tmp_path / "there") == []


def test_created_folders_stay_if_not_empty(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(RuntimeError))
        stack.enter_context(output_file(tmp_path / "a" / "b" / "model.gguf"))
        (tmp_path / "a" / "notes").write_text("theirs")
        raise RuntimeError
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["notes"]


def test_folder_in_use_by_another_writer_stays(tmp_path: Path) -> None:
    """A file without a name does not keep its folder from being removed."""
    folder = tmp_path / "new"
    failing = ExitStack()
    failing.enter_context(output_file(folder / "first.gguf"))  # creates the folder
    with output_file(folder / "second.gguf") as file:
        with pytest.raises(RuntimeError), failing:
            raise RuntimeError
        file.write(b"whole")
    assert (folder / "second.gguf").read_bytes() == b"whole"


def hidden_file(folder: Path, name: str, number: int = 0) -> Path:
    """The hidden file that a killed writer leaves."""
    path = folder / f".{name[:50]}.{number:012x}.part"
    path.write_bytes(b"half")
    return path


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["model.gguf", "x" * 60 + ".gguf", "[*]?.gguf", "日本.gguf"])
def test_leftovers_of_killed_writers_are_removed(name: str, overwrite: bool, tmp_path: Path) -> None:
    for number in range(3):
        hidden_file(tmp_path, name, number)
    with output_file(tmp_path / name, overwrite=overwrite) as file:
        file.write(b"new")
    assert names(tmp_path) == [name]


def test_failing_writer_also_removes_leftovers(tmp_path: Path) -> None:
    hidden_file(tmp_path, "model.gguf")
    with pytest.raises(RuntimeError):
        begin(tmp_path / "model.gguf", RuntimeError, overwrite=False)
    assert names(tmp_path) == []


def test_files_of_running_writers_are_kept(tmp_path: Path) -> None:
    theirs = hidden_file(tmp_path, "model.gguf")
    with theirs.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with output_file(tmp_path / "model.gguf") as file:
            file.write(b"new")
        assert names(tmp_path) == sorted([theirs.name, "model.gguf"])
        assert theirs.read_bytes() == b"half"


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with output_file(target, overwrite=True) as one:
        one.write(b"one")
        with output_file(target, overwrite=True) as other:
            other.write(b"other")
        assert target.read_bytes() == b"other"
    assert target.read_bytes() == b"one"
    assert names(tmp_path) == ["model.gguf"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_retries_after_removal_before_the_lock(
    overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writer fails and removes the new folder as unused, or the new file as a leftover."""
    target, real, removed = tmp_path / "new" / "model.gguf", fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if how in (fcntl.LOCK_SH, fcntl.LOCK_EX) and how not in removed:
            removed.append(how)
            for hidden in target.parent.glob(".*"):
                hidden.unlink()
            if how == fcntl.LOCK_SH:
                target.parent.rmdir()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with output_file(target, overwrite=overwrite) as file:
        file.write(b"whole")
    assert removed == [fcntl.LOCK_SH, fcntl.LOCK_EX]
    assert names(target.parent) == ["model.gguf"]
    assert target.read_bytes() == b"whole"
    assert names(tmp_path) == ["new"]


def test_other_hidden_files_are_kept(tmp_path: Path) -> None:
    others = [
        hidden_file(tmp_path, "another.gguf").name,
        hidden_file(tmp_path, "model.gguf.gz").name,
        *(".model.gguf.part", ".model.gguf.0123456789ab.tmp", "model.gguf.0123456789ab.part", ".model.gguf.12345.part"),
    ]
    for name in others:
        (tmp_path / name).write_bytes(b"theirs")
    (tmp_path / ".model.gguf.0123456789ab.part").mkdir()
    with output_file(tmp_path / "model.gguf") as file:
        file.write(b"new")
    assert names(tmp_path) == sorted(["model.gguf", ".model.gguf.0123456789ab.part", *others])


@pytest.mark.parametrize("overwrite", [False, True])
def test_nul_byte_in_a_name_is_refused(overwrite: bool, tmp_path: Path) -> None:
    for target in (tmp_path / "a\0b.gguf", tmp_path / "a\0b" / "model.gguf"):
        with pytest.raises(OutputError), output_file(target, overwrite=overwrite):
            pytest.fail("the block has run")
    assert names(tmp_path) == []


def test_device_or_pipe_is_not_replaced(tmp_path: Path) -> None:
    """`-o /dev/null --overwrite` must not turn the device into a file."""
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(OutputError), output_file(pipe, overwrite=True) as file:
        file.write(b"new")
    assert pipe.is_fifo()
