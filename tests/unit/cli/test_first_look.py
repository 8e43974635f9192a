"""The first look at a command: what it refuses, and that it imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from inspect import isclass
from pathlib import Path
from typing import Any

import pytest

from kedit import data, methods
from kedit.cli.options.first_look import first_look
from kedit.cli.options.parts import TOP
from kedit.cli.options.signatures import ROOT as LIBRARY
from kedit.cli.options.signatures import groups, options
from kedit.errors import KeditError
from kedit.runtime.option_groups import _hints
from tests.support.paths import ROOT

CONFIG = str(ROOT / "configs" / "rome_smollm2.yaml")
METHODS = [name for name in methods.__all__ if name != "EditingModule"]
DATA = [name for name, _, _ in data.datasets_index()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--config nope.yaml", "config: there is no file nope.yaml"),
        (CONFIG, f"'{CONFIG}': there is no option before it; a configuration is given by --config {CONFIG}"),
        ("--modle ROME", "modle: there is no such option; did you mean model?"),
        ("--model ROMEE --data Facts", "model: there is no class 'ROMEE' for it; did you mean ROME?"),
        (
            "--model ROME --data my3.jsonl",
            "data: expects a class, and its file as its path: --data Records --data.path my3.jsonl "
            "(kedit ls lists the other forms)",
        ),
        ("--model ROME --data Fact", "data: there is no class 'Fact' for it; did you mean Facts?"),
        (f"--config {CONFIG} --run.nmae x", "run.nmae: there is no such option; did you mean name?"),
        (f"--config {CONFIG} --edit.regmie single", "edit.regmie: there is no such option; did you mean regime?"),
        (f"--config {CONFIG} --lm.nam x", "lm.nam: there is no such option; did you mean name?"),
        (f"--config {CONFIG} --model.init_args.layr 3", "model.layr: there is no such option; did you mean layer?"),
        (f"--config {CONFIG} --data.limt=3", "data.limt: there is no such option; did you mean limit?"),
        (
            f"--config {CONFIG} --model.stats.token 9",
            "model.stats.token: there is no such option; did you mean tokens?",
        ),
    ],
)
def test_slips(words: str, message: str) -> None:
    with pytest.raises(KeditError) as caught:
        first_look(words.split())
    assert str(caught.value) == message


def test_slips_in_a_configuration(tmp_path: Path) -> None:
    for text, message in (
        ("modle: ROME", "modle: there is no such option; did you mean model?"),
        ("model: {class_path: ROME, init_args: {layr: 3}}", "model.layr: there is no such option; did you mean layer?"),
        ("data: {class_path: Facts, init_args: {queries: {shufles: 3}}}", "data.queries.shufles: there is no such"),
    ):
        file = tmp_path / "slip.yaml"
        file.write_text(text)
        with pytest.raises(KeditError) as caught:
            first_look(["--config", str(file)])
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "words",
    [
        "--model my_method.Mine --data Facts --model.anything 3",
        "--model REP --data Facts --model.editor MEMIT --model.editor.layers [1,2]",
        "--model ROME --data Facts --trainer.acelerator cpu",
        "--model.layer -1 --model ROME --data Facts",
        "--config {model:ROME} --data.layr 3",
        "--help",
        "--model ROME --model MEMIT --model.layr 3",
        "--print_config",
    ],
)
def test_what_is_left_to_the_option_parser(words: str) -> None:
    first_look(words.split())


FILES = [file for file in sorted((ROOT / "configs").rglob("*.yaml")) if file.parent.name != "protocols"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_passes(file: Path) -> None:
    first_look(["--config", str(file)])


def nested(cls: Any) -> dict[str, Any]:
    return {name: hint for name, hint in _hints(cls).items() if name != "return"}


@pytest.mark.parametrize("name", [*METHODS, *DATA])
def test_options_are_those_of_the_class(name: str) -> None:
    cls = getattr(methods, name, None) or getattr(data, name)
    assert options(name) is not None
    assert set(options(name) or {}) == set(nested(cls)) - {"kwargs"}
    for option, hint in nested(cls).items():
        if isclass(hint) and is_dataclass(hint):
            below = (options(name) or {})[option]
            assert set(options(below) or {}) == {field.name for field in fields(hint)}


def test_groups_are_those_of_the_command() -> None:
    assert groups(LIBRARY / "cli" / "options" / "parts.py") == {name: cls.__name__ for name, cls in TOP.items()}
    for cls in TOP.values():
        assert set(options(cls.__name__) or {}) == set(nested(cls)) - {"kwargs"}


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "--version",
        "fit --help",
        "fitt",
        "fit --config nope.yaml",
        "fit --model ROME --model.layr 3",
        "sweep nope.yaml",
    ],
)
def test_nothing_heavy_is_imported_for_it(words: str) -> None:
    code = (
        "import sys\n"
        "from kedit.cli.main import main\n"
        f"try: main({words.split()!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
