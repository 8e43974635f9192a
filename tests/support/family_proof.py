"""Proof of an edit: what kedit does to a model against full forward passes, one text at a time and without tricks."""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.forward.greedy import greedy_ids
from kedit.forward.packing import logits_of
from kedit.forward.replay import Site
from kedit.keyvalue import NLL, ValueObjective, ValueOptimization, optimise, solvers
from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject
from kedit.request import EditRequest

REQUESTS = [
    EditRequest("1", "The mother tongue of {}, who lives in Spain, is", "Danielle Darrieux", "English"),
    EditRequest("2", "{} is located in", "The Space Needle", "Tokyo"),
]
CONTEXTS = ["{}", "Yes. {}"]


class Wrong(AssertionError):
    """kedit accepts a model and edits it wrongly."""


def prove(lm: LM) -> None:
    """Make two edits in the middle of a float32 model.

    Raises:
        Wrong: The objective, the edited value at its key, or a text generated in a batch is not what the model's own
            forward pass gives.
    """
    layer = lm.arch.n_layers // 2
    objective = ValueObjective(lm, REQUESTS, CONTEXTS, [Site("mlp", layer)], [NLL()])
    lanes = ValueOptimization(objective, 0.0, 4.0)
    v_star = optimise(lanes, 0.2, 6)
    keys, values = (t.double() for t in objective.keys_and_values())
    alone = objective.select(torch.tensor([1], device=lm.device))(lanes.delta.detach()[1:])
    _same("the objective of one lane", alone["nll"][0], lanes.total[1])
    zero = torch.zeros(lm.d_model)
    for i, request in enumerate(REQUESTS):
        delta = lanes.delta.detach()[i]
        before, _ = _run(lm, layer, request, "{}", zero)
        _same("v_init + delta", v_star[i], before + delta)
        nll = torch.stack([_run(lm, layer, request, context, delta)[1] for context in CONTEXTS]).mean()
        _same("the objective", lanes.total[i], nll)
        f = solvers.rome(keys[i, 0], values[i, 0], v_star[i].double(), keys[i, 0])
        with edited(lm.model, Delta({lm.arch.path("mlp_out", layer): Factors(f.left.float(), f.right.float())})):
            after, _ = _run(lm, layer, request, "{}", zero)
        _same("the edited value", after, before + delta)
    texts = [tuple(lm.encode(request.text)) for request in REQUESTS]
    if greedy_ids(lm, texts, 5) != [_greedy(lm, text, 5) for text in texts]:
        raise Wrong("texts generated side by side are not those generated one by one")
    with torch.no_grad():
        ends = torch.tensor([len(text) - 1 for text in texts])
        each = [lm.model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1] for text in texts]
        _same("PAC's logits", logits_of(lm, texts, torch.arange(2), ends), torch.stack(each))


@torch.no_grad()
def _run(lm: LM, layer: int, request: EditRequest, context: str, delta: Tensor) -> tuple[Tensor, Tensor]:
    """What leaves `mlp_out` at the subject's last token, and the target's NLL with `delta` added to it."""
    t = encode_subject(lm, request.prompt, request.named(), request.target_new, context)
    seen: list[Tensor] = []

    def hook(_: object, args: object, out: Tensor) -> Tensor:
        changed = out.clone()
        tokens = changed.view(-1, out.shape[-1])  # one text: whatever the axes are, these are its tokens
        seen.append(tokens[t.subject_last].clone())
        tokens[t.subject_last] += delta
        return changed

    handle = lm.arch.module(lm.model, "mlp_out", layer).register_forward_hook(hook)
    try:
        logits = lm.model(input_ids=torch.tensor([t.ids[:-1]]), use_cache=False).logits[0]
    finally:
        handle.remove()
    at = torch.arange(len(t.target)) + t.n_prompt - 1
    return seen[0], -logits[at].float().log_softmax(-1)[torch.arange(len(at)), torch.tensor(t.target)].mean()


@torch.no_grad()
def _greedy(lm: LM, text: tuple[int, ...], n: int) -> list[int]:
    ids, ends = list(text), (lm.tokenizer.eos_token_id, lm.model.config.get_text_config().eos_token_id)
    while len(ids) < len(text) + n and (len(ids) == len(text) or ids[-1] not in ends):
        ids.append(int(lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(text) :]


def _same(what: str, found: Tensor, wanted: Tensor) -> None:
    """Equal but for rounding in float32."""
    far = float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-3))
    if not far < 1e-3:
        raise Wrong(f"{what} is {far:.1e} away from that of full forward passes")
