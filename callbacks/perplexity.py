"""`Perplexity`: how surprised the edited models are by a text that has nothing to do with the edits. A JSON file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from kedit.delta.lanes import BatchedDeltas
from kedit.errors import KeditError, at_least, within
from kedit.evaluation.drift import POSITIONS, Believed, believed, divergences
from kedit.evaluation.perplexity import Windows, perplexities, windows_of
from kedit.methods.base.callback import EditCallback, Row, editing
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.views import accumulates, measure
from kedit.results.intervals import RESAMPLES
from kedit.results.perplexity import summary_rows
from kedit.runtime.files import write_json
from kedit.runtime.progress import stage
from kedit.runtime.textfile import read_text

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule

_Measured = tuple[float, float | None]  # perplexity and, where it is wanted, KL(unedited || edited)
_DIGITS, _KL_DIGITS = 4, 6
_WANTED = "a text file, e.g. data/wikitext2_test.txt"


class Perplexity(EditCallback):
    """Measures the perplexity of a text file on the unedited and on the edited models.

    Rows of the results get `perplexity`: before and after. In the `single` regime every edit has its own, in lanes; in
    `batch` every edit batch; where edits accumulate the rows of `metrics.eval_at` and of the end have that of the model
    as it is then, and rows of a record's own edit have none. `perplexity.json` has the means.

    Args:
        enabled: Measure it.
        text: The file.
        tokens: Of its beginning; null: 512 in the single regime (for every edit), else 8192.
        window: Tokens that are read together.
        kl: Also the mean KL(unedited || edited) of the next token's distribution, over so many positions of the same
            text; true: 512. The unedited model's distributions are kept: positions * vocabulary * 4 bytes.
        resamples: Bootstrap resamples behind the intervals.
    """

    def __init__(
        self,
        enabled: bool = False,
        text: str | None = None,
        tokens: int | None = None,
        window: int = 256,
        kl: bool | int = False,
        resamples: int = 2000,
    ) -> None:
        within("perplexity.resamples", resamples, 1, RESAMPLES)
        at_least("perplexity.tokens", tokens, 2)
        at_least("perplexity.window", window, 2)
        at_least("perplexity.kl", int(kl), 0)
        if enabled and text is None:
            raise KeditError(f"perplexity.text: of which text? Give {_WANTED}")
        if kl and not enabled:
            raise KeditError("perplexity.kl: it is measured on perplexity.text; set perplexity.enabled: true too")
        self.kl = POSITIONS if kl is True else int(kl)
        self.enabled, self.text, self.tokens, self.window, self.resamples = enabled, text, tokens, window, resamples
        self._content = ""
        self._windows: Windows | None = None
        self._before = 0.0
        self._believed: Believed | None = None
        self._so_far: tuple[int, bool, _Measured] | None = None  # edits, whether the run was finished, and the figures

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the text.

        Raises:
            KeditError: It cannot be read.
        """
        if not self.enabled or self.text is None:
            return
        try:
            self._content = read_text(self.text, _WANTED)
        except KeditError as error:
            raise KeditError(f"perplexity.text: {error}") from None
        self._so_far = None

    def on_describe(self, trainer: Trainer, module: EditingModule, about: dict[str, Any]) -> None:
        """Which text, and how much of it."""
        if self._windows is not None:
            about["protocol"]["perplexity"] = self._card(self._windows)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the unedited model.

        Raises:
            KeditError: The text is too short, or the window is longer than the model's context.
        """
        if not self.enabled:
            return
        module = editing(pl_module)
        tokens = self.tokens_of(module.regime)
        self._windows = windows_of(module.lm, self._content, tokens, self.window, f"perplexity.text: {self.text}")
        with stage("perplexity before any edit (once a run)") as progress:
            (self._before,) = perplexities(module.lm, self._windows, progress=progress, shared=True)
            self._believed = believed(module.lm, self._windows, self.kl) if self.kl else None

    def tokens_of(self, regime: str) -> int:
        """Tokens of the text that are read in a regime."""
        return self.tokens or (512 if regime == "single" else 8192)

    def on_rows(self, trainer: Trainer, module: EditingModule, rows: list[Row], batch: EditBatch | None) -> None:
        """Adds the perplexities to rows about to be written."""
        if self._windows is None:
            return
        if not accumulates(module.regime):
            after = self._of_batch(module, self._windows, rows, batch)
        elif batch is None:
            after = [self._now(module, self._windows)] * len(rows)
        else:
            return
        for row, value in zip(rows, after, strict=True):
            row["perplexity"] = self._cell(value)

    def on_last_edit(self, trainer: Trainer, module: EditingModule) -> None:
        """Measures the end of a run whose edits accumulate, also where no rows are of it."""
        if self._windows is not None and accumulates(module.regime):
            self._now(module, self._windows)

    def on_summary(
        self, trainer: Trainer, module: EditingModule, summary: Mapping[str, Any], rows: Iterable[Row]
    ) -> None:
        """The file, computed from the rows."""
        if self._windows is None:
            return
        lines = summary_rows(rows, self.resamples)
        if self._so_far is not None and all(line["measured_at"] != "end" for line in lines):
            lines.append({"measured_at": "end", **self._cell(self._so_far[2])})
        about = {"regime": module.regime, **self._card(self._windows)}
        write_json(Path(trainer.default_root_dir) / "perplexity.json", about | {"figures": lines})

    def _card(self, text: Windows) -> dict[str, Any]:
        content = hashlib.sha256(self._content.encode()).hexdigest()[:12]
        kl = {} if self._believed is None else {"kl": self._believed.positions}
        return {"text": content, "tokens": text.predicted, "window": self.window, **kl}

    def _cell(self, measured: _Measured) -> dict[str, float]:
        """What a row says of it."""
        after, kl = measured
        cell = {"before": round(self._before, _DIGITS), "after": round(after, _DIGITS)}
        return cell if kl is None else cell | {"kl": round(kl, _KL_DIGITS)}

    def _measured(self, module: EditingModule, text: Windows, lanes: list[int], **how: Any) -> list[_Measured]:
        """Of every lane."""
        shared, bank = how["shared"], how.get("bank")
        after = perplexities(module.lm, text, lanes, bank, progress=how.get("progress"), shared=shared)
        if self._believed is None:
            return [(value, None) for value in after]
        return list(zip(after, divergences(module.lm, self._believed, lanes, bank, shared=shared), strict=True))

    def _now(self, module: EditingModule, text: Windows) -> _Measured:
        """Of the weights as they are; measured once for as many edits."""
        state = (len(module.outcomes), module.finished)
        if self._so_far is None or self._so_far[:2] != state:
            with stage(f"perplexity after {state[0]} edits") as progress:
                (value,) = self._measured(module, text, [-1], progress=progress, shared=True)
            self._so_far = (*state, value)
        return self._so_far[2]

    def _of_batch(
        self, module: EditingModule, text: Windows, rows: list[Row], batch: EditBatch | None
    ) -> list[_Measured]:
        """Of every row's own edited model."""

        def run(
            numbers: list[int], lanes: list[int] | None, bank: BatchedDeltas | None, shared: bool
        ) -> list[_Measured]:
            return self._measured(module, text, lanes or [-1] * len(numbers), bank=bank, shared=shared)

        asks = [(str(row["measured_at"]), str(row["case_id"])) for row in rows]
        return measure(module.regime, module.lm.model, batch, asks, run, {})
