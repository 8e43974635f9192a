"""`judge.jsonl` and `judge.json`: verdicts are appended and flushed one by one, so that a killed command goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kedit.errors import KeditError
from kedit.judge.answers import Answer
from kedit.judge.prompt import NONE, RIGHT, WRONG, Verdict
from kedit.runtime.files import write_json, writing
from kedit.runtime.run_folder import append_rows

LINES, REPORT = "judge.jsonl", "judge.json"
SETTINGS = ("model", "prompt", "temperature")
"""What verdicts depend on: a file goes on with the same alone."""


class JudgeFile:
    """The verdicts in a run's folder.

    Args:
        folder: The run's.
        settings: `model`, `prompt`, `temperature`, and more that is only kept.

    Raises:
        KeditError: The folder holds verdicts of another judge, or a damaged file.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.lines, self.report = folder / LINES, folder / REPORT
        self.settings = dict(settings)
        self._check()
        self.verdicts: dict[tuple[str, str, str], Verdict] = {}
        self._written: set[Answer] = set()
        self._cut()
        for row in self._rows():
            answer = Answer(**{name: row[name] for name in Answer.__dataclass_fields__})
            self._written.add(answer)
            self.verdicts[answer.content] = Verdict(row["verdict"], row["why"])

    def begin(self) -> None:
        """Writes who judges, before anything is judged."""
        if not self.report.exists():
            write_json(self.report, {**self.settings, "figures": []})

    def append(self, answers: list[Answer], verdict: Verdict) -> None:
        """Keeps the verdict on some answers that are alike; those that are kept already are left out."""
        new = [answer for answer in answers if answer not in self._written]
        self.verdicts[answers[0].content] = verdict
        self._written |= set(new)
        append_rows(self.lines, [{**answer.as_row(), **verdict._asdict()} for answer in new])

    def finish(self, about: Mapping[str, Any]) -> None:
        """Writes the figures."""
        write_json(self.report, {**self.settings, **about})

    def _check(self) -> None:
        try:
            there = json.loads(self.report.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self.lines.exists():
                raise KeditError(f"{self.lines} is there and {self.report.name} is not: move it away") from None
            return
        except (OSError, ValueError):
            raise KeditError(f"{self.report} is damaged or cannot be read: move it and {LINES} away") from None
        for name in SETTINGS:
            if not isinstance(there, dict) or there.get(name) != self.settings[name]:
                was = there.get(name) if isinstance(there, dict) and name == "model" else f"another {name}"
                raise KeditError(
                    f"{self.lines} holds verdicts of {was}, which do not mix with these: move it and {REPORT} away, "
                    "or use the same judge"
                )

    def _cut(self) -> None:
        """Takes away a last line that a kill has cut short."""
        if not self.lines.exists():
            return
        with writing(self.lines), self.lines.open("rb+") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
                os.fsync(file.fileno())

    def _rows(self) -> Iterator[dict[str, Any]]:
        if not self.lines.exists():
            return
        for number, line in enumerate(self.lines.read_bytes().splitlines(), 1):
            try:
                row = json.loads(line)
                sound = row["verdict"] in (RIGHT, WRONG, NONE) and isinstance(row["why"], str)
                sound = sound and set(Answer.__dataclass_fields__) <= set(row)
            except (ValueError, KeyError, TypeError):
                sound, row = False, {}
            if not sound:
                raise KeditError(f"{self.lines}: line {number} is damaged: take it out, and it is judged again")
            yield row
