"""Data files of every kind of trouble: what cannot be read or written again is refused in one line, nothing hangs."""

from __future__ import annotations

import gzip
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from kedit.data import read_counterfact, read_mquake, read_records
from kedit.errors import KeditError, shown
from kedit.methods.steam.knowledge import read_knowledge
from kedit.runtime.textfile import DEEPEST, flaw_of, strict_json

GOOD = {"prompt": "The sky over Skye is", "subject": "Skye", "target_new": "green"}


def refused(path: Path | str) -> str:
    with pytest.raises(KeditError) as caught:
        read_records(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    return message


def rows(folder: Path, *more: dict[str, Any] | str, name: str = "data.jsonl") -> Path:
    """A file of records; one given as text is written as it is."""
    lines = [one if isinstance(one, str) else json.dumps(GOOD | one) for one in more]
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def names(path: Path) -> list[str]:
    return [record.request.case_id for record in read_records(path)]


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "it is a pipe or a device" in refused(tmp_path / "pipe.jsonl")
    assert "it is a pipe or a device" in refused("/dev/zero")


@pytest.mark.parametrize("name", ["~no-such-user/x.json", "a\0b", "x" * 5000, "nothing\nhere", ".", "\udcff.json"])
def test_a_name_that_is_no_file(name: str) -> None:
    refused(name)


def test_below_a_file_and_a_loop(tmp_path: Path) -> None:
    path = rows(tmp_path, {})
    assert "cannot be read (Not a directory)" in refused(path / "more.json")
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    assert "cannot be read" in refused(tmp_path / "loop.json")


def test_other_kinds_of_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("prompt,subject,target_new\n")
    assert "CSV files are not read; give a .json file" in refused(tmp_path / "data.csv")
    (tmp_path / "data.jsonl").write_bytes(gzip.compress(b"{}"))
    assert "is compressed (gzip); unpack it first" in refused(tmp_path / "data.jsonl")
    (tmp_path / "data.json").write_bytes(json.dumps([GOOD]).encode("utf-16"))
    assert "is not UTF-8 text but most likely UTF-16; convert it first" in refused(tmp_path / "data.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", f"line 2: lists and objects are nested more than {DEEPEST} deep"),
        (
            '{"a": ' + "[" * 100 + "]" * 100 + "}",
            f"record 2: field 'a': lists and objects are nested more than {DEEPEST}",
        ),
        ('{"z": ' + "9" * 5000 + "}", "line 2: a number has too many digits"),
        ('{"note": "\\ud800"}', r"record 2: field 'note': '\ud800' holds half a character"),
        ('{"\\udfff": 1}', r"record 2: field '\udfff': '\udfff' holds half a character"),
        ('{"a": [{"b": ["\\ud800"]}]}', "record 2: field 'a': "),
        ('{"case_id": "\\ud800"}', "record 2: field 'case_id': "),
        ('{"a": NaN}', "record 2: field 'a': nan is no number"),
        ('{"a": [-Infinity]}', "record 2: field 'a': -inf is no number"),
        ('{"a": 1e999}', "record 2: field 'a': inf is no number"),
        ('{"prompt": "a", "prompt": "b"}', "line 2: field 'prompt' is written twice"),
        ("[]", "record 2: must be an object"),
    ],
)
def test_json_that_nobody_can_use(tmp_path: Path, line: str, message: str) -> None:
    assert message in refused(rows(tmp_path, {}, line))


def test_json_as_deep_as_allowed() -> None:
    deep = strict_json("[" * DEEPEST + "]" * DEEPEST)
    assert flaw_of(deep) is None
    assert flaw_of([deep]) is not None
    assert flaw_of(strict_json('["\\ud83d\\ude00", 1e308, "é"]')) is None  # a pair is one character


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["a", "a", "a-2"], ["a", "a-3", "a-2"]),
        (["a", "a", "a", "a-3"], ["a", "a-2", "a-4", "a-3"]),
        (["a-2", "a", "a", "a-2"], ["a-2", "a", "a-3", "a-2-2"]),
        ([None, 1, "1"], ["1-2", "1", "1-3"]),
        (["", " ", "x"], ["1", "2", "x"]),
        (["..", "a\nb", "A", "a", "y" * 300, 2.5], ["..", "a\nb", "A", "a", "y" * 300, "2.5"]),
    ],
)
def test_names_are_unique_among_all(tmp_path: Path, given: list[Any], found: list[str]) -> None:
    path = rows(tmp_path, *({} if case_id is None else {"case_id": case_id} for case_id in given))
    assert names(path) == found


def test_many_doubles_are_quick(tmp_path: Path) -> None:
    found = names(rows(tmp_path, *[{"case_id": "a"}] * 4000))
    assert found[-1] == "a-4000"
    assert len(set(found)) == 4000


@pytest.mark.parametrize("case_id", [True, ["a"], {"a": 1}])
def test_a_name_that_is_none(tmp_path: Path, case_id: Any) -> None:
    assert "record 1: field 'case_id' must be text or a number, not " in refused(rows(tmp_path, {"case_id": case_id}))


def test_odd_names_stay_on_one_line(tmp_path: Path) -> None:
    message = refused(rows(tmp_path, {"case_id": "a\nb" + "y" * 300, "prompt": "{} {}"}))
    assert message.count("a\\nb") == 1
    assert refused(rows(tmp_path, {"subject": "S" * 3000, "prompt": "P\n" * 3000})).count("SSS ... SSS") == 1


def test_spelled_alike(tmp_path: Path) -> None:
    city = "Orléans"
    apart = unicodedata.normalize("NFD", city)
    message = refused(rows(tmp_path, {"prompt": f"The river of {city} is", "subject": apart}))
    assert "the subject's accents are decomposed (NFD), the prompt's are not: write both in NFC" in message
    message = refused(rows(tmp_path, {"prompt": f"The river of {apart} is", "subject": city}))
    assert "the subject's accents are composed (NFC), the prompt's are not: write both in NFC" in message
    assert "it differs in case" in refused(rows(tmp_path, {"subject": "skye"}))
    assert "spell it as the prompt does, or put {}" in refused(rows(tmp_path, {"subject": "Rum"}))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"subject": ["Skye"]}, "field 'subject' must be text, not a list"),
        ({"prompt": 3}, "field 'prompt' must be text, not a number"),
        ({"target_new": {"a": 1}}, "field 'target_new' must be text, not an object"),
        ({"target_true": {"a": 1}}, "field 'target_true' must be text or a list of texts, not an object"),
        ({"relation": 36}, "field 'relation' must be text, not a number"),
        ({"paraphrases": [None]}, "field 'paraphrases' must be text or a list of texts, not null"),
        ({"portability": 3}, "field 'portability' must hold texts or objects"),
        ({"neighbors": {"a": [1]}}, "field 'neighbors' must hold texts or objects"),
        ({"subject_aliases": [["x"]]}, "field 'subject_aliases' must be text or a list of texts"),
        ({"attribute_prompts": "x"}, "field 'attribute_prompts' must be a list of texts"),
        ({"target_new_id": ["Q1"]}, "field 'target_new_id' (the target's 'id') must be text, not a list"),
    ],
)
def test_wrong_types(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    assert message in refused(rows(tmp_path, bad))


def test_wrong_ids_of_targets(tmp_path: Path) -> None:
    rewrite = {"prompt": "{} is", "subject": "It", "target_new": {"str": "x", "id": [1]}, "target_true": {"str": "y"}}
    path = tmp_path / "cf.json"
    for case, read in (
        ({"requested_rewrite": rewrite}, read_counterfact),
        ({"requested_rewrite": [rewrite], "questions": ["?"], "new_answer": "x"}, read_mquake),
    ):
        path.write_text(json.dumps([case]))
        with pytest.raises(KeditError, match=r"'target_new_id' .* must be text, not a list"):
            read(path)


def test_knowledge_of_the_anchors_is_read_with_the_same_care(tmp_path: Path) -> None:
    path = rows(tmp_path, '{"prompt": "\\ud800", "object": "x"}')
    with pytest.raises(KeditError, match=r"data.jsonl, line 1: .* holds half a character"):
        read_knowledge(path, {})
    with pytest.raises(KeditError, match="a pipe or a device"):
        read_knowledge("/dev/zero", {})


def test_shown_is_one_short_line() -> None:
    assert shown("plain") == "'plain'"
    assert shown("a\nb") == r"'a\nb'"
    long = shown("start " + "x" * 10_000 + " end")
    assert (len(long), long[:6], long[-5:]) == (80, "'start", " end'")
    assert "\n" not in shown({"a": ["b\n" * 100]})
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "a list that cannot be written out"
    assert shown(10**5000) == "a number of too many digits"
