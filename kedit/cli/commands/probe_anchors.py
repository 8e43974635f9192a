"""`kedit probe-anchors`: in which layers a model's states tell objects apart, before any STEAM run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from kedit.analysis.anchor_probe_figure import draw
from kedit.analysis.anchor_probe_report import Windows, as_csv, lines_of, probe_table, used, verdict
from kedit.cli.commands.stats import device_of
from kedit.cli.options.checks import data_missing
from kedit.cli.options.layers import begin_anew, class_first
from kedit.cli.options.messages import of_kedit
from kedit.data import EditData
from kedit.errors import KeditError
from kedit.evaluation.score import known_records
from kedit.forward.binding import load_lm
from kedit.methods.locate_then_edit.rome import ROME
from kedit.methods.steam import AnchorBank, AnchorConfig, probe_of, telling
from kedit.methods.steam.bank import PROBED, within_relations
from kedit.methods.steam.module import pool_of
from kedit.model.architecture import check_layers
from kedit.model.lm import LM, LMConfig
from kedit.runtime.files import make_folder, write_text
from kedit.runtime.option_values import check_values
from kedit.runtime.progress import stage

ABOUT = "In which layers do anchors carry the object? Run it before choosing model.align.layers of STEAM."


def probe_anchors(words: list[str]) -> None:
    """Probe the unedited model, print a line per layer, and write the figure where a folder is given.

    Args:
        words: What stands after `kedit probe-anchors`.

    Raises:
        KeditError: No data, no references, or an edited layer that the model does not have.
    """
    with _options():
        parser = _parser()
        given = parser.parse_args(class_first(words))
        check_values(given)
        args: Any = parser.instantiate_classes(given)
        if args.data is None:
            raise data_missing("whose new objects are probed?")
        if args.most < 2:
            raise KeditError(f"most: {args.most} is less than 2, and the probe compares objects")
        out = _folder(args.out)
        pool = pool_of(args.data.everything, args.anchors)  # a bad file stops here
        lm = args.data.asking(load_lm(args.lm, device_of(args.device)))
        edited = _edited(lm, args.edited_layer)
        args.data.prepare(lambda records: known_records(lm, records) if args.data.filter_known else records, lambda: lm)
        bank = AnchorBank(lm, args.data.records, pool, args.anchors)
        with stage("anchors: what the model knows") as progress:
            anchors = bank.with_references(bank.records, args.most, progress)
        probes = probe_of(anchors.values())
    inside = within_relations(anchors.values())
    windows = Windows.of(telling(probes, inside), edited)
    lines = lines_of(probes, inside, windows)
    of = f"{lm.name}, objects of {args.data.title}"
    console = Console(highlight=False)
    console.print(probe_table(lines, f"anchor probe of {of}"))
    console.print(f"{used(anchors)}; {len(bank.records)} records", soft_wrap=True)
    console.print(verdict(lines, windows), soft_wrap=True)
    if out is not None:
        write_text(out / "anchor_probe.csv", as_csv(lines))
        caption = (
            f"{used(anchors)}; seed {args.anchors.seed}.\n"
            f"States of the unedited model ({str(lm.dtype).removeprefix('torch.')}) where the object is predicted. "
            "Means over references, objects alike; the own anchor of a state leaves it out.\n"
            "Within relations: states are compared with those of their own relation alone."
        )
        draw(out / "anchor_probe.png", lines, windows, f"Do states tell objects apart? Anchor probe of {of}", caption)
        console.print(f"written: {out / 'anchor_probe.csv'}, {out / 'anchor_probe.png'}", soft_wrap=True)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="kedit probe-anchors", exit_on_error=False, description=ABOUT)
    parser.add_argument("-c", "--config", action="config", help="YAML file with the options below.")
    parser.add_subclass_arguments(
        EditData, "data", required=False, help="Whose new objects are probed, as in kedit fit."
    )
    parser.add_argument("--lm", type=LMConfig, default=LMConfig(), help="The model.")
    parser.add_argument("--anchors", type=AnchorConfig, default=AnchorConfig(), help="As model.anchors of STEAM.")
    edited = "Layer that would be edited; null takes the one that ROME edits in this model."
    parser.add_argument("--edited-layer", "--edited_layer", type=int | None, default=None, help=edited)
    parser.add_argument("--most", type=int, default=PROBED, help="Objects to look at, at most.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    out = "Folder for anchor_probe.csv and anchor_probe.png; null: the table alone."
    parser.add_argument("--out", type=str | None, default=None, help=out)
    begin_anew(parser)
    return parser


@contextmanager
def _options() -> Iterator[None]:
    """Inside, what a run of STEAM calls `model.anchors` is called `anchors`, as it is here."""
    try:
        yield
    except (KeditError, ArgumentError, TypeError, ValueError) as error:
        if (message := of_kedit(error)) is None:
            raise
        raise KeditError(message.replace("model.anchors", "anchors")) from error


def _folder(name: str | None) -> Path | None:
    if name is None:
        return None
    make_folder(Path(name), "out")
    return Path(name)


def _edited(lm: LM, wanted: int | None) -> int:
    edited = ROME.published.of(lm)["layer"] if wanted is None else wanted
    check_layers(lm.arch, [edited], "edited-layer")
    if edited == lm.arch.n_layers - 1:
        raise KeditError(f"edited-layer: {edited} is the last layer; none above it is left to be aligned")
    return edited
