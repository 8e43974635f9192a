"""Long sequential runs: does the cost of an edit stay flat, and what is left of the first edits after so many?

    python benchmarks/endurance/long_sequences.py tiny --method AlphaEdit --save long_sequence_alphaedit_tiny
    python benchmarks/endurance/long_sequences.py smollm2 --method AlphaEdit --data counterfact_edit.json \\
        --save long_sequence_alphaedit
    python benchmarks/endurance/long_sequences.py smollm2 --method MEMIT --label "MEMIT with memory" \\
        --set model.past_keys=true --data counterfact_edit.json --save long_sequence_memit_memory
    python benchmarks/endurance/long_sequences.py draw long_sequence_alphaedit long_sequence_memit_memory --save curves

`tiny`: 10,000 made-up facts in batches of 50 on a tiny random Llama, with a cheap v*. Mean CPU seconds of the last 500
edits against those of the first 500 after past keys were made dense; then the same run killed once with SIGKILL and
resumed: same bits. `smollm2`: a run with `metrics.eval_at`, summed up from its files. `draw`: curves of saved figures.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import ROOT, save
from benchmarks.endurance.long_run import corpus, facts

BATCH, FIRST = 50, 50
WINDOW = 500  # edits whose mean cost is compared
SHOWN = ("success", "exact", "unchanged")
POINTS = (50, 100, 200, 300, 500, 1000, 2000, 3000, 5000)
TINY: dict[str, Any] = {
    "n_layers": 3,
    "d_model": 32,
    "d_ff": 512,
}  # keys so wide that the switch comes after ten batches
CLOSED = {"model.layers": "[0,1]", "model.v_num_grad_steps": 3, "model.contexts.lengths": "[]"}
CHEAP: dict[str, dict[str, Any]] = {
    "AlphaEdit": CLOSED | {"model.nullspace_relative": 1.0, "model.l2": 1.0},
    "MEMIT": CLOSED | {"model.past_keys": "true"},
    "UltraEdit": {"model.gate_layers": "[]", "model.up_layers": "[]", "model.down_layers": "[0,1]"},
}
"""Options under which an edit of a tiny model costs little; a method that is not named here has its defaults."""


class Watch(Callback):
    """Writes a line between two edit batches: CPU and wall seconds, resident size, bytes of the journal.

    Args:
        path: The file; a resumed run appends to it.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_epoch_start(self, *_: Any) -> None:
        """Before a batch."""
        self._look()

    def on_train_end(self, *_: Any) -> None:
        """After the last one."""
        self._look()

    def _look(self) -> None:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        mib = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        journal = sum(path.stat().st_size for path in self.path.parent.rglob("edits-*.bin"))
        seen = {"cpu": time.process_time(), "wall": time.monotonic(), "mib": round(mib, 1), "journal": journal}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(seen) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    for job in ("tiny", "smollm2"):
        own = jobs.add_parser(job)
        own.add_argument("--method", default="AlphaEdit", help="class name")
        own.add_argument("--label", help="what figures call it; the method's name without it")
        own.add_argument("--edits", type=int, default=10_000 if job == "tiny" else 1000)
        own.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other options of `kedit fit`")
        own.add_argument("--keep", type=Path, help="folder for the runs; a temporary one without it")
        own.add_argument("--save", help="name of the figures under benchmarks/results")
    jobs.choices["tiny"].add_argument("--no-kill", action="store_true", help="leave out the run that is killed")
    jobs.choices["smollm2"].add_argument("--data", type=Path, required=True, help="a CounterFact file")
    jobs.choices["smollm2"].add_argument("--config", type=Path, help="configs/METHOD_smollm2.yaml without it")
    drawing = jobs.add_parser("draw")
    drawing.add_argument("names", nargs="+", help="figures under benchmarks/results, of smollm2 jobs")
    drawing.add_argument("--save", required=True, help="name of the PNG under docs/figures")
    a = parser.parse_args()
    if a.job == "draw":
        from benchmarks.endurance.long_sequence_figure import draw

        found = [json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text("utf-8")) for name in a.names]
        draw(found, ROOT / "docs" / "figures" / f"{a.save}.png")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = a.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        figures = {"method": a.method, "label": a.label or a.method, "edits": a.edits, "batch": BATCH}
        figures |= tiny(a, folder.resolve()) if a.job == "tiny" else smollm2(a, folder.resolve())
    print(json.dumps(figures, indent=2))
    if a.save:
        print(save(a.save, figures))
        if a.job == "smollm2":
            from benchmarks.endurance.long_sequence_figure import draw

            draw([figures], ROOT / "benchmarks" / "results" / f"{a.save}.png")


# -- runs -------------------------------------------------------------------------------------------------


def start(options: dict[str, Any], root: Path, name: str) -> subprocess.Popen[bytes]:
    """A run of kedit in a process of its own, watched; a run of that name that was killed is resumed."""
    options = options | {
        "edit.regime": "sequential",
        "data.batch_size": BATCH,
        "run.root": root,
        "run.name": name,
        "run.resume": "true",
        "trainer.callbacks+": "benchmarks.endurance.long_sequences.Watch",
        "trainer.callbacks.path": root / name / "watched.jsonl",
    }
    (root / name).mkdir(parents=True, exist_ok=True)
    words = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    with (root / f"{name}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "kedit", "fit", *words], cwd=ROOT, stdout=log, stderr=log)


def wait(run: subprocess.Popen[bytes], root: Path, name: str) -> Path:
    """The folder of a run that has ended well."""
    if status := run.wait():
        raise SystemExit(f"{name} ended with {status}:\n{(root / f'{name}.log').read_text('utf-8')[-2000:]}")
    return root / name


def seen(folder: Path) -> list[dict[str, float]]:
    """What was watched of a run."""
    path = folder / "watched.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


# -- the tiny model ---------------------------------------------------------------------------------------


def tiny(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Cost per edit over the run, and whether a run that was killed ends with the same bits."""
    from tests.support.killing import difference
    from tests.support.tiny_models import save_tiny

    os.environ |= {"KEDIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {
        "model": a.method,
        **CHEAP.get(a.method, {}),
        "lm.name": save_tiny(folder / "model" / "llama", "llama", **TINY),
        "edit.lanes": BATCH,
        "data": "Records",
        "data.path": facts(folder / "facts.jsonl", a.edits),
        "data.probe_kinds": "[rewrite]",
        "metrics.scoring.generate": "[]",
        "metrics.measure": "edit",
        "results.resamples": 50,
        "trainer.accelerator": "cpu",
    }
    if "AlphaEdit" in a.method or a.method in ("MEMIT", "PMET", "EMMET"):
        options |= {"model.stats.tokens": 6000, "model.stats.corpus": corpus(folder / "corpus.txt")}
    options |= dict(word.split("=", 1) for word in a.set)
    whole = wait(start(options, folder, "whole"), folder, "whole")
    figures = costs(seen(whole), TINY["d_ff"])
    figures["kept"] = json.loads((whole / "summary.json").read_text("utf-8"))["kept"]
    if not a.no_kill:
        run = start(options, folder, "killed")
        while run.poll() is None and len(seen(folder / "killed")) < a.edits // BATCH // 2:
            time.sleep(0.2)
        run.send_signal(signal.SIGKILL)
        figures["killed_after_batches"], figures["killed_status"] = len(seen(folder / "killed")) - 1, run.wait()
        killed = wait(start(options, folder, "killed"), folder, "killed")
        for run_folder in (whole, killed):
            (run_folder / "watched.jsonl").rename(folder / f"watched-{run_folder.name}.jsonl")
        figures["differs"] = difference(whole, killed)
    return figures


def costs(looks: list[dict[str, float]], d_in: int) -> dict[str, Any]:
    """Seconds per edit in windows of `WINDOW` edits, and the last of them against the first after the switch."""
    batches, n = WINDOW // BATCH, len(looks) - 1
    each = {clock: [(b[clock] - a[clock]) / BATCH for a, b in pairwise(looks)] for clock in ("cpu", "wall")}
    switch = -(-d_in // BATCH) + 1  # the batch after which the dense sum is there
    if n < switch + 2 * batches:
        raise SystemExit(f"{n} batches are too few: the switch comes after {switch}, and two windows follow")

    def mean(clock: str, begin: int) -> float:
        return sum(each[clock][begin : begin + batches]) / batches

    windows = [i for i in range(0, n - batches + 1, batches)]
    over = {clock: [round(mean(clock, i), 6) for i in windows] for clock in each}
    ratio = {clock: round(mean(clock, n - batches) / mean(clock, switch), 3) for clock in each}
    return {
        "d_in": d_in,
        "first_500_after_switch": {clock: round(mean(clock, switch), 6) for clock in each},
        "last_500": {clock: round(mean(clock, n - batches), 6) for clock in each},
        "last_over_first": ratio,
        "seconds_per_edit": over,
        "mib": [looks[i]["mib"] for i in [*windows, n]],
        "journal_bytes": [looks[i]["journal"] for i in [*windows, n]],
    }


# -- SmolLM2 ----------------------------------------------------------------------------------------------


def smollm2(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A run of many edits, and what is left of them at every point."""
    config = a.config or ROOT / "configs" / f"{a.method.lower()}_smollm2.yaml"
    points = [n for n in POINTS if n <= a.edits]
    options: dict[str, Any] = {
        "config": config,
        "data": "CounterFact",
        "data.path": a.data.resolve(),
        "data.limit": a.edits,
        "metrics.eval_at": json.dumps(points),
        "metrics.measure": "end",
        "metrics.scoring.generate": "[]",
    }
    options |= dict(word.split("=", 1) for word in a.set)
    run = wait(start(options, folder, "long"), folder, "long")
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    return {"model": summary["method"]["model"], "config": summary["method"], "kept": summary["kept"]} | {
        "points": [point_of(run, summary, n) for n in points]
    }


def point_of(run: Path, summary: dict[str, Any], edits: int) -> dict[str, Any]:
    """What is known of the model after so many edits."""
    point: dict[str, Any] = {"edits": edits}
    for place in summary["curve"]:
        if place["edits"] == edits:
            point["results"] = {
                kind: {metric: {name: cell.get(name) for name in ("after", "ci")} for metric, cell in of_kind.items()
                       if metric in SHOWN}
                for kind, of_kind in place["results"].items()
            }  # fmt: skip
    point["first"] = first_edits(run / "results.jsonl", edits)
    costs = [json.loads(line) for line in (run / "costs.jsonl").read_text("utf-8").splitlines()][:edits][-WINDOW:]
    for name, shown in (
        ("seconds", "wall_s_per_edit"),
        ("cpu_seconds", "cpu_s_per_edit"),
        ("delta_bytes", "bytes_per_edit"),
    ):
        point[shown] = sum(cost[name] for cost in costs) / len(costs)  # of the last edits, measuring not included
    looks = seen(run)
    if len(looks) > edits // BATCH:
        point["journal_bytes_per_edit"] = looks[edits // BATCH]["journal"] / edits
    point["perplexity"] = perplexity_after(run / "results.jsonl", edits)
    return point


def first_edits(path: Path, edits: int) -> dict[str, float]:
    """Retention: shares of the first `FIRST` edits that are still met after so many, by kind of probe and metric."""
    sums: dict[str, list[float]] = {}
    with path.open(encoding="utf-8") as lines:
        rows = [row for line in lines if (row := json.loads(line))["measured_at"] == f"at_{edits}"]
    for row in rows[:FIRST]:
        for probe in row["probes"]:
            if probe["kind"] in ("rewrite", "paraphrase"):
                for metric in ("success", "exact"):
                    if (value := probe["after"].get(metric)) is not None:
                        sums.setdefault(f"{probe['kind']}_{metric}", []).append(float(value))
    return {name: sum(values) / len(values) for name, values in sums.items()}


def perplexity_after(path: Path, edits: int) -> float | None:
    """Perplexity of the run's text after so many edits, where it was measured (`perplexity.enabled`)."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["measured_at"] == f"at_{edits}":
                return (row.get("perplexity") or {}).get("after")
    return None


if __name__ == "__main__":
    main()
