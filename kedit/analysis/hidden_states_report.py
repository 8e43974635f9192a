"""The numbers behind the latent figures as lines and CSV; what they mean: docs/anchors.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kedit.analysis.hidden_states import BASE, Curves, Lens, Native, Scene
from kedit.runtime.files import csv_text

COSINE_COLUMNS = ("layer", "view", "arm", "mean", "se", "n")
LENS_COLUMNS = ("layer", "arm", "p_mean", "p_se", "rank_median", "n")
SPACE_COLUMNS = ("case_id", "layer", "group", "prompt", "x", "y", "cosine")
VIEWS = ("raw", "centred")

Line = dict[str, Any]


@dataclass(frozen=True)
class About:
    """What every figure says of itself.

    Attributes:
        names: Arm -> what people call it.
        title: Method and model.
        protocol: Edits, data, regime, seed; a line.
        edited: The edited layers.
        aligned: The aligned layers.
    """

    names: dict[str, str]
    title: str
    protocol: str
    edited: list[int]
    aligned: list[int]

    @classmethod
    def of(cls, method: Mapping[str, Any], data: Mapping[str, Any], edited: list[int], seen: int) -> About:
        """From what the run's module and data module say of themselves (`describe()`).

        Args:
            method: The module's.
            data: The data module's.
            edited: The edited layers.
            seen: Edits that were measured.
        """
        editor, align = method["editor"], method["align"]
        weight = f"ratio {align['ratio']:g}" if align["weighting"] == "grad_ratio" else f"lambda {align['weight']:g}"
        edits = f"{seen} {'edit' if seen == 1 else 'edits'} of {data['name']}"
        return cls(
            {BASE: "unedited", "editor": f"{editor} alone", "steam": f"{editor} + {method['method']}"},
            f"{editor} + {method['method']} on {method['model']}",
            f"{edits} ({data['records']} records in the run; those with references), "
            f"each alone on the unedited model, seed {method['seed']}; "
            f"alignment: {weight}, center {align['center']}",
            edited,
            list(method["aligned_layers"]),
        )


def joined(parts: Sequence[Curves]) -> Curves:
    """The curves of several edit batches as one."""
    raw, centred = (torch.cat([getattr(part, name) for part in parts]) for name in ("raw", "centred"))
    p, rank = (torch.cat([getattr(part.lens, name) for part in parts]) for name in ("p", "rank"))
    return Curves(raw, centred, Lens(p, rank))


def cosine_lines(arms: Mapping[str, Curves], native: Native | None) -> list[Line]:
    """With `COSINE_COLUMNS`: mean and standard error over edits of the cosine to the anchor.

    The arms `own` and `other` are the references' (ceiling and floor); n is then the number of objects.
    """
    lines: list[Line] = []
    for place, view in enumerate(VIEWS):
        for name, found in arms.items():
            values = found.raw if view == "raw" else found.centred
            if not values.isnan().any():
                lines += [{"view": view, "arm": name} | line for line in _means(values, "")]
        for name in ("own", "other") if native is not None else ():
            row = getattr(native, name)[place].tolist()
            n = native.n_objects if native is not None else 0
            lines += [
                {"view": view, "arm": name, "layer": i, "mean": mean, "se": None, "n": n} for i, mean in enumerate(row)
            ]
    return lines


def lens_lines(arms: Mapping[str, Curves], native: Native | None) -> list[Line]:
    """With `LENS_COLUMNS`: LogitLens of the new object's first token; `native` are the references, by object."""
    found = {name: own.lens for name, own in arms.items()} | ({} if native is None else {"native": native.lens})
    lines: list[Line] = []
    for name, seen in found.items():
        ranks = seen.rank.double().quantile(0.5, dim=0).tolist()
        for line, rank in zip(_means(seen.p, "p_"), ranks, strict=True):
            lines.append({"arm": name} | line | {"rank_median": rank})
    return lines


def space_lines(scenes: Iterable[Scene]) -> list[Line]:
    """With `SPACE_COLUMNS`: every point of every panel."""
    return [line for scene in scenes for line in _points(scene)]


def as_csv(lines: Iterable[Line], columns: Sequence[str]) -> str:
    """Lines as CSV, with a header."""
    return csv_text(lines, columns)


def _points(scene: Scene) -> Iterator[Line]:
    for layer, groups in scene.points.items():
        for group, points in groups.items():
            cosines = scene.cosines[layer][group].tolist()
            for prompt, (x, y), cosine in zip(scene.texts[group], points.tolist(), cosines, strict=True):
                yield {
                    "case_id": scene.case_id, "layer": layer, "group": group, "prompt": prompt, "x": x, "y": y,
                    "cosine": cosine,
                }  # fmt: skip


def _means(values: Tensor, prefix: str) -> list[Line]:
    """Mean and standard error over rows, a line per column."""
    values = values.double()
    n = len(values)
    errors: list[float | None] = (values.std(0) / n**0.5).tolist() if n > 1 else [None] * values.shape[1]
    return [
        {"layer": layer, f"{prefix}mean": mean, f"{prefix}se": error, "n": n}
        for layer, (mean, error) in enumerate(zip(values.mean(0).tolist(), errors, strict=True))
    ]
