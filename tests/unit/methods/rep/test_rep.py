"""REP's mathematics and what its adapters are trained on; runs of the method are in tests/runs/test_rep.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kedit.covariance import Covariance, collect
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathway import Pathway
from kedit.delta.pathways import Pathways
from kedit.errors import KeditError
from kedit.keyvalue import solvers
from kedit.methods import ROME, RROME
from kedit.methods.rep import (
    AdapterConfig,
    AdapterTask,
    AdapterTrainer,
    KeySource,
    closed_form,
    parity_config,
    stronger,
    summary_row,
)
from kedit.methods.rep.calibrate import threshold_of
from kedit.methods.rep.keys import read_keys
from kedit.methods.rep.phrases import PHRASES
from kedit.methods.rep.plan import confusable_names
from kedit.methods.rep.train import PACE
from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject
from kedit.request import EditRecord, EditRequest, Probe, Variants
from tests.support.tiny_models import TEXT, tiny_lm

D = 20


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def covariance(seed: int = 0, d: int = D) -> Covariance:
    spread = draw(seed, d, 4 * d)
    return Covariance(spread @ spread.T / (4 * d), count=10**6, ridge=0.0)


def task(seed: int = 0, positives: int = 6, negatives: int = 40, held: int = 8) -> AdapterTask:
    """Positives around one point, where little of the edit arrives, negatives around the origin."""
    k_star, place = draw(seed, 2, D).float()
    direction = covariance(seed).solve(k_star).float()

    def around(n: int, center: Tensor) -> Tensor:
        return center + 0.3 * draw(100 * seed + n, n, D).float()

    name = place + 0.4 * k_star

    return AdapterTask(
        k_star=k_star,
        direction=direction / direction.norm(),
        bare=k_star.clone(),
        positives=around(positives, name),
        negatives=around(negatives, 0 * name),
        hard_negatives=around(2, -name),
        held_positives=around(held, name),
        held_negatives=around(5 * held, 0 * name),
        later=around(3, -2 * name),
    )


def share(keys: Tensor, t: AdapterTask) -> Tensor:
    """r(k)."""
    return keys @ t.direction / (t.k_star @ t.direction)


@pytest.mark.parametrize(("method", "solve"), [(ROME, "rome"), (RROME, "r_rome")])
def test_r_is_the_share_of_the_edit_that_a_key_gets(method: Any, solve: str) -> None:
    """(W' - W) k = r(k) (v* - W k*) with r(k) = k.u / k*.u (specs/rep.md 1)."""
    w, keys, v_star, cov = draw(1, 7, D), draw(2, 5, D), draw(3, 7), covariance()
    u = cov.solve(keys.mean(0))
    k_star = method.edit_key(None, keys)
    mean = (keys.mean(0), (keys @ w.T).mean(0))
    key, value = (keys[0], w @ keys[0]) if solve == "rome" else mean
    change = getattr(solvers, solve)(key, value, v_star, u).dense()
    others = draw(4, 30, D)
    r = others @ u / (k_star @ u)
    torch.testing.assert_close(others @ change.T, r[:, None] * (v_star - w @ k_star), atol=1e-12, rtol=1e-10)


def test_whitened_keys_have_the_width_as_their_mean_square() -> None:
    """E[k^T C^-1 k] = D on the text that C is of, with the keys that adapters are trained on."""
    lm = tiny_lm("llama", d_model=16, d_ff=40, n_layers=3)
    ids = torch.tensor(lm.encode(" ".join(TEXT.splitlines())))[:640]
    moment = collect(lm, [1], ids, 64, 256).moments[1]
    cov = Covariance(moment.mean(), moment.count, ridge=0.0)
    rows = [tuple(chunk.tolist()) for chunk in ids.split(64)]
    keys = torch.cat(read_keys(lm, rows, lm.arch.module(lm.model, "mlp_out", 1), None, [-1] * len(rows)))
    assert float(cov.quad(keys, keys).mean()) == pytest.approx(40, rel=0.05)


def test_closed_form_is_the_least_move_that_delivers_all() -> None:
    cov = covariance(5)
    t = replace(task(5), direction=cov.solve(task(5).k_star).float())
    (pathway,) = closed_form([t], AdapterConfig(gate="none"))
    (half,) = stronger(Delta({"m": Pathways((pathway,))}), {"m": [t.k_star]}, 0.5).of_kind(Pathways)["m"].adapters
    keys = draw(6, 50, D).float()
    moves = pathway.move(keys)
    torch.testing.assert_close(share(keys + moves, t), torch.ones(50), atol=1e-4, rtol=0)
    torch.testing.assert_close(share(keys + half.move(keys), t), torch.full((50,), 0.5), atol=1e-4, rtol=0)
    sideways = draw(7, 50, 200, D)
    across = t.direction.double()
    sideways -= (sideways @ across)[..., None] * t.k_star.double() / (across @ t.k_star.double())  # r stays 1
    for size in (1e-2, 1.0):
        others = moves.double()[:, None] + size * sideways
        assert (cov.quad(others, others) > cov.quad(moves, moves)[:, None]).all()


def test_closed_form_behind_a_gate_acts_where_it_is_open() -> None:
    t = task(1)
    (pathway,) = closed_form([t], AdapterConfig(threshold=0.5))
    found = summary_row(pathway, t)
    assert found["open"] == found["held_open"] == 1.0
    assert found["false"] == 0.0
    assert found["reach"] == pytest.approx(1.0, abs=1e-3)
    before = found["reach_before"]
    assert before is not None
    assert abs(before - 1) > 0.02


def test_a_given_threshold_is_taken() -> None:
    t = task()
    for tau in (0.2, 0.9):
        (pathway,) = closed_form([t], AdapterConfig(threshold=tau))
        assert pathway.threshold is not None
        assert float(pathway.threshold.sigmoid()) == pytest.approx(tau, abs=1e-5)


def on_a_circle(logits: Tensor) -> Tensor:
    """Unit keys at which `GATE` has these logits."""
    side = logits / 10
    return torch.stack([side, (1 - side.square()).sqrt()], 1)


GATE = Pathway(torch.zeros(1, 2), torch.zeros(2, 1), read=torch.tensor([10.0, 0.0]), bias=torch.tensor(0.0))


@pytest.mark.parametrize("false_alarms", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("centers", [(3.0, -3.0), (0.0, 1.0), (-6.0, -6.0), (7.0, 7.0)])
def test_calibration(centers: tuple[float, float], false_alarms: float) -> None:
    positives, negatives = (center + 0.8 * draw(i, 301).float() for i, center in enumerate(centers))
    t = replace(task(), held_positives=on_a_circle(positives), held_negatives=on_a_circle(negatives))
    config = AdapterConfig(false_alarms=false_alarms, threshold_range=[0.2, 0.99])
    pathway = threshold_of(GATE, t, config)
    assert pathway.threshold is not None
    tau, low, high = float(pathway.threshold.sigmoid()), 0.2, 0.99
    assert low - 1e-5 <= tau <= high + 1e-5
    passed = int((pathway.margin(t.held_negatives) > 0).sum())
    median = float(positives.median().sigmoid())
    if tau < high - 1e-5:
        assert passed <= math.ceil(false_alarms * 301)
    if centers[0] > centers[1]:
        assert tau == pytest.approx(min(median, high), abs=1e-5)
    if low + 1e-5 < tau < high - 1e-5 and tau > median + 1e-5:  # raised no further than needed
        assert passed >= math.floor(false_alarms * 300)


def test_calibration_without_anything_held_back() -> None:
    t = task()
    bare = replace(t, held_positives=t.positives[:0], held_negatives=t.negatives[:0])
    pathway = threshold_of(GATE, bare, AdapterConfig())
    assert pathway.threshold is not None
    assert float(pathway.threshold.sigmoid()) == pytest.approx(AdapterConfig().threshold_range[0], abs=1e-5)
    gateless = Pathway(GATE.down, GATE.up)
    assert threshold_of(gateless, t, AdapterConfig()) is gateless


def train(lanes: AdapterTrainer, steps: int) -> list[float]:
    optimizer = torch.optim.Adam(lanes.parameters(), lr=lanes.config.lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = lanes.loss()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("gate", ["logistic", "mlp", "none"])
def test_adapters_side_by_side_are_those_of_each_alone(gate: Any) -> None:
    """A step takes every positive and there is one negative of each kind, so that no draw matters."""
    tasks = [task(i) for i in range(3)]
    if gate == "mlp":
        tasks = [replace(t, negatives=t.negatives[:1], hard_negatives=t.hard_negatives[:1]) for t in tasks]
    config = AdapterConfig(gate=gate, steps=8, positives=6, rank=4, gate_width=0.3)
    together = AdapterTrainer(tasks, config)
    alone = [AdapterTrainer([t], config) for t in tasks]
    with torch.no_grad():
        for i, single in enumerate(alone):
            for mine, shared in zip(single.parameters(), together.parameters(), strict=True):
                mine.copy_(shared[i : i + 1])
    train(together, 8)
    for i, single in enumerate(alone):
        train(single, 8)
        (want,) = single.pathways()
        got = together.pathways()[i]
        assert got.tensors().keys() == want.tensors().keys()
        for name, tensor in want.tensors().items():
            torch.testing.assert_close(got.tensors()[name], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("gate", ["logistic", "mlp"])
def test_training_delivers_the_edit(gate: Any) -> None:
    torch.manual_seed(0)
    t = task(2, positives=12)
    config = AdapterConfig(
        gate=gate, steps=120, lr=5e-3, positives=12, negatives=32, rank=8, gate_width=0.5, threshold=0.5
    )
    lanes = AdapterTrainer([t], config)
    before = summary_row(lanes.pathways()[0], t)
    losses = train(lanes, config.steps)
    assert losses[-1] < 0.5 * losses[0]
    (pathway,) = lanes.pathways()
    found = summary_row(pathway, t)
    assert before["reach"] == before["reach_before"] == found["reach_before"]
    assert abs((found["reach"] or 0) - 1) < 0.1 < abs((before["reach"] or 0) - 1)
    assert found["open"] == 1.0
    assert (found["false"] or 0.0) < 0.2
    keys = t.positives
    assert torch.equal(pathway.move(keys), pathway.move(keys))


@pytest.mark.parametrize("absolute", [False, True])
def test_the_scale_of_the_keys_is_folded_in(absolute: bool) -> None:
    t = task(1)
    lanes = AdapterTrainer(
        [t], AdapterConfig(gate="mlp", absolute=absolute, threshold=0.7, gate_width=0.5, anchored=True)
    )
    assert (float(lanes.scale) == 1.0) == absolute
    assert lanes.gate is not None
    train(lanes, 3)
    (pathway,) = lanes.pathways()
    with torch.no_grad():
        moves = lanes.move(lanes.scale * t.positives[None])[0] / lanes.scale
        torch.testing.assert_close(pathway.move(t.positives), moves, atol=1e-5, rtol=1e-4)
        soft = lanes.gate(lanes.scale * t.positives[None])[0].sigmoid()
    assert pathway.threshold is not None
    assert pathway.offset is not None
    assert float(pathway.offset.abs().max()) > 1e-3
    assert pathway.down.shape[0] == pathway.up.shape[1] == lanes.config.rank + 1
    torch.testing.assert_close((pathway.margin(t.positives) + pathway.threshold).sigmoid(), soft)
    torch.testing.assert_close(pathway.margin(t.positives) > 0, soft > 0.7)


def test_without_a_projection_an_open_gate_doubles_the_key() -> None:
    t = task(3)
    lanes = AdapterTrainer([t], AdapterConfig(projection=False))
    assert lanes.parameters() == []
    (pathway,) = lanes.pathways()
    assert torch.equal(pathway.move(t.positives), t.positives)


def test_few_negatives_are_enough() -> None:
    lanes = AdapterTrainer([task()], AdapterConfig(gate="mlp", negatives=1))
    assert all(math.isfinite(loss) for loss in train(lanes, 2))


# -- keys of a model --------------------------------------------------------------------------------------

CONTEXTS = ["{}", "The meeting was. {}", "Because of rain. {}"]
FRANCE = Variants(
    paraphrase_train=("Gallia the old", "a country of Spain"),
    paraphrase_test=("Zundert",),
    shuffle_train=("nceFra",),
    shuffle_test=("ceFran",),
    long_train=("In the north it rains. Nobody knows that she is right.", "Honda was created."),
    long_test=("Einstein worked as a physicist.",),
)
RECORDS = [
    EditRecord(
        EditRequest("a", "The capital of {} is", "France", "Rome"),
        (Probe("neighborhood", "Toyota is made in", "Japan"),),
        variants=FRANCE,
    ),
    EditRecord(
        EditRequest("b", "In 1853 {} was born in", "Vincent van Gogh", "Tokyo"),
        (),
        variants=Variants(
            ("the painter van Gogh",), ("Dutch tea",), ("Gogh Vincent",), ("van GoVincentgh",), ("I think.",)
        ),
    ),
]
CORPUS = TEXT[TEXT.index("Berlin") :][:400]
OTHERS = ["Steve Jobs", "Toyota", "France", "LeBron James", "Microsoft"]
CONFIG = AdapterConfig(contexts=1, others=2, held_back=0.0, corpus_tokens=150, phrases=0, confusable_names=0)


@pytest.fixture
def lm() -> LM:
    return tiny_lm("llama", n_layers=3, d_model=16, d_ff=40)


def source(lm: LM, config: AdapterConfig = CONFIG) -> KeySource:
    corpus = torch.tensor(lm.encode(CORPUS))
    return KeySource(lm, config, CONTEXTS, 2, OTHERS, corpus)


def tasks_of(
    lm: LM, records: Sequence[EditRecord] = RECORDS, config: AdapterConfig = CONFIG, bank: BatchedDeltas | None = None
) -> list[AdapterTask]:
    lanes = list(range(len(records))) if bank is not None else [-1] * len(records)
    directions = torch.ones(len(records), 40)
    return source(lm, config).tasks(records, 1, directions, lambda keys: keys.mean(0), bank, lanes)


def key(lm: LM, template: str, subject: str, context: str = "{}", answer: str | None = None) -> tuple[Tensor, Any]:
    """All keys of one text by itself, `[T, D]`, and its tokens."""
    seen: list[Tensor] = []
    t = encode_subject(lm, template, subject, answer, context)
    handle = lm.arch.module(lm.model, "mlp_out", 1).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        lm.model(torch.tensor([t.ids]))
    handle.remove()
    return seen[0].reshape(len(t.ids), -1), t


def rows_in(keys: Tensor, among: Tensor) -> bool:
    """Whether every row of `keys` is one of `among`, to float32's rounding."""
    return bool((distances(keys, among).amin(1) < 1e-3).all())


def distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def test_keys_are_those_of_the_texts_by_themselves(lm: LM) -> None:
    (t,) = tasks_of(lm, RECORDS[:1], replace(CONFIG, contexts=-1, others=9))
    prompt = "The capital of {} is"

    def last(subject: str, context: str) -> Tensor:
        keys, tokens = key(lm, prompt, subject, context)
        return keys[tokens.subject_last]

    original = [last("France", context) for context in CONTEXTS]
    names = ("Gallia the old", "a country of Spain", "nceFra")
    variants = torch.stack([last(name, context) for name in names for context in CONTEXTS])
    long = last("France", FRANCE.long_train[0] + " {}")
    torch.testing.assert_close(t.bare, original[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(t.k_star, torch.stack(original[:2]).mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(t.direction, torch.ones(40) / 40**0.5)
    want = torch.cat([torch.stack(original[1:]), variants, long[None]])
    assert len(t.positives) == len(want)
    assert rows_in(t.positives, want)
    assert rows_in(want, t.positives)
    bare, tokens = key(lm, prompt, "France")
    hard_negatives = [bare[tokens.subject_first : tokens.subject_last]]
    after = [keys[tokens.subject_last + 1 :] for keys, tokens in (key(lm, prompt, name) for name in ("France", *names))]
    request = RECORDS[0].request
    for answer in filter(None, (request.target_new, request.target_true)):
        whole, t_answer = key(lm, prompt, "France", answer=answer)
        hard_negatives.append(whole[t_answer.n_prompt :])
        after.append(whole[t_answer.subject_last + 1 :])
    assert rows_in(t.later, torch.cat(after))
    assert rows_in(torch.cat(after), t.later)
    torch.testing.assert_close(t.hard_negatives, torch.cat(hard_negatives), atol=1e-4, rtol=1e-4)
    subject = range(tokens.subject_first, tokens.subject_last + 1)
    outside = bare[[i for i in range(len(bare)) if i not in subject]]
    assert rows_in(outside, t.negatives)
    assert not rows_in(bare[list(subject)], t.negatives)
    assert len(t.held_negatives) == len(t.held_positives) == 0
    others = [key(lm, prompt, name)[0] for name in OTHERS]
    taken = [name for name, keys in zip(OTHERS, others, strict=True) if rows_in(keys, t.negatives)]
    assert taken == ["Steve Jobs", "LeBron James", "Microsoft"], "not the subject itself, nor one that is asked about"
    corpus, _ = key(lm, "{}", CORPUS)
    assert rows_in(corpus[:128], t.negatives)


def test_phrases_train_and_tempt(lm: LM) -> None:
    """The same phrases after the subject and after others, and names that only begin like the subject."""
    without = tasks_of(lm, RECORDS[1:])[0]
    with_all = tasks_of(lm, RECORDS[1:], replace(CONFIG, phrases=3, phrase_others=2, confusable_names=4))[0]
    assert len(with_all.positives) == len(without.positives) + 3
    rows = [row for row in source(lm, replace(CONFIG, phrases=3, phrase_others=2, confusable_names=4)).plan(RECORDS[1])]
    texts = [lm.decode(list(row.ids)) for row in rows if row.role == "tempting"]
    assert len(texts) == 3 * 2 + 4
    assert not any("Vincent van Gogh" in text for text in texts)
    assert sum("Vincent" in text for text in texts[6:]) == 4
    own = [key(lm, "In 1853 {} was born in", t.replace("{}", "Vincent van Gogh"))[1] for t in PHRASES]
    ran = {row.ids for row in rows if row.role == "variant"}
    assert sum(tokens.ids in ran for tokens in own) == 3
    for row in (row for row in rows if row.role == "tempting"):
        assert row.hard_negatives[-1] == row.subject_last == len(row.ids) - 1
        module = lm.arch.module(lm.model, "mlp_out", 1)
        (keys,) = read_keys(lm, [row.ids], module, None, [-1])
        assert rows_in(keys[list(row.hard_negatives)], with_all.hard_negatives)


def test_siblings_begin_like_the_subject_and_end_like_another() -> None:
    found = confusable_names("Vincent van Gogh", ["Ada", "Lake Geneva"], 2, Random(0))
    assert len(found) == 2
    for name in found:
        assert name.startswith("Vincent ")
        assert name.endswith(("Ada", "Geneva"))
        assert not name.endswith("Gogh")
    assert confusable_names("IBM", ["Ada"], 1, Random(0)) == []


def test_what_tests_is_never_read(lm: LM) -> None:
    texts: list[str] = []
    spy = lm.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: texts.extend(lm.decode(row) for row in kwargs["input_ids"].tolist()), with_kwargs=True
    )
    tasks_of(lm, config=replace(CONFIG, contexts=-1, long_contexts=5, held_back=0.25))
    spy.remove()
    read = "\n".join(texts)
    for record in RECORDS:
        v = record.variants
        assert v is not None
        assert [text for text in (*v.paraphrase_test, *v.shuffle_test, *v.long_test) if text in read] == []
        wanted = (*v.paraphrase_train, *v.shuffle_train, *v.long_train)
        assert [text for text in wanted if text not in read] == []


def test_what_is_held_back_does_not_train(lm: LM) -> None:
    config = replace(CONFIG, others=9)
    whole, part = tasks_of(lm, config=config)[0], tasks_of(lm, config=replace(config, held_back=0.4))[0]
    assert len(part.held_positives) == 2  # one name of three, bare and in a context
    assert len(part.positives) + 2 == len(whole.positives)
    assert float(distances(part.held_positives, part.positives).min()) > 1e-2
    assert len(part.held_negatives) == int(0.4 * len(whole.negatives))
    assert len(part.held_negatives) + len(part.negatives) == len(whole.negatives)
    assert rows_in(part.held_negatives, whole.negatives)


def test_other_records_do_not_matter(lm: LM) -> None:
    config = replace(CONFIG, held_back=0.4)
    both, alone = tasks_of(lm, config=config), [tasks_of(lm, [record], config)[0] for record in RECORDS]
    back = tasks_of(lm, RECORDS[::-1], config)[::-1]
    for one, other, third in zip(both, alone, back, strict=True):
        for field in fields(AdapterTask):
            mine = getattr(one, field.name)
            torch.testing.assert_close(getattr(other, field.name), mine, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(getattr(third, field.name), mine, atol=1e-4, rtol=1e-4)


def test_prompts_of_other_edits_are_near_negatives(lm: LM) -> None:
    """Those that were claimed, of other subjects alone, and at most so many."""
    directions = torch.ones(1, 40)

    def hard_negatives(keys: KeySource, record: EditRecord) -> Tensor:
        return keys.tasks([record], 1, directions, lambda k: k.mean(0), None, [-1])[0].hard_negatives

    first, second = RECORDS
    plain = hard_negatives(source(lm), second)
    kept = source(lm)
    kept.claim([first], 1, None, [-1])
    rival = key(lm, first.request.prompt, first.request.named())[0]
    more = hard_negatives(kept, second)
    torch.testing.assert_close(more[: len(plain)], plain)
    assert len(more) == len(plain) + len(rival)
    assert rows_in(rival, more[len(plain) :])
    torch.testing.assert_close(hard_negatives(kept, first), hard_negatives(source(lm), first))
    few = source(lm, replace(CONFIG, other_edits=2))
    few.claim([first], 1, None, [-1])
    some = hard_negatives(few, second)
    assert len(some) == len(plain) + 2
    assert rows_in(some[len(plain) :], rival)


def test_keys_are_read_under_each_edit_of_its_own(lm: LM) -> None:
    """Changes below the layer show, those of the layer itself and its pathways do not."""
    below, here = (lm.arch.path("mlp_out", layer) for layer in (0, 1))

    def change(path: str, seed: int) -> Delta:
        left, right = draw(seed, 16, 1).float(), draw(seed + 1, 1, 40).float()
        move = Pathway(draw(seed, 2, 40).float(), draw(seed, 40, 2).float())
        return Delta({path: Factors(left, right)}, {path: Pathways((move,))})

    plain = tasks_of(lm)
    with edited(lm.model, change(here, 7)):
        written = tasks_of(lm)
    torch.testing.assert_close([t.positives for t in written], [t.positives for t in plain])
    same = tasks_of(lm, bank=BatchedDeltas(lm.model, [change(here, 1), change(here, 3)]))
    moved = tasks_of(lm, bank=BatchedDeltas(lm.model, [Delta(), change(below, 5)]))
    torch.testing.assert_close([t.positives for t in same], [t.positives for t in plain])
    torch.testing.assert_close(moved[0].positives, plain[0].positives, atol=1e-4, rtol=1e-4)
    assert float((moved[1].positives - plain[1].positives).abs().max()) > 0.1


def recipe(name: str) -> AdapterConfig:
    if name == "paper":
        return replace(parity_config(), dropout=0.0, rank=4, positives=5)
    gate: Any = name
    return replace(
        CONFIG, gate=gate, gate_loss=0.0, anneal=1.0, rank=4, positives=5, long_contexts=0, others=16, held_back=0.25
    )


@pytest.mark.parametrize("name", ["none", "mlp", "paper"])
def test_cached_keys_train_as_the_whole_model_does(name: str, lm: LM) -> None:
    """The same losses and adapter with keys from full forward passes of the edited model, the adapter inside."""
    config, steps = recipe(name), 5
    record = replace(RECORDS[0], variants=Variants(paraphrase_train=("Gallia the old",)))
    edit = Delta({lm.arch.path("mlp_out", 1): Factors(draw(1, 16, 1).float(), draw(2, 1, 40).float())})
    bank = BatchedDeltas(lm.model, [edit])
    (t,) = tasks_of(lm, [record], replace(config, corpus_tokens=0, contexts=-1), bank)
    t = replace(t, direction=F.normalize(draw(3, 40).float(), dim=0))
    texts = [("France", CONTEXTS[1]), ("France", CONTEXTS[2]), *(("Gallia the old", c) for c in CONTEXTS)]
    assert len(t.positives) == len(texts) == config.positives
    lanes = AdapterTrainer([t], config)
    assert (lanes.gate is None) == (name == "none")
    mine = [parameter.detach().clone().requires_grad_() for parameter in lanes.parameters()]
    cached = train(lanes, steps)

    scale = 1.0 if config.absolute else math.sqrt(40) / float(t.k_star.norm())
    prompts = [encode_subject(lm, record.request.prompt, s, None, c) for s, c in [("France", "{}"), *texts]]
    module = lm.arch.module(lm.model, "mlp_out", 1)
    seen: list[tuple[Tensor, Tensor]] = []

    def adapter(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        k = args[0]
        moved = k @ mine[0][0].T @ mine[1][0].T
        if config.anchored:
            a, b = PACE * mine[2][0]
            moved = moved + (a + b * share(k, t))[..., None] * t.k_star
        if name != "none":
            hidden, hidden_bias, read, bias = (parameter[0] for parameter in mine[-4:])
            moved = (F.gelu(scale * k @ hidden.T + hidden_bias) @ read + bias).sigmoid()[..., None] * moved
        seen.append((k[0], (k + moved)[0]))
        return (k + moved,)

    optimizer, losses = torch.optim.Adam(mine, lr=config.lr), []
    for _ in range(steps):
        seen.clear()
        handle = module.register_forward_pre_hook(adapter)
        for p in prompts:
            with bank.rows(torch.tensor([0])):
                lm.model(torch.tensor([p.ids]))
        handle.remove()
        hats = torch.stack([hat[p.subject_last] for (_, hat), p in zip(seen, prompts, strict=True)])
        bare = seen[0][0][prompts[0].subject_last]
        loss = -config.aggregation * (F.normalize(hats[1:], dim=-1) @ t.direction).mean()
        if config.absolute:
            loss = loss + config.alpha * (hats[0] - bare).square().mean()
        else:
            loss = loss + config.alpha * (hats[0] - bare).square().sum() / bare.square().sum()
            loss = loss + config.strength * (share(hats, t) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == pytest.approx(cached, rel=1e-5, abs=1e-5)
    for parameter, other in zip(lanes.parameters(), mine, strict=True):
        torch.testing.assert_close(parameter.detach(), other.detach(), atol=1e-5, rtol=1e-4)
    assert all(bool(parameter.detach().any()) for parameter in mine)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rank": 0}, "model.adapter.rank: 0 is less than 1"),
        ({"dropout": 1.0}, "model.adapter.dropout: 1.0 is not between 0 and 0.99"),
        ({"threshold_range": [0.9, 0.8]}, "model.adapter.threshold_range: expects 0 < low <= high < 1"),
        ({"threshold_range": [0.9]}, "model.adapter.threshold_range: expects 0 < low <= high < 1"),
    ],
)
def test_bad_options_are_named(option: dict[str, Any], message: str) -> None:
    make: Callable[..., AdapterConfig] = AdapterConfig
    with pytest.raises(KeditError, match=message):
        make(**option)
