"""Causal tracing over facts: classes of tokens, averages against sums by hand, lines, JSON, table, drawings."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from kedit.analysis.causal_tracing import Average, average, token_class
from kedit.analysis.causal_tracing_figure import average_figure, example_figure
from kedit.analysis.causal_tracing_report import as_csv, card, lines_of, peak_table, sentence
from kedit.causal_tracing import PARTS, Fact, FactTrace, Part
from kedit.runtime.files import write_figure
from tests.support.tiny_models import tiny_lm


def fact(n: int, first: int, last: int, name: str = "a") -> Fact:
    return Fact(name, tuple(range(5, 5 + n)), first, last, 9, "The price of {} is → $3_{")


@pytest.mark.parametrize(
    ("n", "first", "last", "classes"),
    [
        (8, 1, 3, [None, "subject_first", "subject_middle", "subject_last", "next", "further", "further", "last"]),
        (4, 0, 0, ["subject_last", "next", "further", "last"]),
        (3, 0, 1, ["subject_first", "subject_last", "last"]),
        (2, 0, 1, ["subject_first", "subject_last"]),
    ],
)
def test_every_token_has_one_class(n: int, first: int, last: int, classes: list[str | None]) -> None:
    assert [token_class(fact(n, first, last), token) for token in range(n)] == classes


def traces() -> list[FactTrace]:
    """Three facts of different shapes, with numbers of their own."""
    found = []
    for i, (n, first, last) in enumerate([(8, 1, 3), (4, 0, 0), (3, 0, 1)]):
        generator = torch.Generator().manual_seed(i)
        restored: dict[Part, torch.Tensor] = {
            part: torch.rand(n - first, 4, dtype=torch.float64, generator=generator) for part in PARTS
        }
        found.append(FactTrace(fact(n, first, last, str(i)), 0.9, 0.1 * i, restored, range(first, n)))
    return found


def test_averages() -> None:
    each = traces()
    found = average(each, "mlp", 2, resamples=200)
    effects = [(one.restored["mlp"] - one.corrupted).numpy() for one in each]
    assert found.n == {
        "subject_first": 2, "subject_middle": 1, "subject_last": 3, "next": 2, "further": 2, "last": 3,
    }  # fmt: skip
    assert np.allclose(found.mean["subject_last"], (effects[0][2] + effects[1][0] + effects[2][1]) / 3)
    assert np.allclose(found.mean["further"], ((effects[0][4] + effects[0][5]) / 2 + effects[1][2]) / 2)
    assert found.peak.layer == found.mean["subject_last"].argmax()
    assert found.inner.layer == 2 + found.mean["subject_last"][2:].argmax()
    for name, mean in found.mean.items():
        assert (found.low[name] <= mean + 1e-12).all()
        assert (mean <= found.high[name] + 1e-12).all()
    assert (found.high["subject_last"] > found.low["subject_last"]).all()


def test_what_is_said_and_written() -> None:
    lm, each = tiny_lm("gpt2", n_layers=4), traces()
    averages: dict[Part, Average] = {part: average(each, part, 6, resamples=50) for part in PARTS}
    rows = list(csv.DictReader(io.StringIO(as_csv(lines_of(lm, each)))))
    assert len(rows) == 3 * 4 * (7 + 4 + 3)
    some = rows[4 * 2 + 1]
    assert (some["case_id"], some["part"], some["layer"], some["position"]) == ("0", "state", "1", "3")
    assert (some["class"], some["token"]) == ("subject_last", lm.decode([8]))
    assert float(some["effect"]) == pytest.approx(float(each[0].restored["state"][2, 1]))
    whole = json.loads(json.dumps(card(each, averages)))
    assert whole["total_effect"]["mean"] == pytest.approx(0.8)
    assert whole["peaks"]["mlp"]["layer"] == averages["mlp"].peak.layer
    assert whole["effects"]["state"]["last"]["mean"] == pytest.approx(averages["state"].mean["last"].tolist(), abs=1e-6)
    console = Console(width=120, record=True)
    console.print(peak_table(averages, "a title", 6))
    said = console.export_text()
    order = np.argsort(-averages["mlp"].mean["subject_last"])
    lines = [line.split("│") for line in said.splitlines() if line.startswith("│")]
    assert [int(line[3]) for line in lines] == order.tolist()
    assert f"around layer {order[0]} (" in sentence(each, averages)
    assert "p(answer) is 90.0 % in the clean runs and 10.0 % in the corrupted ones" in sentence(each, averages)


def test_drawings(tmp_path: Path) -> None:
    lm, each = tiny_lm("gpt2", n_layers=4), traces()
    averages: dict[Part, Average] = {part: average(each, part, 6, resamples=20) for part in PARTS}
    write_figure(tmp_path / "average.png", average_figure(averages, 6, "Tracing of $x_", "sigma"))
    write_figure(tmp_path / "one.png", example_figure(lm, each[0], 1, "sigma"))
    for name in ("average", "one"):
        image = imread(tmp_path / f"{name}.png")
        assert image.shape[1] > 3 * image.shape[0] / 2
        assert (image[..., :3].min(-1) < 0.9).mean() > 0.05
