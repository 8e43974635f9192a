"""Records to edit: readers (plain functions, no Lightning) and the data modules that the command uses.

The data modules are imported on first use, so that a reader alone does not load Lightning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kedit.data.readers.counterfact import read_counterfact
from kedit.data.readers.facts import read_facts
from kedit.data.readers.jsonl import read_records
from kedit.data.readers.knowedit import read_knowedit
from kedit.data.readers.mquake import read_mquake
from kedit.data.readers.qaedit import read_qaedit
from kedit.data.readers.ripple_edits import read_ripple_edits
from kedit.data.readers.robust import read_robust
from kedit.data.readers.unke import read_unke
from kedit.data.readers.wikibigedit import read_wikibigedit
from kedit.data.readers.zsre import read_zsre

if TYPE_CHECKING:
    from kedit.data.benchmarks import KnowEdit, QAEdit, RippleEdits, UnKE, WikiBigEdit
    from kedit.data.datamodule import EditData
    from kedit.data.datasets import CounterFact, Facts, MQuAKE, Records, RobustQueries, ZsRE

__all__ = [
    "CounterFact",
    "EditData",
    "Facts",
    "KnowEdit",
    "MQuAKE",
    "QAEdit",
    "Records",
    "RippleEdits",
    "RobustQueries",
    "UnKE",
    "WikiBigEdit",
    "ZsRE",
    "datasets_index",
    "read_counterfact",
    "read_facts",
    "read_knowedit",
    "read_mquake",
    "read_qaedit",
    "read_records",
    "read_ripple_edits",
    "read_robust",
    "read_unke",
    "read_wikibigedit",
    "read_zsre",
]


def datasets_index() -> list[tuple[str, str, bool]]:
    """The data sets for `kedit ls`: (class name, what it holds, whether it needs a `path`)."""
    return [
        ("Facts", "facts with paraphrases, neighbours, portability and aliases, shipped with kedit", False),
        ("Records", "your own facts, in kedit's JSONL form (docs/data.md)", True),
        ("CounterFact", "CounterFact, multi_counterfact, and the flat files of the editing toolkits", True),
        ("RobustQueries", "CounterFact or ZsRE with many rewordings of subject and prompt (REP)", True),
        ("MQuAKE", "cases of several edits with the multi-hop questions that follow from them", True),
        ("ZsRE", "ZsRE questions, in the flat form of PAC or the official one of MEND; cleaned", True),
        ("KnowEdit", "KnowEdit: wiki_recent, wiki_counterfact, ZsRE, WikiBio", True),
        ("WikiBigEdit", "questions about facts that changed in Wikidata, with personas and multi-hop questions", True),
        ("RippleEdits", "popular, random and recent, with six kinds of tests and their conditions", True),
        ("QAEdit", "questions of common benchmarks with their right answers (WILD)", True),
        ("UnKE", "facts told in a paragraph, of UnKE and AKEW; no subject is named", True),
    ]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from kedit.data import benchmarks, datasets

        return getattr(datasets, name, None) or getattr(benchmarks, name)
    raise AttributeError(f"module 'kedit.data' has no attribute {name!r}")
