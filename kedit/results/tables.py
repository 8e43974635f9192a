"""The table of a whole run, `kedit show RUN --table`. What it shows is computed in `kedit.results.summary`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from kedit.results.summary import INVARIANT, PORT, TITLES, TOKEN_COLUMNS, TOKENS

WRITTEN = {
    "wild": "free greedy generation up to its natural stop is the answer (exact match)",
    "contains": "the same text says the answer anywhere",
    "wild_qa": "as wild, the prompt in an instruction to answer",
    "contains_qa": "as contains, of that text",
    "wild_chat": "as wild, in the tokenizer's chat template",
    "contains_chat": "as contains, of that text",
    "choice": "of four letters that of the new target is the most probable",
}
"""Columns that a run has if it was asked for them, and what they mean."""

SHOWN = ("success", "exact", "generated", *WRITTEN)
PAPER = {"PAC": {kind: (metric,) for kind, metric in TOKEN_COLUMNS} | {"score": (TOKENS,)}}
"""What a method's paper reports beside these."""
MEASURED_AT = {
    "edit": "measured after each edit",
    "end": "measured after the last edit",
    "editor": "the editor alone, measured after each edit",
}


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The summary of a run as a table: one line per kind of probe and metric.

    Args:
        summary: What `ResultsWriter` writes to `summary.json`.
    """
    method, data = summary["method"], summary["data"]
    edits = data["records"]
    failed = len(summary["failed"])
    alone = summary["results"].get("editor")  # of a method that adds to an editor
    title = f"{name_of(method)} on {method['model']}, {data['name']}, regime {method['regime']}"
    caption = (
        f"{edits} records" + (f", {failed} failed" if failed else "") + f", seed {method['seed']}; "
        "percent, mean over records; [95 % bootstrap interval]\n"
        "success: p(wanted) > p(rival)   exact: argmax is the wanted answer (teacher forced)\n"
        "generated: free greedy generation begins with it   unchanged: argmax as before the edit"
    )
    measured = {name for kinds in summary["results"].values() for metrics in kinds.values() for name in metrics}
    caption += "".join(f"\n{name}: {meaning}" for name, meaning in WRITTEN.items() if name in measured)
    if method["method"] in PAPER:
        caption += (
            "\ntoken_accuracy: share of the answer's tokens that are the argmax   unchanged_tokens: share as before"
            f"\n{TOKENS}: mean of the three, the paper's score"
        )
    if any("portability" in kinds for kinds in summary["results"].values()):
        caption += (
            "\nport_acc: share of the new answer's tokens that are the argmax   port_ll: p(new) > p(old)"
            "\nport_em: free greedy generation contains the new answer (metrics.scoring: generate, port_suffix)"
        )
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("probe")
    table.add_column("metric")
    table.add_column("before", justify="right")
    if alone:
        table.add_column(method["editor"], justify="right")
    table.add_column(f"with {method['method']}" if alone else "after", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("probes", justify="right")
    results = {measured_at: kinds for measured_at, kinds in summary["results"].items() if measured_at != "editor"}
    for measured_at, kinds in results.items():
        if len(results) > 1 or measured_at != "edit":
            table.add_section()
            table.add_row(f"[bold]{MEASURED_AT.get(measured_at, measured_at)}[/bold]")
        for kind, metrics in kinds.items():
            table.add_section()
            name = TITLES.get(kind, kind).replace("_", " ")
            for metric in shown_metrics(method["method"], kind, metrics):
                cell = metrics[metric]
                editor = [number(alone[kind][metric]["after"])] if alone else []
                table.add_row(
                    name, metric, number(cell["before"]), *editor, number(cell["after"]), interval(cell["ci"]),
                    str(cell.get("n_probes", "")),
                )  # fmt: skip
                name = ""
    return table


def name_of(method: Mapping[str, Any]) -> str:
    """What a run's method is called, with the editor that it adds to."""
    return f"{method['editor']} + {method['method']}" if "editor" in method else str(method["method"])


def shown_metrics(method: str, kind: str, metrics: Mapping[str, Any]) -> list[str]:
    """Which of the metrics of a kind of probe a table shows, in order.

    Args:
        method: The method's class: its paper may report more than the others.
        kind: Kind of probe.
        metrics: Those that were measured.
    """
    shown = ("success",) if kind == "score" else (*SHOWN, "unchanged")
    shown += PAPER.get(method, {}).get(kind, ())
    shown += tuple(PORT) if kind.partition(".")[0] == "portability" else ()
    return [metric for metric in shown if metric in metrics and not (kind in INVARIANT and metric == "exact")]


def number(value: float | None) -> str:
    """A percentage as tables show it."""
    return "" if value is None else f"{value:.1f}"


def interval(ends: Sequence[float] | None) -> str:
    """An interval as tables show it."""
    return "" if ends is None else f"[{ends[0]:.1f}, {ends[1]:.1f}]"
