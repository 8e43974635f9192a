"""`kedit stats`: the covariance of a model's keys, computed ahead of a run or read from the cache, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kedit.cache import cache_dir
from kedit.defaults import value_defaults
from kedit.lm import LM, LMConfig, load_lm
from kedit.stats import Covariance, StatsConfig, covariances, save_covariance, store


def stats(words: list[str]) -> None:
    """Parse `words`, compute what is not cached, and print a line per layer."""
    args = _parser().parse_args(words)
    lm = load_lm(args.lm, "cuda" if args.device == "auto" and torch.cuda.is_available() else _cpu(args.device))
    layers = args.layers or [value_defaults(lm).layer]
    with _bar() as progress:
        found = covariances(lm, layers, args.stats, progress=progress)
    files = {layer: store.layer_path(store.folder(cache_dir(), lm), cov.card["key"]) for layer, cov in found.items()}
    if args.out is not None:
        files = {layer: Path(args.out) / files[layer].name for layer in found}
        for layer, path in files.items():
            save_covariance(path, found[layer])
    Console(highlight=False).print(_table(lm, found, files))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="kedit stats",
        exit_on_error=False,
        description="Covariance of a model's keys. A later `kedit fit` with the same lm and stats finds it in the cache.",
    )
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_argument("--lm", type=LMConfig, default=LMConfig(), help="The model.")
    parser.add_argument("--layers", type=list[int] | None, help="Layers, e.g. [5,6]; null: the model's own.")
    parser.add_argument("--stats", type=StatsConfig, default=StatsConfig(), help="The text.")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--out", type=str | None, help="A folder to write the files to as well.")
    return parser
