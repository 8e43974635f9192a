"""Configurations, sweep files and words that no person would write: refused in a line that says where, at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import kedit.cli.commands.fit
from kedit.cli import main
from kedit.cli.commands.fit import parsed
from kedit.cli.options.nulls import accept_null
from kedit.runtime.yaml_text import LEVELS, load_yaml
from tests.support.config_mutants import mutants

COUNT = int(os.environ.get("KEDIT_CONFIG_MUTANTS", "25"))
"""By hand: KEDIT_CONFIG_MUTANTS=400."""

Said = Callable[[list[str]], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """What the command says of bad input, at most two lines; where it says nothing, the text is empty."""
    monkeypatch.setattr(kedit.cli.commands.fit, "fit", parsed)  # no run, should one be let through

    def run(words: list[str]) -> str:
        capsys.readouterr()
        try:
            main(words)
        except SystemExit as stop:
            status = stop.code
        else:
            return ""
        assert status == 2
        error = capsys.readouterr().err
        error = error[error.index("kedit: error: ") :].strip().removeprefix("kedit: error: ")
        assert len(error.splitlines()) <= 2, error
        assert len(error) < 700, error
        return error

    return run


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]" for i in range(9)
)
HOSTILE = {
    "empty": (b"", "empty"),
    "a list": (b"- 1", "empty"),
    "a number": (b"5", "empty"),
    "binary": (bytes(range(256)), "no UTF-8 text"),
    "utf-16": ("seed_everything: 1".encode("utf-16"), "no UTF-8 text"),
    "half a pair": (b"seed_everything: \xed\xa0\x80", "no UTF-8 text"),
    "half a pair, escaped": (b'run: {name: "\\ud800"}', "not valid YAML at line 1, column "),
    "NUL": (b'run: {name: "a\\0"}', "a NUL"),
    "deep": (b"a: " + b"[" * 10_000 + b"]" * 10_000, f"nested deeper than {LEVELS} levels"),
    "deep, not closed": (b"[" * 1_000_000, f"nested deeper than {LEVELS} levels"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(500)).encode(), f"nested deeper than {LEVELS} levels"),
    "in itself": (b"model: &a {class_path: *a}", "in itself"),
    "all in itself": (b"&a [*a]", "in itself"),
    "a bomb": (BOMB.encode(), "more than 200000 values"),
    "digits": (b"seed_everything: " + b"9" * 5000, "(4300 digits)"),
    "no date": (b"model: x\nrun: {name: x, more: 2020-13-45}", "month must be in 1..12"),
    "a key twice": (b"run: 1\nrun: 2", "line 2, column 1: the key 'run' is there twice"),
    "a tab": (b"model:\n\tclass_path: ROME", "line 2, column 1"),
    "two documents": (b"a: 1\n---\nb: 2", "another document"),
    "no alias": (b"model: *x", "undefined alias"),
    "a Python object": (b"model: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str, said: Said, tmp_path: Path) -> None:
    content, message = HOSTILE[case]
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    told = [said([*words, str(file)]) for words in (["fit", "--config"], ["stats", "--config"], ["sweep"], ["collect"])]
    told += [said(["slurm", "submit", str(file), "--dry-run"]), said(["slurm", "submit", "x", "--config", str(file)])]
    if case == "no date":  # as texts they are names to the option parser
        told = told[2:5]
    for error in told:
        assert message in error
        assert error.startswith("config: ") or "odd.yaml" in error


@pytest.mark.parametrize("command", [["fit", "--config"], ["stats", "-c"], ["sweep"], ["collect"], ["slurm", "status"]])
def test_paths_that_are_no_files(command: list[str], said: Said, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (
        tmp_path / "pipe",
        "/dev/zero",
        "~nobody/x.yaml",
        "~no-such-user/x.yaml",
        "a\0b",
        "x" * 5000,
        tmp_path,
    ):
        assert said([*command, str(path)])
    assert "no regular file" in said([*command, str(tmp_path / "pipe")])
    assert said(["fit", f"--config={tmp_path / 'pipe'}"]).startswith("config: ")
    assert said(["fit", "--model", "ROME", "--data", str(tmp_path / "pipe")]).startswith("data: ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("model: null\ndata: Facts", "--model missing"),
        ("model: ROME\ndata: 3", "data: expects class_path, the name of a class, and init_args"),
        ("model: {class_path: ROME, init_args: []}\ndata: Facts", "model: expects class_path"),
        ("model: {class_path: 3}\ndata: Facts", "model: "),
        ("model: os.system\ndata: Facts", "model: there is no class 'os.system' for it; there are "),
        ("model: kedit.errors.KeditError\ndata: Facts", "model: there is no class 'kedit.errors.KeditError' for it"),
        ("model: Facts\ndata: ROME", "model: there is no class 'Facts' for it"),
        (
            "model: ROME\nlm: {class_path: x}\ndata: Facts",
            "lm: for a LMConfig it expects",
        ),
        ("model: ROME\ndata: Facts\ntrainer: -1", "trainer: expects options of its own below it, not -1"),
        ("model: ROME\ndata: Facts\nprogress: 3", "progress: expects options of its own below it, not 3"),
        ("model: ROME\ndata: Facts\n3: 3", "config: a key below it is no name of an option: 3"),
        ("model: {class_path: ROME, init_args: {v_lr: {a: 1}}}\ndata: Facts", "model.v_lr: expects a number or null"),
    ],
)
def test_structures(config: str, message: str, said: Said, tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(config)
    assert said(["fit", "--config", str(file)]).startswith(message)


def test_words(said: Said) -> None:
    start = ["fit", "--model=ROME", "--data=Facts"]
    assert said([*start, "--model.layer=" + "[" * 10_000]).startswith(
        "model.layer: expects a whole number or auto or null, not '[["
    )
    assert said([*start, "--model.contexts.lengths=&a [*a]"]).startswith("model.contexts.lengths: expects list")
    assert said([*start, "--model.layer="]).startswith("model.layer: expects a whole number or auto or null")
    assert said([*start, "--print_config", "--model.layr=3"]).startswith("model.layr: there is no such option")
    assert said([*start, "--config"])
    assert said([*start, "--run.name=\udcff"]) == "run.name: '\\udcff' is no text: half of a UTF-16 pair, or bytes " \
        "that are no UTF-8"  # fmt: skip


def test_what_a_person_writes_is_read_as_before() -> None:
    for text in (
        "5",
        "null",
        "a: {b: [1, 2.5, x]}",
        "a: &a {b: 1}\nc: *a\nd: {<<: *a, b: 2}",
        "x\ny",
        '"a: 1"',
        "[[5, 10]]",
    ):
        assert load_yaml(text) == yaml.safe_load(text)
    accept_null()
    assert parsed(["--model=ROME", "--data=Facts", "--metrics.scoring.stop=\n"]).metrics.scoring.stop == "\n"
    twice = ["--config=configs/rome_smollm2.yaml", "--config=configs/rome_smollm2.yaml", "--model.layer=3"]
    assert parsed(twice).model.init_args.layer == 3


def test_mutants(said: Said, tmp_path: Path) -> None:
    """Every one is read, or refused in two lines at most that are no text of Python's."""
    file = tmp_path / "mutant.yaml"
    read = 0
    for what, content in mutants(seed=19, count=COUNT):
        file.write_bytes(content)
        try:
            error = said(["fit", "--config", str(file)])
        except BaseException as error:
            error.add_note(f"{what}; its text is in {file}")
            raise
        assert not re.search(r"object has no attribute|unhashable|not subscriptable|Traceback", error), what
        read += not error
    assert 0 < read < COUNT, "some do no harm, and some do"
