"""What a report of an error needs of the machine and the installation. Nothing in it says whose they are.

Paths have `~` for the home folder and `$USER` for the user's name; of environment variables there are the names alone.
The name of the machine is not asked for.
"""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

import torch

from kedit.runtime.cache import cache_dir
from kedit.runtime.free_memory import free_memory
from kedit.runtime.memory import gigabytes
from kedit.runtime.provenance import commit, cpu_name
from kedit.runtime.shipped import PACKAGE
from kedit.version import __version__

PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "jsonargparse",
    "datasets",
    "safetensors",
    "huggingface-hub",
    "numpy",
)
VARIABLES = (
    "SLURM_",
    "KEDIT_",
    "HF_",
    "TRANSFORMERS_",
    "CUDA_",
    "NVIDIA_",
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "XDG_CACHE_HOME",
)
"""Beginnings of the names of variables that change what kedit does."""


def environment() -> dict[str, Any]:
    """Section -> what there is to say; lists and mappings of texts and numbers, ready for JSON."""
    return {
        "kedit": {"version": __version__, "commit": commit(), "installed in": anonymous(PACKAGE.parent)},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": _system(),
        "cpu": {"model": cpu_name(), "cores": os.cpu_count(), "usable cores": _usable()},
        "memory": {"total": _size(_memory()), "free": _size(free_memory())},
        "gpu": _gpus(),
        "packages": {name: _version(name) for name in PACKAGES},
        "threads": {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "cache": {"folder": anonymous(cache_dir()), **_cache(cache_dir())},
        "variables": sorted(name for name in os.environ if name.startswith(VARIABLES)),
    }


def anonymous(path: Path) -> str:
    """A path without the user's name: `~` for the home folder, `$USER` for a folder called like the user."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user in this container
        user = ""
    home = PurePath(os.path.expanduser("~"))
    shown = PurePath("~") / path.relative_to(home) if path.is_relative_to(home) else PurePath(path)
    return str(PurePath(*("$USER" if user and part == user else part for part in shown.parts)))


def _system() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:  # macOS
        name = platform.mac_ver()[0]
    return ", ".join(part for part in (f"{platform.system()} {platform.release()}", platform.machine(), name) if part)


def _usable() -> int | None:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None


def _size(number: int | None) -> str | None:
    return None if number is None else gigabytes(number)


def _gpus() -> list[dict[str, Any]] | str:
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return f"none that torch can use (it is built {f'for CUDA {built}' if built else 'for the CPU alone'})"
    found = []
    for n in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(n)
        free, total = torch.cuda.mem_get_info(n)
        found.append(
            {
                "name": about.name,
                "memory": gigabytes(total),
                "free": gigabytes(free),
                "capability": f"{about.major}.{about.minor}",
                "driver": _driver(),
                "CUDA": torch.version.cuda or torch.version.hip,
            }
        )
    return found


def _driver() -> str | None:
    """Version of NVIDIA's driver, where its own command says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] if said else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cache(folder: Path) -> dict[str, Any]:
    """How large the cache is, and how much of what it holds."""
    kinds = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    sizes = {path.name: sum(_sizes(path)) for path in kinds}
    holds = {path.name: f"{gigabytes(sizes[path.name])} in {_entries(path)}" for path in kinds}
    return {"size": gigabytes(sum(sizes.values())), "holds": holds}


def _entries(folder: Path) -> str:
    number = sum(path.is_dir() for path in folder.iterdir())
    return f"{number} folder{'' if number == 1 else 's'}"


def _sizes(folder: Path) -> Iterator[int]:
    """Bytes of every file below a folder; one that is taken away meanwhile counts as none."""
    for base, _, files in os.walk(folder):
        for name in files:
            try:
                yield os.lstat(os.path.join(base, name)).st_size
            except OSError:
                continue
