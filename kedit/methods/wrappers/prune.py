"""PRUNE: perturbation restraint on upper bound of norms (Ma et al., ICLR 2025; baselines 1.8).

The sum of all edits of a run, Delta = U S V^T, is restrained once, when the last edit is made: W = W_0 + U F(S) V^T.
Singular values above sigma_max, the largest of the unedited matrix, grow as their logarithm alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

from kedit.delta.change import WeightChange
from kedit.delta.delta import Delta
from kedit.errors import KeditError, at_least
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.module import EditingModule
from kedit.methods.base.phase import EditProgram
from kedit.methods.wrappers.base import EditorWrapper
from kedit.methods.wrappers.singular_values import halving, largest, logarithmic, restrained
from kedit.methods.wrappers.weight_changes import each_matrix, weights_in
from kedit.model.architecture import weight

log = logging.getLogger(__name__)


class PRUNE(EditorWrapper[EditingModule]):
    """Restrains the singular values of everything that an editor has changed, once, when all edits are made.

    In the sequential regime what is measured right after an edit is the model before that.

    Args:
        editor: The method that edits: any that changes weights.
        base: Base of the logarithm: `e`, or a number above 1. The paper's are e, 2, 1.5 and 1.2; e restrains most.
        halve: Halve what is above the unedited matrix's largest singular value, instead of the logarithm. `base` must
            then be left out.
    """

    card = MethodCard("Ma et al., ICLR 2025", "its editor's matrices, their largest singular values restrained")

    found_out = (*EditorWrapper.found_out, "singular_values")

    def __init__(self, editor: EditingModule, base: Literal["e"] | float = "e", halve: bool = False) -> None:
        super().__init__(editor)
        self.refuse_itself()
        self.log_base = math.e if base == "e" else float(base)
        at_least("model.base", self.log_base, -math.inf)
        if self.log_base <= 1:
            raise KeditError(f"model.base: {base} is no base of a logarithm that restrains; give e or a number above 1")
        if halve and base != "e":
            raise KeditError("model.halve: halving has no logarithm; leave model.base out")
        self.halve = halve
        self._restraint = halving if halve else logarithmic(self.log_base)
        self.sigma_max: dict[str, float] = {}
        self.singular_values: dict[str, list[float]] = {}

    def edit(self, batch: EditBatch) -> EditProgram:
        """The editor's algorithm; of every matrix that is about to change for the first time, sigma_max is taken."""
        deltas = yield from self.editor.edit(batch)
        self.check_weights(deltas)
        for delta in deltas:
            for path, own in () if delta is None else delta.items():
                if weights_in(own) and path not in self.sigma_max:  # its weights are still those before the run
                    self.sigma_max[path] = largest(weight(self.lm.model.get_submodule(path)))
        self.keep_baseline(batch, deltas)
        return deltas

    def finish(self, total: Delta) -> Delta:
        """W_0 + U F(S) V^T for every matrix; changes that are no change of a weight stay as they are."""
        figures: dict[str, list[float]] = {}

        def restrain(path: str, change: WeightChange) -> WeightChange:
            sigma_max = self.sigma_max[path]
            if sigma_max == 0:
                raise KeditError(f"{path}: all of its weights are zero; PRUNE has nothing to measure its change by")
            found, before, after = restrained(change, sigma_max, self._restraint)
            figures[path] = [sigma_max, before, after]
            return found

        left = each_matrix(self.editor.finish(total) or total, restrain)
        if self.regime == "sequential":
            self.singular_values = figures
            above = sum(before > sigma_max for sigma_max, before, _ in figures.values())
            log.info("PRUNE restrained the changes of %d of %d matrices", above, len(figures))
        return left

    def method_state(self) -> dict[str, Any]:
        """The editor's, and sigma_max of every matrix changed so far: a resumed run has other weights."""
        return super().method_state() | {"sigma_max": self.sigma_max}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes both back."""
        super().load_method_state(state)
        self.sigma_max = _checked(state["sigma_max"])

    def describe(self) -> dict[str, Any]:
        """Provenance: the editor's, the restraint, and at the end [sigma_max, before, after] of every matrix."""
        options = {"base": None if self.halve else self.log_base, "halve": self.halve}
        return super().describe() | options | {"singular_values": self.singular_values}


def _checked(found: Mapping[str, Any]) -> dict[str, float]:
    """What a checkpoint holds of sigma_max.

    Raises:
        ValueError: It is something else.
    """
    if not all(isinstance(value, float) and 0 <= value < math.inf for value in found.values()):
        raise ValueError("sigma_max is no list of numbers of 0 or more")
    return dict(found)
