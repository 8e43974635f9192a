"""FT and LocFT as methods: what is trained, every parameter in the single regime, memory, and options."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch import Trainer

from kedit.callbacks import EditCallback
from kedit.cli.options.parts import TRAINER_DEFAULTS
from kedit.data import EditData
from kedit.delta.apply import edited
from kedit.delta.parameters import ParameterChange
from kedit.errors import KeditError
from kedit.evaluation.score import EvalConfig, score_records
from kedit.keyvalue.published import GPT2_XL, LLAMA_3, MISTRAL, QWEN_2
from kedit.methods import FT, EditingModule, LocFT
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.base.views import BEFORE, measure
from kedit.methods.fine_tuning import all_parameters
from kedit.methods.fine_tuning.matrices import trained_paths
from kedit.model.lm import LM
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.device import ACCELERATOR
from tests.support.tiny_models import tiny_lm

REQUESTS = (
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "{} is located in", "The Space Needle", "Tokyo"),
)


class Given(EditData):
    def read(self) -> list[EditRecord]:
        return [EditRecord(r, (Probe("rewrite", r.text, r.target_new),)) for r in REQUESTS]


class Scores(EditCallback):
    """What each record's rewrite costs before and after, as the views show it and in the weights; keeps the batches."""

    def __init__(self) -> None:
        self.batches: list[EditBatch] = []
        self.shown: list[float] = []
        self.in_weights: list[float] = []

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        self.batches.append(batch)
        if module.regime != "single":
            return
        config = EvalConfig(generate=[])

        def run(numbers: Any, lanes: Any, bank: Any, shared: bool) -> list[float]:
            scores = score_records(module.lm, [batch.records[i // 2] for i in numbers], lanes, bank, config)
            return [probe.nll_answer for (probe,) in scores]

        asks = [(moment, r.request.case_id) for r in batch.records for moment in (BEFORE, "edit")]
        self.shown += measure("single", module.lm.model, batch, asks, run, {})
        for i, delta in enumerate(batch.deltas):
            assert delta is not None
            self.in_weights += run([2 * i], None, None, False)
            with edited(module.lm.model, delta):
                self.in_weights += run([2 * i], None, None, False)


def run(module: EditingModule, lm: LM, regime: Any = "single") -> Scores:
    """A run over two requests."""
    module.configure(edit=EditConfig(regime)).use_lm(lm)
    settings = TRAINER_DEFAULTS | {"accelerator": ACCELERATOR, "logger": False, "enable_checkpointing": False}
    scores = Scores()
    Trainer(**settings, callbacks=[scores]).fit(module, datamodule=Given(batch_size=1 if regime == "single" else 2))
    return scores


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_parameter_of_each_request(kind: str, tied: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Each request by itself, measured in the weights one by one; afterwards all bits are the old ones."""
    lm = tiny_lm(kind, n_layers=2, tie_word_embeddings=tied)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    with caplog.at_level(logging.INFO):
        scores = run(FT(parameters="all", steps=4, norm_constraint=1e-2, lr=5e-3), lm)
    assert [len(batch.records) for batch in scores.batches] == [1, 1]
    assert scores.shown == pytest.approx(scores.in_weights, abs=1e-5)
    assert all(after < old - 0.1 for old, after in zip(scores.shown[::2], scores.shown[1::2], strict=True))
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    for batch in scores.batches:
        assert batch.outcomes[0].info["steps"] == 4
        assert 5e-3 < batch.outcomes[0].info["delta_max"] <= 1e-2 + 1e-8
        (delta,) = batch.deltas
        assert delta is not None
        assert delta.kinds == [ParameterChange]
    n = sum(p.numel() for p in lm.model.parameters())
    assert f"training every parameter takes {round(20 * n / 1e6)} MB besides the model" in caplog.text


def test_every_parameter_needs_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama", dtype=torch.bfloat16)
    n = sum(p.numel() for p in lm.model.parameters())
    assert sum(all_parameters.memory_needed(lm).values()) == n * (2 + 4 + (4 + 2) + 8)
    monkeypatch.setattr(all_parameters, "free_bytes", lambda _: 19 * n)
    with pytest.raises(KeditError, match=r"^model\.parameters: training all of tiny-llama takes .* MB besides"):
        run(FT(parameters="all"), lm)
    monkeypatch.setattr(all_parameters, "free_bytes", lambda _: None)
    all_parameters.check_memory(lm)


def test_which_matrices() -> None:
    lm, gpt = tiny_lm("llama"), tiny_lm("gpt2")
    mlp = [f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    attention = [f"model.layers.1.self_attn.{name}_proj" for name in "qkvo"]
    assert trained_paths(lm, [1, 2], ["mlp_out"]) == [mlp[-1], mlp[-1].replace("1", "2")]
    assert trained_paths(lm, [1], ["mlp_in"]) == mlp[:2]
    assert trained_paths(lm, [1], ["mlp"]) == trained_paths(lm, [1], ["mlp_in", "mlp.down_proj"]) == mlp
    assert trained_paths(lm, [1], ["attn"]) == attention
    assert trained_paths(lm, [1], ["layer"]) == attention + mlp
    assert trained_paths(gpt, [3], ["attn.c_attn"]) == ["transformer.h.3.attn.c_attn"]
    with pytest.raises(KeditError, match=r"^model\.matrices: there is no 'attn\.c_attn' in a layer of tiny-llama; use"):
        trained_paths(lm, [1], ["attn.c_attn"])


def test_a_whole_layer_on_cached_inputs() -> None:
    lm = tiny_lm("llama")
    scores = run(LocFT(layer=2, matrices=["layer"], epochs=8, mini_batch=3, lr=0.01), lm, "batch")
    (delta,) = scores.batches[0].deltas
    assert delta is not None
    assert set(delta.paths) == set(trained_paths(lm, [2], ["layer"]))
    assert all(outcome.info["steps"] == 8 for outcome in scores.batches[0].outcomes)


def test_all_requests_may_stop_early() -> None:
    """Where every loss is small before the passes are over, the edit ends there."""
    (batch,) = run(FT(layers=[1], stop_loss=5.5, lr=5e-3, steps=60), tiny_lm("llama")).batches
    steps = [outcome.info["steps"] for outcome in batch.outcomes]
    assert max(steps) < 60
    assert [outcome.error for outcome in batch.outcomes] == [None, None]
    (batch,) = run(FT(layers=[1], stop_loss=1e3), tiny_lm("llama")).batches
    assert [outcome.info["steps"] for outcome in batch.outcomes] == [0, 0]


def test_published_values() -> None:
    lm = tiny_lm("llama", n_layers=30)
    assert (FT.published.of(lm)["layers"], LocFT.published.of(lm)["layer"]) == ((20,), 20)
    assert FT.published.row(GPT2_XL) == {"layers": (0,)}
    usual = {"lr": 5e-4, "matrices": ("mlp_out",)}
    assert LocFT.published.row(LLAMA_3) == usual | {"layer": 22}
    assert LocFT.published.row(QWEN_2) == usual | {"layer": 6}
    assert LocFT.published.row(MISTRAL) == {"lr": 5e-5, "matrices": ("layer",), "layer": 23}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FT(norm_constraint=0.0), "model.norm_constraint: 0.0 is not above 0"),
        (lambda: FT(lr=-1.0), "model.lr: -1.0 is not above 0"),
        (lambda: FT(steps=0), "model.steps: 0 is less than 1"),
        (lambda: FT(matrices=[]), "model.matrices is empty; "),
        (lambda: FT(matrices=["mlp", "mlp"]), "model.matrices names a part twice"),
        (lambda: FT(loss="prompt_last", target_eos=True), "model.target_eos: "),
        (lambda: FT(parameters="all").configure(edit=EditConfig(lanes=2)), "edit.lanes: "),
        (lambda: LocFT(mini_batch=0), "model.mini_batch: 0 is less than 1"),
        (lambda: LocFT(epochs=0), "model.epochs: 0 is less than 1"),
        (lambda: LocFT(weight_decay=-0.5), "model.weight_decay: -0.5 is less than 0.0"),
        (lambda: run(FT(layers=[9]), tiny_lm("llama")), "model.layers: there is no layer 9"),
        (lambda: run(LocFT(layer=9), tiny_lm("llama"), "batch"), "model.layer: there is no layer 9"),
    ],
)
def test_options_that_are_wrong(make: Callable[[], object], message: str) -> None:
    with pytest.raises(KeditError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_a_tokenizer_without_an_end_of_text() -> None:
    lm = tiny_lm("llama")
    lm.tokenizer.eos_token = None
    try:
        with pytest.raises(KeditError, match=r"^model\.target_eos: the tokenizer of tiny-llama has no end of text"):
            run(LocFT(layer=1), lm, "batch")
    finally:
        lm.tokenizer.eos_token = "</s>"


@pytest.mark.parametrize(("given", "n", "size"), [(None, 3000, 100), (None, 10_000, 100), (None, 32, 2), (8, 32, 8)])
def test_locft_takes_as_many_steps_as_published(given: int | None, n: int, size: int) -> None:
    method = LocFT(mini_batch=given, lr=1e-3).configure(edit=EditConfig("batch"))
    with mock.patch.object(LocFT, "schedule", SimpleNamespace(size=n)):
        assert method.recipe().mini_batch == size
