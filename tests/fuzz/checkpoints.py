"""Interrupted runs: one whose files were changed ends as the undisturbed one did, says what is lost, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file

from kedit.callbacks import EditProgress
from kedit.cli import main
from tests.fuzz.damage import damaged
from tests.fuzz.harness import Case, Said, Wrong
from tests.fuzz.mutate import changed
from tests.support.killing import same
from tests.support.small_runs import QUICK_ROME, city_facts, sequential_run
from tests.support.tiny_models import save_tiny

EDITS, DONE = 4, 2
LAST, RESULTS = Path("checkpoints") / "last.ckpt", "results.jsonl"
VALUES = (
    None,
    True,
    0,
    -1,
    1,
    3,
    10**30,
    0.5,
    float("nan"),
    "",
    "text",
    "../../up",
    "/etc/passwd",
    [],
    {},
    [None],
    {"a": 1},
)
Change = Callable[[Path, Random], tuple[str, bool]]


class _Broken(Exception):
    """The run is to end half-way."""


class Checkpoints:
    """A sequential run of ROME that was stopped after half of its edits."""

    name, seconds = "checkpoints", 60.0

    def __init__(self, folder: Path) -> None:
        self.model = str(save_tiny(folder / "model", "llama", n_layers=2, d_model=16, d_ff=40, context=128))
        self.facts = city_facts(folder / "facts.jsonl", EDITS)
        self.whole, self.half = folder / "whole", folder / "half"
        main(self._words(self.whole))
        count = EditProgress.on_edit_end

        def breaks(progress: EditProgress, trainer: Any, module: Any, batch: Any) -> None:
            count(progress, trainer, module, batch)
            if batch.index == DONE:
                raise _Broken

        with patch.object(EditProgress, "on_edit_end", breaks):
            try:
                main(self._words(self.half))
            except _Broken:
                assert (self.half / LAST).is_file()

    def _words(self, folder: Path) -> list[str]:
        options = QUICK_ROME | {"model.layer": 0, "model.v_num_grad_steps": 2, "metrics.measure": "edit"}
        options |= {"run.root": folder.parent, "run.name": folder.name, "run.resume": "true"}
        return sequential_run(lambda *_, **__: self.model, self.facts, options)

    def case(self, chance: Random, folder: Path) -> Case:
        """One changed file of the stopped run."""
        run = folder / "run"
        shutil.copytree(self.half, run)
        kinds: list[Change] = [_checkpoint] * 5 + [_state] * 7 + [_journal] * 5 + [_rows] * 5 + [_value] * 2 + [_file]
        change, altered = chance.choice(kinds)(run, chance)
        return Case(change, lambda said: self._run(run, altered, said))

    def _run(self, run: Path, altered: bool, said: Said) -> str:
        """Resumes it."""
        outside = {path for path in run.parent.iterdir()}
        main(self._words(run))
        if {path for path in run.parent.iterdir()} != outside:
            raise Wrong("it wrote outside of its folder")
        mine, right = _rows_of(run), _rows_of(self.whole)
        delta = load_file(run / "delta" / "delta.safetensors")
        if not same(delta, load_file(self.whole / "delta" / "delta.safetensors")):
            if altered:
                return "other"
            raise Wrong("another delta")
        if mine == right and _results(run) == _results(self.whole):
            return "same"
        told = [
            line for line in said.log if RESULTS in line and any(word in line for word in ("lost", "line", "damaged"))
        ]
        if told and all(row in right for row in mine):
            return "told"
        if altered:
            return "other"
        missing = [row["case_id"] for row in right if row not in mine]
        raise Wrong(f"other rows: {len(mine)} of {len(right)}, without those of {missing}")


def _rows_of(folder: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (folder / RESULTS).read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise Wrong(f"the rows cannot be read: {error}") from error


def _results(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))["results"]


def _checkpoint(run: Path, chance: Random) -> tuple[str, bool]:
    return _bytes_of(run / LAST, chance)


def _journal(run: Path, chance: Random) -> tuple[str, bool]:
    return _bytes_of(next((run / LAST.parent).glob("edits-*.bin")), chance)


def _rows(run: Path, chance: Random) -> tuple[str, bool]:
    return _bytes_of(run / RESULTS, chance, text=True)


def _bytes_of(path: Path, chance: Random, text: bool = False) -> tuple[str, bool]:
    data, change = damaged(path.read_bytes(), chance, text)
    path.write_bytes(data)
    return f"{path.name}: {change}", False


def _state(run: Path, chance: Random) -> tuple[str, bool]:
    """Another value in the checkpoint, written as torch writes; sometimes with the checksum that is right for it."""
    state = torch.load(run / LAST, map_location="cpu", weights_only=True)
    part = "kedit" if chance.random() < 0.8 else None
    value, change, _ = changed(state[part] if part else state, chance, VALUES)
    if part:
        state[part] = value
    else:
        state = value
    altered = False
    if chance.random() < 0.5 and isinstance(state, dict) and find_spec("kedit.runtime.checkpoint_file") is not None:
        file: Any = import_module("kedit.runtime.checkpoint_file")
        file.seal(state)
        altered = True
    torch.save(state, run / LAST)
    return f"last.ckpt, {part or 'all'}: {change}{', sealed' if altered else ''}", altered


def _value(run: Path, chance: Random) -> tuple[str, bool]:
    """Another value in a row."""
    lines = (run / RESULTS).read_text(encoding="utf-8").splitlines()
    place = chance.randrange(len(lines))
    row, change, _ = changed(json.loads(lines[place]), chance, VALUES)
    lines[place] = json.dumps(row)
    (run / RESULTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{RESULTS}, line {place}: {change}", False


def _file(run: Path, chance: Random) -> tuple[str, bool]:
    journal = next((run / LAST.parent).glob("edits-*.bin")).relative_to(run)
    name = chance.choice([LAST, journal, Path(RESULTS), Path("run.json"), Path("config.yaml")])
    change = chance.choice(["missing", "a folder", "the other file"])
    other = (run / (journal if name == LAST else LAST)).read_bytes()
    (run / name).unlink()
    if change == "a folder":
        (run / name).mkdir()
    elif change == "the other file":
        (run / name).write_bytes(other)
    return f"{name}: {change}", False
