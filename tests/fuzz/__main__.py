"""`python -m tests.fuzz`: many cases of each target by hand, a table of what came of them, and the inputs that failed.

Exit status 1 when anything has failed. `--data 1 --first 217` runs case 217 of the data files alone.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no name that chance makes is looked for elsewhere

import torch

from kedit.runtime.provenance import provenance
from tests.fuzz.harness import Report, Said, fuzz, listening
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    for name in TARGETS:
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help=f"cases of {name}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each target")
    parser.add_argument("--kept", type=Path, default=Path("fuzz-failures"), help="folder for inputs that failed")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faulthandler.enable()
    reports = []
    with tempfile.TemporaryDirectory(prefix="kedit-fuzz-") as scratch:
        os.environ["KEDIT_CACHE"] = str(Path(scratch) / "cache")
        for name, kind in TARGETS.items():
            if count := getattr(options, name):
                numbers = range(options.first, options.first + count)
                shared = Path(scratch) / f"shared-{name}"
                shared.mkdir()
                with listening(Said()):
                    target = kind(shared)
                reports.append(_run(fuzz(target, numbers, options.seed, Path(scratch), options.kept), name, count))
    _say("")
    for report in reports:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(report.counts.items()))
        _say(f"{report.name:<12} {sum(report.counts.values()):>5} cases: {counts}")
    for report in reports:
        for kind, count in report.kinds.most_common():
            _say(f"{report.name}: {count} x {kind}")
    if options.json is not None:
        figures = {
            report.name: {"cases": sum(report.counts.values()), **dict(sorted(report.counts.items()))}
            | {"failed": len(report.failures)}
            for report in reports
        }
        words = [f"--{name} {getattr(options, name)}" for name in TARGETS if getattr(options, name)]
        written = {
            "date": datetime.date.today().isoformat(),
            "command": f"python -m tests.fuzz {' '.join(words)} --seed {options.seed} --first {options.first}",
            "cases": figures,
            "cpu_seconds": round(time.process_time(), 1),
            "provenance": provenance(),
        }
        options.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    if any(report.failures for report in reports):
        _say(f"inputs that failed: {options.kept}/")
        return 1
    return 0


def _run(running, name: str, count: int) -> Report:
    """One target, with a line every few seconds."""
    report, told, start = Report(name), time.monotonic(), time.monotonic()
    for report in running:
        if time.monotonic() - told > 10:
            told = time.monotonic()
            _say(
                f"{name}: {sum(report.counts.values())} of {count}, {len(report.failures)} failed, {told - start:.0f} s"
            )
    _say(f"{name}: {count} cases in {time.monotonic() - start:.0f} s, {len(report.failures)} failed")
    return report


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
