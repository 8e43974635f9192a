"""peft's layers around linear maps of a frozen model, which has them inside `installed()` alone.

peft makes the layers and runs them. Here they are put into the model for a forward pass and taken out again, and what
they add to the weights is read off as factors. Nothing of Lightning in here; peft is imported when an adapter is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.model.lm import LM

Kind = Literal["lora", "adalora"]
_NAME = "kedit"  # of the one adapter in each of peft's layers


class Adapter:
    """A new adapter, which adds nothing yet.

    Args:
        lm: The model, frozen. It is the same before and after, and outside of `installed()`.
        paths: The linear maps that are adapted.
        kind: `lora`: B A. `adalora`: B diag(E) A, whose A and B are kept near orthogonal by a term of the loss.
        rank: Of every map's change.
        alpha: The change is scaled by alpha / rank.
        dropout: Share of a map's inputs that a training pass hides from the adapter.
        seed: Of its first values; torch's own generators are left as they are.
    """

    def __init__(
        self, lm: LM, paths: Sequence[str], kind: Kind, rank: int, alpha: float, dropout: float, seed: int
    ) -> None:
        self.kind, self._device = kind, lm.device
        bases = [lm.model.get_submodule(path) for path in paths]
        config = _config(kind, rank, alpha, dropout)
        self._orthogonal = getattr(config, "orth_reg_weight", 0.0)
        with seeded(seed, lm.device):
            layers = _wrapped(bases, config)
        self._layers: dict[str, Any] = dict(zip(paths, layers, strict=True))
        self._places: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
        for path, base, layer in zip(paths, bases, layers, strict=True):
            parent, _, name = path.rpartition(".")
            self._places.append((lm.model.get_submodule(parent), name, base, layer))

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in float32 whatever the model's type."""
        return [parameter for own in self._named().values() for parameter in own.values()]

    @contextmanager
    def installed(self, dropout_seed: int | None = None) -> Iterator[None]:
        """Inside, the model's own forward pass runs peft's layers, differentiable in `parameters()`.

        Args:
            dropout_seed: Of what dropout hides; None: it hides nothing.
        """
        for layer in self._layers.values():
            layer.lora_dropout.train(dropout_seed is not None)
        try:
            for parent, name, _, layer in self._places:
                setattr(parent, name, layer)
            with seeded(dropout_seed or 0, self._device):
                yield
        finally:
            for parent, name, base, _ in self._places:
                setattr(parent, name, base)

    def penalty(self) -> Tensor | None:
        """AdaLoRA's mean of ||A A^T - I|| and ||B^T B - I||, a scalar, times the weight that peft gives it."""
        if self.kind == "lora":
            return None
        grams = []
        for layer in self._layers.values():
            a, b = layer.lora_A[_NAME], layer.lora_B[_NAME]
            grams += [a @ a.T, b.T @ b]
        norms = [torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
        return self._orthogonal * torch.stack(norms).mean()

    @torch.no_grad()
    def factors(self) -> dict[str, Factors]:
        """What it adds to every adapted weight now, copied: left `[d_out, rank]`, right `[rank, d_in]`."""
        found: dict[str, Factors] = {}
        for path, layer in self._layers.items():
            a, b, scale = layer.lora_A[_NAME], layer.lora_B[_NAME], layer.scaling[_NAME]
            if self.kind == "lora":
                found[path] = Factors(b.weight * scale, a.weight.clone())
            else:
                found[path] = Factors(b * (scale / (layer.ranknum[_NAME] + 1e-5)), a * layer.lora_E[_NAME])
        return found

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Path -> its parameters by peft's names, copies on the CPU."""
        return {
            path: {name: parameter.detach().cpu().clone() for name, parameter in own.items()}
            for path, own in self._named().items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Goes on from what `state` gave.

        Raises:
            KeyError, ValueError: It is of another adapter.
        """
        for path, own in self._named().items():
            for name, parameter in own.items():
                if state[path][name].shape != parameter.shape:
                    raise ValueError(f"{path}: {name} is {tuple(state[path][name].shape)}")
                parameter.copy_(state[path][name])

    def _named(self) -> dict[str, dict[str, nn.Parameter]]:
        return {
            path: {name: own for name, own in layer.named_parameters() if name.startswith("lora_")}
            for path, layer in self._layers.items()
        }


def change_since(earlier: Mapping[str, Factors], now: Mapping[str, Factors]) -> Delta:
    """From an adapter's factors at one time to those at another: `[B', -B] [A'; A]`, those of now first."""
    return Delta(
        {
            path: Factors.add([new, Factors(-earlier[path].left, earlier[path].right)]) if path in earlier else new
            for path, new in now.items()
        }
    )


def first_of(delta: Delta, rank: int) -> Delta:
    """Of what `change_since` gave, the factors of now alone, copied."""
    parts = delta.of_kind(Factors).items()
    own = {path: (part.left[:, :rank], part.right[:rank]) for path, part in parts}
    whole = torch.contiguous_format
    return Delta({p: Factors(a.clone(memory_format=whole), b.clone(memory_format=whole)) for p, (a, b) in own.items()})


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's generators begin at `seed`; afterwards they go on as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _config(kind: Kind, rank: int, alpha: float, dropout: float) -> Any:
    """peft's; ranks stay what they are: the published runs of AdaLoRA never begin to prune them."""
    from peft import AdaLoraConfig, LoraConfig

    usual: dict[str, Any] = {"lora_alpha": alpha, "lora_dropout": dropout, "target_modules": r"map\d+"}
    if kind == "adalora":
        return AdaLoraConfig(init_r=rank, target_r=rank, total_step=1, **usual)  # the last one belongs to the pruning
    return LoraConfig(r=rank, **usual)


def _wrapped(bases: list[nn.Module], config: Any) -> list[Any]:
    """peft's layer around each of some linear maps, which stay as they are; its parameters in float32.

    peft puts layers into a module in the place of its children. It is given one that has nothing but these maps, so
    that the model is not touched.
    """
    from peft import inject_adapter_in_model

    holder = nn.ModuleDict({f"map{i}": base for i, base in enumerate(bases)})
    config.fan_in_fan_out = isinstance(bases[0], Conv1D)
    inject_adapter_in_model(config, holder, _NAME)
    layers = [holder[f"map{i}"] for i in range(len(bases))]
    for layer in layers:
        for name, child in layer.named_children():
            if name != "base_layer":
                child.float()
    return layers
