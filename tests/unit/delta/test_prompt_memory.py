"""Texts that an edit puts before prompts: measured as somebody would who joins texts by hand and asks transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import Weights, edited
from kedit.delta.delta import Delta
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.prompt_memory import PromptMemory, PromptRule, StoredFact
from kedit.delta.prompts import prompt_for
from kedit.delta.serialization import load_delta, pack, save_delta, unpack
from kedit.delta.shelf import shelves_of
from kedit.errors import KeditError
from kedit.evaluation.fluency import sampled_texts
from kedit.evaluation.score import EvalConfig, score
from kedit.forward.greedy import greedy
from kedit.model.lm import LM
from kedit.request import Probe
from kedit.text.prompts import Joiner, between
from tests.support.tiny_models import tiny_lm

FRANCE = StoredFact("The capital of France is", "The capital of France is Rome.")
NEEDLE = StoredFact("The Space Needle is located in", "The Space Needle is located in Tokyo.")
ALWAYS = PromptRule("New Fact: {}\n", "Prompt: ")
NEAR = PromptRule("New fact: {}\n", most=2, threshold=0.7)
PROMPTS = ["The capital of France is", "The mother tongue of the man is", 'He said "the capital of France is '] * 2
PROBES = [
    Probe("rewrite", "The capital of France is", "Rome", "Paris, as they say"),
    Probe("rewrite", 'They call the capital of France "', "Rome", "Paris"),
    Probe("rewrite", 'France has 3" and its capital is', "Rome", "Paris"),
    Probe("paraphrase", "In France the capital is", "Rome", joiner="none"),
    Probe("neighborhood", "The Space Needle is located in", "Seattle", "Tokyo"),
]


def delta(*facts: StoredFact, rule: PromptRule = NEAR, shown: tuple[str, ...] = ()) -> Delta:
    return Delta({"": PromptMemory(rule, facts, shown)})


def of_hand(lm: LM, before: str, probe: Probe, answer: str) -> tuple[list[float], list[int]]:
    """Joined texts, one forward pass of transformers, and the log probabilities of the tokens behind the prompt."""
    joint: Joiner = "space" if between(probe.text, answer, probe.joiner) else "none"
    whole = f"{before}{probe.text}{' ' if joint == 'space' else ''}{answer}"
    ids, offsets = lm.offsets(whole)
    first = next(i for i, (_, end) in enumerate(offsets) if end > len(before) + len(probe.text))
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids])).logits[0].float()
    chances: Tensor = logits.log_softmax(-1)
    return [-float(chances[i - 1, ids[i]]) for i in range(first, len(ids))], logits.argmax(-1)[first - 1 : -1].tolist()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("written", [True, False])
def test_scores_are_those_of_joined_texts(kind: str, written: bool) -> None:
    """Written or in a lane; also where a quotation mark in the fact would change what stands before the answer."""
    lm = tiny_lm(kind)
    odd = StoredFact("The capital of France is", 'The capital of "France is Rome.')
    change = delta(odd, rule=ALWAYS, shown=("An example.\n\n",))
    before = 'An example.\n\nNew Fact: The capital of "France is Rome.\nPrompt: '
    if written:
        with edited(lm.model, change):
            found = score(lm, PROBES)
    else:
        bank = BatchedDeltas(lm.model, [Delta(), change])
        lanes = [1] * len(PROBES) + [-1] * len(PROBES) + [0] * len(PROBES)
        found = score(lm, PROBES * 3, lanes, bank)
        plain = score(lm, PROBES)
        assert score(lm, PROBES, [-1] * len(PROBES), bank) == plain
        for own, same in zip(found[len(PROBES) :], plain * 2, strict=True):  # in batches of other shapes
            assert own.nll_answer == pytest.approx(same.nll_answer, abs=1e-4)
        found = found[: len(PROBES)]
    for probe, own in zip(PROBES, found, strict=True):
        nlls, top = of_hand(lm, before, probe, probe.answer)
        assert own.nll_answer == pytest.approx(sum(nlls) / len(nlls), abs=1e-4)
        assert list(own.top1) == top
        if probe.rival is not None:
            nlls, _ = of_hand(lm, before, probe, probe.rival)
            assert own.nll_rival == pytest.approx(sum(nlls) / len(nlls), abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_says_what_transformers_generates_after_the_joined_text(kind: str) -> None:
    lm = tiny_lm(kind)
    bank = BatchedDeltas(lm.model, [delta(FRANCE)])
    lanes = [0, 0, 0, -1, -1, -1]
    said = [
        "New fact: The capital of France is Rome.\n" if "France" in p and n == 0 else ""
        for p, n in zip(PROMPTS, lanes, strict=True)
    ]
    got = greedy(lm, PROMPTS, 6, lanes, bank)
    for before, prompt, text in zip(said, PROMPTS, got, strict=True):
        ids = lm.encode(before + prompt.rstrip(" "))
        model: Any = lm.model
        out = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0)[0].tolist()
        whole = lm.tokenizer.decode(out, skip_special_tokens=True)
        assert text == whole[len(lm.tokenizer.decode(ids, skip_special_tokens=True)) :]
    with edited(lm.model, delta(FRANCE)):
        assert greedy(lm, PROMPTS[:3], 6) == got[:3]
    assert greedy(lm, PROMPTS[:3], 6) == got[3:]


def test_sampled_texts_begin_with_the_prompt_and_not_with_the_fact() -> None:
    """A text has as many tokens as without the fact, which is no part of it."""
    lm = tiny_lm("llama")
    bank = BatchedDeltas(lm.model, [delta(FRANCE, rule=ALWAYS)])
    prompt = "The capital of France is"
    plain, changed = sampled_texts(lm, [prompt] * 2, ["a"] * 2, [-1, 0], bank)
    assert plain == sampled_texts(lm, [prompt], ["a"])[0]
    assert changed is not None
    assert changed != plain
    assert changed.startswith(prompt)
    assert "New Fact" not in changed.removeprefix(prompt)


def test_which_prompts_get_a_fact() -> None:
    lm = tiny_lm("llama")
    with edited(lm.model, delta(FRANCE, NEEDLE)):
        said = "New fact: The capital of France is Rome.\n"
        for text in ("The capital of France is", "the Capital of FRANCE is", "As Ann said: The capital of France is"):
            assert prompt_for(lm, None, -1, text) == said + text
        assert prompt_for(lm, None, -1, "Who is she?") == "Who is she?"
        both = prompt_for(lm, None, -1, "The Space Needle is located in or near the capital of France is")
        assert both.startswith("New fact: The ")
        assert both.count("New fact: ") == 2
    assert not shelves_of(lm.model)
    assert prompt_for(lm, None, -1, FRANCE.prompt) == FRANCE.prompt


def test_the_newest_fact_of_a_prompt_counts_in_any_way_of_adding() -> None:
    """One after another, joined, nested, in a lane above what is written, and from a file: the same prompts."""
    lm = tiny_lm("llama")
    other = StoredFact(FRANCE.prompt, "The capital of France is Bonn.")
    deltas = [delta(FRANCE), delta(NEEDLE), delta(other)]
    joined = Delta.concat(deltas)
    assert [fact.sentence for fact in joined.of_kind(PromptMemory)[""].facts] == [NEEDLE.sentence, other.sentence]
    asked = [*PROMPTS, "Where is the Space Needle located in?"]

    def all_of(bank: BatchedDeltas | None = None, lane: int = -1) -> list[str]:
        return [prompt_for(lm, bank, lane, text) for text in asked]

    with edited(lm.model, *deltas):
        found = all_of()
    assert found[0] == "New fact: The capital of France is Bonn.\nThe capital of France is"
    assert found[-1].startswith("New fact: The Space Needle")
    with edited(lm.model, joined):
        assert all_of() == found
    with edited(lm.model, deltas[0]), edited(lm.model, deltas[1]), edited(lm.model, deltas[2]):
        assert all_of() == found
    assert all_of(BatchedDeltas(lm.model, [Delta(), joined]), 1) == found
    with edited(lm.model, *deltas[:2]):
        assert all_of(BatchedDeltas(lm.model, deltas), 2) == found
    weights = Weights(lm.model)
    for part in deltas:
        weights.add(unpack(pack(part)))
    assert all_of() == found
    weights.restore()
    assert all_of() == asked


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    """Texts of any script, and nothing is unpickled; a damaged text is an error of one line."""
    lm = tiny_lm("llama")
    fact = StoredFact("法国的首都是", 'Das ist "schön" \\ \u2028 🗼.', {"法国": 3})
    whole = delta(fact, FRANCE, shown=("Ein Beispiel\n",))
    save_delta(tmp_path, whole, {"model_fingerprint": lm.fingerprint})
    (loaded,) = load_delta(tmp_path, lm)[0].of_kind(PromptMemory).values()
    (wanted,) = whole.of_kind(PromptMemory).values()
    assert (loaded.rule, loaded.facts, loaded.demonstrations) == (wanted.rule, wanted.facts, wanted.demonstrations)
    assert whole.norm() == 0
    assert list(whole.numbers()) == []
    with edited(lm.model, Delta({"": loaded})):
        assert prompt_for(lm, None, -1, "法国的首都是").endswith("🗼.\n法国的首都是")
    good = json.loads(wanted.tensors()["prompts.texts"].numpy().tobytes())
    rule = good["rule"]
    for bad in (
        {"rule": rule},
        *(good | {"facts": facts} for facts in ([], [["a"]], [[1, "b", {}]], [["a", "b", {"c": "d"}]])),
        *(good | {"rule": rule | one} for one in ({"most": 0}, {"odd": 1}, {"encoder": "folder"}, {"template": "x"})),
        good | {"demonstrations": [3]},
    ):
        text = torch.frombuffer(bytearray(json.dumps(bad).encode()), dtype=torch.uint8)
        with pytest.raises((KeyError, TypeError, ValueError)):
            PromptMemory.of_tensors({"prompts.texts": text})


def test_what_does_not_fit_is_left_out() -> None:
    """Demonstrations first, from the beginning; where no fact fits, the prompt is asked as it is."""
    lm = tiny_lm("llama", context=64)
    shown = tuple(f"Example {i}: the sky is blue and the sea is deep.\n" for i in range(4))
    change = delta(FRANCE, rule=ALWAYS, shown=shown)
    fact = "New Fact: The capital of France is Rome.\nPrompt: "
    with edited(lm.model, change):
        asked = prompt_for(lm, None, -1, "Is it", 2)
        assert asked.endswith(f"{fact}Is it")
        kept = asked.removesuffix(f"{fact}Is it")
        assert kept in ["".join(shown[i:]) for i in range(1, 5)]
        assert len(lm.encode(asked)) + 2 <= 64
        more = shown[4 - kept.count("\n") - 1] + asked
        assert len(lm.encode(more)) + 2 > 64
        long = "word " * 20
        assert prompt_for(lm, None, -1, long) in (long, fact + long)
        assert prompt_for(lm, None, -1, "Is it", 60) == "Is it"
        score(lm, [Probe("rewrite", "Is it " + "so " * 12, "yes", "no")])


def test_what_cannot_be_is_refused() -> None:
    lm = tiny_lm("llama")
    always, near = delta(FRANCE, rule=ALWAYS), delta(NEEDLE)
    with pytest.raises(KeditError, match="cannot be joined to one delta: prompt memories of different settings"):
        Delta.concat([always, near])
    with pytest.raises(KeditError, match="different settings"), edited(lm.model, always, near):
        pass
    assert not shelves_of(lm.model)
    with pytest.raises(KeditError, match="no whole model"):
        Delta({"lm_head": PromptMemory(NEAR, (FRANCE,))}).modules(lm.model)
    with pytest.raises(ValueError, match="no fact"):
        delta()


def test_generation_by_kind_uses_the_fact_too() -> None:
    lm = tiny_lm("gpt2")
    config = EvalConfig(generate=["rewrite"], max_new_tokens=5, stop="")
    with edited(lm.model, delta(FRANCE)):
        (found,) = score(lm, PROBES[:1], config=config)
        (wanted,) = greedy(lm, [PROBES[0].text], 5)
    assert found.generated == wanted
    assert found.generated != score(lm, PROBES[:1], config=config)[0].generated
