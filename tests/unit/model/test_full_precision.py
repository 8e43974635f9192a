"""Weights that are codes are refused, whoever quantised them and however the model came; plain floats may be mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import BitsAndBytesConfig, PreTrainedModel

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.errors import KeditError
from kedit.forward.binding import load_lm, wrap_lm
from kedit.model.architecture import weight
from kedit.model.lm import LM, LMConfig
from tests.support.tiny_models import save_tiny, tiny_lm, tiny_model, tiny_tokenizer

DOWN, OUT, GATE = "mlp.down_proj", "self_attn.o_proj", "mlp.gate_proj"


class Codes(nn.Linear):
    """As bitsandbytes' and transformers' FP8 layers are: a Linear whose weight holds codes."""

    def __init__(self, of: nn.Linear, codes: Tensor) -> None:
        super().__init__(of.in_features, of.out_features, bias=False)
        self.weight = nn.Parameter(codes, requires_grad=False)


class Packed(nn.Module):
    """As GPTQ's and AWQ's layers are: no Linear, and its codes are buffers."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = of.in_features, of.out_features
        self.register_buffer("qweight", torch.zeros(of.in_features // 8, of.out_features, dtype=torch.int32))


class Opaque(nn.Module):
    """A linear map of somebody's own, whose matrix kedit cannot name."""

    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.matrix = nn.Parameter(of.weight.detach().T.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class Pretending(Tensor):
    """As torchao's tensors are: it says that it is float32."""


def int8(linear: Any) -> nn.Module:
    return Codes(linear, linear.weight.detach().to(torch.int8))


def four_bits(linear: nn.Linear) -> nn.Module:
    return Codes(linear, torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8))


def fp8(linear: nn.Linear) -> nn.Module:
    return Codes(linear, linear.weight.detach().to(torch.float8_e4m3fn))


def flat(linear: nn.Linear) -> nn.Module:
    return Codes(linear, linear.weight.detach().reshape(1, -1))


def pretending(linear: nn.Linear) -> nn.Module:
    return Codes(linear, linear.weight.detach().as_subclass(Pretending))


def computed(linear: nn.Linear) -> nn.Module:
    return weight_norm(linear)


def wrapped(model: PreTrainedModel, path: str, change: Any, layer: int = 2) -> LM:
    """`model` as an LM, with the matrix at `path` of one layer changed."""
    parent = model.get_submodule(f"model.layers.{layer}.{path.rpartition('.')[0]}")
    name = path.rpartition(".")[2]
    setattr(parent, name, change(getattr(parent, name)))
    return wrap_lm(model, tiny_tokenizer("sentencepiece"), "mine")


@pytest.mark.parametrize("path", [DOWN, GATE, OUT])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (int8, "int8"),
        (four_bits, "uint8"),
        (fp8, "float8_e4m3fn"),
        (flat, "shape"),
        (pretending, "Pretending"),
        (computed, "no plain parameter"),
        (Packed, "qweight is int32"),
    ],
)
def test_codes_are_refused_in_every_matrix(path: str, change: Any, said: str) -> None:
    with pytest.raises(KeditError, match=rf"mine: model\.layers\.2\.{path}.*{said}.*unquantised") as refused:
        wrapped(tiny_model("llama"), path, change)
    assert "\n" not in str(refused.value)


def test_a_map_that_is_no_linear_one_is_refused_where_it_would_be_edited() -> None:
    with pytest.raises(KeditError, match=r"mine: model\.layers\.2\.mlp\.down_proj: Opaque is not a linear map"):
        wrapped(tiny_model("llama"), DOWN, Opaque)
    wrapped(tiny_model("llama"), OUT, Opaque)  # no method edits it, and a delta could not


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_plain_types_may_be_mixed(dtype: torch.dtype) -> None:
    class Mixed(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input.to(self.weight.dtype)).to(input.dtype)

    def mixed(linear: nn.Linear) -> nn.Linear:
        made = Mixed(linear.in_features, linear.out_features, bias=False)
        made.load_state_dict(linear.state_dict())
        return made.to(dtype)

    lm = wrapped(tiny_model("llama"), DOWN, mixed)
    assert weight(lm.arch.module(lm.model, "mlp_out", 2)).dtype == dtype
    assert tiny_lm("gpt2", dtype=torch.float64).dtype == torch.float64  # Conv1D, and a type that loses nothing


@pytest.mark.parametrize("given", [{"quant_method": "gptq", "bits": 4}, BitsAndBytesConfig(load_in_8bit=True)])
def test_a_config_that_says_so_is_believed(given: Any) -> None:
    model = tiny_model("llama")
    model.config.quantization_config = given
    with pytest.raises(KeditError, match=r"mine: its weights are quantised \((gptq|bitsandbytes), "):
        wrap_lm(model, tiny_tokenizer("sentencepiece"), "mine")


def test_a_folder_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", "llama")
    _config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(KeditError, match=r"quantised \(awq, says its quantization_config\).*unquantised"):
        load_lm(LMConfig(str(folder)))


def test_codes_that_are_read_as_numbers_are_refused(tmp_path: Path) -> None:
    """A config that lost its quantization_config: the codes would be cast to floats, their scales left out."""
    folder = save_tiny(tmp_path / "m", "llama")
    tensors = load_file(folder / "model.safetensors")
    path = "model.layers.1.mlp.down_proj"
    tensors[f"{path}.weight"] = (tensors[f"{path}.weight"] * 10).to(torch.int8)
    tensors[f"{path}.SCB"] = torch.ones(32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(KeditError, match=rf"its files hold {path}\.SCB.*quantised"):
        load_lm(LMConfig(str(folder)))


def test_packed_codes_have_another_shape(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.zeros(1280, 1, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(KeditError, match=r"other shapes than its config\.json says"):
        load_lm(LMConfig(str(folder)))


def test_a_delta_is_never_added_to_codes() -> None:
    """A model that was wrapped while it was plain, and quantised in place afterwards."""
    lm = tiny_lm("llama")
    path = lm.arch.path("mlp_out", 2)
    codes: Any = int8(lm.arch.module(lm.model, "mlp_out", 2))
    lm.model.set_submodule(path, codes)
    before = codes.weight.clone()
    delta = Delta({path: Factors(torch.ones(32, 1), torch.ones(1, 80))})
    with pytest.raises(KeditError, match="int8"), edited(lm.model, delta):
        pass
    assert torch.equal(codes.weight, before)


def _config(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))
