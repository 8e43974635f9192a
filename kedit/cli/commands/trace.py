"""`kedit trace`: in which layers, and at which tokens, a model recalls the facts that it knows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from kedit.analysis.causal_tracing import Average, average
from kedit.analysis.causal_tracing_figure import average_figure, example_figure
from kedit.analysis.causal_tracing_report import as_csv, card, lines_of, peak_table, sentence
from kedit.causal_tracing import PARTS, FactTrace, Part, TraceConfig, facts_of, noise_level, trace, window_of
from kedit.cli.commands.stats import device_of
from kedit.cli.options.checks import data_missing
from kedit.cli.options.layers import begin_anew, class_first
from kedit.data import EditData
from kedit.data.choosing import NoneKnown
from kedit.errors import KeditError, at_least
from kedit.evaluation.score import known_records
from kedit.forward.binding import load_lm
from kedit.model.lm import LM, LMConfig
from kedit.request import EditRecord
from kedit.runtime.files import make_folder, write_figure, write_json, write_text
from kedit.runtime.option_values import check_values
from kedit.runtime.progress import stage
from kedit.runtime.provenance import provenance

ABOUT = "In which layers does a model recall facts? Causal tracing, as in ROME's paper; see docs/trace.md."


def trace_command(words: list[str]) -> None:
    """Trace facts that the model knows, print a table, and write figures and numbers where a folder is given.

    Args:
        words: What stands after `kedit trace`.

    Raises:
        KeditError: No data, no fact that the model knows, or one that cannot be traced.
    """
    parser = _parser()
    given = parser.parse_args(class_first(words))
    check_values(given)
    args: Any = parser.instantiate_classes(given)
    if args.data is None:
        raise data_missing("which facts are traced?")
    at_least("examples", args.examples, 0)
    data: EditData = args.data
    _ = data.everything  # a bad file stops here
    if args.out is not None:
        make_folder(Path(args.out), "out")
    lm = data.asking(load_lm(args.lm, device_of(args.device)))
    facts = facts_of(lm, _known_records(lm, data))
    sigma = noise_level(lm, facts, args.trace.noise)
    with stage("tracing facts") as progress:
        traces = trace(lm, facts, args.trace, PARTS, progress=progress, sigma=sigma, keep=True)
    window = window_of(args.trace, lm.arch.n_layers)
    averages: dict[Part, Average] = {part: average(traces, part, window) for part in PARTS}
    console = Console(highlight=False)
    title = f"causal tracing of {lm.name}, {len(traces)} facts of {data.title}"
    console.print(peak_table(averages, title, window))
    console.print(sentence(traces, averages), soft_wrap=True)
    if args.out is None:
        return
    out = Path(args.out)
    settings = asdict(args.trace) | {"sigma": sigma, "window": window}
    about = {"model": lm.name, "model_fingerprint": lm.fingerprint, "dtype": str(lm.dtype).removeprefix("torch.")}
    whole = card(traces, averages) | {"settings": settings, **about, "data": data.describe(), "versions": provenance()}
    write_text(out / "trace.csv", as_csv(lines_of(lm, traces)))
    write_json(out / "trace.json", whole)
    caption = (
        f"Noise on the subject's embeddings: sigma = {args.trace.noise:g} standard deviations = {sigma:.3g}; "
        f"{args.trace.samples} samples, seed {args.trace.seed}."
    )
    about_aie = "AIE: p(answer) restored − p(answer) corrupted, mean over facts."
    figure = average_figure(averages, window, f"C{title[1:]}", f"{about_aie} {caption}")
    write_figure(out / "trace.png", figure)
    names = ["trace.csv", "trace.json", "trace.png", *_examples(lm, traces[: args.examples], window, caption, out)]
    console.print(f"written: {', '.join(str(out / name) for name in names)}", soft_wrap=True)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="kedit trace", exit_on_error=False, description=ABOUT)
    parser.add_argument("-c", "--config", action="config", help="YAML file with the options below.")
    facts = "Which facts, as in kedit fit; those that the model does not know are left out."
    parser.add_subclass_arguments(EditData, "data", required=False, help=facts)
    parser.add_argument("--lm", type=LMConfig, default=LMConfig(), help="The model.")
    parser.add_argument("--trace", type=TraceConfig, default=TraceConfig(), help="Noise and windows.")
    parser.add_argument("--examples", type=int, default=0, help="Single facts that are drawn too, the first so many.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    out = "Folder for trace.csv, trace.json, trace.png and the examples; null: the table alone."
    parser.add_argument("--out", type=str | None, default=None, help=out)
    begin_anew(parser)
    return parser


def _known_records(lm: LM, data: EditData) -> list[EditRecord]:
    """The records of the data, in its order, whose true target the model gives.

    Raises:
        KeditError: There is none.
    """
    data.filter_known = True  # of what a model does not know, no run can be corrupted

    def known(records: list[EditRecord]) -> list[EditRecord]:
        facts_of(lm, records)
        return known_records(lm, records)

    try:
        data.prepare(known, lambda: lm)
    except NoneKnown as error:
        raise KeditError(
            f"data: {lm.name} knows no fact of {data.name}, and only what a model knows can be traced; use other data"
        ) from error
    return data.records


def _examples(lm: LM, traces: list[FactTrace], window: int, caption: str, out: Path) -> list[str]:
    """Draws single facts; the names of their files."""
    names = []
    for i, found in enumerate(traces, 1):
        names.append(f"example_{i:02d}.png")
        write_figure(out / names[-1], example_figure(lm, found, window, caption))
    return names
