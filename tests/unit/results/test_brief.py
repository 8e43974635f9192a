"""The table that a run ends with: ten rows at most, of what matters most, within 80 columns."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from kedit.results.brief import brief_table, last_moment

RATES = ("success", "exact", "generated", "unchanged")


def cell(after: float | None, before: float | None = 0.0) -> dict[str, Any]:
    return {"before": before, "after": after, "ci": [after, 100.0] if after is not None else None, "n_probes": 8}


def summary(kinds: dict[str, float], **moments: dict[str, float]) -> dict[str, Any]:
    def of(values: dict[str, float]) -> dict[str, Any]:
        return {kind: {rate: cell(value) for rate in RATES} for kind, value in values.items()}

    results = {"edit": of(kinds)} | {name: of(values) for name, values in moments.items()}
    method = {"method": "ROME", "model": "tiny", "regime": "single"}
    if "editor" in moments:
        method |= {"method": "REP", "editor": "ROME"}
    return {"method": method, "data": {"name": "facts"}, "results": results}


def printed(about: dict[str, Any]) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=80).print(brief_table(about))
    return out.getvalue().splitlines()


MAIN = {"rewrite": 100.0, "paraphrase": 50.0, "neighborhood": 75.0, "portability": 10.0, "score": 70.0}
ROBUST = {f"{name}_{half}": 60.0 for name in ("paraphrase", "shuffle") for half in ("id", "ood")} | {
    "long_context": 5.0
}


def test_ten_rows_at_most() -> None:
    lines = printed(summary(MAIN | ROBUST, editor=MAIN | dict.fromkeys(ROBUST, 20.0)))
    rows = lines[lines.index(next(line for line in lines if line.startswith("─"))) + 1 : -3]
    assert len(rows) == 10
    assert max(map(len, lines)) <= 80
    assert rows[0].split() == ["efficacy", "success", "0.0", "100.0", "100.0", "[100.0,", "100.0]"]
    assert rows[7].split() == ["5", "other", "kinds", "exact,", "mean", "0.0", "20.0", "49.0"]
    assert rows[8].split()[:5] == ["lowest:", "long", "context", "exact", "0.0"]
    assert lines[0] == "ROME + REP on tiny, facts, regime single"


def test_one_other_kind_is_named_and_missing_ones_are_left_out() -> None:
    lines = printed(summary({"rewrite": 100.0, "single_hop": 30.0}))
    assert any(line.startswith("single hop") for line in lines)
    assert not any("other kinds" in line or "locality" in line for line in lines)


def test_the_end_of_a_run_where_it_was_measured() -> None:
    about = summary(MAIN, end={"rewrite": 40.0})
    assert last_moment(about) == "end"
    lines = printed(about)
    assert lines[0].endswith("regime single, after the last edit")
    assert "40.0" in lines[3]
    assert last_moment(summary(MAIN)) == "edit"


def test_nothing_was_measured() -> None:
    about = summary({}) | {"results": {}}
    assert printed(about)[0] == "ROME on tiny, facts, regime single"
