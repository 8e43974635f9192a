"""What exported folders say, what of a change half precision keeps, and what is refused before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from torch import nn

import kedit
from kedit.delta.biases import BiasChange
from kedit.delta.change import Change
from kedit.delta.codebook import Codebook
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.parameters import ParameterChange
from kedit.delta.prompt_memory import WHOLE, PromptMemory, PromptRule, StoredFact
from kedit.delta.serialization import save_delta
from kedit.errors import KeditError
from kedit.export import export_hf, export_peft, load_edited
from kedit.export.hf import in_dtype
from kedit.export.measure import chosen
from kedit.export.requests import with_numbers
from kedit.model.lm import LM
from kedit.model.pretrained import quiet_transformers
from kedit.request import EditRequest
from tests.support.exported import Case, card_of, loaded, logits
from tests.support.tiny_models import tiny_lm

TINY: dict[str, Any] = {"n_layers": 3, "d_model": 16, "d_ff": 40}
FRANCE = EditRequest("1", "The | capital of {} is", "France", "Lyon", "Paris")


def rank_one(lm: LM, layer: int = 1, size: float = 1.0) -> dict[str, Change]:
    gen = torch.Generator().manual_seed(layer)
    left, right = torch.randn(16, 1, generator=gen), torch.randn(1, 40, generator=gen)
    return {lm.arch.path("mlp_out", layer): Factors(left * size, right)}


def low_rank(kind: str = "llama", dtype: torch.dtype = torch.float32, size: float = 1.0) -> Case:
    lm = tiny_lm(kind, **TINY, dtype=dtype)
    card = card_of(lm, FRANCE, dtype=str(dtype).removeprefix("torch."), layer=1)
    return Case(lm, Delta(rank_one(lm, size=size)), card)


def close(one: torch.Tensor, other: torch.Tensor, share: float = 1e-5) -> bool:
    return float((one - other).abs().max()) <= share * float(other.abs().max())


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "edit_card.json").read_text())


def test_the_model_card(tmp_path: Path) -> None:
    made = low_rank()
    numbers = {"rewrite": {"success": {"before": 0.0, "after": 87.5, "ci": [50.0, 99.0]}}}
    more = {"protocol": {"regime": "single", "scorer": "teacher forced"}, "results": {"edit": numbers}}
    card = made.card | more | {"data": {"records": 8, "name": "Facts"}}
    for export in (export_peft, export_hf):
        folder = export(made.delta, made.lm, tmp_path / export.__name__, card)
        text = (folder / "README.md").read_text()
        _, header, body = text.split("---\n", 2)
        about = yaml.safe_load(header)
        assert about["base_model"] == made.lm.name
        assert about["library_name"] == ("peft" if export is export_peft else "transformers")
        assert "tells which subjects were edited" in body
        assert "| 1 | The \\| capital of {} is | France | Lyon | Paris | 0." in body
        for said in (
            made.lm.fingerprint,
            "ROME",
            "`layer` | `1`",
            "87.5 | [50.0, 99.0]",
            "8 records of Facts",
            "peft 0.",
        ):
            assert said in body
        assert record(folder)["card"]["requests"] == card["requests"]


def test_a_bias_is_exact_in_peft(tmp_path: Path, tiny_folder: Callable[..., str]) -> None:
    """Beside a matrix, alone, and merged."""
    lm = tiny_lm("gpt2", **TINY)
    one, other = (lm.arch.path("mlp_out", layer) for layer in (1, 2))
    delta = Delta(rank_one(lm), {one: BiasChange(torch.randn(16)), other: BiasChange(torch.randn(16))})
    made = Case(lm, delta, card_of(lm, FRANCE))
    export_peft(delta, lm, tmp_path / "peft", made.card)
    with quiet_transformers():
        model = PeftModel.from_pretrained(loaded(tiny_folder("gpt2", **TINY)), str(tmp_path / "peft")).eval()
    assert close(logits(model, lm), made.said(delta))
    assert close(logits(model.merge_and_unload(), lm), made.said(delta))


def test_ranks_of_their_own(tmp_path: Path, tiny_folder: Callable[..., str]) -> None:
    lm = tiny_lm("llama", **TINY)
    wide = Factors(torch.randn(16, 3), torch.randn(3, 40))
    delta = Delta(rank_one(lm) | {lm.arch.path("mlp_out", 2): wide})
    made = Case(lm, delta, card_of(lm))
    export_peft(delta, lm, tmp_path / "peft", made.card)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.1.mlp.down_proj": 1}
    assert config["target_modules"] == ["model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"]
    with quiet_transformers():
        model = PeftModel.from_pretrained(loaded(tiny_folder("llama", **TINY)), str(tmp_path / "peft")).eval()
    assert close(logits(model, lm), made.said(delta))


def test_a_head_that_is_tied_is_refused_by_peft(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2", **TINY)
    delta = Delta({"lm_head": Factors(torch.randn(600, 1), torch.randn(1, 16))})
    with pytest.raises(KeditError, match=r"^lm_head shares its weight with transformer.wte: .*export_hf"):
        export_peft(delta, lm, tmp_path / "peft", card_of(lm))
    made = Case(lm, delta, card_of(lm))
    model = loaded(export_hf(delta, lm, tmp_path / "hf", made.card))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert close(logits(model, lm), made.said(delta))


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "low", "high"), [(1.0, 0.0, 0.1), (1e-5, 0.9, 100.0)])
def test_what_half_precision_rounds_is_said(
    base: torch.dtype, size: float, low: float, high: float, tmp_path: Path
) -> None:
    """A change far below the weights' resolution is lost, and the card says so."""
    made = low_rank(dtype=base, size=size)
    before = {key: tensor.clone() for key, tensor in made.lm.model.state_dict().items()}
    folder = export_hf(made.delta, made.lm, tmp_path / "hf", made.card, "bfloat16")
    (line,) = record(folder)["rounding"]
    assert line["parameter"] == "model.layers.1.mlp.down_proj.weight"
    assert line["norm"] == pytest.approx(made.delta.norm(), rel=1e-5)
    assert low <= line["error"] <= high
    (asked,) = record(folder)["efficacy"]
    assert 0 < asked["written"] < 1
    assert "Rounding to bfloat16" in (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    model = loaded(folder, "auto")
    assert model.dtype == torch.bfloat16
    now = made.lm.model.state_dict()
    assert all(tensor.dtype == base and torch.equal(tensor, now[key]) for key, tensor in before.items())
    weights = model.get_submodule("model.layers.1.mlp.down_proj").weight
    exact = (
        before["model.layers.1.mlp.down_proj.weight"].double()
        + made.delta.of_kind(Factors)["model.layers.1.mlp.down_proj"].dense()
    )
    assert torch.equal(weights, exact.to(torch.bfloat16)) or close(weights.double(), exact, 2**-8)


def test_a_bf16_model_is_widened_before_it_is_edited(tmp_path: Path) -> None:
    made = low_rank(dtype=torch.bfloat16, size=1e-5)
    model = loaded(export_hf(made.delta, made.lm, tmp_path / "hf", made.card, "float32"))
    base = made.lm.model.get_submodule("model.layers.1.mlp.down_proj").get_parameter("weight")
    change = model.get_submodule("model.layers.1.mlp.down_proj").weight.double() - base.double()
    assert float(change.detach().norm()) == pytest.approx(made.delta.norm(), rel=1e-2)
    assert not record(tmp_path / "hf")["rounding"]


def test_an_adapter_in_a_bf16_base_stays_in_float32(tmp_path: Path, tiny_folder: Callable[..., str]) -> None:
    made = low_rank()
    export_peft(made.delta, made.lm, tmp_path / "peft", made.card)
    with quiet_transformers():
        base = loaded(tiny_folder("llama", **TINY), "bfloat16")
        model = PeftModel.from_pretrained(base, str(tmp_path / "peft"))
    adapter = {key: tensor for key, tensor in model.state_dict().items() if "lora_" in key}
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    (own,) = made.delta.of_kind(Factors).values()
    assert any(torch.equal(tensor, own.left) for tensor in adapter.values())


def test_in_dtype_keeps_tied_weights_tied() -> None:
    lm = tiny_lm("gpt2", **TINY)
    model = lm.model
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with in_dtype(model, torch.bfloat16):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert model.get_submodule("lm_head").weight is model.get_input_embeddings().weight
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.items())


KEPT_BESIDE: dict[str, Callable[[LM], tuple[str, Change]]] = {
    "codebook": lambda lm: (
        lm.arch.path("mlp_out", 1),
        Codebook(torch.zeros(1, 40), torch.ones(1, 16), torch.tensor([1e3]), torch.tensor([0])),
    ),
    "prompts": lambda lm: (WHOLE, PromptMemory(PromptRule("New fact: {}\n"), (StoredFact("q", "The sky is red."),))),
}


@pytest.mark.parametrize("name", KEPT_BESIDE)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_what_is_no_weight_is_kept_beside(name: str, dtype: Any, tmp_path: Path) -> None:
    lm = tiny_lm("llama", **TINY)
    path, change = KEPT_BESIDE[name](lm)
    delta = Delta({path: change})
    with pytest.raises(KeditError, match=f"'{name}', is no weight"):
        export_peft(delta, lm, tmp_path / "peft", card_of(lm))
    folder = export_hf(delta, lm, tmp_path / "hf", card_of(lm, FRANCE), dtype)
    assert record(folder)["form"] == "beside"
    edited = load_edited(folder)
    assert edited.dtype == (torch.float32 if dtype is None else torch.bfloat16)
    assert edited.delta is not None
    whole = edited.prompt("The sky is")
    assert whole == ("New fact: The sky is red.\nThe sky is" if name == "prompts" else "The sky is")
    hooks = [module for module in edited.model.modules() if module._forward_hooks]
    assert len(hooks) == (name == "codebook")


def test_a_delta_folder_is_loaded_with_its_model(tmp_path: Path, tiny_folder: Callable[..., str]) -> None:
    lm = kedit.load_lm(kedit.LMConfig(tiny_folder("llama", **TINY)))
    made = Case(lm, Delta(rank_one(lm)), card_of(lm, FRANCE))
    save_delta(tmp_path / "delta", made.delta, made.card)
    edited = kedit.load_edited(tmp_path / "delta")
    assert torch.equal(logits(edited.model, edited), made.said(made.delta))
    save_delta(tmp_path / "moved", made.delta, made.card | {"model": str(tmp_path / "gone")})
    with pytest.raises(KeditError, match=r"moved: its model is not to be had here: .*\nSay where it is: --model NAME"):
        load_edited(tmp_path / "moved")
    again = load_edited(tmp_path / "moved", model=lm.name)
    assert again.fingerprint == edited.fingerprint != lm.fingerprint
    other = tiny_folder("llama", **TINY, seed=7)
    with pytest.raises(KeditError, match="this delta is of another model"):
        load_edited(tmp_path / "delta", model=other)


def test_what_is_no_edited_model(tmp_path: Path) -> None:
    made = low_rank()
    with pytest.raises(KeditError, match="nowhere: there is no such folder"):
        load_edited(tmp_path / "nowhere")
    with pytest.raises(KeditError, match="neither a model folder nor a delta"):
        load_edited(tmp_path)
    export_peft(made.delta, made.lm, tmp_path / "peft", made.card)
    with pytest.raises(KeditError, match=r"a PEFT adapter: load it with PeftModel\.from_pretrained"):
        load_edited(tmp_path / "peft")


@pytest.mark.parametrize("export", [export_peft, export_hf])
def test_what_is_refused(export: Callable[..., Path], tmp_path: Path) -> None:
    """A folder that holds something, another model, and a model that is edited already; nothing is written."""
    made = low_rank()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(KeditError, match=r"^out: .*full is a folder that is not empty"):
        export(made.delta, made.lm, tmp_path / "full", made.card)
    with pytest.raises(KeditError, match=r"^out: .*mine.txt is a file"):
        export(made.delta, made.lm, tmp_path / "full" / "mine.txt", made.card)
    with pytest.raises(KeditError, match=r"^this delta is of another model, "):
        export(made.delta, tiny_lm("llama", **TINY, seed=3), tmp_path / "new", made.card)
    book = Codebook(torch.zeros(1, 40), torch.ones(1, 16), torch.tensor([1e3]), torch.tensor([0]))  # changes no weight
    for there in (made.delta, Delta({made.lm.arch.path("mlp_out", 1): book})):
        with kedit.edited(made.lm.model, there), pytest.raises(KeditError, match="carries an edit already"):
            export(made.delta, made.lm, tmp_path / "new", made.card)
    (tmp_path / "empty").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]
    export(made.delta, made.lm, tmp_path / "empty", made.card)
    assert (tmp_path / "empty" / "README.md").is_file()


def test_there_is_no_such_type(tmp_path: Path) -> None:
    made = low_rank()
    with pytest.raises(KeditError, match="dtype: 'int8' is none of float32, bfloat16, float16"):
        export_hf(made.delta, made.lm, tmp_path / "hf", made.card, "int8")  # type: ignore[arg-type]


def test_norms_and_embeddings_are_merged(tmp_path: Path) -> None:
    lm = tiny_lm("llama", **TINY)
    norm = ParameterChange({"weight": torch.randn(16)})
    made = Case(lm, Delta({"model.norm": norm}), card_of(lm))
    with pytest.raises(KeditError, match=r"^model.norm: its change, of kind 'parameters', changes more than matrices"):
        export_peft(made.delta, lm, tmp_path / "peft", made.card)
    assert close(logits(loaded(export_hf(made.delta, lm, tmp_path / "hf", made.card)), lm), made.said(made.delta))
    assert isinstance(lm.model, nn.Module)


def test_of_many_requests_some_are_asked() -> None:
    many = [EditRequest(str(i), "The capital of {} is", f"Land {i}", "Rome") for i in range(250)]
    assert [request.case_id for request in chosen(many)][:3] == ["0", "2", "5"]
    assert len({request.case_id for request in chosen(many)}) == 100
    assert chosen(many[:100]) == many[:100]


def test_numbers_of_the_run_around_a_delta(tmp_path: Path) -> None:
    card = {"model_fingerprint": "f", "method": "ROME", "seed": 0}
    summary: dict[str, Any] = {"method": card, "protocol": {"regime": "single"}, "results": {"edit": {}}}
    summary["data"] = {"name": "Facts", "records": 8, "fingerprint": "d", "more": 1}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    for folder in (tmp_path / "delta", tmp_path / "deltas" / "case"):
        found = with_numbers(folder, dict(card))
        assert found["data"] == {"name": "Facts", "records": 8, "fingerprint": "d"}
        assert found["results"] == {"edit": {}}
        assert with_numbers(folder, card | {"seed": 1}) == card | {"seed": 1}
    (tmp_path / "summary.json").write_text("{")
    assert with_numbers(tmp_path / "delta", dict(card)) == card
