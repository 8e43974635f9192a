"""What `kedit plan` says of whole runs beside what they take: the most memory at once, the model's own not counted.

    python benchmarks/speed/plan_of_runs.py rome_smollm2:4 memit_smollm2:4 rep_smollm2:4 pac_smollm2:4 ft_smollm2:16
    python benchmarks/speed/plan_of_runs.py rome_smollm2:4 --save plan_of_runs_cpu

Each run is `kedit fit` on a CPU, with its configuration's data and so many of its records. Measured are the tensors
that are alive at once from the first preparation to the last measurement (`LivePeak`); statistics that are in
the cache are not made anew, so that what a run without them takes for a moment is not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lightning import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import save
from kedit.cli.main import main as kedit
from kedit.runtime.live_peak import LivePeak

FIT = Trainer.fit
peaks: list[int] = []


def fit(self: Trainer, model: Any, *args: Any, **kwargs: Any) -> None:
    """As Lightning's, and says how much memory it took beside the model."""
    own = [*model.lm.model.parameters(), *model.lm.model.buffers()]
    with LivePeak(own) as live:
        FIT(self, model, *args, **kwargs)
    peaks.append(live.peak)


def planned(config: str, options: list[str]) -> dict[str, Any]:
    """What `kedit plan` prints as JSON."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        kedit(["plan", config, *options, "--device", "cpu", "--json"])
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def main() -> None:
    """Plan, run, compare, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="CONFIG:RECORDS")
    parser.add_argument("--save", help="name of the figures under benchmarks/results")
    a = parser.parse_args()
    Trainer.fit = fit  # type: ignore[method-assign]
    figures: dict[str, dict[str, Any]] = {}
    for run in a.runs:
        config, _, count = run.partition(":")
        options = ["--data.init_args.limit", count or "4"]
        plan = planned(config, options)
        expected = plan["peak"] - plan["weights"]
        phases = {phase["name"]: phase["peak"] for phase in plan["phases"]}
        with tempfile.TemporaryDirectory() as folder:
            kedit(["fit", "--config", config, *options, "--run.root", folder, "--trainer.accelerator", "cpu"])
        figures[run] = {"planned": expected, "measured": peaks[-1], "ratio": expected / peaks[-1], "phases": phases}
        print(f"{run}: {expected / 1e6:.1f} planned, {peaks[-1] / 1e6:.1f} MB, {expected / peaks[-1]:.3f}", flush=True)
    if a.save:
        print("saved", save(a.save, {"settings": vars(a), "figures": figures}).name)


if __name__ == "__main__":
    main()
