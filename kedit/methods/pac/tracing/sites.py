"""Which matrices PAC traces: the feed-forward matrices of every layer, and where their nodes lie in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kedit.errors import KeditError
from kedit.model.architecture import weight
from kedit.model.lm import LM

Kind = Literal["key", "value", "gate"]


@dataclass(frozen=True)
class Site:
    """One feed-forward matrix and its nodes (specs/pac.md 1).

    Node i of a key or gate matrix is row `offset + i` of the stored `[d_out, d_in]`, node j of a value matrix its
    column j (`kedit.model.architecture.weight` gives that view, also of a Conv1D). Key, value and gate i are the same
    neuron.

    Attributes:
        path: The module's path, e.g. `model.layers.5.mlp.up_proj`. The halves of a fused matrix share it.
        layer: Index of its decoder layer.
        kind: `key` and `gate` read the residual stream, `value` writes it.
        axis: 0 where nodes are rows, 1 where they are columns.
        width: Number of nodes M, the feed-forward width.
        depth: Numbers D in a node, the width of the residual stream.
        offset: First row of the nodes; not 0 only for the keys in a fused gate and key matrix.
        has_bias: Whether the module adds a bias (never scored).
    """

    path: str
    layer: int
    kind: Kind
    axis: Literal[0, 1]
    width: int
    depth: int
    offset: int = 0
    has_bias: bool = False

    @property
    def rows(self) -> slice:
        """The entries of the module's output (of its input for a value matrix) that are this site's nodes."""
        return slice(self.offset, self.offset + self.width)


def sites(lm: LM, include_gate: bool = False) -> list[Site]:
    """The key and value matrices of all layers, from the lowest layer up.

    Args:
        lm: The model.
        include_gate: The gate matrices too, before the keys of their layer (the published method leaves them out).

    Raises:
        KeditError: A feed-forward block of unknown shape, or `include_gate` where there is no gate.
    """
    found: list[Site] = []
    for layer in range(lm.arch.n_layers):
        found += _of_layer(lm, layer, include_gate)
    return found


def _of_layer(lm: LM, layer: int, include_gate: bool) -> list[Site]:
    family, prefix = lm.arch.family, f"{lm.arch.family.layers}.{layer}"
    value_path = f"{prefix}.{family.mlp_out}"
    value = lm.model.get_submodule(value_path)
    depth, width = weight(value).shape

    def readers(name: str, kinds: tuple[Kind, ...]) -> list[Site]:
        module = lm.model.get_submodule(f"{prefix}.{name}")
        if weight(module).shape != (len(kinds) * width, depth):
            raise KeditError(
                f"{lm.name}: {prefix}.{name} is {tuple(weight(module).shape)}, not [{len(kinds) * width}, {depth}]: "
                "kedit cannot tell which of its rows are keys"
            )
        bias = module.bias is not None
        return [Site(f"{prefix}.{name}", layer, kind, 0, width, depth, i * width, bias) for i, kind in enumerate(kinds)]

    *gates, key = family.mlp_in
    fused = not gates and weight(lm.model.get_submodule(f"{prefix}.{key}")).shape[0] == 2 * width
    read = readers(key, ("gate", "key") if fused else ("key",))
    for name in gates:
        read = readers(name, ("gate",)) + read
    if include_gate and len(read) == 1:
        raise KeditError("model.trace.include_gate: the feed-forward blocks of this model have no gate")
    if not include_gate:
        read = [site for site in read if site.kind == "key"]
    return [*read, Site(value_path, layer, "value", 1, width, depth, 0, value.bias is not None)]
