"""LocFT on cached inputs against plain fine-tuning, in one run: the same requests, mini-batches and losses.

    OMP_NUM_THREADS=1 python benchmarks/speed/locft_speed.py

Three ways, for a layer at the depth of the published recipe and a low one. They take turns step by step, so that what
else the machine does slows all of them down alike:

- `plain`: the usual loop. The matrix is trained in place, a mini-batch is one padded batch through the whole model, and
  the loss is that of transformers' own `labels`, whose logits are of every token.
- `whole`: kedit's with `cached: false`. The whole model too, texts of like lengths together, the head where it is read.
- `cached`: kedit's default. The layers below the edited one run once.

`share_of_plain` is of a run of 25 epochs, as published: what fills the cache, and 25 epochs of steps. Each is the least
of some rounds, because the machine may be busy. Shares are of CPU seconds, on a GPU of wall seconds.
`products_share_of_plain` is of the operations in the matrix products of a step, whatever the machine does. Equality:
the largest relative difference of a loss to that of the plain loop, and of the change of the matrix.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, read_requests, save, speed_parser, timed
from benchmarks.speed.measured import clock_of
from kedit.data import read_facts
from kedit.delta.dense import Dense
from kedit.methods.fine_tuning.dense_changes import DenseChanges
from kedit.methods.fine_tuning.texts import Text, text_of
from kedit.methods.fine_tuning.tune_phase import Recipe, TunePhase
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.model.tokenization import pad_right

PUBLISHED_EPOCHS = 25


class Plain:
    """The usual loop. Between its steps the model has its old weights again."""

    def __init__(self, lm: LM, texts: list[Text], recipe: Recipe, layer: int) -> None:
        self.lm, self.w = lm, lm.arch.module(lm.model, "mlp_out", layer).get_parameter("weight")
        self.matrix = weight(lm.arch.module(lm.model, "mlp_out", layer))
        self.old, self.now = self.w.detach().clone(), self.w.detach().clone()
        self.adam = torch.optim.Adam([self.w], lr=recipe.lr)
        self.rows = [(*text.ids, text.labels[-1]) for text in texts]
        self.targets = [(-100,) * (len(text.ids) + 1 - len(text.labels)) + text.labels for text in texts]
        self.order = self._mini_batches(len(texts), recipe)

    def _mini_batches(self, n: int, recipe: Recipe) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(recipe.passes):
            order = torch.randperm(n, generator=generator).tolist()
            yield from (order[start : start + recipe.mini_batch] for start in range(0, n, recipe.mini_batch))

    def step(self) -> float:
        """One step; its loss."""
        index = next(self.order)
        self._write(self.now)
        self.w.requires_grad_(True)
        ids, mask = pad_right([self.rows[i] for i in index], self.lm.pad_id, self.lm.device)
        labels, _ = pad_right([self.targets[i] for i in index], -100, self.lm.device)
        loss = self.lm.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.w.requires_grad_(False)
        self.now.copy_(self.w)
        self._write(self.old)
        return float(loss.detach())

    def change(self) -> Tensor:
        """Of the matrix, `[d_out, d_in]`."""
        self._write(self.now)
        now = self.matrix.detach().clone()
        self._write(self.old)
        return now - self.matrix.detach()

    @torch.no_grad()
    def _write(self, values: Tensor) -> None:
        self.w.copy_(values)


class Kedit:
    """LocFT's steps; the layers below `first` run once, when it is made."""

    def __init__(self, lm: LM, texts: list[Text], recipe: Recipe, layer: int, first: int) -> None:
        self.path = lm.arch.path("mlp_out", layer)
        changes, generator = DenseChanges(lm, [self.path]), torch.Generator().manual_seed(0)
        self.phase = TunePhase(lm, changes, texts, recipe, False, first, generator)
        self.adam = self.phase.optimizer()

    def step(self) -> float:
        """One step; its loss."""
        loss = self.phase.loss()
        assert loss is not None
        self.adam.zero_grad()
        loss.backward()
        self.phase.before_step()
        self.adam.step()
        self.phase.after_step()
        return float(loss.detach())

    def change(self) -> Tensor:
        """Of the matrix, `[d_out, d_in]`."""
        return self.phase.weights.delta().of_kind(Dense)[self.path].matrix


def counted(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products of a step: what the machine is busy with plays no part."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def compared(lm: LM, texts: list[Text], recipe: Recipe, layer: int, device: str) -> dict[str, Any]:
    """Figures of the three ways for one layer."""
    made: dict[str, Callable[[], Plain | Kedit]] = {
        "plain": lambda: Plain(lm, texts, recipe, layer),
        "whole": lambda: Kedit(lm, texts, recipe, layer, 0),
        "cached": lambda: Kedit(lm, texts, recipe, layer, layer),
    }
    clock = clock_of(device)
    ways, fill = {}, {}
    for name, make in made.items():
        ways[name], seconds = timed(make, device)
        fill[name] = min(seconds[clock], timed(make, device)[1][clock])
    losses: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    flops = {name: counted(way.step) for name, way in ways.items()}
    ways = {name: make() for name, make in made.items()}
    for _ in range(recipe.passes * -(-len(texts) // recipe.mini_batch)):
        for name, way in ways.items():
            loss, seconds = timed(way.step, device)
            losses[name].append(loss)
            spent[name].append(seconds[clock])
    batches = -(-len(texts) // recipe.mini_batch)
    run = {name: fill[name] + PUBLISHED_EPOCHS * batches * min(spent[name]) for name in ways}
    figures: dict[str, Any] = {}
    wanted = ways["plain"].change()
    for name, way in ways.items():
        figure: dict[str, Any] = {"once_s": fill[name], "step_s": min(spent[name]), "steps_s": spent[name]}
        figure["share_of_plain"] = run[name] / run["plain"]
        figure["products_share_of_plain"] = flops[name] / flops["plain"]
        figure["losses"] = [losses[name][0], losses[name][-1]]
        if name != "plain":
            pairs = zip(losses[name], losses["plain"], strict=True)
            figure["largest_difference_of_a_loss"] = max(abs(a - b) / b for a, b in pairs)
            figure["difference_of_the_change"] = float((way.change() - wanted).norm() / wanted.norm())
        figures[name] = figure
        print(f"layer {layer}", name, {k: v if isinstance(v, list) else float(f"{v:.4g}") for k, v in figure.items()})
    figures["cached"]["share_of_whole"] = run["cached"] / run["whole"]
    return figures


def main() -> None:
    """Run every way for every layer, and print and save the figures."""
    parser = speed_parser(__doc__, "facts of kedit's own test split")
    parser.add_argument("--layers", type=int, nargs="*", default=[20, 6], help="of 30: 22 of 32, and Qwen's 6 of 28")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--mini-batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=6)
    a = parser.parse_args()
    lm = get_lm(a.model, a.dtype, a.device)
    if a.data is None:
        facts = list(read_facts("test"))
        random.Random(0).shuffle(facts)  # the file has them by relation, all of like lengths
        requests = [fact.request for fact in facts[: a.requests]]
    else:
        requests = read_requests(a.data, a.requests)
    texts = [text_of(lm, request, "target_new", eos=True) for request in requests]
    recipe = Recipe(a.epochs, 5e-4, a.mini_batch, shuffled=True)
    settings = {k: v for k, v in vars(a).items() if k != "layer"}
    settings |= {"threads": torch.get_num_threads(), "unit_of_ratios": clock_of(a.device)}
    settings |= {"tokens": sum(len(text.ids) for text in texts), "labels": sum(len(text.labels) for text in texts)}
    found: dict[str, Any] = {"settings": settings}
    for layer in a.layers:
        found[f"layer_{layer}"] = compared(lm, texts, recipe, layer, a.device)
    print("saved", save(a.save or f"locft_speed_{a.device}", found).name)


if __name__ == "__main__":
    main()
