"""Memory, time per edit and size of the checkpoint over a long sequential run.

    python benchmarks/endurance/long_run.py --method ROME --edits 1000 --save long_run_rome_tiny
    python benchmarks/endurance/long_run.py --method ROME --model smollm2-135m --edits 300 --save long_run_rome_smollm2

The model is a tiny random Llama unless named, the facts are made up, each is measured after its own edit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import save
from kedit.cli import main as kedit

WORDS = ("Rome", "Tokyo", "Dutch tea", "Seattle", "English", "the north of Spain")
TEMPLATES = ("The capital of {} is", "{} is located in", "The mother tongue of {} is")
TINY: dict[str, Any] = {"n_layers": 3, "d_model": 32, "d_ff": 80}
QUICK = {"v_num_grad_steps": 4, "contexts.lengths": "[[3,1]]"}
OPTIONS: dict[str, dict[str, Any]] = {
    "ROME": {"layer": 1, "mom2_adjustment": "false", **QUICK},
    "MEMIT": {"layers": "[0,1]", **QUICK},
    "PAC": {"scope": "edit", "trace.nodes": 8, "trace.contrast_nodes": 8, "train.passes": 4, "locality.weight": 0},
}


class Watch(Callback):
    """Looks at the process and at the checkpoints between two edits."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seen: list[tuple[float, float, float, int, int]] = []  # wall, CPU, MiB, checkpoint, all checkpoint files

    def on_train_epoch_start(self, *_: Any) -> None:
        """Before an edit."""
        self._look()

    def on_train_end(self, *_: Any) -> None:
        """After the last one."""
        self._look()
        (self.folder / "watched.json").write_text(json.dumps(self.seen), encoding="utf-8")

    def _look(self) -> None:
        files = [path.stat().st_size for path in self.folder.rglob("checkpoints/*")]
        last = [path.stat().st_size for path in self.folder.rglob("checkpoints/last.ckpt")]
        self.seen.append((time.perf_counter(), time.process_time(), _rss_mib(), sum(last), sum(files)))


def main() -> None:
    """Runs, and sums up what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=[*OPTIONS, "REP"], default="ROME")
    parser.add_argument("--model", help="alias, folder or hub id; a tiny random model without it")
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--set", nargs="*", default=[], help="other options of `kedit fit`, as NAME=VALUE")
    parser.add_argument("--save", help="name of the figures under benchmarks/results")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kedit(["fit", *words(a, folder)])
        seen = np.array(json.loads((folder / "watched.json").read_text(encoding="utf-8")))
        summary = json.loads((folder / "runs" / "long" / "summary.json").read_text(encoding="utf-8"))
    figures = {"method": a.method, "model": a.model or "tiny", "edits": a.edits, **figures_of(seen)}
    figures["kept"] = summary.get("kept")
    print(json.dumps(figures, indent=2))
    if a.save:
        print(save(a.save, figures))


def words(a: argparse.Namespace, folder: Path) -> list[str]:
    """The command's options."""
    editor = "ROME" if a.method == "REP" else a.method
    at = "model.editor." if a.method == "REP" else "model."
    own = dict(OPTIONS[editor])
    if a.model is not None:
        own = {"v_num_grad_steps": 5} if editor != "PAC" else {"scope": "edit"}
    options: dict[str, Any] = {"model": a.method}
    if a.method == "REP":
        options |= {"model.editor": editor, "model.adapter.steps": 10, "model.adapter.corpus_tokens": 0}
    options |= {f"{at}{name}": value for name, value in own.items()}
    options |= {
        "lm.name": a.model or tiny(folder),
        "edit.regime": "sequential",
        "data": "Records",
        "data.path": facts(folder / "facts.jsonl", a.edits),
        "metrics.measure": "edit",
        "metrics.scoring.generate": "[]",
        "run.root": folder / "runs",
        "run.name": "long",
        "trainer.accelerator": "cpu",
        "trainer.callbacks+": "benchmarks.endurance.long_run.Watch",
        "trainer.callbacks.folder": folder,
    }
    if a.method != "PAC" and a.model is None and editor == "MEMIT":
        options |= {"model.stats.tokens": 2000, "model.stats.corpus": corpus(folder / "corpus.txt")}
    options |= dict(word.split("=", 1) for word in a.set)
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def figures_of(seen: Any) -> dict[str, Any]:
    """Time, memory and checkpoint at some numbers of edits, and how memory grows in the second half."""
    wall, cpu, rss, last, files = seen.T
    n = len(wall) - 1
    at: dict[str, dict[str, float]] = {}
    for edits in [e for e in (10, 30, 100, 300, 1000, 3000) if e <= n]:
        near = slice(max(1, edits - max(5, edits // 20)), edits)  # the first edit warms up
        seconds = [(statistics.median(np.diff(x)[near].tolist())) for x in (wall, cpu)]
        at[str(edits)] = {
            "wall_s_per_edit": round(seconds[0], 4),
            "cpu_s_per_edit": round(seconds[1], 4),
            "rss_mib": round(float(rss[edits]), 1),
            "checkpoint_bytes": int(last[edits]),
            "checkpoint_files_bytes": int(files[edits]),
        }
    half = slice(n // 2, n + 1)
    slope = float(np.polyfit(np.arange(n + 1)[half], rss[half], 1)[0])
    return {"after": at, "rss_kib_per_edit_second_half": round(1024 * slope, 2)}


def facts(path: Path, n: int) -> Path:
    """`n` records, each with a paraphrase and a neighbour."""
    rows = [
        {
            "case_id": f"fact-{i}",
            "prompt": TEMPLATES[i % 3],
            "subject": f"{WORDS[i % 5]} {i}",
            "target_new": WORDS[(i + 1) % 6],
            "target_true": WORDS[(i + 2) % 6],
            "paraphrases": [f"People say: {TEMPLATES[i % 3].replace('{}', f'{WORDS[i % 5]} {i}')}"],
            "neighbors": ["The Space Needle is located in"],
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def corpus(path: Path) -> Path:
    """Text for the statistics of a tiny model."""
    lines = (f"{TEMPLATES[i % 3].format(WORDS[i % 5])} {WORDS[(i * 7) % 6]}, number {i}." for i in range(2000))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def tiny(folder: Path) -> Path:
    """A tiny random Llama as a folder."""
    from tests.support.tiny_models import save_tiny

    return save_tiny(folder / "model" / "llama", "llama", **TINY)


def _rss_mib() -> float:
    """Resident size of this process now."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
