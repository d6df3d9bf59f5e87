"""The memory that is left, with fake files of the system and of control groups."""

from pathlib import Path

import pytest
from dgpt2_quant.core.memory import available_memory

MEMINFO = (
    "MemTotal:       16000 kB\nMemFree:  100 kB\nMemAvailable:    4000 kB\nSwapFree:  1000 kB\nHugePages_Total: 0\n"
)
STAT = "anon 5\ninactive_file 30\nactive_file 20\n"


def left(folder: Path, membership: str, files: dict[str, str], meminfo: str | None = MEMINFO) -> int | None:
    for name, text in {"cgroup": membership, **({"meminfo": meminfo} if meminfo is not None else {}), **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return available_memory(folder / "meminfo", folder / "cgroup", folder / "fs")


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a\n", {}, 5_120_000),
        ("0::/a\n", {"fs/a/memory.max": "max", "fs/a/memory.current": "7", "fs/a/memory.stat": STAT}, 5_120_000),
        ("0::/a/b\n", {"fs/a/memory.max": "1000", "fs/a/memory.current": "300", "fs/a/memory.stat": STAT}, 750),
        ("0::/a\n", {"fs/a/memory.max": "100", "fs/a/memory.current": "300", "fs/a/memory.stat": STAT}, 0),
        ("0::/a\n", {"fs/a/memory.max": "1000", "fs/a/memory.current": "300"}, 5_120_000),  # not readable as a whole
        (
            "3:memory:/a\n",
            {
                "fs/memory/a/memory.limit_in_bytes": "1000",
                "fs/memory/a/memory.usage_in_bytes": "300",
                "fs/memory/a/memory.stat": "total_inactive_file 100\n",
            },
            800,
        ),
    ],
    ids=["no group", "no limit", "limit of a parent", "above the limit", "without statistics", "version 1"],
)
def test_system_and_control_groups(membership: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert left(tmp_path, membership, files) == expected


def test_another_system(tmp_path: Path) -> None:
    assert left(tmp_path, "", {}, meminfo=None) is None
    assert left(tmp_path, "", {}, meminfo="damaged") is None


def test_this_machine() -> None:
    available = available_memory()
    assert available is None or 10_000_000 < available < 1 << 50
