"""The formats of kedit by name, and records of a file in whichever of them it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kedit.data.readers.counterfact import read_counterfact
from kedit.data.readers.jsonl import read_records
from kedit.data.readers.knowedit import read_knowedit
from kedit.data.readers.mquake import read_mquake
from kedit.data.readers.qaedit import read_qaedit
from kedit.data.readers.ripple_edits import read_ripple_edits
from kedit.data.readers.robust import read_robust
from kedit.data.readers.unke import read_unke
from kedit.data.readers.wikibigedit import read_wikibigedit
from kedit.data.readers.zsre import read_zsre
from kedit.errors import KeditError
from kedit.request import EditRecord
from kedit.runtime.hub_dataset import PREFIX
from kedit.runtime.textfile import regular_file

FORMATS: Mapping[str, Callable[[str | Path], list[EditRecord]]] = MappingProxyType(
    {
        "RobustQueries": read_robust,
        "Records": read_records,
        "CounterFact": read_counterfact,
        "ZsRE": read_zsre,
        "MQuAKE": read_mquake,
        "KnowEdit": read_knowedit,
        "WikiBigEdit": read_wikibigedit,
        "QAEdit": read_qaedit,
        "RippleEdits": read_ripple_edits,
        "UnKE": read_unke,
    }
)
"""A format, called as its data set is -> its reader. The most demanding first: what a later one reads as well may hold
more for an earlier one."""


def read_any(path: str | Path, option: str) -> list[EditRecord]:
    """Records of a file of any format that kedit edits (docs/data.md).

    Args:
        path: The file, or `hf:NAME[:CONFIG][:SPLIT]`.
        option: The option that names it, for messages.

    Raises:
        KeditError: There is no such file, or no reader takes it; says what the reader of kedit's own form missed.
    """
    if not str(path).startswith(PREFIX):
        try:
            regular_file(path, "a .json or .jsonl file")
        except KeditError as error:
            raise KeditError(f"{option}: {error}") from None
    why = ""
    for name, reader in FORMATS.items():
        try:
            return reader(path)
        except KeditError as error:
            why = str(error) if name == "Records" else why
    raise KeditError(f"{option}: none of kedit's formats; as its own form: {why}")


def format_of(raw: Mapping[str, Any]) -> str:
    """The format that an object of a file has, by its fields: a name of `FORMATS`.

    Files of one shape have several readers; the one that reads the most of it is named.
    """
    rewrite = raw.get("requested_rewrite")
    first = rewrite[0] if isinstance(rewrite, list) and rewrite else rewrite
    prose = isinstance(first, dict) and "fact_new_uns" in first
    if prose or any(name in raw for name in ("sub_question", "para_question")):
        return "UnKE"
    if rewrite is not None:
        return "MQuAKE" if isinstance(rewrite, list) else "CounterFact"
    if isinstance(raw.get("edit"), dict):
        return "RippleEdits"
    if "subject_rephrase" in raw:
        return "RobustQueries"
    if "src" in raw or "alt" in raw:
        return "ZsRE"
    if "update" in raw and "ans" in raw:
        return "WikiBigEdit"
    if "concept" in raw or any(_has_groups(raw.get(name)) for name in ("locality", "portability")):
        return "KnowEdit"
    return _flat_format(raw)


def _has_groups(value: Any) -> bool:
    """Whether it is KnowEdit's categories with their lists of questions."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(part is None or isinstance(part, list) for part in value.values())
    )


def _flat_format(raw: Mapping[str, Any]) -> str:
    """Of a record with a prompt and a new target beside each other."""
    near = raw.get("locality")
    if "target" in raw and isinstance(near, list) and any(isinstance(one, dict) and "loc" in one for one in near):
        return "QAEdit"
    if "subject" not in raw or str(raw.get("locality_prompt")).startswith("nq question"):
        return "ZsRE"
    foreign = {"locality_prompt", "rephrase_prompt", "ground_truth", "rephrase", "locality"} & raw.keys()
    if foreign and raw.get("ground_truth") is None and str(raw.get("prompt")).rstrip().endswith("?"):
        return "WikiBigEdit"
    return "CounterFact" if foreign else "Records"
