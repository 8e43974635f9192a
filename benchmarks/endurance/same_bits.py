"""Small fixed runs of every method on SmolLM2, and whether two sets of them are the same to the bit.

    python benchmarks/endurance/same_bits.py run before      # on one commit (about 10 minutes on one CPU core)
    python benchmarks/endurance/same_bits.py run after       # on another one
    python benchmarks/endurance/same_bits.py compare before after

Compared are all tensors of all deltas and all fields of all result rows; `--renamed old=new` names a field that has
another name in the second set. Statistics are computed anew in every set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
EDITOR = ("stats.tokens=7000", "contexts.lengths=[[5,2]]", "v_num_grad_steps=8")
QUERIES = (
    "data.queries.paraphrases=3", "data.queries.shuffles=3", "data.queries.train_long=1",
    "data.queries.long_words=[60]", "model.adapter.steps=10", "robustness.fluency=false",
)  # fmt: skip
# name: config, regime, records, batch size, further options
RUNS: dict[str, tuple[str, str, int, int, tuple[str, ...]]] = {
    "rome": ("rome", "single", 3, 1, ()),
    "rrome": ("rrome", "sequential", 3, 1, ()),
    "memit": ("memit", "batch", 3, 3, ()),
    "emmet": ("emmet", "sequential", 4, 2, ()),
    "rep_rome": ("rep", "single", 2, 1, QUERIES),
    "rep_memit": ("rep_memit", "sequential", 4, 2, QUERIES),
    "steam_rome": ("steam_rome", "single", 2, 1, ()),
    "steam_memit": ("steam_memit", "batch", 2, 2, ()),
    "pac": ("pac", "single", 2, 1, ()),
    "pac_seq": ("pac", "sequential", 4, 2, ()),
}


def command(name: str, out: Path) -> list[str]:
    """The run of that name."""
    config, regime, records, size, more = RUNS[name]
    options = [f"run.root={out}", f"run.name={name}", f"edit.regime={regime}", "trainer.accelerator=cpu"]
    options += [f"data.limit={records}", f"data.batch_size={size}", *more]
    if not name.startswith("pac"):
        below = "model.editor" if name.startswith(("rep", "steam")) else "model"
        options += ["edit.lanes=2", *(f"{below}.{option}" for option in EDITOR)]
    words = [part for option in options for part in (f"--{option.partition('=')[0]}", option.partition("=")[2])]
    return [sys.executable, "-m", "kedit", "fit", "--config", str(ROOT / f"configs/{config}_smollm2.yaml"), *words]


def run(out: Path) -> None:
    """All runs, with a cache of their own beside them."""
    out.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"OMP_NUM_THREADS": "1", "KEDIT_CACHE": str(out.resolve() / "cache")}
    for name in RUNS:
        done = subprocess.run(command(name, out.resolve()), env=env, cwd=ROOT)
        print(f"{name}: exit status {done.returncode}")


def flat(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a row, by its full name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from flat(inner, f"{where}[{i}]")
    else:
        yield where, value


def rows(folder: Path, renamed: dict[str, str]) -> list[dict[str, Any]]:
    """The result rows of a run, flat, fields by their new names."""
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [{renamed.get(key, key): value for key, value in flat(json.loads(line))} for line in lines]


def compare(one: Path, other: Path, renamed: dict[str, str]) -> int:
    """Prints, for each run, what was compared and what differs; the number of differences."""
    different = 0
    for name in RUNS:
        a, b = one / name, other / name
        files = sorted(path.relative_to(a) for path in a.rglob("delta.safetensors"))
        tensors = differing = 0
        for file in files:
            left, right = load_file(a / file), load_file(b / file)
            tensors += len(left)
            differing += len(left.keys() ^ right.keys())
            differing += sum(not torch.equal(left[key], right[key]) for key in left.keys() & right.keys())
        left_rows, right_rows = rows(a, renamed), rows(b, {})
        fields = sum(len(row) for row in left_rows)
        wrong = abs(len(left_rows) - len(right_rows))
        for mine, theirs in zip(left_rows, right_rows, strict=False):
            keys = {key for key in mine.keys() | theirs.keys() if mine.get(key, 0) != theirs.get(key, 1)}
            wrong += len(keys)
            if keys:
                print(f"  {name}: {sorted(keys)[:6]}")
        print(
            f"{name:12} {len(files)} deltas, {tensors} tensors, {differing} differ; "
            f"{len(left_rows)} rows, {fields} fields, {wrong} differ"
        )
        different += differing + wrong + (not files) + (not left_rows)
    return different


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("out", type=Path)
    both = commands.add_parser("compare")
    both.add_argument("one", type=Path)
    both.add_argument("other", type=Path)
    both.add_argument("--renamed", nargs="*", default=[], metavar="OLD=NEW")
    a = parser.parse_args()
    if a.command == "run":
        run(a.out)
    elif compare(a.one, a.other, dict(pair.split("=") for pair in a.renamed)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
