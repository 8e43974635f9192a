"""Edits of tiny models, and what models say that were loaded without kedit, for tests of exports."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.prompts import prompt_for
from kedit.methods import EditingModule
from kedit.methods.base.edit_config import EditConfig
from kedit.model.lm import LM
from kedit.model.pretrained import quiet_transformers
from kedit.request import EditRequest
from kedit.results.rows import edit_row, without_probes
from tests.support.device import DEVICE
from tests.support.runs_in_memory import edit_batches

REQUESTS = (
    EditRequest("1", "The capital of {} is", "France", "Rome", "Paris"),
    EditRequest("2", "{} is located in", "The Space Needle", "Tokyo"),
)
TEXTS = ("The capital of France is", "The Space Needle is located in", "Because of the rain, we")


@dataclass(frozen=True)
class Case:
    """An edit of a model.

    Attributes:
        lm: The model, unedited.
        delta: Of the first request.
        card: Of the delta.
    """

    lm: LM
    delta: Delta
    card: dict[str, Any]

    def said(self, *deltas: Delta) -> Tensor:
        """Logits of the model with some deltas, or as it is."""
        with edited(self.lm.model, *deltas):
            return logits(self.lm.model, self.lm, lambda text: prompt_for(self.lm, None, -1, text))


def edit(make: Callable[[], EditingModule], lm: LM) -> Case:
    """Edits the first request; other methods look at the second one."""
    module = make().configure(edit=EditConfig("single", 0))
    batch = edit_batches(module, lm, REQUESTS)[0]
    delta, outcome = batch.deltas[0], batch.outcomes[0]
    assert delta is not None, outcome.error
    entry = without_probes(edit_row(batch.records[0], outcome.info, None, 0, "single", "edit"))
    return Case(lm, delta, module.describe() | {"requests": [entry]})


def card_of(lm: LM, *requests: EditRequest, **more: Any) -> dict[str, Any]:
    """A card as a run writes it."""
    entries = []
    for request in requests:
        named = {name: getattr(request, name) for name in ("prompt", "subject", "target_new", "target_true")}
        entries.append({"case_id": request.case_id, "status": "edited", "request": named, "edit": {}})
    about = {"method": "ROME", "model": lm.name, "model_fingerprint": lm.fingerprint, "dtype": "float32", "seed": 0}
    return about | {"requests": entries} | more


@torch.no_grad()
def logits(model: nn.Module, lm: LM, prompt: Callable[[str], str] = str) -> Tensor:
    """What a model says after `TEXTS`, one row a token, in float32 at least."""
    rows = [model(input_ids=torch.tensor([lm.encode(prompt(text))])).logits[0] for text in TEXTS]
    return torch.cat([row.to(torch.promote_types(row.dtype, torch.float32)) for row in rows])


def loaded(folder: Path | str, dtype: str = "float32") -> Any:
    """A model folder as transformers loads it."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(DEVICE).eval()
