"""Arms side by side: means with intervals over records, spread over seeds, and differences to one of them.

Arms stand in one table only if protocol, data and measuring point are the same (`kedit.sweeps.collect.alike`).
Where arms come from: `kedit.sweeps.arms`; the statistics: `kedit.sweeps.arm_statistics`; what tables look like:
`kedit.sweeps.compare_tables`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kedit.errors import KeditError
from kedit.sweeps.arm_statistics import Cell, cases_of, own_cells, paired_cells, unpaired_cells
from kedit.sweeps.arms import Measured, Runs, measured
from kedit.sweeps.collect import Alike, alike
from kedit.sweeps.collect_tables import title
from kedit.sweeps.measures import Measure


@dataclass(frozen=True)
class Arm:
    """A row of a table.

    Attributes:
        name: The arm.
        seeds: Its seeds.
        cells: Measure -> its number; what was not measured is left out.
        differences: Measure -> the arm minus the one that it is compared with; empty for that one itself.
        shared_seeds: The seeds that the differences are over; of paired ones those that both arms have.
    """

    name: str
    seeds: tuple[str, ...]
    cells: Mapping[str, Cell]
    differences: Mapping[str, Cell]
    shared_seeds: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Arms that can be compared.

    Attributes:
        alike: What they have in common.
        measures: The columns: what at least one arm has.
        unedited: Measure -> the unedited model's value, where it was measured.
        arms: The rows.
        against: The arm that the others are compared with; None: none, or it is not in this table.
        members: Arm -> its runs at this measuring point, a seed each.
    """

    alike: Alike
    measures: tuple[Measure, ...]
    unedited: Mapping[str, float]
    arms: tuple[Arm, ...]
    against: str | None
    members: Mapping[str, Sequence[Measured]]


@dataclass(frozen=True)
class Comparison:
    """All tables of a comparison.

    Attributes:
        name: Of the sweep, or of the runs.
        against: The arm that the others are compared with.
        paired: Whether differences are taken record by record.
        tables: One for each protocol, data set and measuring point.
        notes: A line for everything that is missing or stands alone.
        first: Only so many records of each run count, the first that were edited; None: all.
    """

    name: str
    against: str | None
    paired: bool
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    first: int | None = None


def compare(
    runs: Runs,
    measures: Sequence[Measure],
    against: str | None = None,
    paired: bool = False,
    resamples: int = 2000,
    first: int | None = None,
    least: int = 2,
) -> Comparison:
    """Every arm's numbers, and what it has more than the arm `against`.

    Args:
        runs: The runs.
        measures: The columns wanted.
        against: An arm, by its name or by that which tables give it.
        paired: Take differences record by record, over the records and the seeds that both arms have; else the two
            arms are resampled independently.
        resamples: Of the bootstrap.
        first: Only so many records of each run count, the first that were edited; None: all.
        least: How many arms a table has at least; 1 also shows those that stand alone.

    Raises:
        KeditError: No such arm, one arm alone, no two that were measured alike, runs without rows, nothing to pair.
    """
    found = measured(runs.runs, first)
    arms = list(dict.fromkeys(one.arm for one in found))
    groups = []
    for common, places in alike([(one.summary, one.measured_at) for one in found]):
        groups.append((common, places, short_names([found[place].arm for place in places], title(common))))
    _check(runs, arms, against, {short for _, _, names in groups for short in names.values()}, least)
    tables, notes = [], list(runs.notes)
    for common, places, names in groups:
        members: dict[str, dict[str, Measured]] = {}
        for place in places:
            members.setdefault(names[found[place].arm], {})[found[place].seed] = found[place]
        if len(members) < least:
            data, regime = common.data, common.protocol["regime"]
            where = f"{data['name']} ({data['records']} records), regime {regime}, measured_at {common.measured_at}"
            notes.append(f"alone, not compared: {next(iter(members))} on {where}")
            continue
        base = against if against is None else names.get(against, against)
        if base is not None and base not in members:
            notes.append(f"{against} is not in the table of {', '.join(members)}: measured otherwise")
        tables.append(_table(common, members, measures, base if base in members else None, paired, resamples))
    if not tables:
        raise KeditError(
            f"no two arms were measured alike: {', '.join(arms)}\n"
            "Arms of one table have the same regime, scorer options, records and measuring point"
        )
    if not any(table.measures for table in tables):
        raise KeditError(f"metrics: no arm has {', '.join(measure.name for measure in measures)}")
    return Comparison(runs.name, against, paired, tuple(tables), tuple(notes), first)


def short_names(arms: Sequence[str], said: str) -> dict[str, str]:
    """Arm -> what a table calls it: without words that all its arms have and that its title says already.

    Args:
        arms: The arms of a table.
        said: The title.
    """
    words = {arm: arm.split(" ") for arm in arms}
    common = {word for word in set.intersection(*(set(own[1:]) for own in words.values())) if word in said}
    short = {arm: " ".join(word for word in own if word not in common) for arm, own in words.items()}
    return short if len(set(short.values())) == len(short) else {arm: arm for arm in words}


def _check(runs: Runs, arms: Sequence[str], against: str | None, shorts: set[str], least: int) -> None:
    """There are arms to compare, and the one that is asked for among them."""
    missing = [arm for arm in runs.planned if arm not in arms]
    later = f"; without results yet: {', '.join(missing)}" if missing else ""
    if not arms:
        raise KeditError(f"{runs.name}: no run has results yet" + (f"\n{runs.notes[0]}" if runs.notes else ""))
    if against is not None and against not in arms and against not in shorts:
        if against in missing:
            raise KeditError(f"against: {against} has no results yet; there are those of {', '.join(arms)}")
        if against in runs.settings:
            later += f"\n{against} has several seeds: --seeds puts them together"
        raise KeditError(f"against: there is no arm {against}; there are {', '.join(arms)}{later}")
    if len(arms) < least:
        raise KeditError(f"one arm alone has results, {arms[0]}: a comparison takes two{later}")


def _table(
    common: Alike,
    members: Mapping[str, Mapping[str, Measured]],
    measures: Sequence[Measure],
    against: str | None,
    paired: bool,
    resamples: int,
) -> Table:
    samples = {name: {seed: one.sample for seed, one in seeds.items()} for name, seeds in members.items()}
    cells = {name: own_cells(list(seeds.values()), measures, resamples) for name, seeds in samples.items()}
    rows = []
    for name, seeds in samples.items():
        own = cells[name]
        differences: dict[str, Cell] = {}
        shared = list(seeds)
        if against is not None and name != against:
            others = samples[against]
            if paired:
                shared = [seed for seed in seeds if seed in others]
                pair = [[of[seed] for seed in shared] for of in (seeds, others)]
                differences = paired_cells(pair[0], pair[1], measures, resamples) if shared else {}
                if own and not differences:
                    what = "record" if shared else "seed"
                    raise KeditError(f"paired: {name} and {against} have no {what} in common, so nothing can be paired")
            else:
                sides = [list(of.values()) for of in (seeds, others)]
                differences = unpaired_cells(sides[0], sides[1], own, cells[against], measures, resamples)
        rows.append(Arm(name, tuple(seeds), own, differences, tuple(shared)))
    present = tuple(measure for measure in measures if any(measure.name in row.cells for row in rows))
    unedited = {}
    for measure in present:
        for seeds in samples.values():
            values = next(iter(seeds.values())).values(cases_of(list(seeds.values())), measure.columns, "before")
            if not np.isnan(values).all(0).any():
                unedited.setdefault(measure.name, measure.factor * float(measure.of(np.nanmean(values, 0))))
    runs = {name: tuple(seeds.values()) for name, seeds in members.items()}
    return Table(common, present, unedited, tuple(rows), against, runs)
