"""`kedit stats`: the covariance of a model's keys, computed ahead of a run or read from the cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from kedit.covariance import Covariance, StatsConfig, covariances, save_covariance, store
from kedit.errors import KeditError, shown
from kedit.forward.binding import load_lm
from kedit.model.lm import LM, LMConfig
from kedit.runtime.cache import cache_dir
from kedit.runtime.option_values import check_values
from kedit.runtime.progress import stages

log = logging.getLogger(__name__)

ABOUT = "Covariance of a model's keys. A kedit fit with the same lm and stats finds it in the cache."


def stats(words: list[str]) -> None:
    """Compute what is not cached, and print a line per layer.

    Args:
        words: What stands after `kedit stats`.
    """
    parser = _parser()
    given = parser.parse_args(words)
    check_values(given)
    args: Any = parser.instantiate_classes(given)
    lm = load_lm(args.lm, device_of(args.device))
    layers = args.layers or [_usual_layer(lm)]
    with stages() as report:
        found = covariances(lm, layers, args.stats, progress=report)
    base = store.folder(cache_dir(), lm)
    files = {layer: store.layer_path(base, cov.card["key"]) for layer, cov in found.items()}
    if args.out is not None:
        files = {layer: Path(args.out) / file.name for layer, file in files.items()}
        for layer, file in files.items():
            save_covariance(file, found[layer])
    console = Console(highlight=False)
    console.print(_table(lm, found))
    for layer, file in files.items():
        console.print(f"layer {layer}: {file}", soft_wrap=True)


def _usual_layer(lm: LM) -> int:
    from kedit.methods.locate_then_edit.rome import ROME  # here: Lightning, which nothing else needs

    return ROME.published.of(lm)["layer"]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="kedit stats", exit_on_error=False, description=ABOUT)
    parser.add_argument("-c", "--config", action="config", help="YAML file with the options below.")
    parser.add_argument("--lm", type=LMConfig, default=LMConfig(), help="The model.")
    layers = "Layers, e.g. [5,6]; null takes the one that ROME edits in this model."
    parser.add_argument("--layers", type=list[int] | None, default=None, help=layers)
    parser.add_argument("--stats", type=StatsConfig, default=StatsConfig(), help="The text.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    out = "Folder to write the files to, beside the cache; for kedit.covariance.load_covariance."
    parser.add_argument("--out", type=str | None, default=None, help=out)
    return parser


def device_of(name: str) -> torch.device:
    """The device to compute on.

    Raises:
        KeditError: There is none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise KeditError(f"device: {shown(name)} cannot be used: {shown(str(error).splitlines()[0], 200)}") from None
    return torch.device(name)


def _table(lm: LM, found: Mapping[int, Covariance]) -> Table:
    table = Table(title=f"covariance of the keys of {lm.name}", title_justify="left")
    for column in ("layer", "tokens", "d_in", "change at last doubling", "unseen / own text"):
        table.add_column(column, justify="right")
    for layer, cov in found.items():
        last = (cov.card.get("convergence") or [{}])[-1]
        change = f"{100 * last['change']:.1f} %" if "change" in last else ""
        unseen = f"{last['unseen']:.2f}" if "unseen" in last else ""
        table.add_row(str(layer), str(cov.count), str(cov.d_in), change, unseen)
    return table
