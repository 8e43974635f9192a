"""LoRA from end to end on tiny models, against a plain loop over a model of peft's; what it keeps and refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.errors import KeditError
from kedit.methods import LoRA
from kedit.methods.base.edit_batch import batch_seed
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.fine_tuning.lora_adapter import Adapter, Kind
from kedit.methods.fine_tuning.lora_phase import LoraPhase, Steps
from kedit.methods.fine_tuning.lora_targets import query_and_value, target_paths
from kedit.methods.pac.labels import encode_request
from kedit.model.lm import LM
from kedit.request import EditRequest
from tests.support.pac_cases import REQUESTS, small
from tests.support.runs_in_memory import Given
from tests.support.steam_cases import run
from tests.unit.methods.fine_tuning.test_lora_adapter import fill


def made(regime: Any, **more: Any) -> LoRA:
    options: dict[str, Any] = {"steps": 4, "r": 3, "alpha": 8.0, "dropout": 0.0} | more
    return LoRA(**options).configure(edit=EditConfig(regime))


def dense(delta: Delta | None) -> dict[str, Tensor]:
    assert delta is not None
    return {path: part.dense() for path, part in delta.of_kind(Factors).items()}


def published(
    lm: LM, kind: Kind, batches: Sequence[Sequence[EditRequest]], size: int, seed: int
) -> list[dict[str, Tensor]]:
    """The adapter after each edit batch: one model of peft's that is trained on, with its own loss and labels."""
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    names = query_and_value(lm)
    shared: dict[str, Any] = {"lora_alpha": 8, "lora_dropout": 0.0, "target_modules": names, "task_type": "CAUSAL_LM"}
    shared["fan_in_fan_out"] = names == ["c_attn"]
    config = LoraConfig(r=3, **shared) if kind == "lora" else AdaLoraConfig(init_r=3, total_step=9, **shared)
    own = Adapter(lm, target_paths(lm, names), kind, 3, 8.0, 0.0, batch_seed(seed, 0))
    model = get_peft_model(lm.model, config)
    fill(model, own)
    found = []
    for batch in batches:
        trained = [p for p in model.parameters() if p.requires_grad]
        adam = torch.optim.Adam(trained, lr=5e-3)
        for _ in range(4):
            for start in range(0, len(batch), size):
                texts = [encode_request(lm, request) for request in batch[start : start + size]]
                width = max(len(text.ids) for text in texts)
                ids = torch.tensor([[*t.ids, *[0] * (width - len(t.ids))] for t in texts])
                labels = torch.full_like(ids, -100)
                for row, text in enumerate(texts):
                    labels[row, text.n_prompt : len(text.ids)] = torch.tensor(text.target)
                adam.zero_grad()
                model(input_ids=ids, labels=labels, attention_mask=(ids != 0).long()).loss.backward()
                adam.step()
        layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
        changes = {
            n.removeprefix("base_model.model."): m.get_delta_weight("default").detach() for n, m in layers.items()
        }  # type: ignore[operator]
        found.append({path: change.T if names == ["c_attn"] else change for path, change in changes.items()})
    return found


@pytest.mark.parametrize("size", [1, 2, 0])
@pytest.mark.parametrize(("kind", "model"), [("lora", "llama"), ("lora", "gpt2"), ("adalora", "llama")])
def test_accumulated_edits_are_one_adapter_that_is_trained_on(kind: Kind, model: str, size: int) -> None:
    lm = small(model)
    module = made("sequential", kind=kind, mini_batch=size)
    batches = run(module, lm, Given(REQUESTS, 2))
    parts = [REQUESTS[:2], REQUESTS[2:]]
    wanted = published(small(model), kind, parts, size or 2, module.seed)
    first, both = dense(batches[0].deltas[0]), dense(module.deltas[0])
    assert first.keys() == wanted[0].keys()
    for path in first:
        scale = float(wanted[1][path].abs().max())
        assert scale > 1e-6
        torch.testing.assert_close(first[path], wanted[0][path], atol=1e-3 * scale, rtol=0)
        torch.testing.assert_close(both[path], wanted[1][path], atol=5e-3 * scale, rtol=0)
    old = small(model).model.state_dict()
    for path in both:  # the weights hold the sum
        now, before = (w.get_submodule(path).weight for w in (lm.model, small(model).model))
        change = both[path].T if model == "gpt2" else both[path]
        torch.testing.assert_close(now, before + change)  # type: ignore[operator]
    kept = {f"{path}.weight" for path in both}
    assert all(torch.equal(value, old[name]) for name, value in lm.model.state_dict().items() if name not in kept)
    assert (module.steps_per_batch, batches[0].outcomes[0].info["steps"]) == ((8, 8) if size == 1 else (4, 4))


def test_what_is_kept_does_not_grow() -> None:
    module = made("sequential", steps=1)
    batches = run(module, small("llama"), Given(REQUESTS, 1))
    ranks = [{part.rank for part in batch.deltas[0].of_kind(Factors).values()} for batch in batches if batch.deltas[0]]
    assert ranks == [{3}, {6}, {6}, {6}]
    assert len(module.deltas) == 1
    assert {part.rank for part in module.deltas[0].of_kind(Factors).values()} == {3}
    assert all(
        part.left.untyped_storage().nbytes() == part.left.nbytes for part in module.deltas[0].of_kind(Factors).values()
    )


@pytest.mark.parametrize("kind", ["lora", "adalora"])
def test_requests_by_themselves_have_adapters_of_their_own(kind: Kind) -> None:
    lm = small("llama")
    batches = run(made("single", kind=kind), lm, Given(REQUESTS, 1))
    for index, request in enumerate(REQUESTS):
        batch = next(batch for batch in batches if batch.records[0].request.case_id == request.case_id)
        wanted = published_alone(kind, request, batch.index)
        for path, change in dense(batch.deltas[0]).items():
            torch.testing.assert_close(change, wanted[path], atol=2e-3 * float(wanted[path].abs().max()), rtol=0)
        assert set(batch.outcomes[0].info) == {"steps", "loss", "answered"}, index


def published_alone(kind: Kind, request: EditRequest, index: int) -> dict[str, Tensor]:
    seeds = batch_seed(0, index)
    lm = small("llama")
    own = Adapter(lm, target_paths(lm, query_and_value(lm)), kind, 3, 8.0, 0.0, seeds)
    phase = LoraPhase(lm, own, [encode_request(lm, request)], Steps(4, 1, 5e-3, 0.0, None), 0, {})
    adam = phase.optimizer()
    while phase.taken < phase.steps:
        adam.zero_grad()
        loss = phase.loss()
        assert loss is not None
        loss.backward()
        adam.step()
        phase.after_step()
    return {path: part.dense() for path, part in own.factors().items()}


def test_padding_and_weights_of_tokens() -> None:
    """A mini-batch's loss is the mean over its targets' tokens, whatever stands behind the shorter rows."""
    lm = small("llama")
    own = Adapter(lm, target_paths(lm, query_and_value(lm)), "lora", 3, 8.0, 0.0, 0)
    texts = [encode_request(lm, request) for request in REQUESTS]
    phase = LoraPhase(lm, own, texts, Steps(1, 0, 5e-3, 0.0, None), 0, {})
    losses = []
    for text in texts:
        logits = lm.model(torch.tensor([text.ids])).logits[0, text.n_prompt - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(text.target), reduction="none"))
    torch.testing.assert_close(phase.loss(), torch.cat(losses).mean())
    fared, _ = phase.look()
    torch.testing.assert_close(torch.tensor(fared), torch.stack([loss.mean() for loss in losses]))


def test_it_ends_early_where_told() -> None:
    found = {}
    for stop in (None, 1e9):
        module = made("batch", stop_loss=stop, mini_batch=2)
        (batch,) = run(module, small("llama"), Given(REQUESTS, 4))
        found[stop] = batch.outcomes[0].info["steps"]
    assert found == {None: 8, 1e9: 2}


def test_the_end_of_text_is_trained_where_told() -> None:
    lm = small("gpt2")
    module = made("batch", target_eos=True, steps=40, lr=0.02)
    module.use_lm(lm)
    (batch,) = run(module, lm, Given(REQUESTS[:1], 1))
    text = encode_request(lm, REQUESTS[0])
    with torch.no_grad():
        before = lm.model(torch.tensor([text.ids])).logits[0, -1].log_softmax(-1)[lm.eos_id]
        assert batch.deltas[0] is not None
        with edited(lm.model, batch.deltas[0]):
            after = lm.model(torch.tensor([text.ids])).logits[0, -1].log_softmax(-1)[lm.eos_id]
    assert after > before + 1


def test_a_loss_that_is_not_finite_fails_its_batch_alone() -> None:
    lm = small("gpt2")
    module = made("sequential", lr=1e36, steps=3)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    batches = run(module, lm, Given(REQUESTS[:2], 1))
    assert all("a smaller model.lr may help" in str(batch.outcomes[0].error) for batch in batches)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert module.method_state() == {"adapter": {}}
    assert not any("peft" in type(m).__module__ for m in lm.model.modules())


def test_tied_heads_stay_as_they_are() -> None:
    lm = small("llama", tie_word_embeddings=True)
    assert lm.arch.head(lm.model).weight is lm.arch.embed(lm.model).weight
    (batch,) = run(made("batch"), lm, Given(REQUESTS, 4))
    assert batch.deltas[0] is not None
    assert {path.rpartition(".")[2] for path in batch.deltas[0].paths} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"^model\.r: "),
        ({"steps": 0}, r"^model\.steps: "),
        ({"lr": 0.0}, r"^model\.lr: "),
        ({"alpha": -1.0}, r"^model\.alpha: "),
        ({"dropout": 1.0}, r"^model\.dropout: "),
        ({"dropout": -0.1}, r"^model\.dropout: "),
        ({"mini_batch": -1}, r"^model\.mini_batch: "),
        ({"weight_decay": float("nan")}, r"^model\.weight_decay: "),
        ({"stop_loss": -1.0}, r"^model\.stop_loss: "),
    ],
)
def test_slips(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KeditError, match=message):
        LoRA(**options)


def test_published_values() -> None:
    lm = small("llama")
    module = LoRA()
    run(module, lm, Given(REQUESTS[:1], 1), fast_dev_run=True)
    assert (
        module.describe().items()
        >= {"kind": "lora", "r": 8, "steps": 60, "target_modules": ["q_proj", "v_proj"]}.items()
    )


def test_peft_is_imported_by_a_run_alone() -> None:
    code = "import sys, kedit.methods, kedit.cli.commands.fit; print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
