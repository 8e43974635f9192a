"""The data sets: each a reader, a name and its own options on top of `EditData`'s."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any, Literal

from kedit.data.batching import Batches, form_groups
from kedit.data.datamodule import EditData
from kedit.data.readers.build import conflicting
from kedit.data.readers.counterfact import read_counterfact
from kedit.data.readers.facts import read_facts
from kedit.data.readers.jsonl import read_records
from kedit.data.readers.mquake import read_mquake, unmet, without_multi_hop
from kedit.data.readers.parse import stem_of
from kedit.data.readers.robust import read_robust
from kedit.data.readers.zsre import Cleaning, clean_zsre
from kedit.errors import KeditError
from kedit.request import EditRecord

log = logging.getLogger(__name__)


class Facts(EditData):
    """The facts that ship with kedit.

    Args:
        split: Part of the data: `validation` to choose settings, `test` to report.
        known: As in every data set, but on: editing what the model does not know says little.
    """

    source = "in the split"

    def __init__(
        self,
        split: Literal["train", "validation", "test", "all"] = "test",
        known: bool | Literal["recorded"] = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(known=known, **kwargs)
        self.split = split
        self.name = f"facts/{split}"

    def read(self) -> list[EditRecord]:
        """The facts of the split."""
        return read_facts(self.split)


class Records(EditData):
    """Your own facts, in kedit's form (docs/data.md).

    Args:
        path: A `.jsonl` file, a `.json` list, or `hf:NAME[:CONFIG][:SPLIT]` of the `datasets` library.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.name = f"records/{stem_of(path)}"

    def read(self) -> list[EditRecord]:
        """The file's records."""
        return read_records(self.path)


class CounterFact(EditData):
    """CounterFact, in its official form or the flat form of the editing toolkits; QAEdit and KnowEdit too.

    Args:
        path: File to read, e.g. `multi_counterfact.json`.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.name = f"counterfact/{stem_of(path)}"

    def read(self) -> list[EditRecord]:
        """The file's records."""
        return read_counterfact(self.path)


class RobustQueries(EditData):
    """CounterFact or ZsRE with many rewordings of each subject and prompt (the files of REP).

    Args:
        path: File to read, e.g. `rep_counterfact_test.json`.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.name = f"robust/{stem_of(path)}"

    def read(self) -> list[EditRecord]:
        """The file's records."""
        return read_robust(self.path)


class MQuAKE(EditData):
    """MQuAKE: cases of one to four edits, and the multi-hop questions that follow from them (docs/data.md).

    An edit batch of the `batch` regime holds whole cases, at most `batch_size` requests; `shuffle_seed` shuffles cases.
    Multi-hop questions are asked where all edits of their case are made: never in the `single` regime, unless the case
    has one edit.

    Args:
        path: File to read, e.g. `MQuAKE-CF-3k.json`.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.sort_by_length:
            raise KeditError(
                "data.sort_by_length: the edits of a case of MQuAKE keep their order; use false "
                "(the single regime sorts its lanes anyway)"
            )
        self.path = path
        self.name = f"mquake/{stem_of(path)}"

    def read(self) -> list[EditRecord]:
        """The file's records."""
        return read_mquake(self.path)

    def shuffled(self, records: list[EditRecord], seed: int) -> list[EditRecord]:
        """Cases in another order, the edits of each in their own."""
        cases = _cases(records)
        random.Random(seed).shuffle(cases)
        return [record for case in cases for record in case]

    def form(self, records: list[EditRecord], size: int, sort_by_length: bool) -> Batches:
        """Batches of whole cases, where the edits of a batch are undone before the next."""
        if self.regime in ("single", "sequential"):
            return super().form(records, size, sort_by_length)
        return form_groups(_cases(records), size)

    def measurable(self, records: list[EditRecord]) -> list[EditRecord]:
        """Leaves out the multi-hop questions that cannot be met; the log says of how many cases."""
        self._check(records)
        cases = unmet(records, self.regime)
        if cases and self.regime == "single":
            log.info(
                "%s: the multi-hop questions of %d cases are left out: they follow from several edits, and the single "
                "regime makes each alone (use batch or sequential)",
                self.name,
                len(cases),
            )
        elif cases:
            log.info(
                "%s: %d cases are not edited whole (skip, limit, known); no multi-hop questions of them",
                self.name,
                len(cases),
            )
        if self.regime != "single" and (found := conflicting(records)):
            log.info("%s: %d edits contradict another one of the same prompt", self.name, found)
        return without_multi_hop(records, cases)

    def _cut(self, records: list[EditRecord]) -> list[EditRecord]:
        kept = super()._cut(records)
        self._check(kept)  # before the model is asked, where it is
        return without_multi_hop(kept, unmet(kept))

    def _check(self, records: list[EditRecord]) -> None:
        """Whether every case fits into an edit batch.

        Raises:
            KeditError: It does not, in the `batch` regime.
        """
        for case in _cases(records):
            if self.regime == "batch" and len(case) > self.batch_size:
                raise KeditError(
                    f"data.batch_size: the {len(case)} edits of case {case[0].meta['case']} are made at once "
                    f"in the batch regime, and {self.batch_size} is too small for them"
                )


def _cases(records: Sequence[EditRecord]) -> list[list[EditRecord]]:
    return [list(case) for _, case in groupby(records, key=lambda record: record.meta["case"])]


class ZsRE(EditData):
    """ZsRE questions, in the flat form published with PAC or in MEND's official form (docs/data.md).

    Args:
        path: File to read, e.g. `zsre_mend_eval.json`.
        clean: Drop edits whose new target is the true answer already. False keeps them, as PAC's released run does,
            but without a true target. Empty targets are always dropped.

    Attributes:
        cleaning: What was found in the file; None before it is read.
    """

    def __init__(self, path: str, clean: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path, self.clean = path, clean
        self.name = f"zsre/{stem_of(path)}"
        self.cleaning: Cleaning | None = None

    def read(self) -> list[EditRecord]:
        """The file's records; what was cleaned is logged, the first time.

        Raises:
            KeditError: As `read_zsre`; `known: true` with records that have lost their true target.
        """
        records, found = clean_zsre(self.path, self.clean)
        if self.cleaning is None:
            log.info("%s: %s", self.name, found.notice(self.clean))
        self.cleaning = found
        self.left_out["no_target"], self.left_out["no_op"] = found.empty, found.no_op if self.clean else 0
        if self.filter_known and found.no_op and not self.clean:
            raise KeditError(
                f"data.known: true asks for the true target, which the {found.no_op} no-op edits of data.clean: false "
                "do not have; use data.clean: true"
            )
        return records

    def describe(self) -> dict[str, Any]:
        """As every data set's, with `clean` and the counts of the cleaning."""
        card = super().describe()
        return card | {"clean": self.clean, "cleaning": None if self.cleaning is None else asdict(self.cleaning)}
