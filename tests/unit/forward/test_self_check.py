"""What a model is taken for is tried on it when it is bound: each break is named, and nothing of a check remains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from kedit.errors import KeditError
from kedit.forward.binding import wrap_lm
from kedit.forward.self_check import check_structure
from kedit.model.lm import LM
from tests.support.tiny_models import KINDS, tiny_lm, tiny_model, tiny_tokenizer


def bind(model: PreTrainedModel) -> LM:
    return wrap_lm(model, tiny_tokenizer("bpe"), "mine")


def patch(module: nn.Module, forward: Callable[..., Any]) -> None:
    """`module` answers `forward(its own forward, *args, **kwargs)`."""
    own = module.forward
    module.forward = lambda *args, **kwargs: forward(own, *args, **kwargs)


def llama(broken: Callable[[Any], None]) -> PreTrainedModel:
    model = tiny_model("llama")
    broken(model)
    return model


class Doubled(nn.Linear):
    """A linear map of twice its weight: what an edit of the weight writes is not the value wanted."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def doubled(model: Any) -> None:
    model.model.layers[2].mlp.down_proj.__class__ = Doubled


def twice(model: Any) -> None:
    patch(model.model.layers[1].mlp, lambda own, x: own(own(x)))


def flat_rows(model: Any) -> None:
    """The MLP has tokens first and rows second, as some attention kernels like it."""
    patch(model.model.layers[2].mlp, lambda own, x: own(x.transpose(0, 1).contiguous()).transpose(0, 1))


def later_scale(model: Any) -> None:
    def forward(own: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    patch(model, forward)


def offset_logits(model: Any) -> None:
    """What no probability depends on is no fault."""

    def forward(own: Any, *args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        output.logits = output.logits + 50.0
        return output

    patch(model, forward)


def looks_back(model: Any) -> None:
    """A layer that mixes tokens by other ways than its keys and values, as recurrent and convolutional ones do."""

    def forward(own: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        before = torch.cat([torch.zeros_like(hidden_states[:, :1]), hidden_states[:, :-1]], 1)
        return own(hidden_states + before, **kwargs)

    patch(model.model.layers[3], forward)


def looks_ahead(model: Any) -> None:
    """An encoder: a token sees those that follow it."""
    for layer in model.model.layers:
        patch(layer.self_attn, lambda own, **kwargs: own(**(kwargs | {"attention_mask": torch.zeros(1, 1, 1, 1)})))


def second_stream(model: Any) -> None:
    """Layers that are given what the layers below did: recorded without running, it is something else."""

    def forward(own: Any, *args: Any, **kwargs: Any) -> Any:
        first: list[torch.Tensor] = []
        layers = model.model.layers
        handle = layers[0].register_forward_hook(lambda _, args, out: first.append(out))
        pre = layers[3].register_forward_pre_hook(lambda _, args: (args[0] + 0.5 * first[-1], *args[1:]))
        try:
            return own(*args, **kwargs)
        finally:
            handle.remove()
            pre.remove()

    patch(model.model, forward)


def counts_rows(model: Any) -> None:
    """A layer that is given the number of rows as a number."""

    def forward(own: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        assert kwargs.pop("n", len(hidden_states)) == len(hidden_states)
        return own(hidden_states, **kwargs)

    layer = model.model.layers[2]
    patch(layer, forward)
    layer.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | {"n": len(args[0])}), with_kwargs=True)


def heads_first(model: Any) -> None:
    """A layer whose argument has rows and heads in one axis, the heads first."""

    def forward(own: Any, hidden_states: torch.Tensor, scale: torch.Tensor, **kwargs: Any) -> Any:
        return own(hidden_states * scale.view(4, -1)[1][:, None, None], **kwargs)

    def pre(_: nn.Module, args: tuple[torch.Tensor], kwargs: dict[str, Any]) -> Any:
        return args, {"scale": torch.arange(len(args[0])).add(1.0).repeat(4)} | kwargs

    layer = model.model.layers[2]
    patch(layer, forward)
    layer.register_forward_pre_hook(pre, with_kwargs=True)


def cut_off(model: Any) -> None:
    patch(model.model.layers[2].mlp, lambda own, x: 0 * own(x))


def not_a_number(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")


def crash(model: Any) -> None:
    patch(model.model.layers[0].mlp, lambda own, x: own(x[:, :, :3]))


BROKEN = [
    (doubled, r"the output of model\.layers\.2\.mlp\.down_proj is not W k \+ b"),
    (twice, r"model\.layers\.1\.mlp\.down_proj runs 2 times in one pass"),
    (flat_rows, "replay .* than a full pass"),
    (later_scale, r"logits computed from the last layer's output \(model\.norm, then lm_head\) are not the model's"),
    (looks_back, "replay .* is not equal to a full pass"),
    (looks_ahead, "replay .* meets other keys or values than a full pass"),
    (second_stream, "replay .* is not equal to a full pass"),
    (counts_rows, "replay .* fails .*a int, changes with the number of rows"),
    (heads_first, "replay .* of some of its rows is not equal to a full pass"),
    (cut_off, "its logits do not depend on"),
    (not_a_number, "are not finite"),
    (crash, "a pass over three short rows fails .RuntimeError"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN, ids=lambda x: x.__name__ if callable(x) else "")
def test_a_model_that_is_something_else_is_refused(broken: Callable[[Any], None], message: str) -> None:
    with pytest.raises(KeditError, match=f"mine: kedit does not edit this model of type 'llama': .*{message}") as error:
        bind(llama(broken))
    assert str(error.value).count("\n") == 0
    assert len(str(error.value)) < 500


def test_an_offset_of_all_logits_is_no_fault() -> None:
    bind(llama(offset_logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*KINDS, "bloom", "falcon", "nanochat"])
def test_rounding_is_no_fault(kind: str, dtype: torch.dtype) -> None:
    more: dict[str, Any] = {"num_key_value_heads": 2} if kind == "nanochat" else {}
    tiny_lm(kind, dtype=dtype, **more)


@pytest.mark.parametrize("heads", [2, 3, 4])
def test_as_many_rows_as_heads(heads: int) -> None:
    """The check has three rows, and three of the passes one more or less."""
    tiny_lm("mpt", d_model=24, n_heads=heads, n_layers=2, expansion_ratio=2)
    tiny_lm("bloom", d_model=24, n_heads=heads, n_layers=2)
    tiny_lm("falcon", d_model=24, n_heads=heads, n_layers=2, alibi=True, bias=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "bloom"])
def test_nothing_of_a_check_remains(kind: str) -> None:
    lm = tiny_lm(kind)
    bits = {name: tensor.clone() for name, tensor in [*lm.model.state_dict().items(), *lm.model.named_buffers()]}
    ids = torch.tensor([lm.encode("The capital of France is")])
    logits, before, known = lm.model(input_ids=ids).logits, torch.random.get_rng_state(), set(vars(lm))
    lm.model.train()
    check_structure(lm)
    assert all(module.training for module in lm.model.modules())
    lm.model.eval()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert set(vars(lm)) == known
    assert lm.packs is None
    for name, tensor in [*lm.model.state_dict().items(), *lm.model.named_buffers()]:
        assert torch.equal(bits[name], tensor)
    for module in lm.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())
    assert torch.equal(lm.model(input_ids=ids).logits, logits)


def test_a_short_context_and_few_tokens_are_enough() -> None:
    tiny_lm("gpt2", context=5)
    tiny_lm("opt", context=5)


def test_a_model_without_weights_is_not_tried() -> None:
    with torch.device("meta"):
        model = tiny_model("llama", device="meta")
    assert bind(model).device.type == "meta"


def test_out_of_memory_is_no_verdict() -> None:
    def full(model: Any) -> None:
        def forward(own: Any, *args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        patch(model.model, forward)

    with pytest.raises(torch.OutOfMemoryError):
        bind(llama(full))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*KINDS, "bloom", "mpt", "falcon"])
def test_on_a_gpu(kind: str, dtype: torch.dtype) -> None:
    more: dict[str, Any] = {"expansion_ratio": 2, "d_model": 32, "n_heads": 4, "n_layers": 4} if kind == "mpt" else {}
    model: Any = tiny_model(kind, dtype=dtype, **more)
    bind(model.cuda())
