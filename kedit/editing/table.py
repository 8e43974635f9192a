"""An edit on the terminal and in a notebook: sentences before and after, what changed, and which weights hold it."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kedit.editing.sentences import Sentence
from kedit.text.lines import cut, one_line

WIDTH = 100
"""Of a table as text."""

SHORT, LONGEST = 12, 36
"""Characters of a target that stands in a column's head, and of a continuation in a cell, at most."""


def verdict(before: Sentence, after: Sentence) -> tuple[str, str]:
    """What the edit did to a sentence, in a word or two, and the style that it is shown in."""
    if before.kind in ("request", "paraphrase"):
        if after.says_new:
            return "edited", "green"
        return "missed", "red"
    if not before.text.strip() and not after.text.strip():
        return "-", "dim"  # nothing was said, so nothing can be compared
    same = before.answer.casefold() == after.answer.casefold()
    if before.kind == "neighbour":
        return ("kept", "green") if same else ("changed", "red")
    return ("same", "") if same else ("changed", "yellow")


def sentence_table(before: Sequence[Sentence], after: Sequence[Sentence]) -> Table:
    """The sentences, in their order, grouped by what they ask.

    Args:
        before: What the unedited model says.
        after: What the edited one says to the same prompts.
    """
    news = {sentence.new for sentence in before if sentence.new is not None}
    new = next(iter(news)) if len(news) == 1 else ""
    table = Table(box=box.HORIZONTALS, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("prompt", ratio=3, overflow="fold")
    table.add_column("before", ratio=2, overflow="fold")
    table.add_column("after", ratio=2, overflow="fold")
    named = f"p({new})" if 0 < len(new) <= SHORT else "p(new)"
    table.add_column(Text.assemble(f"{named}\n", ("p(old)", "dim")), no_wrap=True)
    table.add_column("", no_wrap=True)
    group: object = None
    request = ""
    for old, now in zip(before, after, strict=True):
        key = (old.case_id, old.kind == "question", old.kind == "neighbour")
        if key != group and group is not None:
            table.add_section()
        group = key
        request = old.prompt if old.kind == "request" else request
        word, style = verdict(old, now)
        table.add_row(
            Text(_shown_prompt(old, request)),
            Text(_cut(old.text)),
            Text(_cut(now.text), style=style if word != "same" else ""),
            _changes(old, now),
            Text(word, style=style),
        )
    return table


def remarks(before: Sequence[Sentence]) -> list[str]:
    """What the unedited model says to the requests that makes the table tell less of the edit than it seems to."""
    asked = [sentence for sentence in before if sentence.kind == "request"]
    found = []
    if any(not sentence.text.strip() for sentence in asked):
        found.append("The unedited model says nothing behind the prompt: one that begins a sentence tells more.")
    if known := [sentence for sentence in asked if sentence.says_new]:
        of = "" if len(asked) == 1 else f" to {len(known)} of {len(asked)} prompts"
        found.append(f"The unedited model answers with the new target already{of}: there was little to edit.")
    return found


def _shown_prompt(sentence: Sentence, request: str) -> str:
    """On one line; of a paraphrase, what stands around the request's own prompt."""
    prompt = sentence.prompt
    if sentence.kind == "paraphrase" and request:
        prompt = prompt.replace(request, "[...]")
    return one_line(prompt)


def _cut(text: str) -> str:
    """The beginning of a continuation; all of it is in the `Sentence`."""
    return cut(one_line(text), LONGEST) or "(nothing)"


def edit_view(title: str, table: Table, lines: Sequence[str]) -> RenderableType:
    """Title, table and what is to be said below it."""
    return Group(Text(title, style="bold"), Text(), table, Text(), *(Text(line) for line in lines))


def plain(view: RenderableType, width: int = WIDTH) -> str:
    """A view as text without colours."""
    file = StringIO()
    Console(file=file, width=width, color_system=None, highlight=False, legacy_windows=False).print(view)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _changes(old: Sentence, now: Sentence) -> Text:
    """Both probabilities, below each other."""
    both = [(_change(old.p_new, now.p_new), ""), (_change(old.p_old, now.p_old), "dim")]
    shown = [Text(text, style=style) for text, style in both if text]
    return Text("\n").join(shown)


def _change(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{_percent(before)} > {_percent(after)}"


def _percent(p: float) -> str:
    """A probability in percent, so that small ones can be told from none."""
    if p >= 0.0995:
        return f"{100 * p:.0f}%"
    return f"{100 * p:.1f}%" if p >= 0.0005 else "0%" if p < 5e-6 else "<.1%"
