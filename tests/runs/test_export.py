"""Every method's edit, exported and loaded by others, is kedit's: or the refusal that the documentation names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from kedit.delta.delta import Delta
from kedit.delta.lanes import BatchedDeltas
from kedit.errors import KeditError
from kedit.export import export_hf, export_peft, load_edited
from kedit.methods import FT
from kedit.model.pretrained import quiet_transformers
from tests.runs.test_contract import ENTRIES, NAMES, TINY
from tests.support.exported import Case, edit, loaded, logits
from tests.support.tiny_models import tiny_lm

LOW_RANK = set(NAMES) - {"FT", "LocFT", "RECT", "REP", "GRACE", "Retrieval", "IKE"}
MERGED = set(NAMES) - {"REP", "GRACE", "Retrieval", "IKE"}


def check_close(found: Tensor, wanted: Tensor, share: float = 1e-5) -> None:
    """Equal but for `share` of the largest logit: tiny models double a rounding at every map, in their four layers."""
    assert float((found - wanted).abs().max()) <= share * float(wanted.abs().max())


@cache
def case(name: str, kind: str) -> Case:
    """One edit, made once for all tests."""
    logging.getLogger("lightning").setLevel(logging.ERROR)
    make = (lambda: FT(parameters="all", lr=0.01, steps=2)) if name == "whole" else ENTRIES[name].make
    return edit(make, tiny_lm(kind, **TINY))


@pytest.fixture(params=["gpt2", "llama"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def peft_model(kind: str, folder: Path, tiny_folder: Callable[..., str]) -> PeftModel:
    """An adapter on a base that kedit has not touched."""
    with quiet_transformers():
        return PeftModel.from_pretrained(loaded(tiny_folder(kind, **TINY)), str(folder)).eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_peft_folder(name: str, kind: str, tmp_path: Path, tiny_folder: Callable[..., str]) -> None:
    """Its logits, and those after it was merged, are kedit's; or it is refused, and the other export named."""
    made = case(name, kind)
    if name not in LOW_RANK:
        with pytest.raises(KeditError, match=r"; export_hf \(kedit delta export --to hf\) keeps it$"):
            export_peft(made.delta, made.lm, tmp_path / "peft", made.card)
        assert not list(tmp_path.iterdir())
        return
    before, wanted = made.said(), made.said(made.delta)
    export_peft(made.delta, made.lm, tmp_path / "peft", made.card)
    model = peft_model(kind, tmp_path / "peft", tiny_folder)
    assert not torch.allclose(wanted, before, atol=1e-3)
    check_close(logits(model, made.lm), wanted)
    with model.disable_adapter():
        assert torch.equal(logits(model, made.lm), before)
    check_close(logits(model.merge_and_unload(), made.lm), wanted)
    assert torch.equal(made.said(), before)


@pytest.mark.parametrize("name", sorted(LOW_RANK))
def test_a_peft_folder_loses_nothing(name: str, kind: str, tmp_path: Path, tiny_folder: Callable[..., str]) -> None:
    """In float64, where a rounding of float32 shows, its logits are those of kedit's own factors."""
    made = case(name, kind)
    export_peft(made.delta, made.lm, tmp_path / "peft", made.card)
    with quiet_transformers():
        model = PeftModel.from_pretrained(loaded(tiny_folder(kind, **TINY)).double(), str(tmp_path / "peft")).eval()
    exact = deepcopy(made.lm.model).double()
    with BatchedDeltas(exact, [made.delta]).rows(torch.tensor([0])):
        wanted = logits(exact, made.lm)
    check_close(logits(model, made.lm), wanted, 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_folder(name: str, kind: str, tmp_path: Path) -> None:
    """Merged, transformers alone loads the edited model; else it loads the unedited one, and `load_edited` the edit."""
    made = case(name, kind)
    before, wanted = made.said(), made.said(made.delta)
    folder = export_hf(made.delta, made.lm, tmp_path / "hf", made.card)
    alone = logits(loaded(folder), made.lm)
    check_close(alone, wanted if name in MERGED else before)
    lm = load_edited(folder)
    check_close(logits(lm.model, lm, lambda text: lm.prompt(text, 0)), wanted)
    assert lm.fingerprint != made.lm.fingerprint
    assert lm.card["requests"] == made.card["requests"]
    assert (lm.delta is None) == (name in MERGED)
    assert torch.equal(made.said(), before)


def test_two_adapters_are_swapped(kind: str, tmp_path: Path, tiny_folder: Callable[..., str]) -> None:
    one, other = case("ROME", kind), case("PAC", kind)
    for name, made in (("one", one), ("other", other)):
        export_peft(made.delta, made.lm, tmp_path / name, made.card)
    model = peft_model(kind, tmp_path / "one", tiny_folder)
    model.load_adapter(str(tmp_path / "other"), "other")
    for name, made in (("other", other), ("default", one), ("other", other)):
        model.set_adapter(name)
        check_close(logits(model, one.lm), made.said(made.delta))


def test_all_parameters(kind: str, tmp_path: Path) -> None:
    """Embeddings that are tied to the head, norms and all: merged they are right, PEFT is refused."""
    made = case("whole", kind)
    with pytest.raises(KeditError, match="'parameters', changes more than matrices of linear maps"):
        export_peft(made.delta, made.lm, tmp_path / "peft", made.card)
    folder = export_hf(made.delta, made.lm, tmp_path / "hf", made.card)
    model = loaded(folder)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == model.config.tie_word_embeddings
    check_close(logits(model, made.lm), made.said(made.delta))


@pytest.mark.parametrize("name", ["ROME", "PAC", "FT", "REP", "GRACE"])
def test_generation_with_what_was_loaded(name: str, kind: str, tmp_path: Path) -> None:
    """`lm.model.generate` with its cache says what a full pass says, token by token."""
    made = case(name, kind)
    lm = load_edited(export_hf(made.delta, made.lm, tmp_path / "hf", made.card))
    ids = torch.tensor([lm.encode("The capital of France is")])
    model: Any = lm.model
    out = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.no_grad():
        best = model(input_ids=out[:, :-1]).logits.argmax(-1)[0, ids.shape[1] - 1 :]
    assert torch.equal(best, out[0, ids.shape[1] :])


def test_nothing_to_export(tmp_path: Path) -> None:
    made = case("ROME", "gpt2")
    with pytest.raises(KeditError, match="changes nothing"):
        export_peft(Delta(), made.lm, tmp_path / "peft", made.card)
