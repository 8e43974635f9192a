"""A method's name finds the configuration that ships for the model: what `kedit fit` would make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kedit import methods
from kedit.editing.method import configure, lm_config, module_of, own_copy, query_config, regime_for, settings_card
from kedit.editing.settings import SLUGS, Settings, method_names, settings_of, with_options
from kedit.errors import KeditError
from kedit.keyvalue import published
from kedit.methods import IKE, MEMIT, ROME
from kedit.runtime.shipped import shipped_configs
from tests.support.tiny_models import tiny_lm

NAME = "smollm2-135m"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("rome", "rome_smollm2"),
        ("ROME", "rome_smollm2"),
        ("R-ROME", "rrome_smollm2"),
        ("rep", "rep_smollm2"),
        ("rep_rome", "rep_smollm2"),
        ("rep-memit", "rep_memit_smollm2"),
        ("steam", "steam_rome_smollm2"),
        ("STEAM_MEMIT", "steam_memit_smollm2"),
        ("rect", "rect_memit_smollm2"),
        ("prune", "prune_memit_smollm2"),
        ("pac", "pac_smollm2"),
        ("rome_gpt2_xl", "rome_gpt2_xl"),
    ],
)
def test_configurations_by_name(name: str, config: str) -> None:
    settings = settings_of(name, NAME)
    whole = yaml.safe_load(shipped_configs()[config].read_text())
    assert settings.source == config
    assert settings.model == whole["model"]


@pytest.mark.parametrize("name", [name for name in methods.__all__ if name != "EditingModule"])
def test_every_method_has_one_for_smollm2_and_defaults_for_others(name: str) -> None:
    settings = settings_of(name, NAME)
    assert settings.source is not None
    assert type(module_of(settings)).__name__ == name
    other = settings_of(name, "another/model")
    assert other.source is None
    assert type(module_of(other)).__name__ == name


def test_an_editor_has_its_own_configuration() -> None:
    settings = settings_of("rect_rome", NAME)
    assert settings.source == "rome_smollm2"
    assert settings.model["init_args"]["editor"]["init_args"]["v_lr"] == 0.25


@pytest.mark.parametrize(
    ("shape", "name", "config"),
    [
        (published.SMOLLM2, "steam", "steam_rome_smollm2"),
        (published.LLAMA_3, "memit", "memit_llama3"),
        (published.LLAMA_3, "pac", "pac_counterfact_llama3"),
        (published.QWEN_2, "rome", "rome_qwen25"),
        (published.QWEN_2, "rep", "rep_qwen2"),
        (published.GPT2_XL, "rep", "rome_gpt2_xl"),  # its editor's
        (("gpt2", 2, 16, 40), "rome", None),
    ],
)
def test_models_are_known_by_their_shape(
    shape: published.Shape, name: str, config: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "shape_of", lambda lm: shape)
    assert settings_of(name, lm=tiny_lm("gpt2", n_layers=2, d_model=16, d_ff=40)).source == config


def test_every_shipped_configuration_of_a_method_can_be_found() -> None:
    slugs = {slug for own in SLUGS.values() for slug in own}
    names = [name for name in shipped_configs() if "/" not in name]
    assert [name for name in names if not name.endswith(tuple(f"_{slug}" for slug in slugs))] == []


def test_options_replace_settings() -> None:
    settings = settings_of("rep", NAME)
    changed = with_options(
        settings,
        {
            "mode": "closed_form",
            "model.editor.v_lr": 0.1,
            "editor.contexts.lengths": [[2, 1]],
            "edit.lanes": 2,
            "lm.dtype": "bfloat16",
            "data.batch_size": 3,
        },
    )
    assert settings == settings_of("rep", NAME)  # a copy is changed
    args = changed.model["init_args"]
    assert args["mode"] == "closed_form"
    assert args["editor"]["init_args"]["v_lr"] == 0.1
    assert args["editor"]["init_args"]["contexts"] == {"lengths": [[2, 1]]}
    assert (changed.edit["lanes"], changed.lm["dtype"], changed.data["batch_size"]) == (2, "bfloat16", 3)
    module = module_of(changed)
    assert module.editor.v_lr == 0.1  # type: ignore[attr-defined]
    assert lm_config(changed, NAME).dtype == "bfloat16"
    assert lm_config(settings_of("rome_gptj"), NAME).dtype == "auto"  # of another model
    assert query_config(settings) is not None
    assert settings_card(changed)["init_args"]["editor"]["init_args"]["stats"]["tokens"] == 30000


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("rom", "there is no method 'rom'; did you mean rome\\?"),
        ("memitt", "did you mean memit\\?"),
        ("xyz", "there is no method 'xyz'\nThere are emmet"),
        ("rome_memit", "rome edits by itself"),
        ("", "there is no method ''"),
        ("no/such.yaml", "no/such.yaml"),
    ],
)
def test_names_that_are_none(name: str, why: str) -> None:
    with pytest.raises(KeditError, match=why):
        settings_of(name, NAME)


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("rome", {"layr": 7}, r"^model\.layr: there is no such option; did you mean layer\?"),
        ("rome", {"layer": "seven"}, r"^model\.layer: expects a whole number, not 'seven'"),
        ("rome", {"contexts.lengthss": 1}, r"^model\.contexts\.lengthss: there is no such option"),
        ("rome", {"contexts": 3}, r"^model\.contexts: expects options of its own"),
        ("rome", {"kl_factor": None}, r"^model\.kl_factor: null is no value"),
        ("rome", {"v_lr": float("nan")}, r"^model\.init_args\.v_lr|^model\.v_lr: nan is not a finite number"),
        ("rep", {"editor.layr": 7}, r"^model\.editor\.layr: there is no such option"),
        ("rep", {"layer.x": 1}, r"^model\.layer"),
        ("rome", {"layer.x": 1}, "layer is 5 and has no options below it"),
        ("rome", {"model.": 1}, "expects the name of an option"),
        ("rome", {"edit.regime": "together"}, r"edit\.regime"),
        ("rome", {"edit.seed": -1}, "seed"),
    ],
)
def test_bad_options(method: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(KeditError, match=why) as caught:
        module_of(with_options(settings_of(method, NAME), options))
    assert str(caught.value).count("\n") <= 1
    assert len(str(caught.value)) < 300


def test_a_configuration_that_is_none(tmp_path: Path) -> None:
    for text, why in (("- 1\n", "no 'model:'"), ("a: [", "not valid YAML"), ("data: {}\n", "no 'model:'")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(KeditError, match=why):
            settings_of(str(tmp_path / "x.yaml"))


def test_several_facts_are_all_kept() -> None:
    assert regime_for(ROME(), 1, None, None) == "single"
    assert regime_for(ROME(), 1, None, "sequential") == "sequential"
    assert regime_for(ROME(), 3, None, None) == "sequential"
    assert regime_for(MEMIT(), 3, None, None) == "batch"
    assert regime_for(MEMIT(), 3, "sequential", None) == "sequential"
    assert regime_for(MEMIT(), 3, None, "sequential") == "sequential"
    with pytest.raises(KeditError, match="no model would hold them all"):
        regime_for(MEMIT(), 3, "single", None)
    with pytest.raises(KeditError, match="ROME knows single, sequential, not 'batch'"):
        regime_for(ROME(), 3, "batch", None)
    with pytest.raises(KeditError, match="IKE edits one fact at a time"):
        regime_for(IKE(), 3, None, None)


def test_a_copy_of_the_users_method() -> None:
    mine = ROME(layer=1)
    other = own_copy(mine)
    configure(other, "sequential", 2, 7)
    assert (other.regime, other.lanes, other.seed) == ("sequential", 2, 7)
    assert (mine.regime, mine.lanes, mine.seed) == ("single", 0, 0)
    mine.use_lm(tiny_lm("gpt2", n_layers=2, d_model=16, d_ff=40))
    with pytest.raises(KeditError, match="has edited before"):
        own_copy(mine)
    with pytest.raises(KeditError, match="seed"):
        configure(other, "single", seed=-3)


def test_names_are_those_of_the_list() -> None:
    assert set(method_names()) == {name.lower() for name in methods.__all__} - {"editingmodule"}
    assert Settings({}).source is None
