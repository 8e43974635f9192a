"""What is read off a continuation, and how a table shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kedit.editing.sentences import Sentence, answer_of, to_sentence
from kedit.editing.table import LONGEST, edit_view, plain, remarks, sentence_table, verdict


@pytest.mark.parametrize(
    ("text", "sentence", "answer"),
    [
        (" Paris. It is the largest city", " Paris", "Paris"),
        (" Paris, the capital of the country", " Paris, the capital of the country", "Paris"),
        (" in the U.S. state of Texas. The", " in the U.S. state of Texas", "in the U.S"),
        (" the city of light and of love", " the city of light and of love", "the city of light and"),
        (" 3.5 million", " 3.5 million", "3.5 million"),
        (" well-known", " well-known", "well-known"),
        ("", "", ""),
        ("\n\nThe official one.\nIt", "The official one", "The official one"),
        ("\n", "", ""),
        ("...", "...", ""),
        (' "Paris."', ' "Paris', '"Paris'),
    ],
)
def test_answers(text: str, sentence: str, answer: str) -> None:
    assert to_sentence(text) == sentence
    assert answer_of(sentence) == answer


REQUEST = Sentence("The capital of France is", "request", " Paris", "Lyon", "Paris", 0.001, 0.77, "1")


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (REQUEST, replace(REQUEST, text=" Lyon, on the Rhone"), "edited"),
        (REQUEST, replace(REQUEST, text=" Lyons"), "missed"),
        (REQUEST, REQUEST, "missed"),
        (replace(REQUEST, kind="neighbour"), replace(REQUEST, kind="neighbour", text=" Paris, which"), "kept"),
        (replace(REQUEST, kind="neighbour"), replace(REQUEST, kind="neighbour", text=" Lyon"), "changed"),
        (replace(REQUEST, kind="question"), replace(REQUEST, kind="question", text=" Lyon"), "changed"),
        (replace(REQUEST, kind="question"), replace(REQUEST, kind="question"), "same"),
    ],
)
def test_verdicts(before: Sentence, after: Sentence, word: str) -> None:
    assert verdict(before, after)[0] == word


def test_the_table() -> None:
    paraphrase = replace(REQUEST, kind="paraphrase", prompt=f"So they say. {REQUEST.prompt}", p_old=None)
    long = replace(REQUEST, kind="question", case_id=None, prompt="[red]x[/red]", text=" word" * 20, p_new=1e-7)
    before = [REQUEST, paraphrase, long]
    after = [replace(one, text=" Lyon", p_new=0.9999) for one in before]
    text = plain(edit_view("title", sentence_table(before, after), ["[bold]below[/bold]"]), width=160)
    lines = text.splitlines()
    assert lines[0] == "title"
    assert lines[-1] == "[bold]below[/bold]"  # nothing that a user wrote is markup
    assert "p(Lyon)" in lines[2]
    assert "0.1% > 100%" in text
    assert "77% > 77%" in text
    assert "0% > 100%" in text
    assert "So they say. [...]" in text
    assert "[red]x[/red]" in text
    assert "word" * LONGEST not in text
    assert "word.." in text
    assert "word word" in str(long)
    many = [REQUEST, replace(REQUEST, new="Nice", case_id="2")]
    assert "p(new)" in plain(sentence_table(many, many))


def test_remarks() -> None:
    known, silent = replace(REQUEST, text=" Lyon"), replace(REQUEST, text="")
    assert remarks([REQUEST, replace(REQUEST, kind="paraphrase", text=" Lyon")]) == []
    assert "new target already: " in remarks([known])[0]
    assert "already to 1 of 2 prompts" in remarks([REQUEST, known])[0]
    assert "says nothing" in remarks([silent])[0]
