"""`PathImportance`: which layers the traced paths stand out in (PAC, figure 4); a CSV and a figure."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer

from kedit.analysis.path_importance_figure import as_csv, draw
from kedit.errors import KeditError
from kedit.methods.base.callback import EditCallback, data_of, editing, schedule_of
from kedit.runtime import distributed
from kedit.runtime.files import write_text

if TYPE_CHECKING:
    from kedit.methods.pac.module import PAC

log = logging.getLogger(__name__)


class PathImportance(EditCallback):
    """Writes the scores of the highest nodes of every matrix, as PAC traced them: `importance.csv`, `importance.png`.

    Nothing is traced for it; it is the mean over all traces of the run, of a resumed run too.

    Args:
        enabled: Write them.
    """

    def __init__(self, enabled: bool = False) -> None:
        self.enabled = enabled

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses runs that trace nothing.

        Raises:
            KeditError: The method is not PAC, or its nodes are not traced.
        """
        if self.enabled:
            _pac(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The files."""
        if not self.enabled:
            return
        module, folder = _pac(pl_module), Path(trainer.default_root_dir)
        profile = module.whole_profile()
        if not distributed.is_main():
            return
        rows = profile.rows()
        if not rows:
            log.warning("importance: no trace succeeded, there is nothing to draw")
            return
        write_text(folder / "importance.csv", as_csv(rows))
        edited = schedule_of(trainer).edited_in(module.edits_done)
        about = {"name": data_of(trainer).name, "records": len(edited)}
        draw(rows, profile.traces, folder / "importance.png", module.describe(), about)


def _pac(module: LightningModule) -> PAC:
    """The module as the PAC whose paths are traced.

    Raises:
        KeditError: It is none.
    """
    from kedit.methods.pac.module import PAC

    method = editing(module)
    if not isinstance(method, PAC):
        raise KeditError(f"importance.enabled: {type(method).__name__} traces no paths; only PAC does")
    source = method.trace_config.node_source
    if source != "traced":
        raise KeditError(f"importance.enabled: nothing is traced with model.trace.node_source: {source}; use traced")
    return method
