"""ROME: Rank-One Model Editing (Meng et al., NeurIPS 2022; baselines 1.3), and p-ROME (baselines 1.4)."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import Tensor

from kedit.delta.factors import Factors
from kedit.keyvalue import solvers
from kedit.keyvalue.published import Published, layer_at
from kedit.methods.base.method_card import MethodCard
from kedit.methods.locate_then_edit.single_layer import SingleLayerEditor

_OF_GPT = MappingProxyType({"v_num_grad_steps": 20, "v_weight_decay": 0.5})


class ROME(SingleLayerEditor):
    """Rank-One Model Editing: W' k0 = v* for the bare prompt's key k0, along the mean key's direction.

    Args:
        prompt_keys: Take the direction from the bare prompt's key too, u = C^-1 k0, so that the denominator
            k0^T C^-1 k0 / ||C^-1 k0|| cannot be small ("p-ROME" of the R-ROME paper). False is ROME as published:
            the direction is that of the mean key over the contexts.
        **kwargs: The options of `SingleLayerEditor`.
    """

    card = MethodCard("Meng et al., NeurIPS 2022", "one FFN matrix, rank 1", ("subject", "statistics"))

    published = Published(
        by_depth=lambda lm: {"layer": layer_at(lm, 0.17)},
        usual={"v_num_grad_steps": 25, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0, "v_lr": 0.5},
        models={
            ("gpt2", 24, 1024): {"layer": 8, **_OF_GPT, "clamp_norm_factor": 3.0},  # gpt2-medium
            ("gpt2", 36, 1280): {"layer": 12, **_OF_GPT},  # gpt2-large
            ("gpt2", 48, 1600): {"layer": 17, **_OF_GPT},  # gpt2-xl
            ("gptj", 28, 4096): {"layer": 5, **_OF_GPT},  # gpt-j-6b
            ("gpt_neox", 44, 6144): {"layer": 15, **_OF_GPT},  # gpt-neox-20b
            ("llama", 32, 4096): {"layer": 5},  # llama-2-7b, llama-3-8b
            ("mistral", 32, 4096): {"layer": 5},  # mistral-7b
            ("qwen2", 28, 3584): {"layer": 5},  # qwen2-7b, qwen2.5-7b
            ("llama", 30, 576): {"layer": 5, "v_num_grad_steps": 50, "v_lr": 0.25},  # docs/methods/rome.md
        },
    )

    def __init__(self, prompt_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompt_keys = prompt_keys

    def edit_key(self, keys: Tensor) -> Tensor:
        """The bare prompt's key."""
        return keys[0]

    def direction_key(self, keys: Tensor) -> Tensor:
        """The mean key over the contexts, or the bare prompt's with `prompt_keys`."""
        return keys[0] if self.prompt_keys else keys.mean(0)

    def solve(self, keys: Tensor, values: Tensor, v_star: Tensor, direction: Tensor) -> Factors:
        """The published update, with the bare prompt's key in the denominator."""
        return solvers.rome(keys[0], values[0], v_star, direction)

    def describe(self) -> dict[str, Any]:
        """Provenance: whether the direction is the bare prompt's too."""
        return super().describe() | {"prompt_keys": self.prompt_keys}
