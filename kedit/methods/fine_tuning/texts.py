"""What fine-tuning trains on: a request as a text, and the tokens wanted after some of its positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kedit.errors import KeditError
from kedit.model.lm import LM
from kedit.model.tokenization import encode_target
from kedit.request import EditRequest

Loss = Literal["target_new", "prompt_last"]
"""`target_new`: each token of the target after those before it. `prompt_last`: all from the prompt's last position."""


@dataclass(frozen=True, slots=True)
class Text:
    """One request.

    Attributes:
        ids: The tokens that are run; the last one predicts something.
        places: For each label, the token of `ids` whose logits predict it.
        labels: The tokens wanted.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    labels: tuple[int, ...]


def text_of(lm: LM, request: EditRequest, loss: Loss, eos: bool) -> Text:
    """A request as it is trained.

    Args:
        lm: The model.
        request: The request.
        loss: Where the target's tokens are read.
        eos: Whether an end of text, in a chat of the turn, follows the target; it does with `edit.target_eos` too.

    Raises:
        TooLong: It does not fit into the context; names the record.
        KeditError: The tokenizer has no end of text.
    """
    tokens = encode_target(lm, request)
    ids = tokens.ids
    if eos and not lm.ends_targets:
        ids += (end_of_text(lm),)
    labels, last = ids[tokens.n_prompt :], tokens.n_prompt - 1
    if loss == "prompt_last":
        return Text(ids[: last + 1], (last,) * len(labels), labels)
    return Text(ids[:-1], tuple(range(last, len(ids) - 1)), labels)


def end_of_text(lm: LM) -> int:
    """The token that ends a text, in a chat the assistant's turn.

    Raises:
        KeditError: The tokenizer has none.
    """
    if lm.end_id is None:
        raise KeditError(f"model.target_eos: the tokenizer of {lm.name} has no end of text; set it to false")
    return lm.end_id


@dataclass(frozen=True)
class Wanted:
    """The labels of some texts, a row of a batch each.

    Attributes:
        rows: Row of each place whose logits are read, `[k]` int64; no place is read twice.
        cols: Its column, `[k]`.
        place: Which of the places each label is read at, `[m]`.
        labels: The labels, `[m]`.
        texts: Row of each label, `[m]`.
        counts: How many labels each row has, `[n_rows]`.
    """

    rows: Tensor
    cols: Tensor
    place: Tensor
    labels: Tensor
    texts: Tensor
    counts: Tensor

    def sums(self, logits: Tensor) -> Tensor:
        """Sum of -log p(label) of each row, `[n_rows]`, from the logits at the places `[k, vocab]`."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = torch.nn.functional.cross_entropy(logits[self.place], self.labels, reduction="none")
        return losses.new_zeros(len(self.counts)).index_add(0, self.texts, losses)


def wanted(texts: Sequence[Text], device: torch.device) -> Wanted:
    """The labels of texts that are the rows of a batch."""
    places: dict[tuple[int, int], int] = {}
    index, labels, rows = [], [], []
    for row, text in enumerate(texts):
        index += [places.setdefault((row, column), len(places)) for column in text.places]
        labels += text.labels
        rows += [row] * len(text.labels)
    where = torch.tensor(list(places), device=device).T
    of_label = torch.tensor([index, labels, rows], device=device)
    counts = torch.tensor([len(text.labels) for text in texts], device=device)
    return Wanted(where[0], where[1], of_label[0], of_label[1], of_label[2], counts)
