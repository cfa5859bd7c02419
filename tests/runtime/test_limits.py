"""Limits of a container, read from made-up folder trees as Linux shows them."""

from pathlib import Path

import pytest

from kdtrain.runtime.limits import cpu_limit, memory_limit_bytes

GIB = 2**30
V1_UNLIMITED = str(2**63 - 4096)


def machine(root: Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mountinfo)
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


V2 = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"


def v1(mounted: str = "/") -> str:
    return (
        f"32 31 0:29 {mounted} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        f"35 31 0:32 {mounted} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    )


def test_version_2_in_a_container_with_its_own_namespace(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", V2, {"cpu.max": "150000 100000", "memory.max": str(4 * GIB)})
    assert cpu_limit(root) == 1.5
    assert memory_limit_bytes(root) == 4 * GIB


def test_version_2_the_lowest_limit_of_the_group_and_those_above_it_counts(tmp_path: Path) -> None:
    files = {
        "system.slice/job.scope/cpu.max": "max 100000",
        "system.slice/job.scope/memory.max": str(8 * GIB),
        "system.slice/cpu.max": "400000 200000",
        "system.slice/memory.max": str(2 * GIB),
        "other.slice/cpu.max": "100000 100000",
        "other.slice/memory.max": str(GIB),
    }
    root = machine(tmp_path, "0::/system.slice/job.scope\n", V2, files)
    assert cpu_limit(root) == 2.0
    assert memory_limit_bytes(root) == 2 * GIB


def test_version_2_max_is_no_limit(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/a\n", V2, {"a/cpu.max": "max 100000", "a/memory.max": "max"})
    assert cpu_limit(root) is None
    assert memory_limit_bytes(root) is None


def test_version_1_with_the_path_that_the_host_sees(tmp_path: Path) -> None:
    cgroup = "12:cpu,cpuacct:/docker/0123\n4:memory:/docker/0123\n1:name=systemd:/docker/0123\n"
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "50000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": str(GIB),
    }
    root = machine(tmp_path, cgroup, v1("/docker/0123"), files)
    assert cpu_limit(root) == 0.5
    assert memory_limit_bytes(root) == GIB


def test_version_1_below_the_root_group_with_limits_above(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/batch/cpu.cfs_quota_us": "300000",
        "cpu,cpuacct/batch/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/batch/one/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/batch/one/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": V1_UNLIMITED,
        "memory/batch/memory.limit_in_bytes": str(3 * GIB),
        "memory/batch/one/memory.limit_in_bytes": V1_UNLIMITED,
    }
    root = machine(tmp_path, "5:cpu,cpuacct:/batch/one\n4:memory:/batch/one\n", v1(), files)
    assert cpu_limit(root) == 3.0
    assert memory_limit_bytes(root) == 3 * GIB


def test_version_1_without_limits(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": V1_UNLIMITED,
    }
    root = machine(tmp_path, "5:cpu,cpuacct:/\n4:memory:/\n", v1(), files)
    assert cpu_limit(root) is None
    assert memory_limit_bytes(root) is None


def test_both_versions_on_one_machine(tmp_path: Path) -> None:
    mounts = v1() + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    files = {"unified/job/cpu.max": "200000 100000", "memory/job/memory.limit_in_bytes": str(GIB)}
    root = machine(tmp_path, "5:cpu,cpuacct:/\n4:memory:/job\n0::/job\n", mounts, files)
    assert cpu_limit(root) == 2.0
    assert memory_limit_bytes(root) == GIB


def test_a_mount_point_with_a_space_and_a_group_outside_the_namespace(tmp_path: Path) -> None:
    mounts = "30 22 0:26 / /sys/fs/cgroup/a\\040b rw - cgroup2 cgroup2 rw\n"
    root = machine(tmp_path, "0::/../elsewhere\n", mounts, {"a b/cpu.max": "100000 100000", "a b/memory.max": str(GIB)})
    assert cpu_limit(root) == 1.0
    assert memory_limit_bytes(root) == GIB


@pytest.mark.parametrize("of", [cpu_limit, memory_limit_bytes])
def test_a_system_without_cgroups_has_no_limit(of, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert of(tmp_path) is None
    assert of(machine(tmp_path, "0::/job\n", "", {})) is None


def test_this_machine_can_be_read() -> None:
    assert (cpu_limit() or 1.0) > 0
    assert (memory_limit_bytes() or 1) > 0
