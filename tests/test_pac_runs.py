"""PAC from end to end on tiny models: parity with dense training, what a run may touch, regimes, resuming, slips."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from torch import Tensor

from kedit.arch import weight
from kedit.batch import EditBatch
from kedit.cli import main
from kedit.cli.fit import TRAINER_DEFAULTS
from kedit.delta import Delta, edited
from kedit.deltafile import load_delta
from kedit.lm import LM, LMConfig, load_lm
from kedit.methods import PAC
from kedit.methods import pac as pac_module
from kedit.methods.pac import TrainConfig, parity_train
from kedit.pac import ContrastConfig, Labelled, Profile, Selection, TraceConfig, encode_request
from kedit.requests import EditRequest
from kedit.runfolder import CHECKPOINT
from tests.test_spread import Given, Keep, bits
from tests.tiny import tiny_lm

RECORDS = str(Path(__file__).parent / "fixtures" / "records.jsonl")
REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "{} plays", "Lionel Messi", "basketball for the Lakers"),
    EditRequest("3", "What is the twin city of Cologne?", None, "Paris tea"),
    EditRequest("4", "The mother tongue of {} is", "Danielle Darrieux", "English"),
    EditRequest("5", "It rains in {}, and", "Spain", "Cairo"),
]
Rows = list[dict[str, Any]]
RowsOf = Callable[[Path], Rows]


def small(kind: str = "llama") -> LM:
    return tiny_lm(kind, n_layers=2, d_model=16, d_ff=40)


def run(module: PAC, lm: LM, requests: list[EditRequest] = REQUESTS, batch_size: int = 5) -> list[EditBatch]:
    keep = Keep()
    module.use_lm(lm)
    settings = TRAINER_DEFAULTS | {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    Trainer(**settings, callbacks=[keep]).fit(module, datamodule=Given(requests, batch_size), weights_only=True)
    return keep.batches


def dense(delta: Delta | None) -> dict[str, Tensor]:
    """Changes of weights and biases as they are added."""
    assert delta is not None
    return {path: part.dense() for path, part in delta.slices.items()} | {
        f"{path}.bias": change for path, change in delta.biases.items()
    }


def same(one: Delta | None, other: Delta | None) -> bool:
    """The same changes to the bit, whatever lines without a change are listed."""
    mine, theirs = dense(one), dense(other)
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[path]) for path, value in mine.items())


TRAIN = TrainConfig(lr=0.02, passes=6, bias="none")
TRACE = TraceConfig(nodes=4, bottom=2)


def pac(**changed: Any) -> PAC:
    return PAC(**({"regime": "batch", "train": TRAIN, "trace": TRACE} | changed))


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Selection]:
    """The selections of a run, in their order."""
    found: list[Selection] = []
    choose = pac_module.choose

    def keep(*args: Any) -> Any:
        selection, scores = choose(*args)
        found.append(selection)
        return selection, scores

    monkeypatch.setattr(pac_module, "choose", keep)
    return found


# -- parity: the released code, dense and in float64 --------------------------------------------------------


NODES, BOTTOM, LAMBDA = 5, 1, 0.1
MODULES = {"llama": ("model.layers", "up_proj", "down_proj"), "gptj": ("transformer.h", "fc_in", "fc_out")}


def released(lm: LM, kind: str, orders: list[list[int]]) -> tuple[dict[str, Tensor], list[dict[str, list[int]]]]:
    """specs/pac.md 8, with whole matrices: the changes of all weights, and T+ (then T-) at every assessment.

    Args:
        lm: The unedited model.
        kind: Its family.
        orders: For every two passes, the order of the assessment and those of the passes.
    """
    model = copy.deepcopy(lm.model).double()
    model.requires_grad_(False)
    layers, name_in, name_out = MODULES[kind]
    paths = [f"{layers}.{i}.mlp.{name}" for i in range(2) for name in (name_in, name_out)]
    matrices: dict[str, Any] = {path: model.get_submodule(path) for path in paths}
    trained = [p for m in matrices.values() for p in (m.weight, m.bias) if p is not None]
    start = {name: p.clone() for name, p in model.named_parameters()}
    for parameter in trained:
        parameter.requires_grad_(True)
    adam = torch.optim.Adam(trained, lr=1e-5)
    texts = [encode_request(lm, request) for request in REQUESTS]

    def logits(i: int) -> Tensor:
        return model(torch.tensor([texts[i].ids])).logits[0, texts[i].n_prompt - 1 : -1]

    with torch.no_grad():
        original = [logits(i).argmax(-1) for i in range(len(texts))]

    def gradient(some: list[int], of_original: bool) -> None:
        """The mean over all tokens of a mini-batch."""
        adam.zero_grad(set_to_none=False)
        labels = [original[i] if of_original else torch.tensor(texts[i].target) for i in some]
        loss = torch.nn.functional.cross_entropy(torch.cat([logits(i) for i in some]), torch.cat(labels))
        ((LAMBDA if of_original else 1.0) * loss).backward()

    def in_twos(order: list[int]) -> list[list[int]]:
        return [order[i : i + 2] for i in range(0, len(order), 2)]

    def assess(order: list[int]) -> dict[str, list[int]]:
        sums = {path: torch.zeros_like(m.weight) for path, m in matrices.items()}
        for some in in_twos(order):
            gradient(some, of_original=False)
            for path, m in matrices.items():
                sums[path] += m.weight.grad
        ranks = {}
        for path, total in sums.items():
            g = total.T if path.endswith(name_in) else total  # [D, M]
            z = (g - g.mean(1, keepdim=True)) / g.std(1, keepdim=True)
            ranks[path] = z.abs().mean(0).argsort(descending=True).tolist()
        return ranks

    def step(nodes: dict[str, list[int]]) -> None:
        for path, m in matrices.items():
            keep = torch.zeros(40, dtype=torch.bool)
            keep[nodes[path]] = True
            if path.endswith(name_in):
                m.weight.grad[~keep] = 0
                if m.bias is not None:
                    m.bias.grad[~keep] = 0
            else:
                m.weight.grad[:, ~keep] = 0  # the bias of a value matrix is trained whole
        adam.step()

    found, todo = [], list(orders)
    for _ in range(6):
        ranks = assess(todo.pop(0))
        top = {path: rank[:NODES] for path, rank in ranks.items()}
        bottom = {path: rank[-BOTTOM:] for path, rank in ranks.items()}
        found += [top, bottom]
        for _ in range(2):
            for some in in_twos(todo.pop(0)):
                gradient(some, of_original=False)
                step(top)
                gradient(some, of_original=True)
                step(bottom)
    assert not todo
    return {name: p.detach() - start[name] for name, p in model.named_parameters()}, found


@pytest.mark.parametrize("kind", ["gptj", "llama"])
def test_parity(kind: str, chosen: list[Selection], monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve passes, six assessments: every weight as whole masked matrices and one Adam leave it."""
    orders: list[list[int]] = []
    shuffle = torch.randperm

    def drawn(n: int, **options: Any) -> Tensor:
        order = shuffle(n, **options)
        if options.get("generator") is not None:
            orders.append(order.tolist())
        return order

    monkeypatch.setattr(torch, "randperm", drawn)
    lm = small(kind)
    (batch,) = run(PAC(parity=True, trace=TraceConfig(nodes=NODES, bottom=BOTTOM)), lm)
    monkeypatch.undo()
    assert [outcome.info["steps"] for outcome in batch.outcomes] == [12] * 5
    assert len(orders) == 18
    assert len({tuple(order) for order in orders}) > 12
    moved, nodes = released(lm, kind, orders)
    traced = [part for selection in chosen for part in (selection.top, selection.bottom)]
    mine = [{site.path: own.tolist() for site, own in part.items()} for part in traced]
    assert mine == [{path: sorted(own) for path, own in part.items()} for part in nodes]
    assert len({str(part) for part in mine}) > 3, "the paths never changed"

    found = dense(batch.deltas[0])
    assert len(found) == (8 if kind == "gptj" else 4)
    for name, want in moved.items():
        change = found.pop(name if name.endswith("bias") else name.removesuffix(".weight"), torch.zeros(1)).double()
        torch.testing.assert_close(change.expand_as(want), want, atol=3e-8, rtol=0)  # of changes of 1e-5 a step
        assert change.abs().max() > 3e-4 or not want.any()
    assert not found


def test_parity_is_a_set_of_options() -> None:
    """`parity` is `parity_train()` but for how the assessment goes through the requests."""
    (one,) = run(PAC(parity=True, trace=TRACE, contrast=ContrastConfig(0.0)), small(), REQUESTS[:1])
    (two,) = run(PAC(train=parity_train(), trace=TRACE, contrast=ContrastConfig(0.0)), small(), REQUESTS[:1])
    assert same(one.deltas[0], two.deltas[0])


# -- what a run may touch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gptj"])
@pytest.mark.parametrize(
    "train",
    [
        TRAIN,
        replace(TRAIN, retrace=2, bias="code"),
        replace(TRAIN, shared_adam=True, bias="code"),
        replace(TRAIN, objective="joint", bias="masked"),
    ],
)
def test_nothing_else_is_touched(kind: str, train: TrainConfig, chosen: list[Selection]) -> None:
    """After a sequential run, all that is not a selected node (or its bias) has the bits it had before."""
    lm = small(kind)
    before = bits(lm)
    run(pac(regime="sequential", train=train), lm, batch_size=3)
    after = bits(lm)
    nodes: dict[str, set[int]] = {}
    for selection in chosen:
        for part in (selection.top, selection.bottom):
            for site, own in part.items():
                nodes.setdefault(site.path, set()).update(own.tolist())
    assert len(chosen) == 2 * (3 if train.retrace else 1)
    free: set[str] = set()
    for path, own in nodes.items():
        moved = (after[f"{path}.weight"] != before[f"{path}.weight"]).any(0 if path[-3:] in ("out", "roj") else 1)
        if path.endswith(("fc_in", "up_proj")):
            moved = (after[f"{path}.weight"] != before[f"{path}.weight"]).any(1)
        assert set(moved.nonzero()[:, 0].tolist()) == own, path
        free.add(f"{path}.weight")
        if kind == "gptj" and train.bias != "none":
            changed = set((after[f"{path}.bias"] != before[f"{path}.bias"]).nonzero()[:, 0].tolist())
            whole = set(range(16)) if train.bias == "code" else set()
            assert changed == (own if path.endswith("fc_in") else whole), path
            free.add(f"{path}.bias")
    rest = [name for name in before if name not in free]
    assert len(rest) > 10
    assert all(torch.equal(before[name], after[name]) for name in rest)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize("regime", ["single", "batch"])
def test_weights_are_left_as_they_were(regime: Any) -> None:
    lm = small()
    before = bits(lm)
    (batch, *_) = run(pac(regime=regime), lm)
    assert any(change.any() for change in dense(batch.deltas[0]).values())
    assert all(torch.equal(value, before[name]) for name, value in bits(lm).items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize(
    ("contrast", "parts"),
    [
        (ContrastConfig(0.0), ["top"]),
        (ContrastConfig(), ["top", "bottom"]),
        (ContrastConfig(merge=False), ["top"]),
        (ContrastConfig(theta="instead"), ["top", "bottom"]),
        (ContrastConfig(theta="instead", merge=False), ["top"]),
    ],
)
def test_which_sides_a_delta_has(contrast: ContrastConfig, parts: list[str], chosen: list[Selection]) -> None:
    """T- is left alone without lambda, and out of the delta without `merge`."""
    (batch,) = run(pac(contrast=contrast), small())
    (selection,) = chosen
    for site in selection.top:
        nodes = torch.cat([getattr(selection, part)[site] for part in parts]).sort().values
        change = dense(batch.deltas[0])[site.path]
        moved = change.abs().amax(0 if site.kind == "value" else 1) > 0
        assert torch.equal(moved.nonzero()[:, 0], nodes)


def test_instead_keeps_the_sides_apart() -> None:
    """With Theta' literally, T+ ends where it ends without a contrastive term; with `updated` it does not."""
    deltas = {}
    train = replace(TRAIN, stop=False)
    for name, contrast in {
        "none": ContrastConfig(0.0),
        "instead": ContrastConfig(theta="instead", merge=False),
        "updated": ContrastConfig(merge=False),
    }.items():
        (batch,) = run(pac(contrast=contrast, train=train), small())
        deltas[name] = batch.deltas[0]
    assert same(deltas["none"], deltas["instead"])
    assert not same(deltas["none"], deltas["updated"])


@pytest.mark.parametrize("theta", ["updated", "instead"])
@pytest.mark.parametrize("merge", [True, False])
def test_the_loss_that_is_told_is_that_of_the_delta(theta: Any, merge: bool) -> None:
    lm = small()
    (batch,) = run(pac(contrast=ContrastConfig(theta=theta, merge=merge, weight=1.0)), lm)
    delta = batch.deltas[0]
    assert delta is not None
    with torch.no_grad(), edited(lm.model, delta):
        for request, outcome in zip(REQUESTS, batch.outcomes, strict=True):
            text = encode_request(lm, request)
            logits = lm.model(torch.tensor([text.ids])).logits[0, text.n_prompt - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(text.target))
            assert outcome.info["loss"] == pytest.approx(float(loss), abs=1e-4)
            assert outcome.info["answered"] == (logits.argmax(-1).tolist() == list(text.target))


# -- one request after another -----------------------------------------------------------------------------


def info(batches: list[EditBatch], key: str) -> list[Any]:
    return [outcome.info[key] for batch in batches for outcome in batch.outcomes]


def test_later_requests_see_earlier_changes() -> None:
    """With `scope: edit` the same request again is answered already; each on the unedited model it is not."""
    train = replace(TRAIN, passes=40, retrace=10)
    again = replace(REQUESTS[0], case_id="again")
    batches = run(pac(scope="edit", train=train), small(), [REQUESTS[0], again])
    assert info(batches, "answered") == [True, True]
    first, second = info(batches, "steps")
    assert second == 0 < first < 40
    batches = run(pac(scope="edit", train=train, regime="single"), small(), [REQUESTS[0], again])
    assert info(batches, "steps") == [first, first]
    assert same(batches[0].deltas[0], batches[1].deltas[0])
    batches = run(pac(scope="edit", train=train, regime="sequential"), small(), [REQUESTS[0], again], batch_size=1)
    assert info(batches, "steps") == [first, 0]


def test_single_requests_know_nothing_of_each_other() -> None:
    together, alone = run(pac(regime="single"), small()), run(pac(regime="single"), small(), REQUESTS[2:3])
    assert same(together[2].deltas[0], alone[0].deltas[0])
    assert not same(together[1].deltas[0], alone[0].deltas[0])


def test_an_edit_trains_only_its_own_nodes(chosen: list[Selection]) -> None:
    """`scope: edit`: a later request leaves the nodes of earlier ones as they are."""
    one, two = (run(pac(scope="edit"), small(), REQUESTS[:n])[0].deltas[0] for n in (1, 2))
    selection = chosen[-1]
    first, both = dense(one), dense(two)
    for site in selection.top:
        own = torch.cat([selection.top[site], selection.bottom[site]])
        moved = (both[site.path] != first[site.path]).any(0 if site.kind == "value" else 1)
        assert set(moved.nonzero()[:, 0].tolist()) <= set(own.tolist()), site.path
        assert moved.any()


@pytest.mark.parametrize("scope", ["edit", "batch"])
def test_a_failed_edit_is_undone_and_others_stay(scope: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request's loss becomes NaN at its third step."""
    (whole,) = run(pac(scope="edit"), small(), [REQUESTS[0], REQUESTS[3]])
    lm = small()
    first = encode_request(lm, REQUESTS[1]).target[0]
    loss_of, calls = Labelled.loss_of, []

    def broken(self: Labelled, logits: Tensor) -> Tensor:
        if first in self.labels.tolist():
            calls.append(1)
            return loss_of(self, logits) * (torch.nan if len(calls) > 2 else 1.0)
        return loss_of(self, logits)

    monkeypatch.setattr(Labelled, "loss_of", broken)
    (batch,) = run(pac(scope=scope), lm, [REQUESTS[0], REQUESTS[1], REQUESTS[3]])
    errors = [outcome.error for outcome in batch.outcomes]
    failed = [error is not None for error in errors]
    assert all(error is None or error.startswith("the edit loss is nan after ") for error in errors)
    if scope == "edit":
        assert failed == [False, True, False]
        want = dense(whole.deltas[0])
        for path, change in dense(batch.deltas[0]).items():
            torch.testing.assert_close(change, want[path], atol=1e-4, rtol=1e-4)  # sums over more nodes round otherwise
        assert batch.outcomes[1].info["nodes"] is None
    else:
        assert failed == [True] * 3
        assert batch.deltas == [None]


@pytest.mark.parametrize("scope", ["edit", "batch"])
def test_an_edit_that_diverges_in_its_last_step_has_failed(scope: Any) -> None:
    """There is no further loss to say so, and yet no such change may be kept."""
    train = replace(TRAIN, lr=1e30, passes=1, mini_batch=5)
    lm = small()
    batches = run(pac(scope=scope, train=train, trace=TraceConfig(pick="all"), regime="sequential"), lm)
    assert all(outcome.error is not None for outcome in batches[0].outcomes)
    assert all(torch.equal(value, bits(small())[name]) for name, value in bits(lm).items())


# -- the command ------------------------------------------------------------------------------------------


ZSRE = [
    {
        "case_id": i,
        "prompt": prompt,
        "target_new": target,
        "ground_truth": "Paris",
        "paraphrase_prompts": f"Say: {prompt}",
        "locality_prompt": "nq question: which month comes after may",
        "locality_ground_truth": "June is next",
    }
    for i, (prompt, target) in enumerate(
        [
            ("What city is France ruled from?", "Rome"),
            ("Who plays football?", "LeBron James"),
            ("Where does it rain?", "in the north of Spain"),
        ]
    )
]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> Callable[..., list[str]]:
    """`words(**{"model.regime": "single"})`: a quick run of four records; later options win."""

    def command(**more: Any) -> list[str]:
        options: dict[str, Any] = {
            "model": "PAC",
            "model.lm.name": tiny_folder("llama", n_layers=2, d_model=16, d_ff=40, context=128),
            "model.train.lr": 0.02,
            "model.train.passes": 4,
            "model.trace.nodes": 4,
            "data": "Records",
            "data.path": RECORDS,
            "data.batch_size": 2,
            "metrics.scoring.generate": "[]",
            "results.resamples": 20,
            "run.root": tmp_path / "runs",
            "run.name": "one",
            "trainer.accelerator": "cpu",
        }
        if more.get("data") == "ZsRE":
            (tmp_path / "zsre.json").write_text(json.dumps(ZSRE))
            options |= {"data.path": tmp_path / "zsre.json"}
        return ["fit", *(part for key, value in (options | more).items() for part in (f"--{key}", str(value)))]

    return command


def deltas_of(folder: Path) -> list[Delta]:
    return [load_delta(path.parent)[0] for path in sorted(folder.rglob("card.json"))]


@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
@pytest.mark.parametrize("data", ["Records", "ZsRE"])
def test_regimes(regime: str, data: str, words: Any, tmp_path: Path, rows_of: RowsOf) -> None:
    """With subjects and without; the rows' figures, PAC's score, and the delta's lines."""
    main(words(**{"model.regime": regime, "data": data}))
    folder, n = tmp_path / "runs" / "one", 4 if data == "Records" else 3
    rows = rows_of(folder)
    assert [row["when"] for row in rows] == ["edit"] * n + ["end"] * (n if regime == "sequential" else 0)
    assert {row["status"] for row in rows} == {"edited"}
    for row in rows:
        assert row["edit"].keys() >= {"steps", "loss", "answered", "nodes"}
        assert 1 <= row["edit"]["steps"] <= 4
        assert row["edit"]["nodes"] == 4 * 4
        assert (row["request"]["subject"] is None) == (data == "ZsRE")
        if row["when"] == "edit" and regime != "sequential":
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
    for when, result in results.items():
        means = {kind: records_mean(rows, when, kind) for kind in ("rewrite", "paraphrase", "neighborhood")}
        assert result["rewrite"]["token_accuracy"]["after"] == pytest.approx(100 * means["rewrite"], abs=1e-3)
        want = 100 * sum(means.values()) / 3
        assert result["score"]["tokens_arithmetic"]["after"] == pytest.approx(want, abs=1e-3)


def records_mean(rows: Rows, when: str, kind: str) -> float:
    """Mean over records of the mean over a kind's probes: correct tokens, or, of neighbours, unchanged ones."""
    means = []
    for row in rows:
        own = []
        for probe in row["probes"]:
            if row["when"] != when or probe["kind"] != kind:
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
    main(words(**{"model.train.lr": 1e-12, "model.lm.dtype": dtype}))
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
        ({"trace.pick": "all"}, D_FF, D_FF),
        ({"trace.pick": "random", "scope": "edit"}, 5, 10),
        ({"trace.mode": "kbest", "trace.tie_kv": "true", "contrast.original": "greedy"}, 2, 5),
        ({"parity": "true", "train.lr": 0.001, "train.passes": 24}, 5, 30),
        ({"scope": "dataset", "train.objective": "joint", "contrast.lr": 0.001, "train.retrace": 1}, 5, 5),
        ({"trace.enough": 0.5, "keep.weight": 2, "keep.prompts": 4, "train.layer_weights": "true"}, 2, 4),
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
    main(words(**{"model.train.lr": 1e30, "model.trace.pick": "all", "model.regime": "sequential"}))
    folder = tmp_path / "runs" / "one"
    rows = rows_of(folder)
    assert len(rows) == 8
    for row in rows:
        assert row["status"] == "failed"
        assert row["error"] == "the edit loss is nan after 2 steps; a smaller model.train.lr may help"
        assert row["edit"]["answered"] is False
        assert all(probe["before"] == probe["after"] for probe in row["probes"])
    assert not deltas_of(folder)
    assert len(json.loads((folder / "summary.json").read_text())["failed"]) == 4


@pytest.mark.parametrize(
    "more",
    [
        {"model.scope": "edit", "model.keep.weight": 1, "model.keep.prompts": 4, "model.train.layer_weights": "true"},
        {"model.scope": "dataset", "model.train.shared_adam": "true", "data": "ZsRE"},
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(more: dict[str, Any], words: Any, whole_and_broken: Any) -> None:
    command = words(**{"model.regime": "sequential", "data.batch_size": 1} | more)
    whole, broken = whole_and_broken(command, "summary.json")
    one, two = (load_file(next(folder.rglob("delta.safetensors"))) for folder in (whole, broken))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    summaries = [json.loads((folder / "summary.json").read_text())["results"] for folder in (whole, broken)]
    assert summaries[0] == summaries[1]
    kept = [torch.load(folder / CHECKPOINT, weights_only=True)["kedit"] for folder in (whole, broken)]
    profiles = [Profile(), Profile()]
    for state, profile in zip(kept, profiles, strict=True):
        assert len(state["deltas"]) == 1, "checkpoints keep the sum of the deltas"
        profile.load(state["method"]["profile"])
    assert profiles[0].rows() == profiles[1].rows()
    assert profiles[0].traces == profiles[1].traces == (1 if "data" in more else 4)


def test_the_sum_is_what_was_committed() -> None:
    """Weights after a sequential run are the unedited ones and the one delta that is kept, written once."""
    lm, module = small(), pac(regime="sequential")
    batches = run(module, lm, batch_size=2)
    (total,) = module.deltas
    for path, change in dense(total).items():
        parts = [dense(batch.deltas[0])[path] for batch in batches]
        torch.testing.assert_close(change, torch.stack(parts).sum(0))
    fresh = small()
    with edited(fresh.model, total):
        assert all(torch.equal(value, bits(lm)[name]) for name, value in bits(fresh).items())


def test_fast_dev_run(words: Any, tmp_path: Path, rows_of: RowsOf) -> None:
    main(words(**{"trainer.fast_dev_run": "true", "model.train.retrace": 2}))
    rows = rows_of(tmp_path / "runs" / "one")
    assert [row["edit"]["steps"] for row in rows] == [1, 1]
    assert [row["status"] for row in rows] == ["edited"] * 2


def test_the_saved_delta_is_the_measured_one(words: Any, tmp_path: Path, rows_of: RowsOf) -> None:
    """Applied to the model anew, it gives the losses in the rows."""
    main(words(**{"model.regime": "single", "data": "ZsRE"}))
    folder, command = tmp_path / "runs" / "one", words()
    lm = load_lm(LMConfig(name=command[command.index("--model.lm.name") + 1]))
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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train.lr": 0}, "model.train.lr: 0 is not above 0"),
        ({"trace.nodes": 40}, "model.trace.nodes: 40 and 1 at the bottom are more nodes than the 40 of model.layers.0"),
        ({"trace.nodes": 50, "trace.enough": 0.5}, "model.trace.nodes: 50 and 1 at the bottom are more nodes than"),
        ({"trace.nodes": 40, "trace.pick": "random"}, "model.trace.nodes: 40 and 1 at the bottom are more nodes than"),
        ({"parity": "true"}, "model.parity: the released run replaces model.train; give one of the two, not both"),
        ({"parity": "true", "scope": "edit", "train": "null"}, "model.parity: the released run traces an edit set"),
        ({"contrast.theta": "instead", "train.shared_adam": "true"}, "model.contrast.theta: instead keeps T- apart"),
        ({"contrast.lr": 0.1, "train.shared_adam": "true"}, "model.contrast.lr: one Adam has one learning rate"),
        ({"keep.prompts": 0}, "model.keep.prompts: 0 is less than 1"),
        ({"contrast.weight": -1}, "model.contrast.weight: -1 is negative"),
        ({"trace.enough": 1.5}, "model.trace.enough: 1.5 is not above 0 and at most 1"),
        ({"train.objective": "both"}, "model.train.objective: wants one of alternate, joint, not 'both'"),
    ],
)
def test_slips(
    more: dict[str, Any], message: str, words: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words()
    if more.pop("train", None):  # the options of `words` would be changed ones
        command = [word for i, word in enumerate(command) if not {word, command[i - 1]} & {*TRAINED}]
    with pytest.raises(SystemExit) as stop:
        main([*command, *(part for key, value in more.items() for part in (f"--model.{key}", str(value)))])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (said,) = [line for line in error.splitlines() if line.startswith("kedit: error: ")]
    assert said.removeprefix("kedit: error: ").startswith(message)
    assert len(error[error.index(said) :].strip().splitlines()) <= 2
    assert not list(tmp_path.rglob("summary.json"))


TRAINED = ("--model.train.lr", "--model.train.passes")
