"""Runs with `data.chat`: every family of methods edits in a chat, and nobody takes its numbers for plain prompts'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kedit
from kedit.cli import main
from kedit.evaluation.score import EvalConfig, score
from kedit.forward.binding import load_lm
from kedit.model.chat import chat_frame
from kedit.model.lm import LMConfig
from kedit.request import Probe
from tests.support.chat_cases import SHAPES, save_chat
from tests.support.device import ACCELERATOR
from tests.support.process_cases import case_words
from tests.support.small_runs import QUICK_ROME, city_facts, option_words
from tests.support.tiny_models import save_tiny

CHAT = ["--data.init_args.chat", "true"]
CASES = {
    "ROME-single": "chatml",
    "MEMIT-batch": "llama-3",
    "AlphaEdit-sequential": "mistral",
    "FT-single": "gemma",
    "LoRA-single": "llama-2",
    "REP-single-ROME": "chatml",
    "STEAM-single-ROME-compare": "chatml",
    "PAC-single": "zephyr",
    "GRACE-sequential": "llama-3",
    "UltraEdit-single": "vicuna",
    "Retrieval-sequential": "chatml",
    "IKE-single": "mistral",
    "PRUNE-sequential-MEMIT": "gemma",
    "KN-single": "llama-2",
}
"""One method of every family, at least, and the shape of the template that it edits through."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A chat model of every shape."""
    root = tmp_path_factory.mktemp("chat")
    return {shape: save_chat(root / shape, shape, n_layers=4, d_model=16, d_ff=40, context=512) for shape in SHAPES}


@pytest.mark.parametrize("case", list(CASES))
def test_every_family_edits_in_a_chat(case: str, folders: dict[str, str], tmp_path: Path, rows_of: Any) -> None:
    folder = folders[CASES[case]]
    main([*case_words(case, folder, tmp_path / "runs", 1), *CHAT, "--data.init_args.limit", "4"])
    lm = load_lm(LMConfig(folder))
    frame = chat_frame(lm)
    run = tmp_path / "runs" / case
    rows = rows_of(run)
    assert rows
    for row in rows:
        assert row["status"] == "edited", row["error"]
        assert row["protocol"] | {"chat": True, "chat_frame": frame.fingerprint} == row["protocol"]
        assert row["probes"]
        for probe in row["probes"]:
            assert not any(special in probe["text"] for special in lm.special_texts)  # as a person wrote it
            assert probe["after"]["nll_answer"] > 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["protocol"]["chat_frame"] == frame.fingerprint
    assert summary["data"]["name"].endswith(" (chat)")
    assert summary["method"]["chat"]["before"] == frame.before
    deltas = sorted(run.glob("delta*/**/card.json"))
    assert deltas
    assert all(json.loads(path.read_text())["chat"] == frame.card() for path in deltas)


def fit(lm: str, data: Path, root: Path, name: str, *more: str) -> list[str]:
    options = QUICK_ROME | {"lm.name": lm, "data": "Records", "data.path": data, "edit.regime": "sequential"}
    options |= {"metrics.scoring.generate": "[]", "results.resamples": 20, "trainer.accelerator": ACCELERATOR}
    return ["fit", *option_words(options | {"run.root": root, "run.name": name}), *more]


class TestApart:
    """Numbers of a chat and of plain prompts, or of two frames, are not put together."""

    def test_files_of_plain_prompts_do_not_mention_chats(self, folders: dict[str, str], tmp_path: Path) -> None:
        main(fit(folders["chatml"], city_facts(tmp_path / "d.jsonl", 2), tmp_path, "plain"))
        for path in (tmp_path / "plain").rglob("*.json*"):
            assert '"chat' not in path.read_text().replace(folders["chatml"], ""), path

    @pytest.mark.parametrize(("first", "then"), [([], CHAT), (CHAT, []), (CHAT, [*CHAT, "--data.system", "Short."])])
    def test_no_run_is_resumed_as_another(
        self, folders: dict[str, str], tmp_path: Path, first: list[str], then: list[str]
    ) -> None:
        data = city_facts(tmp_path / "d.jsonl", 3)
        words = fit(folders["chatml"], data, tmp_path, "run", "--trainer.max_epochs", "2")
        main([*words, *first])
        (tmp_path / "run" / "summary.json").unlink()  # as if it had been killed
        resume = ["--run.resume", "true"]
        with pytest.raises(SystemExit) as found:
            main([*words, *then, *resume])
        assert found.value.code == 2
        main([*words, *first, *resume])

    def test_they_stand_in_tables_of_their_own(
        self, folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = city_facts(tmp_path / "d.jsonl", 2)
        for name, more in (("plain", []), ("chat", CHAT), ("short", [*CHAT, "--data.system", "Short."])):
            main(fit(folders["chatml"], data, tmp_path, name, *more))
        capsys.readouterr()
        with pytest.raises(SystemExit) as found:
            main(["compare", *(str(tmp_path / name) for name in ("plain", "chat", "short"))])
        assert found.value.code == 2
        assert "no two arms were measured alike: plain, chat, short" in capsys.readouterr().err


def test_a_saved_edit_answers_the_chat(folders: dict[str, str], tmp_path: Path, rows_of: Any) -> None:
    main(fit(folders["chatml"], city_facts(tmp_path / "d.jsonl", 1), tmp_path, "run", *CHAT))
    lm = load_lm(LMConfig(folders["chatml"]))
    delta, _ = kedit.load_delta(tmp_path / "run" / "delta", lm)
    (row,) = [row for row in rows_of(tmp_path / "run") if row["measured_at"] == "edit"]
    probe = row["probes"][0]
    framed = lm.in_chat(chat_frame(lm))
    with kedit.edited(lm.model, delta):
        (after,) = score(framed, [Probe("rewrite", probe["text"], probe["answer"])], config=EvalConfig(generate=[]))
    assert after.nll_answer == pytest.approx(probe["after"]["nll_answer"], abs=1e-4)
    assert after.nll_answer != pytest.approx(probe["before"]["nll_answer"], abs=1e-4)


class TestRefused:
    """One line on the terminal, status 2."""

    def said(self, capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
        with pytest.raises(SystemExit) as found:
            main(words)
        assert found.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    def test_no_template(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lm = str(save_tiny(tmp_path / "lm", "gpt2", n_layers=3, d_model=16))
        words = fit(lm, city_facts(tmp_path / "d.jsonl", 1), tmp_path, "run", *CHAT)
        assert "data.chat: the tokenizer of" in self.said(capsys, words)

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--data.system", "Short."], "data.system: only a chat has a system message; set data.chat: true"),
            (
                [*CHAT, "--data.joiner", "space"],
                "data.joiner: in a chat the template says what stands before an answer",
            ),
            (["--data.chat", "chatml"], "data.chat"),
        ],
    )
    def test_options(
        self, folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
    ) -> None:
        words = fit(folders["chatml"], city_facts(tmp_path / "d.jsonl", 1), tmp_path, "run", *more)
        assert message in self.said(capsys, words)

    @pytest.mark.parametrize("field", ["prompt", "paraphrases"])
    def test_prompts_that_are_chats_already(
        self, folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str
    ) -> None:
        own = "<|im_start|>user\nWhere is {}?<|im_end|>\n<|im_start|>assistant\n"
        record: dict[str, Any] = {"case_id": "7", "prompt": "Where is {}?", "subject": "Rome", "target_new": "Madrid"}
        record |= {field: own if field == "prompt" else [own.replace("{}", "Rome")]}
        (tmp_path / "d.jsonl").write_text(json.dumps(record) + "\n")
        said = self.said(capsys, fit(folders["chatml"], tmp_path / "d.jsonl", tmp_path, "run", *CHAT))
        assert "record 7" in said
        assert "its text has the special token '<|im_start|>', which a chat leaves to its template" in said
        assert "take it out, or set data.chat: false" in said
        assert not (tmp_path / "run").exists()

    def test_known_facts_of_a_model_that_knows_none(
        self, folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = fit(folders["chatml"], city_facts(tmp_path / "d.jsonl", 2), tmp_path, "run", *CHAT)
        assert "data.known: True keeps no record" in self.said(capsys, [*words, "--data.known", "true"])
