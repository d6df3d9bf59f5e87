"""The number of usable cores, with fake control groups; and the environment while OpenMP is loaded."""

import os
from pathlib import Path

import pytest
from dgpt2_quant.core.cores import bounded_spin, quota_cores, threads_or_all, usable_cores
from dgpt2_quant.core.errors import UsageError


def control_groups(tmp_path: Path, membership: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """Writes a `/proc/self/cgroup` and the groups' folder with these files."""
    groups, mounted = tmp_path / "cgroup", tmp_path / "fs"
    groups.write_text(membership, "utf-8")
    mounted.mkdir()
    for name, text in limits.items():
        (mounted / name).parent.mkdir(parents=True, exist_ok=True)
        (mounted / name).write_text(text, "utf-8")
    return groups, mounted


class TestVersion2:
    @pytest.mark.parametrize(
        ("limit", "cores"),
        [
            ("200000 100000\n", 2),
            ("150000 100000\n", 1.5),
            ("5000 100000", 0.05),
            ("max 100000\n", None),
            ("max\n", None),
            ("", None),
            ("100000\n", None),
            ("many few\n", None),
            ("200000 0\n", None),
            ("-1 100000\n", None),
            ("0 100000\n", None),
            ("1 2 3\n", None),
        ],
    )
    def test_group_quota(self, tmp_path: Path, limit: str, cores: float | None) -> None:
        assert quota_cores(*control_groups(tmp_path, "0::/a\n", {"a/cpu.max": limit})) == cores

    def test_lowest_quota_of_the_parents_counts(self, tmp_path: Path) -> None:
        limits = {"cpu.max": "800000 100000", "a/cpu.max": "150000 100000", "a/b/cpu.max": "400000 100000"}
        assert quota_cores(*control_groups(tmp_path, "0::/a/b\n", limits)) == 1.5

    def test_parent_without_a_quota(self, tmp_path: Path) -> None:
        limits = {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}
        assert quota_cores(*control_groups(tmp_path, "0::/a/b/c\n", limits)) == 3

    def test_other_groups_are_ignored(self, tmp_path: Path) -> None:
        limits = {"other/cpu.max": "100000 100000", "a/other/cpu.max": "100000 100000"}
        assert quota_cores(*control_groups(tmp_path, "0::/a\n", limits)) is None

    def test_root_group(self, tmp_path: Path) -> None:
        # as inside a container, whose group is the root
        assert quota_cores(*control_groups(tmp_path, "0::/\n", {"cpu.max": "250000 100000"})) == 2.5

    def test_group_not_mounted(self, tmp_path: Path) -> None:
        found = quota_cores(*control_groups(tmp_path, "0::/not/there\n", {"cpu.max": "250000 100000"}))
        assert found == 2.5

    def test_reads_only_inside_the_mount(self, tmp_path: Path) -> None:
        (tmp_path / "cpu.max").write_text("100000 100000")
        assert quota_cores(*control_groups(tmp_path, "0::/../a\n", {"a/cpu.max": "max 100000"})) in (None, 1)
        assert quota_cores(tmp_path / "cgroup", tmp_path / "fs" / "a") is None


class TestVersion1:
    def test_version_1_quota(self, tmp_path: Path) -> None:
        limits = {"cpu,cpuacct/a/cpu.cfs_quota_us": "350000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}
        membership = "12:memory:/m\n4:cpu,cpuacct:/a\n1:name=systemd:/s\n"
        assert quota_cores(*control_groups(tmp_path, membership, limits)) == 3.5

    def test_no_quota(self, tmp_path: Path) -> None:
        limits = {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}
        assert quota_cores(*control_groups(tmp_path, "4:cpu:/a\n", limits)) is None

    def test_cpuset_is_ignored(self, tmp_path: Path) -> None:
        limits = {"cpuset/a/cpu.cfs_quota_us": "100000\n", "cpuset/a/cpu.cfs_period_us": "100000\n"}
        assert quota_cores(*control_groups(tmp_path, "4:cpuset:/a\n", limits)) is None

    def test_both_versions(self, tmp_path: Path) -> None:
        limits = {
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/a/cpu.cfs_quota_us": "200000\n",
            "cpu/a/cpu.cfs_period_us": "100000\n",
        }
        assert quota_cores(*control_groups(tmp_path, "4:cpu:/a\n0::/b\n", limits)) == 2


@pytest.mark.parametrize("membership", ["", "\n", "garbage\n", "a:b\n", "0::\n", "::\n", "4:cpu\n", "\0:\0:\0\n"])
def test_invalid_quota_is_ignored(tmp_path: Path, membership: str) -> None:
    assert quota_cores(*control_groups(tmp_path, membership, {})) is None


def test_no_control_groups(tmp_path: Path) -> None:
    assert quota_cores(tmp_path / "absent", tmp_path) is None
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    assert quota_cores(tmp_path / "bytes", tmp_path) is None


def test_at_least_one_core() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert threads_or_all(None) == usable_cores()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_affinity_limits_the_cores() -> None:
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, cores)


def test_requested_number_of_threads() -> None:
    assert threads_or_all(7) == 7
    with pytest.raises(UsageError, match="must be at least 1, not 0"):
        threads_or_all(0)


class TestBoundedSpin:
    @pytest.fixture(autouse=True)
    def _nothing_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)

    def test_spin_count_is_set_inside(self) -> None:
        before = dict(os.environ)
        with bounded_spin():
            assert int(os.environ["GOMP_SPINCOUNT"]) > 0
            assert {name for name in os.environ if name not in before} == {"GOMP_SPINCOUNT"}
        assert dict(os.environ) == before

    def test_environment_is_restored_after_an_error(self) -> None:
        before = dict(os.environ)
        with pytest.raises(ImportError), bounded_spin():
            raise ImportError
        assert dict(os.environ) == before

    @pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")])
    def test_user_setting_is_kept(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        monkeypatch.setenv(name, value)
        before = dict(os.environ)
        with bounded_spin():
            assert dict(os.environ) == before
        assert dict(os.environ) == before
