"""`kedit plan`: how much memory a run will take, from its configuration alone."""

from __future__ import annotations

import json
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from kedit.cli.options.found import found_configs
from kedit.cli.options.planned import planned
from kedit.errors import KeditError
from kedit.plan.lengths import Lengths, lengths_of
from kedit.plan.phases import ScoringPlan, TextPlan, shown_bytes
from kedit.plan.plan import Plan, plan_of
from kedit.plan.shape import ShapeLM, shape_lm

USAGE = """\
usage: kedit plan CONFIG [OPTIONS of kedit fit] [--device cpu|cuda] [--json]

  parameters, statistics, lanes, the peak of each phase, and what fits in 24, 48 and 80 GB:  kedit plan rome_smollm2
  the same run on a GPU:                                                 kedit plan rep_llama2 --device cuda
  with other options:                                                    kedit plan rome_smollm2 --edit.lanes 16

No weights are read: of the model's folder, config.json is enough. Lengths of texts are those of the run's records where
data and tokenizer are there, and CounterFact's otherwise.
"""


def plan(words: list[str]) -> None:
    """Print the plan of a configuration.

    Args:
        words: What stands after `kedit plan`.

    Raises:
        KeditError: No configuration, no config.json, a model that kedit does not edit.
    """
    if not words or words[0] in ("-h", "--help"):
        Console(soft_wrap=True, highlight=False).print(USAGE, end="", markup=False)
        return
    words, as_json, device = _own(words)
    if not words[0].startswith("-"):
        words = ["--config", *words]
    method, lm_config, data, metrics, perplexity = planned(found_configs(words, say=False))
    lm, own = shape_lm(lm_config, device)
    found = plan_of(method, lm, _lengths(lm, own, data), _scoring(metrics, perplexity, method.regime), device)
    if as_json:
        Console(soft_wrap=True).out(json.dumps(found.card(), indent=2), highlight=False)
        return
    show(found, Console(highlight=False))


def _own(words: list[str]) -> tuple[list[str], bool, str]:
    """The words without the options of this command, and these."""
    rest, as_json, device = [], False, "cuda" if torch.cuda.is_available() else "cpu"
    each = iter(words)
    for word in each:
        name, _, value = word.partition("=")
        if word == "--json":
            as_json = True
        elif name == "--device":
            device = (value or next(each, "")).partition(":")[0]
            if device not in ("cpu", "cuda"):
                raise KeditError(f"device: {device!r} is neither cpu nor cuda")
        else:
            rest.append(word)
    if not rest:
        raise KeditError("which configuration? kedit config list names them, for instance rome_smollm2")
    return rest, as_json, device


def _lengths(lm: ShapeLM, own: bool, data: Any) -> Lengths:
    if not own:
        return Lengths()
    try:
        records = data.records
    except KeditError:  # no such file here, where the plan is made
        return Lengths()
    return lengths_of(lm, records)


def _scoring(metrics: Any, perplexity: Any, regime: str) -> ScoringPlan:
    scoring, text = metrics.scoring, None
    if perplexity.enabled:
        text = TextPlan(perplexity.tokens_of(regime), perplexity.window, perplexity.kl)
    generates = bool(scoring.generate or scoring.wild)
    return ScoringPlan(scoring.batch_tokens, generates, scoring.max_new_tokens, text)


def show(found: Plan, console: Console) -> None:
    """The plan as a person reads it."""
    lanes = "" if found.lanes is None else f", {found.lanes} lanes"
    table = Table(
        title=f"{found.method} on {found.model}: {found.regime}{lanes}, {found.device}", title_justify="left", box=None,
        pad_edge=False, header_style="bold",
    )  # fmt: skip
    table.add_column("phase")
    table.add_column("takes", justify="right")
    table.add_column("keeps", justify="right")
    table.add_column("of", overflow="fold")
    numbers = f"{found.parameters / 1e6:,.0f} M parameters, {found.dtype}"
    table.add_row("model", shown_bytes(found.weights), shown_bytes(found.weights), numbers)
    for phase in found.phases:
        more = f"; a lane {shown_bytes(phase.lane)}" if phase.lane else ""
        table.add_row(
            phase.name, shown_bytes(phase.peak), shown_bytes(phase.kept) if phase.kept else "", phase.note + more
        )
    table.add_row("peak", shown_bytes(found.peak), "", "the model, what is kept, and the largest phase", style="bold")
    console.print(table)
    fits = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("GPU", "fits", "lanes", "peak"):
        fits.add_column(name, justify="right")
    for fit in found.fits:
        answer = "[green]yes[/]" if fit.fits else "[red]no[/]"
        fits.add_row(f"{fit.gib} GB", answer, "" if fit.lanes is None else str(fit.lanes), shown_bytes(fit.peak))
    console.print()
    console.print(fits)
    texts = "of the run's records" if found.lengths.own else "CounterFact's, as data or tokenizer are not here"
    if found.assumes is not None:
        console.print(f"\n{found.assumes}.", soft_wrap=True)
    console.print(f"\nLengths of texts: {texts}. Lanes are halved until the run fits; --edit.lanes sets a number.")
