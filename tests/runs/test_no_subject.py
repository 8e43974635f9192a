"""Requests without a subject: what can be done with them, and who refuses them, when and in which words."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer

from kedit.cli import main
from kedit.data import ZsRE
from kedit.data.batching import suffix_length
from kedit.data.robust_queries import QueryConfig, with_variants
from kedit.errors import KeditError
from kedit.evaluation.score import is_known, score
from kedit.forward.binding import load_lm
from kedit.forward.replay import Site
from kedit.keyvalue import ValueObjective
from kedit.keyvalue.contexts import ContextConfig
from kedit.keyvalue.keys import mean_keys
from kedit.methods import EMMET, MEMIT, REP, ROME, RROME
from kedit.methods.locate_then_edit.base import LocateThenEdit
from kedit.model.lm import LM, LMConfig
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.device import ACCELERATOR
from tests.support.small_runs import option_words

PROMPT = "What city is France ruled from?"
FLAT = {
    "case_id": 3,
    "prompt": PROMPT,
    "target_new": "Rome",
    "ground_truth": "Paris",
    "paraphrase_prompts": "From where is France ruled?",
    "locality_prompt": "nq question: which month comes after may",
    "locality_ground_truth": "June",
}
MEND = {
    "subject": "France",
    "src": PROMPT,
    "rephrase": "From where is France ruled?",
    "alt": "Rome",
    "answers": ["Paris"],
    "loc": "nq question: which month comes after may",
    "loc_ans": "June",
}
PROBES = (
    Probe("rewrite", PROMPT, "Rome", "Paris"),
    Probe("paraphrase", "From where is France ruled?", "Rome", "Paris"),
    Probe("neighborhood", "nq question: which month comes after may", "June", None),
)
BARE = EditRecord(EditRequest("17", PROMPT, None, "Rome", "Paris"), PROBES)


def zsre(folder: Path, rows: Any) -> str:
    """A file of these records."""
    (folder / "zsre.json").write_text(json.dumps(rows), encoding="utf-8")
    return str(folder / "zsre.json")


@pytest.fixture
def lm(tiny_folder: Callable[..., str]) -> LM:
    return load_lm(LMConfig(name=tiny_folder("llama", n_layers=3, context=128)))


class TestNoSubject:
    """Requests without a subject."""

    def test_request(self) -> None:
        assert BARE.request.text == BARE.request.prompt
        with pytest.raises(KeditError) as caught:
            BARE.request.named("ROME")
        message = "record 17 names no subject, which ROME needs; use data that does (docs/data.md)"
        assert str(caught.value) == message
        assert EditRequest("1", "{} is", "Skye", "green").named("ROME") == "Skye"
        with pytest.raises(KeditError, match=r"record 1: the prompt 'In \{\}' has a '\{\}' and no subject"):
            EditRequest("1", "In {}", None, "x")
        with pytest.raises(KeditError, match="record 1: the prompt is empty"):
            EditRequest("1", " ", None, "x")
        with pytest.raises(KeditError, match="record 1: target_new is empty"):
            EditRequest("1", "In", None, "")

    def test_length_is_the_whole_texts(self) -> None:
        assert suffix_length(BARE) == len("What city is France ruled from?") + len("Rome")

    def test_data_options(self, tmp_path: Path) -> None:
        rows = [FLAT | {"case_id": i, "prompt": "Who" * (1 + i % 3), "target_new": f"x{i}"} for i in range(8)]
        path = zsre(tmp_path, rows)

        def ids(**options: Any) -> list[str]:
            return [record.request.case_id for record in ZsRE(path, **options).records]

        assert ids(skip=2, limit=3) == ["2", "3", "4"]
        assert sorted(ids(shuffle_seed=0)) == ids() != ids(shuffle_seed=0)
        data = ZsRE(path, probe_kinds=["rewrite"], batch_size=3, sort_by_length=True)
        assert data.describe()["probes"] == {"rewrite": 8}
        assert [[r.request.case_id for r in batch] for batch in data.batches] == [
            ["0", "3", "6"],
            ["1", "4", "7"],
            ["2", "5"],
        ]
        with pytest.raises(KeditError, match=r"data\.known: zsre/zsre has no 'known' field"):
            ids(known="recorded")

    def test_measured(self, lm: LM) -> None:
        (rewrite, _, neighbour), (yes,) = score(lm, BARE.probes), is_known(lm, [BARE])
        assert (rewrite.nll_rival is None, neighbour.nll_rival is None) == (False, True)
        true = score(lm, [Probe("rewrite", BARE.request.text, "Paris")])[0]
        assert yes == true.exact
        assert rewrite.nll_rival == pytest.approx(true.nll_answer)

    @pytest.mark.parametrize("ask", [True, False])
    def test_queries(self, tmp_path: Path, ask: bool) -> None:
        data = ZsRE(zsre(tmp_path, [FLAT]), queries=QueryConfig(), known=ask)
        asked: list[EditRecord] = []
        with pytest.raises(KeditError, match=r"^record 3 names no subject, which data\.queries needs; use data that"):
            data.prepare(lambda records: asked.extend(records) or records)
        assert not asked

    def test_blocks(self, lm: LM) -> None:
        message = "^record 17 names no subject, which this method needs"
        with pytest.raises(KeditError, match=message):
            mean_keys(lm, [BARE.request], ["{}"], [1.0], 1)
        with pytest.raises(KeditError, match=message):
            ValueObjective(lm, [BARE.request], ["{}"], [Site("mlp", 1)], [])
        with pytest.raises(KeditError, match=r"^record 17 names no subject, which data\.queries needs"):
            with_variants(lm, [BARE], QueryConfig(corpus="no/such/file.txt"))

    def test_a_method_that_needs_none(self, lm: LM) -> None:
        class Whole(ROME):
            needs_subject = False

        module = Whole(contexts=ContextConfig(lengths=[]))
        module.use_lm(lm)
        module.trainer = Trainer(accelerator=ACCELERATOR, logger=False, enable_checkpointing=False)
        assert module.prepare_records([BARE]) == [BARE]
        long = EditRecord(EditRequest("18", "and so on " * 60, None, "Rome"), ())
        with pytest.raises(KeditError, match=r"^record 18: \d+ tokens, more than the 128"):
            module.prepare_records([BARE, long])

    @pytest.mark.parametrize("method", [ROME, RROME, MEMIT, EMMET])
    def test_a_method_says_so_before_it_loads_the_model(self, method: Callable[..., LocateThenEdit]) -> None:
        editor = method().configure(LMConfig(name="no/such/model"))
        for module in (editor, REP(editor)):
            with pytest.raises(KeditError, match=f"^record 17 names no subject, which {type(editor).__name__} needs"):
                module.prepare_records([BARE])


class TestCommand:
    """`kedit fit` on ZsRE."""

    @pytest.fixture
    def words(self, tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
        options = {
            "model": "ROME",
            "lm.name": tiny_folder("llama", n_layers=3, context=128),
            "model.layer": 1,
            "model.mom2_adjustment": "false",
            "model.contexts.lengths": "[]",
            "data": "ZsRE",
            "run.root": tmp_path / "runs",
            "run.name": "z",
            "trainer.accelerator": ACCELERATOR,
            "trainer.fast_dev_run": "true",
        }
        return ["fit", *option_words(options)]

    @pytest.mark.parametrize(
        ("more", "who"),
        [([], "ROME"), (["--data.queries.shuffles", "4"], "data.queries"), (["--data.known", "true"], "ROME")],
    )
    def test_rome_refuses_records_without_a_subject(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], who: str
    ) -> None:
        with pytest.raises(SystemExit) as stop:
            main([*words, "--lm.name", "no/such/model", "--data.path", zsre(tmp_path, [FLAT]), *more])
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip()
        wanted = f"kedit: error: record 3 names no subject, which {who} needs; use data that does (docs/data.md)"
        assert error == wanted
        assert not list(tmp_path.rglob("summary.json"))

    def test_mends_form_is_edited(
        self, words: list[str], tmp_path: Path, rows_of: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        rows = [MEND | {"alt": ""}, MEND, MEND | {"alt": "Paris"}]
        main([*words, "--data.path", zsre(tmp_path, rows), "--data.clean", "false"])
        run = tmp_path / "runs" / "z"
        row, no_op = rows_of(run)
        assert (row["case_id"], row["request"]["subject"]) == ("2", "France")
        assert [(probe["kind"], probe["rival"]) for probe in row["probes"]] == [
            ("rewrite", "Paris"),
            ("paraphrase", "Paris"),
            ("neighborhood", None),
        ]
        assert (no_op["request"]["target_new"], no_op["probes"][0]["rival"]) == ("Paris", None)
        assert json.loads((run / "summary.json").read_text())["data"]["cleaning"]["no_op"] == 1
        notices = [text for text in caplog.messages if text.startswith("zsre/")]
        assert notices[0].startswith("zsre/zsre: 3 records read, 1 dropped (1 without a target), 1 no-op edits kept")
