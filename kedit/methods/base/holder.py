"""`ModelHolder`: the model that a module edits, loaded on first use, and what it demands of the records."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule

from kedit.errors import KeditError
from kedit.evaluation.score import is_known
from kedit.forward.binding import load_lm
from kedit.model.lm import LM, LMConfig
from kedit.model.tokenization import check
from kedit.request import EditRecord


class ModelHolder(LightningModule):
    """A module that holds a language model.

    Args:
        lm: The model.
        lanes: How many requests are optimised side by side; 0 lets kedit choose.
    """

    needs_subject = True
    """Whether every request must name its subject. A method that never looks for one sets it False."""

    def __init__(self, lm: LMConfig, lanes: int) -> None:
        super().__init__()
        if lanes < 0:
            raise KeditError(f"model.lanes: {lanes} is negative; 0 lets kedit choose")
        self.lm_config, self.lanes = lm, lanes
        self._lm: LM | None = None

    @property
    def lm(self) -> LM:
        """The model, loaded on first use."""
        if self._lm is None:
            device = "cpu" if self._trainer is None else str(self.trainer.strategy.root_device)
            self.use_lm(load_lm(self.lm_config, device=device))
            assert self._lm is not None
        return self._lm

    def use_lm(self, lm: LM) -> None:
        """Edit a model that is already in memory instead of loading `lm` of the config."""
        self._lm = lm
        _ = lm.fingerprint  # of the unedited weights
        self.base = lm.model  # a submodule: Lightning moves it to the device

    def prepare_records(self, records: list[EditRecord]) -> list[EditRecord]:
        """Checks every request against the tokenizer and drops what the data module leaves out.

        Raises:
            KeditError: A request names no subject and the method needs one (said before the model is loaded), a
                prompt does not fit into the context, or no token covers a subject; names the record.
        """
        if self.needs_subject:
            for record in records:
                record.request.named(type(self).__name__)
        for record in records:
            check(self.lm, record.request)
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None and data.filter_known:
            return [record for record, yes in zip(records, is_known(self.lm, records), strict=True) if yes]
        return records

    def check_fit(self, record: EditRecord) -> None:
        """Whether every text that editing the record runs fits into the model's context; a method has its own.

        Raises:
            TooLong: One does not; names the record.
        """

    def lane_count(self) -> int:
        """Requests optimised side by side in the single regime."""
        if self.lanes:
            return self.lanes
        return 4 if self._device_kind() == "cpu" else 32

    def _device_kind(self) -> str:
        return self.trainer.strategy.root_device.type
