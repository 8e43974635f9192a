"""`kedit fit --help`: a page that names options that exist, and the rest by topic."""

from __future__ import annotations

import re

import pytest

from kedit.cli import main
from kedit.cli.options.first_look import first_look
from kedit.cli.options.help import PAGE, topic_of, words_for
from kedit.errors import KeditError
from tests.support.paths import ROOT

TEXT = PAGE.read_text(encoding="utf-8")
OPTIONS = sorted(set(re.findall(r"--([a-z_]+\.[a-z_.]+)", TEXT)))


def test_the_page_is_a_page() -> None:
    lines = TEXT.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 80
    assert 15 <= len(OPTIONS) <= 25


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_the_page_exists(option: str) -> None:
    data = "Records" if option == "data.path" else "Facts"
    first_look(["--model", "ROME", "--data", data, f"--{option}", "1"])
    if not option.startswith("trainer."):
        with pytest.raises(KeditError, match="there is no such option"):
            first_look(["--model", "ROME", "--data", data, f"--{option}s", "1"])


def test_what_the_page_names_exists() -> None:
    for file in re.findall(r"configs/[a-z0-9_]+\.yaml", TEXT):
        assert (ROOT / file).exists()
    groups = re.search(r"of a group: (.*?)\n  kedit", TEXT, re.DOTALL)
    assert groups
    for topic in (*re.split(r",\s+", groups[1]), *re.findall(r"--help (\S+)", TEXT)):
        assert topic_of(["--help", topic]) == topic


@pytest.mark.parametrize(
    ("words", "topic"),
    [
        ("--config a.yaml", None),
        ("--help", ""),
        ("-h", ""),
        ("--config a.yaml --help", ""),
        ("--help --config a.yaml", ""),
        ("--help all", "all"),
        ("--help=metrics", "metrics"),
        ("--help-trainer", "trainer"),
        ("--help ROME", "ROME"),
    ],
)
def test_topics(words: str, topic: str | None) -> None:
    assert topic_of(words.split()) == topic


def test_a_method_s_options_are_the_parser_s() -> None:
    assert words_for("ROME") == ["--model.help", "ROME"]
    assert words_for("Records") == ["--data.help", "Records"]
    assert words_for("metrics") == words_for("all") == ["--help"]


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("metrcs", "did you mean metrics"),
        ("Rome", "did you mean ROME"),
        ("weather", "there are metrics"),
        ("Wanted", "there are metrics"),
    ],
)
def test_an_unknown_topic(topic: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help", topic])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("topic", "shown", "hidden"),
    [
        ("metrics", "--metrics.scoring.wild", "--texts.enabled"),
        ("trainer", "--trainer.gradient_clip_val", "--lm.name"),
        ("all", "--latent.examples", "--trainer.gradient_clip_val"),
        ("ROME", "mom2_adjustment", "--texts.enabled"),
    ],
)
def test_help_on_a_topic(topic: str, shown: str, hidden: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help", topic])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert shown in out
    assert hidden not in out
