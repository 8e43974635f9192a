"""A run that is asked for all of it: derived probes, free answers in three contexts, what they contain, choices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from kedit.data.derived import DERIVED
from tests.support.chat_cases import save_chat
from tests.support.small_runs import QUICK_ROME, city_facts, sequential_run
from tests.support.tiny_models import TEXT

WILD = ("wild", "contains", "wild_qa", "contains_qa", "wild_chat", "contains_chat")


def test_a_run(
    tiny_folder: Callable[..., str],
    rows_of: Callable[[Path], list[dict[str, Any]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([f"{i} {TEXT.splitlines()[-1]}" for i in range(40)]))
    options = {
        "lm.name": save_chat(tmp_path / "lm", "llama-2", n_layers=3, d_model=16, d_ff=40, context=900),
        "metrics.scoring.wild": "[rewrite, negated]",
        "metrics.scoring.wild_contexts": "[none, qa, chat]",
        "metrics.scoring.contains": "true",
        "data.derived": "[prefix_50, prefix_200, negated, neighborhood_prefixed, choice]",
        "data.derived_corpus": corpus,
        "run.root": tmp_path / "runs",
        "run.name": "one",
    }
    main(sequential_run(tiny_folder, city_facts(tmp_path / "facts.jsonl", 3), QUICK_ROME | options))
    folder = tmp_path / "runs" / "one"
    summary = json.loads((folder / "summary.json").read_text())
    results = summary["results"]["end"]
    assert set(results) >= set(DERIVED) - {"choice_irrelevant"}  # the records share their few places
    for kind in ("rewrite", "negated"):
        assert set(results[kind]) >= set(WILD)
    assert "wild" not in results["paraphrase"]
    assert results["choice"]["choice"]["n_probes"] == 3
    assert results["neighborhood_prefixed"]["unchanged"]["n_probes"] == 3
    assert summary["protocol"]["scoring"]["wild_contexts"] == ["none", "qa", "chat"]
    assert summary["data"]["derived"]["seed"] == 0
    (probe,) = [probe for probe in rows_of(folder)[0]["probes"] if probe["kind"] == "choice"]
    assert probe["options"] == ["A", "B", "C", "D"]
    assert probe["after"]["choice"] == (min(probe["after"]["nll_options"]) == probe["after"]["nll_answer"])
    capsys.readouterr()
    main(["show", str(folder), "--table"])
    told = capsys.readouterr().out
    assert all(name in told for name in (*WILD, "choice"))
