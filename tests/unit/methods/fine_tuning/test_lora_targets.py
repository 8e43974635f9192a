"""Which linear maps LoRA adapts."""

from __future__ import annotations

import pytest

from kedit.errors import KeditError
from kedit.methods.fine_tuning.lora_targets import query_and_value, target_paths
from tests.support.pac_cases import small
from tests.support.tiny_models import KINDS

JOINT = {"gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj"}


@pytest.mark.parametrize("model", sorted(KINDS))
def test_query_and_value_of_every_family(model: str) -> None:
    lm = small(model)
    names = query_and_value(lm)
    assert names == ([JOINT[model]] if model in JOINT else ["q_proj", "v_proj"])
    paths = target_paths(lm, names)
    assert len(paths) == len(names) * lm.arch.n_layers
    assert all(f".{lm.arch.family.attn}." in path for path in paths)


def test_layers_and_longer_names() -> None:
    lm = small("gpt2")
    assert target_paths(lm, ["mlp.c_proj"], [1]) == ["transformer.h.1.mlp.c_proj"]
    assert target_paths(lm, ["c_proj"], [1]) == ["transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_proj"]


@pytest.mark.parametrize(
    ("names", "layers", "message"),
    [
        ([], None, "model.target_modules is empty"),
        (["c_attn", "q_proj"], None, "model.target_modules: the layers of tiny-gpt2 have no linear map 'q_proj', only"),
        (["lm_head"], None, "no linear map 'lm_head'"),
        (["ln_1"], None, "no linear map 'ln_1'"),
        (["c_attn"], [2], "model.layers: there is no layer 2"),
        (["c_attn"], [], "model.layers is empty"),
    ],
)
def test_slips(names: list[str], layers: list[int] | None, message: str) -> None:
    with pytest.raises(KeditError, match=message):
        target_paths(small("gpt2"), names, layers)
