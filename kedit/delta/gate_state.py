"""How wide gates have opened in the texts that a model is reading, over all passes that read them.

With a key-value cache a text is read in many passes: what its first pass saw is kept with the cache, so that a token
is judged alike whether its text is read at once or token by token. Padding opens nothing. What the openings are
for is in `kedit.delta.pathway`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kedit.errors import KeditError

_NAME = "kedit_openings"  # attribute of a cache: who follows the model, and id of a module -> `[batch, J]`
_NUMBERS = count()


@dataclass
class GateContext:
    """Rows of a pass, as a bank needs them.

    Attributes:
        real: Which tokens are not padding, `[n, T]` bool; None: all.
        widest: How far above its bar each gate has been in each text, at least 0, `[n, J]`; None: nothing was read.
    """

    real: Tensor | None = None
    widest: Tensor | None = None

    def widen(self, widest: Tensor) -> None:
        """Takes up how wide the gates have been with what was read just now, `[n, J]`."""
        self.widest = widest

    def rows(self, index: Tensor, gates: int) -> GateContext:
        """Those of some rows, `index: [m]` int64, and of the first gates."""
        real, widest = (None if t is None else t[index.to(t.device)] for t in (self.real, self.widest))
        return GateContext(real, None if widest is None else widest[:, :gates])


@dataclass
class _Pass:
    """A forward pass of the model: its tokens that are no padding, the cache it was given, what its gates have seen."""

    real: Tensor | None
    cache: Any
    seen: dict[tuple[int, int], Tensor] = field(default_factory=dict)


class GateHistory:
    """Follows the forward passes of `model`, its own ones: layers run by themselves read texts that end there.

    Beams of a beam search may inherit the openings of another beam of the same prompt.

    Args:
        model: The model whose `forward` takes the token ids; what it is given by name is looked at.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._number = next(_NUMBERS)
        self._pass: _Pass | None = None

    def install(self) -> list[RemovableHandle]:
        """Hooks that follow the model until the handles are removed."""
        return [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.model.register_forward_hook(self._end, with_kwargs=True, always_call=True),
        ]

    def texts(self, module: nn.Module, tokens: Sequence[int]) -> GateContext:
        """What is known of the texts whose tokens, `[batch, T]`, `module` is given now.

        Raises:
            KeditError: The cache's rows are other ones than when it was filled.
        """
        if self._pass is None:
            return GateContext()
        real = None if self._pass.real is None else self._pass.real[:, -tokens[-1] :]
        widest = kept(self._pass.cache).get((self._number, id(module)))
        for known in (real, widest):
            if known is not None and len(known) != tokens[0]:
                raise KeditError(
                    f"model.adapter.hysteresis: a cache of {len(known)} texts goes on with {tokens[0]}; choose its "
                    "rows with kedit.delta.gate_state.choose_rows"
                )
        return GateContext(real, widest)

    def note(self, module: nn.Module, widest: Tensor) -> None:
        """Keeps what `module`'s gates have seen after this pass, `[batch, J]`."""
        if self._pass is not None:
            self._pass.seen[self._number, id(module)] = widest.detach()

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        real = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self._pass = _Pass(real, kwargs.get("past_key_values"))

    def _end(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if cache is not None and self._pass is not None:
            setattr(cache, _NAME, {**getattr(cache, _NAME, {}), **self._pass.seen})
        self._pass = None


def kept(cache: Any) -> Mapping[tuple[int, int], Tensor]:
    """GateHistory that came with the texts in `cache`; none for a cache that is empty, or is none."""
    if cache is None or not cache.get_seq_length():
        return {}
    return getattr(cache, _NAME, {})


def choose_rows(cache: Any, index: Tensor) -> None:
    """Leaves only some rows of a key-value cache, in this order, with their openings; `index: [m]` int64."""
    openings = kept(cache)
    cache.batch_select_indices(index)
    setattr(cache, _NAME, {key: widest[index.to(widest.device)] for key, widest in openings.items()})
