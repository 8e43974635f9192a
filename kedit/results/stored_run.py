"""A run as it lies in its folder: what it was, how far it came, and its rows; damage is told, not fatal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kedit.errors import KeditError
from kedit.runtime.run_folder import RESULTS, RUN, SUMMARY, finished


class StoredRun:
    """A run's folder, read.

    Args:
        folder: The run's.

    Attributes:
        about: `summary.json`, of an unfinished run `run.json`.
        finished: Whether the run came to its end.
        damaged: Numbers of the lines of `results.jsonl` that could not be read so far.

    Raises:
        KeditError: It says not, or not legibly, what the run is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.finished = folder, finished(folder)
        self.about = _about(folder / (SUMMARY if self.finished else RUN))
        self.damaged: list[int] = []

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, one at a time, without those that are damaged; each is noted once."""
        path = self.folder / RESULTS
        if not path.exists():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                row = _row(line)
                if row is not None:
                    yield row
                elif number not in self.damaged:
                    self.damaged.append(number)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return os.path.isfile(folder / RUN) or os.path.isfile(folder / SUMMARY)  # a name may be too long for Path's


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        _ = about["method"]["model"], about["method"]["method"], about["method"]["regime"], about["method"]["seed"]
        _ = about["data"]["name"], about["data"]["records"]
        _ = path.name != SUMMARY or (dict(about["results"]), dict(about["failed"]))
    except OSError as error:
        raise KeditError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise KeditError(f"{path} is damaged, or no file of a run of kedit's") from None
    return about


def _row(line: bytes) -> dict[str, Any] | None:
    """A line as a row; None where it is none, or was cut short."""
    try:
        row = json.loads(line)
        sound = line.endswith(b"\n") and _sound(row)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return row if sound else None


def _sound(row: Mapping[str, Any]) -> bool:
    """Whether a row has what reports read of it, each of its type."""
    texts = [row["case_id"], row["measured_at"], row["status"], row["request"]["prompt"], row["request"]["target_new"]]
    texts += [probe[name] for probe in row["probes"] for name in ("kind", "text", "answer")]
    sides = [probe[side] for probe in row["probes"] for side in ("before", "after") if probe[side] is not None]
    return (
        all(isinstance(text, str) for text in texts)
        and all(probe["rival"] is None or isinstance(probe["rival"], str) for probe in row["probes"])
        and all(isinstance(side["nll_answer"], int | float) for side in sides)
        and all(isinstance(side["exact"], bool) and isinstance(side["success"], bool | None) for side in sides)
        and all(isinstance(side["top1"], list) and all(type(i) is int for i in side["top1"]) for side in sides)
        and isinstance(row["edit"], dict)
    )
