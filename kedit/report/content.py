"""What a report says: gathered from a comparison and the folders of its runs, for `kedit.report.page`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from kedit.report.differing import differing, differing_grid, leaves
from kedit.report.figures import cosines, curves, importance, moves, tradeoff
from kedit.report.grid import Column, Grid, texts
from kedit.report.measure_tables import difference_grid, grouped, number_grid, rank_grid
from kedit.report.page import PAGE_BYTES, Config, Page, Section, TablePart, counted, html
from kedit.report.ranks import ranking
from kedit.report.records import Records, records
from kedit.report.run_files import (
    RunFiles,
    general_grid,
    judge_grid,
    labelled,
    run_files,
    similarity_grid,
    split_grid,
)
from kedit.results.record_view import LEGEND
from kedit.results.sentences import Decode
from kedit.results.tables import MEASURED_AT
from kedit.runtime.run_folder import CONFIG
from kedit.sweeps.arms import Finished, Runs
from kedit.sweeps.compare import Comparison, Table
from kedit.sweeps.compare_tables import legend, titled
from kedit.sweeps.curve_figure import curves_of

_SILENT = ("run.", "ckpt_path", "trainer.default_root_dir")  # options that differ between any two runs


def page_of(
    runs: Runs,
    result: Comparison,
    decoder: Callable[[str], Decode | None],
    title: str | None = None,
    most: int = 200,
    resamples: int = 2000,
) -> Page:
    """Everything on the page but how it looks.

    Args:
        runs: The runs.
        result: Their comparison.
        decoder: Name of a model -> what reads its tokens.
        title: Of the page; None: the name of what was compared.
        most: Records of a table whose answers are shown.
        resamples: Of the bootstrap behind the ranks.
    """
    names = labelled([(run.arm, run.seed) for run in runs.runs])
    named = dict(zip(names, runs.runs, strict=True))
    extra = run_files({name: run.folder for name, run in named.items()})
    points = {id(table) for curve in curves_of(result) for _, table in curve}
    main = [table for table in result.tables if id(table) not in points]
    heads = _heads(main)
    tables = tuple(_table(table, f"table-{n}", heads[n - 1], resamples) for n, table in enumerate(main, 1))
    sections = (*_curve_sections(result), *_file_sections(extra))
    configs, read, broken = _configs(named)
    own = differing(read, _SILENT)
    made = differing({name: _made(run) for name, run in named.items()})
    grid = differing_grid(own, read, "configs-differ", "What differs between arms")
    provenance = differing_grid(made, named, "provenance-differs", "What differs between runs")
    page = Page(
        title=title or f"kedit report: {runs.name}",
        subtitle=_subtitle(result),
        facts=tuple(_facts(runs, result)),
        notes=(*result.notes, *extra.notes, *broken),
        legend=tuple(legend(result)),
        tables=tables,
        sections=sections,
        records=Records({}, 0, 0),
        records_note="",
        verdicts=" ".join(LEGEND.split()),
        differing=grid,
        configs=tuple(Config(name, own.alone.get(name, {}), text) for name, text in configs),
        provenance=tuple(made.common.items()),
        runs=(*([provenance] if provenance else []), _runs_grid(named)),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if most == 0:
        return page
    room = max(int(0.97 * (PAGE_BYTES - len(html(page).encode()))), 0)  # the rest is for what escaping adds
    asked = dict(zip(heads, main, strict=True)) or dict(zip(_heads(result.tables), result.tables, strict=True))
    shown = records(asked, decoder, most, room)
    return replace(page, records=shown, records_note=_records_note(shown))


def _heads(tables: Sequence[Table]) -> list[str]:
    """What tables are called: by data and regime, by more where two would be called the same."""
    short, timed, exact = [], [], []
    for table in tables:
        data, protocol = table.alike.data, table.alike.protocol
        regime = f"{protocol['regime']}, {protocol['name']}" if protocol.get("name") else protocol["regime"]
        short.append(f"{data['name']}, {regime}")
        timed.append(f"{short[-1]}, {MEASURED_AT.get(table.alike.measured_at, table.alike.measured_at)}")
        exact.append(f"{data['name']} ({data['records']} records, {data['fingerprint'][:6]}), {regime}")
    found = []
    for nth, table in enumerate(tables):
        names = [own[nth] for own in (short, timed, exact) if own.count(own[nth]) == 1]
        found.append(f"Table {nth + 1}: {names[0] if names else titled(table)}")
    return found


def _table(table: Table, name: str, head: str, resamples: int) -> TablePart:
    parts: list[Grid] = []
    for group, measures in grouped(table):
        parts.append(number_grid(table, group, measures, f"{name}-{group}"))
        difference = difference_grid(table, group, measures, f"{name}-{group}-difference")
        parts += [difference] if difference else []
    found = ranking(table, resamples)
    if found is not None:
        after = next((n for n, part in enumerate(parts) if part.name == f"{name}-costs"), len(parts))
        parts.insert(after, rank_grid(found, f"{name}-ranks"))
    drawn = () if found is None else tuple(moves(found))
    data = {key: table.alike.data.get(key) for key in ("name", "fingerprint", "records", "limit", "skip", "probes")}
    said = {"protocol": table.alike.protocol, "data": data, "measured_at": table.alike.measured_at}
    return TablePart(name, head, titled(table), tuple(parts), drawn, tradeoff(table), tuple(leaves(said).items()))


def _curve_sections(result: Comparison) -> list[Section]:
    found = []
    for nth, points in enumerate(curves_of(result), 1):
        name, table = f"curve-{nth}", points[0][1]
        folded = []
        for edits, one in points:
            for group, measures in grouped(one):
                grid = number_grid(one, group, measures, f"{name}-at-{edits}-{group}")
                folded.append(
                    Grid(grid.name, f"After {edits} edits: {grid.title}", grid.columns, grid.rows, grid.notes)
                )
        title = f"Over the number of edits: {table.alike.data['name']}"
        whom = "all records edited so far" if result.first is None else f"the first {result.first} records"
        note = f"Of {whom}, on the model as it is then. Bars: 95 % intervals over records."
        found.append(Section(name, title, note, (), tuple(curves(points)), tuple(folded)))
    return found


def _file_sections(extra: RunFiles) -> list[Section]:
    found = []
    if extra.importance:
        found.append(Section("paths", "PAC's paths", "", (), tuple(importance(extra.importance))))
    if extra.similarity:
        found.append(Section("similarity", "REP's similarity", "", (similarity_grid(extra.similarity),)))
    if extra.cosine:
        found.append(Section("cosines", "STEAM's cosines", "", (), tuple(cosines(extra.cosine))))
    if extra.general:
        found.append(Section("ability", "General ability", "", (general_grid(extra.general),)))
    if extra.judges or extra.split:
        grids = [judge_grid(extra.judges)] if extra.judges else []
        found.append(Section("judges", "A judge", "", (*grids, *([split_grid(extra.split)] if extra.split else []))))
    return found


def _subtitle(result: Comparison) -> str:
    arms = {run.arm for table in result.tables for members in table.members.values() for run in members}
    n = len(result.tables)
    against = f", differences to {result.against}" if result.against else ""
    return f"{counted(len(arms), 'arm')} in {counted(n, 'table')}{against}; 95 % intervals over records"


def _facts(runs: Runs, result: Comparison) -> list[tuple[str, str]]:
    summaries = [run.summary for run in runs.runs]
    missing = len(runs.planned) - len({run.arm for run in runs.runs})
    methods = [summary["method"] for summary in summaries]
    data = [summary["data"] for summary in summaries]
    made = [summary.get("provenance") or {} for summary in summaries]
    packages = [f"{name} {v}" for name, v in (made[0].get("packages") or {}).items() if name in _TOLD]
    finished = f"{len(runs.runs)} finished" + (f", {missing} arms without results" if missing > 0 else "")
    return [
        ("Runs", f"{runs.name}: {finished}"),
        (
            "Models",
            _all(f"{m['model']} ({m.get('dtype', '?')}, {str(m.get('model_fingerprint'))[:8]})" for m in methods),
        ),
        ("Data", _all(f"{d['name']}: {d['records']} records ({d['fingerprint'][:8]})" for d in data)),
        ("Methods", _all(str(m["method"]) for m in methods)),
        ("Regimes", _all(str(m["regime"]) for m in methods)),
        ("Protocols", _all(str(s["protocol"].get("name") or s["protocol"]["measured"]) for s in summaries)),
        ("Seeds", _all(str(m["seed"]) for m in methods)),
        ("kedit", _all(str(p.get("kedit", "?")) for p in made)),
        ("Commit", _all(str(p.get("commit") or "unknown") for p in made)),
        ("Versions", ", ".join(packages) or "unknown"),
        ("Machine", _all(str(p.get("device", "?")) for p in made)),
        ("Measured", _span([str(s["written"]) for s in summaries if s.get("written")])),
    ]


_TOLD = ("torch", "transformers", "lightning")


def _all(values: Any) -> str:
    """Each value once."""
    return "; ".join(dict.fromkeys(values)) or "unknown"


def _span(times: Sequence[str]) -> str:
    if not times:
        return "unknown"
    first, last = (end[:16].replace("T", " ") for end in (min(times), max(times)))
    return f"{first} UTC" if first == last else f"{first} to {last} UTC"


def _records_note(shown: Records) -> str:
    part = "all" if shown.shown == shown.of else f"{shown.shown} of"
    left = "" if shown.shown == shown.of else (
        " The rest is left out so that the page stays small (--records); kedit show RUN has them all."
    )  # fmt: skip
    return f"The answers to {part} {shown.of} records, of every arm (of several seeds the first).{left}"


def _configs(runs: Mapping[str, Finished]) -> tuple[list[tuple[str, str]], dict[str, Mapping[str, Any]], list[str]]:
    """Text and values of every config that can be read, and a line for each that cannot."""
    found, read, broken = [], {}, []
    for name, run in runs.items():
        path = run.folder / CONFIG
        try:
            text = path.read_text(encoding="utf-8")
            values = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            if not isinstance(values, dict):
                raise ValueError
        except FileNotFoundError:
            continue
        except (OSError, ValueError, yaml.YAMLError):
            broken.append(f"left out, as it is damaged: {path}")
            continue
        found.append((name, text))
        read[name] = values
    return found, read, broken


def _runs_grid(runs: Mapping[str, Finished]) -> Grid:
    """Every run with its folder, and when it was written."""
    columns = [Column(name, text=True) for name in ("arm", "method", "regime", "seed", "written", "commit", "folder")]
    rows = []
    for name, run in runs.items():
        method, made = run.summary["method"], run.summary.get("provenance") or {}
        own = [method["method"], method["regime"], method["seed"], run.summary.get("written"), made.get("commit")]
        rows.append(texts([name, *own, _folder(run.folder)]))
    return Grid("runs", "Runs", tuple(columns), tuple(rows))


def _made(run: Finished) -> dict[str, Any]:
    """Where a run's numbers come from, each package by its name."""
    made = dict(run.summary.get("provenance") or {})
    packages = made.pop("packages", None) or {}
    return made | packages


def _folder(path: Path) -> str:
    return path.name if path.is_absolute() else str(path)
