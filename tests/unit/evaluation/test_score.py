"""`score`, `greedy` and `known` against one-prompt-at-a-time references written here."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.errors import KeditError
from kedit.evaluation.score import EvalConfig, begins_with, is_known, score
from kedit.forward.greedy import greedy, greedy_ids
from kedit.forward.logits import logits_at
from kedit.forward.teacher_forcing import Span, read
from kedit.model.lm import LM
from kedit.request import EditRecord, EditRequest, Probe
from kedit.results.rows import ProbeScore
from tests.support.tiny_models import tiny_lm

FAMILIES = ["gpt2", "llama", "opt", "qwen2", "gemma2", "phi"]
QUIET = EvalConfig(generate=[])

PROBES = [
    Probe("rewrite", "The capital of France is", "Rome", "Paris"),
    Probe("paraphrase", "In the north of Spain it rains, and the capital of France is", "Rome", "Paris"),
    Probe("paraphrase", "France's capital:", "Los Angeles Lakers", "Los Angeles"),
    Probe("neighborhood", "Berlin is a city in", "Germany", "Redmond, Washington"),
    Probe("neighborhood", "Berlin is a city in", "Germany", "Spain"),
    Probe("portability", "Zundert", "a Dutch painter in 1853"),
    Probe("rewrite", "The capital of France is", "Rome", "Paris"),
]


def reference(lm: LM, text: str, answer: str) -> tuple[list[float], list[int], list[int]]:
    """-log p of every token of the answer, the argmax there, and the answer's ids: full logits, one row."""
    prompt = lm.encode(text)
    full = lm.encode(f"{text} {answer}")
    assert full[: len(prompt)] == prompt  # holds for these texts and tokenizers
    with torch.no_grad():
        logits = lm.model(torch.tensor([full])).logits[0].float().log_softmax(-1)
    at = logits[len(prompt) - 1 : len(full) - 1]
    ids = full[len(prompt) :]
    return [-float(at[i, token]) for i, token in enumerate(ids)], at.argmax(-1).tolist(), ids


def assert_same(a: Sequence[ProbeScore], b: Sequence[ProbeScore], tolerance: float = 1e-4) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.nll_answer == pytest.approx(y.nll_answer, abs=tolerance)
        assert x.nll_rival == (None if y.nll_rival is None else pytest.approx(y.nll_rival, abs=tolerance))
        assert (x.exact, x.token_accuracy, x.top1) == (y.exact, y.token_accuracy, y.top1)
        assert x.generated == y.generated


def lane_bank(lm: LM, n: int = 3, scale: float = 1.0) -> tuple[list[Delta], BatchedDeltas]:
    """Random rank-1 deltas on the down projection of layer 1, large enough to change the answers."""
    path = lm.arch.path("mlp_out", 1)
    rng = torch.Generator().manual_seed(1)
    deltas = [
        Delta({path: Factors(*(scale * torch.randn(s, generator=rng) for s in ((32, 1), (1, 80))))}) for _ in range(n)
    ]
    return deltas, BatchedDeltas(lm.model, deltas)


@pytest.mark.parametrize("family", FAMILIES)
def test_score_equals_the_naive_reference(family: str) -> None:
    lm = tiny_lm(family)
    scores = score(lm, PROBES, config=QUIET)
    assert any(len(s.top1) > 1 for s in scores)
    for probe, found in zip(PROBES, scores, strict=True):
        nlls, top, ids = reference(lm, probe.text, probe.answer)
        hits = [a == b for a, b in zip(top, ids, strict=True)]
        assert found.nll_answer == pytest.approx(sum(nlls) / len(nlls), abs=1e-4)
        assert (list(found.top1), found.exact) == (top, all(hits))
        assert found.token_accuracy == pytest.approx(sum(hits) / len(hits))
        if probe.rival is None:
            assert found.nll_rival is None
            assert found.success is None
        else:
            rivals, _, _ = reference(lm, probe.text, probe.rival)
            assert found.nll_rival == pytest.approx(sum(rivals) / len(rivals), abs=1e-4)
            assert found.success == (found.nll_answer < sum(rivals) / len(rivals))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_batches_of_any_size_give_the_same_scores(family: str) -> None:
    lm = tiny_lm(family)
    small = score(lm, PROBES, config=EvalConfig(batch_tokens=1, generate=["rewrite", "paraphrase"]))
    large = score(lm, PROBES, config=EvalConfig(batch_tokens=10_000, generate=["rewrite", "paraphrase"]))
    assert_same(small, large)
    assert small[0].generated is not None
    assert small[3].generated is None


def test_bounded_logits_cut_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    whole = score(lm, PROBES, config=QUIET)
    seen: list[int] = []

    def spy(lm: LM, ids: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor, **kwargs: object) -> object:
        seen.append(len(rows))
        return logits_at(lm, ids, rows, cols, **kwargs)

    monkeypatch.setattr("kedit.forward.teacher_forcing.MAX_LOGITS", 3 * lm.vocab_size)
    monkeypatch.setattr("kedit.forward.teacher_forcing.logits_at", spy)
    assert_same(score(lm, PROBES, config=QUIET), whole)
    assert len(seen) > 1
    longest_answer = max(len(s.top1) for s in whole)
    assert max(seen) <= max(3, 2 * longest_answer)


def test_rows_that_begin_another_row_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    rows_run: list[int] = []

    def spy(lm: LM, ids: torch.Tensor, rows: torch.Tensor, cols: torch.Tensor, **kwargs: object) -> object:
        rows_run.append(len(ids))
        return logits_at(lm, ids, rows, cols, **kwargs)

    monkeypatch.setattr("kedit.forward.teacher_forcing.logits_at", spy)
    spans = [
        Span(-1, (5, 6), (7,)),
        Span(-1, (5, 6, 8), (9,)),
        Span(-1, (5, 6, 8), (3,)),
        Span(-1, (5, 7), (7,)),
    ]
    together = read(lm, spans)
    assert sum(rows_run) == 2
    for span, (nll, top) in zip(spans, together, strict=True):
        (alone,) = read(lm, [span])
        assert nll == pytest.approx(alone[0], abs=1e-5)
        assert top == alone[1]


def test_lanes_equal_edited_models_one_by_one() -> None:
    lm = tiny_lm("llama")
    deltas, bank = lane_bank(lm)
    config = EvalConfig(generate=["rewrite", "paraphrase"], max_new_tokens=4)
    lanes = [i for i in (-1, 0, 1, 2) for _ in PROBES]
    mixed = score(lm, PROBES * 4, lanes, bank, config)
    n = len(PROBES)
    plain = score(lm, PROBES, config=config)
    assert_same(mixed[:n], plain)
    for i, delta in enumerate(deltas):
        with edited(lm.model, delta):
            alone = score(lm, PROBES, config=config)
        assert_same(mixed[n * (i + 1) : n * (i + 2)], alone)
        assert alone[0].nll_answer != pytest.approx(plain[0].nll_answer, abs=1e-2)
    assert_same(score(lm, PROBES, config=config), plain)


def test_lanes_must_exist() -> None:
    lm = tiny_lm("gpt2")
    _, bank = lane_bank(lm)
    with pytest.raises(ValueError, match="lanes must be -1 to 2"):
        score(lm, PROBES[:2], [0, 3], bank)
    with pytest.raises(ValueError, match="1 lanes for 2 rows"):
        score(lm, PROBES[:2], [0], bank)
    with pytest.raises(ValueError, match="lanes must be -1 to -1"):
        score(lm, PROBES[:1], [0])


def test_half_precision_is_scored_in_float32() -> None:
    lm = tiny_lm("llama", dtype=torch.bfloat16)
    found = score(lm, PROBES[:1], config=QUIET)[0]
    assert found.nll_answer == pytest.approx(sum(reference(lm, PROBES[0].text, "Rome")[0]) / len(found.top1), abs=0.1)
    probabilities = lm.model(torch.tensor([lm.encode(PROBES[0].text)])).logits[0, -1].float().softmax(-1)
    assert 0 < found.p_answer < 1
    assert found.first_top1 == int(probabilities.argmax())


def test_a_model_that_says_nan_scores_zero() -> None:
    lm = tiny_lm("gpt2")
    path = lm.arch.path("mlp_out", 1)
    bank = BatchedDeltas(lm.model, [Delta({path: Factors(torch.full((32, 1), float("nan")), torch.ones(1, 80))})])
    broken, fine = score(lm, PROBES[:1] * 2, [0, -1], bank, QUIET)
    assert (broken.nll_answer, broken.p_answer, broken.success) == (1e4, 0.0, False)
    assert_same([fine], score(lm, PROBES[:1], config=QUIET))


def test_the_model_is_left_as_it_was() -> None:
    lm = tiny_lm("gpt2")
    quiet = score(lm, PROBES[:2], config=QUIET)
    lm.model.train()
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert_same(score(lm, PROBES[:2], config=QUIET), quiet)
    assert lm.model.training
    head = lm.arch.head(lm.model)
    assert not head._forward_pre_hooks


def test_progress_and_no_probes() -> None:
    lm = tiny_lm("gpt2")
    seen: list[tuple[int, int]] = []
    score(lm, PROBES, config=EvalConfig(batch_tokens=20, generate=[]), progress=lambda *at: seen.append(at))
    assert len(seen) > 1
    assert seen[-1][0] == seen[-1][1]
    assert score(lm, []) == []


def test_errors_name_the_probe() -> None:
    lm = tiny_lm("gpt2", context=16)
    with pytest.raises(KeditError, match=r"paraphrase probe 'The sky is'.*empty"):
        score(lm, [Probe("paraphrase", "The sky is", "  ")])
    with pytest.raises(KeditError, match=r"long_context probe 'The .*more than the 16"):
        score(lm, [Probe("long_context", "The sky is" * 20, "blue")])
    with pytest.raises(KeditError, match=r"prompt 'The sky is'.*max_new_tokens"):
        greedy(lm, ["The sky is"], 16)
    with pytest.raises(KeditError, match=r"metrics\.scoring\.batch_tokens: 0 is less than 1"):
        EvalConfig(batch_tokens=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_hugging_face(family: str) -> None:
    lm = tiny_lm(family)
    eos = lm.tokenizer.eos_token_id
    lm.model.generation_config.eos_token_id = eos
    lm.model.generation_config.pad_token_id = lm.pad_id
    prompts = [
        "The capital of France is",
        "Berlin",
        "In the north of Spain it rains more often than",
        "I think",
    ]
    rows = [tuple(lm.encode(prompt)) for prompt in prompts]
    found = greedy_ids(lm, rows, 8)
    for row, new in zip(rows, found, strict=True):
        with torch.no_grad():
            whole = lm.model.generate(torch.tensor([row]), do_sample=False, max_new_tokens=8)  # type: ignore[operator]
        assert new == whole[0, len(row) :].tolist()


def test_rows_end_at_eos_and_leave_the_batch() -> None:
    lm = tiny_lm("llama")
    rows = [tuple(lm.encode(text)) for text in ("Berlin", "The capital of France is", "I think", "Tokyo and Rome")]
    free = greedy_ids(lm, rows, 10)
    eos = free[0][2]  # what row 0 says third ends every row from now on
    lm.model.generation_config.eos_token_id = [eos]
    ended = greedy_ids(lm, rows, 10)
    for before, after in zip(free, ended, strict=True):
        assert after == (before[: before.index(eos) + 1] if eos in before else before)
    assert len(ended[0]) < 10
    assert max(map(len, ended)) == 10  # some row outlives row 0, or the test shows nothing


def test_greedy_text_and_stop() -> None:
    lm = tiny_lm("llama")
    prompts = ["The capital of France is", "Berlin", "Berlin"]
    texts = greedy(lm, prompts, 6)
    assert texts[1] == texts[2]
    new = greedy_ids(lm, [tuple(lm.encode(prompt)) for prompt in prompts], 6)
    for prompt, text, ids in zip(prompts, texts, new, strict=True):
        assert prompt + text == lm.tokenizer.decode([*lm.encode(prompt), *ids], skip_special_tokens=True)
    stop = next(c for c in texts[0][1:] if c.strip())
    assert greedy(lm, prompts[:1], 6, stop=stop) == [texts[0][: texts[0].index(stop)]]


def test_exact_means_that_greedy_begins_with_the_answer() -> None:
    lm = tiny_lm("qwen2")
    text = "The capital of France is"
    said = greedy_ids(lm, [tuple(lm.encode(text))], 3)[0]
    span = Span(-1, (*lm.encode(text), *said[:-1]), tuple(said))
    ((_, top),) = read(lm, [span])
    assert list(top) == said


def test_known() -> None:
    lm = tiny_lm("gpt2")
    texts = ["The capital of {} is", "Berlin is in {} and", "{} is", "Because of {}", "{} was founded by"]
    first = [greedy(lm, [text.replace("{}", "France")], 1)[0] for text in texts]
    words = [(text, word.strip()) for text, word in zip(texts, first, strict=True) if word[0] == " " and word.strip()]
    assert words, "no continuation of the tiny model is a word; take other prompts"
    records = [EditRecord(EditRequest(str(i), t, "France", "Zulu", w), ()) for i, (t, w) in enumerate(words)]
    wrong = EditRecord(EditRequest("w", texts[0], "France", "Zulu", "Cairo, not " + words[0][1]), ())
    assert is_known(lm, [*records, wrong]) == [True] * len(records) + [False]
    with pytest.raises(KeditError, match=r"record 9: it has no target_true"):
        is_known(lm, [EditRecord(EditRequest("9", "{} is", "France", "Zulu"), ())])


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        (" English, of course", ["English"], True),
        (" Englishman", ["English"], False),
        (' "english"', ["English"], True),
        (" the English", ["English"], False),
        ("\n New  York City", ["Boston", "new york"], True),
        (" U.S. soldiers", ["U.S."], True),
        ("", ["English"], False),
        (" anything", [""], False),
    ],
)
def test_begins_with(text: str, answers: list[str], expected: bool) -> None:
    assert begins_with(text, answers) is expected


def test_a_score_as_a_row() -> None:
    row = ProbeScore(1 / 3, 1 / 3 + 1e-9, True, 1.0, (4, 5)).as_row()
    assert row == {
        "nll_answer": 0.333333,
        "nll_rival": 0.333333,
        "success": True,
        "exact": True,
        "token_accuracy": 1.0,
        "top1": [4, 5],
    }
