"""What stands between a prompt and its answer, special tokens that a text brings, braces that mean themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.cli import main
from kedit.data import read_counterfact, read_records
from kedit.data.datasets import Records
from kedit.data.robust_queries import QueryConfig, with_variants
from kedit.errors import KeditError
from kedit.evaluation.score import EvalConfig, begins_with, contains, is_known, score
from kedit.forward.greedy import greedy
from kedit.forward.replay import Site
from kedit.keyvalue import NLL, ValueObjective
from kedit.model.tokenization import encode, encode_subject, own_bos
from kedit.request import EditRecord, EditRequest, Probe, with_joiner
from kedit.text.prompts import Joiner, between, escaped, fill, is_unspaced, joined, opens, slots, split
from tests.support.device import ACCELERATOR
from tests.support.tiny_models import tiny_lm

BPE = "<|endoftext|>"  # BOS of the tiny tokenizer that adds none
BOS = "<|begin|>"  # of the tiny tokenizer that adds it


@pytest.mark.parametrize(
    ("prompt", "answer", "seam"),
    [
        ("The capital of France is", "Paris", " "),
        ("The year was", "1969", " "),
        ("It began in 1853", "Paris", " "),
        ("Where was Marie Curie born?", "Warsaw", " "),
        ("Who wrote Yahoo!?", "Jerry Yang", " "),
        ("Answer:", "Paris", " "),
        ("Paris, or", "Rome", " "),
        ("<|im_start|>assistant\n", "Paris", ""),
        ("Q: Where?\nA:\t", "Paris", ""),
        ("The capital is ", "Paris", ""),
        ("Réponse :\u00a0", "Paris", ""),
        ('The capital of France is the city called "', "Paris", ""),
        ("It is called '", "Paris", ""),
        ("It is called \u201c", "Paris", ""),
        ("Il dit «", "oui", ""),
        ("sagte „", "ja", ""),
        ("The capital of France (", "Paris", ""),
        ("The list [", "1", ""),
        ("https://en.wikipedia.org/wiki/", "Paris", ""),
        ('{"city":"', "Paris", ""),
        ('He said "yes"', "and", " "),
        ('A screen of 12"', "costs", " "),
        ("the dogs'", "owner", " "),
        ("He sings ‘Thriller’", "often", " "),
        ("Er sagt „Wort“", "oft", " "),
        ("She came (late)", "and", " "),
        ("法国的首都是", "罗马", ""),
        ("法国的首都是", "Paris", " "),
        ("The capital is", "罗马", " "),
        ("日本の首都は", "東京", ""),
        ("เมืองหลวงคือที่", "โรม", ""),
        ("대한민국의 수도는", "서울", " "),  # Korean has spaces
        ("问：法国首都在哪里？答：", "罗马", ""),
        ("他说「", "罗马", ""),
        ("", "Paris", ""),
    ],
)
def test_what_stands_between(prompt: str, answer: str, seam: str) -> None:
    assert between(prompt, answer) == seam
    assert joined(prompt, answer) == prompt + seam + answer
    assert between(prompt, answer, "none") == ""
    assert between(prompt, answer, "space") == ("" if not prompt or prompt[-1].isspace() else " ")


def test_letters_of_scripts_without_spaces() -> None:
    assert all(map(is_unspaced, "法ひカ\uff76ก\u0e49ລខမ་ཀ"[:9]))
    assert not any(map(is_unspaced, "aé한1。 ß\u0301"))
    assert not is_unspaced("")
    assert opens('a "')
    assert not opens('"a"')
    assert not opens("")


def test_templates() -> None:
    assert slots("{} of {}") == 2
    assert slots("{{}} of {}") == 1
    assert slots("{{}}") == 0
    assert split("a {{}} b {} c {{}}") == ("a {} b ", " c {}")
    assert fill("a {{}} b {}", "X") == "a {} b X"
    for text in ("plain", "a {} b", "{}{}", "{} x {}"):
        assert slots(escaped(text)) == 0
        assert fill(escaped(text), "X") == text


def write(tmp_path: Path, *records: dict[str, Any]) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


FACT: dict[str, Any] = {"case_id": "ok", "prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}
LONG: dict[str, Any] = {"case_id": "long", "prompt": "the " * 50 + "{} is"}
CHAT = "<|begin|>user\nWhere is the capital of France?<|end|>\n<|begin|>assistant\n"


def test_readers_keep_newlines_at_the_end_of_prompts(tmp_path: Path) -> None:
    texts = {"paraphrases": ["Q: France?\nA:\n", "France "], "neighbors": [{"prompt": "Q?\n", "answer": "x"}]}
    given = {"prompt": CHAT, "subject": "France", "target_new": "Rome\n"} | texts
    for read in (read_records, read_counterfact):
        (record,) = read(write(tmp_path, given))
        assert record.request.text == CHAT
        assert record.request.target_new == "Rome"
        assert [probe.text for probe in record.probes] == [CHAT, "Q: France?\nA:\n", "France", "Q?\n"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("prompt", ["Say: France\n", 'The city called France or "', "(France/", "France is"])
def test_the_texts_that_are_edited_and_measured_are_those(family: str, prompt: str) -> None:
    lm = tiny_lm(family)
    tokens = encode_subject(lm, prompt.replace("France", "{}"), "France", "Rome")
    whole = lm.encode(joined(prompt, "Rome"))
    assert list(tokens.ids) == whole
    assert tokens == encode_subject(lm, prompt.replace("France", "{}"), "France", "Rome", joiner="auto")
    (scored,) = score(lm, [Probe("rewrite", prompt, "Rome")], config=EvalConfig(generate=[]))
    with torch.no_grad():
        logp = lm.model(torch.tensor([whole])).logits[0].log_softmax(-1)
    at = range(tokens.n_prompt, len(whole))
    assert scored.nll_answer == pytest.approx(-sum(float(logp[i - 1, whole[i]]) for i in at) / len(at), abs=1e-4)


def test_known_asks_behind_the_prompt_as_it_is() -> None:
    lm = tiny_lm("gpt2")
    prompt = "The capital of France:\n"
    with torch.no_grad():
        best = int(lm.model(torch.tensor([lm.encode(prompt)])).logits[0, -1].argmax())
    answer = lm.decode([best])
    assert not answer[:1].isspace()  # or the test would show nothing
    request = EditRequest("1", prompt.replace("France", "{}"), "France", "Rome", answer)
    assert lm.encode(prompt + answer) == [*lm.encode(prompt), best]
    assert is_known(lm, [EditRecord(request, ())]) == [True]
    assert is_known(lm, [with_joiner(EditRecord(request, ()), "space")]) == [
        True
    ]  # behind a newline, there is none either


@pytest.mark.parametrize(("joiner", "text"), [("space", '"a " Rome'), ("none", '"a "Rome'), ("auto", '"a "Rome')])
def test_the_user_decides(joiner: Joiner, text: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": '"a "', "subject": "a", "target_new": "Rome", "paraphrases": ["a"]})
    data = Records(str(path), joiner=joiner)
    (record,) = data.everything
    assert record.request.stating("Rome") == text if joiner != "auto" else True
    assert {probe.joiner for probe in record.probes} == {joiner}
    lm = tiny_lm("gpt2")
    ids = encode(lm, '"a "', "Rome", joiner=joiner).ids
    assert lm.decode(ids) == (text if joiner != "auto" else '"a " Rome')  # it closes
    assert data.describe()["joiner"] == joiner
    assert data.describe()["joints"] == {"none" if joiner == "none" else "space": 1}


def test_the_fingerprint_of_data_does_not_depend_on_the_usual_joiner(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "a is", "subject": "a", "target_new": "Rome"})
    prints = {joiner: Records(str(path), joiner=joiner).fingerprint for joiner in ("auto", "space", "none")}  # type: ignore[arg-type]
    assert len(set(prints.values())) == 3


def test_words_end_where_scripts_write_spaces() -> None:
    assert begins_with("罗马是意大利的首都", ["罗马"])
    assert contains("首都是罗马，", ["罗马"])
    assert contains("首都是罗马尼亚", ["罗马"])
    assert begins_with(" 1949年", ["1949"])
    assert not begins_with("19490", ["1949"])
    assert not begins_with("Englishman", ["English"])
    assert begins_with("English, of course", ["English"])
    assert not contains("the Englishman", ["English"])
    assert contains("an English-speaking", ["english"])
    assert contains("Englishman or English", ["English"])
    assert begins_with("Beyonce\u0301", ["Beyonc\u00e9"])
    assert not begins_with("Beyonce\u0301", ["Beyonce"])
    assert begins_with("「罗马」", ["罗马"])


def test_an_answer_with_a_newline_can_be_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    stops = []

    def says(lm: Any, prompts: list[str], most: int, lanes: Any, bank: Any, stop: str, *_: Any) -> list[str]:
        stops.append((prompts, stop))
        return [re.split(f"[{stop}]" if stop else "$", " Lisbon\nPortugal\nmore")[0] for _ in prompts]

    monkeypatch.setattr("kedit.evaluation.score.greedy", says)
    probes = [Probe("rewrite", "Where:\n", "Lisbon\nPortugal"), Probe("rewrite", "Where is", "Lisbon")]
    found = score(tiny_lm("gpt2"), probes)
    assert [one.generated_match for one in found] == [True, True]
    assert [one.generated for one in found] == [" Lisbon\nPortugal\nmore", " Lisbon"]
    assert stops == [(["Where:\n"], ""), (["Where is"], "\n")]


def test_what_is_generated_does_not_depend_on_the_probes_beside_it() -> None:
    lm = tiny_lm("gpt2")
    short = Probe("rewrite", "The capital of France is", "Rome")
    long = Probe("rewrite", "Berlin is", "a city in Germany " * 6)
    alone = score(lm, [short])[0].generated
    assert score(lm, [short, long])[0].generated == alone


def test_spaces_at_a_prompts_end_are_not_continued_from() -> None:
    lm = tiny_lm("llama")
    assert greedy(lm, ["The capital of France is  "], 5) == greedy(lm, ["The capital of France is"], 5)


class TestSpecialTokens:
    """Texts that bring their own."""

    @pytest.mark.parametrize(("family", "bos"), [("llama", "<s>"), ("opt", BOS)])
    def test_one_bos(self, family: str, bos: str) -> None:
        lm = tiny_lm(family)
        assert lm.adds_bos
        plain, brought = lm.encode("Rome is"), lm.encode(f"{bos}Rome is")
        assert brought.count(brought[0]) == 1
        assert brought[0] == plain[0]
        tokens = encode_subject(lm, f"{bos}{{}} is", "Rome", "old")
        assert lm.decode(tokens.ids[tokens.subject_first : tokens.subject_last + 1]).strip() == "Rome"

    def test_contexts_stand_behind_the_bos(self) -> None:
        lm = tiny_lm("opt")
        inside = encode_subject(lm, f"{BOS}The capital of {{}} is", "France", "Rome", context="Yes. {}")
        assert inside.ids == encode_subject(lm, "The capital of {} is", "France", "Rome", context="Yes. {}").ids
        assert lm.decode(inside.ids[inside.subject_first : inside.subject_last + 1]).strip() == "France"

    def test_nothing_stands_before_a_chat(self) -> None:
        lm = tiny_lm("opt")
        template = CHAT.replace("France", "{}")
        assert own_bos(lm, CHAT) is None
        assert encode_subject(lm, template, "France", "Rome", context="Yes. {}") == encode_subject(
            lm, template, "France", "Rome"
        )
        record = EditRecord(EditRequest("chat", template, "France", "Rome"), ())
        with pytest.raises(KeditError, match=r"^record chat: its prompt brings special tokens .*no long text"):
            with_variants(lm, [record], QueryConfig(corpus=__file__))
        objective = ValueObjective(lm, [record.request], ["{}", "Yes. {}"], [Site("mlp", 1)], [NLL()])
        assert objective(torch.zeros(1, lm.d_model))["nll"].isfinite().all()

    def test_plain_prompts_have_none(self) -> None:
        assert own_bos(tiny_lm("opt"), "The capital") == ""
        assert own_bos(tiny_lm("gpt2"), BPE + "The capital") == BPE


class TestBraces:
    """A `{}` that is no slot."""

    def both(self, tmp_path: Path, prompt: str, **more: Any) -> EditRecord:
        given = {"prompt": prompt, "subject": "Guido", "target_new": "Rome"} | more
        return read_records(write(tmp_path, given))[0]

    def test_both_readings_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(KeditError, match=r"and names the subject 'Guido' as well; write '\{subject\}'"):
            self.both(tmp_path, "In Python, {} is what Guido writes for")

    @pytest.mark.parametrize(
        ("prompt", "text", "template"),
        [
            ("In Python, {} is what {subject} writes for", "In Python, {} is what Guido writes for", None),
            ("In Python, {{}} is what Guido writes for", "In Python, {} is what Guido writes for", None),
            ("In Guido's, {subject} is", "In Guido's, Guido is", "In Guido's, {} is"),
            ("{} is not Guidos", "Guido is not Guidos", "{} is not Guidos"),  # part of a word is no other reading
        ],
    )
    def test_the_user_says_which(self, tmp_path: Path, prompt: str, text: str, template: str | None) -> None:
        request = self.both(tmp_path, prompt).request
        assert request.text == text
        assert template is None or request.prompt == template
        lm = tiny_lm("gpt2")
        tokens = encode_subject(lm, request.prompt, "Guido", "Rome")
        assert lm.decode(tokens.ids[: tokens.n_prompt]) == text
        assert lm.decode(tokens.ids[tokens.subject_first : tokens.subject_last + 1]).strip() == "Guido"

    def test_probes_too(self, tmp_path: Path) -> None:
        record = self.both(tmp_path, "{} is", paraphrases=["{{}} and {}", "{} and {subject}", "Guido {{}}"])
        assert [probe.text for probe in record.probes][1:] == ["{} and Guido", "{} and Guido", "Guido {}"]

    def test_official_templates_are_templates(self, tmp_path: Path) -> None:
        rewrite = {"prompt": "Guido likes {} and", "subject": "Guido", "target_new": {"str": "Rome"}}
        (record,) = read_counterfact(write(tmp_path, {"case_id": 1, "requested_rewrite": rewrite}))
        assert record.request.text == "Guido likes Guido and"


class TestTooLong:
    """A record that does not fit behind a context, or with a probe, fails; the run goes on."""

    @pytest.fixture
    def run(self, tiny_folder: Callable[..., str], tmp_path: Path) -> Callable[..., Path]:
        def run(records: list[dict[str, Any]], regime: str = "single", *more: str) -> Path:
            options = {
                "model": "ROME",
                "edit.regime": regime,
                "lm.name": tiny_folder("llama", context=64),
                "model.layer": 1,
                "model.mom2_adjustment": "false",
                "model.v_num_grad_steps": 3,
                "model.contexts.lengths": "[[10, 2]]",
                "data": "Records",
                "data.path": write(tmp_path, *records),
                "trainer.accelerator": ACCELERATOR,
                "run.root": tmp_path / "runs",
                "run.name": f"{regime}{len(more)}",
            }
            main(["fit", *(word for key, value in options.items() for word in (f"--{key}", str(value))), *more])
            return tmp_path / "runs" / f"{regime}{len(more)}"

        return run

    @pytest.mark.parametrize("regime", ["single", "sequential"])
    def test_run_goes_on(self, run: Callable[..., Path], rows_of: Callable[[Path], Any], regime: str) -> None:
        probe = {"case_id": "probe", "neighbors": [{"prompt": "so " * 60, "answer": "far"}]}
        records = [FACT, FACT | LONG, FACT | probe, FACT | {"case_id": "last"}]
        folder = run(records, regime)
        rows = rows_of(folder)
        failed = {row["case_id"]: row["error"] for row in rows if row["status"] == "failed"}
        assert list(failed) == ["long", "probe"]
        assert failed["long"].startswith("record long, behind a context of the edit: ")
        assert failed["probe"].startswith("record probe, a neighborhood probe: ")
        assert {row["case_id"] for row in rows if row["status"] == "edited"} == {"ok", "last"}
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["failed"] == failed
        assert all(row["probes"][0]["after"] is None for row in rows if row["status"] == "failed")
        # what the others are is what they would be without the two
        alone = rows_of(run([records[0], records[3]], regime, "--data.joiner", "auto"))
        assert [row["probes"] for row in rows if row["status"] == "edited"] == [row["probes"] for row in alone]

    def test_a_chat_is_edited_alone_and_that_is_said(
        self, run: Callable[..., Path], rows_of: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        chat = {"case_id": "chat", "prompt": "<s>a</s>\n{}:\n"}
        rows = rows_of(run([FACT, FACT | chat, FACT | chat | {"case_id": "other"}]))
        assert [row["status"] for row in rows] == ["edited"] * 3
        joiners = {row["case_id"]: row["request"]["joiner"] for row in rows}
        assert joiners == {"ok": "space", "chat": "none", "other": "none"}
        assert caplog.text.count("no context of the edit is put before it") == 1
        assert "record chat: its prompt brings special tokens" in caplog.text

    def test_resumed_run_has_them_once(self, run: Callable[..., Path], rows_of: Callable[[Path], Any]) -> None:
        records = [FACT, FACT | LONG, FACT | {"case_id": "last"}]
        folder = run(records, "sequential", "--run.resume", "true")
        whole = rows_of(folder)
        (folder / "summary.json").unlink()
        run(records, "sequential", "--run.resume", "true")
        assert rows_of(folder) == whole

    def test_nothing_fits(self, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            run([FACT | LONG])
        assert stop.value.code == 2
        assert "no record fits into the model's context; record long, behind a context" in capsys.readouterr().err
