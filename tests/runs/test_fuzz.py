"""A few cases of everything that `python -m tests.fuzz` changes, and that the suite notices what it is there for."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from kedit.data import read_records
from kedit.delta.factors import Factors
from kedit.errors import KeditError
from tests.fuzz.data import DataFiles, _run
from tests.fuzz.harness import FAILED, REFUSED, Case, Said, Wrong, fuzz, judged, listening
from tests.fuzz.targets import TARGETS

FEW = {"data": 150, "benchmarks": 150, "deltas": 60, "checkpoints": 8, "configs": 24, "statistics": 60}


@pytest.mark.parametrize("name", list(TARGETS))
def test_nothing_fails(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shared = tmp_path / "shared"
    shared.mkdir()
    with listening(Said()):
        target = TARGETS[name](shared)
    *_, report = fuzz(target, range(FEW[name]), seed=7, scratch=tmp_path / "cases")
    assert sum(report.counts.values()) == FEW[name]
    assert report.counts[REFUSED], "nothing that was changed was refused"
    assert report.counts.keys() != {REFUSED}, "nothing was read at all"
    assert not report.failures, "\n\n".join(report.failures)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    target = DataFiles(tmp_path / "shared")
    for number in range(20):
        files = []
        for turn in ("one", "other"):
            folder = tmp_path / f"{turn}-{number}"
            folder.mkdir()
            target.case(Random(number), folder)
            (file,) = folder.iterdir()
            files.append(file.read_bytes())
        assert files[0] == files[1]


def outcome_of(run, seconds: float = 5.0) -> tuple[str, str]:
    outcome, kind, _ = judged(Case("", run), seconds)
    return outcome, kind


def test_what_counts_as_a_failure() -> None:
    def refuses(message: str):
        def run(said: Said) -> str:
            raise KeditError(message)

        return run

    def raises(error: BaseException):
        def run(said: Said) -> str:
            raise error

        return run

    def hangs(said: Said) -> str:
        time.sleep(10)
        return "over"

    def crashes(said: Said) -> str:
        return str(read_records(3))  # type: ignore[arg-type]

    assert outcome_of(lambda said: "same") == ("same", "")
    assert outcome_of(refuses("a.json: no such file"))[0] == REFUSED
    assert outcome_of(refuses("one\ntwo\nthree"))[0] == FAILED
    assert outcome_of(refuses("x" * 700))[0] == FAILED
    assert outcome_of(refuses(" "))[0] == FAILED
    assert outcome_of(raises(Wrong("other bits: 3"))) == (FAILED, "silently other: other bits")
    assert outcome_of(raises(SystemExit(1))) == (FAILED, "exit status 1")
    assert outcome_of(raises(RecursionError()))[1].startswith("RecursionError at test_fuzz.py:")
    assert outcome_of(hangs, 0.1)[1].startswith("hang at test_fuzz.py:")
    assert "parse.py:" in outcome_of(crashes)[1]


def test_a_reader_that_loses_or_alters_something_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    form = DataFiles(tmp_path / "shared").forms["records"]
    file = tmp_path / "records.jsonl"
    file.write_text(
        '{"prompt": "{} is in", "subject": "Ulm", "target_new": "Rome", "paraphrases": ["Ulm lies in"]}\n'
        '{"prompt": "Bern is in", "subject": "Bern", "target_new": "Paris", "case_id": "b"}\n'
    )
    assert _run(form, file, set(), Said()) == "read"

    def noticed(change) -> str:
        with pytest.raises(Wrong) as caught:
            _run(replace(form, read=lambda path: change(form.read(path))), file, set(), Said())
        return str(caught.value)

    assert "lost" in noticed(lambda records: records[1:])
    assert "paraphrases lost" in noticed(
        lambda records: [replace(records[0], probes=records[0].probes[:1]), records[1]]
    )
    other = [replace(r, request=replace(r.request, target_new="Oslo")) for r in form.read(file)]
    assert "another text" in noticed(lambda records: other)
    same_id = [replace(r, request=replace(r.request, case_id="a")) for r in form.read(file)]
    assert "not unique" in noticed(lambda records: same_id)


def test_a_delta_that_is_not_the_one_saved_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fuzz import deltas

    (tmp_path / "shared").mkdir()
    target = deltas.Deltas(tmp_path / "shared")
    folder = target.folders["factors"]
    assert target._run("factors", folder, False, target.lm) == "same"
    load = deltas.load_delta

    def other(path, lm):
        delta, card = load(path, lm)
        next(iter(delta.of_kind(Factors).values())).left[0, 0] += 2**-20
        return delta, card

    monkeypatch.setattr(deltas, "load_delta", other)
    with pytest.raises(Wrong, match="its numbers differ"):
        target._run("factors", folder, False, target.lm)
    monkeypatch.setattr(deltas, "load_delta", load)
    with torch.no_grad():
        next(target.lm.model.parameters()).view(-1)[0] += 1
    with pytest.raises(Wrong, match="not as it was"):
        target._run("factors", folder, False, target.lm)
