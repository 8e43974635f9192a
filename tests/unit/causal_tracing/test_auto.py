"""`layers: auto`: the rule, the facts that it looks at, what is kept of them, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedit.causal_tracing import chosen_layers, facts_of, trace
from kedit.causal_tracing.peak import first_inner, peak_of
from kedit.causal_tracing.tracing import TraceConfig
from kedit.data.readers.facts import read_facts
from kedit.errors import KeditError
from kedit.model.lm import LM
from kedit.request import EditRecord
from tests.support.tiny_models import tiny_lm

MODULE = "kedit.causal_tracing.auto"
HOW = TraceConfig(samples=2)


@pytest.fixture
def all_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny random model knows nothing; here it is said to know everything."""
    monkeypatch.setattr("kedit.evaluation.score.is_known", lambda lm, records: [True] * len(records))


def planted(monkeypatch: pytest.MonkeyPatch, curve: list[float]) -> None:
    monkeypatch.setattr(f"{MODULE}._effects", lambda lm, records: np.tile(curve, (len(records), 1)))


@pytest.mark.usefixtures("all_known")
@pytest.mark.parametrize(
    ("curve", "count", "layers"),
    [
        ([0, 0.1, 0.2, 0.5, 0.1, 0], 1, [3]),
        ([0, 0.1, 0.2, 0.5, 0.1, 0], 3, [1, 2, 3]),
        (
            [0.9, 0.3, 0.2, 0.3, 0.1, 0],
            5,
            [0, 1],
        ),  # not layer 0; the lower of two peaks, and fewer layers than usual below it
        ([-0.2, -0.1, 0, 0, 0, 0.001], 2, [4, 5]),
    ],
)
def test_the_layers_end_at_the_peak(
    curve: list[float], count: int, layers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, curve)
    found = chosen_layers(tiny_lm("gpt2", n_layers=6), count, "model.layers")
    assert found.layers == layers
    assert found.peak.layer == layers[-1]
    assert found.peak.layers_ci == (layers[-1], layers[-1])
    assert found.card["facts"] == 32
    assert found.card["window"] == 1
    json.dumps(found.card)


@pytest.mark.usefixtures("all_known")
def test_facts_that_the_run_edits_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[EditRecord]] = []

    def effects(lm: LM, records: list[EditRecord]) -> Any:
        seen.append(records)
        return np.ones((len(records), 2))

    monkeypatch.setattr(f"{MODULE}._effects", effects)
    lm = tiny_lm("gpt2", n_layers=2)
    plain = chosen_layers(lm, 1, "model.layer")
    gone = {record.request.text for record in seen[0][:5]}
    other = chosen_layers(lm, 1, "model.layer", gone)
    texts = [[record.request.text for record in each] for each in seen]
    assert gone.isdisjoint(texts[1])
    assert len(texts[1]) == 32
    assert plain.card["facts_fingerprint"] != other.card["facts_fingerprint"]
    assert len({record.request.relation for record in seen[0]}) > 15  # not a few relations alone
    assert {record.meta["split"] for each in seen for record in each} == {"train"}


def test_too_few_known_facts() -> None:
    message = r"model\.layers: auto traces facts that a model knows, and tiny-gpt2 knows 0 of the 106 there are"
    with pytest.raises(KeditError, match=message):
        chosen_layers(tiny_lm("gpt2", n_layers=2), 1, "model.layers")


@pytest.mark.usefixtures("all_known")
def test_no_layer_recalls_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, [0.3, -0.1])
    with pytest.raises(KeditError, match=r"model\.layer: auto finds no layer of tiny-gpt2"):
        chosen_layers(tiny_lm("gpt2", n_layers=2), 1, "model.layer")


def test_windows_that_hold_the_first_layer_do_not_count() -> None:
    assert [first_inner(n, window) for n, window in ((30, 6), (48, 10), (4, 1), (2, 2), (1, 1))] == [4, 6, 1, 0, 0]
    found = peak_of(np.array([[0.9, 0.8, 0.1, 0.2], [0.9, 0.8, 0.1, 0.2]]), 2)
    assert (found.layer, found.effect, found.layers_ci) == (3, 0.2, (3, 3))


def test_the_peak_has_an_interval() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, (20, 5))
    found = peak_of(np.array([0, 0.3, 0.32, 0, 0]) + noise)
    assert found.layers_ci == (1, 2)
    assert found.between == "layers 1 to 2"
    assert found.ci[0] < found.effect < found.ci[1]


def test_traces_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    lm = tiny_lm("llama", n_layers=3)
    facts = facts_of(lm, read_facts("train")[:2])
    first = trace(lm, facts, HOW, ["mlp"], True, sigma=1.0, keep=True)
    files = sorted(tmp_path.rglob("*.json"))
    assert len(files) == 2
    monkeypatch.setattr("kedit.causal_tracing.tracing.Runs", None)  # who traces anew fails
    again = trace(lm, facts, HOW, ["mlp"], True, sigma=1.0, keep=True)
    for a, b in zip(first, again, strict=True):
        assert (a.clean, a.corrupted, a.tokens) == (b.clean, b.corrupted, b.tokens)
        assert a.restored["mlp"].equal(b.restored["mlp"])
    for change in ({"sigma": 2.0}, {"config": TraceConfig(samples=2, seed=1)}, {"parts": ["state"]}):
        given: dict[str, Any] = {"config": HOW, "parts": ["mlp"], "subject_last": True, "sigma": 1.0} | change
        with pytest.raises(TypeError):
            trace(lm, facts, keep=True, **given)
    monkeypatch.undo()
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    text = files[0].read_text()
    for broken in (text.replace('"corrupted": ', '"corrupted": 1'), text[:50], "[1]", "{}"):
        files[0].write_text(broken)
        caplog.clear()
        fresh = trace(lm, facts, HOW, ["mlp"], True, sigma=1.0, keep=True)
        assert "is damaged" in caplog.text
        assert "the fact is traced anew" in caplog.text
        assert [found.clean for found in fresh] == [found.clean for found in first]
        assert files[0].read_text() == text
