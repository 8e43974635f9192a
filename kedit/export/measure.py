"""How probable the new targets are: before an edit, with it, and as it was written to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.lanes import BatchedDeltas
from kedit.evaluation.score import EvalConfig, score
from kedit.export.requests import requests_of
from kedit.model.lm import LM
from kedit.request import EditRequest, Probe

MOST = 100
"""Requests that are asked at an export; of more, this many that lie evenly among them."""


@dataclass(frozen=True)
class Efficacy:
    """Of one request, the probability of its new target (geometric mean over its tokens, teacher forced).

    Attributes:
        case_id: Of the request.
        prompt: With its subject.
        target: The new one.
        before: In the unedited model.
        edited: In the edited model, its change not rounded.
        written: In the model as it was written to the folder; None where nothing was rounded.
    """

    case_id: str
    prompt: str
    target: str
    before: float
    edited: float
    written: float | None = None

    def as_row(self) -> dict[str, Any]:
        """JSON-able, with six decimals."""
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}


def chosen(requests: Sequence[EditRequest], most: int = MOST) -> list[EditRequest]:
    """Those that are asked: all, or `most` that lie evenly among them."""
    n = len(requests)
    return list(requests) if n <= most else [requests[i * n // most] for i in range(most)]


def probabilities(lm: LM, requests: Sequence[EditRequest], delta: Delta | None = None) -> list[float]:
    """p of each new target after its prompt, in the model with `delta`, or as it is.

    A delta that can run beside the weights is not rounded into them, whatever their type.
    """
    probes = [Probe("rewrite", request.text, request.target_new, joiner=request.joiner) for request in requests]
    config = EvalConfig(generate=[])
    if not probes:
        return []
    if delta is None:
        scores = score(lm, probes, config=config)
    elif delta.fits_lanes and lm.dtype in (torch.bfloat16, torch.float16):
        bank = BatchedDeltas(lm.model, [delta.to(lm.device)])
        scores = score(lm, probes, [0] * len(probes), bank, config)
    else:
        with edited(lm.model, delta):
            scores = score(lm, probes, config=config)
    return [one.p_answer for one in scores]


def efficacy_of(lm: LM, delta: Delta, card: Mapping[str, Any]) -> list[Efficacy]:
    """Of the card's requests (`chosen`), before and with the edit.

    Raises:
        KeditError: An entry of the card is no request.
    """
    asked = chosen(requests_of(card))
    lines = zip(asked, probabilities(lm, asked), probabilities(lm, asked, delta), strict=True)
    return [Efficacy(r.case_id, r.text, r.target_new, before, after) for r, before, after in lines]
