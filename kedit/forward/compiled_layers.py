"""The replayed layers through `torch.compile`: a few graphs for all layers, whatever the rows and lengths.

Compiled is what a step with gradients runs. A layer in which somebody listens or writes (a hook, a forward of its own)
runs as it is, since a compiled one would not notice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedit.errors import KeditError
from kedit.forward.layer_calls import exchanged
from kedit.forward.prefix_cache import Prefix


class LayerPrefix:
    """One layer's prefix in the place of a cache: prepends its keys and values.

    `Prefix` looks up the layer's number, which would make a graph of its own of every layer.

    Args:
        keys: `[n_rows, heads, P, head_dim]`.
        values: The same of the values.
    """

    is_compileable = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of prefix and suffix; called by the layer."""
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length P of the prefix; called by the layer."""
        return self.keys.shape[2]


class CompiledLayers:
    """Layers compiled when they are first run.

    Args:
        layers: The layers of a replay.
        first: The number of the first one in the model.
    """

    def __init__(self, layers: Sequence[nn.Module], first: int) -> None:
        from torch._dynamo.exc import TorchDynamoException  # seconds of importing, for those alone who compile

        self._layers, self._first, self._refusal = list(layers), first, TorchDynamoException
        self._compiled: list[Any] = [torch.compile(layer, dynamic=True) for layer in layers]

    def fit(self, i: int) -> bool:
        """Whether the `i`-th layer may run compiled, now."""
        return torch.is_grad_enabled() and not any(map(_is_listened_to, self._layers[i].modules()))

    def arguments(self, prefix: Prefix, args: Sequence[Any], kwargs: Sequence[Any]) -> list[tuple[Any, Any]]:
        """What each layer is called with, each with a prefix of its own."""
        found = []
        for i, (own_args, own_kwargs) in enumerate(zip(args, kwargs, strict=True)):
            swap = {id(prefix): LayerPrefix(*prefix.blocks(self._first + i))}
            found.append((exchanged(own_args, swap), exchanged(own_kwargs, swap)))
        return found

    def __call__(self, i: int, hidden: Tensor, args: Any, kwargs: Any) -> Any:
        """What the `i`-th layer gives.

        Raises:
            KeditError: It cannot be compiled here.
        """
        try:
            return self._compiled[i](hidden, *args, **kwargs)
        except self._refusal as error:
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise KeditError(
                f"lm.compile: torch.compile fails on layer {self._first + i} ({type(error).__name__}: {why[:120]}). "
                "Set it to false, or see that a C++ compiler (on a CPU) or triton (on a GPU) is installed"
            ) from error


def _is_listened_to(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
