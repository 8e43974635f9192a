"""`wild`: against transformers' own `generate` on one prompt at a time; what counts as the answer; where it stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.errors import KeditError
from kedit.evaluation.score import EvalConfig, check_probes, score
from kedit.evaluation.wild import CHAT, CONTEXTS, QA, normalised, spare
from kedit.forward.decoding import Decoding
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.model.tokenization import TooLong
from kedit.request import EditRecord, EditRequest, Probe
from kedit.results.rows import ProbeScore, result_row
from kedit.results.summary import flat, summarise
from tests.support.chat_cases import UNUSABLE, chat_lm
from tests.support.tiny_models import tiny_lm

PROMPTS = ("The capital of France is", "Berlin is a city in", "In the north of Spain it rains, and then", "Zundert ")
CONFIG = EvalConfig(generate=[], wild=["rewrite", "paraphrase"])


def naive(lm: LM, prompt: str) -> str:
    """32 new tokens by `generate`, cut at the first period or line's end."""
    ids = torch.tensor([lm.encode(prompt.rstrip())])
    generate: Any = lm.model.generate
    out = generate(ids, max_new_tokens=32, do_sample=False, pad_token_id=lm.pad_id)[0].tolist()
    whole, head = (lm.tokenizer.decode(part, skip_special_tokens=True) for part in (out, ids[0].tolist()))
    return whole[len(head) :].split("\n")[0].split(".")[0]


def probes_of(lm: LM) -> list[Probe]:
    """Of every prompt, one whose answer the model gives itself, and one whose answer it does not give."""
    found = []
    for prompt in PROMPTS:
        right = naive(lm, prompt).strip() or "nothing"
        found += [Probe("rewrite", prompt, "Los Angeles", aliases=(right,)), Probe("paraphrase", prompt, "Rome")]
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_it_says_what_generate_says(kind: str) -> None:
    lm = tiny_lm(kind)
    probes = probes_of(lm)
    for probe, found in zip(probes, score(lm, probes, config=CONFIG), strict=True):
        assert found.wild_generated == naive(lm, probe.text)
        said = normalised(found.wild_generated or "")
        assert found.wild_match == (said in {normalised(text) for text in (probe.answer, *probe.aliases)})
        assert found.generated is None


def test_lanes_are_edited_models() -> None:
    lm = tiny_lm("llama")
    path = lm.arch.path("mlp_out", 1)
    d_out, d_in = weight(lm.model.get_submodule(path)).shape
    generator = torch.Generator().manual_seed(0)
    deltas = [
        Delta({path: Factors(torch.randn(d_out, 1, generator=generator), torch.randn(1, d_in, generator=generator))})
        for _ in range(2)
    ]
    probes = [Probe("rewrite", prompt, "Rome") for prompt in PROMPTS]
    lanes = [0, 1, -1, 0]
    found = score(lm, probes, lanes, BatchedDeltas(lm.model, deltas), CONFIG)
    for probe, lane, one in zip(probes, lanes, found, strict=True):
        with edited(lm.model, *([deltas[lane]] if lane >= 0 else [])):
            assert one.wild_generated == naive(lm, probe.text)


@pytest.mark.parametrize(
    ("text", "answer", "aliases", "right"),
    [
        (" Rome", "Rome", (), True),
        (" the Rome!", "Rome", (), True),
        (" Rome, the eternal city", "Rome", (), False),
        (" Roman", "Rome", (), False),
        (" eternal city", "Rome", ("The Eternal City",), True),
        (" St. Louis. It is big.", "St. Louis", (), True),
        (" Washington, D.C. It lies in", "Washington D.C.", (), True),
        (" Paris. It is St. Louis", "St. Louis", (), False),
        ("", "The", (), False),
    ],
)
def test_what_counts(
    text: str, answer: str, aliases: tuple[str, ...], right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedit.evaluation.wild.greedy", lambda *_: [text])
    (found,) = score(tiny_lm("llama"), [Probe("rewrite", "A", answer, aliases=aliases)], config=CONFIG)
    assert found.wild_match is right
    assert right or found.wild_generated == text.split(".")[0]


@pytest.mark.parametrize(
    ("text", "answer", "says"),
    [
        (" It is Rome, they say. Not Paris", "Rome", True),
        (" It is Paris. Not Rome", "Rome", False),
        (" It is in St. Louis, on the river. Big", "St. Louis", True),
        (" It is Paris. In St. Louis", "St. Louis", False),
        (" Romans", "Rome", False),
        (" the eternal  CITY", "The Eternal City", True),
    ],
)
def test_what_it_says_anywhere(text: str, answer: str, says: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedit.evaluation.wild.greedy", lambda *_: [text])
    (found,) = score(tiny_lm("llama"), [Probe("rewrite", "A", answer)], config=replace(CONFIG, contains=True))
    assert found.wild_contains is says


def test_squads_normal_form() -> None:
    assert normalised(" The  U.S. \tAn-apple, a day ") == "us anapple day"
    assert normalised("theatre another") == "theatre another"


def test_only_where_it_is_asked_for() -> None:
    lm = tiny_lm("gpt2")
    probes = [Probe("rewrite", PROMPTS[0], "Rome"), Probe("neighborhood", PROMPTS[1], "Germany")]
    off = score(lm, probes, config=EvalConfig(generate=[]))
    on = score(lm, probes, config=CONFIG)
    assert [one.wild_match for one in off] == [None, None]
    assert on[1] == off[1]
    assert replace(on[0], wild_generated=None, wild_match=None) == off[0]
    assert not {"wild_match", "choice", "nll_options"} & set(off[0].as_row())
    assert not [key for key in on[0].as_row() if "contains" in key or "qa" in key or "chat" in key]
    assert on[0].as_row()["wild_generated"] == on[0].wild_generated


def test_the_summary_has_it() -> None:
    record = EditRecord(EditRequest("1", "{} is", "Rome", "Tokyo"), (Probe("rewrite", "Rome is", "Tokyo"),))
    before, after = (
        [ProbeScore(1.0, None, True, 1.0, (1,), wild_generated="x", wild_match=match)] for match in (False, True)
    )
    row = result_row(record, before, after, 0, "edit")
    summary = summarise([row], "edit", resamples=10)
    assert flat(summary)["efficacy/wild"] == 100
    assert flat(summary, "before")["efficacy/wild"] == 0


def test_a_prompt_must_leave_room() -> None:
    lm = tiny_lm("llama")
    words = ["a"] * lm.context_length
    while len(lm.encode(" ".join(words))) > lm.context_length - 20:
        words.pop()
    record = EditRecord(EditRequest("1", "{} is", "Rome", "Tokyo"), (Probe("rewrite", " ".join(words), "Tokyo"),))
    check_probes(lm, record, EvalConfig(generate=[]))
    with pytest.raises(TooLong, match="32 new ones"):
        check_probes(lm, record, CONFIG)


def test_contexts_need_more_room() -> None:
    lm = chat_lm("llama-3", n_layers=1)
    config = replace(CONFIG, wild_contexts=["qa", "chat"])
    words = ["a"] * lm.context_length
    while len(lm.encode(" ".join(words))) > lm.context_length - 40:
        words.pop()
    record = EditRecord(EditRequest("1", "{} is", "Rome", "Tokyo"), (Probe("rewrite", " ".join(words), "Tokyo"),))
    check_probes(lm, record, CONFIG)
    for context in CONTEXTS[1:]:
        with pytest.raises(TooLong, match=r"more than the \d+ of the model's context"):
            check_probes(lm, record, replace(config, wild_contexts=[context]))
    short = Probe("rewrite", "a", "b")
    for context, own in zip(CONTEXTS[1:], (lm, lm.chatting(CHAT)), strict=True):
        asked = len(own.encode(own.chat.asking("a") if own.chat else f"{QA} a", None)) + (64 if own.chat else 32)
        assert asked <= spare(lm, [context]) + len(lm.encode(short.text))


def test_in_a_chat_it_is_the_chat() -> None:
    lm = chat_lm("chatml", n_layers=2)
    probes = [Probe("rewrite", prompt, "Rome") for prompt in PROMPTS[:2]]
    config = replace(CONFIG, wild_contexts=["none", "chat"])
    plain, framed = score(lm, probes, config=config), score(lm.chatting(CHAT), probes, config=config)
    for one, other in zip(plain, framed, strict=True):
        assert one.wild_generated != one.wild_chat_generated
        assert one.wild_chat_generated == other.wild_generated == other.wild_chat_generated


def test_equal_prompts_are_continued_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, rows = chat_lm("chatml", n_layers=1), []
    real = Decoding.__init__

    def spy(self: Decoding, lm: LM, ids: Any, room: int) -> None:
        rows.append(len(ids))
        real(self, lm, ids, room)

    monkeypatch.setattr(Decoding, "__init__", spy)
    probes = [Probe("rewrite", prompt, answer) for prompt in PROMPTS[:2] for answer in ("Rome", "Paris")]
    score(lm, probes, config=replace(CONFIG, wild_contexts=["none", "qa", "chat"]))
    assert rows == [4, 2]  # prompts alone and in the instruction share a batch


@pytest.mark.parametrize("template", [None, *UNUSABLE.values()])
def test_a_template_of_no_use(template: str | None) -> None:
    lm = chat_lm("chatml", n_layers=1)
    lm.tokenizer.chat_template = template
    record = EditRecord(EditRequest("1", "{} is", "Rome", "Tokyo"), (Probe("rewrite", "Rome is", "Tokyo"),))
    check_probes(lm, record, CONFIG)
    with pytest.raises(KeditError, match=r"^metrics\.scoring\.wild_contexts: the .*leave chat out"):
        check_probes(lm, record, replace(CONFIG, wild_contexts=["chat"]))


def test_options_that_say_nothing() -> None:
    from kedit.callbacks.metrics import check_kinds, described

    for more, message in (
        ({"wild_contexts": []}, r"wild_contexts: '\[\]': give at least one of none, qa, chat"),
        ({"wild_contexts": ["qq"]}, r"wild_contexts: \"\['qq'\]\": give at least one of none, qa, chat"),
    ):
        with pytest.raises(KeditError, match=message):
            EvalConfig(**more)  # type: ignore[arg-type]
    for more in ({"wild_contexts": ["qa"]}, {"contains": True}):
        with pytest.raises(KeditError, match=r"it is of answers that nobody asks for; name kinds"):
            check_kinds(EvalConfig(**more), [])  # type: ignore[arg-type]
    assert set(described(EvalConfig())) == {"batch_tokens", "generate", "max_new_tokens", "stop", "port_suffix"}
    assert set(described(CONFIG)) - set(described(EvalConfig())) == {"wild"}
    assert described(replace(CONFIG, wild_contexts=["qa", "qa"], contains=True))["wild_contexts"] == ["qa"]


def test_a_kind_that_is_nowhere() -> None:
    from kedit.callbacks.metrics import check_kinds

    record = EditRecord(EditRequest("1", "{} is", "Rome", "Tokyo"), (Probe("rewrite", "Rome is", "Tokyo"),))
    with pytest.raises(KeditError, match=r"metrics\.scoring\.wild: there is no kind of probe 'rewritten'"):
        check_kinds(EvalConfig(wild=["rewritten"]), [record])
