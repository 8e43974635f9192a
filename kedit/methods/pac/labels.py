"""What a fine-tuning step trains on: texts, and the tokens wanted after some of their positions (PAC, equation 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kedit.forward.logits import frozen, logits_at
from kedit.model.lm import LM
from kedit.model.tokenization import Tokens, encode_target, pad_right
from kedit.request import EditRequest


@dataclass(frozen=True)
class Labelled:
    """A batch of texts with labels at some of their positions.

    Attributes:
        ids: Right-padded token ids, `[B, T]`, without the last one of each text, which predicts nothing.
        rows: Row of each labelled position, `[m]`.
        cols: Its column: the position whose logits predict the label, `[m]`.
        labels: The token wanted, `[m]`.
        weights: Its share in the loss, `[m]` float32, summing to 1 over the batch.
    """

    ids: Tensor
    rows: Tensor
    cols: Tensor
    labels: Tensor
    weights: Tensor

    def relabelled(self, labels: Tensor) -> Labelled:
        """The same positions with other tokens wanted."""
        return Labelled(self.ids, self.rows, self.cols, labels, self.weights)

    def logits(self, lm: LM) -> Tensor:
        """The model's logits at the labelled positions, `[m, vocab]` float32, with their graph."""
        return logits_at(lm, self.ids, self.rows, self.cols, use_cache=False)[0].float()

    def means(self, logits: Tensor) -> Tensor:
        """Mean of -log p(label) of every text, whatever the weights: `[B]`."""
        losses = torch.nn.functional.cross_entropy(logits, self.labels, reduction="none")
        return losses.new_zeros(len(self.ids)).index_add_(0, self.rows, losses) / torch.bincount(self.rows)

    def answered(self, logits: Tensor, margin: float = 0.0) -> Tensor:
        """Which texts have every label as the argmax, ahead of all other tokens by `margin` nats: `[B]` bool."""
        own = logits.gather(1, self.labels[:, None])[:, 0]
        others = logits.scatter(1, self.labels[:, None], -torch.inf).amax(1)
        missed = self.rows.new_zeros(len(self.ids)).index_add_(0, self.rows, (~(own - others > margin)).long())
        return missed == 0

    def loss(self, lm: LM) -> Tensor:
        """Weighted mean of -log p(label), a scalar."""
        return self.loss_of(self.logits(lm))

    def loss_of(self, logits: Tensor) -> Tensor:
        """The same from logits that are at hand."""
        return (torch.nn.functional.cross_entropy(logits, self.labels, reduction="none") * self.weights).sum()


def encode_request(lm: LM, request: EditRequest) -> Tokens:
    """The request's prompt followed by its new target, as it is trained."""
    return encode_target(lm, request)


def labelled(lm: LM, texts: Sequence[Tokens], per_edit: bool = False) -> Labelled:
    """One batch whose labels are the targets' tokens.

    Args:
        lm: The model: its device and padding.
        texts: Prompts with targets.
        per_edit: Every text weighs the same, whatever its target's length; otherwise every token does, as in the
            released code.
    """
    ids, _ = pad_right([text.ids[:-1] for text in texts], lm.pad_id, lm.device)  # the last token predicts nothing
    rows, cols, labels, weights = [], [], [], []
    total = sum(len(text.target) for text in texts)
    for row, text in enumerate(texts):
        n = len(text.target)
        rows += [row] * n
        cols += range(text.n_prompt - 1, text.n_prompt - 1 + n)
        labels += text.target
        weights += [1 / (n * len(texts)) if per_edit else 1 / total] * n
    where = torch.tensor([rows, cols, labels], dtype=torch.long, device=lm.device)
    return Labelled(ids, where[0], where[1], where[2], torch.tensor(weights, dtype=torch.float32, device=lm.device))


def argmaxes(lm: LM, batch: Labelled) -> Tensor:
    """What the model says itself at the labelled positions, teacher-forced on the targets: `[m]`."""
    with frozen(lm.model):
        return logits_at(lm, batch.ids, batch.rows, batch.cols, use_cache=False)[0].argmax(-1)


def greedy_answers(lm: LM, texts: Sequence[Tokens]) -> list[Tokens]:
    """The prompts of `texts` with what the model continues them with by itself, as many tokens as their targets."""
    found = [text.ids[: text.n_prompt] for text in texts]
    with frozen(lm.model):
        for step in range(max(len(text.target) for text in texts)):
            open_ = [i for i, text in enumerate(texts) if step < len(text.target)]
            ids, _ = pad_right([found[i] for i in open_], lm.pad_id, lm.device)
            rows = torch.arange(len(open_), device=lm.device)
            cols = torch.tensor([len(found[i]) - 1 for i in open_], device=lm.device)
            base_labels = logits_at(lm, ids, rows, cols, use_cache=False)[0].argmax(-1).tolist()
            for i, token in zip(open_, base_labels, strict=True):
                found[i] += (token,)
    return [Tokens(ids, text.n_prompt) for ids, text in zip(found, texts, strict=True)]
