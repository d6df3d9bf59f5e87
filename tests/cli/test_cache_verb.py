"""`dgpt2-quant cache` through the real program."""

import json
import os
import time
from pathlib import Path

import pytest
from dgpt2_quant.quantize.store.converted_models import model_files

from ..checkpoints import make_checkpoint
from .program import run_text as dgpt2

DAY = 86_400


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two in the cache, the first of them last used 40 days ago."""
    model = make_checkpoint(tmp_path / "tiny", layers=1, width=32, inner=32)
    paths = list(model_files(str(model), types=["f16", "q8_0"]).files.values())
    stamp = time.time() - 40 * DAY
    os.utime(paths[0], (stamp, stamp))
    return paths


def test_it_lists_what_is_there(files: list[Path], tmp_path: Path) -> None:
    shown = dgpt2("cache")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert dgpt2("cache", "ls").stdout == shown.stdout
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert rows[2][:3] == ["converted", "tiny", "Q8_0"]
    assert rows[2][-1] == str(files[1])
    assert time.strftime("%Y-%m-%d", time.localtime(time.time() - 40 * DAY)) in rows[3]
    assert shown.stdout.splitlines()[-1].endswith(f"in 3 files in {tmp_path / 'cache'}")
    document = json.loads(dgpt2("cache", "ls", "--json").stdout)
    assert document["folder"] == str(tmp_path / "cache")
    assert document["limit"] == 10_000_000_000
    assert [Path(entry["path"]) for entry in document["entries"][:2]] == files[::-1]
    assert document["bytes"] == sum(Path(entry["path"]).stat().st_size for entry in document["entries"])
    old = json.loads(dgpt2("cache", "--older-than", "30d", "--json").stdout)
    assert [entry["type"] for entry in old["entries"]] == ["F16"]


def test_it_empties(files: list[Path], tmp_path: Path) -> None:
    would = dgpt2("cache", "clear", "--older-than", "30d", "--dry-run")
    assert str(files[0]) in would.stdout
    assert "Would remove" in would.stdout
    assert all(path.exists() for path in files)
    done = json.loads(dgpt2("cache", "clear", "--older-than", "30d", "--json").stdout)
    assert [entry["path"] for entry in done["entries"]] == [str(files[0])]
    assert [path.exists() for path in files] == [False, True]
    rest = dgpt2("cache", "clear").stdout
    assert rest.startswith("Removed ")
    assert rest.endswith(f" in 2 files from {tmp_path / 'cache'}\n")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert dgpt2("cache", "clear").returncode == dgpt2("cache").returncode == 0


@pytest.mark.parametrize(
    "arguments", [["tidy"], ["clear", "--older-than", "30"], ["ls", "--dry-run"], ["clear", "--older-than", "-1d"]]
)
def test_what_it_does_not_take(arguments: list[str], files: list[Path]) -> None:
    refused = dgpt2("cache", *arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("Error: ")
    assert all(path.exists() for path in files)
