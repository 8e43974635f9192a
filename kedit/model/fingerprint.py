"""A short hash of a model's weights: the key of everything cached about that model.

Integer arithmetic on the raw bits, so that the answer is the same on every device and for every number
of threads, and costs one pass over the memory.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

CHUNK = 1 << 18  # elements; part of the definition: another value gives another fingerprint
GROUP = 16  # chunks at once; only bounds the memory


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """Hash names, shapes, dtypes and every bit of all parameters (tied ones once), in order of names.

    Each chunk of a parameter gives two sums of its bits, read as integers: a plain one, which any single
    changed element changes, and one weighted by position, which a change of order changes.

    Returns:
        20 hexadecimal digits.
    """
    digest = hashlib.sha256(b"kedit weights 1")
    weights: dict[torch.device, Tensor] = {}
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"\n{name} {tuple(parameter.shape)} {parameter.dtype} ".encode())
        if parameter.device not in weights:
            weights[parameter.device] = _position_weights(parameter.device)
        sums = _sums(parameter, weights[parameter.device])
        digest.update(sums.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:20]


def _sums(parameter: Tensor, weights: Tensor) -> Tensor:
    """Plain and weighted sum of each chunk's bits, `[2 * n_chunks]` int64, exact in any order of summation.

    The products wrap around in int32, which an odd weight makes reversible, and are summed in int64.
    """
    word = {1: torch.uint8, 2: torch.int16}.get(parameter.element_size(), torch.int32)
    bits = parameter.reshape(-1).view(word)
    end = len(bits) // CHUNK * CHUNK
    blocks = [*bits[:end].view(-1, CHUNK).split(GROUP), bits[end:].view(1, -1)]  # [n_chunks, length] each
    sums = [torch.stack([b.sum(1), (b * weights[: b.shape[1]]).sum(1)], dim=1) for b in blocks if b.numel()]
    return torch.cat(sums).flatten()


def _position_weights(device: torch.device) -> Tensor:
    """`CHUNK` distinct odd int32 that look random: multiples of the golden ratio's first 32 bits."""
    index = torch.arange(CHUNK, device=device)
    return (2 * index * 0x9E3779B1 + 1).to(torch.int32)
