"""Long work away from a terminal: a line now and then."""

from __future__ import annotations

import logging

import pytest

from kedit.runtime import progress


def test_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO, "kedit"), progress.stages() as report:
        for done in range(1, 9):
            now += 10
            report("reading text", done, 9)
        now += 29
        report("sampling text", 5, 7)
        now += 1
        report("sampling text", 6, 7)
    assert caplog.messages == [
        "reading text: 3 of 9, about 60 s left",
        "reading text: 6 of 9, about 30 s left",
        "sampling text: 5 of 7",
    ]


def test_short_work_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kedit"), progress.stage("anchors") as report:
        for done in range(5):
            report(done, 5)
    assert not caplog.messages
