"""KN as a method: thresholds, refinement, what is written into the columns, and its regimes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.delta.delta import Delta
from kedit.delta.slices import Slices
from kedit.errors import KeditError
from kedit.keyvalue.contexts import ContextConfig
from kedit.methods import KN
from kedit.methods.kn import coarse, in_most_prompts
from kedit.methods.kn.neurons import written
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.request import EditRequest
from tests.support.small_runs import city_facts, configured, sequential_run
from tests.support.tiny_models import tiny_lm
from tests.unit.methods.kn.test_attribution import attributed, points_of
from tests.unit.methods.locate_then_edit.test_multi_layer import bits, run

TEXTS = ContextConfig(texts=["The meeting was. {}", "Because of the rain. {}"])
REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome", "Paris"),
    EditRequest("2", "The mother tongue of {} is", "Danielle Darrieux", "English tea", "French"),
    EditRequest("3", "The Space Needle is located in", None, "Tokyo"),
]


def fresh(kind: str = "llama") -> LM:
    return tiny_lm(kind, n_layers=3, d_model=16, d_ff=40)


def test_what_passes() -> None:
    scores = torch.tensor([[0.0, 1.0, 0.5], [0.21, 0.2, -9.0]])
    assert coarse(scores, 0.2).tolist() == [[False, True, True], [True, False, False]]
    assert not coarse(-scores.abs(), 0.2).any()
    first, second = coarse(scores, 0.2), coarse(scores, 0.9)
    assert in_most_prompts([first, second], 0.5).tolist() == [[False, True, False], [False, False, False]]
    assert torch.equal(in_most_prompts([first, second], 0.4), first)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("refine", [False, True])
def test_an_edit_by_hand(kind: str, refine: bool) -> None:
    lm = fresh(kind)
    (batch,) = run(configured(KN, steps=4, refine=refine, contexts=TEXTS, lanes=8), lm, REQUESTS, batch_size=1)
    e = lm.arch.embed(lm.model).get_parameter("weight").double()
    for request, delta, outcome in zip(REQUESTS, batch.deltas, batch.outcomes, strict=True):
        prompt = encode(lm, request.text, request.target_new)
        with torch.no_grad():
            old = int(lm.model(input_ids=torch.tensor([prompt.ids[: prompt.n_prompt]])).logits[0, -1].argmax())
        passed = []
        for before in ("", "The meeting was. ", "Because of the rain. ")[: 3 if refine else 1]:
            true = encode(lm, before + request.text, request.target_true or "x")
            mine = points_of((0, 0), true, true.target if request.target_true else (old,))
            scores = attributed(lm, mine, 4).scores.mean(0)
            passed.append(scores > 0.2 * scores.max())
        chosen = passed[0] if not refine else torch.stack(passed).sum(0) > 0.4 * 3
        assert outcome.error is None
        assert delta is not None
        new = prompt.target
        vector = (2 if len(new) == 1 else 1) * e[list(new)].sum(0) - 2 * e[old]
        for layer in range(3):
            found = delta.of_kind(Slices).get(lm.arch.path("mlp_out", layer))
            wanted = torch.zeros(16, 40).double()
            wanted[:, chosen[layer]] = vector[:, None]
            torch.testing.assert_close(torch.zeros(16, 40) if found is None else found.dense(), wanted.float())
        assert outcome.info["neurons"] == int(chosen.sum())
        assert outcome.info["prompts"] == len(passed)
    assert {len(encode(lm, r.text, r.target_new).target) == 1 for r in REQUESTS} >= {False}


def test_one_token_is_added_twice_and_several_once_each() -> None:
    lm = fresh()
    e = lm.arch.embed(lm.model).get_parameter("weight")
    torch.testing.assert_close(written(lm, 3, (5,), 2.0), 2 * e[5] - 2 * e[3])
    torch.testing.assert_close(written(lm, 3, (5, 6), 2.0), e[5] + e[6] - 2 * e[3])
    torch.testing.assert_close(written(lm, 3, (5, 6), 1.0), (e[5] + e[6]) / 2 - e[3])


def test_more_points_than_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several phases; none of their steps is left out."""
    whole = run(configured(KN, steps=4, refine=True, contexts=TEXTS, lanes=8), fresh(), REQUESTS, batch_size=1)
    monkeypatch.setattr("kedit.methods.kn.module.points_at_once", lambda steps, device: 2)
    parts = run(configured(KN, steps=4, refine=True, contexts=TEXTS, lanes=8), fresh(), REQUESTS, batch_size=1)
    for one, other in zip(whole[0].deltas, parts[0].deltas, strict=True):
        assert one is not None
        assert other is not None
        assert one.of_kind(Slices).keys() == other.of_kind(Slices).keys()
        torch.testing.assert_close(torch.tensor(one.norm()), torch.tensor(other.norm()))


def test_no_neuron_passes() -> None:
    request = EditRequest("1", "The capital of {} is", "France", "Rome", "Paris")
    module = configured(KN, steps=4, refine=True, p=1.0, contexts=TEXTS)
    (batch,) = run(module, fresh(), [request], batch_size=1)
    assert batch.deltas == [None]
    assert batch.outcomes[0].error == "no neuron passes at more than p of its prompts; lower model.p"


def test_sequential_edits_start_from_the_edited_weights() -> None:
    lm = fresh()
    before = bits(lm)
    module = configured(KN, steps=4, regime="sequential")
    run(module, lm, REQUESTS, batch_size=1)
    total = Delta.concat(module.deltas)
    for path, change in total.of_kind(Slices).items():
        now = bits(lm)[f"{path}.weight"]
        torch.testing.assert_close(now, before[f"{path}.weight"] + change.dense(), atol=1e-5, rtol=1e-5)


def test_what_is_refused(tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kedit.cli import main

    data = city_facts(tmp_path / "facts.jsonl", 4)
    common: dict[str, Any] = {"model": "KN", "model.steps": 2, "run.root": tmp_path / "runs"}
    for more, message in (
        ({"data.batch_size": 2}, "data.batch_size: KN edits one request at a time, not 2"),
        ({"edit.regime": "batch"}, "edit.regime: KN knows single, sequential, not 'batch'"),
        ({"model.steps": 0}, "model.steps: 0 is less than 1"),
        ({"model.p": 2}, "model.p: 2.0 is more than 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(sequential_run(tiny_folder, data, common | more))
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_published_values() -> None:
    from kedit.keyvalue.published import GPT2_XL, GPT_J

    assert KN.published.row(GPT2_XL) == {"steps": 20, "adaptive_threshold": 0.2, "strength": 2.0}
    assert KN.published.row(GPT_J) == {"steps": 20, "adaptive_threshold": 0.1, "strength": 2.0}
    with pytest.raises(KeditError, match=r"^model\.strength: 0\.0 is not above 0"):
        KN(strength=0.0)
