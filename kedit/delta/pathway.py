"""REP's pathway: an adapter on the keys of one linear map, k_hat = k + 1[g(k) > tau] f(k) (REP section 4.3).

A `Pathway` is one edit's adapter at one layer, frozen. A `PathwayRouter` holds those of many edits and routes every
token to the one whose gate is open widest, or to none; a token that no gate opens for keeps its key bit for bit.
How the tensors are trained is in `kedit.methods.rep`, where they are put into a model in `kedit.delta.pathways`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kedit.delta import waits
from kedit.delta.gate_state import GateContext, GateHistory
from kedit.delta.pathway_moves import QueuedMoves, move_open
from kedit.errors import KeditError

CHUNK = 2**25  # numbers in the gates' hidden activations at once
GROWTH = 0.7  # how fast a bank's bar rises with the number of its gates (docs/experiments/rep_smollm2.md)
LENT = 0.5  # what a gate's widest opening so far is worth at later tokens, at most its hysteresis


@dataclass(frozen=True)
class Pathway:
    """One edit's adapter on keys of width D. All tensors are float32.

    f(k) = up (down k) + offset. The gate's logit is read . GELU(hidden k + hidden_bias) + bias, or
    read . k / ||k|| + bias where there is no hidden layer; without `read` it is open for every token.

    Attributes:
        down: `[r, D]`.
        up: `[D, r]`.
        offset: `[D]`, or None for a linear f.
        hidden: `[h, D]`, or None for a linear gate.
        hidden_bias: `[h]`, with `hidden`.
        read: `[h]`, or `[D]` for a linear gate; None: no gate.
        bias: `[]`, with `read`.
        threshold: `[]`, logit above which the gate is open: log(tau / (1 - tau)).
        hysteresis: `[]`, how far below its threshold the gate opens at most after it has opened in the same text.

    Raises:
        ValueError: The parts do not fit together.
    """

    down: Tensor
    up: Tensor
    offset: Tensor | None = None
    hidden: Tensor | None = None
    hidden_bias: Tensor | None = None
    read: Tensor | None = None
    bias: Tensor | None = None
    threshold: Tensor | None = None
    hysteresis: Tensor | None = None

    def __post_init__(self) -> None:
        if self.down.ndim != 2:
            raise ValueError(f"down of a pathway is {tuple(self.down.shape)}, not [r, D]")
        r, d = self.down.shape
        h = None if self.hidden is None else len(self.hidden) if self.hidden.ndim else 0
        wanted = {"up": (d, r), "offset": (d,), "hidden": (h, d), "hidden_bias": (h,)}
        wanted |= {"read": (d if h is None else h,), "bias": (), "threshold": (), "hysteresis": ()}
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name} of a pathway is {tuple(tensor.shape)}, not {shape}")

    @property
    def whole(self) -> bool:
        """Whether there is all of a gate or none of it; one that is being trained has no threshold yet."""
        gate = [tensor is not None for tensor in (self.read, self.bias, self.threshold)]
        layer = [tensor is not None for tensor in (self.hidden, self.hidden_bias)]
        return (
            any(gate) == all(gate)
            and any(layer) == all(layer)
            and (all(gate) or (not any(layer) and self.hysteresis is None))
        )

    @property
    def d_in(self) -> int:
        """Width of the keys."""
        return self.down.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by name: what a file holds."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device: torch.device | str) -> Pathway:
        """The same adapter on `device`."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def margin(self, keys: Tensor) -> Tensor:
        """How far the gate is open, logit minus threshold: `[n, D]` -> `[n]`; infinite without a gate."""
        if self.read is None or self.bias is None or self.threshold is None:
            return keys.new_full((len(keys),), float("inf"))
        if self.hidden is None:
            logit = F.normalize(keys, dim=-1) @ self.read
        else:
            logit = F.gelu(F.linear(keys, self.hidden, self.hidden_bias)) @ self.read
        return logit + self.bias - self.threshold

    def move(self, keys: Tensor) -> Tensor:
        """f(k) for every key: `[n, D]` -> `[n, D]`."""
        moved = (keys @ self.down.T) @ self.up.T
        return moved if self.offset is None else moved + self.offset


class PathwayRouter:
    """Pathways of many edits at one module; at most one acts on a token, the one that is open widest.

    Every gate is a chance of a false alarm, so the bar rises with their number J: a gate acts where its margin is
    above `bar` = GROWTH log J, which is 0 for a bank of one. A gate with a hysteresis that did so in a text is
    lent LENT of its widest opening there, at most the hysteresis, at every later token: a name that is recognised
    beyond doubt lends much, a false alarm little. GateContext that are read in many passes are followed by
    `GateHistory`.

    Args:
        pathways: In order of their edits; all of one width.
    """

    def __init__(self, pathways: Sequence[Pathway]) -> None:
        self.pathways = tuple(pathways)
        self.bar = GROWTH * math.log(max(1, len(self.pathways)))
        self._linear, self._hidden = _linear_gates(self.pathways), _hidden_gates(self.pathways)
        self._again = _hysteresis(self.pathways)
        self._queued: QueuedMoves | None = None

    def margins(self, keys: Tensor) -> Tensor:
        """Margin of every gate at every key: `[n, D]` float32 -> `[n, J]`."""
        if self._linear is not None:
            read, shift = self._linear
            return F.normalize(keys, dim=-1) @ read.T + shift
        if self._hidden is None:
            return torch.stack([pathway.margin(keys) for pathway in self.pathways], 1)
        hidden, hidden_bias, read, shift = self._hidden
        j, h = read.shape
        parts = []
        for some in keys.split(max(1, CHUNK // (j * h))):
            inner = F.gelu(F.linear(some, hidden, hidden_bias)).view(-1, j, h)
            parts.append((inner * read).sum(-1) + shift)
        return torch.cat(parts)

    def __call__(self, keys: Tensor, texts: GateContext | None = None) -> Tensor:
        """k_hat for keys `[n, D]`, each by itself, or `[..., T, D]`, the tokens of texts in their order.

        Any float dtype; `keys` itself where no gate is open.

        Args:
            keys: Native keys.
            texts: What is known of the texts of keys `[n, T, D]`; brought up to date.
        """
        flat, wanted = keys.reshape(-1, keys.shape[-1]), self.wanted(keys, texts)
        if not waits.waiting_costs(keys.device):
            best, winner = wanted.max(-1)
            result = move_open(flat, best, winner, self.bar, self.pathways)
            return keys if result is flat else result.view(keys.shape)
        best, winner = wanted.max(-1) if len(self.pathways) > 1 else (wanted[:, 0], None)
        self._queued = self._queued or QueuedMoves(self.pathways)
        return self._queued(flat, best, winner, self.bar).view(keys.shape)

    def wanted(self, keys: Tensor, texts: GateContext | None = None) -> Tensor:
        """How far every gate opens for every token, as `__call__` compares with `bar`: `[n, J]`, n tokens in all."""
        margins = self.margins(keys.reshape(-1, keys.shape[-1]).float())
        if self._again is None or keys.ndim < 3:
            return margins
        over = margins.view(*keys.shape[:-1], -1) - self.bar
        return margins + lent(over, self._again, texts or GateContext()).view(margins.shape)

    @property
    def remembers(self) -> bool:
        """Whether some gate has a hysteresis, so that it matters which tokens are of the same text."""
        return self._again is not None

    def install(
        self, module: nn.Module, openings: GateHistory | None = None, block: nn.Module | None = None
    ) -> list[RemovableHandle]:
        """Puts the bank before `module`; removing the handles takes it away again.

        Args:
            module: A linear map whose inputs are the keys.
            openings: Follows the model; None: every pass is given whole texts without padding on their left.
            block: The layer around `module`, given `[batch, T, d_model]`; for models that flatten what `module` is
                given, where a gate has a hysteresis.

        Raises:
            KeditError: When the model runs: a gate has a hysteresis, and nothing says which tokens are of one text.
        """
        if not self.remembers:
            return [module.register_forward_pre_hook(lambda _, args: (self(args[0]), *args[1:]))]
        given: list[torch.Size] = []  # [batch, T] of the block's last pass

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            given[:] = [hidden.shape[:2]]

        def move(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            keys = args[0] if args[0].ndim == 3 or not given else args[0].view(*given[0], -1)
            if keys.ndim != 3:
                raise KeditError(
                    "model.adapter.hysteresis: this model's feed-forward blocks are not given whole texts; use 0"
                )
            texts = openings.texts(module, keys.shape[:2]) if openings is not None else GateContext()
            moved = self(keys, texts).view(args[0].shape)
            if openings is not None and texts.widest is not None:
                openings.note(module, texts.widest)
            return (moved, *args[1:])

        handles = [module.register_forward_pre_hook(move)]
        return handles if block is None else [*handles, block.register_forward_pre_hook(enter, with_kwargs=True)]


def lent(over: Tensor, again: Tensor, texts: GateContext) -> Tensor:
    """What earlier openings of the same text lend to each token.

    Args:
        over: How far above its bar every gate is, `[..., T, J]`.
        again: Hysteresis of the gates, `[J]`, or `[..., 1, J]` where texts have gates of their own.
        texts: What is known of the texts; sees them all.

    Returns:
        `[..., T, J]`.
    """
    over = over.clamp(min=0.0)
    if texts.real is not None:
        over = over * texts.real[..., None]
    before = torch.zeros_like(over[..., :1, :]) if texts.widest is None else texts.widest[..., None, :]
    widest = torch.cat([before, over], -2).cummax(-2).values  # [..., 1 + T, J]
    texts.widen(widest[..., -1, :])
    return (LENT * widest[..., :-1, :]).minimum(again)


def _hysteresis(pathways: Sequence[Pathway]) -> Tensor | None:
    """That of every gate `[J]`, 0 where it has none; None where none has."""
    given = [p.hysteresis for p in pathways if p.hysteresis is not None]
    if not given:
        return None
    zero = torch.zeros_like(given[0])
    return torch.stack([zero if p.hysteresis is None else p.hysteresis for p in pathways])


def _linear_gates(pathways: Sequence[Pathway]) -> tuple[Tensor, Tensor] | None:
    """`read` of linear gates side by side `[J, D]`, and bias minus threshold `[J]`; None where some gate is another."""
    read, bias, threshold = [], [], []
    for p in pathways:
        if p.hidden is not None or p.read is None or p.bias is None or p.threshold is None:
            return None
        read.append(p.read)
        bias.append(p.bias)
        threshold.append(p.threshold)
    return torch.stack(read), torch.stack(bias) - torch.stack(threshold)


def _hidden_gates(pathways: Sequence[Pathway]) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Hidden layers side by side, for gates that all have one of the same width; None for others."""
    hidden, hidden_bias, read, bias, threshold = [], [], [], [], []
    for p in pathways:
        if p.hidden is None or p.hidden_bias is None or p.read is None or p.bias is None or p.threshold is None:
            return None
        hidden.append(p.hidden)
        hidden_bias.append(p.hidden_bias)
        read.append(p.read)
        bias.append(p.bias)
        threshold.append(p.threshold)
    if len({tensor.shape for tensor in hidden}) != 1:
        return None
    shift = torch.stack(bias) - torch.stack(threshold)
    return torch.cat(hidden), torch.cat(hidden_bias), torch.stack(read), shift
