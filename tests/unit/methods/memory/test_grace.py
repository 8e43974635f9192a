"""GRACE: its growth rule against a plain one, its losses against whole passes, whole sequences of edits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.codebook import Codebook
from kedit.delta.delta import Delta
from kedit.errors import KeditError
from kedit.methods import GRACE
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.base.ffn_maps import FfnMap, ffn_path
from kedit.methods.memory.grace_rule import GAP, MARGIN, grow, label_of
from kedit.methods.memory.grace_values import GraceObjective, ValuesPhase
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.request import EditRequest
from tests.support.runs_in_memory import edit_batches
from tests.support.tiny_models import tiny_lm

REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "the"),
    EditRequest("2", "The mother tongue of {} is", "Danielle Darrieux", "of"),
    EditRequest("3", "Who is the president of the United States?", None, "in"),
    EditRequest("4", "The capital of {} is", "France", "and"),
    EditRequest("5", "The capital of {} is", "Italy", "the"),
]  # of one token each, which random weights can be made to say
LONG = EditRequest("6", "{} is located in", "The Space Needle", "Tokyo, in Japan")
AWAY = ["Because of the rain, we stayed at home.", "Toyota Camry is produced by Toyota.", "I think that she is right"]


def run(lm: LM, regime: Any, **options: Any) -> list[EditBatch]:
    module = GRACE(**({"layer": 2, "steps": 30, "lr": 0.5} | options)).configure(edit=EditConfig(regime))
    return edit_batches(module, lm, REQUESTS)


def logits(lm: LM, text: str) -> Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([lm.encode(text)])).logits


def answered(lm: LM, request: EditRequest) -> bool:
    tokens = encode(lm, request.text, request.target_new)
    with torch.no_grad():
        top = lm.model(torch.tensor([tokens.ids[:-1]])).logits[0].argmax(-1)
    return tuple(top[tokens.n_prompt - 1 :].tolist()) == tokens.target


class Plain:
    """The rule as the specification words it, on lists (but for the margin of extended radii)."""

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self.entries: list[dict[str, Any]] = []

    def edit(self, q: Tensor, value: Tensor, label: int) -> None:
        entry = {"key": q, "value": value, "eps": self.eps, "label": label}
        if not self.entries:
            self.entries.append(entry)
            return
        distances = [float((q - e["key"]).norm()) for e in self.entries]
        d = min(distances)
        nearest = self.entries[distances.index(d)]
        if d > self.eps + nearest["eps"]:
            self.entries.append(entry)
        elif nearest["label"] != label:
            self.entries.append(entry | {"eps": d / 2})
            nearest["eps"] = d / 2 - GAP
        else:
            nearest["value"] = value
            if d > nearest["eps"]:
                nearest["eps"] = d * (1 + MARGIN)


def test_the_rule_is_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    plain, book, actions = Plain(1.0), None, set[str]()
    for i in range(300):
        q = torch.randn(2, generator=generator) * 6
        value, label = torch.randn(3, generator=generator), i % 3
        plain.edit(q, value, label)
        growth = grow(book, q, label, 1.0)
        actions.add(growth.action)
        new = growth.entries(value, label)
        book = new if book is None else Codebook.add([book, new])
    assert book is not None
    assert actions == {"add", "split", "extend", "again"}
    assert len(book.keys) == len(plain.entries)
    for i, entry in enumerate(plain.entries):
        assert torch.equal(book.keys[i], entry["key"])
        assert torch.equal(book.values[i], entry["value"])
        assert float(book.radii[i]) == pytest.approx(entry["eps"], abs=1e-5)
        assert int(book.labels[i]) == entry["label"]


def test_the_same_prompt_again() -> None:
    """With another answer the entry is overwritten; a radius of zero would answer nobody."""
    q, value = torch.randn(4), torch.randn(3)
    book = grow(None, q, 1, 0.5).entries(value, 1)
    growth = grow(book, q + 1e-6, 2, 0.5)
    assert growth.action == "overwrite"
    whole = Codebook.add([book, growth.entries(-value, 2)])
    assert len(whole.keys) == 1
    assert torch.equal(whole.values[0], -value)
    assert whole.radii.tolist() == [0.5]
    assert label_of((1, 23)) != label_of((12, 3))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("role", ["down", "up"])
def test_a_loss_is_that_of_the_model_with_the_value_in_it(kind: str, role: FfnMap) -> None:
    lm = tiny_lm(kind)
    path = ffn_path(lm, role, 1, "module")
    texts = [encode(lm, r.text, r.target_new) for r in (*REQUESTS[:2], LONG)]
    objective = GraceObjective(lm, texts, lm.model.get_submodule(path), 1)
    values = torch.rand_like(objective.outputs)
    losses, part = objective(values), objective.select(torch.tensor([0, 2]))(values[[0, 2]])
    torch.testing.assert_close(part, losses[[0, 2]], atol=1e-5, rtol=1e-5)
    for i, tokens in enumerate(texts):
        own = grow(None, objective.queries[i], 0, 1e-2).entries(values[i], 0)
        with edited(lm.model, Delta({path: own})), torch.no_grad():
            logp = lm.model(torch.tensor([tokens.ids[:-1]])).logits[0, tokens.n_prompt - 1 :].log_softmax(-1)
        want = -logp.gather(1, torch.tensor(tokens.target)[:, None]).mean()
        torch.testing.assert_close(losses[i], want, atol=1e-4, rtol=1e-4)


def test_a_lane_that_is_done_stays() -> None:
    lm = tiny_lm("llama")
    texts = [encode(lm, r.text, r.target_new) for r in REQUESTS[:2]]
    objective = GraceObjective(lm, texts, lm.arch.module(lm.model, "mlp_out", 2), 2)
    alone = [GraceObjective(lm, [text], objective.module, 2) for text in texts]
    found: list[ValuesPhase] = []
    for one in (objective, *alone):
        phase = ValuesPhase(one, one.outputs, 0.3, 40, 0.5)
        adam = phase.optimizer()
        while not phase.done and int(phase.updates.max()) < phase.steps:
            adam.zero_grad()
            loss = phase.loss()
            if phase.done:
                break
            loss.backward()
            adam.step()
            phase.after_step()
        phase.close()
        found.append(phase)
    both, first, second = found
    assert both.updates.tolist() == [int(first.updates), int(second.updates)]
    assert 0 < int(first.updates) != int(second.updates) < 40
    torch.testing.assert_close(both.values, torch.cat([first.values, second.values]), atol=1e-3, rtol=1e-3)
    assert not bool(both.failed.any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_sequence_of_edits(kind: str, dtype: torch.dtype) -> None:
    """Each is answered, but one that was edited again; texts away from all keys keep their logits to the bit."""
    lm, plain = tiny_lm(kind, dtype=dtype), tiny_lm(kind, dtype=dtype)
    batches = run(lm, "sequential", eps=0.3)
    infos = [batch.outcomes[0].info for batch in batches]
    assert [info["action"] for info in infos] == ["add", "add", "add", "overwrite", "add"]
    assert [info["entries"] for info in infos] == [1, 2, 3, 3, 4]
    assert [answered(lm, request) for request in REQUESTS] == [False, True, True, True, True]
    assert not any(answered(plain, request) for request in REQUESTS)
    for text in AWAY:
        assert torch.equal(logits(lm, text), logits(plain, text))
    with edited(plain.model, Delta.concat([delta for batch in batches for delta in batch.deltas if delta is not None])):
        for text in (*AWAY, *(request.text for request in REQUESTS)):
            assert torch.equal(logits(plain, text), logits(lm, text))


def test_it_stops_where_it_is_told_to() -> None:
    lm = tiny_lm("llama")
    for steps, stop in ((5, 0.0), (100, 0.5)):
        for batch in run(lm, "single", steps=steps, stop_loss=stop, init="warm"):
            for outcome in batch.outcomes:
                assert (outcome.info["steps"] == steps) == (stop == 0.0)
                assert stop == 0.0 or outcome.info["loss"] < stop


def test_bad_options_are_named() -> None:
    for option, value in (("eps", 0.0), ("lr", 0.0), ("steps", 0), ("stop_loss", -1.0)):
        with pytest.raises(KeditError, match=rf"^model\.{option}"):
            GRACE(**{option: value})  # type: ignore[arg-type]
    with pytest.raises(KeditError, match=r"^model\.layer"):
        run(tiny_lm("llama"), "single", layer=9)
    with pytest.raises(KeditError, match=r"^edit\.regime"):
        run(tiny_lm("llama"), "batch")
