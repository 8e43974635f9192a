"""Options in layers: a change of the data's class drops the old one's settings, wherever the change is written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from kedit.cli.commands.fit import parsed
from kedit.cli.commands.probe_anchors import _parser
from kedit.cli.options.layers import class_first

BASE = """\
lm:
  name: some-model
model:
  class_path: ROME
  init_args:
    layer: 3
data:
  class_path: Facts
  init_args:
    limit: 30
    known: true
    shuffle_seed: 0
    queries:
      shuffles: 4
"""


def made(tmp_path: Path, *words: str, second: str | None = None) -> Any:
    (tmp_path / "base.yaml").write_text(BASE)
    more = []
    if second is not None:
        (tmp_path / "second.yaml").write_text(second)
        more = ["--config", str(tmp_path / "second.yaml")]
    return parsed(["--config", str(tmp_path / "base.yaml"), *more, *words])


def settings(data: Any) -> tuple[Any, ...]:
    return tuple(data.init_args[name] for name in ("limit", "known", "shuffle_seed"))


RECORDS = "data:\n  class_path: Records\n  init_args:\n    path: mine.jsonl\n"
ITSELF = '{"class_path": "Records", "init_args": {"path": "mine.jsonl"}}'


@pytest.mark.parametrize(
    ("words", "second"),
    [
        (["--data", "Records", "--data.init_args.path", "mine.jsonl"], None),
        (["--data=kedit.data.Records", "--data.path=mine.jsonl"], None),
        (["--data.class_path", "Records", "--data.path", "mine.jsonl"], None),
        (["--data.path", "mine.jsonl", "--data", "Records"], None),
        (["--data", ITSELF], None),
        ([], RECORDS),
    ],
)
def test_another_class_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, words: list[str], second: str | None
) -> None:
    with caplog.at_level(logging.INFO, "kedit"):
        data = made(tmp_path, *words, second=second).data
    assert (data.class_path, data.init_args.path) == ("kedit.data.Records", "mine.jsonl")
    assert settings(data) == (None, False, None)
    assert data.init_args.queries is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("data: Records takes the place of Facts, whose settings no longer count: ")
    assert "limit 30" in line


def test_what_is_given_for_the_new_class_counts(tmp_path: Path) -> None:
    words = ["--data.limit", "3", "--data", "Records", "--data.path", "mine.jsonl", "--data.known=true"]
    assert settings(made(tmp_path, *words).data) == (3, True, None)
    second = RECORDS + "    skip: 2\n"
    data = made(tmp_path, "--data.shuffle_seed", "7", second=second).data
    assert (settings(data), data.init_args.skip) == ((None, False, 7), 2)


@pytest.mark.parametrize(
    ("words", "second", "limit"),
    [
        (["--data", "Facts"], None, 30),
        (["--data", "kedit.data.datasets.Facts"], None, 30),
        (["--data.limit", "3"], None, 3),
        (["--data", "Facts", "--data.init_args.limit", "3"], None, 3),
        ([], "data:\n  init_args:\n    limit: 3\n", 3),
        ([], "data: Facts\n", 30),
    ],
)
def test_the_same_class_keeps_its_settings(tmp_path: Path, words: list[str], second: str | None, limit: int) -> None:
    data = made(tmp_path, *words, second=second).data
    assert settings(data) == (limit, True, 0)
    assert data.init_args.queries.shuffles == 4


def test_a_method_keeps_the_settings_of_the_same_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kedit"):
        config = made(tmp_path, "--model", "RROME")
        other = made(tmp_path, "--model", "REP", "--model.editor", "ROME")
    assert (config.lm.name, config.model.init_args.layer) == ("some-model", 3)
    assert other.lm.name == "some-model"
    assert settings(config.data) == (30, True, 0)
    assert "model: RROME takes the place of ROME, whose settings of the same name stay: " in caplog.text


def test_words_do_not_pass_a_config() -> None:
    words = ["--data.limit", "3", "--data=A", "-c", "x.yaml", "--data.skip", "-1", "--run.name", "r", "--data", "B"]
    assert class_first(words) == [
        *("--data=A", "--data.limit", "3", "-c", "x.yaml"),
        *("--data", "B", "--data.skip", "-1", "--run.name", "r"),
    ]


def test_probe_anchors_begins_anew_too() -> None:
    words = ["--data", "Facts", "--data.limit", "3", "--data", "Records", "--data.path", "mine.jsonl"]
    data = _parser().parse_args(words).data
    assert (data.class_path, data.init_args.limit) == ("kedit.data.Records", None)
