"""The steps of a PAC edit: losses of T+ and T- in turn or in one, and which requests still need them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kedit.errors import KeditError
from kedit.forward.packing import logits_of
from kedit.methods.pac.config import ContrastConfig, LocalityConfig, TrainConfig
from kedit.methods.pac.labels import Labelled, labelled
from kedit.methods.pac.locality import LocalityTerm, last_places
from kedit.methods.pac.requests import Logits, Progress, Request, score_requests
from kedit.methods.pac.trainable import Changes, TrainableNodes
from kedit.model.lm import LM

log = logging.getLogger(__name__)


@dataclass
class RectifyLoop:
    """The steps of some passes over some requests, one loss after the other.

    `loss` and `before_step` are to be called in turn with the optimiser's step after them, until `done`; then `finish`.

    Args:
        lm: The model.
        sides: What is trained.
        requests: The requests.
        train: Mini-batches, objective and stopping; its learning rate is in `sides`, its passes are not read.
        contrast: The contrastive term.
        locality: The locality term.
        passes: How often every request is seen.
        generator: Shuffles, and draws what is kept.
        locality_term: The prompts of the locality term; None without one.
        progress: Case -> how it fares; filled in.
        earlier: Requests that were edited before, to be rehearsed.
        read: Gives logits of their texts and of the locality term's prompts; None: the whole model does.
    """

    lm: LM
    sides: TrainableNodes
    requests: Sequence[Request]
    train: TrainConfig
    contrast: ContrastConfig
    locality: LocalityConfig
    passes: int
    generator: torch.Generator
    locality_term: LocalityTerm | None = None
    progress: dict[str, Progress] = field(default_factory=dict)
    earlier: Sequence[Request] = ()
    read: Logits | None = None

    def __post_init__(self) -> None:
        self._read = self.read or partial(logits_of, self.lm)
        self.done = False
        self.terms: dict[str, float | Tensor] = {}
        self._open = {request.case for request in self.requests}  # not seen answered since the last step
        self._order = _mini_batches(self.requests, self.train, self.passes, self.generator)
        self._current: list[Request] = []
        self._best: tuple[tuple[int, float], Changes] | None = None
        self._turn: Literal["edit", "contrast"] = "edit"
        for request in self.requests:
            self.progress.setdefault(request.case, Progress())

    @property
    def most(self) -> int:
        """Most steps that there can be."""
        return self.passes * self._per_pass * (2 if self._alternates else 1)

    @property
    def learned(self) -> bool:
        """Every request was answered as it should be when last seen, none of them changed since."""
        return not self._open

    def loss(self) -> Tensor | None:
        """The loss of the next step; None where nothing is left to learn.

        Raises:
            KeditError: It is not finite.
        """
        if self._turn == "contrast":
            self.sides.train("contrast")
            with self.sides.installed("contrast"):
                loss = self.contrast.weight * self._contrast(self._current)
            self._turn = "edit"
            self._check({"contrast": float(loss.detach())})
            return loss
        for batch in self._order:
            if not batch:
                self._look()
                continue
            loss = self._edit(batch)
            if loss is not None:
                self._open = {request.case for request in self.requests}
                self._current = batch
                self._turn = "contrast" if self._alternates else "edit"
                return loss
            self._open -= {request.case for request in batch}
            if self.learned:
                break
        self.done = True
        return None

    def finish(self) -> None:
        """Puts back the changes of the best pass, where there was a better one than the last (`train.best`).

        Raises:
            KeditError: A loss is not finite.
        """
        if self._best is None or self.learned:
            return
        best, changes = self._best
        last = self._rank()
        if last < best:
            self.sides.reset(changes)
            n = len(self.requests)
            log.info("an earlier pass is kept: after it %d of %d were answered, after the last %d", best[0], n, last[0])

    def before_step(self) -> None:
        """Leaves no gradient to what is not trained in this step, and measures what there is, without a wait."""
        self.sides.before_step()
        name = "contrast" if self.sides.turn == ("contrast",) else "edit"
        self.terms[f"{name}_gradient"] = self.sides.gradient_norm()

    def _look(self) -> None:
        """Keeps the changes as they are, if no pass before was better; goes back where too much is undone."""
        rank = self._rank()
        if self._best is None or rank > self._best[0]:
            self._best = rank, self.sides.changes()
            return
        best, changes = self._best
        if rank[0] < self.train.rollback * best[0]:
            self.sides.reset(changes)
            self.sides.slow(0.5)
            self._open = {request.case for request in self.requests}
            for case in self._open:
                self.progress[case].rolled_back()
            log.info("back to the best pass: %d answered after it, %d now; on from it at half the lr", best[0], rank[0])

    def _rank(self) -> tuple[int, float]:
        """How many requests are answered now, and, less being better, their losses."""
        losses, answered = score_requests(self.lm, self.sides.delta(self.contrast.merge), self.requests, self.read)
        return sum(answered), -sum(losses)

    def _edit(self, batch: list[Request]) -> Tensor | None:
        """L(y*) of the requests that need it, with what goes beside it; None where none does."""
        joint = self.train.objective == "joint" and self._contrasts
        self.sides.train(*(("critical", "contrast") if joint else ("critical",)))
        texts, wanted = self._wanted(batch)
        kept = (
            self.locality_term.draw([r.case for r in batch], self.generator) if self.locality_term is not None else None
        )
        with self.sides.installed("critical"):
            logits, others = self._logits(texts, wanted, kept[0] if kept else [])
            together = joint and self.sides.theta == "updated"
            contrast = self._contrast(batch, logits) if together else None
        standing, finished = self._standing(wanted, logits.detach())
        still_needed = replace(wanted, weights=wanted.weights * (~finished)[wanted.rows])
        losses = {"edit": still_needed.loss_of(logits)}
        if kept is not None:
            losses["locality"] = self.locality.weight * kept[1].kl(others)
        if contrast is not None:
            losses["contrast"] = self.contrast.weight * contrast
        numbers = torch.cat([torch.stack([loss.detach() for loss in losses.values()]), standing]).tolist()  # one wait
        if not self._note(batch, numbers[len(losses) :]):
            return None
        self._check(dict(zip(losses, numbers, strict=False)))
        if joint and contrast is None:
            with self.sides.installed("contrast"):
                losses["contrast"] = self.contrast.weight * self._contrast(batch)
            self._check({"contrast": float(losses["contrast"].detach())})
        edit, *more = losses.values()
        for loss in more:
            edit = edit + loss
        return edit

    def _wanted(self, batch: list[Request]) -> tuple[list[tuple[int, ...]], Labelled]:
        """Texts and targets of a step, those to be rehearsed last; the weights of the others sum to 1."""
        n = min(self.train.rehearse, len(self.earlier))
        order = torch.randperm(len(self.earlier), generator=self.generator)[:n].tolist() if n else []
        texts = [r.text for r in [*batch, *(self.earlier[i] for i in order)]]
        wanted = labelled(self.lm, texts, self.train.per_edit)
        if order:
            wanted = replace(wanted, weights=wanted.weights / wanted.weights[wanted.rows < len(batch)].sum())
        return [text.ids[:-1] for text in texts], wanted

    def _logits(
        self, texts: list[tuple[int, ...]], wanted: Labelled, prompts: list[tuple[int, ...]]
    ) -> tuple[Tensor, Tensor]:
        """Logits of the labels `[m, vocab]`, and after the prompts `[n, vocab]`, from one forward pass."""
        rows, cols = wanted.rows, wanted.cols
        if prompts:
            more, places = last_places(prompts, self.locality.positions, self.lm.device)
            rows, cols = torch.cat([rows, more + len(texts)]), torch.cat([cols, places])
        logits = self._read([*texts, *prompts], rows, cols).float()
        return logits[: len(wanted.labels)], logits[len(wanted.labels) :]

    def _contrast(self, batch: list[Request], logits: Tensor | None = None) -> Tensor:
        """L(y), from the logits of L(y*) where they are at hand and y has the same positions."""
        texts = labelled(self.lm, [r.original for r in batch], self.train.per_edit)
        base_labels = torch.tensor([token for r in batch for token in r.base_labels], device=self.lm.device)
        texts = texts.relabelled(base_labels)
        if logits is not None and all(r.original is r.text for r in batch):
            return texts.loss_of(logits)
        originals = [r.original.ids[:-1] for r in batch]
        return texts.loss_of(self._read(originals, texts.rows, texts.cols).float())

    def _standing(self, wanted: Labelled, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Mean losses, which texts are answered, which finished, in a row `[3 B]`; and the last again, bool `[B]`."""
        right = wanted.answered(logits)
        if not self.train.stop:
            finished = torch.zeros_like(right)
        else:
            finished = right if not self.train.margin else wanted.answered(logits, self.train.margin)
        return torch.cat([wanted.means(logits), right.float(), finished.float()]), finished

    def _note(self, batch: list[Request], standing: list[float]) -> bool:
        """Keeps how the requests of the batch fare; whether any text goes on."""
        means, right, finished = (standing[i * len(standing) // 3 :][: len(standing) // 3] for i in range(3))
        for request, loss, yes, over in zip(batch, means, right, finished, strict=False):
            progress = self.progress[request.case]
            progress.look(loss, bool(yes))
            if not over:
                progress.stepped()
        return not all(finished)

    def _check(self, losses: Mapping[str, float]) -> None:
        """Keeps the losses of a step.

        Raises:
            KeditError: One is not finite.
        """
        for name, value in losses.items():
            if not math.isfinite(value):
                steps = max(progress.steps for progress in self.progress.values())
                raise KeditError(f"the {name} loss is {value} after {steps} steps; a smaller model.train.lr may help")
            self.terms[name] = value

    @property
    def _per_pass(self) -> int:
        return -(-len(self.requests) // self.train.mini_batch)

    @property
    def _contrasts(self) -> bool:
        return self.sides.contrast_lr is not None

    @property
    def _alternates(self) -> bool:
        return self._contrasts and self.train.objective == "alternate"


def _mini_batches(
    requests: Sequence[Request], train: TrainConfig, passes: int, generator: torch.Generator
) -> Iterator[list[Request]]:
    """Of all passes, an empty one between two where the best is kept.

    No method of the loop: its generator would hold the loop, which holds the generator, and neither would be freed.
    """
    for number in range(passes):
        if number and train.best and len(requests) > 1:
            yield []
        order = torch.randperm(len(requests), generator=generator).tolist()
        for start in range(0, len(order), train.mini_batch):
            yield [requests[i] for i in order[start : start + train.mini_batch]]
