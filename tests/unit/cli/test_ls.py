"""`kedit ls methods`: a line of each method, from its class, and nothing else."""

from __future__ import annotations

import pytest

from kedit import methods
from kedit.cli import main
from kedit.cli.commands.ls import EDITORS
from kedit.methods.base.method_card import MethodCard
from kedit.runtime.protocols import protocols

NAMES = [name for name in methods.__all__ if name != "EditingModule"]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Method -> the cells of its line, in a terminal that is wide enough for one."""
    monkeypatch.setenv("COLUMNS", "300")
    main(["ls", "methods"])
    rows = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_every_method_has_a_line(lines: dict[str, list[str]]) -> None:
    assert list(lines) == NAMES
    for name, (paper, regimes, changes, needs, cost) in lines.items():
        method = getattr(methods, name)
        assert isinstance(method.card, MethodCard)
        assert (paper, changes, cost) == (method.card.paper, method.card.changes, method.card.cost)
        assert regimes == (EDITORS if isinstance(method.regimes, property) else ", ".join(method.regimes))
        assert set(method.card.needs) <= set(needs.split(", "))
        assert paper
        assert needs


def test_some_lines(lines: dict[str, list[str]]) -> None:
    assert lines["ROME"][1] == "single, sequential"
    assert lines["ROME"][3] == "subject, statistics"
    assert lines["REP"][1] == EDITORS
    assert lines["PAC"][3] == "nothing"


def test_its_legend_and_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ls", "methods"])
    out = capsys.readouterr().out
    assert "true target: the request has it" in out
    assert "data sets" not in out
    main(["ls", "--help"])
    assert "usage: kedit ls [methods | models | protocols]" in capsys.readouterr().out


def test_another_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ls", "method"])
    assert stop.value.code == 2
    assert "kedit ls takes nothing, or the word methods, models or protocols, got method" in capsys.readouterr().err


def test_protocols(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["ls", "protocols"])
    out = capsys.readouterr().out
    for name, named in protocols().items():
        assert name in out
        assert all(f"{option}: " in out for option in named.settings)
