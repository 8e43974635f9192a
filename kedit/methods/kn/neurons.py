"""Knowledge neurons: where a layer has them, which of them are chosen by their attributions, what they then write."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kedit.delta.slices import Slices
from kedit.errors import KeditError
from kedit.model.architecture import weight
from kedit.model.families import FAMILIES
from kedit.model.lm import LM


def neuron_map(lm: LM, layer: int) -> nn.Module:
    """The linear map whose outputs are the neurons before their activation function.

    That of the gate where there is one. In a map of gate and other half together the neurons are the first outputs.
    """
    return lm.model.get_submodule(f"{lm.arch.family.layers}.{layer}.{lm.arch.family.mlp_in[0]}")


def neurons_per_layer(lm: LM) -> int:
    """d_in, the width of the keys: a neuron is an entry of the key, and a column of `mlp_out`."""
    return weight(lm.arch.module(lm.model, "mlp_out", 0)).shape[1]


def check_neurons(lm: LM) -> None:
    """Whether kedit knows where a model has its neurons, and can write embeddings behind them.

    Raises:
        KeditError: It does not; names the module.
    """
    family, width, n = lm.arch.family, weight(neuron_map(lm, 0)).shape[0], neurons_per_layer(lm)
    first = family.mlp_in[0]
    known = lm.model.config.model_type in FAMILIES
    alone = len(family.mlp_in) == 1 and width == n
    gated = "gate" in first and width == n
    if not known and not alone and not gated:
        raise KeditError(
            f"{lm.name}: KN cannot tell which outputs of the MLP pass the activation function "
            f"({', '.join(family.mlp_in)}); use another method"
        )
    embedding = embeddings(lm).shape[1]
    if embedding != lm.d_model:
        raise KeditError(
            f"{lm.name}: KN writes token embeddings into the residual stream, but they are {embedding} wide and it is "
            f"{lm.d_model}; use another method"
        )


def embeddings(lm: LM) -> Tensor:
    """The input embeddings, `[vocab, width]`."""
    return lm.arch.embed(lm.model).get_parameter("weight")


def coarse(scores: Tensor, threshold: float) -> Tensor:
    """The neurons whose attribution is more than a share of the largest of all layers.

    Args:
        scores: `[n_layers, d_in]`.
        threshold: That share, `adaptive_threshold`.

    Returns:
        `[n_layers, d_in]` bool; none where no attribution is above 0.
    """
    top = scores.max()
    return (scores > threshold * top) & (top > 0)


def in_most_prompts(found: Sequence[Tensor], share: float) -> Tensor:
    """The neurons that are found at more than a share of a fact's prompts.

    Args:
        found: One `[n_layers, d_in]` bool for each prompt.
        share: p.
    """
    return torch.stack(list(found)).double().mean(0) > share


def written(lm: LM, old: int, new: Sequence[int], strength: float) -> Tensor:
    """What a knowledge neuron writes besides: the new answer's embeddings instead of the old one's, `[d_model]`.

    Args:
        lm: The model.
        old: The first token of its own answer, whose embedding is taken away `strength` times.
        new: Tokens of the new answer. One alone is added `strength` times, several half as often each.
        strength: 2 in the published code.
    """
    e = embeddings(lm).detach().double()
    added = e[list(new)].sum(0) * (strength if len(new) == 1 else strength / 2)
    return (added - strength * e[old]).float()


def neuron_changes(lm: LM, chosen: Tensor, vector: Tensor) -> dict[str, Slices]:
    """`vector` added to the column of `mlp_out` behind every chosen neuron.

    Args:
        lm: The model.
        chosen: `[n_layers, d_in]` bool.
        vector: `[d_model]` float32.
    """
    changes: dict[str, Slices] = {}
    for layer in chosen.any(1).nonzero()[:, 0].tolist():
        index = chosen[layer].nonzero()[:, 0]
        shape = (len(vector), chosen.shape[1])
        changes[lm.arch.path("mlp_out", layer)] = Slices(index, vector.repeat(len(index), 1), 1, shape)
    return changes
