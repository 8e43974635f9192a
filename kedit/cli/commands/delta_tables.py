"""What `kedit delta` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kedit.delta.change import WeightChange
from kedit.export import compare
from kedit.export.join import Again, Part, Rank
from kedit.export.loading import record_of
from kedit.export.overlap import Overlap
from kedit.export.requests import method_of, requests_of, settings_of
from kedit.request import EditRequest
from kedit.results.tables import interval, number
from kedit.runtime.journal import tensor_bytes

ROWS = 20
"""Rows of a table where --all is not given."""
OVERLAP = "0: leaves what the other edit reads alone; 1: moves it as far as that edit itself"


def show(console: Console, part: Part, size: int, most: int | None) -> None:
    """One delta.

    Args:
        console: Where it is printed.
        part: The delta; its card may have the numbers of its run.
        size: Bytes of its file.
        most: Rows of each table; None: all.
    """
    card, delta = part.card, part.delta
    model = f"{card.get('model', '?')} ({card.get('dtype', 'float32')}, fingerprint {card.get('model_fingerprint')})"
    what = [f"[bold]{_plain(method_of(card))}[/bold] on {_plain(model)}"]
    what += [f"{key} {_plain(card[key])}" for key in ("regime", "seed") if key in card]
    console.print(", ".join(what), soft_wrap=True)
    sums = "right" if "checksums" in card else "none (of an older kedit)"
    console.print(f"{_bytes(size)}, format {card.get('format')}, checksums {sums}, norm {delta.norm():.4g}")
    if made := card.get("joined"):
        names = ", ".join(str(own.get("name")) for own in card.get("parts", []))
        console.print(f"joined (kedit delta {made}) of {_plain(names)}", soft_wrap=True)
    if settings := settings_of(card):
        options = ", ".join(f"{key} {_cut(str(value))}" for key, value in settings.items() if key != "joined")
        console.print(f"[dim]{_plain(options)}[/dim]", soft_wrap=True)
    _requests(console, requests_of(card), most)
    _modules(console, part, most)
    _numbers(console, card)
    _exports(console, part)
    console.print("this folder tells which subjects were edited", style="yellow")


def diff(console: Console, one: Part, other: Part) -> None:
    """Two deltas."""
    if compare.equal(one.delta, other.delta):
        console.print("equal, bit for bit", style="bold green")
    else:
        found = compare.modules(one.delta, other.delta)
        table = _table("modules", ("module", ""), ("norm in A", "norm in B", "cosine"))
        for line in found[:ROWS]:
            a, b = ("" if norm is None else f"{norm:.4g}" for norm in line.norms)
            state = "equal" if line.equal else "only in A" if b == "" else "only in B" if a == "" else "differs"
            table.add_row(_plain(line.path or "(the model)"), state, a, b, _signed(line.cosine))
        console.print(table)
        _more(console, len(found) - ROWS, "modules")
        console.print("cosine: 1 the same direction, 0 nothing in common, -1 the opposite one", style="dim")
    differ = compare.settings(one.card, other.card)
    if differ:
        table = _table("cards", ("", "A", "B"))
        for key, (a, b) in differ.items():
            table.add_row(_plain(key), _plain(a), _plain(b))
        console.print(table)
    asked = compare.requests(one.card, other.card)
    if not asked:
        console.print("the same requests")
        return
    table = _table("requests that differ", ("prompt", "target in A", "target in B"))
    for line in asked[:ROWS]:
        table.add_row(_plain(line.prompt), *(_plain("" if target is None else target) for target in line.targets))
    console.print(table)
    _more(console, len(asked) - ROWS, "requests")


def merged(console: Console, ranks: Sequence[Rank]) -> None:
    """Directions before and after."""
    if not ranks:
        return
    table = _table("directions", ("module",), ("of the parts", "of the sum", "lost"))
    for rank in ranks[:ROWS]:
        table.add_row(_plain(rank.path), str(rank.before), str(rank.after), f"{rank.lost:.1e}")
    console.print(table)
    _more(console, len(ranks) - ROWS, "modules")


def conflicts(console: Console, again: Sequence[Again]) -> None:
    """Prompts that are edited twice."""
    if not again:
        console.print("no prompt is edited twice")
        return
    table = _table("edited twice: the later one holds", ("prompt", "earlier", "later", "the earlier delta"))
    for line in again[:ROWS]:
        earlier, later = (f"{target} ({Path(name).name})" for name, target in (line.earlier, line.later))
        state = "left out" if line.left_out else "stays: it edits other prompts too"
        table.add_row(_plain(line.prompt), _plain(earlier), _plain(later), state)
    console.print(table)
    _more(console, len(again) - ROWS, "prompts")


def overlap(console: Console, parts: Sequence[Part], found: Sequence[Overlap]) -> None:
    """The pairs of edits that move each other's inputs most."""
    if not found:
        console.print("no two of them change a matrix in common")
        return
    table = _table("how much one edit moves what another reads", ("edit", "moved by", "module"), ("overlap",))
    for pair in found[:10]:
        names = (Path(parts[i].name).name for i in (pair.of, pair.by))
        style = "red" if pair.share > 0.5 else "yellow" if pair.share > 0.1 else ""
        table.add_row(*map(_plain, names), _plain(pair.path), f"{pair.share:.3f}", style=style)
    console.print(table)
    middle = found[len(found) // 2].share
    console.print(f"{OVERLAP}. {len(found)} pairs, median {middle:.3f}, largest {found[0].share:.3f}", style="dim")


def together(
    console: Console,
    asked: Sequence[tuple[Part, EditRequest]],
    before: Sequence[float],
    alone: Sequence[float],
    all_of_them: Sequence[float],
) -> None:
    """Probabilities of the new targets: unedited, with its own delta, with all."""
    table = _table("probability of the new target", ("prompt", "target"), ("unedited", "alone", "all together"))
    lines = zip(asked, before, alone, all_of_them, strict=True)
    for (_, request), *numbers in sorted(lines, key=lambda line: line[3] - line[2]):
        style = "red" if numbers[2] < 0.5 * numbers[1] else ""
        table.add_row(_plain(request.text), _plain(request.target_new), *(f"{p:.4f}" for p in numbers), style=style)
    console.print(table)


def exported(console: Console, folder: Path) -> None:
    """What an export has written, from its own record."""
    record = record_of(folder)
    rounding = sorted(record["rounding"], key=lambda line: -line["error"])
    if rounding:
        table = _table(f"rounding to {record['dtype']}", ("parameter",), ("norm of the change", "error"))
        for line in rounding[:ROWS]:
            table.add_row(_plain(line["parameter"]), f"{line['norm']:.4g}", f"{line['error']:.4f}")
        console.print(table)
        _more(console, len(rounding) - ROWS, "parameters")
        console.print(
            "error: share of the change that rounding lost or altered; from about 1 on nothing is left", style="dim"
        )
    if record["efficacy"]:
        written = any(line["written"] is not None for line in record["efficacy"])
        columns = ("before", "edited", *(["as written"] if written else []))
        table = _table("probability of the new target", ("prompt", "target"), columns)
        for line in record["efficacy"][:ROWS]:
            numbers = [line[key] for key in ("before", "edited", "written") if line[key] is not None]
            table.add_row(_plain(line["prompt"]), _plain(line["target"]), *(f"{p:.4f}" for p in numbers))
        console.print(table)
        _more(console, len(record["efficacy"]) - ROWS, "requests")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    console.print(f"written: {folder} ({_bytes(size)})", soft_wrap=True, markup=False)
    how = {
        "peft": f'PeftModel.from_pretrained(base, "{folder}")',
        "merged": f'AutoModelForCausalLM.from_pretrained("{folder}")',
        "beside": f'kedit.load_edited("{folder}")',
    }
    console.print(f"load it: {how[record['form']]}", soft_wrap=True, markup=False)
    console.print("its README.md and the change itself tell which subjects were edited", style="yellow")


def _requests(console: Console, requests: Sequence[EditRequest], most: int | None) -> None:
    if not requests:
        console.print("its card names no request")
        return
    table = _table(f"requests: {len(requests)}", ("record", "prompt", "subject", "old", "new"))
    for r in requests[:most]:
        table.add_row(*map(_plain, (r.case_id, r.prompt, r.subject or "", r.target_true or "", r.target_new)))
    console.print(table)
    _more(console, len(requests) - (most or len(requests)), "requests (--all)")


def _modules(console: Console, part: Part, most: int | None) -> None:
    delta = part.delta
    lines = [(path, change) for path, changes in delta.items() for change in changes]
    table = _table(f"changed modules: {len(delta.paths)}", ("module", "kind", "extent"), ("of", "norm", "size"))
    for path, change in lines[:most]:
        of = " x ".join(map(str, change.shape)) if isinstance(change, WeightChange) else ""
        norm = f"{change.square_norm() ** 0.5:.4g}" if change.in_weights else ""
        cells = (
            path or "(the model)",
            type(change).__name__,
            change.extent(),
            of,
            norm,
            _bytes(tensor_bytes(change.tensors())),
        )
        table.add_row(*map(_plain, cells))
    console.print(table)
    _more(console, len(lines) - (most or len(lines)), "changes (--all)")


def _numbers(console: Console, card: Mapping[str, Any]) -> None:
    results = card.get("results")
    if not isinstance(results, Mapping):
        return
    data = card.get("data") or {}
    title = f"numbers of its run: {data.get('records')} records of {data.get('name')}, percent"
    table = _table(title, ("measured", "probe", "metric"), ("before", "after", "95 % interval"))
    for moment, kinds in results.items():
        for kind, metrics in kinds.items():
            for metric in [name for name in ("success", "exact", "unchanged") if name in metrics]:
                cell = metrics[metric]
                numbers = (number(cell.get("before")), number(cell.get("after")), interval(cell.get("ci")))
                table.add_row(_plain(moment), _plain(kind), metric, *map(_plain, numbers))
    console.print(table)


def _exports(console: Console, part: Part) -> None:
    """Which exports keep it."""
    changes = [change for _, own in part.delta.items() for change in own]
    if not all(change.in_weights for change in changes):
        console.print("export: --to hf (beside the unedited weights; kedit.load_edited loads it)")
    elif all(isinstance(change, WeightChange) and change.factored() is not None for change in changes):
        console.print("export: --to peft (exact), --to hf (merged)")
    else:
        console.print("export: --to hf (merged); --to peft where its rank is low")


def _table(title: str, columns: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _more(console: Console, n: int, what: str) -> None:
    if n > 0:
        console.print(f"{n} more {what}", style="dim")


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _plain(value: object) -> str:
    """A text as it is: no markup, no control characters."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))
    return escape(text)


def _cut(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _bytes(size: int) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.2f} GB"
