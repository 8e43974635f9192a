"""PRUNE against a dense reference in float64 (baselines 1.19, identity 9), and that nothing is restrained twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.callbacks import EditCheckpoint
from kedit.delta.biases import BiasChange
from kedit.delta.change import WeightChange
from kedit.delta.delta import Delta
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.delta.pathways import Pathways
from kedit.delta.slices import Slices
from kedit.errors import KeditError
from kedit.methods import MEMIT, PRUNE, RECT, REP, ROME
from kedit.methods.rep import AdapterConfig
from kedit.methods.wrappers.singular_values import halving, largest, logarithmic, restrained
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.runtime.run_folder import CHECKPOINT
from tests.support.small_runs import configured
from tests.support.tiny_models import tiny_lm
from tests.support.toy_dense import ToyDense
from tests.unit.methods.locate_then_edit.test_multi_layer import bits, options, run

SHAPE = (12, 20)


def lines(axis: int) -> Slices:
    index = torch.tensor([1, 4, 5, 9])
    return Slices(index, torch.randn(4, SHAPE[1 - axis]) * 3, axis, SHAPE)


FORMS: dict[str, Callable[[], WeightChange]] = {
    "factors": lambda: Factors(torch.randn(12, 3), torch.randn(3, 20)),
    "factors of more than full rank": lambda: Factors(torch.randn(12, 40), torch.randn(40, 20)),
    "dense": lambda: Dense(torch.randn(SHAPE) * 4),
    "rows": lambda: lines(0),
    "columns": lambda: lines(1),
}
RESTRAINTS = {"e": logarithmic(math.e), "1.2": logarithmic(1.2), "halve": halving}


def reference(delta: Tensor, sigma_max: float, of: Callable[[float], float]) -> Tensor:
    """U F(S) V^T, number by number."""
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    values = [x if x <= sigma_max else of(x) for x in s.tolist()]
    return u @ torch.diag(torch.tensor(values).double()) @ v


def f(name: str, sigma_max: float) -> Callable[[float], float]:
    if name == "halve":
        return lambda s: sigma_max + (s - sigma_max) / 2
    base = math.e if name == "e" else float(name)
    return lambda s: min(s, math.log(s) / math.log(base) - math.log(sigma_max) / math.log(base) + sigma_max)


@pytest.mark.parametrize("how", RESTRAINTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_dense_reference(form: str, how: str) -> None:
    torch.manual_seed(0)
    change = FORMS[form]()
    s = torch.linalg.svdvals(change.dense().double())
    sigma_max = float(s[1] + s[0]) / 2 if form == "rows" else float(s[2])
    found, before, after = restrained(change, sigma_max, RESTRAINTS[how])
    wanted = reference(change.dense().double(), sigma_max, f(how, sigma_max))
    torch.testing.assert_close(found.dense().double(), wanted, atol=2e-5, rtol=1e-5)
    assert type(found) is type(change), "in the form in which it came"
    assert before == pytest.approx(float(s[0]))
    assert after == pytest.approx(f(how, sigma_max)(float(s[0])))
    if isinstance(change, Factors) and isinstance(found, Factors):
        assert found.right is change.right
    if isinstance(change, Slices) and isinstance(found, Slices):
        assert torch.equal(found.index, change.index)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_happens_below_sigma_max(form: str) -> None:
    torch.manual_seed(0)
    change = FORMS[form]()
    top = float(torch.linalg.svdvals(change.dense().double())[0])
    assert restrained(change, top * 1.0001, logarithmic(math.e))[0] is change


@pytest.mark.parametrize("how", RESTRAINTS)
def test_f_is_continuous_at_sigma_max_and_singular_vectors_stay(how: str) -> None:
    restraint = RESTRAINTS[how]
    assert float(restraint(torch.tensor([2.0 + 1e-9]).double(), 2.0)) == pytest.approx(2.0, abs=1e-7)
    torch.manual_seed(0)
    change = Dense(torch.randn(SHAPE))
    u, s, v = torch.linalg.svd(change.matrix.double(), full_matrices=False)
    found = u.T @ restrained(change, float(s[4]), restraint)[0].dense().double() @ v.T
    torch.testing.assert_close(found, torch.diag(found.diagonal()), atol=1e-6, rtol=0)


def test_nothing_grows_beside_small_weights() -> None:
    """The published F is steeper than s where s ln(base) < 1."""
    s = torch.tensor([0.2, 0.5, 9.0]).double()
    assert torch.equal(logarithmic(1.2)(s, 0.1)[:2], s[:2])
    torch.testing.assert_close(logarithmic(math.e)(s, 0.1)[2:], 0.1 + (s[2:] / 0.1).log())


def test_the_largest_singular_value_is_exact() -> None:
    torch.manual_seed(0)
    for shape in (SHAPE, SHAPE[::-1], (7, 7)):
        matrix = torch.randn(shape)
        assert largest(matrix) == pytest.approx(float(torch.linalg.svdvals(matrix.double())[0]), rel=1e-12)
        near = torch.diag(torch.tensor([2.0, 2.0 - 1e-6, 1.0]))  # where power iteration would be slow
        assert largest(near) == pytest.approx(2.0, rel=1e-12)


def fresh(kind: str = "llama", **more: Any) -> LM:
    return tiny_lm(kind, n_layers=4, d_model=16, d_ff=40, **more)


def around(editor: Any, **more: Any) -> Any:
    return configured(PRUNE, editor, halve=True, **more)


def memit(**more: Any) -> Any:
    return MEMIT(**{name: value for name, value in (options(**more)).items() if name != "lanes"})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest singular value of every matrix is taken to be a hundredth of what it is."""
    monkeypatch.setattr("kedit.methods.wrappers.prune.largest", lambda matrix: largest(matrix) / 100)


def matrices(lm: LM) -> dict[str, Tensor]:
    names = [(lm.arch.path("mlp_out", i), lm.arch.module(lm.model, "mlp_out", i)) for i in (1, 2)]
    return {path: weight(module).detach().clone() for path, module in names}


def checked(lm: LM, before: dict[str, Tensor], total: Delta) -> None:
    """What is in the weights is W_0 and the restrained sum of all edits, by the dense reference."""
    after, touched = matrices(lm), 0
    for path, own in total.items():
        sigma_max = float(torch.linalg.svdvals(before[path].double())[0]) / 100
        whole = torch.stack([change.dense().double() for change in own if isinstance(change, WeightChange)]).sum(0)
        wanted = before[path].double() + reference(whole, sigma_max, f("halve", sigma_max))
        torch.testing.assert_close(after[path].double(), wanted, atol=2e-5, rtol=1e-4)
        touched += float(torch.linalg.svdvals(whole)[0]) > sigma_max
    assert touched


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("editor", [memit, ToyDense])
def test_a_sequential_run_ends_with_the_restrained_sum(editor: Callable[[], Any], kind: str) -> None:
    lm = fresh(kind)
    before, module = matrices(lm), around(editor(), regime="sequential")
    plain = configured(lambda: editor(), regime="sequential")
    run(plain, fresh(kind), batch_size=2)
    run(module, lm, batch_size=2)
    checked(lm, before, Delta.concat(plain.deltas))
    (left,) = module.deltas
    assert left.kinds == plain.deltas[0].kinds
    assert set(module.describe()["singular_values"]) == set(left.paths)
    module.finish_run()
    checked(lm, before, Delta.concat(plain.deltas))  # a second end changes nothing


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_resumed_run_restrains_what_was_edited_once(done: int, tmp_path: Path) -> None:
    """sigma_max is of the unedited matrices, though a resumed run finds edited ones."""
    whole, second = fresh(), fresh()
    one = around(memit(), regime="sequential")
    run(one, whole, batch_size=2)
    kept = {"default_root_dir": str(tmp_path), "callbacks": [EditCheckpoint()], "max_epochs": done}
    run(around(memit(), regime="sequential"), fresh(), batch_size=2, **kept)
    other = around(memit(), regime="sequential")
    run(other, second, batch_size=2, ckpt_path=str(tmp_path / CHECKPOINT))
    assert other.sigma_max == one.sigma_max
    assert all(torch.equal(value, bits(second)[name]) for name, value in bits(whole).items())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("regime", ["single", "batch"])
def test_where_edits_do_not_accumulate_each_is_restrained(regime: Any) -> None:
    plain = run(configured(MEMIT, **options(regime=regime)), fresh(), batch_size=5)
    lm = fresh()
    before = matrices(lm)
    found = run(around(memit(), regime=regime, lanes=8), lm, batch_size=5)
    for one, other in zip(plain, found, strict=True):
        assert other.baseline_deltas is not None
        for alone, base, left in zip(one.deltas, other.baseline_deltas, other.deltas, strict=True):
            for path, change in (alone or Delta()).of_kind(Factors).items():
                assert torch.equal((base or Delta()).of_kind(Factors)[path].left, change.left)
                sigma_max = largest(before[path]) / 100
                wanted = reference(change.dense().double(), sigma_max, f("halve", sigma_max))
                mine = (left or Delta()).of_kind(Factors)[path].dense().double()
                torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("small")
def test_half_precision_and_slices() -> None:
    lm = fresh(dtype=torch.bfloat16)
    run(module := around(ToyDense(kind="columns"), regime="sequential"), lm, batch_size=2)
    (left,) = module.deltas
    assert left.kinds == [Slices]
    (sigma_max, before, after), *_ = module.describe()["singular_values"].values()
    assert sigma_max < after < before


@pytest.mark.usefixtures("small")
def test_around_rep_gates_stay() -> None:
    adapter = AdapterConfig(
        steps=2, positives=6, negatives=8, rank=2, others=3, phrases=2, confusable_names=2, corpus_tokens=60
    )
    few = {name: value for name, value in options().items() if name not in ("lanes", "layers")}
    module = around(REP(ROME(layer=1, **few), adapter=adapter), regime="single", lanes=8)
    (batch,) = run(module, fresh(), batch_size=1)
    for base, left in zip(batch.baseline_deltas or [], batch.deltas, strict=True):
        assert base is not None
        assert left is not None
        assert left.kinds == [Factors, Pathways]
        for path, pathways in base.of_kind(Pathways).items():
            assert left.of_kind(Pathways)[path] is pathways
            assert not torch.equal(left.of_kind(Factors)[path].left, base.of_kind(Factors)[path].left)
    assert module.describe()["editor"] == "REP(ROME)"


def test_what_an_editor_says_is_what_a_wrapper_says() -> None:
    module = PRUNE(ToyDense())
    assert (module.usual_regime, module.needs_subject, module.merges_deltas) == ("batch", False, False)
    assert (module.regime, module.regimes) == ("batch", ToyDense.regimes)
    assert PRUNE(RECT(ROME())).merges_deltas
    assert PRUNE(ROME()).regimes == ("single", "sequential")
    assert PRUNE(REP(ROME())).needs_subject


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PRUNE(PRUNE(ROME())), "model.editor: PRUNE around PRUNE would restrain the same change twice"),
        (lambda: PRUNE(RECT(PRUNE(ROME()))), "model.editor: PRUNE around PRUNE"),
        (lambda: PRUNE(ROME(), base=1.0), "model.base: 1.0 is no base"),
        (lambda: PRUNE(ROME(), base=math.nan), "model.base: nan is not a finite number"),
        (lambda: PRUNE(ROME(), base=2.0, halve=True), "model.halve: "),
    ],
)
def test_slips(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(KeditError, match=message):
        make()


def test_an_editor_without_weights_is_refused() -> None:
    with pytest.raises(KeditError, match=r"^model\.editor: PRUNE restrains changes of weights, and ToyDense"):
        run(around(ToyDense(kind="bias"), regime="batch"), fresh("gpt2"), batch_size=5)


def test_a_bias_beside_weights_stays() -> None:
    torch.manual_seed(0)
    module = PRUNE(ToyDense())
    module.sigma_max = {"a": 0.1}
    bias, matrix = BiasChange(torch.randn(12)), Dense(torch.randn(SHAPE))
    left = module.finish(Delta({"a": matrix}, {"a": bias}))
    assert left.of_kind(BiasChange)["a"] is bias
    assert not torch.equal(left.of_kind(Dense)["a"].matrix, matrix.matrix)
    both = module.finish(Delta({"a": matrix}, {"a": lines(1)}))
    assert both.kinds == [Dense]
