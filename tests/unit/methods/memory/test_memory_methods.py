"""Runs of Retrieval and IKE on tiny models: what they leave, what they refuse, and that they resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from kedit.callbacks import EditCheckpoint
from kedit.cli.options.parts import TRAINER_DEFAULTS
from kedit.data import Facts
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.prompt_memory import PromptMemory
from kedit.delta.prompts import prompt_for
from kedit.errors import KeditError
from kedit.methods import IKE, EditingModule, Retrieval
from kedit.methods.base.callback import EditCallback
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.edit_config import EditConfig
from kedit.model.lm import LM
from kedit.model.tokenization import TooLong
from kedit.request import EditRecord
from kedit.runtime.run_folder import CHECKPOINT
from tests.support.device import ACCELERATOR
from tests.support.tiny_models import save_tiny, tiny_lm

FACTS: dict[str, Any] = {"known": False, "limit": 6, "batch_size": 2}


class Watch(EditCallback):
    """Keeps edit batches; perhaps breaks after one."""

    def __init__(self, breaks_after: int | None = None) -> None:
        self.batches: list[EditBatch] = []
        self.breaks_after = breaks_after

    def on_edit_end(self, trainer: Trainer, module: object, batch: EditBatch) -> None:
        self.batches.append(batch)
        if len(self.batches) == self.breaks_after:
            self.asked = asked_of(module)  # type: ignore[arg-type]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if len(self.batches) == self.breaks_after:
            raise ZeroDivisionError


def asked_of(module: EditingModule) -> list[str]:
    """What the model is asked for every probe of the run, as it is now."""
    records = module.schedule.edited_in()
    return [prompt_for(module.lm, None, -1, probe.text) for record in records for probe in record.probes]


def run(
    module: EditingModule, lm: LM, regime: Any, watch: Watch | None = None, data: Any = None, **trainer: Any
) -> Watch:
    watch = watch or Watch()
    module.configure(edit=EditConfig(regime)).use_lm(lm)
    resume = trainer.pop("ckpt_path", None)
    callbacks = [watch, *trainer.pop("callbacks", [])]
    settings = TRAINER_DEFAULTS | {
        "accelerator": ACCELERATOR,
        "logger": False,
        "enable_checkpointing": len(callbacks) > 1,
    }
    data = Facts(**(FACTS | trainer.pop("data", {})))
    Trainer(**(settings | trainer), callbacks=callbacks).fit(
        module, datamodule=data, ckpt_path=resume, weights_only=True
    )
    return watch


def deltas(watch: Watch) -> list[Delta]:
    return [delta for batch in watch.batches for delta in batch.deltas if delta is not None]


def test_all_regimes_of_retrieval_answer_their_own_prompts() -> None:
    """Alone, in a batch and after one another: each request's prompt is asked with its fact right before it."""
    for regime in ("single", "batch", "sequential"):
        lm, module = tiny_lm("llama", context=512), Retrieval(k=2)
        watch = run(module, lm, regime)
        assert len(deltas(watch)) == {"single": 6, "batch": 3, "sequential": 3}[regime]
        written = [] if regime == "sequential" else deltas(watch)
        with edited(lm.model, *written):
            for record in module.schedule.edited_in():
                said = f"New fact: {record.request.stating(record.request.target_new)}.\n"
                assert prompt_for(lm, None, -1, record.request.text).endswith(said + record.request.text)
        assert module.describe()["calibrated"]["found"] > 0.9


def test_a_resumed_run_asks_the_same(tmp_path: Path) -> None:
    whole = Retrieval()
    run(whole, tiny_lm("llama"), "sequential")
    settings: dict[str, Any] = {"default_root_dir": str(tmp_path), "callbacks": [EditCheckpoint()]}
    with pytest.raises(ZeroDivisionError):
        run(Retrieval(), tiny_lm("llama"), "sequential", broken := Watch(1), **settings)
    resumed = Retrieval()
    run(resumed, tiny_lm("llama"), "sequential", ckpt_path=str(tmp_path / CHECKPOINT), **settings)
    assert asked_of(resumed) == asked_of(whole)
    assert broken.asked != asked_of(whole)


def test_ike_is_asked_with_its_fact_before_every_prompt() -> None:
    lm, module = tiny_lm("llama", context=4096), IKE(k=4)
    watch = run(module, lm, "single")
    for batch in watch.batches:
        for record, delta, outcome in zip(batch.records, batch.deltas, batch.outcomes, strict=True):
            assert delta is not None
            assert sum(outcome.info["demonstrations"].values()) == 4
            (memory,) = delta.of_kind(PromptMemory).values()
            fact = f"New Fact: {record.request.stating(record.request.target_new)}\nPrompt: "
            with edited(lm.model, delta):
                for text in (record.request.text, "Something else"):
                    assert prompt_for(lm, None, -1, text) == "".join(memory.demonstrations) + fact + text
    assert not any(delta.of_kind(PromptMemory)[""].demonstrations for delta in deltas(run(IKE(k=0), lm, "single")))


def test_an_encoder_finds_facts(tmp_path: Path) -> None:
    lm, folder = tiny_lm("llama", context=512), save_tiny(tmp_path / "encoder", "llama")
    watch = run(module := Retrieval(threshold=0.999, encoder=str(folder)), lm, "batch")
    (first, *_) = deltas(watch)
    assert [tuple(tensor.shape) for _, tensor in first.numbers()] == [(2, 32)]
    text = module.schedule.edited_in()[0].request.text
    with edited(lm.model, first):
        assert prompt_for(lm, None, -1, text).startswith("New fact: ")
        assert prompt_for(lm, None, -1, "Who?") == "Who?"


def test_what_does_not_fit_fails_by_record() -> None:
    """The record whose fact does not fit into the context with its own prompt; the others are edited."""
    short = tiny_lm("llama")
    for make in (lambda: Retrieval(threshold=0.5), lambda: IKE(k=1)):
        module = make()
        run(module, short, "single")
        records = module.schedule.edited_in()
        lengths = [len(short.encode(2 * record.request.stating(record.request.target_new))) for record in records]
        tight = tiny_lm("llama", context=sorted(lengths)[2] + 12)
        module = make().configure(edit=EditConfig("single"))
        module.use_lm(tight)
        failed = [record for record in records if unfit(module, record)]
        assert 0 < len(failed) < len(records)
        assert all("with its fact before it" in unfit(module, record) for record in failed)


def unfit(module: EditingModule, record: EditRecord) -> str:
    try:
        module.check_fit(record)
    except TooLong as error:
        return str(error)
    return ""


def test_options_are_checked(tmp_path: Path) -> None:
    for make, name in (
        (lambda: Retrieval(k=0), "k"),
        (lambda: Retrieval(threshold=1.5), "threshold"),
        (lambda: Retrieval(template="New fact"), "template"),
        (lambda: IKE(k=-1), "k"),
    ):
        with pytest.raises(KeditError, match=rf"^model\.{name}: "):
            make()
    with pytest.raises(KeditError, match=r"^edit\.regime: IKE knows single"):
        IKE().configure(edit=EditConfig("sequential"))
    for module, option in (
        (Retrieval(calibration=str(tmp_path / "none.json")), "calibration"),
        (Retrieval(encoder=str(tmp_path)), "encoder"),
        (IKE(demonstrations=str(tmp_path / "none.json")), "demonstrations"),
    ):
        with pytest.raises(KeditError, match=rf"^model\.{option}: "):
            run(module, tiny_lm("llama"), "single")
