"""Hyperparameters of the locate-then-edit methods by model: a table of published values, and a rule by depth.

A model is recognised by its shape (type, layers, width), never by its name; one that is not in the table gets
its layer by depth. Sources: specs of ROME, R-ROME and the toolkits that published values for newer models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kedit.lm import LM


@dataclass(frozen=True)
class ValueDefaults:
    """Values for ROME and R-ROME where the user gives none.

    Attributes:
        layer: Edited layer.
        steps: Evaluations of the v* loss.
        weight_decay: Factor of the v* weight decay.
        clamp: Bound of ||delta|| / ||v_init||.
        lr: Adam's learning rate for v*.
    """

    layer: int
    steps: int = 25
    weight_decay: float = 1e-3
    clamp: float = 4.0
    lr: float = 0.5


# (model_type, layers, d_model)
TABLE: Mapping[tuple[str, int, int], ValueDefaults] = MappingProxyType(
    {
        ("gpt2", 24, 1024): ValueDefaults(layer=8, steps=20, weight_decay=0.5, clamp=3.0),  # gpt2-medium
        ("gpt2", 36, 1280): ValueDefaults(layer=12, steps=20, weight_decay=0.5),  # gpt2-large
        ("gpt2", 48, 1600): ValueDefaults(layer=17, steps=20, weight_decay=0.5),  # gpt2-xl
        ("gptj", 28, 4096): ValueDefaults(layer=5, steps=20, weight_decay=0.5),  # gpt-j-6b
        ("gpt_neox", 44, 6144): ValueDefaults(layer=15, steps=20, weight_decay=0.5),  # gpt-neox-20b
        ("llama", 32, 4096): ValueDefaults(layer=5),  # llama-2-7b, llama-3-8b
        ("mistral", 32, 4096): ValueDefaults(layer=5),  # mistral-7b
        ("qwen2", 28, 3584): ValueDefaults(layer=5),  # qwen2-7b, qwen2.5-7b
        ("llama", 30, 576): ValueDefaults(layer=5),  # smollm2-135m; docs/rome_smollm2.md has the sweep
    }
)


def value_defaults(lm: LM) -> ValueDefaults:
    """The row of the model's shape, or the layer at 17 % of its depth with the values of the 7B models."""
    config = lm.model.config
    key = (config.model_type, lm.arch.n_layers, lm.d_model)
    return TABLE.get(key, ValueDefaults(layer=min(lm.arch.n_layers - 1, round(0.17 * lm.arch.n_layers))))
