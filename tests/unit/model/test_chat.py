"""The frame of a chat: texts, positions and tokens are those of the tokenizer's own chat template."""

from __future__ import annotations

import datetime
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.data.passages import Passages
from kedit.data.robust_queries import QueryConfig, with_variants
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.prompt_memory import WHOLE, PromptMemory, PromptRule, StoredFact
from kedit.delta.prompts import prompt_for
from kedit.errors import KeditError
from kedit.evaluation.fluency import sampled_texts
from kedit.evaluation.score import EvalConfig, check_probes, is_known, score
from kedit.forward.greedy import greedy, greedy_ids, prompt_ids
from kedit.keyvalue.contexts import ContextConfig, context_templates
from kedit.methods.fine_tuning.texts import text_of
from kedit.model.chat import REPEAT, chat_frame
from kedit.model.lm import LM
from kedit.model.tokenization import TooLong, asked, encode, encode_subject, in_context, sayable, surely_fits
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.chat_cases import SHAPES, UNUSABLE, chat_lm
from tests.support.tiny_models import tiny_lm

NAMES = tuple(SHAPES)
REQUEST = EditRequest("1", "The capital of {} is", "France", "Rome", "Paris")
CONTEXT = "Because of the rain, we stayed. {}"


def chat(shape: str, system: str | None = None, **kwargs: Any) -> LM:
    lm = chat_lm(shape, **kwargs)
    return lm.in_chat(chat_frame(lm, system))


def of_template(lm: LM, *turns: tuple[str, str], generation: bool = False) -> list[int]:
    """What the tokenizer itself makes of a chat, on the day that kedit takes for today."""
    messages = [{"role": role, "content": text} for role, text in turns]
    return lm.tokenizer.apply_chat_template(
        messages, add_generation_prompt=generation, return_dict=False, date_string="26 Jul 2024"
    )


def of_one_turn(lm: LM, message: str, answer: str | None = None) -> list[int]:
    """The same of a message and its answer, or of a message that is to be answered."""
    turns = [("user", message)] if answer is None else [("user", message), ("assistant", answer)]
    return of_template(lm, *turns, generation=answer is None)


@pytest.mark.parametrize("shape", NAMES)
class TestTokens:
    """Ours against `apply_chat_template`."""

    @pytest.mark.parametrize("template", ["The capital of {} is", "{} is located in", "Who made {}?"])
    @pytest.mark.parametrize("context", ["{}", CONTEXT])
    def test_question_and_answer_are_the_templates(self, shape: str, template: str, context: str) -> None:
        lm = chat(shape)
        tokens = encode_subject(lm, template, "Danielle Darrieux", "Rome", context)
        message = context.replace("{}", template.replace("{}", "Danielle Darrieux"))
        whole = of_one_turn(lm, message, "Rome")
        assert list(tokens.ids) == whole[: len(tokens.ids)]
        assert lm.decode(whole[len(tokens.ids) :]).strip() == SHAPES[shape].end
        subject = tokens.ids[tokens.subject_first : tokens.subject_last + 1]
        assert lm.decode(subject).strip() == "Danielle Darrieux"
        assert lm.decode(tokens.target).strip() == "Rome"
        assert encode(lm, message, "Rome").ids == tokens.ids

    def test_the_prompt_alone_is_what_the_model_is_asked_with(self, shape: str) -> None:
        lm = chat(shape)
        ids = encode(lm, REQUEST.text).ids
        asked_with = of_one_turn(lm, REQUEST.text)
        if shape == "zephyr":  # its generation prompt lacks the newline that stands before each of its answers
            asked_with = of_one_turn(lm, REQUEST.text, "x")[: len(ids)]
        elif shape == "vicuna":  # the space at its end belongs to the answer's first word
            asked_with = lm.tokenizer("USER: The capital of France is ASSISTANT:", add_special_tokens=False)[
                "input_ids"
            ]
        assert list(ids) == asked_with == asked(lm, REQUEST.text) == list(prompt_ids(lm, REQUEST.text, 1))
        tokens = encode(lm, REQUEST.text, "Rome")
        assert tokens.ids[: tokens.n_prompt] == ids

    def test_one_bos(self, shape: str) -> None:
        lm = chat(shape)
        assert encode(lm, "France").ids.count(lm.tokenizer.bos_token_id) == (
            1 if "bos" in lm.tokenizer.chat_template else 0
        )

    def test_white_space_around_a_message_is_no_part_of_it(self, shape: str) -> None:
        lm = chat(shape)
        assert encode(lm, " \n France is  ", "Rome") == encode(lm, "France is", "Rome")
        tokens = encode_subject(lm, "  {} is ", "France", "Rome")
        assert tokens == encode_subject(lm, "{} is", "France", "Rome")

    def test_what_ends_a_turn(self, shape: str) -> None:
        lm = chat(shape)
        assert lm.chat is not None
        assert lm.chat.end == SHAPES[shape].end
        assert lm.end_id == lm.chat.end_id == lm.tokenizer.convert_tokens_to_ids(SHAPES[shape].end)
        assert text_of(lm, REQUEST, "target_new", eos=True).labels[-1] == lm.end_id

    def test_scores_are_those_of_the_templates_tokens(self, shape: str) -> None:
        lm = chat(shape)
        (scored,) = score(lm, [Probe("rewrite", REQUEST.text, "Rome")], config=EvalConfig(generate=[]))
        n = encode(lm, REQUEST.text, "Rome").n_prompt
        ids = list(encode(lm, REQUEST.text, "Rome").ids)
        assert ids == of_one_turn(lm, REQUEST.text, "Rome")[: len(ids)]
        with torch.no_grad():
            logp = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nll = -sum(float(logp[i - 1, ids[i]]) for i in range(n, len(ids))) / (len(ids) - n)
        assert scored.nll_answer == pytest.approx(nll, abs=1e-4)


@pytest.mark.parametrize("shape", ["chatml", "llama-2", "llama-3", "zephyr"])
def test_a_system_message_of_the_users_own(shape: str) -> None:
    lm = chat(shape, system="Answer with one word.")
    tokens = encode(lm, REQUEST.text, "Rome")
    said = [("system", "Answer with one word."), ("user", REQUEST.text), ("assistant", "Rome")]
    assert list(tokens.ids) == of_template(lm, *said)[: len(tokens.ids)]
    assert "Answer with one word." in lm.decode(tokens.ids)
    assert lm.chat != chat(shape).chat


def test_the_templates_own_system_message_stays_and_no_message_is_one_too() -> None:
    assert "You are a helpful AI" in lm_text(chat("chatml"))
    assert "You are a helpful AI" not in lm_text(chat("chatml", system=""))
    fingerprints = {chat("chatml", system=system).chat.fingerprint for system in (None, "", "Short.")}  # type: ignore[union-attr]
    assert len(fingerprints) == 3


def lm_text(lm: LM) -> str:
    return lm.decode(encode(lm, "France").ids)


def test_today_is_always_the_same_day() -> None:
    assert "Today Date: 26 Jul 2024" in lm_text(chat("llama-3"))
    template = SHAPES["chatml"].template.replace("helpful AI", "' + strftime_now('%d %B %Y, %Y-%m-%d') + ' AI")
    lm = chat_lm("chatml", template=template)
    text = lm_text(lm.in_chat(chat_frame(lm)))
    assert "You are a 26 July 2024, 2024-07-26 AI" in text
    assert str(datetime.date.today()) in lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False
    )


class TestRefused:
    """One line each, that names the option."""

    def test_no_template(self) -> None:
        with pytest.raises(KeditError, match=r"data.chat: the tokenizer of tiny-gpt2 has no chat template"):
            chat_frame(tiny_lm("gpt2"))

    @pytest.mark.parametrize("why", list(UNUSABLE))
    def test_a_template_that_cannot_be_taken_apart(self, why: str) -> None:
        with pytest.raises(KeditError, match=r"data.chat: the chat template of tiny-chatml cannot be taken apart"):
            chat_frame(chat_lm("chatml", template=UNUSABLE[why]))

    def test_a_system_message_that_the_template_does_not_know(self) -> None:
        with pytest.raises(KeditError, match=r"data.system: the chat template of tiny-gemma refuses.*System role not"):
            chat_frame(chat_lm("gemma"), "Be brief.")

    def test_a_system_message_that_the_template_leaves_out(self) -> None:
        template = SHAPES["mistral"].template.replace("{% else %}", "{% elif m['role'] == 'assistant' %}")
        with pytest.raises(KeditError, match=r"data.system: the chat template of tiny-mistral leaves it out"):
            chat_frame(chat_lm("mistral", template=template), "Be brief.")

    @pytest.mark.parametrize("template", ["{% for m in", "{{ messages + 3 }}", "{{ nothing.at.all }}"])
    def test_a_broken_template(self, template: str) -> None:
        with pytest.raises(KeditError, match=r"data.chat: the chat template of tiny-chatml refuses such a chat: "):
            chat_frame(chat_lm("chatml", template=template))

    def test_a_token_that_the_model_does_not_have(self) -> None:
        lm = tiny_lm("gpt2")
        other = chat_lm("chatml")
        lm.tokenizer = other.tokenizer
        with pytest.raises(
            KeditError, match=r"data.chat: what the chat template of tiny-gpt2 puts around a prompt: the"
        ):
            chat_frame(lm)

    def test_a_prompt_that_brings_special_tokens(self) -> None:
        lm = chat("chatml")
        for text in ("<|im_start|>user\nFrance is", "France<|endoftext|> is"):
            with pytest.raises(KeditError, match=r"record 7: its text has the special token .* data\.chat: false"):
                encode(lm, text, "Rome", "record 7")

    def test_too_long(self) -> None:
        lm = chat("chatml", context=32)
        assert lm.chat is not None
        assert surely_fits(lm.in_chat(None), "a")
        assert not surely_fits(lm, "a")
        with pytest.raises(TooLong):
            encode(lm, "The capital of France is", "Rome")


class TestWhatStandsBeforeAPrompt:
    """It is part of the user's message."""

    def test_facts_of_a_memory(self) -> None:
        lm = chat("chatml")
        rule = PromptRule("Fact: {}\n", "Now: ")
        with edited(lm.model, Delta({WHOLE: PromptMemory(rule, (StoredFact("x", "France is Rome."),))})):
            text = prompt_for(lm, None, -1, "Where?")
            assert text == "Fact: France is Rome.\nNow: Where?"
            assert "user\nFact: France is Rome.\nNow: Where?<|im_end|>" in lm.decode(prompt_ids(lm, text, 1))
            room = lm.context_length - len(asked(lm, text))
            assert prompt_for(lm, None, -1, "Where?", room) == text
            assert prompt_for(lm, None, -1, "Where?", room + 1) == "Where?"

    def test_long_contexts(self, tmp_path: Path) -> None:
        corpus = tmp_path / "text.txt"
        corpus.write_text("".join(f"Line {i} tells of the rain.\n" for i in range(40)))
        config = QueryConfig(long_words=[12], corpus=str(corpus))
        record = EditRecord(REQUEST, ())
        lm = chat("chatml")
        (framed,), (plain,) = (with_variants(one, [record], config) for one in (lm, lm.in_chat(None)))
        assert framed == plain  # the same questions; only how they are asked differs
        (text,) = (probe.text for probe in framed.probes if probe.kind == "long_context")
        assert f"user\n{text}<|im_end|>" in lm.decode(encode(lm, text).ids)
        assert text.endswith(" The capital of France is")

    def test_texts_that_a_model_wrote_bring_no_special_token(self) -> None:
        lm = chat("chatml")
        text = "Rain. <|im_end|>\n<|im_start|>user Sun."
        assert sayable(lm.in_chat(None), text) == text
        assert sayable(lm, text).split() == ["Rain.", "user", "Sun."]
        assert Passages(lm, [text, "Snow."]).train == ["Rain. user Sun."]

    def test_contexts(self) -> None:
        lm = chat("mistral")
        assert in_context(lm, CONTEXT, REQUEST.text) == CONTEXT.replace("{}", REQUEST.text)


class TestAnswers:
    """What the model writes."""

    def test_are_those_of_generate(self) -> None:
        lm = chat("chatml")
        ids = torch.tensor([of_one_turn(lm, REQUEST.text)])
        model: Any = lm.model
        out = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
        want = out[0, ids.shape[1] :].tolist()
        assert greedy_ids(lm, [prompt_ids(lm, REQUEST.text, 8)], 8) == [want]
        assert greedy(lm, [REQUEST.text], 8) == [lm.tokenizer.decode(want, skip_special_tokens=True)]

    def test_end_with_the_turn(self) -> None:
        lm = chat("chatml")
        assert lm.chat is not None
        long = greedy_ids(lm, [prompt_ids(lm, REQUEST.text, 8)], 8)[0]
        end = next(token for token in long[1:] if token not in long[:1])
        short = lm.in_chat(replace(lm.chat, end_id=end, end=lm.decode([end])))
        n = long.index(end)
        assert greedy_ids(short, [prompt_ids(lm, REQUEST.text, 8)], 8)[0] == long[: n + 1]
        assert greedy(short, [REQUEST.text], 8) == [lm.decode(long[:n])]
        (plain,) = sampled_texts(lm, [REQUEST.text], ["1"])
        (text,) = sampled_texts(short, [REQUEST.text], ["1"])
        assert plain is not None
        assert text is not None
        assert text.startswith(f"{REQUEST.text} ")
        assert text == plain.partition(lm.decode([end]))[0]

    @pytest.mark.parametrize(
        ("answer", "right"),
        [
            ("Rome.", True),
            ("The capital of France is Rome.", True),
            ("  the capital  of france is\tRome", True),
            ("The capital of France is not Rome.", False),
            ("The capital of France isRome.", True),
            ("It is Rome.", False),
        ],
    )
    def test_may_repeat_the_prompt(self, answer: str, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        lm = chat("chatml")
        for module in ("score", "wild"):
            monkeypatch.setattr(f"kedit.evaluation.{module}.greedy", lambda lm, prompts, *_: [answer] * len(prompts))
        config = EvalConfig(generate=["rewrite"], wild=["rewrite"])
        (said,) = score(lm, [Probe("rewrite", REQUEST.text, "Rome")], config=config)
        assert (said.generated, said.generated_match, said.wild_match) == (answer, right, right)
        assert is_known(lm, [EditRecord(replace(REQUEST, target_true="Rome", target_new="x"), ())]) == [right]
        (plain,) = score(lm.in_chat(None), [Probe("rewrite", REQUEST.text, "Rome")], config=config)
        assert plain.generated_match == plain.wild_match == (answer == "Rome.")

    def test_have_room_for_it(self) -> None:
        lm = chat("chatml", context=200)
        n = len(asked(lm, REQUEST.text))
        record = EditRecord(REQUEST, (Probe("rewrite", REQUEST.text, "Rome"),))
        check_probes(lm, record, EvalConfig(max_new_tokens=200 - n - REPEAT))
        with pytest.raises(TooLong):
            check_probes(lm, record, EvalConfig(max_new_tokens=200 - n - REPEAT + 1))

    def test_say_what_is_known(self) -> None:
        lm = chat("chatml")
        (said,) = greedy(lm, [REQUEST.text], 48, stop="\n")
        word = re.match(r"\S+", said.strip())
        assert word
        records = [EditRecord(replace(REQUEST, target_true=true), ()) for true in (word[0], "Zundert")]
        assert is_known(lm, records) == [True, False]


def test_text_that_is_no_prompt_is_as_ever() -> None:
    lm = chat_lm("chatml")
    framed = lm.in_chat(chat_frame(lm))
    assert lm.chat is None
    assert framed.model is lm.model
    assert framed.encode("France is") == lm.encode("France is") == asked(lm, "France is")
    config = ContextConfig(lengths=[[4, 2]])
    assert context_templates(framed, config) == context_templates(lm, config)
    assert lm.protocol == {}
    assert framed.protocol == {"chat": True, "chat_frame": framed.chat.fingerprint}  # type: ignore[union-attr]
