"""What docs/facts.md promises of `kedit/data/readers/facts.jsonl`, checked on the file itself, without a model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

DATA = ROOT / "kedit" / "data" / "readers" / "facts.jsonl"
RECORDS: tuple[dict[str, Any], ...] = tuple(json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines())
FIELDS = {
    "case_id": str,
    "relation": str,
    "prompt": str,
    "subject": str,
    "target_true": str,
    "target_new": str,
    "paraphrases": list,
    "neighbors": list,
    "subject_aliases": list,
    "portability": list,
    "split": str,
    "known": bool,
    "greedy": str,
}


def names(record: dict[str, Any]) -> set[str]:
    """Subject and aliases, folded, so that spelling in capitals does not hide a clash."""
    return {name.casefold() for name in (record["subject"], *record["subject_aliases"])}


def prompts(record: dict[str, Any]) -> list[str]:
    """Every complete prompt of a record."""
    filled = [record["prompt"].replace("{}", name) for name in (record["subject"], *record["subject_aliases"])]
    rest = [item["prompt"] for key in ("neighbors", "portability") for item in record[key]]
    return [*filled, *record["paraphrases"], *rest]


def strings(value: Any) -> list[str]:
    """All texts inside a JSON value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    return [text for item in value for text in strings(item)] if isinstance(value, list) else []


def mentions(text: str, name: str) -> bool:
    """Whether a name occurs in a text as whole words, whatever the case."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, flags=re.IGNORECASE) is not None


def test_counts() -> None:
    assert 330 <= len(RECORDS) <= 420
    split = Counter(r["split"] for r in RECORDS)
    assert set(split) == {"train", "validation", "test"}
    share = {name: n / len(RECORDS) for name, n in split.items()}
    assert 0.2 < share["train"] < 0.3
    assert 0.2 < share["validation"] < 0.3
    assert 0.45 < share["test"] < 0.55


def test_known_counts_and_their_evidence() -> None:
    known = Counter(r["split"] for r in RECORDS if r["known"])
    assert known.total() >= 150
    assert known["test"] >= 120
    assert known["validation"] >= 40
    for r in RECORDS:
        assert r["greedy"], r["case_id"]
        right = re.match(re.escape(r["target_true"]) + r"(?!\w)", r["greedy"]) is not None
        assert r["known"] == right, r["case_id"]


def test_relations_are_many_to_one() -> None:
    objects: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for r in RECORDS:
        objects[r["relation"]][r["target_true"]].add(r["subject"])
        objects[r["relation"]][r["target_true"]].update(n["subject"] for n in r["neighbors"])
    assert len(objects) >= 10
    assert all(len(subjects) >= 6 for table in objects.values() for subjects in table.values())


def test_new_targets_are_spread() -> None:
    for relation in {r["relation"] for r in RECORDS}:
        new = Counter(r["target_new"] for r in RECORDS if r["relation"] == relation)
        assert max(new.values()) <= max(2, round(0.65 * new.total())), (relation, new)
        assert len(new) >= 2, relation


def test_identifiers_are_unique() -> None:
    assert len({r["case_id"] for r in RECORDS}) == len(RECORDS)
    assert all(re.fullmatch(r"facts-\d{4}", r["case_id"]) for r in RECORDS)
    assert len({(r["prompt"], r["subject"]) for r in RECORDS}) == len(RECORDS)


def test_splits_share_no_subject_under_any_name() -> None:
    split_of: dict[str, str] = {}
    for r in RECORDS:
        for name in names(r):
            assert split_of.setdefault(name, r["split"]) == r["split"], (name, r["case_id"])


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r["case_id"])
def test_record(record: dict[str, Any]) -> None:
    assert {key: type(value) for key, value in record.items()} == FIELDS
    subject, true, new = record["subject"], record["target_true"], record["target_new"]

    assert record["prompt"].count("{}") == 1
    for text in strings({key: value for key, value in record.items() if key != "greedy"}):
        assert text, "empty text"
        assert text == text.strip(), text
        assert "  " not in text, text
        assert ",," not in text, text
    for text in prompts(record):
        assert "{}" not in text, text
        assert text[0].isupper(), text
        assert text[-1].isalnum(), text  # the object comes next: no punctuation, no space

    assert true.casefold() != new.casefold()
    for answer in (true, new):  # a name that gives the answer away measures nothing
        assert not any(answer.casefold() in name for name in names(record)), answer
        assert not any(mentions(text, answer) for text in record["paraphrases"]), answer

    assert len(record["paraphrases"]) >= 2
    assert len(set(record["paraphrases"])) == len(record["paraphrases"])
    plain = record["prompt"].replace("{}", subject)
    for text in record["paraphrases"]:
        assert subject in text
        assert plain not in text, "a prefix is not a paraphrase"

    assert len(record["subject_aliases"]) >= 2
    assert len(names(record)) == 1 + len(record["subject_aliases"]), "aliases repeat"

    neighbors = [n["subject"] for n in record["neighbors"]]
    assert len(neighbors) >= 5
    assert len(set(neighbors)) == len(neighbors)
    for neighbor in record["neighbors"]:
        assert set(neighbor) == {"prompt", "subject"}
        assert neighbor["subject"] in neighbor["prompt"]
        assert neighbor["subject"].casefold() not in names(record)
        assert true.casefold() not in neighbor["subject"].casefold()

    assert record["portability"]
    for hop in record["portability"]:
        assert set(hop) == {"prompt", "answer", "old_answer"}
        assert hop["answer"] != hop["old_answer"]
        assert subject in hop["prompt"]
        assert not mentions(hop["prompt"], hop["answer"])
        assert not mentions(hop["prompt"], hop["old_answer"])


def test_neighbors_are_true_facts_of_the_same_relation() -> None:
    """A subject never appears with two different true objects of one relation."""
    true_of: dict[tuple[str, str], str] = {}
    for r in RECORDS:
        for subject in (r["subject"], *(n["subject"] for n in r["neighbors"])):
            assert true_of.setdefault((r["relation"], subject), r["target_true"]) == r["target_true"], subject


def test_build_reproduces_the_file(tmp_path: Path) -> None:
    copy = tmp_path / "facts.jsonl"
    shutil.copyfile(DATA, copy)  # `known` and `greedy` are measured, the builder keeps them
    command = [sys.executable, str(ROOT / "benchmarks" / "facts" / "build_facts.py"), "--output", str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    assert copy.read_bytes() == DATA.read_bytes()


def test_table_in_the_docs_is_the_files() -> None:
    page = (ROOT / "docs" / "facts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `?(\w+)`? \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", page, flags=re.MULTILINE)
    expected: dict[str, list[int]] = {}
    for name in [*sorted({r["relation"] for r in RECORDS}), "all"]:
        chosen = [r for r in RECORDS if name in ("all", r["relation"])]
        splits = [sum(r["split"] == split for r in chosen) for split in ("train", "validation", "test")]
        expected[name] = [len(chosen), *splits, sum(r["known"] for r in chosen)]
    assert {name: [int(n) for n in numbers] for name, *numbers in rows} == expected
