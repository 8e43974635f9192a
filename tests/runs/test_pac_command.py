"""PAC by the command: regimes, options, resuming, failures, and the rows and deltas that are written."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kedit.cli import main
from kedit.delta.delta import Delta, edited
from kedit.delta.serialization import load_delta, unpack
from kedit.methods.pac import Profile, TrainConfig, encode_request
from kedit.model.architecture import weight
from kedit.model.lm import LMConfig, load_lm
from kedit.request import EditRequest
from kedit.runtime.journal import read_journal
from kedit.runtime.run_folder import CHECKPOINT
from tests.support.pac_runs import Rows, RowsOf, deltas_of, quick_run

words = pytest.fixture(quick_run)


@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
@pytest.mark.parametrize("data", ["Records", "ZsRE"])
def test_regimes(regime: str, data: str, words: Any, tmp_path: Path, rows_of: RowsOf) -> None:
    """With subjects and without; the rows' figures, PAC's score, and the delta's lines."""
    main(words(**{"edit.regime": regime, "data": data}))
    folder, n = tmp_path / "runs" / "one", 4 if data == "Records" else 3
    rows = rows_of(folder)
    assert [row["measured_at"] for row in rows] == ["edit"] * n + ["end"] * (n if regime == "sequential" else 0)
    assert {row["status"] for row in rows} == {"edited"}
    for row in rows:
        assert row["edit"].keys() >= {"steps", "loss", "answered", "nodes"}
        assert 1 <= row["edit"]["steps"] <= 4
        assert row["edit"]["nodes"] == 4 * 4
        assert (row["request"]["subject"] is None) == (data == "ZsRE")
        if row["measured_at"] == "edit" and regime != "sequential":
            rewrite = row["probes"][0]
            assert rewrite["after"]["nll_answer"] == pytest.approx(row["edit"]["loss"], abs=1e-3)
            assert rewrite["after"]["nll_answer"] < rewrite["before"]["nll_answer"] - 0.05
    deltas = deltas_of(folder)
    assert len(deltas) == {"single": n, "batch": 2, "sequential": 1}[regime]
    for delta in deltas:
        assert not delta.changes
        assert len(delta.slices) == 4
        lines = [len(part.index) for part in delta.slices.values()]
        assert lines == [5] * 4 if regime != "sequential" else all(5 <= line <= 10 for line in lines)

    results = json.loads((folder / "summary.json").read_text())["results"]
    for measured_at, result in results.items():
        means = {kind: records_mean(rows, measured_at, kind) for kind in ("rewrite", "paraphrase", "neighborhood")}
        assert result["rewrite"]["token_accuracy"]["after"] == pytest.approx(100 * means["rewrite"], abs=1e-3)
        want = 100 * sum(means.values()) / 3
        assert result["score"]["tokens_arithmetic"]["after"] == pytest.approx(want, abs=1e-3)


def records_mean(rows: Rows, measured_at: str, kind: str) -> float:
    """Mean over records of the mean over a kind's probes: correct tokens, or, of neighbours, unchanged ones."""
    means = []
    for row in rows:
        own = []
        for probe in row["probes"]:
            if row["measured_at"] != measured_at or probe["kind"] != kind:
                continue
            before, after = probe["before"]["top1"], probe["after"]["top1"]
            if kind == "neighborhood":
                own.append(sum(a == b for a, b in zip(before, after, strict=True)) / len(after))
            else:
                own.append(probe["after"]["token_accuracy"])
        if own:
            means.append(sum(own) / len(own))
    return sum(means) / len(means)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_change_is_full_locality(dtype: str, words: Any, tmp_path: Path, rows_of: RowsOf) -> None:
    """A change far below the weights' resolution: every neighbour's tokens are as before (specs/pac.md 8 d)."""
    main(words(**{"model.train.lr": 1e-12, "lm.dtype": dtype}))
    folder = tmp_path / "runs" / "one"
    assert all(part.values.any() for delta in deltas_of(folder) for part in delta.slices.values())
    result = json.loads((folder / "summary.json").read_text())["results"]["edit"]
    assert result["neighborhood"]["unchanged_tokens"]["after"] == 100
    for row in rows_of(folder):
        assert all(probe["before"]["top1"] == probe["after"]["top1"] for probe in row["probes"])


D_FF, N_SITES = 40, 4


@pytest.mark.parametrize(
    ("more", "least", "most"),
    [
        ({"trace.node_source": "all"}, D_FF, D_FF),
        ({"trace.node_source": "random", "scope": "edit"}, 5, 10),
        ({"trace.mode": "kbest", "trace.tie_kv": "true", "contrast.original": "greedy"}, 2, 5),
        ({"parity": "true", "train.lr": TrainConfig().lr, "train.passes": TrainConfig().passes}, 5, 30),
        ({"scope": "dataset", "train.objective": "joint", "contrast.lr": 0.001, "train.retrace": 1}, 5, 5),
        (
            {
                "trace.coverage": 0.5,
                "locality.weight": 2,
                "locality.prompts": 4,
                "train.layer_weights": "true",
                "train.rollback": 0.9,
            },
            2,
            4,
        ),
    ],
)
def test_every_option_runs(
    more: dict[str, Any], least: int, most: int, words: Any, tmp_path: Path, rows_of: RowsOf
) -> None:
    main(words(**{f"model.{key}": value for key, value in more.items()}))
    folder = tmp_path / "runs" / "one"
    assert [row["status"] for row in rows_of(folder)] == ["edited"] * 4
    deltas = deltas_of(folder)
    lines = [len(part.index) for delta in deltas for part in delta.slices.values()]
    assert len(deltas) == 2
    assert least <= min(lines) <= max(lines) <= most
    assert len({tuple(d.slices) for d in deltas}) == 1
    assert len(lines) == 2 * N_SITES
    if more.get("scope") == "dataset":
        assert all(torch.equal(part.index, deltas[1].slices[path].index) for path, part in deltas[0].slices.items())


def test_a_loss_that_is_not_finite_fails_the_edit(words: Any, tmp_path: Path, rows_of: RowsOf) -> None:
    main(words(**{"model.train.lr": 1e30, "model.trace.node_source": "all", "edit.regime": "sequential"}))
    folder = tmp_path / "runs" / "one"
    rows = rows_of(folder)
    assert len(rows) == 8
    for row in rows:
        assert row["status"] == "failed"
        assert row["error"] == "the loss is not finite after the last step; a smaller model.train.lr may help"
        assert row["edit"]["answered"] is False
        assert all(probe["before"] == probe["after"] for probe in row["probes"])
    assert not deltas_of(folder)
    assert len(json.loads((folder / "summary.json").read_text())["failed"]) == 4


@pytest.mark.parametrize(
    "more",
    [
        {
            "model.scope": "edit",
            "model.locality.weight": 1,
            "model.locality.prompts": 4,
            "model.train.layer_weights": "true",
        },
        {"model.scope": "dataset", "model.train.shared_adam": "true", "data": "ZsRE"},
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(more: dict[str, Any], words: Any, whole_and_broken: Any) -> None:
    command = words(**{"edit.regime": "sequential", "data.batch_size": 1} | more)
    whole, broken = whole_and_broken(command, "summary.json")
    one, two = (load_file(next(folder.rglob("delta.safetensors"))) for folder in (whole, broken))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    summaries = [json.loads((folder / "summary.json").read_text())["results"] for folder in (whole, broken)]
    assert summaries[0] == summaries[1]
    kept = [torch.load(folder / CHECKPOINT, weights_only=True)["kedit"] for folder in (whole, broken)]
    profiles = [Profile(), Profile()]
    for folder, state, profile in zip((whole, broken), kept, profiles, strict=True):
        journal = folder / CHECKPOINT.parent / state["journal"]["file"]
        entries = read_journal(journal, state["journal"]["bytes"])
        made = [unpack(delta) for entry in entries for delta in entry["deltas"]]
        total, _ = load_delta(next(folder.rglob("card.json")).parent)
        for path, slices in reduce(lambda a, b: Delta.concat([a, b]), made).slices.items():
            assert torch.equal(slices.values, total.slices[path].values), "what it holds adds up to the delta"
        profile.load(state["method"]["profile"])
    assert profiles[0].rows() == profiles[1].rows()
    assert profiles[0].traces == profiles[1].traces == (1 if "data" in more else 4)


def test_fast_dev_run(words: Any, tmp_path: Path, rows_of: RowsOf) -> None:
    main(words(**{"trainer.fast_dev_run": "true", "model.train.retrace": 2}))
    rows = rows_of(tmp_path / "runs" / "one")
    assert [row["edit"]["steps"] for row in rows] == [1, 1]
    assert [row["status"] for row in rows] == ["edited"] * 2


def test_the_saved_delta_is_the_measured_one(words: Any, tmp_path: Path, rows_of: RowsOf) -> None:
    """Applied to the model anew, it gives the losses in the rows."""
    main(words(**{"edit.regime": "single", "data": "ZsRE"}))
    folder, command = tmp_path / "runs" / "one", words()
    lm = load_lm(LMConfig(name=command[command.index("--lm.name") + 1]))
    for row in rows_of(folder):
        delta, card = load_delta(folder / "deltas" / row["case_id"])
        assert card["method"] == "PAC"
        text = encode_request(lm, EditRequest("x", row["request"]["prompt"], None, row["request"]["target_new"]))
        with torch.no_grad(), edited(lm.model, delta):
            logits = lm.model(torch.tensor([text.ids])).logits[0, text.n_prompt - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(text.target))
        assert row["edit"]["loss"] == pytest.approx(float(loss), abs=1e-4)
        for path, part in delta.slices.items():
            assert weight(lm.model.get_submodule(path)).shape == part.shape
