"""What PAC keeps of a request that is trained, how it fares, and how to find that out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.errors import KeditError
from kedit.methods.pac.labels import argmaxes, encode_request, greedy_answers, labelled
from kedit.model.lm import LM
from kedit.model.tokenization import Tokens
from kedit.request import EditRecord

Texts = Sequence[tuple[int, ...]]
Logits = Callable[[Texts, Tensor, Tensor], Tensor]
"""Texts, and rows and columns `[m]` of places in them -> the logits there, `[m, vocab]`, with their graph."""

BATCH = 16
"""Requests in a forward or tracing pass that is no training step."""


@dataclass(frozen=True)
class Request:
    """What is trained for one request.

    Attributes:
        case: Its record.
        text: Its prompt with the new target.
        original: The same positions with what the unedited model says, or its own continuation (`contrast.original`).
        base_labels: Labels of `original`'s positions.
    """

    case: str
    text: Tokens
    original: Tokens
    base_labels: tuple[int, ...]


@dataclass
class Progress:
    """How a request fared.

    Attributes:
        steps: Steps of T+ that its loss was part of.
        loss: Its loss when last seen, before a step; NaN before.
        answered: Whether every token of the target was the argmax then.
        rollbacks: How often its edit batch went back to the best pass.
    """

    steps: int = 0
    loss: float = float("nan")
    answered: bool = False
    rollbacks: int = 0

    def look(self, loss: float, answered: bool) -> None:
        """Keeps how the request fares now."""
        self.loss, self.answered = loss, answered

    def stepped(self) -> None:
        """Its loss is part of one step more."""
        self.steps += 1

    def rolled_back(self) -> None:
        """Its edit batch went back to the best pass once more."""
        self.rollbacks += 1


@torch.no_grad()
def score_requests(
    lm: LM, delta: Delta, requests: Sequence[Request], read: Logits | None = None
) -> tuple[list[float], list[bool]]:
    """How requests fare with some changes: their losses, and which are answered, every target token the argmax.

    Args:
        lm: The model.
        delta: The changes.
        requests: The requests.
        read: Gives logits of their texts; None: the whole model does.

    Raises:
        KeditError: A change or a loss is not finite.
    """
    if not all(bool(numbers.isfinite().all()) for _, numbers in delta.numbers()):
        raise KeditError("the weights are not finite after the last step; a smaller model.train.lr may help")
    losses: list[float] = []
    answered: list[bool] = []
    with edited(lm.model, delta):
        for start in range(0, len(requests), BATCH):
            texts = [request.text for request in requests[start : start + BATCH]]
            batch = labelled(lm, texts)
            ids = [text.ids[:-1] for text in texts]
            logits = batch.logits(lm) if read is None else read(ids, batch.rows, batch.cols).float()
            means = batch.means(logits)
            if not bool(means.isfinite().all()):
                raise KeditError("the loss is not finite after the last step; a smaller model.train.lr may help")
            losses += means.tolist()
            answered += batch.answered(logits).tolist()
    return losses, answered


def requests_of(lm: LM, records: Sequence[EditRecord], original: str) -> list[Request]:
    """What is trained for some records, with what the unedited model says.

    Args:
        lm: The unedited model.
        records: In order.
        original: `contrast.original`: whose labels are held, those of the request's text or the model's own.
    """
    texts = [encode_request(lm, record.request) for record in records]
    cases = [record.request.case_id for record in records]
    asked: list[Request] = []
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        greedy = original == "greedy"
        originals = greedy_answers(lm, some) if greedy else some
        if greedy:
            base_labels = [text.target for text in originals]
        else:
            flat = iter(argmaxes(lm, labelled(lm, some)).tolist())
            base_labels = [tuple(next(flat) for _ in text.target) for text in some]
        rows = zip(cases[start : start + BATCH], some, originals, base_labels, strict=True)
        asked += [Request(*row) for row in rows]
    return asked
