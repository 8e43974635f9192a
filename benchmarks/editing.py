"""What the benchmarks share that edit as `kedit fit` does: the method of a config, robust queries, the trainer."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, Trainer

from kedit.cli.options.quiet import quiet_lightning
from kedit.data import EditData, RobustQueries
from kedit.data.robust_queries import QueryConfig
from kedit.methods import EditingModule
from kedit.methods.base.edit_config import EditConfig, Regime
from kedit.methods.locate_then_edit.base import LocateThenEdit
from kedit.model.lm import LMConfig
from kedit.request import EditRecord


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark on robust queries."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--config", required=True, help="a config of `kedit fit`; its `model` is the editor")
    found.add_argument("--set", nargs="*", default=[], help="other options of the editor, as NAME=JSON")
    found.add_argument("--data", required=True, help="a robust-query file")
    found.add_argument("--corpus", required=True, help="text for the long contexts")
    found.add_argument("--known", action="store_true", help="only facts that the model gives itself")
    found.add_argument("--records", type=int)
    found.add_argument("--skip", type=int, default=0)
    found.add_argument("--max-probes", type=int, help="probes of each kind in a record")
    found.add_argument("--rows", type=Path, help="file for the result rows; runs/SAVE.jsonl without it")
    found.add_argument("--save", required=True, help="name of the figures under benchmarks/results")
    return found


def editor_of(a: argparse.Namespace, regime: Regime | None = None) -> LocateThenEdit:
    """The editor of a config, in another regime where one is given, and with `--set` in place of its own values."""
    whole = yaml.safe_load(Path(a.config).read_text(encoding="utf-8"))
    for name, value in (word.split("=", 1) for word in a.set):
        change(whole, name, json.loads(value))
    return method_of(whole, LocateThenEdit, regime)


def method_of(whole: dict[str, Any], base: type[Any], regime: Regime | None = None) -> Any:
    """The method of a config, on its model, in another regime where one is given."""
    reader = ArgumentParser(exit_on_error=False)
    reader.add_class_arguments(LMConfig, "lm")
    reader.add_class_arguments(EditConfig, "edit")
    reader.add_subclass_arguments(base, "model")
    groups = {name: whole[name] for name in ("lm", "edit", "model") if name in whole}
    found = reader.instantiate(reader.parse_object(groups))
    edit = found["edit"] if regime is None else replace(found["edit"], regime=regime)
    return found["model"].configure(found["lm"], edit)


def change(whole: dict[str, Any], option: str, value: Any) -> None:
    """Give an option of the method, or of `lm` and `edit`, another value."""
    *path, last = option.split(".")
    group = whole if path[:1] in (["lm"], ["edit"]) else whole["model"].setdefault("init_args", {})
    for part in path:
        group = group.setdefault(part, {})
        group = group.setdefault("init_args", {}) if "class_path" in group else group
    group[last] = value


def robust_data(a: argparse.Namespace, kinds: Sequence[str], **options: Any) -> RobustQueries:
    """The records that the options name; `options` are those of `QueryConfig`."""
    return RobustQueries(
        a.data,
        known=a.known,
        limit=a.records,
        skip=a.skip,
        max_probes=a.max_probes,
        probe_kinds=list(kinds),
        queries=QueryConfig(corpus=a.corpus, **options),
    )


def fit(module: EditingModule, data: EditData, callback: Callback) -> None:
    """Edits all of `data` as `kedit fit` does, without its files."""
    with quiet_lightning():
        Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=-1,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
        ).fit(module, datamodule=data)


class Listed(EditData):
    """Records that are at hand."""

    def __init__(self, name: str, records: Sequence[EditRecord], kinds: Sequence[str], **options: Any) -> None:
        super().__init__(probe_kinds=list(kinds), **options)
        self.name, self._listed = name, list(records)

    def read(self) -> list[EditRecord]:
        return list(self._listed)


def arm_of(arm: str, regime: Regime) -> tuple[str, EditingModule, int, list[str]]:
    """Name, method, edit batch size and changed options of NAME=CONFIG[,OPTION=VALUE...]."""
    name, _, spec = arm.partition("=")
    config, *changes = re.split(r",(?![^\[]*\])", spec)  # a list's commas stay
    whole = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    for word in changes:
        option, _, value = word.partition("=")
        if option == "batch_size":
            whole["data"]["init_args"]["batch_size"] = int(value)
        else:
            change(whole, option, yaml.safe_load(value))
    method = method_of(whole, EditingModule, regime)
    return name, method, whole["data"]["init_args"].get("batch_size", 1), [Path(config).name, *changes]


def rows_file(a: argparse.Namespace, again: bool = False) -> Path:
    """Where the result rows go; its folder exists, the file begins anew unless `again`."""
    path = a.rows or Path("runs") / f"{a.save}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not again:
        path.unlink(missing_ok=True)
    return path


def show(lines: list[dict[str, Any]]) -> None:
    """Prints the figures of `kedit.results.robustness.figures`."""
    for line in lines:
        print(
            f"{line['measured_at']:28s}{line['kind']:18s}{line['after']:7.1f} "
            f"[{line['ci_low']:.1f}, {line['ci_high']:.1f}]"
        )


def names(a: argparse.Namespace) -> dict[str, Any]:
    """The options for a result file: files by their names, not by where they lie."""
    return {key: Path(value).name if key in ("data", "corpus", "config") else value
            for key, value in vars(a).items() if key not in ("rows", "save", "edits")}  # fmt: skip
