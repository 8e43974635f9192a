"""FT: constrained fine-tuning (Zhu et al., 2020; baselines 1.1), of some matrices or of every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from kedit.errors import KeditError, above_zero, at_least
from kedit.keyvalue.published import (
    GPT2_XL,
    GPT_J,
    LLAMA_2,
    LLAMA_3,
    MISTRAL,
    QWEN_2,
    SMOLLM2,
    Published,
    fill_in,
    layer_at,
)
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.base.method_card import MethodCard
from kedit.methods.fine_tuning.module import FineTuning
from kedit.methods.fine_tuning.texts import Loss
from kedit.methods.fine_tuning.tune_phase import Recipe
from kedit.model.lm import LM, LMConfig


def _by_depth(lm: LM) -> Mapping[str, Any]:
    """The layer at the depth of Llama's published one, 21 of 32."""
    return {"layers": (layer_at(lm, 0.66),)}


class FT(FineTuning):
    """Constrained fine-tuning: Adam on whole matrices, each entry kept near its old value.

    Args:
        layers: Trained layers; null: published one of the model, or that at 66 % of its depth.
        matrices: Which maps of them: `mlp_out`, `mlp_in`, `mlp` (both), `attn`, `layer` (all), or the path of a map in
            its layer, e.g. `attn.c_attn`.
        parameters: `matrices`: those. `all`: every parameter of the model (Full-C); `layers` and `matrices` are not
            read then.
        norm_constraint: Most that an entry may differ from its old value (the L-infinity bound epsilon); null: any
            amount.
        loss: `target_new`: each token of the target after those before it (FT-M). `prompt_last`: all of them from the
            distribution at the prompt's last token (ROME's FT+L, EasyEdit's FT-L).
        lr: Adam's learning rate.
        steps: Most passes over the requests.
        mini_batch: Requests of an optimiser step, in the order of the data.
        stop_loss: A step with a smaller loss is left out, and a pass with a smaller mean is the last; 0: never.
        weight_decay: Adam's L2 penalty on the trained weights.
        target_eos: Train an end of text behind the target too.
        cached: Run the layers below the trained ones once, instead of in every step.
    """

    card = MethodCard("Zhu et al., 2020", "whole matrices, or every parameter, within a bound")

    published = Published(
        by_depth=_by_depth,
        models={
            GPT2_XL: {"layers": (0,)},
            GPT_J: {"layers": (21,)},
            LLAMA_2: {"layers": (21,)},
            LLAMA_3: {"layers": (21,)},
            MISTRAL: {"layers": (21,)},
            QWEN_2: {"layers": (27,)},
            SMOLLM2: {"layers": (5,)},  # our choice: methods_tuning.yaml
        },
    )

    def __init__(
        self,
        layers: Sequence[int] | None = None,
        matrices: Sequence[str] = ("mlp_out",),
        parameters: Literal["matrices", "all"] = "matrices",
        norm_constraint: float | None = None,
        loss: Loss = "target_new",
        lr: float = 5e-4,
        steps: int = 25,
        mini_batch: int = 1,
        stop_loss: float = 1e-2,
        weight_decay: float = 0.0,
        target_eos: bool = False,
        cached: bool = True,
    ) -> None:
        super().__init__(matrices, weight_decay, target_eos, cached)
        above_zero("model.norm_constraint", norm_constraint)
        above_zero("model.lr", lr)
        for option, value, least in (("steps", steps, 1), ("mini_batch", mini_batch, 1)):
            at_least(f"model.{option}", value, least)
        at_least("model.stop_loss", stop_loss, 0.0)
        if target_eos and loss == "prompt_last":
            raise KeditError("model.target_eos: prompt_last reads all tokens at one place; it needs loss: target_new")
        self.bound, self.whole = norm_constraint, parameters == "all"
        self.layers, self.lr, self.steps, self.mini_batch = layers, lr, steps, mini_batch
        self.loss: Loss = loss
        self.stop_loss = stop_loss

    def configure(self, lm: LMConfig | None = None, edit: EditConfig | None = None) -> Self:
        """As every method's; one place for all tokens has none for an end of text behind them."""
        if edit is not None and edit.target_eos and self.loss == "prompt_last":
            raise KeditError("edit.target_eos: prompt_last reads all tokens at one place; it needs loss: target_new")
        return super().configure(lm, edit)

    @property
    def edited_layers(self) -> list[int]:
        """The layers that are trained."""
        return list(self.layers or ())

    def fill_in(self) -> None:
        """The layer."""
        fill_in(self, self.published, self.lm)

    def recipe(self) -> Recipe:
        """Passes over mini-batches in the order of the data, until the loss is small."""
        return Recipe(self.steps, self.lr, self.mini_batch, loss=self.loss, stop_loss=self.stop_loss)

    def describe(self) -> dict[str, Any]:
        """Provenance: every option."""
        return super().describe() | {
            "layers": None if self.whole else self.edited_layers,
            "parameters": "all" if self.whole else "matrices",
            "norm_constraint": self.bound,
            "loss": self.loss,
            "lr": self.lr,
            "steps": self.steps,
            "mini_batch": self.mini_batch,
            "stop_loss": self.stop_loss,
        }
