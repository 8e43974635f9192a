"""`TextCallback`: what the callbacks that look at sampled texts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from kedit.methods.base.callback import EditCallback, call_hooks
from kedit.methods.base.sampled_texts import SampledTexts

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule


class TextCallback(EditCallback):
    """An edit callback that looks at sampled texts.

    The first of a run that needs them gives its texts to all others, so that each text is sampled once.
    """

    def __init__(self) -> None:
        self._texts: SampledTexts | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the texts of another run."""
        self._texts = None

    def on_texts(self, trainer: Trainer, module: EditingModule, texts: SampledTexts) -> None:
        """Takes the texts that another has, too."""
        self._texts = texts

    def start_texts(self, trainer: Trainer, module: EditingModule) -> None:
        """Samples from the unedited model, where later batches are edited on top of earlier ones and nobody has yet."""
        if self._texts is None:
            texts = SampledTexts(module.lm, module.regime, module.seed)
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            texts.start([record.request for batch in data.batches[: trainer.max_epochs] for record in batch])
            call_hooks(trainer, "on_texts", module, texts)
