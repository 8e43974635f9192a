"""Random gated adapters for tiny models."""

from __future__ import annotations

import torch

from kedit.delta.delta import Delta
from kedit.delta.pathway import Pathway
from kedit.delta.pathways import Pathways
from kedit.model.architecture import weight
from kedit.model.lm import LM


def gated(lm: LM, seed: int, gates: int = 1, threshold: float = 2.0, hysteresis: float = 3.0) -> Delta:
    """Gates in layer 1 that open at a third of the tokens by themselves and at more with what they are lent."""
    path = lm.arch.path("mlp_out", 1)
    width = weight(lm.model.get_submodule(path)).shape[1]
    g = torch.Generator().manual_seed(seed)
    found = [
        Pathway(
            torch.randn(2, width, generator=g),
            torch.randn(width, 2, generator=g),
            read=5 * torch.randn(width, generator=g),
            bias=torch.tensor(0.0),
            threshold=torch.tensor(threshold),
            hysteresis=torch.tensor(hysteresis),
        )
        for _ in range(gates)
    ]
    return Delta({path: Pathways(tuple(found))})
