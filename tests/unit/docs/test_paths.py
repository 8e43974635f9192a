"""Every path, module and link that the documentation names exists, so that no page rots when files move."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"]
CODE = [*sorted(ROOT.glob("kedit/**/*.py")), *sorted(ROOT.glob("callbacks/*.py"))]
BENCHMARKS = sorted(ROOT.glob("benchmarks/**/*.py"))

# `kedit/delta/lanes.py`, `configs/rep_*.yaml`, `configs/{a,b}_smollm2.yaml`, `tests/unit/methods/pac/`
PATH = re.compile(
    r"(?<![\w/.-])(?:kedit|callbacks|tests|docs|benchmarks|configs|slurm|\.ci)/(?:[\w./*-]|\{[\w,]+\})*(?<![.-])"
)
PLACEHOLDER = re.compile(r"(?:^|[/_])[A-Z]{2,}(?:[/_.]|$)")  # configs/reference/METHOD.yaml
FILE = re.compile(r"`(\w+\.py)`")
READER_S_OWN = {"my_method.py", "test_my_method.py"}  # docs/your_method.md has the reader write them
DOTTED = re.compile(r"(?<![\w./-])kedit(?:\.[A-Za-z_]\w*)+")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def alternatives(path: str) -> Iterator[str]:
    """`a/{b,c}.yaml` as a/b.yaml and a/c.yaml."""
    found = re.search(r"\{([\w,]+)\}", path)
    if found is None:
        yield path
        return
    for part in found[1].split(","):
        yield from alternatives(path[: found.start()] + part + path[found.end() :])


def missing_paths(text: str) -> list[str]:
    """Paths named in `text` that are not in the tree; the name of figures may lack its suffix (`--out`)."""
    named = sorted({path for path in PATH.findall(text) if not PLACEHOLDER.search(path)})
    wanted = [one for path in named for one in alternatives(path)]
    return [one for one in wanted if not any(next(ROOT.glob(x), None) for x in (one, f"{one.rstrip('/')}.*"))]


def is_defined(dotted: str) -> bool:
    """Whether `kedit.package.module.name` is a package, a module, or a name that one of them has."""
    folder, parts = ROOT / "kedit", dotted.split(".")[1:]
    while parts and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    if not parts:
        return True
    module = folder / f"{parts[0]}.py"
    if module.is_file():
        parts.pop(0)
    else:
        module = folder / "__init__.py"
    return not parts or re.search(rf"\b{parts[0]}\b", module.read_text(encoding="utf-8")) is not None


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert missing_paths(text) == []
    there = {path.name for path in [*CODE, *BENCHMARKS]} | READER_S_OWN
    assert set(FILE.findall(text)) - there == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_exist(page: Path) -> None:
    named = set(DOTTED.findall(page.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not is_defined(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("file", BENCHMARKS, ids=name_of)
def test_benchmarks_name_what_there_is(file: Path) -> None:
    assert missing_paths(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "") == []


def test_code_names_pages_that_there_are() -> None:
    found = {(name_of(file), page) for file in CODE for page in re.findall(r"\bdocs/[\w/]+\.md", file.read_text())}
    assert [(file, page) for file, page in sorted(found) if not (ROOT / page).is_file()] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set[Path](), [ROOT / "README.md"]
    while new:
        page = new.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8")))
        new += [(page.parent / link).resolve() for link in links if link and not link.startswith("http")]
    assert {name_of(page) for page in PAGES} - {name_of(page) for page in reached} == set()
