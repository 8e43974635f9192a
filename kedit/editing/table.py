"""An edit on the terminal and in a notebook: sentences before and after, what changed, and which weights hold it."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kedit.editing.sentences import Sentence

WIDTH = 100
NAMES = {"request": "the request", "paraphrase": "other words", "neighbour": "other subjects", "question": "your questions"}


def verdict(before: Sentence, after: Sentence) -> tuple[str, str]:
    """What the edit did to a sentence, in a word or two, and the style that it is shown in."""
    if before.kind in ("request", "paraphrase"):
        if after.says_new:
            return "edited", "green"
        return "not edited", "red"
    same = before.answer.casefold() == after.answer.casefold()
    if before.kind == "neighbour":
        return ("kept", "green") if same else ("changed", "red")
    return ("same", "") if same else ("changed", "yellow")


def sentence_table(before: Sequence[Sentence], after: Sequence[Sentence], several: bool = False) -> Table:
    """The sentences, in their order, grouped by what they ask.

    Args:
        before: What the unedited model says.
        after: What the edited one says to the same prompts.
        several: Whether they belong to several requests.
    """
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("prompt", ratio=5, overflow="fold")
    table.add_column("before", ratio=3, overflow="fold")
    table.add_column("after", ratio=3, overflow="fold")
    table.add_column("p(new)", no_wrap=True)
    table.add_column("p(old)", no_wrap=True)
    table.add_column("", no_wrap=True)
    group: object = None
    for old, new in zip(before, after, strict=True):
        key = (old.case_id if several and old.kind != "question" else None, old.kind)
        if key != group and group is not None:
            table.add_section()
        group = key
        word, style = verdict(old, new)
        table.add_row(
            Text(" ".join(old.prompt.split())),
            Text(old.text.strip() or "(nothing)"),
            Text(new.text.strip() or "(nothing)", style=style if word != "same" else ""),
            _change(old.p_new, new.p_new),
            _change(old.p_old, new.p_old),
            Text(word, style=style),
        )
    return table


def edit_view(title: str, table: Table, lines: Sequence[str]) -> RenderableType:
    """Title, table and what is to be said below it."""
    return Group(Text(title, style="bold"), table, *(Text(line) for line in lines))


def plain(view: RenderableType, width: int = WIDTH) -> str:
    """A view as text without colours."""
    file = StringIO()
    Console(file=file, width=width, color_system=None, highlight=False, legacy_windows=False).print(view)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _change(before: float | None, after: float | None) -> Text:
    return Text("" if before is None or after is None else f"{_percent(before)} > {_percent(after)}")


def _percent(p: float) -> str:
    """A probability in percent, so that small ones can be told from none."""
    if p >= 0.0995:
        return f"{100 * p:.0f}%"
    return f"{100 * p:.1f}%" if p >= 0.0005 else "0%" if p < 5e-6 else "<.1%"
