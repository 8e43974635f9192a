"""How much more memory this process may take: what the machine, its control group and its own limit leave (Linux)."""

from __future__ import annotations

import resource
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
# limit, use, what of the use can be given back at once: version 2, version 1
_FILES = (("memory.max", "memory.current", "inactive_file"),
          ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))  # fmt: skip


def free_memory() -> int | None:
    """Bytes; None where the system does not say."""
    found = [*_of_machine(), *_of_limit(), *_of_groups()]
    return max(0, min(found)) if found else None


def _of_machine() -> list[int]:
    for line in _text(PROC / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return [int(rest.split()[0]) * 1024]
    return []


def _of_limit() -> list[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _text(PROC / "self" / "statm").split()
    if limit == resource.RLIM_INFINITY or not pages:
        return []
    return [limit - int(pages[0]) * resource.getpagesize()]


def _of_groups() -> list[int]:
    """Of every group that this process is in, and of those around it."""
    found = []
    for line in _text(PROC / "self" / "cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root, (limit, use, spare) = (CGROUPS / "memory", _FILES[1]) if kinds else (CGROUPS, _FILES[0])
        folder = root / path.strip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(root):
                break
            most, used = _text(place / limit).strip(), _text(place / use).strip()
            if most.isdecimal() and used.isdecimal():
                stat = dict(part.split(" ", 1) for part in _text(place / "memory.stat").splitlines() if " " in part)
                found.append(int(most) - int(used) + int(stat.get(spare, 0)))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
