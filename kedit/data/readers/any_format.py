"""The formats of kedit by name, and records of a file in whichever of them it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

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
