"""Which layers are aligned, and whether an edit can reach them (specs/steam.md 2 and 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from kedit.errors import KeditError
from kedit.methods.steam.probe import best_window


def align_layers(
    wanted: Literal["mid", "auto"] | Sequence[int],
    n_layers: int,
    edited: int,
    scores: Callable[[], list[float]],
) -> list[int]:
    """Layers of the alignment loss, ascending.

    Args:
        wanted: `mid`: from 40 % to 70 % of the depth, as far as it lies above the edited layer, else all above it
            but the last. `auto`: the window that the probe prefers. Or the layers themselves.
        n_layers: Of the model.
        edited: The last edited layer. An edit at the subject's last token reaches later tokens from the next layer on.
        scores: Gives how well each layer tells objects apart (`kedit.methods.steam.probe.telling`), for `auto`.

    Raises:
        KeditError: A layer that does not exist or that the edit cannot reach; no layer is left above the edited one.
    """
    first = edited + 1
    if first >= n_layers:
        raise KeditError(f"model.align.layers: the edited layer {edited} is the last one; no layer above it is left")
    if wanted == "auto":
        return best_window(scores(), first)
    if wanted == "mid":
        middle = range(-(-4 * n_layers // 10), 7 * n_layers // 10 + 1)
        return [layer for layer in middle if layer >= first] or list(range(first, max(first, n_layers - 2) + 1))
    layers = sorted(set(wanted))
    if not layers:
        raise KeditError("model.align.layers: the list is empty; name layers, or use mid or auto")
    if layers[0] < first:
        raise KeditError(
            f"model.align.layers: layer {layers[0]} is not above the edited layer {edited}; "
            f"what is edited there reaches the answer from layer {first} on"
        )
    if layers[-1] >= n_layers:
        raise KeditError(f"model.align.layers: {layers[-1]} does not exist; the model's layers are 0 to {n_layers - 1}")
    return layers
