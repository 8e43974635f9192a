"""Hyperparameters of the locate-then-edit methods by model: a table of published values, and a rule by depth.

A model is recognised by its shape (type, layers, width; for the methods that spread their edit over layers the
width of the keys too, which tells Llama 2 from 3), never by its name; one that is not in the table gets its layers
by depth. Sources: the published settings of ROME, R-ROME, MEMIT, EMMET, and of the toolkits for newer models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kedit.model.architecture import weight
from kedit.model.lm import LM


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
        ("llama", 30, 576): ValueDefaults(layer=5, steps=50, lr=0.25),  # smollm2-135m: docs/experiments/rome_smollm2.md
    }
)


def value_defaults(lm: LM) -> ValueDefaults:
    """The row of the model's shape, or the layer at 17 % of its depth with the values of the 7B models."""
    config = lm.model.config.get_text_config()
    key = (config.model_type, lm.arch.n_layers, lm.d_model)
    return TABLE.get(key, ValueDefaults(layer=min(lm.arch.n_layers - 1, round(0.17 * lm.arch.n_layers))))


@dataclass(frozen=True)
class MultiLayerDefaults:
    """Values for MEMIT and EMMET where the user gives none.

    Attributes:
        layers: Edited layers, ascending; v* is the residual stream that leaves the last one.
        mom2_update_weight: MEMIT's lambda, EMMET's s.
        steps: Evaluations of the v* loss.
        weight_decay: Factor of the v* weight decay.
        clamp: Bound of ||delta|| / ||v_init||.
        lr: Adam's learning rate for v*.
    """

    layers: tuple[int, ...]
    mom2_update_weight: float
    steps: int = 25
    weight_decay: float = 1e-3
    clamp: float = 4.0
    lr: float = 0.5


# (model_type, layers, d_model, d_in)
Shape = tuple[str, int, int, int]
GPT2_XL: Shape = ("gpt2", 48, 1600, 6400)
GPT_J: Shape = ("gptj", 28, 4096, 16384)
LLAMA_2: Shape = ("llama", 32, 4096, 11008)
LLAMA_3: Shape = ("llama", 32, 4096, 14336)
MISTRAL: Shape = ("mistral", 32, 4096, 14336)
QWEN_2: Shape = ("qwen2", 28, 3584, 18944)
SMOLLM2: Shape = ("llama", 30, 576, 1536)

MEMIT_TABLE: Mapping[Shape, MultiLayerDefaults] = MappingProxyType(
    {
        GPT2_XL: MultiLayerDefaults((13, 14, 15, 16, 17), 20_000, steps=20, weight_decay=0.5, clamp=0.75),
        GPT_J: MultiLayerDefaults((3, 4, 5, 6, 7, 8), 15_000, weight_decay=0.5, clamp=0.75),
        LLAMA_2: MultiLayerDefaults((4, 5, 6, 7, 8), 15_000),
        LLAMA_3: MultiLayerDefaults((4, 5, 6, 7, 8), 15_000, weight_decay=0.5, clamp=0.75, lr=0.1),
        MISTRAL: MultiLayerDefaults((4, 5, 6, 7, 8), 15_000),
        QWEN_2: MultiLayerDefaults((4, 5, 6, 7, 8), 15_000),
        SMOLLM2: MultiLayerDefaults((4, 5, 6, 7, 8), 2000),  # our choice; 15 000 leaves most facts as they were
    }
)

# mom2_update_weight as in the authors' own settings; EasyEdit has 10 000 for gpt2-xl and 100 000 for the others.
EMMET_TABLE: Mapping[Shape, MultiLayerDefaults] = MappingProxyType(
    {
        GPT2_XL: MultiLayerDefaults((17,), 1000, steps=20, weight_decay=0.5, clamp=0.75),
        GPT_J: MultiLayerDefaults((5,), 1, weight_decay=0.5, clamp=0.75),
        LLAMA_2: MultiLayerDefaults((5,), 1),
        LLAMA_3: MultiLayerDefaults((5,), 100_000, weight_decay=0.5, clamp=0.75),
        SMOLLM2: MultiLayerDefaults((5,), 5000),  # our choice
    }
)


def memit_defaults(lm: LM) -> MultiLayerDefaults:
    """The row of the model's shape, or the five layers up to a quarter of its depth.

    Without a row, lambda grows with the width of the keys from the 15 000 of Llama-2-7B (width 11 008): k^T C^-1 k,
    which lambda is weighed against, is that width on average.
    """
    n, d_in = lm.arch.n_layers, _shape(lm)[-1]
    last = min(n - 1, round(0.25 * n))
    by_depth = MultiLayerDefaults(tuple(range(max(0, last - 4), last + 1)), 15_000 * d_in / 11_008)
    return MEMIT_TABLE.get(_shape(lm), by_depth)


def emmet_defaults(lm: LM) -> MultiLayerDefaults:
    """The row of the model's shape, or ROME's layer with the values of Llama-2-7B."""
    return EMMET_TABLE.get(_shape(lm), MultiLayerDefaults((value_defaults(lm).layer,), 1))


def _shape(lm: LM) -> Shape:
    d_in = weight(lm.arch.module(lm.model, "mlp_out", 0)).shape[1]
    return lm.model.config.get_text_config().model_type, lm.arch.n_layers, lm.d_model, d_in
