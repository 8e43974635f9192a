"""Runs under a named protocol: its name in rows, run and summary, data that lack something, tables by protocol."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.callbacks.protocol import check_data
from kedit.cli import main
from kedit.cli.commands.fit import parsed
from kedit.data import EditData
from kedit.errors import KeditError
from kedit.request import EditRecord, EditRequest, Probe
from kedit.results.run_results import RunResults
from kedit.runtime.protocols import Needs, Protocol, protocol
from kedit.sweeps.folder import SweepFolder
from kedit.sweeps.spec import read_sweep
from tests.support.small_runs import QUICK_MEMIT, QUICK_ROME, city_facts, sequential_run

Words = Callable[..., list[str]]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> Words:
    """The words of a run over three facts; what a protocol sets is left to it."""
    data = city_facts(tmp_path / "facts.jsonl", 3)

    def made(method: dict[str, Any], protocol: str | None, **more: Any) -> list[str]:
        options = method | {"run.root": tmp_path / "runs", "texts.enabled": "false", "results.save_deltas": "false"}
        given = sequential_run(tiny_folder, data, options | {k.replace("__", "."): v for k, v in more.items()})
        pairs = dict(zip(given[1::2], given[2::2], strict=True))
        for option in ("--edit.regime", "--metrics.scoring.generate"):
            del pairs[option]
        if protocol:
            pairs["--protocol"] = protocol
        return ["fit", *(word for pair in pairs.items() for word in pair)]

    return made


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err.partition("kedit: error: ")[2].strip()


def test_its_name_is_kept_and_sets_tables_apart(
    words: Words, tmp_path: Path, rows_of: Callable[[Path], list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    for name, of, seed in (("a", "wild", 0), ("b", "wild", 1), ("c", "rome-single", 0), ("d", "rome-single", 1)):
        main(words(QUICK_ROME, of, run__name=name, edit__seed=seed))
        summary, about = (json.loads((runs / name / file).read_text()) for file in ("summary.json", "run.json"))
        assert summary["protocol"]["name"] == about["protocol"]["name"] == of
        assert {row["protocol"]["name"] for row in rows_of(runs / name)} == {of}
        assert ("wild" in summary["results"]["edit"]["rewrite"]) == (of == "wild")
    capsys.readouterr()
    main(["compare", *(str(runs / name) for name in "abcd")])
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if "protocol " in line]
    assert len(titles) == 2
    assert "regime single, protocol wild, " in titles[0]
    assert "regime single, protocol rome-single, " in titles[1]
    assert "name = " not in out


def test_without_a_protocol_nothing_is_said_of_one(
    words: Words, tmp_path: Path, rows_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    main(words(QUICK_ROME, None, run__name="a", data__limit=1))
    assert "name" not in json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())["protocol"]
    assert all("name" not in row["protocol"] for row in rows_of(tmp_path / "runs" / "a"))


def test_data_and_methods_that_do_not_fit(words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before a model is loaded: there is none of that name."""
    nowhere = {"lm__name": "/nowhere"}
    assert refused(capsys, words(QUICK_MEMIT, "memit-batch", data__batch_size=2, **nowhere)) == (
        "protocol: memit-batch needs all edits in one edit batch: set data.batch_size: 3 (now 2)"
    )
    assert refused(capsys, words(QUICK_ROME, "memit-batch", **nowhere)) == (
        "edit.regime: ROME knows single, sequential, not 'batch'\nedit.regime is set by protocol memit-batch"
    )
    kinds = words(QUICK_ROME, "rome-single", data__probe_kinds="[rewrite]", **nowhere)
    assert "rome-single needs probes of kind paraphrase, neighborhood, and records/facts has rewrite;" in refused(
        capsys, kinds
    )
    assert not (tmp_path / "runs").exists()


class Given(EditData):
    """A record without a subject."""

    def read(self) -> list[EditRecord]:
        return [EditRecord(EditRequest("7", "Rome is in", None, "Japan"), (Probe("rewrite", "Rome is in", "Japan"),))]


def test_subjects_and_rivals() -> None:
    with pytest.raises(KeditError, match=r"^protocol: rep-robust needs requests that name their subject, and record 7"):
        check_data(protocol("rep-robust"), Given())
    needs = Protocol("mine", "", "", {}, Needs(kinds=("rewrite",), rivals=("rewrite",)), "", "")
    with pytest.raises(KeditError, match=r"^protocol: mine needs an answer that competes with that of rewrite probes"):
        check_data(needs, Given())
    check_data(protocol("wild"), Given())


def test_a_sweep_over_protocols(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("model: {class_path: FT, init_args: {layers: [1]}}\ndata: {class_path: Facts}\n")
    sweep = tmp_path / "both.yaml"
    sweep.write_text(f"configs: [{config}]\ngrid: {{protocol: [wild, rome-single]}}\n")
    tasks = SweepFolder(tmp_path / "sweeps").planned(read_sweep(sweep), sweep).tasks
    configs = {config.protocol: config for config in (parsed(list(task.words)) for task in tasks)}
    assert set(configs) == {"wild", "rome-single"}
    assert configs["wild"].metrics.scoring.wild == ["rewrite", "paraphrase"]
    assert configs["rome-single"].metrics.scoring.wild == []


def test_a_run_does_not_go_on_under_another_protocol(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would measure some of its records so and the others so; it says so before the next edit."""

    def broken(*args: Any) -> None:
        raise KeditError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(RunResults, "of", broken)  # every edit is made, and no summary
        assert "broken off" in refused(capsys, words(QUICK_ROME, "wild", run__name="a"))
    for other in ("rome-single", None):
        given = words(QUICK_ROME, other, run__name="a", run__resume="true")
        said = refused(capsys, given if other else [*given, "--edit.regime", "single"])
        assert said == f"this checkpoint is of another run: its protocol is wild, here it is {other}"
    main(words(QUICK_ROME, "wild", run__name="a", run__resume="true"))
    assert json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())["protocol"]["name"] == "wild"
