"""What STEAM's tests share: records with references, a model fond of some of them, naive full forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F

from kedit.cli.options.parts import TRAINER_DEFAULTS
from kedit.data import EditData
from kedit.forward.replay import Role
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.module import EditingModule
from kedit.methods.steam import Reference
from kedit.model.lm import LM
from kedit.model.tokenization import encode, encode_subject
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.device import ACCELERATOR
from tests.support.runs_in_memory import Watch
from tests.support.tiny_models import tiny_lm

FAMILIES = ("gpt2", "gptj", "llama", "qwen2")
REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome", "Paris", "capital"),
    EditRequest("2", "The mother tongue of {}, who lives in Spain, is", "Danielle Darrieux", "English tea"),
    EditRequest("3", "{} is located in", "The Space Needle", "Tokyo", "Seattle", "city"),
    EditRequest("4", "{} was", "Windows", "developed by Microsoft"),
]
CONTEXTS = ["{}", "The meeting was. {}", "Because of the rain, we stayed. {}"]

SUBJECTS = ("Brazil", "Egypt", "Honda Civic", "LeBron James", "Ulm", "Bill Gates", "Toyota", "Cologne")
TEMPLATES = {"city": "{} is located in", "capital": "The capital of {} is", "home": "Where is {}? It is in"}


def references(answer: str, relations: Sequence[str] = ("city", "capital"), n: int = 8, **more: Any) -> list[Reference]:
    """`n` references of an object for each relation."""
    return [
        Reference(TEMPLATES[relation].format(subject), answer, relation, subject, **more)
        for relation in relations
        for subject in SUBJECTS[:n]
    ]


def records() -> list[EditRecord]:
    """Three edits to two objects: "Rome" has references of two relations, "Tokyo" none; record 3 is told the fact."""
    attributes = [TEMPLATES["capital"].format(subject) for subject in SUBJECTS[:5]]
    return [
        EditRecord(REQUESTS[0], (Probe("rewrite", REQUESTS[0].text, "Rome", "Paris"),)),
        EditRecord(
            EditRequest("2", "{} is located in", "The Colosseum", "Rome", "Seattle", "city"),
            (Probe("neighborhood", "Microsoft is located in", "Seattle", "Rome"),),
            {"attribute_prompts": attributes},
        ),
        EditRecord(REQUESTS[2], (Probe("rewrite", REQUESTS[2].text, "Tokyo", "Seattle"),)),
    ]


def world() -> list[EditRecord]:
    """Facts of the unedited world beside `records`, which are not edited: those of "Rome" in a second relation."""
    return [
        EditRecord(EditRequest(f"w{i}", TEMPLATES["home"], subject, "Cairo", "Rome", "home"), ())
        for i, subject in enumerate(SUBJECTS[:6])
    ]


def fond_of(model_type: str, answer: str, factor: float, **kwargs: Any) -> LM:
    """A tiny model of three layers whose head says the tokens of `answer` louder: it goes on with them now and then."""
    kwargs = {"n_layers": 3} | kwargs
    lm = tiny_lm(model_type, **kwargs)
    head: Any = lm.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[list(set(encode(lm, "It rains in", answer).target))] *= factor
    return lm


def block_states(lm: LM, ids: Sequence[int], column: int, add: tuple[Role, int, int, Tensor] | None = None) -> Tensor:
    """What leaves every block at one token, by a full forward pass of one row: `[n_layers, d_model]`.

    Args:
        lm: The model.
        ids: The row.
        column: The token.
        add: Role, layer, token and vector that is added there.
    """
    seen: list[Tensor] = []
    handles = []

    def adds(_: object, args: object, output: Any) -> Any:
        assert add is not None
        out = output[0] if isinstance(output, tuple) else output
        mark = F.one_hot(torch.tensor(add[2]), len(ids)).to(out.dtype)[None, :, None]
        changed = out + mark * add[3]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def reads(_: object, args: object, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output)[0, column])

    layers = [lm.arch.layer(lm.model, i) for i in range(lm.arch.n_layers)]
    if add is not None:
        role, layer = add[:2]
        module = layers[layer] if role == "output" else lm.arch.module(lm.model, role, layer)
        handles.append(module.register_forward_hook(adds))
    handles += [layer.register_forward_hook(reads) for layer in layers]
    try:
        lm.model(input_ids=torch.tensor([list(ids)]))
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(seen)


def answer_states(
    lm: LM, request: EditRequest, contexts: Sequence[str], role: Role, layer: int, delta: Tensor, shift: int = 0
) -> Tensor:
    """States where the target's first token is predicted (or `shift` after), `[n_contexts, n_layers, d_model]`."""
    found = []
    for context in contexts:
        t = encode_subject(lm, request.prompt, request.named(), request.target_new, context)
        ids = t.ids[:-1]
        column = len(ids) - len(t.target) + shift
        found.append(block_states(lm, ids, column, (role, layer, t.subject_last, delta)))
    return torch.stack(found)


def naive_alignment(states: Tensor, anchor: Tensor, layers: Sequence[int], centre: Tensor | None = None) -> Tensor:
    """L_LA by its definition: `states [n_contexts, n_layers, d]`; anchor and centre for all layers of the model."""
    total = torch.zeros(())
    for layer in layers:
        c = torch.zeros_like(anchor[layer]) if centre is None else centre[layer]
        for state in states[:, layer]:
            a, b = state - c, anchor[layer] - c
            total = total + 1 - (a @ b) / (a.norm() * b.norm())
    return total / (len(layers) * len(states))


def said(lm: LM, reference: Reference) -> tuple[Tensor, int, bool]:
    """A reference's states, the rank of its object's first token, and whether greedy decoding says the object."""
    t = encode(lm, reference.text, reference.answer)
    ids = list(t.ids[: t.n_prompt])
    with torch.no_grad():
        hidden = block_states(lm, ids, t.n_prompt - 1)
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
        rank = logits.argsort(descending=True).tolist().index(t.target[0])
        for _ in t.target:
            ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return hidden, rank, tuple(ids[t.n_prompt :]) == t.target


class Given(EditData):
    """Records that are edited, in a data set that has others too."""

    def __init__(self, edited: Sequence[EditRecord], others: Sequence[EditRecord] = (), batch_size: int = 1) -> None:
        super().__init__(batch_size=batch_size, limit=len(edited))
        self.given = [*edited, *others]

    def read(self) -> list[EditRecord]:
        """All of them; `limit` leaves those that are edited."""
        return self.given


def run(
    module: EditingModule, lm: LM, data: EditData, resume: str | None = None, callbacks: Sequence[Any] = (), **more: Any
) -> list[EditBatch]:
    """A run from Python; its edit batches."""
    keep = Watch()
    module.use_lm(lm)
    settings = TRAINER_DEFAULTS | {"accelerator": ACCELERATOR, "logger": False, "enable_checkpointing": bool(callbacks)}
    Trainer(**(settings | more), callbacks=[keep, *callbacks]).fit(
        module, datamodule=data, ckpt_path=resume, weights_only=True
    )
    return keep.batches
