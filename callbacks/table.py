"""`ResultTable`: the end of a run on the terminal: examples in sentences, a short table, and where the rest is."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedit.methods.base.callback import EditCallback, Row
from kedit.results.brief import brief_table, last_moment
from kedit.results.curve import curve_table
from kedit.results.sentences import Examples, examples

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule


class ResultTable(EditCallback):
    """Prints the summary of a run: three edited prompts before and after, and at most ten rows of figures.

    `kedit show RUN` shows every record, and `kedit show RUN --table` every kind of probe and metric.
    """

    def on_summary(
        self, trainer: Trainer, module: EditingModule, summary: Mapping[str, Any], rows: Iterable[Row]
    ) -> None:
        """The examples, the table, and the path of the results."""
        console = Console()
        print_examples(console, examples(rows, last_moment(summary), module.lm.tokenizer.decode))
        console.print(brief_table(summary))
        if "curve" in summary:
            console.print(curve_table(summary["curve"]))
        folder = trainer.default_root_dir
        show = f"kedit show {shlex.quote(str(folder))}"
        for line in (f"every record: {show}", f"every kind and metric: {show} --table", f"results: {folder}"):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def print_examples(console: Console, found: Examples) -> None:
    """Says how many edited prompts work, and shows some of them before and after."""
    if not found.of:
        return
    console.print(f"{found.works} of {found.of} edited prompts give what was asked for. Before -> after:")
    table = Table.grid(padding=(0, 1))
    for example in found.chosen:
        table.add_row("-", Text(example.line(), style="" if example.works else "yellow"))
    console.print(table)
    console.print()
