"""Sequential runs of every method, killed with SIGKILL again and again, against undisturbed ones.

    python benchmarks/endurance/kills.py --kills 20 --save kills

A kill comes after a random amount of CPU time (in the loading, the edits, the last measurements) or at a random write
of a file. The run is resumed until it is killed again or ends; when it ends before the kills are spent, another begins.
Every run that ends must be the same as the undisturbed one, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import save
from benchmarks.endurance.long_run import OPTIONS, facts, tiny

METHODS = ("ROME", "MEMIT", "EMMET", "REP", "PAC", "STEAM")
EDITS = 60


def main() -> None:
    """Kills, compares, counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--kills", type=int, default=20, help="of each method")
    parser.add_argument("--edits", type=int, default=EDITS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="name of the figures under benchmarks/results")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, model = facts(folder / "facts.jsonl", a.edits), tiny(folder)
        found = {}
        for method in a.methods:
            found[method] = killed(words(method, model, data, folder / method), folder / method, a.kills, a.seed)
            print(method, found[method], flush=True)
            if a.save:  # after each: it takes long
                save(a.save, {"edits": a.edits, "kills": a.kills, "seed": a.seed, "methods": found})
    if any(of_method["differ"] for of_method in found.values()):
        raise SystemExit("there are differences")


def words(method: str, model: Path, data: Path, root: Path) -> list[str]:
    """A quick sequential run that writes every kind of file."""
    editor = "ROME" if method in ("REP", "STEAM") else method
    at = "model.editor." if editor != method else "model."
    options: dict[str, Any] = {"model": method} | ({"model.editor": editor} if editor != method else {})
    if method == "REP":
        options |= {"model.adapter.steps": 5, "model.adapter.corpus_tokens": 0}
    options |= {f"{at}{name}": value for name, value in OPTIONS["MEMIT" if editor == "EMMET" else editor].items()}
    options |= {} if editor == "PAC" else {f"{at}stats.tokens": 400}
    options |= {"lm.name": model, "edit.regime": "sequential", "data": "Records", "data.path": data}
    options |= {"metrics.scoring.generate": "[]", "metrics.eval_at": "[1,7,60]", "results.resamples": 50}
    options |= {"importance.enabled": "true"} if method == "PAC" else {}
    options |= {"run.root": root, "run.resume": "true", "trainer.accelerator": "cpu"}
    return ["fit", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def killed(words: list[str], root: Path, kills: int, seed: int) -> dict[str, Any]:
    """One method: an undisturbed run, then `kills` kills."""
    from tests.support import killing as k

    root.mkdir()
    chance, begun, log = random.Random(f"{seed}/{root.name}"), time.monotonic(), root / "log"
    whole = [*words, "--run.name", "whole"]
    before = cpu_of_children()
    assert k.wait(k.start(whole, log)) == 0, log.read_text(encoding="utf-8")[-2000:]
    total = cpu_of_children() - before
    phases: Counter[str] = Counter()
    runs, differ, used = 0, [], 0
    name = "killed-0"
    while True:
        folder = root / name
        size = rows_of(folder)
        if used < kills:
            kind = chance.choice(["loading", "any", "write", "torn write"])
            if kind in ("loading", "any"):
                limit = chance.uniform(0.05, 1.0) if kind == "loading" else chance.uniform(0.5, 0.4 * total)
                status = k.kill_after(k.start([*words, "--run.name", name], log), limit)
            else:
                doom = k.at_write(chance.randrange(1, 2 * EDITS), torn=kind == "torn write")
                status = k.wait(k.start([*words, "--run.name", name], log, doom))
        else:
            status = k.wait(k.start([*words, "--run.name", name], log))
        if status == -signal.SIGKILL:
            used += 1
            phases[phase(folder, size)] += 1
            continue
        if status != 0:
            differ.append(f"{name}: status {status}: {log.read_text(encoding='utf-8')[-500:]}")
        elif difference := k.difference(root / "whole", folder):
            differ.append(f"{name}: {difference}")
        runs += 1
        if used >= kills or differ:
            break
        name = f"killed-{runs}"
    seconds = round(time.monotonic() - begun, 1)
    return {"kills": used, "killed_while": dict(phases), "runs_ended": runs, "differ": differ, "seconds": seconds}


def cpu_of_children() -> float:
    """CPU seconds of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def rows_of(folder: Path) -> int:
    """Bytes of the results so far."""
    rows = folder / "results.jsonl"
    return rows.stat().st_size if rows.exists() else 0


def phase(folder: Path, before: int) -> str:
    """What the killed process had come to; `before`: bytes of the results when it was started."""
    rows = folder / "results.jsonl"
    if (folder / "summary.json").exists():
        return "after the summary"
    if rows_of(folder) in (0, before):
        return "loading, or before its first edit"
    text = rows.read_bytes()
    if list(folder.rglob("*.partial")):
        return "replacing a file"
    if not text.endswith(b"\n") and text:
        return "writing results"
    return (
        "final measuring"
        if b'"measured_at": "end"' in text or text.count(b'"measured_at": "edit"') == EDITS
        else "editing"
    )


if __name__ == "__main__":
    main()
