"""`costs.jsonl`, `delta_bytes` and `timing`: what edits took, in every regime, and after a run was broken off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from kedit.cli import main
from kedit.results.costs import COSTS, CostsFile, cost_lines, costs_of, delta_size
from tests.support.device import DEVICE
from tests.support.small_runs import QUICK_MEMIT, QUICK_ROME, city_facts, sequential_run

N = 5


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> Callable[..., list[str]]:
    data = city_facts(tmp_path / "facts.jsonl", N)
    options = {"run.root": tmp_path / "runs"}
    return lambda method, more: sequential_run(tiny_folder, data, method | options | more)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / COSTS).read_text().splitlines()]


@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
def test_a_run(regime: str, words: Callable[..., list[str]], tmp_path: Path) -> None:
    more = {"edit.regime": regime, "run.name": "one", "data.batch_size": 2 if regime == "batch" else 1}
    main(words(QUICK_MEMIT, more | ({"edit.lanes": 3} if regime == "single" else {})))
    folder = tmp_path / "runs" / "one"
    lines, summary = lines_of(folder), json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    edits = [row for row in rows if row["measured_at"] == "edit"]
    assert [(line["case_id"], line["batch"]) for line in lines] == [(row["case_id"], row["batch"]) for row in edits]
    assert all("cpu_seconds" not in row for row in rows)
    assert sum(line["cpu_seconds"] for line in lines) == pytest.approx(
        summary["timing"]["cpu_seconds_editing"], abs=1e-2
    )
    assert sum(line["seconds"] for line in lines) == pytest.approx(summary["timing"]["seconds_editing"], abs=1e-2)
    assert all(line["cpu_seconds"] > 0 for line in lines)
    assert summary["timing"]["peak_memory"] > (10_000_000 if DEVICE.type == "cpu" else 100_000)  # process, or tensors
    assert summary["timing"]["edits"] == N
    sizes = [
        sum(tensor.nbytes for tensor in load_file(file).values()) for file in sorted(folder.rglob("delta.safetensors"))
    ]
    if regime == "sequential":
        (size,) = sizes
        assert summary["delta_bytes"] == size
    else:
        assert summary["delta_bytes"] == pytest.approx(sum(sizes) / len(sizes), abs=0.1)
        assert len(sizes) == (N if regime == "single" else 3)
    assert sum(line["delta_bytes"] for line in lines) == pytest.approx(sum(sizes))


def test_the_whole_is_counted_where_no_delta_is_saved(words: Callable[..., list[str]], tmp_path: Path) -> None:
    for name, save in (("kept", "true"), ("not", "false")):
        main(words(QUICK_ROME, {"run.name": name, "results.save_deltas": save}))
    sizes = [
        json.loads((tmp_path / "runs" / name / "summary.json").read_text())["delta_bytes"] for name in ("kept", "not")
    ]
    assert sizes[0] == sizes[1] > 0


def test_a_resumed_run_has_a_line_of_each(
    words: Callable[..., list[str]], whole_and_broken: Callable[[list[str], str], tuple[Path, Path]]
) -> None:
    whole, broken = whole_and_broken(words(QUICK_ROME, {}), "summary.json")
    named = [
        [(line["case_id"], line["batch"], line["delta_bytes"]) for line in lines_of(run)] for run in (whole, broken)
    ]
    assert named[0] == named[1]
    assert len(named[0]) == N


def test_lines_of_a_batch() -> None:
    each = cost_lines(["a", "b"], 3, 4.0, 2.0, [10, None])
    assert each[0] == {"case_id": "a", "batch": 3, "seconds": 2.0, "cpu_seconds": 1.0, "delta_bytes": 10}
    assert each[1]["delta_bytes"] is None
    shared = cost_lines(["a", "b"], 0, 4.0, 2.0, [10])
    assert [line["delta_bytes"] for line in shared] == [5, 5]
    assert [line["delta_bytes"] for line in cost_lines(["a", "b"], 0, 4.0, 2.0, [None])] == [None, None]
    assert cost_lines([], 0, 4.0, 2.0, []) == []
    assert delta_size(each, "single") == 10
    assert delta_size([*shared, *cost_lines(["c"], 1, 1.0, 1.0, [30])], "batch") == 20
    assert delta_size(each[1:], "single") is None


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    file = CostsFile(tmp_path)
    file.append(cost_lines(["a", "b"], 0, 1.0, 1.0, [1]))
    file.append(cost_lines(["c"], 1, 1.0, 1.0, [1]))
    with (tmp_path / COSTS).open("a") as torn:
        torn.write('{"case_id": "d", "ba')
    file.begin(1)
    assert list(costs_of(tmp_path)) == ["a", "b"]
    (tmp_path / COSTS).write_text("{\n")
    file.begin(1)
    assert costs_of(tmp_path) == {}
