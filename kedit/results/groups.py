"""Kinds of probe with their groups, and tests that several probes make up, as a summary counts them.

`portability.reasoning` is the group Reasoning of `portability`, which has the probes of all its groups. A test
(RippleEdits) counts as one probe: passed where any of its probes is, or where all are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kedit.request import subkind


def by_kind(probes: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The probes of a result row, each with its kind, and once more with its group where it has one."""
    for probe in probes:
        yield probe["kind"], probe
        if probe.get("group") is not None:
            yield subkind(probe["kind"], probe["group"]), probe


class Values:
    """Values of one quantity over the probes of a record; a test of several probes has one value."""

    def __init__(self) -> None:
        self._alone: list[float] = []
        self._tests: dict[str, float] = {}

    def add(self, value: float, test: str | None = None) -> None:
        """Take the value of a probe; with `any 3` the best of a test counts, with `all 3` the worst."""
        if test is None:
            self._alone.append(value)
        elif test not in self._tests:
            self._tests[test] = value
        else:
            self._tests[test] = (max if test.startswith("any ") else min)(self._tests[test], value)

    def sum_and_count(self) -> tuple[float, int]:
        """Their sum, and how many they are."""
        values = [*self._alone, *self._tests.values()]
        return float(sum(values)), len(values)
