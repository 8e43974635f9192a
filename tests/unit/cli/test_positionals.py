"""Words without a name stand where the user likes."""

from __future__ import annotations

import pytest
from jsonargparse import ArgumentParser

from kedit.cli.options.positionals import positionals_first


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("m --delta d p q", "m p q --delta d"),
        ("--delta d m --chat p", "m p --delta d --chat"),
        ("m --delta=d p", "m p --delta=d"),
        ("m --del d p", "m p --del d"),
        ("m --delta", "m --delta"),
        ("m --unknown p", "m p --unknown"),
        ("m --chat -- --delta p", "m --delta p --chat"),
        ("m - p", "m - p"),
        ("", ""),
    ],
)
def test_they_come_first(words: str, found: str) -> None:
    parser = ArgumentParser()
    parser.add_argument("--delta", action="append", type=str)
    parser.add_argument("--chat", action="store_true")
    assert positionals_first(parser, words.split()) == found.split()
