"""What every editing method promises, whatever it does inside. A new method adds one entry to `ENTRIES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from kedit import methods
from kedit.callbacks import EditCallback, EditCheckpoint
from kedit.cli.options.parts import TRAINER_DEFAULTS
from kedit.covariance import StatsConfig
from kedit.data import EditData
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.prompts import prompt_for
from kedit.delta.serialization import load_delta, save_delta
from kedit.errors import KeditError
from kedit.keyvalue.contexts import ContextConfig
from kedit.methods import (
    EMMET,
    FT,
    GRACE,
    IKE,
    KN,
    MEMIT,
    PAC,
    PMET,
    PRUNE,
    RECT,
    REP,
    ROME,
    RROME,
    STEAM,
    AlphaEdit,
    EditingModule,
    LocFT,
    LoRA,
    Retrieval,
    UltraEdit,
)
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.pac import LocalityConfig, TraceConfig, TrainConfig
from kedit.methods.rep import AdapterConfig
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.request import EditRecord, EditRequest
from kedit.runtime.run_folder import CHECKPOINT
from tests.support.device import ACCELERATOR
from tests.support.process_cases import CASES
from tests.support.tiny_models import tiny_lm

STEPS = 6
TEXTS = ContextConfig(texts=["The meeting was. {}", "Because of the rain. {}"])
SMALL: dict[str, Any] = {"v_num_grad_steps": STEPS + 1, "contexts": TEXTS, "stats": StatsConfig(tokens=400)}
ADAPTER = AdapterConfig(
    steps=4, positives=6, negatives=8, rank=2, others=3, phrases=2, confusable_names=2, corpus_tokens=60
)
TINY: dict[str, Any] = {"n_layers": 4, "d_model": 16, "d_ff": 40}


@dataclass(frozen=True)
class Entry:
    """One method, small enough for tests.

    Attributes:
        make: A new one.
        steps: Optimiser steps of its first phase.
        lanes: Whether requests are optimised side by side.
        trains: Whether the loss of that phase falls: false where a step only reads gradients, or there is none.
        writes: Whether parameters of the model change: false where a text or an activation does.
    """

    make: Callable[[], EditingModule]
    steps: int = STEPS
    lanes: bool = True
    trains: bool = True
    writes: bool = True


ENTRIES = {
    "ROME": Entry(partial(ROME, layer=1, **SMALL)),
    "RROME": Entry(partial(RROME, layer=1, **SMALL)),
    "MEMIT": Entry(partial(MEMIT, layers=[1, 2], **SMALL)),
    "PMET": Entry(partial(PMET, layers=[1, 2], **SMALL)),
    "AlphaEdit": Entry(partial(AlphaEdit, layers=[1, 2], **SMALL)),
    "EMMET": Entry(partial(EMMET, layers=[1], **SMALL)),
    "FT": Entry(partial(FT, layers=[1, 2], lr=0.01, steps=STEPS)),
    "LocFT": Entry(partial(LocFT, layer=1, lr=0.01, epochs=STEPS)),
    "REP": Entry(lambda: REP(ROME(layer=1, **SMALL), adapter=ADAPTER)),
    "KN": Entry(partial(KN, steps=5), steps=4, trains=False),
    "PRUNE": Entry(lambda: PRUNE(MEMIT(layers=[1, 2], **SMALL))),
    "RECT": Entry(lambda: RECT(MEMIT(layers=[1, 2], **SMALL))),
    "STEAM": Entry(lambda: STEAM(MEMIT(layers=[1, 2], **SMALL))),
    "PAC": Entry(
        partial(
            PAC,
            train=TrainConfig(lr=0.02, passes=STEPS),
            trace=TraceConfig(nodes=4, contrast_nodes=2),
            locality=LocalityConfig(0.0),
        ),
        lanes=False,
    ),
    "GRACE": Entry(partial(GRACE, layer=2, eps=1e3, lr=0.3, steps=STEPS), writes=False),  # every token is near enough
    "UltraEdit": Entry(
        partial(UltraEdit, gate_layers=[], up_layers=[1], down_layers=[1, 2], eta=1e-3, warmup=6), steps=1, trains=False
    ),
    "LoRA": Entry(partial(LoRA, steps=STEPS), lanes=False),
    "Retrieval": Entry(partial(Retrieval, threshold=0.0), steps=0, trains=False, writes=False),
    "IKE": Entry(partial(IKE, k=2), steps=0, trains=False, writes=False),
}
NAMES = sorted(ENTRIES)
REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "The mother tongue of {} is", "Danielle Darrieux", "English tea"),
    EditRequest("3", "{} is located in", "The Space Needle", "Tokyo"),
]


class Given(EditData):
    """Records that are there already."""

    def read(self) -> list[EditRecord]:
        return [EditRecord(request, ()) for request in REQUESTS]


class Watch(EditCallback):
    """Keeps edit batches and losses; perhaps breaks after a batch."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.batches: list[EditBatch] = []
        self.losses: list[float] = []
        self.breaks_after = breaks_after

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *more: Any) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_edit_end(self, trainer: Trainer, module: object, batch: EditBatch) -> None:
        self.batches.append(batch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(self.batches) == self.breaks_after:
            raise ZeroDivisionError


def run(
    name: str,
    lm: LM,
    regime: Any = "single",
    lanes: int = 3,
    watch: Watch | None = None,
    target_eos: bool = False,
    **trainer: Any,
) -> Watch:
    """A run of a method over three requests: in one edit batch, one each where edits accumulate."""
    watch = watch or Watch()
    entry = ENTRIES[name]
    module = entry.make().configure(edit=EditConfig(regime, lanes if entry.lanes else 0, target_eos=target_eos))
    module.use_lm(lm)
    resume = trainer.pop("ckpt_path", None)
    callbacks = [watch, *trainer.pop("callbacks", [])]
    settings = TRAINER_DEFAULTS | {
        "accelerator": ACCELERATOR,
        "logger": False,
        "enable_checkpointing": len(callbacks) > 1,
    }
    Trainer(**(settings | trainer), callbacks=callbacks).fit(
        module, datamodule=Given(batch_size=3 if regime == "batch" else 1), ckpt_path=resume, weights_only=True
    )
    return watch


def bits(lm: LM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def deltas_of(watch: Watch) -> list[Delta]:
    """The deltas of a run, none of which has failed."""
    assert [outcome.error for batch in watch.batches for outcome in batch.outcomes] == [None] * len(REQUESTS)
    deltas = [delta for batch in watch.batches for delta in batch.deltas]
    assert all(delta is not None for delta in deltas)
    return [delta for delta in deltas if delta is not None]


def numbers(delta: Delta) -> list[Tensor]:
    """All that it is made of, in a fixed order."""
    return [tensor for _, changes in delta.items() for change in changes for tensor in change.tensors().values()]


def in_order(delta: Delta) -> tuple[float, list[Any]]:
    """Deltas of one request, made alone and in lanes, have the same place among the others."""
    norm = delta.norm()
    return norm, [] if norm else [tensor.tolist() for tensor in numbers(delta)]


def logits(lm: LM, delta: Delta) -> Tensor:
    """After the prompt of the first request, with whatever the delta puts before it."""
    with torch.no_grad(), edited(lm.model, delta):
        ids = torch.tensor([lm.encode(prompt_for(lm, None, -1, REQUESTS[0].text))])
        return lm.model(input_ids=ids).logits


def test_every_method_has_an_entry() -> None:
    assert set(ENTRIES) == set(methods.__all__) - {"EditingModule"}


def test_every_method_is_run_by_two_processes() -> None:
    """`tests/runs/test_processes.py` compares these with one process, to the bit."""
    assert {case.split("-")[0] for case in CASES} == set(ENTRIES)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", NAMES)
def test_fast_dev_run_is_one_honest_edit(name: str, kind: str) -> None:
    lm = tiny_lm(kind, **TINY)
    before = bits(lm)
    watch = run(name, lm, fast_dev_run=True)
    assert len(watch.batches) == 1
    assert len(watch.losses) == min(ENTRIES[name].steps, 1)
    assert any(tensor.any() for tensor in numbers(watch.batches[0].deltas[0] or Delta()))
    assert same(bits(lm), before)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", NAMES)
def test_an_edit_and_its_end(name: str, kind: str) -> None:
    """The loss falls; only what the delta names is changed; outside of `edited` all bits are the old ones."""
    lm = tiny_lm(kind, **TINY)
    before = bits(lm)
    watch = run(name, lm)
    first = watch.losses[: ENTRIES[name].steps]
    assert len(first) == ENTRIES[name].steps
    if ENTRIES[name].trains:
        assert first[-1] < first[0]
    assert same(bits(lm), before)
    for delta in deltas_of(watch):
        assert delta.paths
        with edited(lm.model, delta):
            changed = {key for key, value in bits(lm).items() if not torch.equal(value, before[key])}
            assert bool(changed) == ENTRIES[name].writes
            assert {key.rpartition(".")[0] for key in changed} <= set(delta.paths)
        assert same(bits(lm), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_a_delta_that_was_saved_is_the_same(name: str, tmp_path: Path) -> None:
    lm = tiny_lm("llama", **TINY)
    for i, delta in enumerate(deltas_of(run(name, lm))):
        save_delta(tmp_path / str(i), delta, {"model_fingerprint": lm.fingerprint})
        loaded, _ = load_delta(tmp_path / str(i), lm)
        assert set(loaded.paths) == set(delta.paths)
        assert torch.equal(logits(lm, loaded), logits(lm, delta))
        assert not torch.equal(logits(lm, loaded), logits(lm, Delta()))


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_run_that_is_resumed_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    if "sequential" not in ENTRIES[name].make().regimes:
        pytest.skip("a single edit leaves nothing to resume")
    whole, lm = tiny_lm("llama", **TINY), tiny_lm("llama", **TINY)
    wanted = deltas_of(run(name, whole, "sequential"))
    settings: dict[str, Any] = {"default_root_dir": str(tmp_path), "callbacks": [EditCheckpoint()]}
    with pytest.raises(ZeroDivisionError):
        run(name, lm, "sequential", watch=(broken := Watch(breaks_after=1)), **settings)
    lm = tiny_lm("llama", **TINY)
    resumed = run(name, lm, "sequential", ckpt_path=str(tmp_path / CHECKPOINT), **settings)
    assert (len(broken.batches), len(resumed.batches)) == (1, len(REQUESTS) - 1)
    found = [delta for watch in (broken, resumed) for batch in watch.batches for delta in batch.deltas]
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert all(torch.equal(a, b) for a, b in zip(numbers(one), numbers(other), strict=True))
    assert same(bits(lm), bits(whole))


@pytest.mark.parametrize("name", NAMES)
def test_lanes_are_edits_by_themselves(name: str) -> None:
    if not ENTRIES[name].lanes:
        with pytest.raises(KeditError, match=r"^edit\.lanes"):
            ENTRIES[name].make().configure(edit=EditConfig(lanes=2))
        return
    alone, together = (deltas_of(run(name, tiny_lm("llama", **TINY), lanes=lanes)) for lanes in (1, 3))
    lm = tiny_lm("llama", **TINY)
    for one, other in zip(sorted(alone, key=in_order), sorted(together, key=in_order), strict=True):
        torch.testing.assert_close(logits(lm, other), logits(lm, one), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_weights(name: str) -> None:
    """Solved in more than half precision, and put back bit for bit."""
    lm = tiny_lm("llama", **TINY, dtype=torch.bfloat16)
    before = bits(lm)
    for delta in deltas_of(run(name, lm)):
        assert all(tensor.isfinite().all() for tensor in numbers(delta))
        assert all(tensor.dtype == torch.float32 for tensor in numbers(delta) if tensor.is_floating_point())
        assert not torch.equal(logits(lm, delta), logits(lm, Delta()))
    assert same(bits(lm), before)


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The token ids that losses were taken of, one list for each time."""
    seen: list[list[int]] = []
    for loss in ("cross_entropy", "nll_loss"):

        def spy(scores: Tensor, wanted: Tensor, *more: Any, of: Any = getattr(F, loss), **options: Any) -> Tensor:
            seen.append(wanted.flatten().tolist())
            return of(scores, wanted, *more, **options)

        monkeypatch.setattr(F, loss, spy)
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_target_eos_is_trained_behind_every_target(name: str, labels: list[list[int]]) -> None:
    """The ids in the loss itself end in the end of text, once; without the option they have none."""
    lm = tiny_lm("llama", **TINY)
    if not ENTRIES[name].make().trains_target:
        with pytest.raises(KeditError, match=r"^edit\.target_eos: \w+ trains no target; leave the option out$"):
            run(name, lm, fast_dev_run=True, target_eos=True)
        return
    watch = run(name, lm, fast_dev_run=True, target_eos=True)
    assert [outcome.error for outcome in watch.batches[0].outcomes] == [None] * len(watch.batches[0].records)
    said = ["".join(f",{token}" for token in own) + "," for own in labels]
    for record in watch.batches[0].records:
        own = encode(lm, record.request.text, record.request.target_new).target
        ends = "".join(f",{token}" for token in (*own, lm.eos_id)) + ","
        assert any(ends in one for one in said)
    assert not any(f",{lm.eos_id},{lm.eos_id}," in one for one in said)
    labels.clear()
    run(name, lm, fast_dev_run=True)
    assert labels
    assert any(lm.eos_id in own for own in labels) == (name == "LocFT")  # trains it unless told otherwise


def test_target_eos_of_a_tokenizer_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama", **TINY)
    monkeypatch.setattr(LM, "eos_id", None)
    with pytest.raises(KeditError, match=r"^edit\.target_eos: the tokenizer of .* has no end-of-text token; set it to"):
        run("ROME", lm, target_eos=True)


@pytest.mark.parametrize("begun", [False, True])
def test_target_eos_stays_what_it_was_when_a_run_is_resumed(begun: bool, tmp_path: Path) -> None:
    lm, settings = tiny_lm("llama", **TINY), {"default_root_dir": str(tmp_path), "callbacks": [EditCheckpoint()]}
    with pytest.raises(ZeroDivisionError):
        run("ROME", lm, "sequential", watch=Watch(breaks_after=1), target_eos=begun, **settings)
    with pytest.raises(KeditError, match=r"another run: its target_eos is "):
        run("ROME", tiny_lm("llama", **TINY), "sequential", target_eos=not begun, ckpt_path=str(tmp_path / CHECKPOINT))


@pytest.mark.parametrize("name", NAMES)
def test_regimes(name: str) -> None:
    """Every regime that a method says it knows leaves a delta for each edit batch; another one is refused by name."""
    for regime in ("single", "batch", "sequential"):
        lm = tiny_lm("llama", **TINY)
        before = bits(lm)
        if regime not in ENTRIES[name].make().regimes:
            with pytest.raises(KeditError, match=r"^edit\.regime"):
                run(name, lm, regime)
            continue
        batches = run(name, lm, regime).batches
        assert sum(len(batch.records) for batch in batches) == len(REQUESTS)
        assert same(bits(lm), before) == (regime != "sequential" or not ENTRIES[name].writes)
