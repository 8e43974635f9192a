"""`Texts`: how varied the edited models' texts are, and how much like texts about the new target. A JSON file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from kedit.callbacks.sampled import TextCallback
from kedit.errors import within
from kedit.evaluation.consistency import LOCAL, collection, references_of, summary_rows
from kedit.evaluation.fluency import TOKENS, TOP_K, ngram_entropy
from kedit.evaluation.tfidf import Tfidf
from kedit.methods.base.callback import Row, editing
from kedit.methods.base.edit_batch import EditBatch
from kedit.request import EditRecord
from kedit.results.intervals import RESAMPLES
from kedit.runtime.files import write_json

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule

_DIGITS = 6


@dataclass(frozen=True)
class _Pool:
    """All records of the data set, also those that are not edited, and the TF-IDF of what they say."""

    records: list[EditRecord]
    tfidf: Tfidf


class Texts(TextCallback):
    """Samples a text from the unedited and each edited model; measures its fluency and its consistency.

    Every row of the results gets `texts`: before and after, `fluency` in bits and `consistency`, a cosine (None where
    the record has no references). `texts.json` has their means and what TF-IDF was fitted on.

    Args:
        enabled: Measure them.
        resamples: Bootstrap resamples behind the intervals.
    """

    def __init__(self, enabled: bool = False, resamples: int = 2000) -> None:
        within("texts.resamples", resamples, 1, RESAMPLES)
        super().__init__()
        self.enabled, self.resamples = enabled, resamples
        self._pool: _Pool | None = None
        self._references: dict[str, str] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fits TF-IDF, and samples from the unedited model where edits accumulate."""
        if not self.enabled:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        records = data.everything
        self._pool = _Pool(records, Tfidf.fit(collection(records)))
        self._references = {record.request.case_id: " ".join(references_of(record, records)) for record in data.records}
        self.start_texts(trainer, editing(pl_module))

    def on_rows(self, trainer: Trainer, module: EditingModule, rows: list[Row], batch: EditBatch | None) -> None:
        """Adds the figures to rows about to be written."""
        if self._texts is None or not self.enabled:
            return
        for row, (before, after) in zip(rows, self._texts.of(rows, batch), strict=True):
            references = self._references[row["case_id"]]
            row["texts"] = {"before": self._of(before, references), "after": self._of(after, references)}

    def on_summary(
        self, trainer: Trainer, module: EditingModule, summary: Mapping[str, Any], rows: Iterable[Row]
    ) -> None:
        """The file, computed from the rows."""
        if self._pool is None:
            return
        about = {
            "regime": module.regime,
            "sampling": {"tokens": TOKENS, "top_k": TOP_K, "texts": 1},
            LOCAL: {"fitted_on": {"records": len(self._pool.records)} | self._pool.tfidf.card()},
        }
        lines = summary_rows(rows, self.resamples)
        write_json(Path(trainer.default_root_dir) / "texts.json", about | {"figures": lines})

    def _of(self, text: str | None, references: str) -> dict[str, float | None]:
        if text is None or self._pool is None:
            return {"fluency": None, "consistency": None}
        cosine = round(self._pool.tfidf.cosine(text, references), _DIGITS) if references else None
        return {"fluency": round(ngram_entropy(text), _DIGITS), "consistency": cosine}
