"""Edits of the real SmolLM2, exported and loaded without kedit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from kedit.errors import KeditError
from kedit.export import export_hf, export_peft, load_edited
from kedit.forward.binding import load_lm
from kedit.keyvalue.contexts import ContextConfig
from kedit.methods import FT, GRACE, PAC, ROME, EditingModule, LoRA, Retrieval
from kedit.methods.pac import LocalityConfig, TraceConfig, TrainConfig
from kedit.model.lm import LM, LMConfig
from kedit.model.pretrained import fetch, quiet_transformers
from tests.support.exported import Case, edit, loaded, logits

pytestmark = pytest.mark.model

ALIAS = "smollm2-135m"
FEW = ContextConfig(texts=["The meeting was. {}"])
METHODS: dict[str, Callable[[], EditingModule]] = {
    "ROME": lambda: ROME(layer=5, v_num_grad_steps=10, mom2_adjustment=False, contexts=FEW),
    "LoRA": lambda: LoRA(steps=4),
    "PAC": lambda: PAC(
        train=TrainConfig(lr=0.02, passes=3), trace=TraceConfig(nodes=4, contrast_nodes=2), locality=LocalityConfig(0.0)
    ),
    "FT": lambda: FT(layers=[20], lr=1e-3, steps=4),
    "GRACE": lambda: GRACE(layer=20, eps=1.0, steps=10),
    "Retrieval": lambda: Retrieval(threshold=0.0),
}
PEFT = ("ROME", "LoRA", "PAC")
BESIDE = ("GRACE", "Retrieval")


@pytest.fixture(scope="module")
def lm() -> LM:
    return load_lm(LMConfig(ALIAS))


@pytest.fixture(scope="module", params=list(METHODS))
def made(request: pytest.FixtureRequest, lm: LM) -> tuple[str, Case]:
    return request.param, edit(METHODS[request.param], lm)


def test_loaded_by_others(made: tuple[str, Case], lm: LM, tmp_path: Path) -> None:
    """PEFT, merged by PEFT, merged by kedit, and in bfloat16."""
    name, case = made
    before, wanted = case.said(), case.said(case.delta)
    close = 1e-5 * float(wanted.abs().max())
    if name in PEFT:
        export_peft(case.delta, lm, tmp_path / "peft", case.card)
        with quiet_transformers():
            model = PeftModel.from_pretrained(loaded(fetch(ALIAS)), str(tmp_path / "peft")).eval()
        assert float((logits(model, lm) - wanted).abs().max()) <= close
        assert float((logits(model.merge_and_unload(), lm) - wanted).abs().max()) <= close
    else:
        with pytest.raises(KeditError, match="export_hf"):
            export_peft(case.delta, lm, tmp_path / "peft", case.card)
    folder = export_hf(case.delta, lm, tmp_path / "hf", case.card)
    kept = load_edited(folder)
    assert float((logits(kept.model, kept, kept.prompt) - wanted).abs().max()) <= close
    plain = loaded(folder)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert float((logits(plain, lm) - (before if name in BESIDE else wanted)).abs().max()) <= close
    assert torch.equal(case.said(), before)


def test_half_precision(lm: LM, tmp_path: Path) -> None:
    case = edit(METHODS["ROME"], lm)
    folder = export_hf(case.delta, lm, tmp_path / "hf", case.card, "bfloat16")
    model = loaded(folder, "auto")
    assert model.dtype == torch.bfloat16
    kept = load_edited(folder)
    assert kept.dtype == torch.bfloat16
    assert torch.equal(logits(kept.model, kept), logits(model, lm))
