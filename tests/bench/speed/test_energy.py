"""Energy by RAPL's counters, in a made folder: few machines have them, and fewer let a test read them."""

import os
from pathlib import Path

import pytest
from dgpt2_quant.bench.speed.energy import EnergyMeter


def domain(folder: Path, name: str, label: str, counter: int, top: int = 1_000_000) -> Path:
    path = folder / name
    path.mkdir()
    (path / "name").write_text(f"{label}\n")
    (path / "energy_uj").write_text(f"{counter}\n")
    (path / "max_energy_range_uj").write_text(f"{top}\n")
    return path / "energy_uj"


def used(meter: EnergyMeter, *counters: tuple[Path, int]) -> float | None:
    before = meter.read()
    for path, value in counters:
        path.write_text(f"{value}\n")
    return meter.joules(before, meter.read())


def test_packages_are_added_up_once(tmp_path: Path) -> None:
    first = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    cores = domain(tmp_path, "intel-rapl:0:0", "core", 50)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 200)
    platform = domain(tmp_path, "intel-rapl:2", "psys", 0)
    again = domain(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    (tmp_path / "intel-rapl").mkdir()
    changes = ((first, 300_100), (second, 500_200), (cores, 99_999), (platform, 99_999), (again, 99_999))
    assert used(EnergyMeter(tmp_path), *changes) == pytest.approx(0.8)


def test_a_counter_that_wraps(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 900_000, top=1_000_000)
    assert used(EnergyMeter(tmp_path), (counter, 50_000)) == pytest.approx(0.15)


def test_no_counters(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        meter = EnergyMeter(folder)
        assert meter.read() is None
        assert used(meter) is None


@pytest.mark.parametrize("file", ["name", "max_energy_range_uj", "energy_uj"])
def test_invalid_counters(tmp_path: Path, file: str) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    (counter.parent / file).write_bytes(b"\xff?")
    assert used(EnergyMeter(tmp_path)) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_counters_that_only_root_may_read(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    counter.chmod(0)
    assert used(EnergyMeter(tmp_path)) is None


def test_a_counter_that_disappears(tmp_path: Path) -> None:
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    assert before == (100,)
    counter.unlink()
    assert meter.joules(before, meter.read()) is None
