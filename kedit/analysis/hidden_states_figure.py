"""Three figures of what an edit does to hidden states, from the rows that `hidden_states` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten, wrap
from typing import TYPE_CHECKING, Any

from kedit.analysis.hidden_states import BASE, Scene
from kedit.analysis.hidden_states_report import VIEWS, About, Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# colours that the colour-blind can tell apart (Okabe and Ito), and markers beside them
STYLES: Mapping[str, dict[str, Any]] = {
    BASE: {"color": "#666666", "marker": "o"},
    "editor": {"color": "#d55e00", "marker": "^"},
    "steam": {"color": "#0072b2", "marker": "s"},
    "native": {"color": "#009e73", "marker": "D"},
}
EDITED, ALIGNED = "#cc79a7", "#009e73"


def cosine_figure(lines: Sequence[Line], about: About) -> Figure:
    """Cosine to the anchor by layer: a panel of raw states, and one of centred ones where there are any."""
    views = [view for view in VIEWS if any(line["view"] == view for line in lines)]
    figure, panels = _panels(len(views))
    for panel, view in zip(panels, views, strict=True):
        for arm in (arm for arm in STYLES if arm != "native"):
            _curve(panel, [x for x in lines if x["view"] == view and x["arm"] == arm], "", arm, about.names.get(arm))
        for arm, dash, label in (
            ("own", (0, (5, 2)), "references to their own anchor"),
            ("other", (0, (1, 1.5)), "references to other objects’ anchors"),
        ):
            found = [line for line in lines if line["view"] == view and line["arm"] == arm]
            if found:
                xs, ys = ([line[key] for line in found] for key in ("layer", "mean"))
                panel.plot(xs, ys, color="#111111", linestyle=dash, linewidth=1.3, label=label)
        _marks(panel, about, max(line["layer"] for line in lines))
        panel.set_title({"raw": "states as they are", "centred": "less the mean over objects"}[view], fontsize=11)
    panels[0].set_ylabel("cosine of the state to the anchor φ")
    caption = "Mean over edits, band: ± standard error. References: leave-one-out, mean over objects, unedited model."
    return _finish(figure, panels, "How near the edited fact’s state comes to the anchor of its object", about, caption)


def lens_figure(lines: Sequence[Line], about: About) -> Figure:
    """LogitLens of the new object's first token: its probability, and its rank on a logarithmic scale."""
    figure, panels = _panels(2)
    names = about.names | {"native": "references: the object by itself"}
    for arm in STYLES:
        found = [line for line in lines if line["arm"] == arm]
        _curve(panels[0], found, "p_", arm, names.get(arm))
        if found:
            xs, ys = ([line[key] for line in found] for key in ("layer", "rank_median"))
            panels[1].plot(xs, ys, markersize=3.4, linewidth=1.6, label=names[arm], **STYLES[arm])
    for panel in panels:
        _marks(panel, about, max(line["layer"] for line in lines))
    panels[0].set_ylabel("probability of the object’s first token, mean")
    panels[0].set_ylim(-0.02, 1.02)
    panels[1].set_yscale("log")
    panels[1].yaxis.set_major_formatter("{x:g}")
    panels[1].invert_yaxis()
    panels[1].set_ylabel("rank of the token (1: most probable), median")
    caption = (
        "Output head on the final norm of the state after each layer. Band: ± standard error over edits (references: "
        "over objects).\nAn edited fact whose object rises in earlier layers than it does at the references is a "
        "shortcut."
    )
    return _finish(figure, panels, "In which layers the new object appears (LogitLens)", about, caption)


def space_figure(scenes: Sequence[Scene], about: About) -> Figure:
    """A line of panels for each edit: its states in the plane of references and unedited prompts, layer by layer."""
    from matplotlib.figure import Figure

    depths = max((list(scene.points) for scene in scenes), key=len)
    figure = Figure(figsize=(2.6 + 3.1 * len(depths), 2.1 + 3.3 * len(scenes)), dpi=120, layout="constrained")
    rows = figure.subplots(len(scenes), len(depths), squeeze=False)
    for scene, row in zip(scenes, rows, strict=True):
        for panel, (layer, groups) in zip(row, scene.points.items(), strict=True):
            _scatter(panel, groups, about)
            panel.set_title(_cosines(scene, layer, about), fontsize=9.5)
            first, second = (100 * float(share) for share in scene.shares[layer])
            panel.set_xlabel(f"axis 1 ({first:.0f} % of variance)", fontsize=9)
            panel.set_ylabel(f"axis 2 ({second:.0f} %)", fontsize=9)
        prompt = "\n".join(wrap(shorten(scene.title, 120, placeholder="…"), 42))
        row[0].annotate(
            prompt, (-0.3, 0.5), xycoords="axes fraction", rotation=90, ha="right", va="center", fontsize=9.5
        )
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    _texts(
        figure,
        "Where the edited fact’s states lie",
        about,
        "PCA fitted on the references and the unedited prompts alone; edited states are projected.\n"
        "Cosines are those of the whole states to φ, mean over the request’s prompt and its paraphrases.",
    )
    return figure


def _panels(n: int) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 + 5.0 * n, 5.2), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, n, squeeze=False)[0])


def _curve(panel: Any, lines: Sequence[Line], prefix: str, arm: str, label: str | None) -> None:
    """A mean with its band; nothing where the arm was not measured."""
    if not lines:
        return
    xs, means = ([line[key] for line in lines] for key in ("layer", f"{prefix}mean"))
    panel.plot(xs, means, markersize=3.4, linewidth=1.6, label=label, **STYLES[arm])
    if lines[0][f"{prefix}se"] is not None:
        low, high = ([m + sign * line[f"{prefix}se"] for m, line in zip(means, lines, strict=True)] for sign in (-1, 1))
        panel.fill_between(xs, low, high, color=STYLES[arm]["color"], alpha=0.18, linewidth=0)


def _marks(panel: Any, about: About, last: int) -> None:
    """The edited and the aligned layers, and the layers' axis."""
    from matplotlib.ticker import MaxNLocator

    for i, layer in enumerate(about.edited):
        panel.axvline(
            layer, color=EDITED, linewidth=1.6, zorder=0.5, label="" if i else f"edited: {_span(about.edited)}"
        )
    for i, layer in enumerate(about.aligned):
        label = "" if i else f"aligned: {_span(about.aligned)}"
        panel.axvspan(layer - 0.5, layer + 0.5, color=ALIGNED, alpha=0.13, linewidth=0, zorder=0, label=label)
    panel.set_xlim(-0.5, last + 0.5)
    panel.set_xlabel("layer (states leave it; 0 reads the embeddings)")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(color="#e4e4e4", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _scatter(panel: Any, groups: Mapping[str, Any], about: About) -> None:
    names = {"reference": "references of the object"} | about.names
    for group, points in groups.items():
        if group == "phi":
            continue
        style = {"color": "#009e73", "marker": "D"} if group == "reference" else STYLES[group]
        edge = {"facecolors": "none", "edgecolors": style["color"], "linewidths": 1.2}
        panel.scatter(points[:, 0], points[:, 1], s=26, marker=style["marker"], label=names[group], **edge)
    ((x, y),) = groups["phi"].tolist()
    panel.scatter(
        [x], [y], s=190, marker="*", color="#f0e442", edgecolors="#111111", linewidths=0.9, label="anchor φ", zorder=4
    )
    panel.grid(color="#eeeeee", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8)
    panel.margins(0.08)
    panel.spines[["top", "right"]].set_visible(False)


def _cosines(scene: Scene, layer: int, about: About) -> str:
    """The title of a panel: its layer, and mean cos(C, phi), cos(D, phi)."""
    shown = [arm for arm in STYLES if arm in scene.cosines[layer]]
    what = " (aligned)" if layer in about.aligned else ""
    cells = [f"{about.names[arm]} {float(scene.cosines[layer][arm].mean()):.3f}" for arm in shown]
    return f"layer {layer}{what}\ncos to φ: " + "\n".join(cells)


def _finish(figure: Figure, panels: Sequence[Any], title: str, about: About, caption: str) -> Figure:
    handles: dict[str, Any] = {}
    for panel in panels:
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    _texts(figure, title, about, caption)
    return figure


def _texts(figure: Figure, title: str, about: About, caption: str) -> None:
    figure.suptitle(f"{title}: {about.title}", x=0.01, ha="left", fontsize=12)
    figure.supxlabel(f"{about.protocol}.\n{caption}", x=0.01, ha="left", fontsize=8.5, color="#444444")


def _span(layers: Sequence[int]) -> str:
    """`layer 5`, `layers 12 to 21`, or a list."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    whole = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"layers {layers[0]} to {layers[-1]}" if whole else "layers " + ", ".join(map(str, layers))
