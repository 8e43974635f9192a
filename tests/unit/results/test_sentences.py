"""What a model said, from result rows: free text, the argmax tokens, and the plainest examples of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from kedit.results.sentences import examples, gives_answer, said
from kedit.text.lines import cut, cut_middle, first_clause, one_line

WORDS = {1: " New", 2: " York", 3: " Zealand", 4: " Rome", 5: " the"}


def decode(ids: Sequence[int]) -> str:
    return "".join(WORDS[i] for i in ids)


def score(*top1: int, exact: bool = False, generated: str | None = None, match: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"nll_answer": 1.0, "nll_rival": 2.0, "success": True, "exact": exact, "top1": list(top1)}
    return found if generated is None else found | {"generated": generated, "generated_match": match}


@pytest.mark.parametrize(
    ("given", "answer", "text"),
    [
        (score(4, exact=True), "Rome", "Rome"),
        (score(1, 2), "New Zealand", "New York.."),
        (score(5, 3), "New Zealand", "the.."),  # " Zealand" follows a word that the model did not say
        (score(1, 3), "New Zealand", "New Zealand.."),
        (score(5, generated=" Rome,\n the  eternal"), "Rome", "Rome, the eternal"),
    ],
)
def test_what_was_said(given: dict[str, Any], answer: str, text: str) -> None:
    assert said(given, answer, decode) == text


def test_without_a_tokenizer() -> None:
    assert said(score(5), "Rome") is None
    assert said(score(4, exact=True), "Rome") == "Rome"


def test_free_text_decides_where_there_is_any() -> None:
    assert gives_answer(score(4, exact=False, generated="Rome", match=True))
    assert not gives_answer(score(4, exact=True, generated="Romeo", match=False))
    assert gives_answer(score(4, exact=True))


def row(case: str, before: str, after: str, prompt: str = "The capital of X is", **more: Any) -> dict[str, Any]:
    probe = {"kind": "rewrite", "text": prompt, "answer": "Rome", "rival": "Paris"}
    sides = {"before": score(5, generated=before), "after": score(5, generated=after, match=after.startswith("Rome"))}
    request = {"prompt": "The capital of {} is", "subject": "X", "target_new": "Rome"}
    return {
        "case_id": case, "measured_at": "edit", "status": "edited", "request": request, "probes": [probe | sides],
    } | more  # fmt: skip


def test_the_plainest_come_first_and_one_that_does_not_work() -> None:
    rows = [
        row("a", "a city, or so", "Rome. Yes"),
        row("b", "Paris, France", "Rome, Italy", prompt="long " * 40),
        row("c", "Paris", "London (in England)"),
        row("d", "Paris.", "Rome"),
        row("e", "Paris", "Rome", measured_at="editor"),
        row("f", "Paris", "Madrid"),
        row("g", "", "", status="failed", error="v* is not finite"),
    ]
    found = examples(rows, "edit")
    assert (found.works, found.of) == (3, 6)
    long = " .. ".join(["long long"] * 2)
    lines = [example.line() for example in found.chosen]
    assert lines[0] == "The capital of X is: Paris -> Rome"
    assert lines[1].startswith("long long")
    assert long.count("..") == 1
    assert len(lines[1]) < 170
    assert lines[2:] == ["The capital of X is: Paris -> London  (asked for: Rome)"]


def test_all_work_or_none() -> None:
    good = [row(str(i), "Paris", "Rome") for i in range(5)]
    assert [example.works for example in examples(good, "edit").chosen] == [True] * 3
    bad = [row("0", "Paris", "Paris"), row("1", "Paris", "", status="failed", error="no")]
    lines = [example.line() for example in examples(bad, "edit").chosen]
    assert lines == ["The capital of X is: Paris -> Paris  (asked for: Rome)", "The capital of X is: not edited, no"]
    assert examples([], "edit").of == 0


def test_a_record_of_which_nothing_was_measured() -> None:
    unfit = row("0", "", "", status="failed", error="too long")
    unfit["probes"][0] |= {"before": None, "after": None}
    assert [example.line() for example in examples([unfit], "edit").chosen] == [
        "The capital of X is: not edited, too long"
    ]


def test_lines() -> None:
    assert one_line("a\n\tb\x1b[31m  c") == "a b\\x1b[31m c"
    assert cut("one two three", 13) == "one two three"
    assert cut("one two three", 11) == "one two.."
    assert cut("abcdefgh", 6) == "abcd.."
    assert cut_middle("abcdefghijklmnop", 10) == "abc .. nop"
    assert [first_clause(text) for text in ("Rome, Italy", "3.5 km", "Rome (Italy)", "罗马，意大利", "Rome")] == [
        "Rome", "3.5 km", "Rome", "罗马", "Rome",
    ]  # fmt: skip
