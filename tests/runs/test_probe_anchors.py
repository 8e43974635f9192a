"""`kedit probe-anchors`: what it prints and writes on a tiny model, what it refuses; the margin within relations."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread

from kedit.analysis.anchor_probe_report import COLUMNS, Windows, lines_of, verdict
from kedit.cli import main
from kedit.data import read_records
from kedit.forward.binding import load_lm
from kedit.methods.steam import AnchorBank, AnchorConfig, best_window, probe_of, within
from kedit.methods.steam.bank import within_relations
from kedit.methods.steam.module import pool_of
from kedit.model.lm import LMConfig
from tests.support.device import PLACE

PLACES = {
    "France": ("Rome", "Paris"),
    "Italy": ("Paris", "Rome"),
    "Japan": ("Cairo", "Tokyo"),
    "Egypt": ("Tokyo", "Cairo"),
}
KNOWLEDGE = [
    {"prompt": f"{start} {thing} {end}", "object": city, "relation": relation}
    for city, things in {"Rome": "AEIOU", "Paris": "BCDFG", "Tokyo": "HJKLM", "Cairo": "NPQRS"}.items()
    for relation, start, end in (("in", "The tower of", "is in"), ("from", "Trains to", "start from"))
    for thing in things
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Records of four objects, and what is known of these."""
    data, base = tmp_path / "facts.jsonl", tmp_path / "base.jsonl"
    rows = [
        {"prompt": "The capital of {} is", "subject": place, "target_new": new, "target_true": true}
        for place, (new, true) in PLACES.items()
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base.write_text("".join(json.dumps(row) + "\n" for row in KNOWLEDGE))
    return data, base


@pytest.fixture
def words(tiny_folder: Callable[..., str], files: tuple[Path, Path]) -> list[str]:
    data, base = files
    lm = ["--lm.name", tiny_folder("llama", n_layers=6), "--device", PLACE]
    return ["probe-anchors", *lm, "--data", "Records", "--data.path", str(data), "--anchors.knowledge", f'["{base}"]']


def read(path: Path) -> list[dict[str, str]]:
    lines = path.read_text().splitlines()
    assert tuple(next(csv.reader(lines))) == COLUMNS
    return list(csv.DictReader(lines))


def test_a_probe(
    words: list[str], files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "probe"
    main([*words, "--out", str(out)])
    said = capsys.readouterr().out
    rows = read(out / "anchor_probe.csv")
    assert [int(row["layer"]) for row in rows] == list(range(6))
    assert [row["layer"] for row in rows if row["edited"] == "1"] == ["1"]  # the layer of kedit.keyvalue.published
    assert [row["layer"] for row in rows if row["mid"] == "1"] == ["3", "4"]
    assert sum(int(row["auto"]) for row in rows) == 2
    data, base = files
    lm = load_lm(LMConfig(name=words[words.index("--lm.name") + 1]), PLACE)
    config = AnchorConfig(knowledge=[str(base)])
    records = read_records(data)
    bank = AnchorBank(lm, records, pool_of(records, config), config, keep=False)
    anchors = bank.with_references(records)
    inside = within_relations(anchors.values())
    for row, p, w in zip(rows, probe_of(anchors.values()), inside, strict=True):
        assert float(row["margin"]) == pytest.approx(p.margin)
        assert float(row["margin_centred"]) == pytest.approx(p.margin_centred)
        assert float(row["margin_within"]) == pytest.approx(w.margin)
    auto = best_window(bank.telling(), 2)
    assert [row["layer"] for row in rows if row["auto"] == "1"] == [str(layer) for layer in auto]
    assert bank.telling() == [w.above for w in inside]
    assert "4 objects (" in said
    assert f"{sum(anchor.n for anchor in anchors.values())} references; 4 records" in said
    assert "of the object" in said or "the object:" in said or "No layer" in said
    image = imread(out / "anchor_probe.png")
    assert min(image.shape[:2]) > 300
    assert (image[..., :3].min(-1) < 0.9).mean() > 0.01
    assert not list(out.glob("*.partial"))


def test_another_edited_layer_and_no_folder(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    main([*words, "--edited-layer", "3", "--most", "2"])
    assert "2 objects" in capsys.readouterr().out
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--anchors.knowledge", "[]"], "two objects with references, this run has 0; give anchors.records"),
        (["--edited-layer", "6"], "edited-layer: there is no layer 6; this model has layers 0 to 5"),
        (["--edited-layer", "5"], "edited-layer: 5 is the last layer; none above it is left to be aligned"),
        (["--data.path", "missing.jsonl"], "missing.jsonl"),
        (
            ["--anchors.knowledge", '["missing.tsv"]'],
            "missing.tsv: no such file; paths",
        ),
        (["--anchors.n_min", "0"], "anchors.n_min: 0 is "),
        (["--anchors.nmin", "2"], "anchors.nmin: there is no such option"),
        (["--most", "1"], "most: 1 is less than 2"),
        (["--lm.name", "nowhere/to/be/found"], "nowhere/to/be/found"),
    ],
)
def test_what_is_refused(
    more: list[str], message: str, words: list[str], capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words, *more])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    (said,) = [line for line in error.splitlines() if line.startswith("kedit: error: ")]
    assert message in said
    assert "model.anchors" not in said
    assert "Traceback" not in error


def test_no_data(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    at = words.index("--data")
    with pytest.raises(SystemExit):
        main([*words[:at], *words[at + 4 :]])
    assert "--data missing: whose new objects are probed? There are Facts, " in capsys.readouterr().err


def test_within_relations_wording_does_not_pass_for_objects() -> None:
    """Each relation has its own large direction; only layer 1 has anything of the object."""
    generator = torch.Generator().manual_seed(0)
    d, relations = 24, ["a"] * 6 + ["b"] * 6
    wording = {name: 5 * torch.randn(d, generator=generator) for name in "ab"}
    objects = []
    for _ in range(4):
        own = torch.randn(d, generator=generator)
        rows = [torch.stack([wording[r], wording[r] + 2 * own]) for r in relations]
        objects.append(torch.stack(rows) + torch.randn(len(rows), 2, d, generator=generator))
    plain, said = within(objects, [relations] * 4)
    assert abs(plain.above) < 0.1
    assert said.above > 0.5
    assert within(objects[:1], [relations]) == []
    assert within(objects, [[f"{i}"] * 12 for i in range(4)]) == []  # no relation is shared


def test_margin_within_is_the_naive_one() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(n, 1, 8, generator=generator, dtype=torch.float64) for n in (3, 4))
    (found,) = within([x, y], [["r"] * 3, ["r"] * 4])
    centre = (x.mean(0) + y.mean(0)) / 2
    margins = []
    for mine, others in ((x, y), (y, x)):
        each = []
        for i in range(len(mine)):
            rest = torch.cat([mine[:i], mine[i + 1 :]]).mean(0) - centre
            state = mine[i] - centre
            far = F.cosine_similarity(state, others.mean(0) - centre, dim=-1)
            each.append(F.cosine_similarity(state, rest, dim=-1) - far)
        margins.append(torch.stack(each).mean())
    assert found.margin == pytest.approx(float(torch.stack(margins).mean()))


@pytest.mark.parametrize(
    ("within_by_layer", "word"),
    [
        ([0.2, 0.2, 0.6, 0.6, 0.2], "carry the object"),
        ([0.2, 0.2, 0.35, 0.35, 0.6], "carry some of the object"),
        ([0.2, 0.2, 0.2, 0.2, 0.6], "hardly carry the object"),
        ([0.6, 0.6, 0.6, 0.6, 0.6], "No layer tells objects apart"),
        (None, "wording may pass for objects"),
    ],
)
def test_the_sentence(within_by_layer: list[float] | None, word: str) -> None:
    from kedit.methods.steam import LayerProbe, Within

    probes = [LayerProbe(layer, 0.9, 0.8, 0.1 * layer, 0.0) for layer in range(5)]
    inside = [Within(i, x + 0.05, 0.05) for i, x in enumerate(within_by_layer or [])]
    windows = Windows(1, [2, 3], [3])
    assert word in verdict(lines_of(probes, inside, windows), windows)
