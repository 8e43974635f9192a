"""A record of a run to be read in a terminal: what was asked for, what the model said and says, probe by probe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kedit.results.rows import Saved, unchanged
from kedit.results.sentences import Decode, said
from kedit.results.summary import INVARIANT
from kedit.text.lines import cut, cut_middle, one_line

LEGEND = """\
p: probability of the wanted answer, per token, in percent, before -> after.
yes: the model says it; prefers: it does not, but finds it more probable than
the old answer; no: neither. same, changed: whether its words are as before.
".." stands for what comes then."""

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "rewrite": "the edited prompt",
        "paraphrase": "in other words",
        "neighborhood": "neighbours, which should stay as they were",
        "portability": "what follows from it",
        "paraphrase_id": "other names of the subject, such as may train",
        "paraphrase_ood": "other names of the subject, that never train",
        "shuffle_id": "the name in another order, such as may train",
        "shuffle_ood": "the name in another order, that never trains",
        "long_context": "behind another text",
        "prefix_50": "behind 50 tokens of another text",
        "prefix_200": "behind 200 tokens of another text",
        "negated": "denied: what it no longer is",
        "neighborhood_prefixed": "neighbours behind the edited fact, which should stay as they were",
        "choice": "one of four, from memory",
        "choice_supporting": "one of four, behind a text that says the new fact",
        "choice_irrelevant": "one of four, behind a text on something else",
        "choice_contradicting": "one of four, behind a text that says the old fact",
    }
)
"""What kinds of probe ask; any other kind has its own name."""

STYLES: Mapping[str, str] = MappingProxyType(
    {"yes": "green", "same": "green", "prefers": "yellow", "no": "red", "changed": "red"}
)

PROMPT, SAID = 200, 60  # characters of a prompt and of a continuation in short

Row = Mapping[str, Any]


def verdict(probe: Mapping[str, Any]) -> str:
    """What came of a probe, in a word of `LEGEND`; empty where it was not measured."""
    before, after = probe["before"], probe["after"]
    if after is None:
        return ""
    if probe["kind"] in INVARIANT:
        return "" if before is None else "same" if unchanged(before, after)["unchanged"] else "changed"
    if after.get("choice") is not None:
        return "yes" if after["choice"] else "prefers" if after["success"] else "no"
    return "yes" if after["exact"] else "prefers" if after["success"] else "no"


def works(row: Row, kind: str | None = None) -> bool:
    """Whether a record's probes of a kind came out as they should; without a kind, whether its edited prompt did."""
    probes = [probe for probe in row["probes"] if probe["kind"] == (kind or "rewrite")]
    return row["status"] != "failed" and all(verdict(probe) in ("yes", "same", "") for probe in probes)


def request_line(row: Row) -> Text:
    """What was asked for: the prompt, the new answer, and the old one where the data has it."""
    request = row["request"]
    prompt = request["prompt"].replace("{}", request.get("subject") or "{}", 1)
    old = f" (before: {one_line(request['target_true'])})" if request.get("target_true") else ""
    return Text.assemble(f"{one_line(prompt)}: ", (one_line(request["target_new"]), "bold"), old)


def record_view(row: Row, kind: str | None = None, decode: Decode | None = None, whole: bool = False) -> Group:
    """A record at one moment of measurement.

    Args:
        row: Its row.
        kind: Show only probes of this kind.
        decode: Of the model's tokenizer, for what is known as tokens alone.
        whole: Show long prompts and continuations to their end.
    """
    parts: list[RenderableType] = []
    if row["status"] == "failed":
        parts.append(Text(f"not edited: {one_line(str(row.get('error')))}", style="red"))
    probes = [probe for probe in row["probes"] if kind in (None, probe["kind"])]
    for name, group in groupby(probes, key=lambda probe: probe["kind"]):
        parts.append(_kind(name, list(group), decode, whole))
    return Group(*parts)


def figures(row: Row) -> Text:
    """Figures of the edit itself, as the method gave them."""
    pairs = [f"{name} {_figure(value)}" for name, value in row["edit"].items() if isinstance(value, int | float | str)]
    return Text(", ".join(pairs) or "none")


def _kind(name: str, probes: Sequence[Mapping[str, Any]], decode: Decode | None, whole: bool) -> Group:
    answers = {probe["answer"] for probe in probes}
    common = one_line(answers.pop()) if len(answers) == 1 else None
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(ratio=1, overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, min_width=8)
    for probe in probes:
        for cells in _probe(probe, common is None, decode, whole):
            table.add_row(*cells)
    heading = f"{TITLES[name]} ({name})" if name in TITLES else name
    title = Text.assemble((heading, "bold"), "" if common is None else f": {common}")
    return Group(Padding(title, (0, 0, 0, 2)), Padding(table, (0, 0, 0, 4)))


def _probe(
    probe: Mapping[str, Any], name_answer: bool, decode: Decode | None, whole: bool
) -> Iterator[tuple[RenderableType, ...]]:
    """The prompt with figures, and below it what was said."""
    word = verdict(probe)
    wanted = f" [{one_line(probe['answer'])}]" if name_answer else ""
    chances = [_percent(probe[side]) for side in ("before", "after")]
    yield (
        Text((one_line(probe["text"]) if whole else cut_middle(one_line(probe["text"]), PROMPT)) + wanted),
        Text(" -> ".join(chances) if any(chances) else ""),
        Text(word, style=STYLES.get(word, "")),
    )
    texts = [_said(probe[side], probe["answer"], decode) for side in ("before", "after")]
    if any(texts):
        texts = [text if whole or text is None else cut(text, SAID) for text in texts]
        line = Text.assemble((texts[0] or "?", "dim"), (" -> ", "dim"), (texts[1] or "?", STYLES.get(word, "")))
        yield Padding(line, (0, 0, 0, 2)), "", ""


def _said(score: Saved | None, answer: str, decode: Decode | None) -> str | None:
    return None if score is None else said(score, answer, decode)


def _percent(score: Saved | None) -> str:
    if score is None:
        return ""
    return f"{100 * math.exp(-score['nll_answer']):.1f}"


def _figure(value: float | str) -> str:
    return one_line(value) if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else str(value)
