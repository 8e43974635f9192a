"""Published values: a model's row, else by depth; what the user gave stays."""

from __future__ import annotations

from types import SimpleNamespace

from kedit.keyvalue.published import LLAMA_2, LLAMA_3, SMOLLM2, Published, fill_in, layers_up_to, shape_of
from kedit.methods import EMMET, MEMIT, ROME, RROME
from tests.support.tiny_models import tiny_lm


def test_a_row_says_what_differs_from_the_usual() -> None:
    published = Published(lambda lm: {"a": 1}, {"a": 2, "b": 3}, {("llama", 32, 4096): {"a": 4}, LLAMA_3: {"b": 5}})
    assert published.row(LLAMA_2) == {"a": 4, "b": 3}
    assert published.row(LLAMA_3) == {"a": 2, "b": 5}, "the row with the width of the keys goes before the other"
    assert published.row(SMOLLM2) is None


def test_a_model_without_a_row_goes_by_its_depth() -> None:
    lm = tiny_lm("llama", n_layers=12)
    assert shape_of(lm) == ("llama", 12, 32, 80)
    assert ROME.published.of(lm) == RROME.published.of(lm)
    assert ROME.published.of(lm)["layer"] == 2
    assert MEMIT.published.of(lm)["layers"] == (0, 1, 2, 3)
    assert MEMIT.published.of(lm)["mom2_update_weight"] == 15_000 * 80 / 11_008
    assert EMMET.published.of(lm)["layers"] == (2,)
    assert layers_up_to(lm, 0.5, 2) == (5, 6)


def test_what_the_user_gave_stays() -> None:
    options = SimpleNamespace(layer=None, v_lr=0.0, v_num_grad_steps=None, v_weight_decay=None, clamp_norm_factor=7)
    fill_in(options, ROME.published, tiny_lm("llama", n_layers=12))
    wanted = {"layer": 2, "v_lr": 0.0, "v_num_grad_steps": 25, "v_weight_decay": 1e-3, "clamp_norm_factor": 7}
    assert vars(options) == wanted


def test_a_method_may_lack_an_option() -> None:
    lm, published = tiny_lm("llama", n_layers=12), MEMIT.published.without("mom2_update_weight")
    assert "mom2_update_weight" not in published.of(lm)
    assert published.of(lm).items() < MEMIT.published.of(lm).items()
    rows = [published.row(shape) for shape in (LLAMA_3, SMOLLM2)]
    assert all(row is not None and row["layers"] == (4, 5, 6, 7, 8) and "mom2_update_weight" not in row for row in rows)
