"""What the figures of sweeps share: reading a result file, lines with error bars at even distances, PNG beside CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kedit.runtime.files import csv_text, write_figure, write_text

COLUMNS = ("arm", "x", "measure", "before", "after", "ci_low", "ci_high")


def read(path: Path, kind: str) -> dict[str, Any]:
    """A result file, of those that `kind` names.

    Raises:
        SystemExit: It cannot be read, or is none; in one line.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SystemExit(f"--results: {path}: {error.strerror}") from None
    except ValueError:
        raise SystemExit(f"--results: {path} is no JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("arms"), dict):
        raise SystemExit(f"--results: {path} has no arms, as {kind} have")
    return found


def options(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of a method by its dotted name."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from options(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def panels(n: int) -> tuple[Any, list[Any]]:
    """A figure with `n` panels over one axis of x."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 5.2 if n == 1 else 3.1 + 2.7 * n), dpi=120, layout="constrained")
    return figure, list(figure.subplots(n, sharex=True, squeeze=False)[:, 0])


def draw(
    panel: Any,
    places: Sequence[str],
    measures: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    """A line with error bars for each measure; what is on x stands at even distances, as 0 fits no log scale.

    Args:
        panel: Where to.
        places: What is on x, as written there.
        measures: The lines, in order.
        rows: `measure`, `x`, `after`, `ci_low`, `ci_high`; the values of x in the order of `places`.
        styles: Of every measure: colour and marker, and the width of its line.
    """
    values = list(dict.fromkeys(row["x"] for row in rows))
    for nth, measure in enumerate(measures):
        own = [row for row in rows if row["measure"] == measure]
        apart = 0.05 * (nth - (len(measures) - 1) / 2)  # so that no bar hides another
        at = [values.index(row["x"]) + apart for row in own]
        style = {"markersize": 5, "linewidth": 1.5} | dict(styles[measure])
        panel.plot(at, [row["after"] for row in own], label=measure, **style)
        bars = [(place, row) for place, row in zip(at, own, strict=True) if row["ci_low"] is not None]
        low, high = ([row[end] for _, row in bars] for end in ("ci_low", "ci_high"))
        panel.vlines([place for place, _ in bars], low, high, color=style["color"], linewidth=1.2, alpha=0.75)
    panel.set_xticks(range(len(places)), places)
    panel.set_xlim(-0.35, len(places) - 0.65)
    panel.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def finished(figure: Any, title: str, caption: str) -> Any:
    """The figure with its title and caption."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.5)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color="#444444")
    return figure


def write(rows: Sequence[Mapping[str, Any]], figure: Any, out: Path) -> tuple[Path, Path]:
    """OUT.png and OUT.csv, each replaced in one step."""
    out.parent.mkdir(parents=True, exist_ok=True)
    image, table = (out.with_name(f"{out.name}.{end}") for end in ("png", "csv"))
    write_figure(image, figure)
    write_text(table, csv_text(rows, COLUMNS))
    return image, table
