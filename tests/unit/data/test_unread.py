"""Fields that nobody reads are named, once a file; those of the public files that are left alone on purpose are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kedit.data import read_counterfact, read_facts, read_mquake, read_records, read_robust, read_zsre
from kedit.errors import KeditError
from tests.unit.data.test_readers import FIXTURES, SHARED

FLAT = {"prompt": "The sky over Skye is", "subject": "Skye", "target_new": "green", "ground_truth": "grey"}
REWRITE = {
    "prompt": "The sky over {} is",
    "relation_id": "P1",
    "subject": "Skye",
    "target_new": {"str": "green", "id": "Q1"},
    "target_true": {"str": "grey", "id": "Q2"},
}
OFFICIAL = {"case_id": 1, "pararel_idx": 7, "requested_rewrite": REWRITE, "paraphrase_prompts": ["Over Skye it is"]}
MEND = {"src": "What is it?", "alt": "a", "answers": ["b"], "subject": "it", "pred": "c", "cond": "d", "loc": "e"}
CASE = {
    "requested_rewrite": [REWRITE | {"question": "What colour?"}],
    "questions": ["Which?"],
    "new_answer": "green",
    "answer": "grey",
    "single_hops": [],
    "orig": {},
}


@pytest.fixture
def told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """What the log says of a file, without the file's name."""

    def read(reader: Callable[[Path], Sequence[Any]], *rows: dict[str, Any]) -> list[str]:
        path = tmp_path / "data.json"
        path.write_text(json.dumps(rows))
        caplog.clear()
        assert reader(path)
        return [message.removeprefix(f"{path}: these fields are not read: ") for message in caplog.messages]

    return read


END = "; docs/data.md has the names"


def test_a_foreign_field_is_named_once(told: Callable[..., list[str]]) -> None:
    odd = FLAT | {"loc_prompt": "The sky over Rum is"}
    said = "'loc_prompt' (2 records, did you mean 'locality_prompt'?)" + END
    assert told(read_counterfact, odd, odd, FLAT) == [said]
    assert told(read_records, odd, odd, FLAT) == [said]
    assert told(read_zsre, odd, odd, FLAT) == [said]
    assert told(read_counterfact, FLAT, FLAT) == []


@pytest.mark.parametrize(
    ("reader", "row", "field"),
    [
        (read_counterfact, OFFICIAL | {"neighborhood_prompt": ["x"]}, "neighborhood_prompt"),
        (read_counterfact, FLAT | {"subject_rephrase": ["Isle"]}, "subject_rephrase"),
        (read_counterfact, OFFICIAL | {"requested_rewrite": REWRITE | {"quest": "x"}}, "quest"),
        (read_counterfact, FLAT | {"neighbors": [{"prompt": "x", "anwser": "y"}]}, "neighbors.anwser"),
        (read_counterfact, FLAT | {"portability": {"R": [{"prompt": "x", "answer": "y", "z": 1}]}}, "portability.z"),
        (read_counterfact, FLAT | {"rephrase": "x", "rephrase_prompt": "y"}, "rephrase"),
        (read_robust, FLAT | {"subject_rephrase": ["Isle"], "portability": []}, "portability"),
        (read_zsre, MEND | {"locality_prompt": "x"}, "locality_prompt"),
        (read_zsre, FLAT | {"loc_ans": "x"}, "loc_ans"),
        (read_mquake, CASE | {"new_hops": []}, "new_hops"),
        (
            read_mquake,
            CASE | {"requested_rewrite": [REWRITE | {"paraphrases": ["x"]}]},
            "requested_rewrite.paraphrases",
        ),
        (read_mquake, CASE | {"new_single_hops": [{"cloze": "x", "answer": "y", "s": 1}]}, "new_single_hops.s"),
        (read_records, FLAT | {"probes_ood_prompts": ["x"]}, "probes_ood_prompts"),
        (read_records, FLAT | {"test_questions": ["x"]}, "test_questions"),
    ],
)
def test_whatever_is_not_read_is_named(
    told: Callable[..., list[str]], reader: Callable[[Path], Sequence[Any]], row: dict[str, Any], field: str
) -> None:
    (said,) = told(reader, row)
    assert said.startswith(f"'{field}' (1 record")


def test_what_is_left_alone_on_purpose_is_not_named(told: Callable[..., list[str]]) -> None:
    assert told(read_counterfact, OFFICIAL | {"generation_prompts": ["x"], "attribute_prompts": ["y"]}) == []
    assert told(read_zsre, MEND) == []
    assert told(read_mquake, CASE) == []
    robust = FLAT | {"subject_rephrase": ["Isle"], "rephrase_target": "x"}
    assert told(read_robust, robust) == []
    assert told(read_zsre, robust) == []
    plus = {"Recalled Relation": "r", "New Question": "q", "New Answer": "a"}
    assert told(read_counterfact, FLAT | {"portability": plus, "locality_prompt": None, "id": 3}) == []


def test_own_form_keeps_other_fields_and_refuses_slips(told: Callable[..., list[str]], tmp_path: Path) -> None:
    assert (
        told(
            read_records,
            FLAT | {"split": "dev", "note": "mine", "location": "x", "shop": 1, "attribute_snippets": ["x"]},
        )
        == []
    )
    (tmp_path / "slip.json").write_text(json.dumps([FLAT | {"neighbrs": []}]))
    with pytest.raises(KeditError, match="unknown field 'neighbrs'; did you mean 'neighbors'"):
        read_records(tmp_path / "slip.json")


def test_many_fields_are_still_one_line(told: Callable[..., list[str]]) -> None:
    (said,) = told(read_counterfact, FLAT | {f"x{i}": 1 for i in range(20)} | {"y" * 5000: 1})
    assert said.endswith("and 15 more" + END)
    assert len(said) < 300


def test_files_of_kedit_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    read_facts("all")
    read_counterfact(FIXTURES / "counterfact_official.json")
    read_counterfact(FIXTURES / "counterfact_flat.json")
    read_records(FIXTURES / "records.jsonl")
    read_robust(FIXTURES / "robust.json")
    assert not caplog.messages


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"public data sets are not at {SHARED} (set KEDIT_SHARED)")
def test_public_files_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    for reader, *files in (
        (read_counterfact, "counterfact_edit", "counterfact_rich", "qaedit", "wikibigedit"),
        (read_robust, "rep_counterfact_valid", "rep_counterfact_test", "rep_zsre_test"),
        (read_zsre, "zsre_edit", "zsre_mend", "rep_zsre_test"),
        (read_mquake, "mquake_hard"),
    ):
        for name in files:
            assert reader(SHARED / f"{name}.json")
    assert not caplog.messages
