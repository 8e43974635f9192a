"""PAC's rectifying steps: trained slices against dense masked Adam (`pac_speed.py` runs it).

A pair of steps on a mini-batch of two: A, L(y*) with the gradients of T+ (15 nodes of every key and value matrix); B,
0.1 L(y) with those of T- (1 node). "dense" is what the released code does (specs/pac.md 2.5), without its calls that
empty caches: every matrix requires a gradient, logits at all positions, backward, gradients outside the nodes set to
zero, one Adam over all matrices. Its loss is taken at the labelled positions alone, which is less than the released
code's, and its texts are as kedit's. "shared_adam" is kedit with the released run's one Adam; it must change the
weights as "dense" does. "two_adams" is kedit with one for each side, which does less: a side stands still while the
other is trained. "joint" is kedit with one step on the sum of both losses, from one pass (the paper's equation): other
steps than the released code's, for the same two losses. All start from the unedited weights, take the same
mini-batches in the same order, and go on from round to round.

The state is what a step leaves beside weights and slices: gradients, and Adam's moments. Slices are kedit's own
float32 change beside weights that do not move; they are counted apart from it, and in the peak.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.measured import peak_bytes, show, take_turns
from kedit.delta.master_weights import as_rows
from kedit.delta.slices import Slices
from kedit.methods.pac import (
    ContrastConfig,
    LocalityConfig,
    Objective,
    Part,
    RectifyLoop,
    Request,
    Selection,
    Site,
    TraceConfig,
    TrainableNodes,
    TrainConfig,
    argmaxes,
    labelled,
    select,
    trace,
)
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.model.tokenization import Tokens

LR = 1e-5  # the released run's, as everything here
SIZE = 2
WEIGHT = 0.1  # lambda


class Way(Protocol):
    """One way to train."""

    lm: LM
    optimizer: torch.optim.Adam

    def pair(self, requests: Sequence[Request]) -> None:
        """Step A and step B on a mini-batch."""
        ...


class Slim:
    """Kedit's way."""

    def __init__(self, lm: LM, selection: Selection, shared: bool, objective: Objective = "alternate") -> None:
        train = TrainConfig(mini_batch=SIZE, objective=objective, stop=False, per_edit=False)
        self.options = (train, ContrastConfig(weight=WEIGHT), LocalityConfig())
        self.lm, self.sides = lm, TrainableNodes(lm, "none", LR, LR, shared)
        self.optimizer = self.sides.take(selection)

    def pair(self, requests: Sequence[Request]) -> None:
        steps = RectifyLoop(self.lm, self.sides, requests, *self.options, 1, torch.Generator().manual_seed(0))
        while (loss := steps.loss()) is not None:
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            steps.before_step()
            self.optimizer.step()


class Dense:
    """The released code's way.

    Args:
        lm: A model of its own, which it trains.
        selection: T+ and T-.
    """

    def __init__(self, lm: LM, selection: Selection) -> None:
        self.lm, self.selection = lm, selection
        self.weights: dict[Site, Any] = {site: lm.model.get_submodule(site.path).weight for site in selection.critical}
        for parameter in self.weights.values():
            parameter.requires_grad_()
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=LR)

    def pair(self, requests: Sequence[Request]) -> None:
        batch = labelled(self.lm, [request.text for request in requests])
        base_labels = torch.tensor(
            [token for request in requests for token in request.base_labels], device=self.lm.device
        )
        self._step("critical", batch.ids, batch.rows, batch.cols, batch.labels, 1.0)
        self._step("contrast", batch.ids, batch.rows, batch.cols, base_labels, WEIGHT)

    def _step(self, part: Part, ids: Tensor, rows: Tensor, cols: Tensor, labels: Tensor, scale: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.lm.model(input_ids=ids, use_cache=False).logits.float()
        (scale * F.cross_entropy(logits[rows, cols], labels)).backward()
        for site, parameter in self.weights.items():
            stored = weight(self.lm.model.get_submodule(site.path)).shape == parameter.shape
            view = as_rows(parameter.grad if stored else parameter.grad.T, site.axis)
            nodes = getattr(self.selection, part)[site].to(self.lm.device) + site.offset
            kept = view[nodes]
            parameter.grad.zero_()
            view[nodes] = kept
        self.optimizer.step()


def asked(lm: LM, texts: Sequence[Tokens]) -> list[Request]:
    """Requests with y, what the unedited model says at the positions of y*."""
    base_labels = [tuple(argmaxes(lm, labelled(lm, [text])).tolist()) for text in texts]
    return [Request(str(i), text, text, own) for i, (text, own) in enumerate(zip(texts, base_labels, strict=True))]


def first_pair(make: Callable[[], Way], lm: LM, requests: Sequence[Request]) -> tuple[Way, dict[str, float]]:
    """A way after its first pair, and the memory of that: state in the steps, peak from the making on."""
    made: list[Way] = []
    held: list[int] = []

    def run() -> None:
        made.append(way := make())
        hook = way.optimizer.register_step_post_hook(lambda optimizer, *_: held.append(state_bytes(optimizer)))
        way.pair(requests)
        hook.remove()

    peak = peak_bytes(lm, run)
    return made[0], {"state_mb": max(held) / 1e6, "peak_mb": peak / 1e6}


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the gradients and of the optimiser's state, as they are now."""
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = [value for own in optimizer.state.values() for value in own.values() if isinstance(value, Tensor)]
    return sum(t.nbytes for t in [*(p.grad for p in trained if p.grad is not None), *moments])


@torch.no_grad()
def difference(slim: Slim, dense: Dense) -> dict[str, float]:
    """How far the slices are from the change of the dense weights, over all entries of all matrices."""
    delta, most, largest, squares = slim.sides.delta(), 0.0, 0.0, [0.0, 0.0]
    for site in dense.weights:
        before = weight(slim.lm.model.get_submodule(site.path)).float()
        change = weight(dense.lm.model.get_submodule(site.path)).float() - before
        gap = delta.of_kind(Slices)[site.path].dense() - change
        most, largest = max(most, float(gap.abs().max())), max(largest, float(change.abs().max()))
        squares = [squares[0] + float(gap.square().sum()), squares[1] + float(change.square().sum())]
    return {
        "largest_difference": most,
        "largest_change": largest,
        "difference_over_change": (squares[0] / squares[1]) ** 0.5,
    }


def measure(lm: LM, texts: Sequence[Tokens], rounds: int, device: str) -> dict[str, Any]:
    """Seconds, state, peaks and the equality of every way.

    Args:
        lm: The model.
        texts: Prompts with targets.
        rounds: Rounds over all mini-batches, after a first pair that is not timed.
        device: Where the model is.
    """
    requests = asked(lm, texts)
    order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [[requests[i] for i in order[start : start + SIZE]] for start in range(0, len(order), SIZE)]
    config = TraceConfig(memory=2)
    batches = [labelled(lm, [request.text for request in pair]) for pair in pairs]
    selection = select(trace(lm, batches, config), config)
    longest = max(pairs, key=lambda pair: len(pair) * max(len(request.text.ids) for request in pair))
    copied = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.name)
    makers: dict[str, tuple[Callable[[], Way], LM]] = {
        "shared_adam": (lambda: Slim(lm, selection, shared=True), lm),
        "two_adams": (lambda: Slim(lm, selection, shared=False), lm),
        "joint": (lambda: Slim(lm, selection, shared=False, objective="joint"), lm),
        "dense": (lambda: Dense(copied, selection), copied),
    }
    ways: dict[str, Any] = {}
    memory: dict[str, dict[str, float]] = {}
    for name, (make, own) in makers.items():
        ways[name], memory[name] = first_pair(make, own, longest)

    runs = {name: [lambda w=way, p=pair: w.pair(p) for pair in pairs] for name, way in ways.items()}
    figures, _ = take_turns(runs, rounds, len(pairs), "pair", device)
    for name, figure in figures.items():
        figure |= memory[name]
        for key in ("state", "peak"):
            figure[f"{key}_share_of_dense"] = memory[name][f"{key}_mb"] / memory["dense"][f"{key}_mb"]
        if name != "dense":
            slices = ways[name].sides.delta().of_kind(Slices).values()
            figure["slices_mb"] = sum(part.values.nbytes for part in slices) / 1e6
    figures["shared_adam"] |= difference(ways["shared_adam"], ways["dense"])
    show("steps", figures)
    tokens = [[len(request.text.ids) for request in pair] for pair in pairs]
    return {"tokens": tokens, "pairs_trained": rounds * len(pairs) + 1, "lr": LR, "figures": figures}
