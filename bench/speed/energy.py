"""The energy that the processor packages use, if the machine reports it.

Linux has RAPL counters in `/sys/class/powercap/intel-rapl:N` (Documentation/power/powercap/powercap.rst), for AMD
processors too. They include the idle power of the packages, but not memory modules, disks and the rest of the machine.
Most systems let only root read them.
"""

from dataclasses import dataclass
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")

Reading = tuple[int, ...]  # microjoules of each package


@dataclass(frozen=True)
class _Package:
    counter: Path
    top: int  # after which the counter restarts from 0


class EnergyMeter:
    """Reads the energy counters of all packages; none if the machine lacks them or they are not readable."""

    def __init__(self, folder: Path = _POWERCAP) -> None:
        self._packages = []
        # `intel-rapl:0:0` is a part of `intel-rapl:0`, and `intel-rapl-mmio:0` the same package again
        for domain in sorted(folder.glob("intel-rapl:*")):
            try:
                name = (domain / "name").read_text("ascii").strip()
                top = int((domain / "max_energy_range_uj").read_text("ascii"))
            except (OSError, ValueError):
                continue
            if name.startswith("package"):  # `psys` is the whole platform, packages included
                self._packages.append(_Package(domain / "energy_uj", top))

    def read(self) -> Reading | None:
        """All counters; None if there are none, or one cannot be read."""
        try:
            return tuple(int(package.counter.read_text("ascii")) for package in self._packages) or None
        except (OSError, ValueError):
            return None

    def joules(self, before: Reading | None, after: Reading | None) -> float | None:
        """The energy between two readings, less than one turn of a counter apart; None if one is missing."""
        if before is None or after is None:
            return None
        used = 0
        for package, first, last in zip(self._packages, before, after, strict=True):
            used += last - first + (package.top if last < first else 0)
        return used / 1e6
