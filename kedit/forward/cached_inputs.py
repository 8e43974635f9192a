"""Texts whose lower layers are run once: passes that begin at a layer, from what entered it on the frozen model.

A change in layer L leaves everything below L as it is, so the inputs of L at all tokens of a text are constants. They
are computed once and kept, `d_model` numbers a token. A pass runs L and the layers above on any of the texts, and the
last MLP and the head at the tokens that are read, with gradients for whatever is trained there. The model's own forward
is called, with the layers below passing on what is kept, so that masks, positions and the head are its own and there is
no code for any architecture here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kedit.forward.activations import read
from kedit.forward.logits import logits_at
from kedit.forward.thin_mlp import thin_mlp
from kedit.model.tokenization import pad_right

if TYPE_CHECKING:
    from kedit.model.lm import LM

Texts = Sequence[tuple[int, ...]]


class CachedInputs:
    """Some texts on a model that changes in layer `first` and above alone.

    Args:
        lm: The model, with the weights that it should have; make it anew when those below `first` have changed.
        texts: Token ids, none of them empty; equal ones are run and kept once.
        first: The lowest layer that changes, 0 to n_layers. With 0 nothing is kept: a pass is the whole model's.
        batch_tokens: Padded tokens of one of the passes that fill the cache; None: by device.

    Attributes:
        texts: The texts.
        first: As given.
    """

    def __init__(self, lm: LM, texts: Texts, first: int, batch_tokens: int | None = None) -> None:
        if not 0 <= first <= lm.arch.n_layers:
            raise ValueError(f"there is no layer {first} to begin at, of {lm.arch.n_layers}")
        self.lm, self.texts, self.first = lm, list(texts), first
        self._below = [lm.arch.layer(lm.model, i) for i in range(first)]
        self._start: dict[tuple[int, ...], int] = {}  # of each text, its first token in `_kept`
        self._kept = torch.empty(0, lm.d_model, dtype=lm.dtype, device=lm.device)
        self._in_tuple = False
        if first and self.texts:
            self._fill(batch_tokens)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept: in the weights' own type, so that nothing is rounded."""
        return self._kept.nbytes

    def logits(self, index: Sequence[int], rows: Tensor, cols: Tensor) -> Tensor:
        """Logits at some tokens of some texts, with their graph.

        Args:
            index: Which texts, a row of the batch each; they are padded at their right ends.
            rows: `[m]` int64, the row of each place.
            cols: `[m]` int64, its token, 0 or more.

        Returns:
            `[m, vocab]` in the model's dtype.
        """
        texts = [self.texts[i] for i in index]
        ids, _ = pad_right(texts, self.lm.pad_id, self.lm.device)
        with self._passing_on(texts), thin_mlp(self.lm, rows, cols):
            return logits_at(self.lm, ids, rows, cols, use_cache=False)[0]

    def _fill(self, batch_tokens: int | None) -> None:
        """Runs the layers below `first`, each text once."""
        last = self._below[-1]
        kinds: list[bool] = []
        handle = last.register_forward_hook(lambda _, args, out: kinds.append(isinstance(out, tuple)), prepend=True)
        parts: list[Tensor] = []
        done = 0
        try:
            rows = [(-1, text) for text in self.texts]
            for batch, states in read(self.lm, rows, last, "output", batch_tokens=batch_tokens):
                for (_, text), state in zip(batch, states, strict=True):
                    self._start[text] = done
                    parts.append(state[: len(text)])
                    done += len(text)
        finally:
            handle.remove()
        self._kept, self._in_tuple = torch.cat(parts), kinds[0]

    @contextmanager
    def _passing_on(self, texts: Texts) -> Iterator[None]:
        """Inside, layer `first` is given what is kept of `texts`, and the layers below it do not run."""
        if not self.first:
            yield
            return
        width = max(map(len, texts))
        lengths = torch.tensor([len(text) for text in texts])[:, None]
        starts = torch.tensor([self._start[text] for text in texts])[:, None]
        # a row is filled up with its last token, which no token of the text sees
        kept = self._kept[(starts + torch.arange(width).clamp(max=lengths - 1)).to(self._kept.device)]

        def pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (kept,) if self._in_tuple else kept

        own = [vars(layer).get("forward") for layer in self._below]
        try:
            for layer in self._below:
                _exchange(layer, pass_on)
            yield
        finally:
            for layer, forward in zip(self._below, own, strict=True):
                _exchange(layer, forward)


def _exchange(layer: nn.Module, forward: Any) -> None:
    """Gives a layer a forward of its own; None: that of its class."""
    if forward is None:
        layer.__dict__.pop("forward", None)
    else:
        layer.forward = forward
