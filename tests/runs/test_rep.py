"""REP from end to end on tiny models: every editor and regime, resumed runs, and what is said to a slip."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from kedit.callbacks import EditCheckpoint
from kedit.cli import main
from kedit.cli.options.parts import TRAINER_DEFAULTS
from kedit.covariance import StatsConfig
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.pathways import Pathways
from kedit.delta.serialization import load_delta
from kedit.keyvalue.keys import mean_keys
from kedit.methods import MEMIT, REP, ROME, RROME
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.rep import AdapterConfig, AdapterTask, AdapterTrainer, closed_form, parity_config
from kedit.methods.rep import module as rep_module
from kedit.model.lm import LM
from kedit.runtime.run_folder import CHECKPOINT
from tests.support.device import ACCELERATOR
from tests.support.paths import FIXTURES
from tests.support.runs_in_memory import Given, Watch
from tests.support.small_runs import configured, option_words
from tests.support.tiny_models import tiny_lm
from tests.unit.methods.locate_then_edit.test_multi_layer import REQUESTS, TEXTS, bits

RECORDS = str(FIXTURES / "records.jsonl")
LAYERS = {"ROME": "1", "RROME": "1", "MEMIT": "[0,1]", "EMMET": "[1]"}
QUICK: dict[str, Any] = {
    "steps": 6,
    "positives": 8,
    "negatives": 16,
    "rank": 4,
    "others": 3,
    "phrases": 0,
    "confusable_names": 0,
    "corpus_tokens": 100,
    "contexts": 1,
}
Rows = list[dict[str, Any]]
RowsOf = Callable[[Path], Rows]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> Callable[..., list[str]]:
    """`words("MEMIT", "batch")`: the command of an editor by itself; with REP around it by default."""

    def command(editor: str, regime: str = "single", rep: bool = True, name: str = "one") -> list[str]:
        of_editor = {
            "layers" if editor in ("MEMIT", "EMMET") else "layer": LAYERS[editor],
            "v_num_grad_steps": 4,
            "contexts.lengths": "[[3,2]]",
            "stats.tokens": 400,
        }
        options: dict[str, Any] = {"model": "REP", "model.editor": editor} if rep else {"model": editor}
        options |= {f"model.{'editor.' if rep else ''}{key}": value for key, value in of_editor.items()}
        if rep:
            options |= {f"model.adapter.{key}": value for key, value in QUICK.items()}
        options |= {
            "lm.name": tiny_folder("llama", n_layers=3, context=128),
            "edit.regime": regime,
            "edit.lanes": 2,
            "data": "Records",
            "data.path": RECORDS,
            "data.skip": 2,
            "data.limit": 2,
            "data.batch_size": 1 + (regime == "batch"),
        }
        options |= {"run.root": tmp_path, "run.name": name, "trainer.accelerator": ACCELERATOR}
        options |= {"metrics.scoring.generate": "[]", "results.resamples": 50}
        return ["fit", *option_words(options)]

    return command


def same(one: Any, other: Any) -> None:
    """Equal, numbers to the rounding of another batch."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            same(value, other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            same(mine, theirs)
    else:
        assert one == (pytest.approx(other, abs=2e-4) if isinstance(one, float) else other)


@pytest.mark.parametrize(
    ("editor", "regime"),
    [("ROME", "single"), ("RROME", "single"), ("MEMIT", "single"), ("EMMET", "single"), ("MEMIT", "batch")],
)
def test_an_adapter_beside_every_edit(editor: str, regime: str, words: Any, tmp_path: Path, rows_of: RowsOf) -> None:
    main(words(editor, regime))
    main(words(editor, regime, rep=False, name="plain"))
    rows, plain = rows_of(tmp_path / "one"), rows_of(tmp_path / "plain")
    by_moment = {
        measured_at: {row["case_id"]: row for row in rows if row["measured_at"] == measured_at}
        for measured_at in ("editor", "edit")
    }
    assert len(rows) == 2 * len(plain) == 4
    assert {row["status"] for row in rows} == {"edited"}
    for row in plain:
        mine = by_moment["editor"][row["case_id"]]
        same(row["probes"], mine["probes"])
        same(row["edit"], {key: value for key, value in mine["edit"].items() if not key.startswith("pathway")})
    changed = [
        abs(probe["after"]["nll_answer"] - other["after"]["nll_answer"])
        for case, row in by_moment["edit"].items()
        for probe, other in zip(row["probes"], by_moment["editor"][case]["probes"], strict=True)
    ]
    assert max(changed) > 1e-2, "the adapters did nothing"

    layers = [str(layer) for layer in {"[0,1]": [0, 1]}.get(LAYERS[editor], [1])]
    assert all(list(row["edit"]["pathway"]) == layers for row in by_moment["edit"].values())
    folders = [path.parent for path in (tmp_path / "one").rglob("card.json")]
    assert len(folders) == (2 if regime == "single" else 1)
    for folder in folders:
        delta, card = load_delta(folder)
        assert card["method"] == "REP"
        assert [len(pathways.adapters) for pathways in delta.of_kind(Pathways).values()] == [2 // len(folders)] * len(
            layers
        )
        assert delta.of_kind(Pathways).keys() == delta.of_kind(Factors).keys()
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["method"]["editor"] == editor
    assert summary["results"].keys() == {"edit", "editor"}
    alone = json.loads((tmp_path / "plain" / "summary.json").read_text())
    same(
        summary["results"]["editor"]["rewrite"]["success"]["after"],
        alone["results"]["edit"]["rewrite"]["success"]["after"],
    )


D_FF = 80
PARITY = f"--model.parity true --model.adapter {json.dumps(asdict(parity_config()), separators=(',', ':'))}"


@pytest.mark.parametrize(
    ("more", "gate", "rank", "offset"),
    [
        ("--model.mode closed_form", "logistic", 1, True),
        ("--model.mode closed_form --model.adapter.gate none", "none", 1, True),
        (PARITY, "mlp", 32, False),
        ("--model.adapter.gate mlp", "mlp", 5, True),
        ("--model.adapter.gate none --model.adapter.anchored false", "none", 4, False),
        ("--model.adapter.projection false", "logistic", D_FF, False),
        ("--data.queries.shuffles 4 --data.queries.long_words [20]", "logistic", 5, True),
    ],
)
def test_every_kind_of_adapter_runs(
    more: str, gate: str, rank: int, offset: bool, words: Any, tmp_path: Path, rows_of: RowsOf
) -> None:
    main([*words("MEMIT"), *more.split()])
    assert [row["status"] for row in rows_of(tmp_path / "one")] == ["edited"] * 4
    low, high = (0.9, 0.9) if "parity" in more else AdapterConfig().threshold_range
    deltas = [load_delta(path.parent)[0] for path in (tmp_path / "one").rglob("card.json")]
    pathways = [pathway for delta in deltas for found in delta.of_kind(Pathways).values() for pathway in found.adapters]
    assert len(pathways) == 4
    for pathway in pathways:
        assert (pathway.read is not None, pathway.hidden is not None) == (gate != "none", gate == "mlp")
        assert (pathway.offset is not None) == offset
        assert len(pathway.down) == rank
        assert pathway.threshold is None or low - 1e-4 <= float(pathway.threshold.sigmoid()) <= high + 1e-4


@pytest.mark.parametrize("editor", ["ROME", "MEMIT"])
def test_sequential(editor: str, words: Any, tmp_path: Path, rows_of: RowsOf) -> None:
    main(words(editor, "sequential"))
    rows = rows_of(tmp_path / "one")
    assert [row["measured_at"] for row in rows] == ["edit"] * 2 + ["end"] * 2
    delta, _ = load_delta(tmp_path / "one" / "delta")
    assert [len(pathways.adapters) for pathways in delta.of_kind(Pathways).values()] == [2] * len(
        delta.of_kind(Factors)
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.parity", "true", "--model.mode", "closed_form"], "model.parity: the paper's recipe trains"),
        (["--model.parity", "true"], "model.parity: the paper's recipe replaces model.adapter; give one of the two"),
        (["--model.adapter.gate", "mlp", "--model.mode", "closed_form"], "model.adapter.gate: the closed form fits"),
        (
            ["--model.editor", "ROMEO"],
            "model.editor: there is no class 'ROMEO' for it; there are EMMET, MEMIT, PMET, ROME, ",
        ),
        (
            ["--model.editor", "REP"],
            "model.editor: there is no class 'REP' for it; there are EMMET, MEMIT, PMET, ROME, RROME",
        ),
        (["--model.editor", "5"], "model.editor: there is no class '5' for it"),
        (["--model.editor.layr", "1"], "model.editor.layr: there is no such option; did you mean layer?"),
        (["--lm", "gpt2"], "lm: expects options of its own below it, not 'gpt2'"),
        (["--model.v_lr", "1"], "model.v_lr: there is no such option; it is an option of the editor: model.ed"),
        (["--model.regime", "batch"], "model.regime is now edit.regime (kedit 0.2: "),
        (["--model.editor.regime", "batch"], "model.editor.regime is now edit.regime (kedit 0.2: "),
        (["--edit.regime", "batch"], "edit.regime: ROME knows single, sequential, not 'batch'"),
        (["--model.editor.v_lr", "-1"], "model.editor.v_lr: -1.0 is less than 0"),
        (["--model.editor.layer", "99"], "model.editor.layer: there is no layer 99; this model has layers 0 to 2"),
        (["--model.mode", "open"], "model.mode: expects one of trained, closed_form, not 'open'"),
        (["--model.adapter", "5"], "model.adapter: expects options of its own below it, not '5'"),
        (["--model.adapter.gate", "mpl"], "model.adapter.gate: expects one of logistic, mlp, none, not 'mpl'"),
        (["--model.adapter.ranks", "3"], "model.adapter.ranks: there is no such option"),
        (["--model.adapter.rank", "0"], "model.adapter.rank: 0 is less than 1"),
    ],
)
def test_slips(more: list[str], message: str, words: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words("ROME"), *more])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().removeprefix("kedit: error: ")
    assert error.startswith(message)
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("mode", ["trained", "closed_form"])
def test_an_editor_is_needed(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model", "REP", "--model.mode", mode, "--data", "Facts"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("kedit: error: model.editor: this option is needed and has no default; there are EMMET, ")
    assert len(said.splitlines()) == 1


# -- from Python ------------------------------------------------------------------------------------------

SMALL = {"v_num_grad_steps": 4, "contexts": TEXTS, "stats": StatsConfig(tokens=400), "lanes": 2}
ADAPTER = AdapterConfig(**QUICK, long_contexts=0)


def small_lm() -> LM:
    return tiny_lm("gpt2", n_layers=3, d_model=16, d_ff=40)


def run(
    module: REP, lm: LM, batch_size: int = 1, n: int = 5, resume: str | None = None, **trainer: Any
) -> list[EditBatch]:
    keep = Watch()
    module.use_lm(lm)
    callbacks = [keep, *trainer.pop("callbacks", [])]
    settings = TRAINER_DEFAULTS | {
        "accelerator": ACCELERATOR,
        "logger": False,
        "enable_checkpointing": bool(callbacks[1:]),
    }
    Trainer(**(settings | trainer), callbacks=callbacks).fit(
        module, datamodule=Given(REQUESTS[:n], batch_size), ckpt_path=resume, weights_only=True
    )
    return keep.batches


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[AdapterTask]:
    """The tasks of all adapters, in their order."""
    found: list[AdapterTask] = []

    def lanes(tasks: list[AdapterTask], config: AdapterConfig) -> AdapterTrainer:
        found.extend(tasks)
        return AdapterTrainer(tasks, config)

    monkeypatch.setattr(rep_module, "AdapterTrainer", lanes)
    return found


@pytest.mark.parametrize(("editor", "batch_size"), [("ROME", 1), ("MEMIT", 2)])
@pytest.mark.parametrize("gate", ["logistic", "mlp"])
def test_a_resumed_run_ends_with_the_same_bits(editor: str, batch_size: int, gate: Any, tmp_path: Path) -> None:
    def module() -> REP:
        if editor == "ROME":
            return REP(configured(ROME, regime="sequential", layer=1, **SMALL), adapter=replace(ADAPTER, gate=gate))
        return REP(configured(MEMIT, regime="sequential", layers=[0, 1], **SMALL), adapter=replace(ADAPTER, gate=gate))

    whole, first, second = (small_lm() for _ in range(3))
    one, two = module(), module()
    assert len(run(one, whole, batch_size, n=4)) == 4 // batch_size
    checkpoint = EditCheckpoint()
    run(module(), first, batch_size, n=4, max_epochs=1, default_root_dir=str(tmp_path), callbacks=[checkpoint])
    saved = str(tmp_path / CHECKPOINT)
    assert [batch.index for batch in run(two, second, batch_size, n=4, resume=saved)] == list(range(1, 4 // batch_size))
    assert all(torch.equal(value, bits(second)[name]) for name, value in bits(whole).items())
    mine, theirs = Delta.concat(one.deltas).of_kind(Pathways), Delta.concat(two.deltas).of_kind(Pathways)
    assert mine.keys() == theirs.keys()
    for path, pathways in mine.items():
        assert len(pathways.adapters) == len(theirs[path].adapters) == 4
        for pathway, other in zip(pathways.adapters, theirs[path].adapters, strict=True):
            assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in pathway.tensors().items())


WEIGHTS = {ROME: [1.0], RROME: [1 / 3] * 3}


@pytest.mark.parametrize("method", [ROME, RROME])
def test_the_direction_is_that_in_which_the_edit_reads(method: Any, trained_on: list[AdapterTask]) -> None:
    """(W' - W) k = r(k) (W' - W) k*, and what reaches k* is v*: r(k*) = 1."""
    lm = small_lm()
    module = REP(configured(method, layer=1, **SMALL), adapter=ADAPTER)
    batches = run(module, lm, n=2)
    path = lm.arch.path("mlp_out", 1)
    plain = [delta for batch in batches for delta in batch.baseline_deltas or []]
    records = [record for batch in batches for record in batch.records]
    contexts = module.editor.contexts[: len(WEIGHTS[method])]
    keys = mean_keys(lm, [record.request for record in records], contexts, WEIGHTS[method], 1)
    for delta, t, k_star in zip(plain, trained_on, keys, strict=True):
        assert delta is not None
        torch.testing.assert_close(t.k_star.double(), k_star, atol=1e-4, rtol=1e-4)
        change = delta.of_kind(Factors)[path].dense()
        r = t.positives @ t.direction / (t.k_star @ t.direction)
        want = r[:, None] * (change @ t.k_star)
        torch.testing.assert_close(t.positives @ change.T, want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("editor", ["ROME", "MEMIT"])
def test_parity(editor: str, parity: bool, trained_on: list[AdapterTask]) -> None:
    """The paper's code hands the adapter C^-1 k* of ROME, and the bare key of MEMIT."""
    method = configured(ROME, layer=1, **SMALL) if editor == "ROME" else configured(MEMIT, layers=[0, 1], **SMALL)
    module = REP(method, parity=parity, adapter=AdapterConfig() if parity else ADAPTER)
    assert module.adapter == (parity_config() if parity else ADAPTER)
    (batch,) = run(module, small_lm(), n=2)
    assert [outcome.error for outcome in batch.outcomes] == [None, None]
    assert len(trained_on) == 2 * len(method.edited_layers)
    assert module.source is not None
    assert len(module.source.contexts) == (3 + 20 if parity and editor == "MEMIT" else 3)
    for t in trained_on:
        assert torch.equal(t.direction, t.k_star) == (parity and editor == "MEMIT")
        assert (float(t.direction.norm()) == pytest.approx(1.0, abs=1e-5)) != (parity and editor == "MEMIT")
        assert len(t.held_positives) + len(t.held_negatives) == 0 or not parity


def test_upper_adapters_see_the_lower_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 1's keys under an adapter at layer 0 that matters are not those under one that does not."""
    found: list[list[AdapterTask]] = []

    def closed(tasks: list[AdapterTask], config: AdapterConfig) -> Any:
        found[-1].extend(tasks)
        return closed_form(tasks, config)

    monkeypatch.setattr(rep_module, "closed_form", closed)
    for gate, threshold in (("none", None), ("logistic", 1.0)):
        found.append([])
        adapter = replace(ADAPTER, gate=gate, threshold=threshold, corpus_tokens=0)
        run(REP(configured(MEMIT, layers=[0, 1], **SMALL), mode="closed_form", adapter=adapter), small_lm(), n=1)
    (low, high), (other_low, other_high) = found
    torch.testing.assert_close(low.positives, other_low.positives)
    assert float((high.positives - other_high.positives).abs().max()) > 1e-2


def test_each_request_of_a_batch_has_its_own_direction(trained_on: list[AdapterTask]) -> None:
    lm = small_lm()
    module = REP(configured(MEMIT, regime="batch", layers=[1], **SMALL), adapter=ADAPTER)
    (batch,) = run(module, lm, batch_size=3, n=3)
    keys = mean_keys(lm, REQUESTS[:3], module.editor.contexts, [0.5, 0.25, 0.25], 1)
    assert batch.baseline_deltas is not None
    (plain,) = batch.baseline_deltas
    assert plain is not None
    rights = torch.nn.functional.normalize(plain.of_kind(Factors)[lm.arch.path("mlp_out", 1)].right, dim=-1)
    assert len(trained_on) == len(rights) == 3
    for t, k_star, right in zip(trained_on, keys, rights, strict=True):
        torch.testing.assert_close(t.k_star.double(), k_star, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(t.direction, right, atol=1e-5, rtol=1e-4)
