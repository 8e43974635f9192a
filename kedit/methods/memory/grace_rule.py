"""GRACE's growth rule: what an edit does to the codebook (baselines 1.12). Nothing of Lightning, and no model.

A query that is far from every key becomes a key. Near a key of another answer it becomes one too, and the two share the
room between them; near a key of the same answer that key is trained on, and reaches further where it must.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kedit.delta.codebook import Codebook

Action = Literal["add", "split", "extend", "again", "overwrite"]

SAME = 1e-3  # of eps: a query so near a key is the same prompt, read with another rounding
MARGIN = 1e-3  # of a distance: how much further an extended radius reaches, so that rounding does not undo it
GAP = 1e-5  # what the older of two entries gives up beyond half of the distance, as published


@dataclass(frozen=True)
class Growth:
    """What is to be done for a query.

    Attributes:
        action: `add`: a new entry. `split`: a new one, and its neighbour's radius cut. `extend`: a neighbour of the
            same answer reaches further. `again`: it reaches far enough. `overwrite`: the same prompt gets another
            answer.
        key: The key that will answer, `[d_in]`.
        radius: Its radius.
        value: The value that it has, `[d_out]`; None for a new entry.
        neighbour: The other entry that changes, with its new radius; None where none does.
    """

    action: Action
    key: Tensor
    radius: float
    value: Tensor | None = None
    neighbour: Codebook | None = None

    def entries(self, value: Tensor, label: int) -> Codebook:
        """Every entry that is new or changed; the one that answers is the last.

        Args:
            value: What was found for the query, `[d_out]`.
            label: Of its answer.
        """
        own = Codebook(
            self.key[None].float(),
            value[None].float(),
            torch.tensor([self.radius], dtype=torch.float32, device=value.device),
            torch.tensor([label], device=value.device),
        )
        return own if self.neighbour is None else Codebook.add([self.neighbour, own])


def grow(book: Codebook | None, query: Tensor, label: int, eps: float) -> Growth:
    """What the rule says to a query.

    Args:
        book: The entries so far; None where there are none.
        query: `[d_in]`, float32.
        label: Of its answer.
        eps: Radius of a new entry.
    """
    if book is None:
        return Growth("add", query, eps)
    distances, entries = book.nearest(query[None])
    d, at = float(distances[0]), int(entries[0])
    radius, key, value = float(book.radii[at]), book.keys[at], book.values[at]
    if d > eps + radius:
        return Growth("add", query, eps)
    if int(book.labels[at]) == label:
        if d > radius:
            return Growth("extend", key, d * (1 + MARGIN), value)
        return Growth("again", key, radius, value)
    if d <= SAME * eps:
        return Growth("overwrite", key, radius)
    cut = max(d / 2 - GAP, 0.0)
    neighbour = Codebook(key[None], value[None], book.radii.new_tensor([cut]), book.labels[at][None])
    return Growth("split", query, d / 2, neighbour=neighbour)


def label_of(target: Sequence[int]) -> int:
    """A number that stands for an answer's tokens; other tokens have another one."""
    digest = hashlib.sha256(" ".join(map(str, target)).encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
