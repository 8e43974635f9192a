"""Files of the published benchmarks, for their readers and for `kedit data check`."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

from kedit.cli import main
from kedit.data import read_knowedit, read_qaedit, read_ripple_edits, read_unke, read_wikibigedit
from kedit.request import EditRecord
from tests.fuzz.data import DataFiles, Form, Rows, Wish, answers, first_of, plain
from tests.fuzz.harness import Case, Wrong
from tests.support import benchmark_records as made
from tests.support.tiny_models import save_tiny

CHECKED = 0.3  # share of the cases that `kedit data check` is given


class Benchmarks(DataFiles):
    """Small files of every benchmark, changed as values, as text and as bytes."""

    name, seconds = "benchmarks", 60.0
    runs = 0.01

    def __init__(self, folder: Path) -> None:
        self.model = str(save_tiny(folder / "model", "llama", n_layers=2, d_model=16, d_ff=40, context=128))
        self.forms = {
            "knowedit": Form(read_knowedit, "KnowEdit", made.KNOWEDIT, _knowedit),
            "wikibio": Form(read_knowedit, "KnowEdit", made.WIKIBIO, _knowedit),
            "wikibigedit": Form(read_wikibigedit, "WikiBigEdit", made.WIKIBIGEDIT, _wikibigedit),
            "flat": Form(read_wikibigedit, "WikiBigEdit", made.WIKIBIGEDIT_FLAT, _wikibigedit),
            "qaedit": Form(read_qaedit, "QAEdit", made.QAEDIT, _qaedit),
            "ripple": Form(read_ripple_edits, "RippleEdits", made.RIPPLE, lambda row: None, own=_as_sentences),
            "unke": Form(read_unke, "UnKE", made.UNKE, _unke),
            "akew": Form(read_unke, "UnKE", made.AKEW, _unke),
        }
        self.fields = frozenset(name for form in self.forms.values() for row in form.rows for name in row)

    def case(self, chance: Random, folder: Path) -> Case:
        """One file of one form, for its reader or for the command."""
        case = super().case(chance, folder)
        if chance.random() > CHECKED:
            return case
        (path,) = folder.iterdir()
        name = self.forms[path.stem].data
        given = [f"--format={name}"] if chance.random() < 0.5 else []

        def run(said: Any) -> str:
            main(["data", "check", str(path), *given])
            if "the first record as kedit has it:" not in said.text:
                raise Wrong("nothing was said")
            return "checked"

        return Case(f"{case.change}, check {' '.join(given)}", run)


def _kept(prompt: str, subject: str | None, target: str, truths: Any = None) -> list[Wish] | None:
    """What a record asks for: nothing, where it has no target, is no edit, or does not name its subject."""
    if "{" in prompt or "}" in prompt:
        return None  # a template, or braces that mean themselves
    target = plain(target)
    if not target or target in answers(truths):
        return []
    if subject is not None:
        named = subject.strip()
        word = rf"(?<!\w){re.escape(named)}(?!\w)"
        if not named or not (named in prompt.strip() or re.search(word, prompt, re.IGNORECASE)):
            return []
    return [(plain(prompt), target)]


def _knowedit(row: dict[str, Any]) -> list[Wish] | None:
    target = first_of(row, "target_new", "labels")
    return _kept(first_of(row, "prompt", "text"), first_of(row, "subject", "concept"), target, row.get("ground_truth"))


def _wikibigedit(row: dict[str, Any]) -> list[Wish] | None:
    prompt = first_of(row, "update", "prompt", "question")
    return _kept(prompt, row["subject"], first_of(row, "ans", "target_new", "target"))


def _qaedit(row: dict[str, Any]) -> list[Wish] | None:
    truths = first_of(row, "target_true", "ground_truth")
    return _kept(row["prompt"], row["subject"], first_of(row, "target_new", "target"), truths)


def _unke(row: dict[str, Any]) -> list[Wish] | None:
    rewrite = row.get("requested_rewrite")
    if rewrite is None:
        return _kept(row["question"], None, row["answer"])
    rewrite = rewrite[0] if isinstance(rewrite, list) else rewrite
    return _kept(rewrite.get("prompt_full") or rewrite["question"], None, rewrite["fact_new_uns"])


def _as_sentences(records: list[EditRecord], rows: Rows) -> None:
    """Every request with its target is the sentence of an edit."""
    sentences = {_words(row["edit"]["prompt"]) for row in rows}
    for record in records:
        if _words(f"{record.request.text} {record.request.target_new}") not in sentences:
            raise Wrong(f"another text: {record.request.text} {record.request.target_new}")


def _words(text: str) -> str:
    return " ".join(text.strip().removesuffix(".").split())
