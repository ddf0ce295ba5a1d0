"""Decides by the free memory whether a restore keeps all new values until the end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import keras

from keras_trainops.backends import backend
from keras_trainops.restoring.planning.assignment import variable_bytes

How = Literal["auto", "bounded", "once"]
_ROOM = 2  # times the bytes of the new values: they wait, and tensors are adapted or cast
_UNLIMITED = 1 << 60  # bytes; cgroups v1 write a number above this if there is no limit


def require_valid(memory: How) -> None:
    """Check the argument `memory`.

    Raises:
        ValueError: If it is not one of the three.
    """
    if memory not in get_args(How):
        raise ValueError(f"`memory` must be one of {get_args(How)}. Received: {memory!r}")


def has_room(memory: How, variables: Sequence[keras.Variable], root: Path = Path("/")) -> bool:
    """Return True if new values of all variables may be in memory at once.

    Variables of an accelerator would keep their old values in its memory, whose size is unknown.

    Args:
        memory: The argument of `restore`.
        variables: The variables that get new values.
        root: The root of the file system.
    """
    if memory != "auto":
        return memory == "once"
    left = free_memory(root)
    needed = _ROOM * sum(map(variable_bytes, variables))
    return left is not None and needed <= left and all(map(backend().is_in_host_memory, variables))


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still allocate without swapping; None if unknown.

    Args:
        root: The root of the file system.
    """
    available = _number_in(root / "proc/meminfo", "MemAvailable:")
    if available is None:
        return None
    return max(0, min([available << 10, *_left_in_cgroups(root), *_left_of_addresses(root)]))


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Yield what the limits of this process's cgroups leave, and those of the groups above."""
    for folder, limit, usage in _cgroups(root):
        most, used = _number_in(folder / limit), _number_in(folder / usage)
        if most is None or used is None or most > _UNLIMITED:
            continue
        # The kernel gives pages of files up when the group needs memory.
        total = "total_" if usage == "memory.usage_in_bytes" else ""
        names = [f"{total}inactive_file", f"{total}active_file"]
        files = sum(_number_in(folder / "memory.stat", name) or 0 for name in names)
        yield most - used + files


def _cgroups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield the folder of each cgroup, and the names of its files with the limit and the usage."""
    own = {}  # the path of this process's group by controllers; version 2 has an empty string
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        own[controllers] = path
    for line in _lines(root / "proc/self/mountinfo"):
        place, _, kind = line.partition(" - ")
        mounted, point = place.split()[3:5]
        kind, _, options = kind.split(maxsplit=2)
        if kind == "cgroup2":
            paths, names = [own.get("")], ("memory.max", "memory.current")
        elif kind == "cgroup" and "memory" in options.split(","):
            paths = [path for key, path in own.items() if "memory" in key.split(",")]
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        for path in filter(None, paths):
            folders = _upwards(root, point, mounted, path)
            yield from ((folder, names[0], names[1]) for folder in folders)


def _upwards(root: Path, point: str, mounted: str, path: str) -> Iterator[Path]:
    """Yield the folder of a cgroup and those of the groups above it, as far as they are mounted."""
    top = root / point.lstrip("/")
    group = PurePosixPath(path)
    below = group.relative_to(mounted) if group.is_relative_to(mounted) else PurePosixPath()
    if ".." not in below.parts:
        yield from (top / part for part in (below, *below.parents))


def _left_of_addresses(root: Path) -> Iterable[int]:
    """Yield what the limit on this process's address space leaves, if there is one."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _number_in(root / "proc/self/statm")
    if limit == resource.RLIM_INFINITY or pages is None:
        return []
    return [limit - pages * os.sysconf("SC_PAGE_SIZE")]


def _number_in(path: Path, name: str = "") -> int | None:
    """Return the first number of a file, or that of the line of a name; None if there is none."""
    for line in _lines(path):
        words = line.split()
        if words and (not name or words[0] == name):
            number = words[1 if name else 0]
            return int(number) if number.isdecimal() else None
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
