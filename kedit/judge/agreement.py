"""What the verdicts say beside exact match: rates over records with intervals, agreement, Cohen's kappa."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from kedit.judge.answers import Answer
from kedit.judge.prompt import NONE, RIGHT, Verdict
from kedit.results.intervals import bootstrap

Verdicts = Mapping[tuple[str, str, str], Verdict]


def summary_rows(answers: Sequence[Answer], verdicts: Verdicts, resamples: int = 2000) -> list[dict[str, Any]]:
    """One line per kind of probe and side: `judged` and `exact_match` in percent, with 95 % intervals over records.

    An answer without a verdict that can be read (`unclear`) is not right. It is no part of `agreement` (percent of the
    answers on which the judge and exact match say the same) and `kappa`, which say how far the two can be exchanged.

    Args:
        answers: The answers; those without a verdict are left out.
        verdicts: By content.
        resamples: Of the bootstrap.
    """
    groups: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        if answer.content in verdicts:
            groups.setdefault((answer.kind, answer.side), []).append(answer)
    return [_line(kind, side, of, verdicts, resamples) for (kind, side), of in groups.items()]


def disagreements(answers: Sequence[Answer], verdicts: Verdicts) -> list[tuple[Answer, Verdict]]:
    """The answers on which the judge and exact match differ, those that the judge cannot read left out."""
    pairs = [(answer, verdicts[answer.content]) for answer in answers if answer.content in verdicts]
    return [(a, v) for a, v in pairs if v.verdict != NONE and (v.verdict == RIGHT) != a.exact_match]


def kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """Cohen's kappa of two raters who say yes or no (Cohen, 1960): (p_o - p_e) / (1 - p_e).

    None without answers, and where both say the same one word always: chance explains everything.
    """
    n = len(first)
    if n == 0:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    yes, other = sum(first) / n, sum(second) / n
    chance = yes * other + (1 - yes) * (1 - other)
    return None if chance == 1 else (observed - chance) / (1 - chance)


def figures_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """The figures for a terminal."""
    table = Table(title="free answers: the judge beside exact match, percent", title_justify="left")
    for column in ("kind", "side"):
        table.add_column(column)
    for column in ("n", "judged right", "exact match", "agreement", "kappa", "unclear"):
        table.add_column(column, justify="right")
    for line in lines:
        rates = [f"{line[name]:.1f} [{line[f'{name}_ci'][0]:.1f}, {line[f'{name}_ci'][1]:.1f}]" for name in RATES]
        agreement = "-" if line["agreement"] is None else f"{line['agreement']:.1f}"
        of_chance = "-" if line["kappa"] is None else f"{line['kappa']:.2f}"
        table.add_row(line["kind"], line["side"], str(line["n"]), *rates, agreement, of_chance, str(line["unclear"]))
    return table


RATES = ("judged", "exact_match")


def _line(kind: str, side: str, of: Sequence[Answer], verdicts: Verdicts, resamples: int) -> dict[str, Any]:
    said = [verdicts[answer.content].verdict for answer in of]
    right = [verdict == RIGHT for verdict in said]
    exact = [answer.exact_match for answer in of]
    clear = [i for i, verdict in enumerate(said) if verdict != NONE]
    same = [right[i] == exact[i] for i in clear]
    line: dict[str, Any] = {"kind": kind, "side": side, "measured_at": of[0].measured_at, "n": len(of)}
    for name, values in zip(RATES, (right, exact), strict=True):
        records: dict[str, list[bool]] = {}
        for answer, value in zip(of, values, strict=True):
            records.setdefault(answer.case_id, []).append(value)
        means = [sum(own) / len(own) for own in records.values()]
        line[name] = _percent(sum(means) / len(means))
        line[f"{name}_ci"] = [_percent(end) for end in bootstrap(means, resamples)]
        line["n_records"] = len(means)
    line["agreement"] = _percent(sum(same) / len(same)) if same else None
    of_chance = kappa([right[i] for i in clear], [exact[i] for i in clear])
    line["kappa"] = None if of_chance is None else round(of_chance, 4)
    line["unclear"] = len(of) - len(clear)
    return line


def _percent(share: float) -> float:
    return round(100 * share, 4)
