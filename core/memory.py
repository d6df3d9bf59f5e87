"""The memory that this process can still allocate."""

from pathlib import Path

from .control_groups import GROUPS, MOUNTED, control_groups

_MEMINFO = Path("/proc/meminfo")
_LIMITS = (("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
_RECLAIMABLE = ("inactive_file", "active_file")  # copies of files, which a group's use includes


def available_memory(meminfo: Path = _MEMINFO, groups: Path = GROUPS, mounted: Path = MOUNTED) -> int | None:
    """Bytes of memory and swap that are left, by the system and the control groups; None if unknown."""
    left = [_left_in(folder) for folder in control_groups("memory", groups, mounted)]
    try:
        fields = _fields(meminfo)
        left.append(1024 * (fields["MemAvailable:"] + fields.get("SwapFree:", 0)))
    except (OSError, ValueError, LookupError):  # not Linux
        pass
    return min((size for size in left if size is not None), default=None)


def _left_in(group: Path) -> int | None:
    """What the limit of a control group leaves; None for no limit."""
    for limit, used, prefix in _LIMITS:
        try:
            most, now = (int((group / name).read_text("ascii")) for name in (limit, used))
            fields = _fields(group / "memory.stat")
        except (OSError, ValueError, IndexError):  # no such file, or `max`
            continue
        return max(0, most - now + sum(fields.get(prefix + name, 0) for name in _RECLAIMABLE))
    return None


def _fields(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text("ascii").splitlines())
    return {line[0]: int(line[1]) for line in lines}
