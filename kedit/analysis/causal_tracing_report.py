"""What causal tracing found, for people and programs: lines, CSV, JSON and a table. Drawings are elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from kedit.analysis.causal_tracing import Average, token_class, total_effects
from kedit.causal_tracing import FactTrace, Part, Peak
from kedit.model.lm import LM
from kedit.results.intervals import bootstrap
from kedit.runtime.files import csv_text

COLUMNS = ("case_id", "part", "layer", "position", "token", "class", "p_clean", "p_corrupted", "p_restored", "effect")
"""Of `trace.csv`: a line for every restoration; `effect` is p_restored - p_corrupted."""

NAMES: Mapping[Part, str] = {"state": "state", "mlp": "MLP", "attention": "attention"}


def lines_of(lm: LM, traces: Iterable[FactTrace]) -> Iterator[dict[str, Any]]:
    """A line for every restoration, with `COLUMNS`. Tokens before the subject have none: their effect is 0."""
    for found in traces:
        for part, restored in found.restored.items():
            for position, row in zip(found.tokens, restored.tolist(), strict=True):
                token, of = lm.decode([found.fact.ids[position]]), token_class(found.fact, position)
                for layer, p in enumerate(row):
                    yield {
                        "case_id": found.fact.case_id,
                        "part": part,
                        "layer": layer,
                        "position": position,
                        "token": token,
                        "class": of,
                        "p_clean": found.clean,
                        "p_corrupted": found.corrupted,
                        "p_restored": p,
                        "effect": p - found.corrupted,
                    }


def as_csv(lines: Iterable[Mapping[str, Any]]) -> str:
    """The lines of `lines_of` as CSV, with a header."""
    return csv_text(lines, COLUMNS)


def card(traces: Sequence[FactTrace], averages: Mapping[Part, Average]) -> dict[str, Any]:
    """The figures of `trace.json`: probabilities, averages with intervals over facts, peaks (JSON-able)."""
    clean, corrupted = ([getattr(found, name) for found in traces] for name in ("clean", "corrupted"))
    return {
        "n_facts": len(traces),
        "p_clean": _mean(clean),
        "p_corrupted": _mean(corrupted),
        "total_effect": _mean(total_effects(traces).tolist()),
        "peaks": {part: asdict(found.peak) for part, found in averages.items()},
        "inner_peak": asdict(averages["mlp"].inner) if "mlp" in averages else None,
        "effects": {
            part: {
                name: {
                    "n_facts": found.n[name],
                    "mean": _rounded(mean),
                    "low": _rounded(found.low[name]),
                    "high": _rounded(found.high[name]),
                }
                for name, mean in found.mean.items()
            }
            for part, found in averages.items()
        },
    }


def peak_table(averages: Mapping[Part, Average], title: str, window: int, rows: int = 5) -> Table:
    """The layers with the greatest effect at the subject's last token, part by part."""
    caption = (
        "AIE: average indirect effect at the subject's last token, in percentage points, with its 95 % interval over "
        f"facts\nMLP, attention: a window of {window} layers around the one that is named"
    )
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for part in averages:
        table.add_column(NAMES[part], justify="right")
        table.add_column("AIE", justify="right")
    best = {part: np.argsort(-found.mean["subject_last"], kind="stable") for part, found in averages.items()}
    for place in range(min(rows, len(next(iter(best.values()))))):
        cells = []
        for part, found in averages.items():
            layer = best[part][place]
            mean, low, high = (100 * of["subject_last"][layer] for of in (found.mean, found.low, found.high))
            cells += [str(layer), f"{mean:.1f} [{low:.0f}, {high:.0f}]"]
        table.add_row(*cells)
    return table


def sentence(traces: Sequence[FactTrace], averages: Mapping[Part, Average]) -> str:
    """What the noise took away, and the layers that the MLPs' peak names."""
    clean, corrupted = (100 * np.mean([getattr(found, name) for found in traces]) for name in ("clean", "corrupted"))
    noise = f"p(answer) is {clean:.1f} % in the clean runs and {corrupted:.1f} % in the corrupted ones"
    if "mlp" not in averages:
        return f"{noise}."
    found, inner = averages["mlp"].peak, averages["mlp"].inner
    if found.effect <= 0:
        return f"{noise}. No layer's MLPs at the subject's last token give anything of it back."
    said = f"{noise}. The MLPs give most of it back at the subject's last token around {_peak(found)}."
    if inner == found or inner.effect <= 0:
        return said
    return (
        f"{said} Of the windows without layer 0, whose MLP reads the corrupted embeddings, the one around "
        f"{_peak(inner)} gives most: that is what layers: auto goes by."
    )


def _peak(found: Peak) -> str:
    return f"layer {found.layer} ({100 * found.effect:.1f} points; 95 % of samples of the facts: {found.between})"


def _mean(values: Sequence[float]) -> dict[str, Any]:
    ends = bootstrap(values, scale="other")
    return {"mean": round(float(np.mean(values)), 6), "ci": [round(end, 6) for end in ends]}


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 6) for value in values]
