"""The Linux control groups of this process, whose limits apply to it (`man 7 cgroups`)."""

from collections.abc import Iterator
from pathlib import Path

GROUPS, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def control_groups(controller: str, groups: Path = GROUPS, mounted: Path = MOUNTED) -> Iterator[Path]:
    """The folders of the groups that limit `controller` (`cpu` or `memory`): the own group and its parents.

    Of version 2 and of version 1; none where there are no groups. A folder may not exist.
    """
    try:
        lines = groups.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = mounted / controllers if controllers else mounted
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            yield folder
            if folder == top:
                break
