"""The type of the weights where the user names none, and where they are read to."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from kedit.errors import KeditError
from kedit.forward.binding import load_lm
from kedit.model import loading
from kedit.model.lm import LMConfig
from kedit.model.loading import dtype_of, own_dtype, read_model
from tests.support.tiny_models import save_tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_the_models_own_type_on_a_gpu(caplog: pytest.LogCaptureFixture) -> None:
    config = AutoConfig.for_model("llama", dtype="bfloat16")
    with caplog.at_level(logging.INFO):
        assert dtype_of(LMConfig("a"), config, CPU) == torch.float32
        assert dtype_of(LMConfig("a"), config, GPU) == torch.bfloat16
    assert "a: weights in float32, as usual on a CPU; its own type is bfloat16 (lm.dtype)" in caplog.text
    assert "a: weights in bfloat16, the model's own type; lm.dtype chooses another" in caplog.text
    for device in (CPU, GPU):
        assert dtype_of(LMConfig("a", dtype="float16"), config, device) == torch.float16
    assert own_dtype(AutoConfig.for_model("llama", dtype="float64")) == torch.float32
    assert own_dtype(AutoConfig.for_model("llama")) == torch.float32


def test_a_cpu_has_float32_whatever_the_folder_says(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", dtype=torch.bfloat16)
    assert load_lm(LMConfig(str(folder))).dtype == torch.float32
    assert load_lm(LMConfig(str(folder), dtype="bfloat16")).dtype == torch.bfloat16


@pytest.mark.parametrize(("device", "wanted"), [("cpu", None), ("cuda:1", {"": torch.device("cuda:1")})])
def test_weights_go_straight_to_their_device(
    device: str, wanted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, given = save_tiny(tmp_path / "m", dtype=torch.bfloat16), {}

    def from_pretrained(source: str, **options: Any) -> None:
        given.update(options)
        raise InterruptedError

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(KeditError, match="cannot be loaded"):
        read_model(LMConfig(str(folder)), device)
    assert given["device_map"] == wanted
    assert given["dtype"] == (torch.float32 if device == "cpu" else torch.bfloat16)
