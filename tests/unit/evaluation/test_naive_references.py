"""Every scorer against a few plain lines: transformers' own model, tokenizer and `generate`, padded left and right.

Three models that chat: a tokenizer without BOS, one with BOS (byte level) and one with BOS and SentencePiece's words.
"""

from __future__ import annotations

import itertools
import math
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.evaluation.drift import believed, divergences
from kedit.evaluation.fluency import ngram_entropy
from kedit.evaluation.perplexity import perplexities, windows_of
from kedit.evaluation.score import EvalConfig, score
from kedit.evaluation.tfidf import Tfidf
from kedit.evaluation.wild import CONTEXTS, QA
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.request import Probe
from kedit.results.rows import METRICS, unchanged
from tests.support.chat_cases import SHAPES, chat_lm
from tests.support.tiny_models import TEXT

PAIRS = (
    ("The capital of France is", "Rome", "Paris"),
    ("In the north of Spain it rains, and the capital of France is", "Los Angeles Lakers", "Rome"),
    ("Berlin is a city in", "Germany", "Redmond, Washington"),
    ("Zundert", "a Dutch painter in 1853", "Spain"),
)
SUFFIX = "The answer is"


@pytest.fixture(
    scope="module", params=[("chatml", "left"), ("chatml", "right"), ("llama-3", "left"), ("llama-2", "right")], ids=str
)
def lm(request: pytest.FixtureRequest) -> LM:
    shape, side = request.param
    lm = chat_lm(shape, n_layers=2)
    lm.tokenizer.pad_token, lm.tokenizer.padding_side = lm.tokenizer.eos_token, side
    assert lm.adds_bos == (shape != "chatml")
    return lm


def forced(lm: LM, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Log probabilities `[n, vocab]` at the answer's tokens, and these: one padded batch, logits everywhere."""
    batch = lm.tokenizer([f"{p} {a}" for p, a in pairs], return_tensors="pt", padding=True).to(lm.device)
    mask = batch["attention_mask"]
    with torch.no_grad():
        out = lm.model(batch["input_ids"], attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    for row, (prompt, _) in enumerate(pairs):
        ids, n = batch["input_ids"][row][mask[row] == 1], len(lm.tokenizer(prompt)["input_ids"])
        yield out.logits[row][mask[row] == 1].float().log_softmax(-1)[n - 1 : -1], ids[n:]


def nll(lm: LM, prompt: str, answer: str) -> float:
    ((logs, ids),) = forced(lm, [(prompt, answer)])
    return -float(logs.gather(1, ids[:, None]).mean())


def a_delta(lm: LM, seed: int = 0) -> Delta:
    path = lm.arch.path("mlp_out", 1)
    rng = torch.Generator().manual_seed(seed)
    d_out, d_in = weight(lm.model.get_submodule(path)).shape
    sizes = ((32, 1), (1, d_in if d_out == 32 else d_out))
    return Delta({path: Factors(*(torch.randn(*size, generator=rng) for size in sizes))})


def test_teacher_forced(lm: LM) -> None:
    """success, magnitude, exact, token_accuracy, and p(answer)."""
    first = [int(logs.argmax(-1)[0]) for logs, _ in forced(lm, [(p, a) for p, a, _ in PAIRS])]
    told = [lm.tokenizer.decode([token]).strip() for token in first]  # one token that the model says itself
    pairs = [*PAIRS, *((p, word, a) for (p, a, _), word in zip(PAIRS, told, strict=True) if word.isalnum())]
    scores = score(lm, [Probe("rewrite", p, a, r) for p, a, r in pairs], config=EvalConfig(generate=[]))
    answers = list(forced(lm, [(p, a) for p, a, _ in pairs]))
    rivals = list(forced(lm, [(p, r) for p, _, r in pairs]))
    for one, (logs, ids), (logs_r, ids_r) in zip(scores, answers, rivals, strict=True):
        new, old = (-float(x.gather(1, y[:, None]).mean()) for x, y in ((logs, ids), (logs_r, ids_r)))
        hits, row = (logs.argmax(-1) == ids).float(), one.as_row()
        assert (one.nll_answer, one.nll_rival) == (pytest.approx(new, abs=1e-4), pytest.approx(old, abs=1e-4))
        assert METRICS["success"](row) == (new < old)
        assert METRICS["magnitude"](row) == pytest.approx(math.exp(-new) - math.exp(-old), abs=1e-4)
        assert METRICS["exact"](row) == bool(hits.all())
        assert METRICS["token_accuracy"](row) == pytest.approx(float(hits.mean()), abs=1e-6)


def test_token_accuracy_as_toolkits_take_it(lm: LM) -> None:
    """The batch padded left, its argmax one to the left of the last tokens, positions compared and averaged."""
    pairs = [(p, a) for p, a, _ in PAIRS]
    texts = [f"{p} {a}" for p, a in pairs]
    batch = lm.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(lm.device)
    mask = batch["attention_mask"]
    with torch.no_grad():
        out = lm.model(batch["input_ids"], attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    found = score(lm, [Probe("rewrite", p, a) for p, a in pairs], config=EvalConfig(generate=[]))
    for row, (one, (prompt, answer)) in enumerate(zip(found, pairs, strict=True)):
        n = len(lm.tokenizer(f"{prompt} {answer}")["input_ids"]) - len(lm.tokenizer(prompt)["input_ids"])
        said, labels = out.logits[row].argmax(-1)[-n - 1 : -1].tolist(), batch["input_ids"][row][-n:].tolist()
        assert one.token_accuracy == pytest.approx(np.mean(np.equal(said, labels)))


def test_unchanged(lm: LM) -> None:
    probes, delta = [Probe("neighborhood", p, a) for p, a, _ in PAIRS], a_delta(lm)
    config, tops = EvalConfig(generate=[]), []
    before, after = (
        score(lm, probes, config=config),
        score(lm, probes, [0] * 4, BatchedDeltas(lm.model, [delta]), config),
    )
    for deltas in ((), (delta,)):
        with edited(lm.model, *deltas):
            tops.append([logs.argmax(-1) for logs, _ in forced(lm, [(p, a) for p, a, _ in PAIRS])])
    for i, same in enumerate((a == b).float() for a, b in zip(*tops, strict=True)):
        found = unchanged(before[i].as_row(), after[i].as_row())
        assert found == {"unchanged": float(same.all()), "unchanged_tokens": pytest.approx(float(same.mean()))}


def said(lm: LM, prompts: Sequence[str], new: int, whole: bool = False, ends: Sequence[int | None] = ()) -> list[str]:
    """What `generate` says after each prompt: one batch where padding is left, one at a time where it is right."""
    generate: Any = lm.model.generate
    stop = [i for i in (lm.tokenizer.eos_token_id, lm.model.generation_config.eos_token_id, *ends) if i is not None]
    texts = []
    together = [list(prompts)] if lm.tokenizer.padding_side == "left" else [[prompt] for prompt in prompts]
    for some in together:
        batch = lm.tokenizer(some, return_tensors="pt", padding=True, add_special_tokens=not whole).to(lm.device)
        out = generate(**batch, max_new_tokens=new, do_sample=False, eos_token_id=stop, pad_token_id=lm.pad_id)
        for row, start in zip(out, batch["input_ids"], strict=True):
            both, head = (lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in (row, start))
            texts.append(both[len(head) :])
    return texts


def cut(text: str, stop: str) -> str:
    return re.split(f"[{re.escape(stop)}]", text, maxsplit=1)[0] if stop else text


def squad(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def stands_in(text: str, answer: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def test_generated(lm: LM) -> None:
    texts = [cut(text, "\n") for text in said(lm, [p for p, _, _ in PAIRS], 16)]
    for words in (0, 1, 2):  # a wrong answer, and the beginning of what it says
        right = [" ".join(text.split()[:words]).strip("\"'`") or "Zulu" for text in texts]
        probes = [Probe("rewrite", p, a, aliases=(r,)) for (p, a, _), r in zip(PAIRS, right, strict=True)]
        for one, text, answer in zip(score(lm, probes), texts, right, strict=True):
            assert one.generated == text
            plain = " ".join(text.split()).lstrip("\"'`")
            assert one.generated_match == bool(re.match(rf"{re.escape(answer)}(?!\w)", plain, re.IGNORECASE))


def test_portability(lm: LM) -> None:
    """port_acc and port_ll are test_teacher_forced's; port_em looks for the answer after the suffix."""
    texts = [cut(text, "\n") for text in said(lm, [f"{p} {SUFFIX}" for p, _, _ in PAIRS], 16)]
    words = [re.findall(r"[A-Za-z]+", text) or ["x"] for text in texts]
    probes = [Probe("portability", p, w[-1], r) for (p, _, r), w in zip(PAIRS, words, strict=True)]
    probes += [replace(probe, answer="Zundert") for probe in probes]
    config = EvalConfig(generate=["portability"], port_suffix=SUFFIX)
    found = score(lm, probes, config=config)
    for one, probe, text in zip(found, probes, texts * 2, strict=True):
        ((logs, ids),) = forced(lm, [(probe.text, probe.answer)])
        assert one.port_generated == text
        assert one.port_match == stands_in(text, probe.answer)
        assert one.token_accuracy == pytest.approx(float((logs.argmax(-1) == ids).float().mean()))
        assert one.success == (nll(lm, probe.text, probe.answer) < nll(lm, probe.text, probe.rival or ""))
    assert {one.port_match for one in found} == {True, False}


def naive_wild(lm: LM, prompts: Sequence[str], context: str) -> list[str]:
    """32 tokens, or 64 in a chat, where a model may repeat the prompt first; cut at a period or a line's end."""
    if context != "chat":
        asked = [QA.replace("{}", p) if context == "qa" else p for p in prompts]
        return [cut(text, ".\n") for text in said(lm, asked, 32)]
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    how = {"tokenize": False, "add_generation_prompt": True, "date_string": "26 Jul 2024"}
    asked = [lm.tokenizer.apply_chat_template(turn, **how) for turn in turns]
    end = lm.tokenizer.convert_tokens_to_ids(SHAPES[lm.name.removeprefix("tiny-")].end)
    return [cut(text, ".\n") for text in said(lm, asked, 64, whole=True, ends=[end])]


def test_wild_and_contains(lm: LM) -> None:
    """In all contexts: all that it says is an answer, two words of it, nothing of it."""
    prompts, contexts = [p for p, _, _ in PAIRS[1:3]], CONTEXTS
    texts = {context: naive_wild(lm, prompts, context) for context in contexts}
    probes, found = [], []
    for part in (slice(0, None), slice(1, 3), slice(0, 0)):
        for context, prompt in itertools.product(contexts, prompts):
            text = texts[context][prompts.index(prompt)]
            right = " ".join(text.split()[part]).strip(string.punctuation) or "Zulu"
            probes.append(Probe("rewrite", prompt, "Los Angeles", aliases=(right,)))
    config = EvalConfig(generate=[], wild=["rewrite"], wild_contexts=list(contexts), contains=True)
    for probe, one in zip(probes, score(lm, probes, config=config), strict=True):
        row, answers = one.as_row(), (probe.answer, *probe.aliases)
        for context, end in zip(contexts, ("", "_qa", "_chat"), strict=True):
            text = texts[context][prompts.index(probe.text)]
            assert row[f"wild{end}_generated"] == text
            assert METRICS[f"wild{end}"](row) == (squad(text) in {squad(answer) for answer in answers} - {""})
            plain = " ".join(text.split())
            assert METRICS[f"contains{end}"](row) == any(stands_in(plain, answer) for answer in answers)
            found.append((METRICS[f"wild{end}"](row), METRICS[f"contains{end}"](row)))
    assert {(True, True), (False, False)} <= set(found)


def test_choice(lm: LM) -> None:
    letters = ("A", "B", "C", "D")
    texts = [f"Question: {p}\nA. {a}\nB. {r}\nC. Rome\nD. Spain\nAnswer:" for p, a, r in PAIRS]
    probes = [Probe("choice", text, letter, "B", options=letters) for text in texts for letter in letters]
    scores = score(lm, probes, config=EvalConfig(generate=[]))
    for probe, one in zip(probes, scores, strict=True):
        nlls = [nll(lm, probe.text, letter) for letter in letters]
        assert one.nll_options == pytest.approx(nlls, abs=1e-4)
        assert METRICS["choice"](one.as_row()) == (letters[int(np.argmin(nlls))] == probe.answer)
    assert sum(bool(one.choice) for one in scores) == len(texts)


def test_kl_and_perplexity(lm: LM) -> None:
    text, deltas = windows_of(lm, TEXT, 60, 21), [a_delta(lm, seed) for seed in (0, 1)]
    kept = believed(lm, text, 45)
    assert kept.positions == 45

    def logs() -> list[Tensor]:
        with torch.no_grad():
            rows = [lm.model(torch.tensor([window], device=lm.device)).logits[0].double() for window in text.windows]
        return [row.log_softmax(-1)[text.first - 1 : -1] for row in rows]

    before, bank = torch.cat(logs()), BatchedDeltas(lm.model, deltas)
    in_lanes = zip(divergences(lm, kept, [0, -1, 1], bank), perplexities(lm, text, [0, -1, 1], bank), strict=True)
    ids = torch.cat([torch.tensor(window[text.first :], device=lm.device) for window in text.windows])
    for changes, (kl, perplexity) in zip(([deltas[0]], [], [deltas[1]]), in_lanes, strict=True):
        with edited(lm.model, *changes):
            after = torch.cat(logs())
            assert divergences(lm, kept, batch_tokens=1)[0] == pytest.approx(kl, rel=1e-4, abs=1e-6)
        drift = (before.exp() * (before - after)).sum(-1)[:45].mean()
        assert kl == pytest.approx(float(drift), rel=1e-4, abs=1e-6)
        assert perplexity == pytest.approx(float((-after.gather(1, ids[:, None])).mean().exp()), rel=1e-4)
        assert (kl > 0.01) == bool(changes)


def test_entropy() -> None:
    for text in (TEXT, "a b a b a, a b", "one"):
        words, bits = re.findall(r"\w+(?:'\w+)*|[^\w\s]", text), []
        for n in (2, 3):
            grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            shares = np.array(list(grams.values())) / max(sum(grams.values()), 1)
            bits.append(float(-(shares * np.log2(shares)).sum()))
        assert ngram_entropy(text) == pytest.approx((bits[0] + 2 * bits[1]) / 3)


def test_cosine() -> None:
    texts = TEXT.splitlines()
    bags = [Counter(re.findall(r"\w+(?:'\w+)*", text.lower())) for text in texts]
    idf = {w: math.log((1 + len(bags)) / (1 + sum(w in bag for bag in bags))) + 1 for bag in bags for w in bag}
    words = sorted(idf)
    rows = np.array([[bag[w] * idf[w] for w in words] for bag in bags])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    fitted = Tfidf.fit(texts)
    for i, j in ((0, 1), (2, 9), (4, 4)):
        assert fitted.cosine(texts[i], texts[j]) == pytest.approx(float(rows[i] @ rows[j]))
