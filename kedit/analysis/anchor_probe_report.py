"""What the anchor probe found, for people: lines, CSV and one plain sentence. The drawing is in
`kedit.analysis.anchor_probe_figure`.

What the numbers mean: docs/anchors.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from kedit.methods.steam.layers import align_layers
from kedit.methods.steam.positioning import SOURCES, Anchor
from kedit.methods.steam.probe import LayerProbe, Within
from kedit.runtime.files import csv_text

LEAST = 0.1
"""Where no layer's margin exceeds that of layer 0 by this, none carries the object."""

COLUMNS = (
    "layer", "own", "other", "margin", "own_centred", "other_centred", "margin_centred", "margin_within",
    "chance_within", "edited", "mid", "auto",
)  # fmt: skip


@dataclass(frozen=True)
class Windows:
    """The layers that an edit of `edited` would align.

    Attributes:
        edited: The (last) edited layer.
        mid: Those of `align.layers: mid`.
        auto: Those of `align.layers: auto`.
    """

    edited: int
    mid: list[int]
    auto: list[int]

    @classmethod
    def of(cls, scores: list[float], edited: int) -> Windows:
        """The windows of a model whose layers tell objects apart so well (`kedit.methods.steam.probe.telling`).

        Raises:
            KeditError: No layer is left above the edited one.
        """
        mid, auto = (align_layers(kind, len(scores), edited, lambda: scores) for kind in ("mid", "auto"))
        return cls(edited, mid, auto)


def lines_of(probes: Sequence[LayerProbe], inside: Sequence[Within], windows: Windows) -> list[dict[str, Any]]:
    """One line per layer, with `COLUMNS`; the last three are 0 or 1. What could not be measured is None."""
    return [
        {
            "layer": p.layer,
            "own": p.own,
            "other": p.other,
            "margin": p.margin,
            "own_centred": p.own_centred,
            "other_centred": p.other_centred,
            "margin_centred": p.margin_centred,
            "margin_within": w.margin if w else None,
            "chance_within": w.chance if w else None,
            "edited": int(p.layer == windows.edited),
            "mid": int(p.layer in windows.mid),
            "auto": int(p.layer in windows.auto),
        }
        for p, w in zip(probes, inside or [None] * len(probes), strict=True)
    ]


def as_csv(lines: Iterable[Mapping[str, Any]]) -> str:
    """The lines of `lines_of` as CSV, with a header."""
    return csv_text(lines, COLUMNS)


def probe_table(lines: Iterable[Mapping[str, Any]], title: str) -> Table:
    """The lines of `lines_of` as a table."""
    caption = (
        "own, other: mean cosine of a reference's state to the anchor of its object, of others; margin: own - other\n"
        "*: less the mean over objects   within: margin* within relations, less what chance gives"
    )
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for name in ("layer", "own", "other", "margin", "own*", "other*", "margin*", "within"):
        table.add_column(name, justify="right")
    table.add_column("")
    for line in lines:
        numbers = [f"{line[name]:.3f}" for name in COLUMNS[1:7]]
        score = "" if line["margin_within"] is None else f"{line['margin_within'] - line['chance_within']:.3f}"
        mark = "edited" if line["edited"] else ", ".join(name for name in ("mid", "auto") if line[name])
        table.add_row(str(line["layer"]), *numbers, score, mark)
    return table


def used(anchors: Mapping[str, Anchor]) -> str:
    """How many objects and references were looked at, where they come from, and how they were known."""
    sources = Counter(anchor.source for anchor in anchors.values())
    rules = Counter(anchor.recall for anchor in anchors.values())
    counts = ", ".join(f"{sources[name]} {name.replace('_', ' ')}" for name in SOURCES if sources[name])
    recalls = ", ".join(f"{n} {rule}" for rule, n in rules.most_common())
    n = sum(anchor.n for anchor in anchors.values())
    return f"{len(anchors)} objects ({counts}; known by {recalls}), {n} references"


def verdict(lines: Sequence[Mapping[str, Any]], windows: Windows) -> str:
    """One sentence: whether the mid layers carry the object. Scores are taken beyond layer 0, where only the prompt's
    last words can speak: within relations where that could be measured, else of the centred margin.
    """
    inside = lines[0]["margin_within"] is not None
    scores = [line["margin_within"] - line["chance_within"] if inside else line["margin_centred"] for line in lines]
    gains = [score - scores[0] for score in scores]
    best = max(range(len(gains)), key=gains.__getitem__)
    mid, auto = (sum(gains[layer] for layer in part) / len(part) for part in (windows.mid, windows.auto))
    how = "within relations" if inside else "centred; no two objects share a relation, so wording may pass for objects"
    scale = f"margin beyond layer 0 ({how}): mid {mid:.2f}, auto {auto:.2f}, at most {gains[best]:.2f} in layer {best}"
    if gains[best] < LEAST:
        return f"No layer tells objects apart better than the prompts' last words do: {scale}."
    share = mid / gains[best]
    word = (
        "carry the object"
        if share >= 0.75
        else "carry some of the object"
        if share >= 0.25
        else "hardly carry the object"
    )
    return f"The mid layers {span(windows.mid)} {word}: {scale}."


def span(layers: Sequence[int]) -> str:
    """`12 to 21`, or the one layer."""
    return f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else str(layers[0])
