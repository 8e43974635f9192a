"""Where things are in a decoder: a row of `kedit.model.families` bound to one model, or one that is inferred.

A decoder without a row is read off its module tree by `infer`.
`Arch` binds a row to one model and only looks up. Nothing here loads, runs or changes a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kedit.errors import KeditError
from kedit.model.families import FAMILIES, Family
from kedit.model.full_precision import INSTEAD, unfit

ModuleName = Literal["attn", "mlp", "mlp_out"]


# What some families do to head(norm(h)) before they call it logits: config key -> how (see `Arch.logits`).
_LOGIT_SOFTCAP = "final_logit_softcapping"  # gemma2, gemma3: cap * tanh(logits / cap)
_LOGIT_FACTOR = "logit_scale"  # cohere, cohere2: logits * factor
_LOGIT_DIVISOR = "logits_scaling"  # granite: logits / divisor


@dataclass(frozen=True)
class Arch:
    """A `Family` bound to a model of `n_layers` layers. Holds no reference to the model: only looks up."""

    family: Family
    n_layers: int

    def layer(self, model: nn.Module, i: int) -> nn.Module:
        """Decoder layer `i`, whose input and output are the residual stream `[B, T, d_model]`."""
        return model.get_submodule(f"{self.family.layers}.{i}")

    def path(self, name: ModuleName, i: int) -> str:
        """Full path of a module of layer `i`, e.g. `model.layers.5.mlp.down_proj`."""
        return f"{self.family.layers}.{i}.{getattr(self.family, name)}"

    def module(self, model: nn.Module, name: ModuleName, i: int) -> nn.Module:
        """The module that `path(name, i)` names."""
        return model.get_submodule(self.path(name, i))

    def norm(self, model: nn.Module) -> nn.Module:
        """The final norm."""
        return model.get_submodule(self.family.norm)

    def head(self, model: nn.Module) -> nn.Module:
        """The output embedding."""
        return model.get_submodule(self.family.head)

    def embed(self, model: nn.Module) -> nn.Module:
        """The token embedding (its output may still be scaled by the model, as in Gemma)."""
        return model.get_submodule(self.family.embed)

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Logits of the residual stream after the last layer, equal to what the model's own forward gives.

        Args:
            model: The bound model.
            hidden: Output of the last decoder layer, before the final norm, `[..., d_model]`.

        Returns:
            `[..., vocab]`, in the model's dtype.
        """
        out = self.norm(model)(hidden)
        for path in (*self.family.between, self.family.head):
            out = model.get_submodule(path)(out)
        config = model.config.get_text_config()
        cap = getattr(config, _LOGIT_SOFTCAP, None)
        factor, divisor = getattr(config, _LOGIT_FACTOR, None), getattr(config, _LOGIT_DIVISOR, None)
        if factor is not None:
            out = out * factor
        if divisor is not None:
            out = out / divisor
        if cap is not None:
            out = (out / cap).tanh() * cap
        return out


def find_arch(model: PreTrainedModel) -> Arch:
    """Bind the row of the model's `model_type`, or an inferred one, after checking that every path exists.

    Raises:
        KeditError: Not a decoder that kedit understands.
    """
    family = FAMILIES.get(model.config.model_type) or infer(model)
    try:
        layers = model.get_submodule(family.layers)
        for path in (family.embed, family.norm, *family.between, family.head):
            model.get_submodule(path)
    except AttributeError as error:
        raise _unknown(model, f"{error}") from None
    for i, layer in enumerate(layers.children()):
        for path in (family.attn, family.mlp, family.mlp_out, *family.mlp_in):
            try:
                layer.get_submodule(path)
            except AttributeError:
                why = f"layer {i} has no {path}, which others have (a mixture of experts, or a hybrid?)"
                raise _unknown(model, why) from None
    return Arch(family, n_layers=len(list(layers.children())))


def weight(module: nn.Module) -> Tensor:
    """The matrix W of `v = W k + b` as a view `[d_out, d_in]` of the module's own parameter.

    The type of the module decides whether it is stored transposed (HF `Conv1D` is), never its shape: a
    square one would be ambiguous (specs/baselines.md 1.0).

    Raises:
        KeditError: No linear map, or one whose weight is quantised.
    """
    if not isinstance(module, (nn.Linear, Conv1D)):
        raise KeditError(f"{type(module).__name__} is not a linear map that kedit can edit (Linear or Conv1D)")
    if (why := unfit(module)) is not None:
        raise KeditError(f"{type(module).__name__} cannot be edited: {why}. {INSTEAD}")
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def check_maps(arch: Arch, model: nn.Module, name: str) -> None:
    """Refuse a model of whose feed-forward blocks one has something else than linear maps that can be edited.

    Raises:
        KeditError: Names the model and the module.
    """
    for layer in range(arch.n_layers):
        for part in (arch.family.mlp_out, *arch.family.mlp_in):
            path = f"{arch.family.layers}.{layer}.{part}"
            try:
                weight(model.get_submodule(path))
            except KeditError as error:
                raise KeditError(f"{name}: {path}: {error}") from None


def check_layers(arch: Arch, layers: Sequence[int], option: str = "layers") -> None:
    """Refuse an empty, repeated or non-existing layer in an option that names layers.

    Raises:
        KeditError: Names the option, the layer and the valid range.
    """
    valid = f"this model has layers 0 to {arch.n_layers - 1}"
    if not layers:
        raise KeditError(f"{option} is empty; {valid}")
    for layer in layers:
        if not 0 <= layer < arch.n_layers:
            raise KeditError(f"{option}: there is no layer {layer}; {valid}")
    if len(set(layers)) < len(layers):
        raise KeditError(f"{option} names a layer twice: {list(layers)}")


def infer(model: PreTrainedModel) -> Family:
    """Read the paths off the module tree of a decoder that the table does not know.

    Layers are the longest `ModuleList` beside the token embedding. In a layer, the attention block is the child with
    linear maps and "att" in its name; among the other linear maps the one that writes `d_model` from a different width
    is `mlp_out`, and those that read `d_model` are `mlp_in`.

    Raises:
        KeditError: The tree does not look like that (mixtures of experts, encoder-decoders, ...).
    """
    names = {id(module): name for name, module in model.named_modules()}
    d_model = model.config.get_text_config().hidden_size
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise _unknown(model, "it has no list of decoder layers")
    head, embed = model.get_output_embeddings(), model.get_input_embeddings()
    beside = [(n, m) for n, m in lists if names.get(id(embed), "").startswith(n.rpartition(".")[0])]
    layers_path, layers = max(beside or lists, key=lambda item: len(item[1]))
    layer = layers[0]

    attn = [name for name, child in layer.named_children() if "att" in name and any(_linear_maps(child))]
    if len(attn) != 1:
        more = "a decoder of an encoder?" if attn else "recurrent, a hybrid, or of another layout?"
        raise _unknown(model, f"a layer has {len(attn)} attention blocks instead of one ({more})")
    outside = [(n, m) for n, m in layer.named_modules() if not f"{n}.".startswith(f"{attn[0]}.")]
    if any(p.dim() > 2 for _, m in outside for p in m.parameters(recurse=False)):
        raise _unknown(model, "its feed-forward block is no pair of linear maps (a mixture of experts?)")
    maps = [(n, *weight(m).shape) for n, m in outside if isinstance(m, (nn.Linear, Conv1D))]
    writers = [(n, d_in) for n, d_out, d_in in maps if d_out == d_model and d_in != d_model]
    if len(writers) != 1:
        raise _unknown(model, f"a layer has {len(writers)} linear maps that could be the MLP's output")
    mlp_out, d_key = writers[0]
    readers = [n for n, d_out, d_in in maps if d_in == d_model and d_out in (d_key, 2 * d_key)]
    readers.sort(key=lambda name: "gate" not in name)  # stable: gate first

    root = model.get_submodule(layers_path.rpartition(".")[0])
    norms = [child for child in root.children() if "norm" in type(child).__name__.lower()]
    if head is None or embed is None or not norms or not readers:
        raise _unknown(model, "its head, embedding, final norm or MLP input is missing")
    return Family(
        layers=layers_path,
        attn=attn[0],
        mlp=mlp_out.rpartition(".")[0] or mlp_out,
        mlp_out=mlp_out,
        mlp_in=tuple(readers),
        embed=names[id(embed)],
        norm=names[id(norms[-1])],
        head=names[id(head)],
    )


def _linear_maps(module: nn.Module) -> Iterator[nn.Module]:
    return (m for m in module.modules() if isinstance(m, (nn.Linear, Conv1D)))


def _unknown(model: PreTrainedModel, why: str) -> KeditError:
    kind, name = model.config.model_type, model.config.name_or_path or type(model).__name__
    return KeditError(f"{name}: kedit cannot find its way in a model of type {kind!r}: {why}. See docs/models.md")
