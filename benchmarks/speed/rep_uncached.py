"""What `rep_speed.py` compares REP's training on cached keys with: a loop that runs the model at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathway import Pathway
from kedit.methods.rep import AdapterConfig, AdapterTask, AdapterTrainer, KeySource
from kedit.methods.rep.keys import read_keys
from kedit.methods.rep.plan import NEGATIVE
from kedit.request import EditRecord


def train(lanes: AdapterTrainer) -> list[Pathway]:
    """(c), (e), (f): what the training steps of `kedit.methods.REP` do, without Lightning."""
    adam = torch.optim.Adam(lanes.parameters(), lr=lanes.config.lr)
    for _ in range(lanes.config.steps):
        adam.zero_grad()
        lanes.loss().backward()
        adam.step()
    return lanes.pathways()


class Uncached(AdapterTrainer):
    """(f): the keys of a step's positives and of the bare prompt come from the model, at every step.

    The positives of `tasks` are forgotten, so that nothing can be trained on them unread.
    """

    def __init__(
        self, tasks: Sequence[AdapterTask], config: AdapterConfig, source: KeySource, records: Sequence[EditRecord],
        layer: int, bank: BatchedDeltas,
    ) -> None:  # fmt: skip
        super().__init__([replace(task, positives=torch.zeros_like(task.positives)) for task in tasks], config)
        self._lm, self._bank = source.lm, bank
        self._module = source.lm.arch.module(source.lm.model, "mlp_out", layer)
        wanted = [[row for row in source.plan(record) if row.role not in (*NEGATIVE, "held")] for record in records]
        self._texts = [[row.ids[: row.subject_last + 1] for row in plan] for plan in wanted]  # the bare prompt first
        self._kept = [task.positives for task in tasks]

    def loss(self) -> Tensor:
        """As (c)'s, on keys read now, the bare prompt's first."""
        drawn = self._draws.step(self.step).positives  # counted over all lanes
        first, texts, lanes = 0, [], []
        for lane, (own, kept) in enumerate(zip(self._texts, self._kept, strict=True)):
            chosen = [own[0], *((own[1:] or own)[i - first] for i in drawn[lane].tolist())]
            texts += chosen
            lanes += [lane] * len(chosen)
            first += len(kept)
        keys = torch.stack([k[-1] for k in read_keys(self._lm, texts, self._module, self._bank, lanes)])
        keys = keys.view(len(self.tasks), -1, keys.shape[-1])
        self.bare = self.scale * keys[:, 0]
        self._square, self._read = self.bare.square().sum(1), keys[:, 1:]
        return super().loss()

    def read_positives(self, rows: Tensor) -> Tensor:
        """What was read."""
        return self._read

    def pathways(self) -> list[Pathway]:
        """The gate is fitted on all positives, also those that no step drew."""
        self.tasks = [replace(task, positives=kept) for task, kept in zip(self.tasks, self._kept, strict=True)]
        return super().pathways()


def difference(ours: Sequence[Pathway], theirs: Sequence[Pathway]) -> dict[str, float]:
    """Largest difference of any tensor of two lists of adapters, also relative to the tensor's largest number."""
    found = {"absolute": 0.0, "relative": 0.0}
    for one, other in zip(ours, theirs, strict=True):
        for name, tensor in one.tensors().items():
            gap, size = float((tensor - other.tensors()[name]).abs().max()), float(tensor.abs().max())
            found = {
                "absolute": max(found["absolute"], gap),
                "relative": max(found["relative"], gap / max(size, 1e-12)),
            }
    return found


def rounding(tasks: Sequence[AdapterTask], config: AdapterConfig) -> dict[str, float]:
    """How far the same training ends from itself when every positive is off by one part in ten million.

    Two ways of reading keys differ by that much; more than this difference between their adapters means a fault.
    """
    shaken = [replace(t, positives=t.positives * (1 + 1e-7 * torch.randn_like(t.positives))) for t in tasks]
    found = []
    for given in (tasks, shaken):
        torch.manual_seed(0)
        found.append(train(AdapterTrainer(given, config)))
    return difference(*found)
