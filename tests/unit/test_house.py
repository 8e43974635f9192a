"""The house: who may import whom, who may import Lightning, how long a file may be, and what lies flat in `kedit/`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FLOORS = (
    ("errors", "version"),
    ("text",),
    ("request",),
    ("runtime",),
    ("model",),
    ("results",),
    ("delta",),
    ("forward",),
    ("covariance",),
    ("evaluation",),
    ("ability", "judge"),
    ("export",),
    ("keyvalue",),
    ("data",),
    ("causal_tracing",),
    ("sweeps",),
    ("methods",),
    ("analysis",),
    ("report",),
    ("plan",),
    ("editing",),
    ("callbacks", "cli"),
    ("__init__", "__main__"),
)
"""Bottom up; each knows only those below it. docs/design.md says what lives on each."""

FLAT = {"__init__.py", "__main__.py", "errors.py", "request.py", "version.py", "py.typed"}
LINES = 300
RANK = {name: rank for rank, floor in enumerate(FLOORS) for name in floor}


def sources() -> dict[str, Path]:
    """Module name without `kedit.` -> file; the callbacks are kept beside the library."""
    found: dict[str, Path] = {}
    for folder, prefix in ((ROOT / "kedit", ""), (ROOT / "callbacks", "callbacks.")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if prefix or parts[0] != "callbacks":
                found[prefix + ".".join(parts)] = path
    return found


SOURCES = sources()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a file imports when it runs: types for the checker alone are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    unseen = {id(inner) for node in checked for part in node.body for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            module = node.module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def may_import_lightning(module: str) -> bool:
    """Lightning is for what plugs into it: methods' modules, callbacks, the command, the data module, the strategy."""
    top, *_, last = module.split(".")
    if top == "methods":
        return last == "module" or module.startswith("methods.base.")
    return top in ("callbacks", "cli") or module in (
        "data.datamodule",
        "data.datasets",
        "runtime.strategy",
        "editing.run",
    )


def test_every_package_has_a_floor() -> None:
    assert {name.split(".")[0] for name in SOURCES} == set(RANK)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_only_what_is_below(module: str) -> None:
    top = module.split(".")[0]
    for line, name in imports(SOURCES[module]):
        root, *rest = name.split(".")
        if root == "lightning" or name.startswith("pytorch_lightning"):
            assert may_import_lightning(module), f"{SOURCES[module]}:{line}: only what plugs into Lightning imports it"
        if root != "kedit":
            continue
        target = rest[0] if rest and rest[0] in RANK else "__init__"  # `from kedit import NAME` reads the package
        assert RANK[target] <= RANK[top], f"{SOURCES[module]}:{line}: {top} is below {target}"
        if RANK[target] == RANK[top] and target != top:
            assert {top, target} == {"cli", "callbacks"}, f"{SOURCES[module]}:{line}"


@pytest.mark.parametrize("module", [name for name in sorted(SOURCES) if name.startswith("methods.base.")])
def test_the_base_of_methods_knows_no_method(module: str) -> None:
    for line, name in imports(SOURCES[module]):
        assert not name.startswith("kedit.methods.") or name.startswith("kedit.methods.base"), (
            f"{SOURCES[module]}:{line}: {name}"
        )


def test_what_lies_flat_in_the_library() -> None:
    assert {path.name for path in (ROOT / "kedit").iterdir() if path.is_file()} == FLAT


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_files_are_short(module: str) -> None:
    lines = SOURCES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= LINES, f"{SOURCES[module]} has {lines} lines: split it by meaning"


def test_a_slip_is_seen(tmp_path: Path) -> None:
    slip = tmp_path / "slip.py"
    slip.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from kedit.cli import main\n"
        "def f():\n    from kedit.methods import ROME\n"
        "import lightning.pytorch as pl\n"
    )
    assert [name for _, name in imports(slip)] == ["typing.TYPE_CHECKING", "lightning.pytorch", "kedit.methods.ROME"]
    assert not may_import_lightning("methods.pac.rectify")
    assert may_import_lightning("methods.pac.module")
