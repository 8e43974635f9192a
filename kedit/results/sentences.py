"""What a model said, in sentences, from result rows alone: no model is asked.

Edited prompts have a free continuation (`generated`). Of other probes a row holds the argmax tokens: the answer itself
where all are right, and otherwise the beginning of what the model would say, for which a tokenizer is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kedit.results.rows import Saved
from kedit.text.lines import cut, cut_middle, first_clause, one_line
from kedit.text.matching import begins_with

Decode = Callable[[Sequence[int]], str]
"""Token ids to text."""

UNKNOWN_REST = ".."
SHORT, LONG, LONGEST = 40, 70, 140  # characters: of an answer, of a plain prompt, of any prompt in a sentence


def said(score: Saved, answer: str, decode: Decode | None = None) -> str | None:
    """How the model continues a probe's prompt, on one line.

    Args:
        score: One side of the probe.
        answer: The probe's.
        decode: Of the model's tokenizer; None where it is not at hand.

    Returns:
        The continuation; only its beginning, with `..` behind it, where no more is known; None where nothing is.
    """
    for name in ("generated", "wild_generated"):
        if score.get(name) is not None:
            return one_line(score[name])
    if score["exact"]:
        return one_line(answer)
    if decode is None:
        return None
    beginning = ""
    for n in range(1, len(score["top1"]) + 1):  # those after the first wrong one follow words that were not said
        beginning = decode(score["top1"][:n]).strip()
        if not answer.strip().startswith(beginning):
            break
    return one_line(beginning) + UNKNOWN_REST


def gives_answer(score: Saved) -> bool:
    """Whether the model says the answer: freely where that was measured, else by the most probable tokens."""
    return bool(score["exact"] if score.get("generated_match") is None else score["generated_match"])


@dataclass(frozen=True)
class Example:
    """An edited prompt.

    Attributes:
        prompt: The prompt.
        wanted: What was asked for.
        before: What the model said; empty where it was not measured.
        after: What it says.
        works: Whether that is what was asked for.
        plain: Whether it said the old answer before.
        error: Why it was not edited.
    """

    prompt: str
    wanted: str
    before: str
    after: str
    works: bool
    plain: bool
    error: str | None = None

    def line(self) -> str:
        """As a sentence."""
        if self.error is not None:
            return f"{self.prompt}: not edited, {self.error}"
        rest = "" if self.works else f"  (asked for: {self.wanted})"
        return f"{self.prompt}: {self.before} -> {self.after}{rest}"


@dataclass(frozen=True)
class Examples:
    """Examples of a run.

    Attributes:
        chosen: The plainest that work, and one that does not where there is any.
        works: Number of edited prompts that work.
        of: Number of all.
    """

    chosen: list[Example]
    works: int
    of: int


def examples(
    rows: Iterable[Mapping[str, Any]], measured_at: str, decode: Decode | None = None, most: int = 3
) -> Examples:
    """The plainest examples of a run.

    Args:
        rows: Of `results.jsonl`.
        measured_at: Moment of the rows that count.
        decode: Of the model's tokenizer.
        most: How many examples.
    """
    good: list[Example] = []
    bad: list[Example] = []
    for row in rows:
        if row["measured_at"] == measured_at:
            example = _example(row, decode)
            (good if example.works else bad).append(example)
    works, of = len(good), len(good) + len(bad)
    good.sort(key=lambda example: (not example.plain, len(example.prompt) > LONG))  # stable: else the run's order
    bad.sort(key=lambda example: example.error is not None)
    chosen = good[: most - bool(bad)]
    return Examples([*chosen, *bad[: max(most - len(chosen), 0)]], works, of)


def _example(row: Mapping[str, Any], decode: Decode | None) -> Example:
    request = row["request"]
    wanted = one_line(request["target_new"])
    probe = next((probe for probe in row["probes"] if probe["kind"] == "rewrite"), None)
    text = request["prompt"].replace("{}", request.get("subject") or "", 1) if probe is None else probe["text"]
    prompt = cut_middle(one_line(text), LONGEST)
    if row["status"] == "failed" or probe is None or probe["after"] is None:
        return Example(prompt, wanted, "", "", False, False, row.get("error") or "nothing was measured of it")
    before, after = (_plainly(probe[side], probe, decode) for side in ("before", "after"))
    old = probe["rival"] is not None and begins_with(before, [probe["rival"]])
    return Example(prompt, wanted, before, after, gives_answer(probe["after"]), old)


def _plainly(score: Saved | None, probe: Mapping[str, Any], decode: Decode | None) -> str:
    """The first thing that is said: the answer or its rival where it begins with that, else up to a comma or so."""
    text = None if score is None else said(score, probe["answer"], decode)
    if text is None:
        return "?"
    for name in (probe["answer"], probe["rival"]):
        if name and begins_with(text, [name]):
            return one_line(name)
    return cut(first_clause(text) or text, SHORT) or "(nothing)"
