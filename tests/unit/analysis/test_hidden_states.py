"""Cosines to anchors, LogitLens and planes: equal to naive computations on a tiny model; lines, CSV and figures."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kedit.analysis.hidden_states import (
    BASE,
    Native,
    Plane,
    Scene,
    arm_states,
    curves,
    depths_of,
    lens,
    native,
    prompts_of,
    scene,
)
from kedit.analysis.hidden_states_figure import cosine_figure, lens_figure, space_figure
from kedit.analysis.hidden_states_report import (
    COSINE_COLUMNS,
    LENS_COLUMNS,
    SPACE_COLUMNS,
    About,
    as_csv,
    cosine_lines,
    joined,
    lens_lines,
    space_lines,
)
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.methods.steam import Anchor, Reference, probe
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.tiny_models import tiny_lm

LAYERS = 5
TEXTS = ["The tower of A is in", "Trains to B start from the town of", "C is in"]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param, n_layers=LAYERS)


def record(place: str, new: str, *paraphrases: str) -> EditRecord:
    probes = tuple(Probe("paraphrase", text, new) for text in paraphrases)
    return EditRecord(EditRequest(place, "The capital of {} is", place, new), probes)


RECORDS = [record("France", "Rome", "France has the capital", "They go to"), record("Japan", "Cairo")]


def delta_of(lm: LM, layer: int, seed: int) -> Delta:
    g = torch.Generator().manual_seed(seed)
    out = lm.arch.path("mlp_out", layer)
    left, right = torch.randn(lm.d_model, 1, generator=g), torch.randn(1, 80, generator=g)
    return Delta({out: Factors(left, 0.3 * right)})


def naive(lm: LM, text: str, delta: Delta | None = None) -> Tensor:
    """States after every block at the last token of a text, with the weights changed: `[n_layers, d_model]`."""
    seen: list[Tensor] = []

    def hook(module: Any, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output)[0, -1].float())

    handles = [lm.arch.layer(lm.model, i).register_forward_hook(hook) for i in range(LAYERS)]
    with torch.no_grad(), edited(lm.model, *([] if delta is None else [delta])):
        lm.model(torch.tensor([encode(lm, text).ids]))
    for handle in handles:
        handle.remove()
    return torch.stack(seen)


def anchor_of(lm: LM, answer: str, shift: str = "") -> Anchor:
    used = tuple(Reference(shift + text, answer) for text in TEXTS)
    hidden = torch.stack([naive(lm, r.text) for r in used])
    return Anchor(hidden.mean(0), len(used), 1, "single_relation", hidden=hidden, used=used)


def test_curves_are_the_naive_ones(lm: LM) -> None:
    anchors = [anchor_of(lm, "Rome"), anchor_of(lm, "Cairo", "So ")]
    phi = torch.stack([anchor.mean for anchor in anchors if anchor.mean is not None])
    arms = {name: [delta_of(lm, 1, seed), delta_of(lm, 1, seed + 1)] for name, seed in (("editor", 0), ("steam", 5))}
    side = native(lm, anchors)
    assert side is not None
    torch.testing.assert_close(side.centre, phi.mean(0))
    found = curves(lm, RECORDS, phi, arms, side.centre)
    assert set(found) == {BASE, "editor", "steam"}
    for name, seen in found.items():
        for i, rec in enumerate(RECORDS):
            delta = None if name == BASE else arms[name][i]
            hidden = naive(lm, rec.request.text, delta)
            token = encode(lm, rec.request.text, rec.request.target_new).target[0]
            for layer in range(LAYERS):
                h, a, c = hidden[layer], phi[i, layer], side.centre[layer]
                assert float(seen.raw[i, layer]) == pytest.approx(float(F.cosine_similarity(h, a, dim=0)), abs=1e-5)
                centred = float(F.cosine_similarity(h - c, a - c, dim=0))
                assert float(seen.centred[i, layer]) == pytest.approx(centred, abs=1e-4)
                p = lm.arch.logits(lm.model, h).softmax(-1)
                assert float(seen.lens.p[i, layer]) == pytest.approx(float(p[token]), rel=1e-3, abs=1e-7)
                assert abs(float(seen.lens.rank[i, layer]) - 1 - int((p > p[token]).sum())) <= 1
    assert not torch.equal(found["editor"].raw, found["steam"].raw)
    assert torch.equal(found["editor"].raw[:, 0], found[BASE].raw[:, 0])  # below the edited layer


def test_the_last_layer_of_the_lens_is_what_the_model_says(lm: LM) -> None:
    ids = encode(lm, TEXTS[0]).ids
    with torch.no_grad():
        p = lm.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    seen = lens(lm, naive(lm, TEXTS[0])[None], [17])
    assert float(seen.p[0, -1]) == pytest.approx(float(p[17]), rel=1e-4)
    assert int(seen.rank[0, -1]) == 1 + int((p > p[17]).sum())


def test_the_native_side(lm: LM) -> None:
    anchors = [anchor_of(lm, "Rome"), anchor_of(lm, "Cairo", "So ")]
    found = native(lm, anchors)
    assert found is not None
    assert (found.n_objects, found.n_references) == (2, 6)
    by_layer = probe([anchor.hidden for anchor in anchors if anchor.hidden is not None])
    assert found.own[0].tolist() == pytest.approx([p.own for p in by_layer])
    assert found.other[1].tolist() == pytest.approx([p.other_centred for p in by_layer])
    for i, anchor in enumerate(anchors):
        token = encode(lm, anchor.used[0].text, anchor.used[0].answer).target[0]
        assert anchor.hidden is not None
        ps = [float(lm.arch.logits(lm.model, h[-1]).softmax(-1)[token]) for h in anchor.hidden]
        assert float(found.lens.p[i, -1]) == pytest.approx(statistics.mean(ps), rel=1e-4)
    assert native(lm, anchors[:1]) is None
    assert native(lm, [anchors[0], Anchor(anchors[1].mean, 2, 1, "in_context")]) is None


def test_the_plane_is_that_of_an_eigendecomposition() -> None:
    points = torch.randn(12, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)
    plane = Plane.of(points)
    x = points.double().cpu().numpy()
    values, vectors = np.linalg.eigh(np.cov(x.T))
    expected = (x - x.mean(0)) @ vectors[:, ::-1][:, :2]
    got = plane.project(points).cpu().numpy()
    np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-8)
    np.testing.assert_allclose(plane.share.cpu().numpy(), values[::-1][:2] / values.sum(), atol=1e-10)
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64))


def test_edited_states_do_not_move_the_axes(lm: LM) -> None:
    anchor, depths = anchor_of(lm, "Rome"), [2, 4]
    first = scene(lm, RECORDS[0], anchor, {"steam": delta_of(lm, 1, 0)}, depths)
    second = scene(lm, RECORDS[0], anchor, {"steam": delta_of(lm, 1, 1), "editor": delta_of(lm, 1, 2)}, depths)
    for layer in depths:
        for group in ("reference", "phi", BASE):
            torch.testing.assert_close(first.points[layer][group], second.points[layer][group], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(first.points[layer]["steam"], second.points[layer]["steam"], atol=1e-2)
        rows = [naive(lm, text) for text in first.texts[BASE]]
        assert anchor.hidden is not None
        fitted = torch.cat([anchor.hidden[:, layer], torch.stack(rows)[:, layer]])
        plane = Plane.of(fitted)
        edited_rows = torch.stack([naive(lm, text, delta_of(lm, 1, 0)) for text in first.texts["steam"]])[:, layer]
        expected = plane.project(edited_rows)
        got = first.points[layer]["steam"]
        torch.testing.assert_close(got.abs(), expected.abs(), atol=1e-3, rtol=1e-3)
    assert first.texts["steam"] == ["The capital of France is", "France has the capital", "They go to"]
    assert first.texts["reference"] == TEXTS


def test_states_of_arms_are_in_the_order_of_the_prompts(lm: LM) -> None:
    prompts = [list(prompts_of(lm, rec).values()) for rec in RECORDS]
    deltas = [delta_of(lm, 0, 3), delta_of(lm, 0, 4)]
    found = arm_states(lm, prompts, {"steam": deltas})
    texts = [(i, text) for i, rec in enumerate(RECORDS) for text in prompts_of(lm, rec)]
    for row, (i, text) in enumerate(texts):
        torch.testing.assert_close(found[BASE][row], naive(lm, text), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found["steam"][row], naive(lm, text, deltas[i]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("edited_layer", "aligned", "depths"),
    [
        (5, list(range(12, 22)), [6, 17, 21, 28]),
        (5, list(range(23, 29)), [6, 16, 26, 28]),
        (1, [2], [2, 3, 4]),
        (3, [4, 5], [4, 5]),
    ],
)
def test_depths(edited_layer: int, aligned: list[int], depths: list[int]) -> None:
    assert depths_of(30 if edited_layer == 5 else 6, edited_layer, aligned) == depths


METHOD: Mapping[str, Any] = {
    "method": "STEAM",
    "editor": "ROME",
    "model": "tiny",
    "seed": 3,
    "aligned_layers": [2, 3],
    "align": {"weighting": "grad_ratio", "ratio": 0.1, "weight": 10, "center": "none"},
}


def measured(lm: LM) -> tuple[dict[str, Any], Native, list[Scene], About]:
    anchors = [anchor_of(lm, "Rome"), anchor_of(lm, "Cairo", "So ")]
    phi = torch.stack([anchor.mean for anchor in anchors if anchor.mean is not None])
    arms = {name: [delta_of(lm, 1, i), delta_of(lm, 1, i + 9)] for i, name in enumerate(("editor", "steam"))}
    side = native(lm, anchors)
    assert side is not None
    found = curves(lm, RECORDS, phi, arms, side.centre)
    scenes = [scene(lm, RECORDS[0], anchors[0], {name: own[0] for name, own in arms.items()}, [2, 3])]
    return found, side, scenes, About.of(METHOD, {"name": "records/x", "records": 2}, [1], 2)


def test_lines_and_their_csv(lm: LM) -> None:
    found, side, scenes, _ = measured(lm)
    lines = cosine_lines(found, side)
    values = [float(x) for x in found["steam"].raw[:, 2]]
    (line,) = [x for x in lines if (x["layer"], x["view"], x["arm"]) == (2, "raw", "steam")]
    assert line["mean"] == pytest.approx(statistics.mean(values))
    assert line["se"] == pytest.approx(statistics.stdev(values) / 2**0.5)
    assert line["n"] == 2
    assert {x["arm"] for x in lines} == {BASE, "editor", "steam", "own", "other"}
    assert {x["view"] for x in cosine_lines(found, side)} == {"raw", "centred"}
    looked = lens_lines(found, side)
    assert {x["arm"] for x in looked} == {BASE, "editor", "steam", "native"}
    (line,) = [x for x in looked if (x["layer"], x["arm"]) == (4, BASE)]
    assert line["rank_median"] == statistics.median(float(x) for x in found[BASE].lens.rank[:, 4])
    points = space_lines(scenes)
    assert len(points) == 2 * (3 + 1 + 3 * 3)  # layers * (references + phi + arms * prompts)
    for rows, columns in ((lines, COSINE_COLUMNS), (looked, LENS_COLUMNS), (points, SPACE_COLUMNS)):
        text = as_csv(rows, columns)
        back = list(csv.DictReader(text.splitlines()))
        assert tuple(back[0]) == columns
        assert [row[columns[0]] for row in back] == [str(row[columns[0]]) for row in rows]


def test_without_objects_to_compare_there_is_one_panel(lm: LM) -> None:
    phi = torch.stack([m for m in (anchor_of(lm, "Rome").mean,) if m is not None])
    found = {
        name: joined([c]) for name, c in curves(lm, RECORDS[:1], phi, {"steam": [delta_of(lm, 1, 0)]}, None).items()
    }
    lines = cosine_lines(found, None)
    assert {line["view"] for line in lines} == {"raw"}
    assert {line["se"] for line in lines} == {None}  # of one edit
    figure = cosine_figure(lines, About.of(METHOD, {"name": "x", "records": 1}, [1], 1))
    assert len([panel for panel in figure.axes if panel.get_title()]) == 1
    figure.draw_without_rendering()


def test_figures_show_the_lines(lm: LM) -> None:
    found, side, scenes, about = measured(lm)
    lines = cosine_lines(found, side)
    figure = cosine_figure(lines, about)
    raw, centred = figure.axes
    curve = {line.get_label(): line for line in centred.lines}
    expected = [x["mean"] for x in lines if x["view"] == "centred" and x["arm"] == "steam"]
    assert np.asarray(curve["ROME + STEAM"].get_ydata()).tolist() == expected
    assert {"unedited", "ROME alone", "references to their own anchor"} <= set(curve)
    assert len(raw.patches) == 2  # the aligned layers
    assert "ROME + STEAM on tiny" in figure.get_suptitle()
    assert "2 edits of records/x" in figure.get_supxlabel()
    assert "seed 3" in figure.get_supxlabel()
    looked = lens_figure(lens_lines(found, side), about)
    assert looked.axes[1].get_yscale() == "log"
    assert looked.axes[1].get_ylim()[0] > looked.axes[1].get_ylim()[1]  # the first rank at the top
    space = space_figure(scenes, about)
    for panel, layer in zip(space.axes, (2, 3), strict=True):
        for arm, name in (("editor", "ROME alone"), ("steam", "ROME + STEAM")):
            assert f"{name} {float(scenes[0].cosines[layer][arm].mean()):.3f}" in panel.get_title()
    for one in (figure, looked, space):
        one.draw_without_rendering()
