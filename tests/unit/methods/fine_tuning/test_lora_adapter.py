"""LoRA's adapter: new it changes nothing, the model has it for a forward pass alone, its factors are what it does."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.methods.fine_tuning.lora_adapter import Adapter, Kind, change_since, first_of
from kedit.methods.fine_tuning.lora_targets import query_and_value, target_paths
from kedit.model.architecture import weight
from kedit.model.lm import LM
from tests.support.pac_cases import small

KINDS: tuple[Kind, ...] = ("lora", "adalora")
MODELS = ("llama", "gpt2", "gptj")


def adapter_of(lm: LM, kind: Kind = "lora", names: list[str] | None = None, **more: float) -> Adapter:
    options = {"rank": 3, "alpha": 8.0, "dropout": 0.0, "seed": 1} | more
    return Adapter(lm, target_paths(lm, names or query_and_value(lm)), kind, **options)  # type: ignore[arg-type]


def moved(adapter: Adapter, seed: int = 0) -> Adapter:
    """The same, as if it were trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return adapter


@torch.no_grad()
def logits(lm: LM) -> Tensor:
    return lm.model(input_ids=torch.tensor([lm.encode("The capital of France is")])).logits.float()


def tree(lm: LM) -> dict[str, tuple[int, bool]]:
    return {path: (id(module), module.training) for path, module in lm.model.named_modules()}


@pytest.mark.parametrize(("kind", "model"), product(KINDS, MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_adapter_leaves_every_bit_of_the_logits(kind: Kind, model: str, dtype: torch.dtype) -> None:
    lm = small(model, dtype=dtype)
    plain, adapter = logits(lm), adapter_of(lm, kind, dropout=0.1)
    for seed in (None, 7):
        with adapter.installed(seed):
            assert torch.equal(logits(lm), plain)
    assert not any(part.dense().any() for part in adapter.factors().values())


@pytest.mark.parametrize(("kind", "model"), product(KINDS, MODELS))
def test_its_factors_do_what_it_does(kind: Kind, model: str) -> None:
    lm = small(model)
    plain, adapter = logits(lm), moved(adapter_of(lm, kind, dropout=0.1))
    with adapter.installed():
        own = logits(lm)
    with edited(lm.model, change_since({}, adapter.factors())):
        found = logits(lm)
    assert (own - plain).abs().max() > 0.1
    torch.testing.assert_close(found, own, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(lm), plain)


@pytest.mark.parametrize(("kind", "model"), product(KINDS, MODELS))
def test_merged_by_peft_and_unmerged(kind: Kind, model: str) -> None:
    """peft's weights are those of the delta; peft's way back ends within rounding, kedit's with the same bits."""
    lm, twin = small(model), small(model)
    adapter = moved(adapter_of(twin, kind))
    delta = change_since({}, adapter.factors())
    old = {path: weight(lm.model.get_submodule(path)).clone() for path in delta.paths}
    layers = adapter._layers
    with edited(lm.model, delta):
        for path, layer in layers.items():
            layer.merge()
            merged = weight(twin.model.get_submodule(path))
            assert not torch.equal(merged, old[path])
            torch.testing.assert_close(weight(lm.model.get_submodule(path)), merged, atol=1e-6, rtol=1e-6)
    for path, layer in layers.items():
        layer.unmerge()
        torch.testing.assert_close(weight(twin.model.get_submodule(path)), old[path], atol=1e-6, rtol=1e-6)
        assert torch.equal(weight(lm.model.get_submodule(path)), old[path])


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_its_own_again(kind: Kind) -> None:
    """Also after an error: its paths stay valid, and torch's generators stand where they were."""
    lm = small("gpt2")
    before, rng = tree(lm), torch.get_rng_state()
    adapter = adapter_of(lm, kind, dropout=0.1)
    assert tree(lm) == before
    with adapter.installed():
        assert tree(lm) != before
    with pytest.raises(TypeError), adapter.installed(3):
        lm.model(input_ids="no ids")
    assert tree(lm) == before
    assert not hasattr(lm.model, "peft_config")
    assert not any("peft" in type(module).__module__ for module in lm.model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(("kind", "dtype"), product(KINDS, [torch.float32, torch.bfloat16]))
def test_gradients_are_the_adapters_alone(kind: Kind, dtype: torch.dtype) -> None:
    lm = small("llama", dtype=dtype)
    adapter = moved(adapter_of(lm, kind, dropout=0.1))
    with adapter.installed(2):
        out = lm.model(input_ids=torch.tensor([lm.encode("The capital of France is")])).logits
    out.float().logsumexp(-1).sum().backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in adapter.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in adapter.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())


def test_dropout_depends_on_its_seed_alone() -> None:
    lm = small("llama")
    adapter = moved(adapter_of(lm, dropout=0.5))

    def with_seed(seed: int | None) -> Tensor:
        with adapter.installed(seed):
            return logits(lm)

    first = with_seed(5)
    torch.rand(3)
    assert torch.equal(with_seed(5), first)
    assert not torch.equal(with_seed(6), first)
    assert torch.equal(with_seed(None), with_seed(None))


@pytest.mark.parametrize("kind", KINDS)
def test_adalora_is_kept_orthogonal_as_by_peft(kind: Kind) -> None:
    from peft import AdaLoraConfig, get_peft_model

    lm, ids = small("llama"), torch.tensor([[5, 6, 7]])
    adapter = moved(adapter_of(lm, kind))
    penalty = adapter.penalty()
    if kind == "lora":
        assert penalty is None
        return
    assert penalty is not None
    plain = lm.model(input_ids=ids, labels=ids).loss
    shared: dict[str, Any] = {"lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    theirs = get_peft_model(small("llama").model, AdaLoraConfig(init_r=3, target_r=3, total_step=9, **shared))
    fill(theirs, adapter, but="lora_E")  # E stays 0: the loss is that of the model
    torch.testing.assert_close(theirs(input_ids=ids, labels=ids).loss - plain, penalty)


@torch.no_grad()
def fill(theirs: nn.Module, adapter: Adapter, but: str = "none") -> None:
    """Gives a model of peft's the parameters of an adapter."""
    for name, parameter in theirs.named_parameters():
        for path, own in adapter.state().items():
            for key, value in own.items():
                if f"{path}.{key.replace('kedit', 'default')}" in name and but not in name:
                    parameter.copy_(value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_is_taken_back(kind: Kind) -> None:
    lm = small("llama")
    adapter, other = moved(adapter_of(lm, kind)), adapter_of(lm, kind, seed=2)
    other.load(adapter.state())
    pairs = zip(adapter.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    with pytest.raises(ValueError, match="lora_A"):
        adapter_of(lm, kind, rank=2).load(adapter.state())
    with pytest.raises(KeyError):
        adapter_of(lm, kind, names=["o_proj"]).load(adapter.state())


def test_changes_since_telescope() -> None:
    lm = small("llama")
    adapter = adapter_of(lm)
    parts, deltas = {}, []
    for seed in range(3):
        now = moved(adapter, seed).factors()
        deltas.append(change_since(parts, now))
        parts = now
    assert [d.of_kind(Factors)[d.paths[0]].rank for d in deltas] == [3, 6, 6]
    total, last = Delta.concat(deltas), first_of(deltas[-1], 3)
    for path, part in last.of_kind(Factors).items():
        assert torch.equal(part.left, parts[path].left)
        assert torch.equal(part.right, parts[path].right)
        torch.testing.assert_close(total.of_kind(Factors)[path].dense(), part.dense(), atol=1e-5, rtol=1e-5)
