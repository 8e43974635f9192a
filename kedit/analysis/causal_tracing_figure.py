"""The heat maps of causal tracing, as in the figures 1 and 2 of ROME's paper: states, MLPs, attentions side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kedit.analysis.causal_tracing import CLASSES, Average
from kedit.causal_tracing import FactTrace, Part
from kedit.model.lm import LM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "next": "first subsequent token",
    "further": "further tokens",
    "last": "last token",
}
COLOURS: Mapping[Part, str] = {"state": "Purples", "mlp": "Greens", "attention": "Reds"}


def average_figure(averages: Mapping[Part, Average], window: int, title: str, caption: str) -> Figure:
    """Average indirect effects of classes of tokens by layer, a panel for each part.

    Args:
        averages: Of each part.
        window: Layers whose MLPs or attentions are restored together.
        title: What was traced.
        caption: How.
    """
    figure, panels = _panels(len(averages), len(CLASSES))
    for panel, (part, found) in zip(panels, averages.items(), strict=True):
        names = [name for name in CLASSES if name in found.mean]
        image = _heat(panel, np.stack([found.mean[name] for name in names]), COLOURS[part], 0.0)
        panel.set_yticks(range(len(names)), [LABELS[name] for name in names])
        where = found.peak.layer
        row, said = [names.index("subject_last")], f"last subject token: most in layer {where}"
        panel.plot([where], row, marker="D", color="black", markersize=4.5, clip_on=False)
        if part == "mlp" and found.inner.layer != where:
            panel.plot([found.inner.layer], row, marker="D", color="black", fillstyle="none", markersize=5.5)
            said += f"; without layer 0 in {found.inner.layer}"
        panel.set_title(f"{_what(part, window)}\n{said}", fontsize=10)
        bar = figure.colorbar(image, ax=panel, shrink=0.9, pad=0.02)
        bar.ax.set_title("AIE", fontsize=9)
    return _finish(figure, title, caption)


def example_figure(lm: LM, found: FactTrace, window: int, caption: str) -> Figure:
    """One fact: p(answer) after restoring, token by token and layer by layer, a panel for each part."""
    fact = found.fact
    figure, panels = _panels(len(found.restored), len(fact.ids))
    for panel, (part, restored) in zip(panels, found.restored.items(), strict=True):
        whole = np.full((len(fact.ids), restored.shape[1]), found.corrupted)
        whole[found.tokens.start : found.tokens.stop] = restored.numpy()
        image = _heat(panel, whole, COLOURS[part], found.corrupted)
        panel.set_yticks(range(len(fact.ids)), [_token(lm, found, i) for i in range(len(fact.ids))])
        panel.set_title(_what(part, window), fontsize=10)
        bar = figure.colorbar(image, ax=panel, shrink=0.9, pad=0.02)
        bar.ax.set_title("p", fontsize=9)
    more = f"p: probability of the answer; clean {found.clean:.3f}, corrupted {found.corrupted:.3f}."
    more += " * tokens of the subject, with noise."
    return _finish(figure, fact.title, f"{more}\n{caption}")


def _panels(n: int, rows: int) -> tuple[Figure, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 + 4.2 * n, 2.1 + 0.26 * max(rows, 5)), dpi=120, layout="constrained")
    return figure, figure.subplots(1, n, squeeze=False, sharey=True)[0]


def _heat(panel: Any, values: Any, colours: str, floor: float) -> Any:
    """`values: [rows, n_layers]` from white at `floor`; what is below is white too."""
    from matplotlib.ticker import MaxNLocator

    top = max(float(values.max()), floor + 1e-6)
    image = panel.imshow(values, cmap=colours, vmin=floor, vmax=top, aspect="auto", interpolation="nearest")
    panel.set_xlabel("layer")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.tick_params(labelsize=9)
    return image


def _what(part: Part, window: int) -> str:
    if part == "state":
        return "state after one layer restored"
    name = "MLPs" if part == "mlp" else "attentions"
    return f"{name} of {window} layers restored" if window > 1 else f"{name[:-1]} of one layer restored"


def _token(lm: LM, found: FactTrace, position: int) -> str:
    star = "*" if found.fact.first <= position <= found.fact.last else ""
    text = lm.decode([found.fact.ids[position]]).replace("\n", "⏎").replace("$", r"\$")
    return f"{text.strip() or repr(text)}{star}"


def _finish(figure: Figure, title: str, caption: str) -> Figure:
    figure.suptitle(title.replace("$", r"\$"), x=0.01, ha="left", fontsize=12)
    figure.supxlabel(caption.replace("$", r"\$"), x=0.01, ha="left", fontsize=8.5, color="#444444")
    return figure
