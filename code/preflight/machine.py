"""How much memory a process may use: the machine's, or the lowest limit of the control groups (cgroups) around it."""

from collections.abc import Iterator
from pathlib import Path

import psutil

# Where each version of control groups is mounted, and the file that holds the limit of a group.
V1 = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
V2 = "sys/fs/cgroup", "memory.max"


def host_memory(root: Path = Path("/")) -> int:
    """Bytes in total, used or free. root: where proc/ and sys/ are mounted."""
    texts = (file.read_text().strip() for file in _limit_files(root) if file.is_file())
    return min([psutil.virtual_memory().total, *(int(text) for text in texts if text.isdigit())])  # or "max": no limit


def _limit_files(root: Path) -> Iterator[Path]:
    """The limit files of the process's group and of every group above it."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, name = V1 if controllers else V2
        mount = root / mount
        # A container may be told the path of its group on the host, and see its own group as the mount.
        folder = mount / path.lstrip("/") if ".." not in path else mount
        yield from (group / name for group in (folder, *folder.parents) if group.is_relative_to(mount))
