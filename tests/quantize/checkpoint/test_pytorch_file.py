"""Files of torch.save: what is read, and that nothing in them is executed."""

import io
import os
import pickle
import random
import resource
import struct
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.quantize.checkpoint.pytorch_file import is_pytorch_file, read_pytorch_file

from ...checkpoints import bfloat16
from ..pytorch_writer import Tensor, save_legacy, save_zip

NUMBERS = np.random.default_rng(1).normal(0, 1, (6, 4)).astype(np.float32)
both_formats = pytest.mark.parametrize("save", [save_zip, save_legacy], ids=["zip", "legacy"])
Save = Callable[[Path, Any], Path]


@both_formats
def test_tensors_of_every_kind_are_read(save: Save, tmp_path: Path) -> None:
    half, double, brain = NUMBERS.astype(np.float16), NUMBERS.astype(np.float64), bfloat16(NUMBERS)
    state = OrderedDict(
        f32=Tensor(NUMBERS),
        f16=Tensor(half),
        f64=Tensor(double),
        bf16=Tensor(brain),
        parameter=Tensor(NUMBERS.copy(), parameter=True),
        shared=Tensor(NUMBERS),
        rows=Tensor(NUMBERS, NUMBERS[2:5]),
        transposed=Tensor(NUMBERS, NUMBERS.T),
        columns=Tensor(NUMBERS, NUMBERS[:, 1:3]),
        scalar=Tensor(np.array(3.5, np.float32)),
    )
    state._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]
    path = save(tmp_path / "model.bin", {"model": state, "iter_num": 7, "best": 1.5, "on": True, "none": None})
    assert is_pytorch_file(path)
    found = read_pytorch_file(path)
    assert [found[name] for name in ("iter_num", "best", "on", "none")] == [7, 1.5, True, None]
    expected = {
        **{"f32": NUMBERS, "f16": half, "f64": double, "bf16": (brain.astype(np.uint32) << 16).view(np.float32)},
        **{"parameter": NUMBERS, "shared": NUMBERS, "rows": NUMBERS[2:5], "transposed": NUMBERS.T},
        **{"columns": NUMBERS[:, 1:3], "scalar": np.array(3.5, np.float32)},
    }
    assert found["model"].keys() == expected.keys()
    for name, data in expected.items():
        tensor = found["model"][name]
        assert (tensor.name, tensor.shape) == (name, data.shape)
        np.testing.assert_array_equal(tensor.read(), data)
        if data.ndim:
            np.testing.assert_array_equal(tensor.read(1, 2), data[1:3])


class Call:
    """Pickled as a call of a function, as a hostile file would have it."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments, state) if state else (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = {
    "posix.system": Call(os.system, "touch executed"),
    "eval": {"weights": [Call(eval, "open('executed', 'w')")]},
    "getattr": Call(getattr, [1], "append"),
    "Popen": Call(subprocess.Popen, ["touch", "executed"]),
    "io.open": OrderedDict(a=Call(io.open, "executed", "w")),
    "pickle.loads": Call(pickle.loads, b"."),
    "functools.partial": Call(__import__("functools").partial, os.system, "touch executed"),
}


@both_formats
@pytest.mark.parametrize("named", HOSTILE)
def test_a_hostile_pickle_is_refused_by_the_name_of_what_it_calls(named: str, save: Save, tmp_path: Path) -> None:
    path = save(tmp_path / "model.bin", HOSTILE[named])
    for at_once in (path, tmp_path / "again.bin"):
        at_once.write_bytes(path.read_bytes())
        with pytest.raises(CheckpointError, match=rf"asks for .*{named}"):
            read_pytorch_file(at_once)
    assert not (tmp_path / "executed").exists()
    assert not Path("executed").exists()


def zipped(path: Path, pickled: bytes, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"a/data/{key}", data)
    return path


RAW = {
    "an object of": b"(ios\nsystem\n.",
    "posix.system": b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85\x81.",
    "the opcode EXT1": b"\x80\x02\x82\x01.",
    "the opcode NEXT_BUFFER": b"\x80\x05\x97.",
    "a call of ls": b"\x80\x02X\x02\x00\x00\x00ls)R.",
    "attributes of a list": b"\x80\x02]}b.",
    "torch.load": b"\x80\x02ctorch\nload\n.",
    "ends too early|pickle exhausted": b"\x80\x02]",
    "not a sound": b"\x80\x02.",
    "no mark": b"\x80\x02]e.",
    "a text or number of 4294967295 bytes": b"\x80\x02X\xff\xff\xff\xff.",
    "nested too deeply": b"\x80\x02" + b"]" * 200 + b"a" * 199 + b".",
    "the key a tuple": b"\x80\x02}" + b")" + b"2\x86" * 60 + b"K\x01s.",
    "not a storage": b"\x80\x02K\x01Q.",
}


@pytest.mark.parametrize("why", RAW)
def test_a_pickle_that_no_pickler_writes_is_refused(why: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=why):
        read_pytorch_file(zipped(tmp_path / "model.bin", RAW[why]))


def test_shared_containers_are_looked_at_once(tmp_path: Path) -> None:
    """2 to the power of 45 paths lead to the innermost one."""
    assert read_pytorch_file(zipped(tmp_path / "model.bin", b"\x80\x02)" + b"2\x86" * 45 + b".")) is not None


NESTED = b")" + b"2\x86" * 60  # its text, and its hash, take exponential time
SIZE = b"\x80\x02ctorch\nSize\nq\x00X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"\x85q\x01"
BOMBS = {
    "a version": b"\x80\x02" + NESTED + b".",
    "keys": b"\x80\x02M\xe9\x03."
    + b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s."
    + b"\x80\x02}.\x80\x02]"
    + NESTED
    + b"a.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_nested_values_in_old_files_are_refused_at_once(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + BOMBS[bomb] + b"\x80\x02}." * 3)
    with pytest.raises(CheckpointError):
        read_pytorch_file(path)


@pytest.mark.parametrize(
    ("pickled", "why"),
    [
        (b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(" + NESTED + b"NNNtR.", "asks for a tuple"),
        (SIZE + b"R0" + b"h\x00h\x01R0" * 10_000 + b"N.", "an invalid shape"),
        (
            b"\x80\x02ccollections\nOrderedDict\nq\x00]("
            + b"K\x01K\x02\x86" * 1000
            + b"e\x85q\x01R"
            + b"h\x00h\x01R" * 50_000
            + b".",
            "",
        ),
    ],
    ids=["nested", "copies of a text", "copies of pairs"],
)
def test_pickles_that_copy_again_and_again_take_little_memory(pickled: bytes, why: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = zipped(tmp_path / "model.bin", pickled)
    if why:
        with pytest.raises(CheckpointError, match=why):
            read_pytorch_file(path)
    else:
        assert read_pytorch_file(path) == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def longs(*numbers: int) -> bytes:
    return b"".join(b"J" + struct.pack("<i", number) for number in numbers)


def tensor_pickle(tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, numel: int) -> bytes:
    """The pickle of a file of NUMBERS, with another description of its only tensor."""
    path = save_zip(tmp_path / "sound.bin", {"w": Tensor(NUMBERS)})
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("archive/data.pkl")
    for before, after in [
        (b"K\x00K\x06K\x04\x86", longs(offset, *shape) + b"\x86"),
        (b"K\x04K\x01\x86", longs(*strides) + b"\x86"),
        (b"K\x18", longs(numel)),
    ]:
        assert pickled.count(before) == 1
        pickled = pickled.replace(before, after)
    return pickled


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "numel", "why"),
    [
        ((1 << 30, 1 << 30), (0, 0), 0, 24, "in a storage of 24 numbers"),  # 4 exabytes from 24 numbers
        ((6, 5), (5, 1), 0, 24, "in a storage of 24 numbers"),
        ((6, 4), (4, 1), 1, 24, "in a storage of 24 numbers"),
        ((-6, 4), (4, 1), 0, 24, "sound shape"),
        ((6, 4), (4, -1), 0, 24, "sound shape"),
        ((6, 4), (4, 1), 0, 25, "has 96 bytes"),
        ((6, 4), (4, 1), 0, 1 << 30, "has 96 bytes"),
        ((6, 4), (4, 1), 0, -1, "-1 numbers"),
    ],
)  # fmt: skip
def test_a_tensor_beyond_its_storage_is_refused(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int, numel: int, why: str, tmp_path: Path
) -> None:
    pickled = tensor_pickle(tmp_path, shape, strides, offset, numel)
    with pytest.raises(CheckpointError, match=why):
        read_pytorch_file(zipped(tmp_path / "model.bin", pickled, **{"0": NUMBERS.tobytes()}))


def test_zips_that_torch_does_not_write_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="compressed"):
        read_pytorch_file(save_zip(tmp_path / "a.bin", {"w": Tensor(NUMBERS)}, compress=True))
    with pytest.raises(CheckpointError, match="big-endian"):
        read_pytorch_file(save_zip(tmp_path / "b.bin", {"w": Tensor(NUMBERS)}, byteorder="big"))
    with zipfile.ZipFile(tmp_path / "c.bin", "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    with pytest.raises(CheckpointError, match=r"without data\.pkl"):
        read_pytorch_file(tmp_path / "c.bin")
    (tmp_path / "d.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"a pickle that torch\.save"):
        read_pytorch_file(tmp_path / "d.bin")


@both_formats
def test_damaged_files_are_refused_in_bounded_memory_and_time(save: Save, tmp_path: Path) -> None:
    """Cut, and with bytes changed at random places: each is read, or refused by `CheckpointError`."""
    whole = save(tmp_path / "model.bin", {"w": Tensor(NUMBERS), "n": 3}).read_bytes()
    chance = random.Random(7)
    path = tmp_path / "damaged.bin"
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(chance.choice([0, 1, 1, 2, 8])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([len(damaged), len(damaged), chance.randrange(len(damaged))])])
        try:
            for tensor in read_pytorch_file(path).values():
                if hasattr(tensor, "read"):
                    tensor.read()
        except (CheckpointError, AttributeError):  # the latter: the object is no dictionary any more
            refused += 1
    assert refused > 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
