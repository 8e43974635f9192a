"""A plugin of pytest that writes every failure when it happens, so that a run that is cut off has told what it knew.

The file in `FAILURES` gets tests and tracebacks, the one in `COUNTS` how many tests passed, failed and were skipped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

MOST = 4_000_000  # characters
counts: Counter[str] = Counter()
failed: list[str] = []


def pytest_runtest_logreport(report: Any) -> None:
    """Called in the controlling process, for every phase of every test."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    if report.failed:
        failed.append(report.nodeid)
        path = Path(os.environ["FAILURES"])
        with path.open("a", encoding="utf-8") as file:
            file.write(f"FAILED {report.nodeid} ({report.when})\n")
            if file.tell() < MOST:
                file.write(f"{report.longreprtext[-6000:]}\n\n")
    if report.when == "call" or report.outcome != "passed":
        counts[report.outcome] += 1
        Path(os.environ["COUNTS"]).write_text(json.dumps(counts | {"failed_first": "; ".join(failed[:40])}))
