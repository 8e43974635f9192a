"""Data sets of published benchmarks beside those of `datasets.py`: each a reader and a name (docs/data.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from kedit.data.choosing import READING
from kedit.data.datamodule import EditData
from kedit.data.readers.knowedit import read_knowedit
from kedit.data.readers.parse import stem_of
from kedit.data.readers.qaedit import read_qaedit
from kedit.data.readers.ripple_edits import read_ripple_edits
from kedit.data.readers.unke import read_unke
from kedit.data.readers.wikibigedit import read_wikibigedit
from kedit.request import EditRecord


def _read(
    data: EditData, reader: Callable[[str, Counter[str] | None], list[EditRecord]], path: str
) -> list[EditRecord]:
    """The file's records; the data set is told how many are left out."""
    left = Counter[str]()
    records = reader(path, left)
    for reason in READING:
        data.left_out[reason] = left[reason]
    return records


class KnowEdit(EditData):
    """KnowEdit: wiki_recent, wiki_counterfact, ZsRE or WikiBio, with portability and locality by category.

    Args:
        path: File to read, e.g. `recent_test.json`, or `hf:NAME[:CONFIG][:SPLIT]`.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.name = f"knowedit/{stem_of(path)}"

    def read(self) -> list[EditRecord]:
        """The file's records."""
        return _read(self, read_knowedit, self.path)


class WikiBigEdit(EditData):
    """WikiBigEdit: questions about facts that changed in Wikidata, with personas and multi-hop questions.

    Args:
        path: File to read, e.g. `wiki_big_edit_20240201_20240220.json`, or `hf:NAME[:CONFIG][:SPLIT]`.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.name = f"wikibigedit/{stem_of(path)}"

    def read(self) -> list[EditRecord]:
        """The file's records."""
        return _read(self, read_wikibigedit, self.path)


class RippleEdits(EditData):
    """RippleEdits: popular, random or recent, with six kinds of tests, asked where the model meets their conditions.

    Args:
        path: File to read, e.g. `popular.json`, or `hf:NAME[:CONFIG][:SPLIT]`.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.name = f"ripple/{stem_of(path)}"

    def read(self) -> list[EditRecord]:
        """The file's records, with all of their tests; the model says later which of them are asked."""
        return _read(self, read_ripple_edits, self.path)


class QAEdit(EditData):
    """QAEdit (WILD): questions of common benchmarks with their right answers.

    Args:
        path: File to read, e.g. `qaedit.json`, or `hf:NAME[:CONFIG][:SPLIT]`.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.name = f"qaedit/{stem_of(path)}"

    def read(self) -> list[EditRecord]:
        """The file's records."""
        return _read(self, read_qaedit, self.path)


class UnKE(EditData):
    """UnKE and AKEW: facts told in a paragraph, which is the answer to a question. No request names a subject.

    Args:
        path: File to read, e.g. `final_data_v3.json`, or `hf:NAME[:CONFIG][:SPLIT]`.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.name = f"unke/{stem_of(path)}"

    def read(self) -> list[EditRecord]:
        """The file's records."""
        return _read(self, read_unke, self.path)
