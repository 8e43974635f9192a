"""Record by record what the model said before and after, of all arms, as JSON that the page's script shows.

Texts that come again are kept once, and as many records are taken as there is room for: the page stays small.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kedit.results.record_view import TITLES, verdict
from kedit.results.rows import Saved
from kedit.results.sentences import Decode, said
from kedit.runtime.run_folder import RESULTS, read_rows
from kedit.sweeps.arms import Measured
from kedit.sweeps.compare import Table
from kedit.text.lines import cut, cut_middle, one_line

PROMPT, SAID = 240, 160  # characters of a prompt and of what was said

Key = tuple[str, str, str]  # kind, prompt and answer of a probe
Answer = list[Any]  # verdict, said, probability, free match, said before, probability before


@dataclass(frozen=True)
class Records:
    """What the page holds.

    Attributes:
        data: `strings`, `kinds` and `tables`, for JSON.
        shown: How many records, over all tables.
        of: How many there are.
    """

    data: dict[str, Any]
    shown: int
    of: int


@dataclass
class _Strings:
    """Texts, each once, and how many bytes they take."""

    places: dict[str, int] = field(default_factory=dict)
    size: int = 0

    def of(self, text: str) -> int:
        if text not in self.places:
            self.size += len(json.dumps(text, ensure_ascii=False).encode()) + 8
            self.places[text] = len(self.places)
        return self.places[text]


@dataclass
class _Seen:
    """One record: what was asked for, its probes, and what each arm says to them."""

    request: Mapping[str, Any]
    probes: dict[Key, Mapping[str, Any]]
    arms: dict[int, tuple[str | None, dict[Key, tuple[Mapping[str, Any], Answer]]]]


def records(tables: Mapping[str, Table], decoder: Callable[[str], Decode | None], most: int, room: int) -> Records:
    """What was said, table by table.

    Args:
        tables: Title -> table; of an arm with several seeds the first is shown.
        decoder: Name of a model -> what reads its tokens.
        most: Records of a table, the first that were edited.
        room: Bytes that all may take; where there are more, fewer records are taken.
    """
    strings = _Strings()
    strings.of("")  # number 0: an arm without an error
    found, shown, of, used = [], 0, 0, 0
    for nth, (title, table) in enumerate(tables.items()):
        arms = [(name, runs[0]) for name, runs in table.members.items()]
        cases = list(dict.fromkeys(case for _, run in arms for case in run.sample.cases))
        of += len(cases)
        seen = _seen(arms, set(cases[:most]), decoder)
        before, share = used + strings.size, (room - used - strings.size) // (len(tables) - nth)
        own: list[Any] = []
        for case in cases[:most]:
            if case not in seen:
                continue
            record = _record(case, seen[case], strings)
            used += len(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()) + 1
            if used + strings.size - before > share and own:
                break
            own.append(record)
        shown += len(own)
        found.append({"title": title, "arms": [name for name, _ in arms], "of": len(cases), "records": own})
    return Records({"strings": list(strings.places), "kinds": dict(TITLES), "tables": found}, shown, of)


def _seen(
    arms: Iterable[tuple[str, Measured]], cases: set[str], decoder: Callable[[str], Decode | None]
) -> dict[str, _Seen]:
    found: dict[str, _Seen] = {}
    for nth, (_, run) in enumerate(arms):
        decode = decoder(run.summary["method"]["model"])
        for row in read_rows(run.folder / RESULTS):
            if row["measured_at"] != run.sample.measured_at or str(row["case_id"]) not in cases:
                continue
            record = found.setdefault(str(row["case_id"]), _Seen(row.get("request") or {}, {}, {}))
            answers: dict[Key, tuple[Mapping[str, Any], Answer]] = {}
            for probe in row["probes"]:
                key = (probe["kind"], str(probe.get("text")), str(probe.get("answer")))
                record.probes.setdefault(key, probe)
                answers[key] = (probe, _answer(probe, decode))
            record.arms[nth] = (row.get("error"), answers)
    return found


def _answer(probe: Mapping[str, Any], decode: Decode | None) -> Answer:
    after, before = probe["after"], probe["before"]
    answer = str(probe.get("answer"))
    return [verdict(probe), _said(after, answer, decode), _chance(after), _free(after),
            _said(before, answer, decode), _chance(before)]  # fmt: skip


def _record(case: str, seen: _Seen, strings: _Strings) -> list[Any]:
    """`[case, prompt, new, old, probes, arms]`, texts by their number.

    A probe is `[kind, prompt, answer, said before, probability before]`, an arm `[nth, error or 0, answers]`, an answer
    `[verdict, said, probability, free match]` with what was said before where that differs, and 0 where there is none.
    """
    request = seen.request
    prompt = str(request.get("prompt", "")).replace("{}", str(request.get("subject") or "{}"), 1)
    probes: list[Any] = []
    base: dict[Key, tuple[Any, Any]] = {}
    for key in seen.probes:
        kind, text, answer = key
        first = next(answers[key][1] for _, answers in seen.arms.values() if key in answers)
        base[key] = (first[4], first[5])
        texts = [strings.of(kind), strings.of(cut_middle(one_line(text), PROMPT)), strings.of(one_line(answer))]
        probes.append([*texts, strings.of(first[4]), first[5]])
    arms = []
    for nth, (error, answers) in seen.arms.items():
        row: list[Any] = []
        for key in seen.probes:
            if key not in answers:
                row.append(0)
                continue
            word, text, chance, free, before, chance_before = answers[key][1]
            cell: list[Any] = [strings.of(word), strings.of(text), chance]
            other = (before, chance_before) != base[key]
            if free is not None or other:
                cell.append(-1 if free is None else int(free))
            if other:
                cell += [strings.of(before), chance_before]
            row.append(cell)
        arms.append([nth, strings.of(one_line(str(error))) if error else 0, row])
    new, old = (one_line(str(request.get(name) or "")) for name in ("target_new", "target_true"))
    return [case, strings.of(cut_middle(one_line(prompt), PROMPT)), strings.of(new), strings.of(old), probes, arms]


def _said(score: Saved | None, answer: str, decode: Decode | None) -> str:
    return "" if score is None else cut(said(score, answer, decode) or "?", SAID)


def _chance(score: Saved | None) -> float | None:
    """Probability of the wanted answer, per token, in percent."""
    return None if score is None else round(100 * math.exp(-score["nll_answer"]), 1)


def _free(score: Saved | None) -> bool | None:
    """Whether what was said freely is the answer; None where nothing was."""
    found = [] if score is None else [score.get(name) for name in ("generated_match", "wild_match")]
    return next((bool(match) for match in found if match is not None), None)


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that can stand in a page's script element: no text can end it, or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for c in "<>&\u2028\u2029":
        text = text.replace(c, f"\\u{ord(c):04x}")
    return text
