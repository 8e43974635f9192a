"""`Robustness`: how the edits stand reworded, scrambled and long-context prompts, and the fluency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from kedit.callbacks.sampled import TextCallback
from kedit.errors import within
from kedit.evaluation.fluency import ngram_entropy
from kedit.methods.base.callback import Row, editing
from kedit.methods.base.edit_batch import EditBatch
from kedit.results.intervals import RESAMPLES
from kedit.results.robustness import as_csv, summary_rows
from kedit.runtime.files import write_json, write_text

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule


class Robustness(TextCallback):
    """Reports robust queries, where the data has them (`data.queries`); nothing otherwise.

    Writes `robustness.json` and `robustness.csv` into the run's folder, computed from its rows. They are
    printed by `kedit show RUN --table`.

    Args:
        fluency: Also sample a text from each edited model (100 tokens, top-k 5) and measure how varied it is;
            every row of the results then has `fluency` (before and after, in bits).
        resamples: Bootstrap resamples behind the intervals.
    """

    def __init__(self, fluency: bool = True, resamples: int = 2000) -> None:
        within("robustness.resamples", resamples, 1, RESAMPLES)
        super().__init__()
        self.fluency, self.resamples = fluency, resamples

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Samples from the unedited model once, where later batches are edited on top of earlier ones."""
        if self.fluency and _has_queries(trainer):
            self.start_texts(trainer, editing(pl_module))

    def on_rows(self, trainer: Trainer, module: EditingModule, rows: list[Row], batch: EditBatch | None) -> None:
        """Adds the fluency to rows about to be written."""
        if self._texts is None or not (self.fluency and _has_queries(trainer)):
            return
        for row, (before, after) in zip(rows, self._texts.of(rows, batch), strict=True):
            row["fluency"] = {"before": _entropy(before), "after": _entropy(after)}

    def on_summary(
        self, trainer: Trainer, module: EditingModule, summary: Mapping[str, Any], rows: Iterable[Row]
    ) -> None:
        """The files; `kedit show RUN --table` prints the table."""
        if not _has_queries(trainer):
            return
        folder, lines = Path(trainer.default_root_dir), summary_rows(rows, self.resamples)
        write_json(folder / "robustness.json", {"figures": lines})
        write_text(folder / "robustness.csv", as_csv(lines))


def _has_queries(trainer: Trainer) -> bool:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return data.queries is not None


def _entropy(text: str | None) -> float | None:
    return None if text is None else round(ngram_entropy(text), 6)
