"""GRACE: lifelong editing with a codebook of key-value adaptors (Hartvigsen et al., NeurIPS 2023; baselines 1.12)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from kedit.delta.codebook import Codebook
from kedit.delta.delta import Delta
from kedit.errors import KeditError, above_zero, at_least
from kedit.keyvalue.published import GPT2_XL, GPT_J, LLAMA_2, QWEN_2, SMOLLM2, Published, fill_in, layer_at
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.ffn_maps import FfnMap, ffn_path
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.module import EditingModule
from kedit.methods.base.phase import EditProgram
from kedit.methods.locate_then_edit.base import required
from kedit.methods.memory.grace_rule import Growth, grow, label_of
from kedit.methods.memory.grace_values import GraceObjective, ValuesPhase
from kedit.model.architecture import check_layers
from kedit.model.lm import LM
from kedit.model.tokenization import Tokens, encode_target
from kedit.request import EditRequest


def _by_depth(lm: LM) -> Mapping[str, Any]:
    """The layer at the depth of Llama 2's."""
    return {"layer": layer_at(lm, 0.84)}


class GRACE(EditingModule):
    """A codebook beside one linear map: near a remembered input its output is replaced by a learned value.

    Args:
        layer: Layer of the edited map; null takes the model's published one, or the layer at 84 % of its depth.
        module: Which of its feed-forward maps: `down`, the output map, or `up`, before the activation; null: the
            published one.
        eps: Radius of a new entry, in units of the map's inputs.
        lr: Adam's learning rate for a value.
        steps: Most updates of a value; null: published value.
        stop_loss: A value is done when the mean -log p of its target falls below this; 0, as published: never.
        init: Where a new value begins. `cold`: at random. `warm`: at the output that it replaces.
    """

    card = MethodCard("Hartvigsen et al., NeurIPS 2023", "no weight: outputs of one map near remembered inputs")

    regimes = ("single", "sequential")
    usual_regime = "sequential"
    needs_subject = False

    published = Published(
        by_depth=_by_depth,
        usual={"module": "down", "steps": 50},
        models={
            GPT2_XL: MappingProxyType({"layer": 35, "module": "up", "steps": 200}),
            GPT_J: MappingProxyType({"layer": 25, "steps": 200}),
            LLAMA_2: MappingProxyType({"layer": 27}),
            QWEN_2: MappingProxyType({"layer": 18}),
            SMOLLM2: MappingProxyType({"layer": 25}),  # our choice: Llama 2's depth
        },
    )

    def __init__(
        self,
        layer: int | None = None,
        module: Literal["up", "down"] | None = None,
        eps: float = 1.0,
        lr: float = 1.0,
        steps: int | None = None,
        stop_loss: float = 0.0,
        init: Literal["cold", "warm"] = "cold",
    ) -> None:
        super().__init__()
        above_zero("model.eps", eps)
        above_zero("model.lr", lr)
        at_least("model.steps", steps, 1)
        at_least("model.stop_loss", stop_loss, 0.0)
        self.layer, self.eps, self.lr, self.steps, self.stop_loss = layer, eps, lr, steps, stop_loss
        self.module: FfnMap | None = module
        self.init = init
        self._book: Codebook | None = None  # of the deltas that are committed
        self._counted = 0  # how many of these are in it

    def setup(self, stage: str) -> None:
        """Fills in the model's own defaults and checks the layer before anything is computed."""
        fill_in(self, self.published, self.lm)
        check_layers(self.lm.arch, [self._layer], "model.layer")
        self.steps_per_batch = self._steps
        super().setup(stage)
        size = self._data.batch_size
        if self.regime == "sequential" and size != 1:
            raise KeditError(f"data.batch_size: GRACE edits one request at a time, not {size}")

    @property
    def path(self) -> str:
        """The edited map."""
        if self.module is None:
            raise RuntimeError("hyperparameters are filled in by setup()")
        return ffn_path(self.lm, self.module, self._layer, "model.module")

    @property
    def _layer(self) -> int:
        return int(required(self.layer))

    @property
    def _steps(self) -> int:
        return int(required(self.steps))

    def edit(self, batch: EditBatch) -> EditProgram:
        """Query, growth rule, value: for the requests of a batch side by side, each of which has its own codebook."""
        texts = [self._encoded(record.request) for record in batch.records]
        module = self.lm.model.get_submodule(self.path)
        objective = GraceObjective(self.lm, texts, module, self._layer)
        book = self._codebook() if self.regime == "sequential" else None
        labels = [label_of(text.target) for text in texts]
        growths = [grow(book, q, label, self.eps) for q, label in zip(objective.queries, labels, strict=True)]
        starts = [
            growth.value if growth.value is not None else self._start(record.request, output)
            for record, growth, output in zip(batch.records, growths, objective.outputs, strict=True)
        ]
        phase = ValuesPhase(objective, torch.stack(starts), self.lr, self._steps, self.stop_loss)
        yield phase
        phase.close()
        return [self._delta(batch, i, phase, growths[i], labels[i], book) for i in range(len(texts))]

    def _delta(
        self, batch: EditBatch, i: int, phase: ValuesPhase, growth: Growth, label: int, book: Codebook | None
    ) -> Delta | None:
        """What one request adds to the codebook; None, with the reason in its outcome, where it has no value."""
        outcome, steps = batch.outcomes[i], int(phase.updates[i])
        if bool(phase.failed[i]):
            outcome.report({"steps": steps}, f"the value or its loss is not finite after {steps} steps")
            return None
        new = growth.entries(phase.values[i].detach(), label)
        entries = len(new.keys) if book is None else len(Codebook.add([book, new]).keys)
        outcome.report(
            {
                "loss": float(phase.losses[i]),
                "steps": steps,
                "action": growth.action,
                "radius": growth.radius,
                "entries": entries,
            },
            None,
        )
        return Delta({self.path: new})

    def _codebook(self) -> Codebook | None:
        """All entries of the edits that are committed."""
        new = [own for delta in self.deltas[self._counted :] for own in delta.of_kind(Codebook).values()]
        if new:
            self._book = Codebook.add([*([] if self._book is None else [self._book]), *new])
        self._counted = len(self.deltas)
        return self._book

    def _encoded(self, request: EditRequest) -> Tokens:
        return encode_target(self.lm, request)

    def _start(self, request: EditRequest, output: Tensor) -> Tensor:
        """Where a new value begins: the same for a request whatever it is edited with."""
        if self.init == "warm":
            return output
        digest = hashlib.sha256(f"{self.seed} {request.case_id}".encode("utf-8", "surrogatepass")).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
        return torch.rand(output.shape, generator=generator).to(output)

    def describe(self) -> dict[str, Any]:
        """Provenance: every hyperparameter that was used, defaults filled in."""
        names = ("layer", "module", "eps", "lr", "steps", "stop_loss", "init")
        return super().describe() | {name: getattr(self, name) for name in names}
