"""Memory of the machine, as much of it as the process may use: whole, and free at present.

A control group (cgroup) that limits a container or a job counts the files it has read as used; the kernel gives that
memory back where it is needed, so that it is free here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Memory:
    """Bytes. `free` changes with every other process; `total` does not."""

    total: int
    free: int

    def share(self, ranks: int) -> "Memory":
        return Memory(self.total // ranks, self.free // ranks)


@dataclass(frozen=True)
class Hierarchy:
    """Where a version of cgroups is mounted, and the names of its files and of the file cache in memory.stat."""

    mount: str
    limit: str
    used: str
    file_cache: tuple[str, ...]


V2 = Hierarchy("sys/fs/cgroup", "memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable"))
V1 = Hierarchy(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def host_memory(root: Path = Path("/")) -> Memory:
    """Of this machine, or of the tightest control group around this process. root: of the files that are read."""
    of_machine = psutil.virtual_memory()
    total, free = of_machine.total, of_machine.available
    for hierarchy, folder in _groups(root):
        limit, used = (_number(folder / name) for name in (hierarchy.limit, hierarchy.used))
        if limit is None or used is None:  # "max", or not a folder of a group
            continue
        cached = sum(_statistics(folder).get(name, 0) for name in hierarchy.file_cache)
        total, free = min(total, limit), min(free, max(0, limit - used + min(cached, used)))
    return Memory(total, free)


def _groups(root: Path) -> Iterator[tuple[Hierarchy, Path]]:
    """The folders of the process's group and of all above it; a container often sees its own as the mount."""
    file = root / "proc/self/cgroup"
    for line in file.read_text().splitlines() if file.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        hierarchy = V1 if controllers else V2
        mount = root / hierarchy.mount
        folder = mount / path.lstrip("/") if ".." not in path else mount
        yield from ((hierarchy, place) for place in (folder, *folder.parents) if place.is_relative_to(mount))


def _number(file: Path) -> int | None:
    text = file.read_text().strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None


def _statistics(folder: Path) -> dict[str, int]:
    file = folder / "memory.stat"
    pairs = (line.split() for line in file.read_text().splitlines()) if file.is_file() else ()
    return {name: int(value) for name, value in pairs}
