"""PAC's parts on tiny models: requests, two sides, a course of steps, and the same by hand.

For the tests of the parts by themselves; those of whole runs share `tests/support/pac_runs.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kedit.delta.delta import Delta
from kedit.methods.pac import (
    ContrastConfig,
    LocalityConfig,
    Rectifier,
    RectifyLoop,
    Request,
    Selection,
    Site,
    TrainableNodes,
    TrainConfig,
    encode_request,
    sites,
)
from kedit.methods.pac.trainable import Theta
from kedit.model.lm import LM
from kedit.model.tokenization import Tokens
from kedit.request import EditRequest
from tests.support.tiny_models import tiny_lm

REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "{} plays", "Lionel Messi", "basketball for the Lakers"),
    EditRequest("3", "What is the twin city of Cologne?", None, "Paris tea"),
    EditRequest("4", "The mother tongue of {} is", "Danielle Darrieux", "English"),
]
LAMBDA = 0.1


def small(kind: str = "llama", **kwargs: Any) -> LM:
    options: dict[str, Any] = {"n_layers": 2, "d_model": 16, "d_ff": 40} | kwargs
    lm = tiny_lm(kind, **options)
    lm.model.requires_grad_(False)
    return lm


def logits_alone(lm: LM, text: Tokens) -> Tensor:
    """Logits that predict the target's tokens, of the text by itself, `[n, vocab]`."""
    return lm.model(torch.tensor([text.ids])).logits[0, text.n_prompt - 1 : len(text.ids) - 1]


def asked(lm: LM, greedy: bool = False) -> list[Request]:
    """The requests, and what the model says, one text and one token at a time."""
    found = []
    for request in REQUESTS:
        text = encode_request(lm, request)
        if greedy:
            ids = text.ids[: text.n_prompt]
            for _ in text.target:
                ids += (int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()),)
            original = Tokens(ids, text.n_prompt)
            base_labels = original.target
        else:
            original, base_labels = text, tuple(logits_alone(lm, text).argmax(-1).tolist())
        found.append(Request(request.case_id, text, original, base_labels))
    return found


def easy(lm: LM, n: int) -> list[Request]:
    """Requests whose target is what the model says already."""
    return [Request(f"easy-{r.case}", r.original, r.original, r.base_labels) for r in asked(lm, greedy=True)[:n]]


def mean_nll(lm: LM, texts: Sequence[Tokens], labels: Sequence[Sequence[int]], per_edit: bool) -> Tensor:
    """-log p of the labels, text by text: the mean of the texts' means, or over all tokens."""
    losses = [
        -logits_alone(lm, text).log_softmax(-1)[torch.arange(len(own)), torch.tensor(own)]
        for text, own in zip(texts, labels, strict=True)
    ]
    return torch.stack([loss.mean() for loss in losses]).mean() if per_edit else torch.cat(losses).mean()


def draw(lm: LM, seed: int = 0, nodes: int = 3) -> Selection:
    return Selection.random(sites(lm), nodes, 2, torch.Generator().manual_seed(seed))


def sides_of(lm: LM, lr: float = 1e-2, shared: bool = False, theta: Theta = "updated", **more: Any) -> TrainableNodes:
    options = {"bias": "none", "contrast_lr": lr} | more
    return TrainableNodes(lm, options["bias"], lr, options["contrast_lr"], shared, theta)


TRAIN = TrainConfig(mini_batch=4, stop=False)


def course_of(lm: LM, sides: TrainableNodes, requests: list[Request], passes: int = 3, **changed: Any) -> RectifyLoop:
    own = {key: changed.pop(key) for key in ("locality_term", "earlier") if key in changed}
    contrast, locality = changed.pop("contrast", ContrastConfig(LAMBDA)), changed.pop("locality", LocalityConfig())
    generator = changed.pop("generator", torch.Generator().manual_seed(0))
    return RectifyLoop(lm, sides, requests, replace(TRAIN, **changed), contrast, locality, passes, generator, **own)


def step(course: RectifyLoop, optimizer: torch.optim.Optimizer) -> float | None:
    """One step; its loss, or None where nothing was left."""
    loss = course.loss()
    if loss is None:
        return None
    optimizer.zero_grad()
    loss.backward()
    course.before_step()
    optimizer.step()
    return float(loss.detach())


def go(course: RectifyLoop, optimizer: torch.optim.Optimizer) -> list[float]:
    """All steps."""
    losses: list[float] = []
    while (loss := step(course, optimizer)) is not None:
        losses.append(loss)
    return losses


def values(side: Rectifier) -> dict[Site, Tensor]:
    return {site: value.detach().clone() for site, value in side.values.items()}


def same(one: dict[Site, Tensor], other: dict[Site, Tensor]) -> bool:
    return all(torch.equal(value, other[site]) for site, value in one.items())


def dense(delta: Delta) -> dict[str, Tensor]:
    """Changes of weights and biases as they are added."""
    return {path: part.dense() for path, part in delta.slices.items()} | {
        f"{path}.bias": change for path, change in delta.biases.items()
    }


def lines_of(site: Site, matrix: Tensor, nodes: Tensor) -> Tensor:
    """Nodes `[n, D]` of a matrix in the mathematical orientation."""
    return matrix[:, nodes].T if site.kind == "value" else matrix[nodes + site.offset]


def both_losses(lm: LM, requests: list[Request], per_edit: bool) -> tuple[Tensor, Tensor]:
    """L(y*) and L(y) of the model as it is."""
    edit = mean_nll(lm, [r.text for r in requests], [r.text.target for r in requests], per_edit)
    return edit, mean_nll(lm, [r.original for r in requests], [r.base_labels for r in requests], per_edit)
