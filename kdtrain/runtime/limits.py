"""The CPU quota and the memory limit of the container that this process runs in, from its control groups (cgroups).

Linux has two versions of them, and one machine may use both. A group is a folder; a limit of a group holds for the
groups below it, too, so the lowest limit from this process's group up to the mount point is the one that counts.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

NO_MEMORY_LIMIT_BYTES = 2**60
"""Version 1 writes an absent memory limit as a number close to 2**63, rounded to the machine's page size."""


def cpu_limit(root: Path = Path("/")) -> float | None:
    """Return how many CPUs' time this process may use, such as 1.5, or None if there is no quota.

    Args:
        root: The folder that holds `proc` and the mount points; another one than "/" is for tests.
    """
    quotas = map(_cpu_quota, _groups(root, "cpu"))
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this process and the others of its container may use together, or None without a limit.

    Args:
        root: The folder that holds `proc` and the mount points; another one than "/" is for tests.
    """
    limits = map(_memory_limit, _groups(root, "memory"))
    return min((limit for limit in limits if limit is not None), default=None)


def _cpu_quota(group: Path) -> float | None:
    if (written := _read(group / "cpu.max")) is not None:  # version 2: "150000 100000", or "max 100000"
        quota, _, period = written.partition(" ")
    else:
        quota, period = _read(group / "cpu.cfs_quota_us") or "-1", _read(group / "cpu.cfs_period_us") or ""
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _memory_limit(group: Path) -> int | None:
    written = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes") or "max"
    return int(written) if written.isdecimal() and int(written) < NO_MEMORY_LIMIT_BYTES else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's groups that may limit a controller, each followed by those above it."""
    mounts = list(_mounts(root))
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, names, own = line.split(":", 2)
        is_version_2 = number == "0" and not names
        if not is_version_2 and controller not in names.split(","):
            continue
        for mounted, point, kind, options in mounts:
            if kind == ("cgroup2" if is_version_2 else "cgroup") and (is_version_2 or controller in options):
                below = _below(PurePosixPath(own), PurePosixPath(mounted))
                yield from (root / point.lstrip("/") / folder for folder in (below, *below.parents))


def _mounts(root: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield (mounted group, mount point, file system, its options) of each line of /proc/self/mountinfo."""
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        mount, _, system = line.partition(" - ")
        fields, about = mount.split(" "), system.split(" ")
        if len(fields) >= 5 and len(about) >= 3:
            yield _unescaped(fields[3]), _unescaped(fields[4]), about[0], about[2].split(",")


def _below(own: PurePosixPath, mounted: PurePosixPath) -> PurePosixPath:
    """Return the path of a group below the mount point of the group `mounted`.

    A container may mount its own group alone, although /proc/self/cgroup gives the path that the host sees; a group
    outside of the namespace is written as "/..". In both cases the mount point itself is the nearest one to read.
    """
    if own.is_relative_to(mounted) and ".." not in own.parts:
        return own.relative_to(mounted)
    return PurePosixPath(".")


def _unescaped(path: str) -> str:
    r"""Return a path of mountinfo with its octal escapes, such as `\040` for a space, replaced."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _read(file: Path) -> str | None:
    """Return the text of a file, or None if it cannot be read: on other systems than Linux there are no cgroups."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
