"""The table against the module tree of every family, inference against the table, and the fingerprint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit.errors import KeditError
from kedit.model import architecture as arch_module
from kedit.model.architecture import FAMILIES, Arch, ModuleName, check_layers, find_arch, infer, weight
from kedit.model.fingerprint import CHUNK, fingerprint
from tests.support.device import DEVICE
from tests.support.tiny_models import KINDS, tiny_model

D_MODEL, D_FF = 32, 80
IDS = torch.arange(2 * 9).reshape(2, 9) + 40


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def test_every_family_of_the_table_is_tested() -> None:
    assert set(FAMILIES) == set(KINDS)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_table_names_the_modules_that_the_forward_uses(model_type: str) -> None:
    model = tiny_model(model_type, n_layers=3)
    arch = find_arch(model)
    assert arch.n_layers == 3
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("mlp", "mlp_out", "layer"):
        module = arch.layer(model, 2) if name == "layer" else arch.module(model, name, 2)
        module.register_forward_hook(lambda _, a, out, name=name: seen.update({name: (a[0], first(out))}))
    attended = []
    arch.module(model, "attn", 2).register_forward_hook(lambda *_: attended.append(True))
    with torch.no_grad():
        logits = model(IDS).logits

    key, value = seen["mlp_out"]
    assert key.shape[-1] == D_FF
    assert value.shape[-1] == D_MODEL
    assert attended
    torch.testing.assert_close(seen["mlp"][1], value)  # nothing but dropout comes after mlp_out
    torch.testing.assert_close(arch.logits(model, seen["layer"][1]), logits)
    assert arch.head(model) is model.get_output_embeddings()
    assert arch.embed(model) is model.get_input_embeddings()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_weight_is_a_view_that_maps_key_to_value(model_type: str) -> None:
    model = tiny_model(model_type)
    module: Any = find_arch(model).module(model, "mlp_out", 1)
    W = weight(module)
    assert W.shape == (D_MODEL, D_FF)
    key = torch.randn(5, D_FF)
    bias = 0 if module.bias is None else module.bias
    torch.testing.assert_close(module(key), key @ W.T + bias)
    with torch.no_grad():
        before = module(key).clone()
        W[3] += 1.0
        torch.testing.assert_close(module(key)[:, 3], before[:, 3] + key.sum(1))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_mlp_in_reads_the_residual_stream(model_type: str) -> None:
    model = tiny_model(model_type)
    layer = find_arch(model).layer(model, 0)
    shapes = [tuple(weight(layer.get_submodule(p)).shape) for p in FAMILIES[model_type].mlp_in]
    fused = model_type in ("phi3", "modernbert-decoder")
    assert set(shapes) == {(2 * D_FF if fused else D_FF, D_MODEL)}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_infer_agrees_with_the_table(model_type: str) -> None:
    assert infer(tiny_model(model_type)) == replace(FAMILIES[model_type], between=())  # a tree does not tell that


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("bloom", {}),
        ("gpt_bigcode", {}),
        ("olmo2", {}),
        ("starcoder2", {}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 4.0}),
    ],
)
def test_families_outside_the_table_are_inferred(model_type: str, overrides: dict[str, Any]) -> None:
    model = tiny_model(model_type, **overrides)
    arch = find_arch(model)
    last = []
    arch.layer(model, 3).register_forward_hook(lambda *args: last.append(first(args[2])))
    with torch.no_grad():
        logits = model(IDS).logits
    torch.testing.assert_close(arch.logits(model, last[0]), logits)
    assert weight(arch.module(model, "mlp_out", 0)).shape[0] == D_MODEL


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "mamba"])
def test_what_cannot_be_inferred_is_named(model_type: str) -> None:
    with pytest.raises(KeditError, match=f"type '{model_type}'"):
        find_arch(tiny_model(model_type))


def test_a_wrong_row_is_found_when_the_model_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arch_module, "FAMILIES", {"gpt2": FAMILIES["llama"]})
    with pytest.raises(KeditError, match=r"GPT2LMHeadModel.*no attribute `model`"):
        find_arch(tiny_model("gpt2"))


def test_post_norm_opt_is_refused_for_its_missing_final_norm() -> None:
    with pytest.raises(KeditError, match="final_layer_norm"):
        find_arch(tiny_model("opt", do_layer_norm_before=False))


def test_square_weights_are_transposed_by_type() -> None:
    conv, linear, x = Conv1D(7, 7).to(DEVICE), nn.Linear(7, 7, bias=False).to(DEVICE), torch.randn(3, 7)
    torch.testing.assert_close(conv(x), x @ weight(conv).T + conv.bias)
    torch.testing.assert_close(linear(x), x @ weight(linear).T)
    with pytest.raises(KeditError, match="LayerNorm"):
        weight(nn.LayerNorm(7))


def test_paths_and_names() -> None:
    arch = Arch(FAMILIES["llama"], n_layers=6)
    assert arch.path("mlp_out", 5) == "model.layers.5.mlp.down_proj"
    assert get_args(ModuleName) == ("attn", "mlp", "mlp_out")


@pytest.mark.parametrize(
    ("layers", "message"),
    [([6], "no layer 6.*0 to 5"), ([-1], "no layer -1"), ([], "is empty"), ([2, 2], "twice")],
)
def test_check_layers(layers: list[int], message: str) -> None:
    with pytest.raises(KeditError, match=f"editor.layers.*{message}"):
        check_layers(Arch(FAMILIES["llama"], 6), layers, "editor.layers")
    check_layers(Arch(FAMILIES["llama"], 6), [0, 5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fingerprint_sees_every_element_and_every_order(dtype: torch.dtype) -> None:
    model = tiny_model("gpt2", n_layers=1, dtype=dtype)
    W = weight(find_arch(model).module(model, "mlp_out", 0))
    kept = W.clone()
    edits = [
        lambda: W[0, 0].add_(0.25),
        lambda: W[17, 41].add_(0.25),
        lambda: W[31, 79].neg_(),
        lambda: W.copy_(kept.flip(0)),
        lambda: W.copy_(kept.flip(1)),
        lambda: W[:2].copy_(kept[[1, 0]]),
    ]
    seen = {fingerprint(model)}
    with torch.no_grad():
        for edit in edits:
            edit()
            seen.add(fingerprint(model))
            W.copy_(kept)
            assert fingerprint(model) in seen
    assert len(seen) == 1 + len(edits)


def test_fingerprint_is_of_content_name_and_type_only() -> None:
    one = fingerprint(tiny_model("llama"))
    assert one == fingerprint(tiny_model("llama"))
    assert one != fingerprint(tiny_model("llama", seed=1))
    assert one != fingerprint(tiny_model("llama", dtype=torch.bfloat16))
    big = nn.Linear(CHUNK // 64 + 3, 129, bias=False).to(DEVICE)  # more than two chunks, and a remainder
    reordered = nn.Linear(CHUNK // 64 + 3, 129, bias=False).to(DEVICE)
    with torch.no_grad():
        reordered.weight.copy_(big.weight[torch.arange(128, -1, -1)])
    assert fingerprint(big) != fingerprint(reordered)
    threads, before = torch.get_num_threads(), fingerprint(big)
    torch.set_num_threads(3)
    try:
        assert fingerprint(big) == before
    finally:
        torch.set_num_threads(threads)


def test_fingerprint_of_known_bits() -> None:
    module = nn.Linear(3, 2, bias=False).to(DEVICE)
    with torch.no_grad():
        module.weight.copy_(torch.arange(6.0).view(2, 3))
    assert fingerprint(module) == "8a712a44a7dbb7d0cf2c"  # caches and deltas on disk carry such names


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fingerprint_is_the_same_on_a_gpu() -> None:
    model: Any = tiny_model("gpt2")
    before = fingerprint(model)
    assert fingerprint(model.cuda()) == before
