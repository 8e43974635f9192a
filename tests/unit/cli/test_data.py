"""`kedit data check`: what it says of a file, and of files that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from jsonargparse import Namespace

from kedit.cli import main
from kedit.cli.commands.sweep import check_data
from kedit.data import ZsRE, read_wikibigedit
from kedit.data.readers.any_format import FORMATS
from kedit.data.readers.parse import stem_of
from kedit.errors import KeditError
from tests.support import benchmark_records as made
from tests.support.paths import FIXTURES

ROWS: dict[str, made.Rows] = {
    "KnowEdit": made.KNOWEDIT,
    "WikiBigEdit": made.WIKIBIGEDIT,
    "QAEdit": made.QAEDIT,
    "RippleEdits": made.RIPPLE,
    "UnKE": made.AKEW,
}


def write(folder: Path, rows: Any, name: str = "data.json") -> str:
    (folder / name).write_text(json.dumps(rows), encoding="utf-8")
    return str(folder / name)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["data", "check", *words])
    return capsys.readouterr().out


def facts(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    return json.loads(said(capsys, *words, "--json"))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["data", *words])
    assert caught.value.code == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) <= 2
    return message


@pytest.mark.parametrize("name", ROWS)
def test_the_format_is_found(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, write(tmp_path, ROWS[name]))
    assert (found["format"], found["objects"]) == (name, len(ROWS[name]))
    assert found["records"] + sum(found["left_out"].values()) == len(ROWS[name])


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("counterfact_official.json", "CounterFact"),
        ("counterfact_flat.json", "CounterFact"),
        ("robust.json", "RobustQueries"),
        ("records.jsonl", "Records"),
        ("zsre.json", "ZsRE"),
    ],
)
def test_the_older_formats_are_found_too(file: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert facts(capsys, str(FIXTURES / file))["format"] == name


def test_everything_that_there_is_to_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"subject": "Ada Pell", "prompt": made.KNOWEDIT[0]["prompt"], "target_new": "Peru", "localty": {}}
    path = write(tmp_path, [*made.KNOWEDIT, more])
    found = facts(capsys, path)
    assert found["left_out"] == {"no_target": 1, "no_op": 1, "no_subject": 1}
    assert found["probes"]["portability.reasoning"] == {
        "records": 1,
        "probes": 1,
        "with_rival": 0,
        "with_conditions": 0,
    }
    assert (found["subjects"], found["true_targets"]) == (3, 1)
    assert found["targets"]["untrimmed"] == 1
    assert found["same_fact"]["facts"] == found["conflicts"]["facts"] == 1
    assert found["conflicts"]["examples"][0]["targets"] == ["Norway", "Peru"]
    assert found["methods"]["cannot"] == {"true target": {"methods": ["KN"], "records_without": 2}}
    assert found["first"]["request"]["subject"] == "Ada Pell"
    text = said(capsys, path)
    for line in (
        f"{path}: KnowEdit, as --data KnowEdit --data.path {path} reads it",
        "6 objects in the file, 3 records to edit; left out: 1 without a target, 1 no-op edits, "
        "1 whose prompt does not name the subject",
        "true targets: 2 of 3 requests have none, so nothing competes there and data.known: true cannot ask for them",
        "new targets: 0 of several words, the longest of 1: Norway; 1 with white space around them, which is removed",
        "of these, to different targets: 1, in 2 records, e.g. The name of the country of citizenship of Ada Pell is "
        "-> Norway / Peru (records 1, 6)",
        "note: these fields are not read: 'localty' (1 record, did you mean 'locality'?); docs/data.md has the names",
        "not KN: they need the true target, which 2 requests do not have",
        "  neighborhood.forgetfulness: The country of citizenship of Ada Pell, which is not Norway, is -> Chile "
        "(rival: Norway)",
    ):
        assert line in text.splitlines()


def test_without_subjects_some_methods_are_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, write(tmp_path, made.UNKE))
    assert "subjects: 1 of 1 requests name none" in text
    (can,) = [line for line in text.splitlines() if line.startswith("methods that can edit it")]
    assert "LocFT" in can
    assert "ROME" not in can
    assert "ROME" in next(line for line in text.splitlines() if line.startswith("not "))


def test_a_format_is_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, made.WIKIBIGEDIT_FLAT)
    assert facts(capsys, path)["format"] == "WikiBigEdit"
    assert facts(capsys, path, "--format", "counterfact")["format"] == "CounterFact"
    assert facts(capsys, "--format=Records", path)["format"] == "Records"


def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "kedit data has no command 'chek'" in refused(capsys, "chek", "x.json")
    assert "which file?" in refused(capsys, "check")
    assert "which file?" in refused(capsys, "check", "--json")
    assert "no such file" in refused(capsys, "check", "nothere.json")
    path = write(tmp_path, made.QAEDIT)
    assert f"there are {', '.join(FORMATS)}" in refused(capsys, "check", path, "--format", "ROME")
    assert "jsn" in refused(capsys, "check", path, "--jsn")
    assert "must be a list of edits" in refused(capsys, "check", path, "--format", "MQuAKE")
    bad = write(tmp_path, [{"prompt": "The sky is", "subject": "Sea", "target_new": "x"}] * 2, "bad.json")
    message = refused(capsys, "check", bad)
    assert "(1 more records are refused); it was taken for Records, --format names another" in message
    assert "holds no records" in refused(capsys, "check", write(tmp_path, []))
    assert "is not hf:NAME[:CONFIG][:SPLIT]" in refused(capsys, "check", "hf:a:b:c:d")


def test_a_folder_of_the_datasets_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("huggingface_hub.constants", "datasets.config"):  # the variable is read when they are imported
        monkeypatch.setattr(f"{place}.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "wbe").mkdir()
    file = write(tmp_path / "wbe", made.WIKIBIGEDIT, "train.json")
    name = f"hf:{tmp_path / 'wbe'}"
    assert read_wikibigedit(name) == read_wikibigedit(file)  # null where a field is missing is as if it were not there
    assert facts(capsys, name)["name"] == "wikibigedit/wbe"
    assert "cannot be loaded" in refused(capsys, "check", f"{name}::test")
    assert "cannot be loaded" in refused(capsys, "check", "hf:nobody/nothing")


def test_a_named_data_set_is_asked_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    rows = [{"subject": "Ulm", "src": "Where is Ulm?", "alt": "Oz", "answers": ["Bern"], "loc": None, "loc_ans": None}]

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = ZsRE("hf:some/zsre:mend:validation")
    assert [record.request.text for record in data.records] == ["Where is Ulm?"]
    assert (data.name, asked[0]) == ("zsre/zsre-mend-validation", (("some/zsre", "mend"), {"split": "validation"}))
    ZsRE("hf:some/zsre").read()
    assert asked[-1] == (("some/zsre", None), {"split": "train"})
    with pytest.raises(KeditError, match="is not hf:NAME"):
        ZsRE("hf: ").read()


def test_a_sweep_does_not_look_for_a_file_of_the_library() -> None:
    for path, there in (("hf:some/zsre", True), ("nothere.json", False)):
        config = Namespace(data=Namespace(init_args=Namespace(path=path)))
        if there:
            check_data(config)
        else:
            with pytest.raises(KeditError, match="no such file"):
                check_data(config)


def test_names_of_data_sets() -> None:
    assert stem_of("folder/multi_counterfact.json") == "multi_counterfact"
    assert stem_of("hf:owner/name:config:test") == "name-config-test"
    assert stem_of("hf:/some/folder/") == "folder"
