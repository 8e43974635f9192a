"""`Ability`: what the model can still do besides what was edited: tasks before and after. A JSON file and a table."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from kedit.ability.choice import NAME, choice_scores, questions
from kedit.ability.scores import BEFORE, FILE, Measured, Score, figures, figures_table
from kedit.ability.settings import AbilityTasks
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.lanes import BatchedDeltas
from kedit.errors import at_least
from kedit.methods.base.callback import EditCallback, Row, editing
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.views import accumulates, measure
from kedit.model.chat import ChatOption
from kedit.model.lm import LM
from kedit.results.rows import edits_of
from kedit.runtime import distributed
from kedit.runtime.files import write_json

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule

log = logging.getLogger(__name__)

CHAT = ChatOption("ability.chat", "set ability.chat: false")


class Ability(EditCallback):
    """Measures tasks that have nothing to do with the edits, on the unedited and on the edited models.

    Where edits accumulate, the model is measured at the start and at the end. In the `batch` regime every edit batch
    makes a model, in `single` every edit: the first so many are measured. `general.json` has the figures; it is written
    after every model, and a resumed run goes on from it.

    Args:
        tasks: `kedit_choice` (80 questions that ship with kedit), and tasks of lm-evaluation-harness, which is an
            extra: `[kedit_choice, mmlu, gsm8k]`. Null or empty: nothing is measured.
        limit: The first so many questions of every task; null: all.
        num_fewshot: Examples before every question; null: as each task has it.
        batch_size: Rows of one batch of the harness.
        include_path: A folder with tasks of your own, as YAML files.
        chat: Ask through the tokenizer's chat template; null: as `data.chat` has it.
        models: In the `single` and `batch` regimes, the first so many edited models are measured; null: all.
        curve: In the sequential regime, also after the numbers of edits of `metrics.eval_at`.
    """

    def __init__(
        self,
        tasks: list[str] | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
        batch_size: int = 8,
        include_path: str | None = None,
        chat: bool | None = None,
        models: int | None = 10,
        curve: bool = False,
    ) -> None:
        at_least("ability.models", models, 1)
        self.tasks = AbilityTasks(tuple(tasks or ()), limit, num_fewshot, batch_size, include_path)
        self.chat, self.models, self.curve = chat, models, curve
        self._lm: LM | None = None
        self._measured: list[Measured] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Whether there are such tasks.

        Raises:
            KeditError: There is no such task, or lm-evaluation-harness is not installed.
        """
        self.tasks.check()
        self._lm, self._measured = None, []

    def on_describe(self, trainer: Trainer, module: EditingModule, about: dict[str, Any]) -> None:
        """Which tasks, and how they are asked."""
        if self._lm is not None:
            about["protocol"]["ability"] = self._card(self._lm)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the unedited model; a resumed run takes up what was measured.

        Raises:
            KeditError: A task cannot be loaded, or the model has no chat template.
        """
        if not self.tasks.tasks:
            return
        module = editing(pl_module)
        self._lm = lm = self._asked(module.lm)
        self._measured = _kept(_file(trainer), self._card(lm), self._done(trainer, module))
        if not self._measured:
            self._note(trainer, [Measured(BEFORE, "", self.tasks.scores(lm, "before any edit", shared=True))])

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Measures the models of a batch just edited, where edits do not accumulate."""
        if self._lm is None or accumulates(module.regime):
            return
        chosen = self._chosen(trainer, module, batch)
        own = self._choice(module, self._lm, batch, [case for _, case, _ in chosen])
        found = []
        for (name, _, delta), scores in zip(chosen, own, strict=True):
            others = self._of_harness(self._lm, name, delta)
            found.append(Measured("edit", name, (*scores, *others)))
        if module.regime == "single":  # each process edits records of its own
            found = [one for part in distributed.gather(found) for one in part]
        if found:
            self._note(trainer, found)

    def on_rows(self, trainer: Trainer, module: EditingModule, rows: list[Row], batch: EditBatch | None) -> None:
        """Measures the model at a number of edits of `metrics.eval_at`, where that is asked for."""
        if self._lm is None or not self.curve or batch is not None:
            return
        for moment in dict.fromkeys(str(row["measured_at"]) for row in rows if edits_of(row["measured_at"])):
            self._now(trainer, self._lm, moment, len(module.outcomes))

    def on_last_edit(self, trainer: Trainer, module: EditingModule) -> None:
        """Measures the end of a run whose edits accumulate."""
        if self._lm is not None and accumulates(module.regime):
            self._now(trainer, self._lm, "end", len(module.outcomes))

    def on_summary(
        self, trainer: Trainer, module: EditingModule, summary: Mapping[str, Any], rows: Iterable[Row]
    ) -> None:
        """The table."""
        if self._lm is not None:
            Console().print(figures_table(figures(self._measured)))

    def _asked(self, lm: LM) -> LM:
        if self.chat is None or self.chat == (lm.chat is not None):
            return lm
        return lm.chatting(CHAT) if self.chat else lm.in_chat(None)

    def _card(self, lm: LM) -> dict[str, Any]:
        return self.tasks.card() | {"chat": lm.chat is not None, "models": self.models}

    def _now(self, trainer: Trainer, lm: LM, moment: str, edits: int) -> None:
        """Of the weights as they are."""
        if all(one.measured_at != moment for one in self._measured):
            name = f"{edits} edits"
            self._note(trainer, [Measured(moment, name, self.tasks.scores(lm, f"after {name}", shared=True))])

    def _chosen(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> list[tuple[str, str, Delta | None]]:
        """The models of a batch that are measured: name, a record of theirs, delta."""
        cases = [record.request.case_id for record in batch.records]
        if module.regime == "batch":
            several = [(f"batch-{batch.index}", cases[0], next(iter(batch.deltas), None))]
        else:
            several = list(zip(cases, cases, batch.deltas, strict=True))
        names = set(_names(trainer, module)[: self.models]) - {one.model for one in self._measured}
        return [one for one in several if one[0] in names]

    def _choice(self, module: EditingModule, lm: LM, batch: EditBatch, cases: list[str]) -> list[tuple[Score, ...]]:
        """kedit's own questions, of each record's edited model."""
        if not self.tasks.choice or not cases:
            return [()] * len(cases)
        asked = questions(self.tasks.limit)

        def run(
            numbers: list[int], lanes: list[int] | None, bank: BatchedDeltas | None, shared: bool
        ) -> list[tuple[Score, ...]]:
            return choice_scores(lm, asked, lanes or [-1] * len(numbers), bank, shared=shared)

        return measure(module.regime, module.lm.model, batch, [("edit", case) for case in cases], run, {})

    def _of_harness(self, lm: LM, name: str, delta: Delta | None) -> tuple[Score, ...]:
        """The harness's tasks, of one edited model; of a failed edit, what the unedited one gives."""
        if delta is None:
            return tuple(score for score in self._measured[0].scores if score.task != NAME)
        with edited(lm.model, delta):
            return self.tasks.harness_scores(lm, f"after {name}")

    def _done(self, trainer: Trainer, module: EditingModule) -> set[str]:
        """The models of edits that a resumed run does not make again."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.batches[: module.resumed_at]
        if module.regime == "batch":
            return {f"batch-{i}" for i in range(len(batches))}
        cases = [record.request.case_id for batch in batches for record in batch]
        return {f"{n + 1} edits" for n in range(len(cases))} if accumulates(module.regime) else set(cases)

    def _note(self, trainer: Trainer, found: list[Measured]) -> None:
        """Keeps what was measured, and writes the file."""
        self._measured += found
        if distributed.is_main() and self._lm is not None:
            lines = {"measured": [one.as_json() for one in self._measured], "figures": figures(self._measured)}
            write_json(_file(trainer), {"settings": self._card(self._lm), **lines})


def _file(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / FILE


def _names(trainer: Trainer, module: EditingModule) -> list[str]:
    """The edited models of a run whose edits do not accumulate: batches in their order, records in that of the data."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if module.regime == "batch":
        return [f"batch-{i}" for i in range(len(data.batches))]
    cases = {record.request.case_id for batch in data.batches for record in batch}
    return [record.request.case_id for record in data.records if record.request.case_id in cases]


def _kept(file: Path, settings: Mapping[str, Any], done: set[str]) -> list[Measured]:
    """What an interrupted run has measured that need not be measured again; nothing under other settings."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        measured = [Measured.of_json(one) for one in found["measured"]] if found["settings"] == settings else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s is damaged: general ability is measured anew", file)
        return []
    kept = [one for one in measured if one.measured_at == BEFORE or (one.measured_at != "end" and one.model in done)]
    return kept if kept and kept[0].measured_at == BEFORE else []
