"""LocFT: localised fine-tuning, breadth first (LocFT-BF, ICLR 2026; baselines 1.17a)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kedit.errors import above_zero, at_least
from kedit.keyvalue.published import LLAMA_3, MISTRAL, QWEN_2, SMOLLM2, Published, fill_in, layer_at
from kedit.methods.base.method_card import MethodCard
from kedit.methods.fine_tuning.module import FineTuning
from kedit.methods.fine_tuning.tune_phase import Recipe
from kedit.model.lm import LM

MOST = 100  # requests of a step
STEPS_OF_A_PASS = 30  # in the published run


def _by_depth(lm: LM) -> Mapping[str, Any]:
    """The layer at the depth of Llama-3's published one, 22 of 32."""
    return {"layer": layer_at(lm, 0.68)}


class LocFT(FineTuning):
    """Localised fine-tuning: one matrix of one layer, many passes over all requests in shuffled mini-batches.

    The layers below the edited one run once for each request.

    Args:
        layer: The edited layer; null: published one of the model, or that at 68 % of its depth.
        matrices: Which maps of it; null: the published ones (`mlp_out`; Mistral's whole `layer`). As in `FT`.
        lr: Adam's learning rate; null: published value.
        epochs: Passes over all requests of an edit batch.
        mini_batch: Requests of an optimiser step, drawn anew in every pass; null: a thirtieth of the edit batch and at
            most 100, as many steps as in the published run (3,000 requests, 100 of them in a step).
        weight_decay: Adam's L2 penalty on the trained weights.
        target_eos: Train an end of text behind the target too.
        cached: Run the layers below the edited one once; false: in every step, as plain fine-tuning.
    """

    card = MethodCard("LocFT-BF, ICLR 2026", "one FFN matrix")

    usual_regime = "batch"
    layer_option = "model.layer"

    published = Published(
        by_depth=_by_depth,
        usual={"lr": 5e-4, "matrices": ("mlp_out",)},
        models={
            LLAMA_3: {"layer": 22},
            MISTRAL: {"layer": 23, "lr": 5e-5, "matrices": ("layer",)},
            QWEN_2: {"layer": 6},
            SMOLLM2: {"layer": 24, "lr": 1e-3},  # our choice: methods_tuning.yaml
        },
    )

    def __init__(
        self,
        layer: int | None = None,
        matrices: Sequence[str] | None = None,
        lr: float | None = None,
        epochs: int = 25,
        mini_batch: int | None = None,
        weight_decay: float = 0.0,
        target_eos: bool = True,
        cached: bool = True,
    ) -> None:
        super().__init__(matrices, weight_decay, target_eos, cached)
        above_zero("model.lr", lr)
        at_least("model.epochs", epochs, 1)
        at_least("model.mini_batch", mini_batch, 1)
        self.layer = layer
        self.lr, self.epochs, self.mini_batch = lr, epochs, mini_batch

    @property
    def edited_layers(self) -> list[int]:
        """The one layer."""
        return [] if self.layer is None else [self.layer]

    def fill_in(self) -> None:
        """Layer, maps and learning rate."""
        fill_in(self, self.published, self.lm)

    def recipe(self) -> Recipe:
        """All requests in every pass, each time in another order; no bound, and no stop."""
        assert self.lr is not None
        return Recipe(self.epochs, self.lr, self._step_size, shuffled=True)

    @property
    def _step_size(self) -> int:
        """Requests of a step; without meaning where each request is edited by itself."""
        n = 1 if self.regime == "single" else self.schedule.size
        return self.mini_batch or min(MOST, -(-n // STEPS_OF_A_PASS))

    def describe(self) -> dict[str, Any]:
        """Provenance: every option."""
        return super().describe() | {
            "layer": self.layer,
            "lr": self.lr,
            "epochs": self.epochs,
            "mini_batch": self._step_size,
        }
