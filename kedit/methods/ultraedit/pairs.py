"""Keys and output gradients of the edited modules at the chosen tokens, from one forward and one backward pass.

No parameter gets a gradient: the outputs of the lowest edited modules are where the graph begins, so that nothing below
them is part of it. Rows are padded at their right end, which a causal decoder's real tokens never see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kedit.errors import KeditError
from kedit.forward.logits import logits_at
from kedit.model.lm import LM
from kedit.model.tokenization import encode_target, pad_right
from kedit.request import EditRequest

Which = Literal["answer", "all"]


@dataclass(frozen=True)
class Chunk:
    """Requests that share a pass.

    Attributes:
        ids: `[B, T]`, right-padded, without the last token of each text, which predicts nothing.
        rows: Row of each label, `[m]`.
        cols: Position whose logits predict it, `[m]`.
        labels: The token wanted, `[m]`.
        weights: Its share in the loss, `[m]` float32.
        token_rows: Row of each token that is edited at, `[t]`, ascending.
        token_cols: Its position, `[t]`.
    """

    ids: Tensor
    rows: Tensor
    cols: Tensor
    labels: Tensor
    weights: Tensor
    token_rows: Tensor
    token_cols: Tensor


def chunk_of(lm: LM, requests: Sequence[EditRequest], which: Which, target_eos: bool, alone: bool) -> Chunk:
    """Encodes some requests.

    Args:
        lm: The model.
        requests: Who shares the pass.
        which: `answer`: the tokens whose logits predict the target. `all`: every token that is no padding.
        target_eos: Whether the end-of-text token is part of the target.
        alone: Every request's loss is a mean of its own; otherwise there is one mean over all tokens, as published.

    Raises:
        KeditError: A text does not fit, names the record; or the tokenizer has no end-of-text token.
    """
    texts: list[tuple[int, ...]] = []
    labels: list[tuple[int, int, int, float]] = []
    for row, request in enumerate(requests):
        tokens = encode_target(lm, request)
        ids = tokens.ids
        if target_eos and not lm.ends_targets:
            if lm.end_id is None:
                raise KeditError(f"model.target_eos: the tokenizer of {lm.name} has no end-of-text token")
            ids += (lm.end_id,)
        n = len(ids) - tokens.n_prompt
        labels += [(row, at - 1, ids[at], 1 / n) for at in range(tokens.n_prompt, len(ids))]
        texts.append(ids[:-1])
    ids, mask = pad_right(texts, lm.pad_id, lm.device)
    row, col, label, share = zip(*labels, strict=True)
    rows, cols, wanted = (torch.tensor(x, dtype=torch.long, device=lm.device) for x in (row, col, label))
    weights = torch.tensor(share if alone else [1 / len(label)] * len(label), device=lm.device)
    where = (rows, cols) if which == "answer" else mask.nonzero(as_tuple=True)
    return Chunk(ids, rows, cols, wanted, weights, *where)


class PairPhase:
    """One pass over a chunk, as a phase of one step whose optimiser changes nothing.

    Args:
        lm: The model, with the weights that the edit starts from.
        modules: Path -> edited module.
        chunk: The requests.

    Attributes:
        pairs: Path -> keys `[t, d_in]` and gradients `[t, d_out]` at the chunk's tokens; empty before the backward
            pass.
        losses: Of each request the mean -log p of its target, `[B]`; None before the forward pass.
    """

    steps = 1

    def __init__(self, lm: LM, modules: Mapping[str, nn.Module], chunk: Chunk) -> None:
        self.lm, self.modules, self.chunk = lm, modules, chunk
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self.losses: Tensor | None = None

    @property
    def done(self) -> bool:
        """The step was taken."""
        return bool(self.pairs)

    def optimizer(self) -> torch.optim.Optimizer:
        """One that changes nothing."""
        return torch.optim.SGD([torch.zeros(1)], lr=0.0)

    def loss(self) -> Tensor:
        """Cross entropy of the targets; its backward pass fills `pairs`."""
        chunk = self.chunk
        with self._tapped():
            logits, _ = logits_at(self.lm, chunk.ids, chunk.rows, chunk.cols, use_cache=False)
        each = F.cross_entropy(logits.float(), chunk.labels, reduction="none")
        with torch.no_grad():
            sums = each.new_zeros(len(chunk.ids)).index_add_(0, chunk.rows, each)
            self.losses = sums / torch.bincount(chunk.rows)
        return (each * chunk.weights).sum()

    def before_step(self) -> None:
        """No parameter has a gradient."""

    def after_step(self) -> None:
        """Nothing was changed."""

    def logs(self) -> dict[str, float]:
        """The loss, as mean over the requests."""
        return {} if self.losses is None else {"loss": float(self.losses.mean())}

    @property
    def finite(self) -> bool:
        """Whether there are only numbers in what was found."""
        return all_finite(self.pairs)

    @contextmanager
    def _tapped(self) -> Iterator[None]:
        """Inside, a forward pass leaves behind what its backward pass will fill `pairs` with."""
        with ExitStack() as stack:
            for path, module in self.modules.items():
                stack.callback(module.register_forward_hook(self._tap(path)).remove)
            yield

    def _tap(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def tap(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            keys = self._chosen(args[0].detach())
            if not output.requires_grad:  # nothing below is edited: the graph begins here
                output = output.detach().requires_grad_()

            def arrived(gradient: Tensor) -> None:
                self.pairs[path] = keys, self._chosen(gradient.detach())

            output.register_hook(arrived)
            return output

        return tap

    def _chosen(self, states: Tensor) -> Tensor:
        """`states: [B, T, d]` (rows may be flattened) at the chunk's tokens, `[t, d]` float32."""
        own = states.reshape(*self.chunk.ids.shape, states.shape[-1])
        return own[self.chunk.token_rows, self.chunk.token_cols].float()


def all_finite(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> bool:
    """Whether there is no NaN and no infinity in some pairs."""
    return all(bool(tensor.isfinite().all()) for pair in pairs.values() for tensor in pair)
