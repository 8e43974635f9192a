"""The figures of r(k) over a run, from result rows alone: lines, CSV and table. The drawing is in
`kedit.analysis.similarity_figure`; what the values mean: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from kedit.analysis.similarity import EQUIVALENT, KINDS
from kedit.runtime.files import csv_text

DELIVERED = 0.8
"""An r from here on counts as the edit having arrived."""

COLUMNS: tuple[str, ...] = (
    "layer", "kind", "tokens", "n_records", "n_keys", "mean_before", "std_before", "delivered_before", "mean_after",
    "std_after", "delivered_after", "open", "bound", "bound_median", "violated_before", "violated_after",
)  # fmt: skip

SHOWN = {"subject_max": "  largest", "prompt_abs": "  largest |r|"}
"""How the table calls the second reading of a kind."""

Row = Mapping[str, Any]


def measured(rows: Iterable[Row]) -> list[Row]:
    """The rows that hold similarities, each record once."""
    return list({str(row["case_id"]): row for row in rows if row.get("similarity") is not None}.values())


def summary_rows(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One line per layer, kind of query and reading (`tokens`), with `COLUMNS`.

    Means and standard deviations are over all keys; `delivered` (r of 0.8 or more), `open` and `violated` are in
    percent of them. `violated` counts forms of the subject with r < `r_min`, and neighborhood prompts with |r| >
    `r_max`; it leaves out edits that have no r_min. What was not measured is None.
    """
    rows = measured(rows)
    lines = []
    for layer in layers_of(rows):
        of_layer = [row["similarity"]["layers"].get(layer, {}) for row in rows]
        for kind in KINDS:
            for tokens in dict.fromkeys(name for values in of_layer for name in values.get(kind, {})):
                pairs = [
                    (row["similarity"], v[kind][tokens]) for row, v in zip(rows, of_layer, strict=True) if kind in v
                ]
                lines.append({"layer": int(layer), "kind": kind, "tokens": tokens} | _line(kind, tokens, pairs))
    return lines


def layers_of(rows: Iterable[Row]) -> list[str]:
    """The layers that were measured, ascending."""
    return sorted({layer for row in rows for layer in row["similarity"]["layers"]}, key=int)


def values_of(rows: Iterable[Row], layer: str, kind: str, side: str) -> list[float]:
    """What the histograms show: r at the subject's last token, or the largest of a neighborhood prompt."""
    tokens = "prompt_max" if kind == "neighborhood" else "subject_last"
    readings = (row["similarity"]["layers"].get(layer, {}).get(kind, {}).get(tokens, {}) for row in rows)
    return [value for sides in readings for value in sides.get(side, ())]


def as_csv(lines: Iterable[Mapping[str, Any]]) -> str:
    """The lines of `summary_rows` as CSV, with a header."""
    return csv_text(lines, COLUMNS)


def similarity_table(lines: Sequence[Mapping[str, Any]], rows: Iterable[Row]) -> Table:
    """The lines of `summary_rows` as a table."""
    rows = measured(rows)
    adapted = any(line["mean_after"] is not None for line in lines)
    caption = (
        "r: share of the edit that reaches a key, mean and deviation over keys\n"
        "keys: the subject's last token; over its tokens, or the prompt's: the largest\n"
        f"percent of keys: r >= {DELIVERED:g}; out of bounds; gate open" + _bounds(lines, rows)
    )
    table = Table(
        title="similarity to the edited key", caption=caption, title_justify="left", caption_justify="left",
        show_edge=False, pad_edge=False,
    )  # fmt: skip
    table.add_column("query", no_wrap=True)
    sides = ("before", "after") if adapted else ("before",)
    for side in sides:
        for name in (f"r {side}", ">=.8", "out"):
            table.add_column(name, justify="right", no_wrap=True)
    for name in (["open"] if adapted else []) + ["keys"]:
        table.add_column(name, justify="right", no_wrap=True)
    layers = list(dict.fromkeys(line["layer"] for line in lines))
    for layer in layers:
        if len(layers) > 1:
            table.add_section()
            table.add_row(f"[bold]layer {layer}[/bold]")
        for line in (line for line in lines if line["layer"] == layer):
            cells = [SHOWN.get(line["tokens"], line["kind"].replace("_", " "))]
            for side in sides:
                mean, std = (_number(line[f"{name}_{side}"], 2) for name in ("mean", "std"))
                shares = (_number(line[f"{name}_{side}"], 0) for name in ("delivered", "violated"))
                cells += [f"{mean} ±{std}", *shares]
            table.add_row(*cells, *([_number(line["open"], 0)] if adapted else []), str(line["n_keys"]))
    return table


def _line(kind: str, tokens: str, pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    """Figures of one layer, kind and reading; a pair is a record's `similarity` and its values here."""
    name = "r_min" if kind in EQUIVALENT else "r_max" if tokens == "prompt_abs" else None
    limits = list(_limits(name, pairs))
    line: dict[str, Any] = {
        "n_records": len(pairs),
        "n_keys": sum(len(values["before"]) for _, values in pairs),
        "open": _percent([value > 0 for _, values in pairs for value in values.get("open", ())]),
        "bound": name if limits else None,
        "bound_median": _median(limits, name),
    }
    for side in ("before", "after"):
        r = np.array([value for _, values in pairs for value in values.get(side, ())])
        line[f"mean_{side}"] = round(float(r.mean()), 4) if len(r) else None
        line[f"std_{side}"] = round(float(r.std()), 4) if len(r) else None
        line[f"delivered_{side}"] = _percent(r >= DELIVERED)
        beyond = [
            value < limit if name == "r_min" else value > limit
            for of_keys, values in limits
            for value, limit in zip(values.get(side, ()), of_keys, strict=False)
        ]
        line[f"violated_{side}"] = _percent(beyond)
    return line


def _limits(name: str | None, pairs: Iterable[tuple[Row, Row]]) -> Iterator[tuple[list[float], Row]]:
    """Of every record that has the bound: the bound of each of its keys, and the values."""
    for similarity, values in pairs:
        limit = None if name is None else similarity.get(name)
        if limit is not None:
            yield (limit if isinstance(limit, list) else [limit] * len(values["before"])), values


def _median(limits: Sequence[tuple[list[float], Row]], name: str | None) -> float | None:
    """Over the edits for r_min, over the neighborhood prompts for r_max."""
    every = [limit for of_keys, _ in limits for limit in (of_keys[:1] if name == "r_min" else of_keys)]
    return round(float(np.median(every)), 4) if every else None


def _bounds(lines: Iterable[Mapping[str, Any]], rows: Sequence[Row]) -> str:
    """What the table's caption says of the bounds."""
    median = {line["bound"]: line["bound_median"] for line in lines if line["bound"] is not None}
    texts = [f"{name}, median: {value:.2f}" for name, value in median.items()]
    without = sum(row["similarity"].get("r_min", 0) is None for row in rows)
    if without:
        texts.append(f"{without} edits answer at no scale")
    return "".join(f"\nbounds: {'; '.join(texts)}" for _ in texts[:1])


def _percent(hits: Any) -> float | None:
    return round(100 * float(np.mean(hits)), 2) if len(hits) else None


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
