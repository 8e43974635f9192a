"""Several texts in one row of a forward pass, without padding: each sees itself alone, at positions of its own.

For short texts of different lengths, whose padding would cost as much as they do. The model is asked once whether it
gives packed texts the logits that it gives them one by one; where it does not, they are padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kedit.errors import BROKEN
from kedit.forward.logits import frozen, logits_at
from kedit.model.lm import LM
from kedit.model.tokenization import pad_right

Texts = Sequence[tuple[int, ...]]


def logits_of(lm: LM, texts: Texts, rows: Tensor, cols: Tensor) -> Tensor:
    """Logits at some tokens of some texts, with their graph.

    Args:
        lm: The model.
        texts: Token ids, none of them empty.
        rows: `[m]` int64, the text of each wanted place.
        cols: `[m]` int64, its token in it.

    Returns:
        `[m, vocab]` in the model's dtype.
    """
    if len(texts) > 1 and packs(lm) and max(map(len, texts)) <= _window(lm):
        return _packed(lm, texts, rows, cols)
    ids, _ = pad_right(list(texts), lm.pad_id, lm.device)
    return logits_at(lm, ids, rows, cols, use_cache=False)[0]


def packs(lm: LM) -> bool:
    """Whether the model gives packed texts their own logits; found out once for a model."""
    if lm.packs is None:
        kernel = lm.model.config.get_text_config()._attn_implementation
        lm.note_packing(kernel in ("sdpa", "eager") and _agrees(lm))
    return bool(lm.packs)


def _agrees(lm: LM) -> bool:
    texts = [
        tuple(lm.encode(text)) for text in ("The capital of France is", "Once upon a time there was a", "She said")
    ]
    places = [(row, col) for row, text in enumerate(texts) for col in range(len(text))]
    rows, cols = torch.tensor(places, device=lm.device).T
    with frozen(lm.model):
        try:
            found = _packed(lm, texts, rows, cols).float()
        except BROKEN:  # e.g. BLOOM's ALiBi, which is built from a mask of two axes
            return False
        alone = [
            lm.model(input_ids=torch.tensor([text], device=lm.device), use_cache=False).logits[0] for text in texts
        ]
    wanted = torch.cat(alone).float()
    rounding = min(64 * torch.finfo(lm.dtype).eps, 0.1) * float(wanted.abs().max())
    return float((found - wanted).abs().max()) <= rounding


def _packed(lm: LM, texts: Texts, rows: Tensor, cols: Tensor) -> Tensor:
    lengths = torch.tensor([len(text) for text in texts])
    starts = (lengths.cumsum(0) - lengths).to(lm.device)
    owner = torch.repeat_interleave(torch.arange(len(texts)), lengths)
    seen = (owner[:, None] == owner).tril()
    mask = torch.zeros(seen.shape, dtype=lm.dtype).masked_fill_(~seen, torch.finfo(lm.dtype).min)
    ids = torch.tensor([[token for text in texts for token in text]], device=lm.device)
    positions = torch.cat([torch.arange(len(text)) for text in texts])[None].to(lm.device)
    kwargs = {"position_ids": positions, "attention_mask": mask[None, None].to(lm.device), "use_cache": False}
    return logits_at(lm, ids, torch.zeros_like(rows), starts[rows] + cols, **kwargs)[0]


def _window(lm: LM) -> int:
    """Tokens that every layer sees: an explicit mask stands in the place of a sliding window."""
    return getattr(lm.model.config.get_text_config(), "sliding_window", None) or lm.context_length
