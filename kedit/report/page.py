"""What stands on the page of a report, and `html`, which fills its template. `kedit.report.content` gathers it."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kedit.report.figures import Figure
from kedit.report.grid import Grid
from kedit.report.records import Records, embedded
from kedit.version import __version__

PAGE_BYTES = 5_000_000
"""What the whole page may take; records are left out where there would be more."""


@dataclass(frozen=True)
class TablePart:
    """A table of the comparison on the page.

    Attributes:
        name: Its anchor.
        title: Data, regime and moment.
        whole: All that its arms have in common.
        parts: Its grids.
        moves: Figures of how ranks change, below the table of ranks.
        tradeoff: Its figure, where it has one.
        protocol: What it was measured by.
    """

    name: str
    title: str
    whole: str
    parts: tuple[Grid, ...]
    moves: tuple[Figure, ...]
    tradeoff: Figure | None
    protocol: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """Any other section: a note, grids, figures, and grids that are folded away."""

    name: str
    title: str
    note: str = ""
    grids: tuple[Grid, ...] = ()
    figures: tuple[Figure, ...] = ()
    folded: tuple[Grid, ...] = ()


@dataclass(frozen=True)
class Config:
    """A run's configuration: what it has of its own, and all of it."""

    name: str
    own: Mapping[str, str]
    text: str


@dataclass(frozen=True)
class Page:
    """All that a report shows."""

    title: str
    subtitle: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    legend: tuple[str, ...]
    tables: tuple[TablePart, ...]
    sections: tuple[Section, ...]
    records: Records
    records_note: str
    verdicts: str
    differing: Grid | None
    configs: tuple[Config, ...]
    provenance: tuple[tuple[str, str], ...]
    runs: tuple[Grid, ...]
    written: str

    @property
    def notes_title(self) -> str:
        """How many notes there are, and how many of each kind."""
        kinds = Counter(note.partition(":")[0] for note in self.notes if ":" in note)
        each = [f"{n} {kind}" for kind, n in kinds.items()] if len(kinds) < 6 else []
        return f"{counted(len(self.notes), 'note')}" + (f": {', '.join(each)}" if each else "")

    @property
    def contents(self) -> list[Section]:
        """The headings of the table of contents."""
        found = [Section("what", "What was run"), *(Section(one.name, one.title) for one in self.tables)]
        found += [Section(one.name, one.title) for one in self.sections]
        found += [Section("records", "Record by record")] if self.records.shown else []
        return [*found, Section("configs", "Configurations"), Section("provenance", "Provenance")]

    @property
    def grids(self) -> list[tuple[Grid, str]]:
        """All tables, in the order of the page, each with what it is of where its title does not say it."""
        found = [(part, table.whole) for table in self.tables for part in table.parts]
        found += [(part, "") for section in self.sections for part in (*section.grids, *section.folded)]
        return [*found, *((part, "") for part in (*([self.differing] if self.differing else []), *self.runs))]


def html(page: Page) -> str:
    """The page as one file, which needs no other and no network."""
    environment = Environment(
        loader=PackageLoader("kedit.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    script, style = (_text(name) for name in ("script.js", "style.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        page=page,
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        records_json=Markup(embedded(page.records.data)),  # `embedded` has escaped it
    )


def _text(name: str) -> str:
    return files("kedit.report").joinpath("templates", name).read_text(encoding="utf-8")


def counted(n: int, what: str) -> str:
    """A number of things: `2 arms`."""
    return f"{n} {what}{'' if n == 1 else 's'}"
