"""Where the edits of a batch are measured: the same numbers by lanes, in the weights and of weights as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.parameters import ParameterChange
from kedit.evaluation.score import EvalConfig, score_records
from kedit.methods.base.edit_batch import EditBatch, Outcome
from kedit.methods.base.views import BEFORE, accumulates, arms_of, measure
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.tiny_models import tiny_lm

SITE = "model.layers.0.mlp.down_proj"
CONFIG = EvalConfig(generate=[])


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_lm("llama", n_layers=2)


def delta_of(lm: LM, seed: int) -> Delta:
    d_out, d_in = weight(lm.model.get_submodule(SITE)).shape
    random = torch.Generator().manual_seed(seed)
    return Delta({SITE: Factors(torch.randn(d_out, 1, generator=random), torch.randn(1, d_in, generator=random))})


def batch_of(deltas: Sequence[Delta | None], editors: Sequence[Delta | None] | None = None) -> EditBatch:
    """Two records."""
    records = []
    for case in ("a", "b"):
        request = EditRequest(case, "{} is in", f"The town {case}", "Rome", "Paris")
        records.append(EditRecord(request, (Probe("rewrite", request.text, "Rome", "Paris"),)))
    outcomes = [Outcome(record) for record in records]
    baseline = None if editors is None else list(editors)
    return EditBatch(0, records, outcomes, list(deltas), baseline_deltas=baseline)


class Scorer:
    """Scores the rewrite probes of a batch, and notes how it was asked to."""

    def __init__(self, lm: LM, batch: EditBatch, cases: Sequence[str]) -> None:
        record = {record.request.case_id: record for record in batch.records}
        self.lm, self.records = lm, [record[case] for case in cases]
        self.calls: list[tuple[list[int], list[int] | None, bool]] = []

    def __call__(
        self, numbers: list[int], lanes: list[int] | None, bank: BatchedDeltas | None, shared: bool
    ) -> list[float]:
        self.calls.append((numbers, lanes, shared))
        scores = score_records(self.lm, [self.records[i] for i in numbers], lanes, bank, CONFIG)
        return [probe.nll_answer for (probe,) in scores]


def measured(lm: LM, regime: str, batch: EditBatch, asks: list[Any], base: dict[str, float]) -> tuple[Any, Scorer]:
    scorer = Scorer(lm, batch, [case for _, case in asks])
    return measure(regime, lm.model, batch, asks, scorer, base), scorer


ASKS = [(moment, case) for moment in (BEFORE, "edit", "editor") for case in "ab"]


def test_single_is_one_pass_over_lanes(lm: LM) -> None:
    one, two, three = (delta_of(lm, seed) for seed in range(3))
    values, scorer = measured(lm, "single", batch_of([one, None], [two, three]), ASKS, {})
    assert scorer.calls == [([0, 1, 2, 3, 4, 5], [-1, -1, 0, 1, 2, 3], False)]
    assert values[3] == pytest.approx(values[1], abs=1e-5)  # an edit that failed
    for i, delta in ((2, one), (4, two), (5, three)):
        with edited(lm.model, delta):
            (alone,) = scorer([i], None, None, False)
        assert values[i] == pytest.approx(alone, abs=1e-4)
        assert abs(values[i] - values[i % 2]) > 1e-3


def test_batch_writes_one_arm_after_the_other(lm: LM) -> None:
    one, two = delta_of(lm, 0), delta_of(lm, 1)
    weights = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    values, scorer = measured(lm, "batch", batch_of([one], [two]), ASKS, {})
    assert scorer.calls == [([0, 1], None, True), ([2, 3], None, True), ([4, 5], None, True)]
    for start, delta in ((2, one), (4, two)):
        with edited(lm.model, delta):
            assert scorer([start, start + 1], None, None, True) == values[start : start + 2]
    assert all(torch.equal(weights[name], tensor) for name, tensor in lm.model.state_dict().items())


def test_sequential_knows_the_unedited_model_and_measures_the_rest_as_it_is(lm: LM) -> None:
    one, two = delta_of(lm, 0), delta_of(lm, 1)
    batch = batch_of([one], [two])
    base = {"a": 1.0, "b": 2.0}
    with edited(lm.model, one):
        values, scorer = measured(lm, "sequential", batch, [(BEFORE, "a"), ("edit", "b"), (BEFORE, "b")], base)
        assert values[1] == scorer([1], None, None, True)[0]
    assert values[::2] == [1.0, 2.0]
    assert scorer.calls[0] == ([1], None, True)


def test_asks_in_any_order_and_twice(lm: LM) -> None:
    batch = batch_of([delta_of(lm, 0)])
    asks = [("edit", "b"), (BEFORE, "a"), ("edit", "b"), (BEFORE, "b")]
    values, scorer = measured(lm, "batch", batch, asks, {})
    assert [numbers for numbers, _, _ in scorer.calls] == [[1, 3], [0, 2]]
    assert values[0] == values[2] != values[3]


def test_what_cannot_be_measured_is_an_error(lm: LM) -> None:
    with pytest.raises(KeyError):  # there is no editor beside the method
        measured(lm, "single", batch_of([None, None]), [("editor", "a")], {})
    with pytest.raises(KeyError):  # the weights are edited
        measured(lm, "sequential", batch_of([None]), [(BEFORE, "a")], {})


def test_arms(lm: LM) -> None:
    batch = batch_of([None, None], [None, None])
    assert [arm.measured_at for arm in arms_of("single", batch)] == ["edit", "editor"]
    assert [arm.measured_at for arm in arms_of("sequential", batch)] == ["edit"]  # the editor alone is not in it
    assert [arm.measured_at for arm in arms_of("single", batch_of([None, None]))] == ["edit"]
    assert all(arm.outcomes is batch.outcomes for arm in arms_of("batch", batch))
    batch.baseline_outcomes = [Outcome(record) for record in batch.records]
    assert [arm.outcomes is batch.outcomes for arm in arms_of("batch", batch)] == [True, False]
    assert [regime for regime in ("single", "batch", "sequential") if accumulates(regime)] == ["sequential"]


def test_what_fits_no_lane_is_measured_in_the_weights(lm: LM) -> None:
    """Changes of every parameter, one record after another; the others and the unedited model still by lanes."""
    norm = lm.arch.family.norm
    one = Delta({norm: ParameterChange({"weight": 0.5 * torch.ones(lm.d_model)})})
    batch = batch_of([one, delta_of(lm, 1)], [delta_of(lm, 2), one])
    values, scorer = measured(lm, "single", batch, ASKS, {})
    assert scorer.calls == [
        ([0, 1, 3, 4], [-1, -1, 0, 1], False),
        ([2], None, False),
        ([5], None, False),
    ]
    with edited(lm.model, one):
        assert scorer([2, 5], None, None, False) == pytest.approx([values[2], values[5]])
