"""Configurations and sweep files that come with kedit, found by name, so that no checkout is needed.

In the source tree `kedit/configs` and `kedit/slurm` are links to the folders at its top; a wheel holds the files
themselves. A file of the user's always wins over a shipped one of the same name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from kedit.errors import KeditError, shown

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = "configs"
PROTOCOLS = "configs/protocols"
SWEEPS = "slurm/sweeps"
SLURM = "slurm"
CLUSTER: Mapping[str, str] = MappingProxyType({"cluster": "cluster.yaml", "run.sbatch": "run.sbatch"})
SUFFIXES = (".yaml", ".yml")


def shipped_configs() -> dict[str, Path]:
    """Name -> file of every experiment and, as `reference/METHOD`, of every page of options; sorted by name."""
    return {name: path for name, path in _shipped(CONFIGS).items() if not name.startswith("protocols/")}


def shipped_protocols() -> dict[str, Path]:
    """Name -> file of every named protocol; sorted by name."""
    return _shipped(PROTOCOLS)


def shipped_sweeps() -> dict[str, Path]:
    """Name -> file of every sweep; sorted by name."""
    return _shipped(SWEEPS)


def config_path(name: str | Path) -> Path:
    """The file of a configuration.

    Args:
        name: An existing path; else `rome_smollm2`, `rome_smollm2.yaml` or `configs/rome_smollm2.yaml`, looked for in
            the current folder, in its `configs/`, and among those that come with kedit.

    Raises:
        KeditError: There is none; names those that are spelt alike.
    """
    return _find(str(name), CONFIGS, shipped_configs(), "kedit config list")


def sweep_path(name: str | Path) -> Path:
    """The file of a sweep, as `config_path` finds that of a configuration: `smollm2`, `slurm/sweeps/smollm2.yaml`.

    Raises:
        KeditError: There is none; names those that are spelt alike.
    """
    return _find(str(name), SWEEPS, shipped_sweeps(), "kedit config list --sweeps")


def slurm_path(name: str | Path) -> Path:
    """A file for a cluster: an existing path, `slurm/cluster.yaml` (for `kedit slurm submit`) or `slurm/run.sbatch`.

    Raises:
        KeditError: There is none.
    """
    known = {name: PACKAGE / SLURM / file for name, file in CLUSTER.items()}
    return _find(str(name), SLURM, known, "kedit config list --sweeps")


def any_path(name: str | Path) -> Path:
    """A file of any of these kinds, configurations first.

    Raises:
        KeditError: There is none; names those that are spelt alike.
    """
    for find in (config_path, sweep_path, slurm_path, protocol_path):
        try:
            return find(name)
        except KeditError:
            continue
    known = [*shipped_configs(), *shipped_sweeps(), *shipped_protocols(), *CLUSTER]
    raise _missing(str(name), _stem(str(name), CONFIGS), known, "kedit config list")


def protocol_path(name: str | Path) -> Path:
    """The file of a named protocol: an existing path, or `configs/protocols/wild.yaml`.

    Raises:
        KeditError: There is none.
    """
    return _find(str(name), PROTOCOLS, shipped_protocols(), "kedit ls protocols")


def is_shipped(path: Path) -> bool:
    """Whether a path that was found is of kedit's own files, and not of the user's."""
    return path.is_absolute() and path.is_relative_to(PACKAGE)


def _shipped(folder: str) -> dict[str, Path]:
    root = PACKAGE / folder
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def _find(name: str, folder: str, known: Mapping[str, Path], listing: str) -> Path:
    stem = _stem(name, folder)
    local = [Path(name)]
    if stem is not None:
        local += [Path(f"{stem}.yaml"), Path(folder, f"{stem}.yaml")]
    for path in local:
        if _is_there(path):
            return path.expanduser() if name.startswith("~") else path
    if stem is not None and stem in known:
        return known[stem]
    raise _missing(name, stem, known, listing)


def _missing(name: str, stem: str | None, known: Collection[str], listing: str) -> KeditError:
    said = name if name and len(name) <= 200 and name.isprintable() else shown(name)
    if name and _is_folder(Path(name)):
        return KeditError(f"{said} is a folder; name a file")
    hint = _near(name, stem, known) or f"; {listing} names those that come with kedit"
    return KeditError(f"there is no file {said}{hint}")


def _stem(name: str, folder: str) -> str | None:
    """What a shipped file would be called; None where the name leads elsewhere."""
    path = PurePosixPath(name)
    parts = path.with_suffix("").parts if path.suffix in SUFFIXES else path.parts
    start = PurePosixPath(folder).parts
    if parts[: len(start)] == start:
        parts = parts[len(start) :]
    known = len(parts) == 1 or (len(parts) == 2 and parts[0] == "reference")
    return "/".join(parts) if known and ".." not in parts else None


def _near(name: str, stem: str | None, known: Collection[str]) -> str:
    """What was probably meant: a file beside the one that is not there, or one that comes with kedit."""
    path = Path(name)
    beside = {file.stem: str(file) for file in _beside(path)}
    names = beside if stem is None else {name: name for name in known} | beside
    close = get_close_matches(stem or path.stem, names, n=3, cutoff=0.7)
    return f"; did you mean {' or '.join(names[one] for one in close)}?" if close else ""


def _beside(path: Path) -> list[Path]:
    try:
        return sorted(path.parent.glob("*.yaml"))
    except (OSError, ValueError):
        return []


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _is_there(path: Path) -> bool:
    """Whether there is something to read; what is no regular file is refused by whoever reads it."""
    try:
        path = path.expanduser()
        return path.exists() and not path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a NUL
        return False
