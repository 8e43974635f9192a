"""ROME, MEMIT, REP, STEAM and PAC on SmolLM2 on a GPU, side by side, compared with the rows that a CPU gave.

The runs are those of `benchmarks/endurance/same_bits.py`, a few facts each; `memit_1000` edits 1,000 requests of
CounterFact at once where `FILES/data` has them. Figures are written after each run that ends.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file too

from benchmarks.endurance.same_bits import ROOT, command
from benchmarks.gpu.agreement import agreement, figures_of, kept, shares
from kedit.model.pretrained import fetch

NAMES = ("memit_1000", "rome", "memit", "rep_rome", "steam_rome", "pac")


def words_of(name: str, a: argparse.Namespace, root: Path) -> list[str]:
    """The command of a run."""
    if name == "memit_1000":
        words = [
            sys.executable,
            "-m",
            "kedit",
            "fit",
            "--config",
            "configs/memit_smollm2.yaml",
            "--data",
            "CounterFact",
        ]
        words += ["--data.path", str(a.files / "data" / "counterfact_edit.json"), "--data.limit", "1000"]
        words += ["--data.batch_size", "1000", "--data.shuffle_seed", "null", "--edit.regime", "batch"]
        words += ["--metrics.scoring.generate", "[]", "--run.root", str(root), "--run.name", name]
    else:
        words = command(name, root)
    words += ["--lm.dtype", a.dtype, "--trainer.accelerator", "cpu" if a.dry else "gpu"]
    if a.dry:
        words += ["--lm.name", str(a.scratch / "tiny"), "--data.known", "false", "--data.limit", "1"]
        words += ["--trainer.fast_dev_run", "true", "--model.mom2_adjustment", "false"]
    return words


def main() -> None:
    """Start the runs, and compare each when it has ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    a = parser.parse_args()
    root = a.scratch / f"runs_{a.dtype}"
    root.mkdir()
    if a.dry:
        from tests.support.tiny_models import save_tiny

        save_tiny(a.scratch / "tiny", "llama", n_layers=8)
        names: tuple[str, ...] = ("rome",)
    else:
        names = NAMES if (a.files / "data" / "counterfact_edit.json").exists() else NAMES[1:]
        fetch("smollm2-135m")  # once for all; `run.py` has begun with it
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    began = time.monotonic()
    running = {name: subprocess.Popen(words_of(name, a, root), cwd=ROOT, env=env) for name in names}
    found: dict[str, Any] = {}
    while running:
        time.sleep(0.2)
        for name, process in [*running.items()]:
            if process.poll() is None:
                continue
            del running[name]
            found[name] = {"status": process.returncode, "wall_s": time.monotonic() - began}
            if process.returncode == 0:
                figures = figures_of(next(root.glob(f"**/{name}/results.jsonl")))
                found[name] |= {"succeeded": shares(figures), "as_on_cpu": agreement(figures, kept(name))}
                timing = json.loads(next(root.glob(f"**/{name}/summary.json")).read_text()).get("timing", {})
                found[name]["timing"] = timing
            a.out.write_text(json.dumps(found))
            print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
