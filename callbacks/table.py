"""`ResultTable`: the final table on the terminal, before and after with intervals, and where the results are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from rich.console import Console

from kedit.methods.base.callback import EditCallback, Row
from kedit.results.curve import curve_table
from kedit.results.tables import summary_table

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule


class ResultTable(EditCallback):
    """Prints the summary of a run."""

    def on_summary(
        self, trainer: Trainer, module: EditingModule, summary: Mapping[str, Any], rows: Iterable[Row]
    ) -> None:
        """The table, its protocol, and the path of the results."""
        console = Console()
        console.print(summary_table(summary))
        if "curve" in summary:
            console.print(curve_table(summary["curve"]))
        console.print(f"results: {trainer.default_root_dir}", soft_wrap=True, highlight=False)
