"""`ResultTable`: the final table on the terminal, before and after with intervals, and where the results are."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from kedit.callbacks.results import ResultsWriter
from kedit.methods.base.callback import EditCallback
from kedit.results.curve import curve_table
from kedit.results.tables import summary_table


class ResultTable(EditCallback):
    """Prints what `ResultsWriter` summarised."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The table, its protocol, and the path of the results."""
        console = Console()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ResultsWriter) and callback.summary is not None:
                console.print(summary_table(callback.summary))
                if "curve" in callback.summary:
                    console.print(curve_table(callback.summary["curve"]))
                console.print(f"results: {trainer.default_root_dir}", soft_wrap=True, highlight=False)
