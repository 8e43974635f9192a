"""Published hyperparameters: how a method declares its own, and the one function that fills in what the user left null.

A method's table stands in its own file. A model is recognised by its shape (type, layers, width; where it matters
the width of the keys too, which tells Llama 2 from 3), never by its name; one that is in no table gets its layers by
depth. Sources: the papers' own settings, and those of the toolkits for newer models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kedit.model.architecture import weight
from kedit.model.lm import LM

Shape = tuple[str, int, int] | tuple[str, int, int, int]
"""model_type, layers, d_model, and d_in where models that share these three differ in their values."""

GPT2_XL: Shape = ("gpt2", 48, 1600, 6400)
GPT_J: Shape = ("gptj", 28, 4096, 16384)
GPT_NEOX: Shape = ("gpt_neox", 44, 6144, 24576)
LLAMA_2: Shape = ("llama", 32, 4096, 11008)
LLAMA_3: Shape = ("llama", 32, 4096, 14336)
MISTRAL: Shape = ("mistral", 32, 4096, 14336)
QWEN_2: Shape = ("qwen2", 28, 3584, 18944)
SMOLLM2: Shape = ("llama", 30, 576, 1536)


@dataclass(frozen=True)
class Published:
    """A method's published values, by the names of its options.

    Attributes:
        by_depth: Gives the values that follow from the shape of a model that is not in `models`: its layers.
        usual: Values wherever a model's row says nothing else.
        models: Rows of the models that have values of their own, by shape.
    """

    by_depth: Callable[[LM], Mapping[str, Any]]
    usual: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[Shape, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("usual", "models"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def row(self, shape: Shape) -> dict[str, Any] | None:
        """All values for a shape with d_in; None where the table does not know it."""
        own = self.models.get(shape, self.models.get(shape[:3]))
        return None if own is None else {**self.usual, **own}

    def of(self, lm: LM) -> dict[str, Any]:
        """All values for a model."""
        return self.row(shape_of(lm)) or {**self.usual, **self.by_depth(lm)}

    def without(self, *options: str) -> Published:
        """The same values for a method that lacks some of the options."""

        def rest(values: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in values.items() if name not in options}

        models = {shape: rest(row) for shape, row in self.models.items()}
        return Published(lambda lm: rest(self.by_depth(lm)), rest(self.usual), models)


def fill_in(options: Any, published: Published, lm: LM) -> None:
    """Gives the options that the user left null (attributes of `options` that are None) their published values."""
    for name, value in published.of(lm).items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def shape_of(lm: LM) -> Shape:
    """A model's shape with the width of its keys."""
    d_in = weight(lm.arch.module(lm.model, "mlp_out", 0)).shape[1]
    return lm.model.config.get_text_config().model_type, lm.arch.n_layers, lm.d_model, d_in


def layer_at(lm: LM, depth: float) -> int:
    """The layer at a share of the model's depth, 0 to 1."""
    return min(lm.arch.n_layers - 1, round(depth * lm.arch.n_layers))


def layers_up_to(lm: LM, depth: float, count: int) -> tuple[int, ...]:
    """The `count` layers that end at a share of the model's depth; fewer where there are not so many."""
    last = layer_at(lm, depth)
    return tuple(range(max(0, last - count + 1), last + 1))
