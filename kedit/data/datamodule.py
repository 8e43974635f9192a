"""`EditData`: what Lightning sees of a data set. Epoch n edits batch n; every optimiser step gets that batch.

The data sets themselves are in `sets.py`, the readers beside it.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningDataModule

from kedit.data.batching import Batches, EpochSteps, form_batches
from kedit.data.choosing import (
    READING,
    check_kinds_asked,
    chosen_probes,
    each_by_itself,
    enough_of,
    marked_known,
    notice,
    those_that_fit,
)
from kedit.data.robust_queries import QueryConfig, with_variants
from kedit.errors import KeditError, at_least
from kedit.request import EditRecord, Probe, fingerprint_of, with_joiner
from kedit.runtime import distributed
from kedit.runtime.option_values import check_values
from kedit.text.prompts import Joiner

if TYPE_CHECKING:
    from kedit.model.lm import LM

log = logging.getLogger(__name__)


class EditData(LightningDataModule):
    """Records cut into edit batches. A data set is this class and a `read`.

    Args:
        limit: Number of records to edit, counted after all filters; all of them when null.
        skip: Number of records to pass over before that.
        shuffle_seed: Shuffle the records with this seed before skip and limit; the file's order when null.
        probe_kinds: Kinds of probe to keep, e.g. `[rewrite, paraphrase]`; all when null.
        max_probes: Keep the first so many probes of each kind in each record; all when null.
        batch_size: Requests in an edit batch.
        known: Which records to keep: `true` those whose true target the loaded model gives (greedy decoding
            of the request's prompt starts with it), `recorded` those marked so in the file (Facts, where the
            mark is SmolLM2-135M's), `false` all.
        sort_by_length: Put records whose suffix (what follows the subject, with the target) is of like length
            into the same edit batch. Cheaper with many lanes; it moves a record by at most 16 batches.
        joiner: What stands between a prompt and its answer: `auto`, a space where one is written (docs/data.md);
            `space`, always one, but behind white space; `none`, never one.
        queries: Other names, scrambled names and long contexts of every request, drawn before anything is
            edited: probes of their own, and what REP trains on. None when null.

    Attributes:
        name: What results call the data set, e.g. `"facts/test"`.
        filter_known: Whether `prepare` has to ask the model which records it knows.
        left_out: Numbers of records that are not edited, by reason (`kedit.data.left_out`).
        regime: That of the module that is trained; None before `setup`.
        unfit: Records that fail because a text of theirs does not fit into the model's context, by id, and why; known
            after `prepare`, which leaves them out of `records`.
        width: Edit batches of an epoch, one for each process, where processes edit different ones; otherwise 1.
    """

    source = "in the file"
    """Of what `left_out` counts the records, for the log."""

    def __init__(
        self,
        limit: int | None = None,
        skip: int = 0,
        shuffle_seed: int | None = None,
        probe_kinds: list[str] | None = None,
        max_probes: int | None = None,
        batch_size: int = 1,
        known: bool | Literal["recorded"] = False,
        sort_by_length: bool = False,
        joiner: Literal["auto", "space", "none"] = "auto",
        queries: QueryConfig | None = None,
    ) -> None:
        super().__init__()
        check_values({"limit": limit, "skip": skip, "shuffle_seed": shuffle_seed, "batch_size": batch_size}, "data")
        at_least("data.limit", limit, 1)
        at_least("data.skip", skip, 0)
        at_least("data.max_probes", max_probes, 1)
        at_least("data.batch_size", batch_size, 1)
        self.name = type(self).__name__.lower()
        self.limit, self.skip, self.shuffle_seed = limit, skip, shuffle_seed
        self.probe_kinds, self.max_probes = probe_kinds, max_probes
        self.batch_size, self.sort_by_length = batch_size, sort_by_length
        self.known, self.queries = known, queries
        self.joiner: Joiner = joiner
        self.unfit: dict[str, tuple[EditRecord, str]] = {}
        self.filter_known = known is True
        self.regime: str | None = None
        self.left_out = Counter[str]()
        self._records: list[EditRecord] | None = None
        self._batches: Batches | None = None
        self._size = batch_size
        self._prepared = False
        self.width = 1

    def read(self) -> list[EditRecord]:
        """All records of the data set, as its reader gives them. The one method of a subclass."""
        raise NotImplementedError

    @cached_property
    def everything(self) -> list[EditRecord]:
        """All records of the data set, read once; `records` are chosen from them."""
        records = each_by_itself(self.read(), self.name)
        return records if self.joiner == "auto" else [with_joiner(record, self.joiner) for record in records]

    @property
    def in_file(self) -> int:
        """Number of all records, with those that the reader left out."""
        return len(self.everything) + sum(self.left_out[reason] for reason in READING)

    @property
    def records(self) -> list[EditRecord]:
        """The records to edit, in file or shuffled order, read once.

        Before `prepare` (which Lightning's `setup` calls) no model has been asked: with `known=True` these
        are then the records before that filter, with `queries` those without variants.
        """
        if self._records is None:
            self._records = self._cut(self._pool())
        return self._records

    @property
    def batches(self) -> Batches:
        """The edit batches, in order; the last may be smaller. Batch n is edited in epoch n."""
        return self.make_batches() if self._batches is None else self._batches

    def make_batches(self, size: int | None = None, sort_by_length: bool | None = None) -> Batches:
        """Forms the edit batches anew: from now on `batches` and the train loader give these.

        A method whose lanes are independent calls it with its number of lanes.

        Args:
            size: Requests in an edit batch; the constructor's `batch_size` when None.
            sort_by_length: As the constructor's, which None leaves in force.
        """
        at_least("data.batch_size", size, 1)
        self._size = self.batch_size if size is None else size
        sort = self.sort_by_length if sort_by_length is None else sort_by_length
        self._batches = self.form(self.records, self._size, sort)
        return self._batches

    def index_of(self, epoch: int) -> int:
        """The edit batch of this process in an epoch; not below the number of batches where nothing is left for it."""
        return epoch * self.width + (distributed.rank() if self.width > 1 else 0)

    def done_after(self, epoch: int) -> int:
        """Edit batches that are done, by whichever process, when an epoch has ended."""
        return min((epoch + 1) * self.width, len(self.batches))

    def form(self, records: list[EditRecord], size: int, sort_by_length: bool) -> Batches:
        """How records become edit batches; a data set whose records belong together has its own way."""
        return form_batches(records, size, sort_by_length)

    def shuffled(self, records: list[EditRecord], seed: int) -> list[EditRecord]:
        """The records in another order, the same for one seed."""
        random.Random(seed).shuffle(records)
        return records

    def measurable(self, records: list[EditRecord]) -> list[EditRecord]:
        """The records to edit, without the probes that these edits cannot meet in `regime`; called by `prepare`."""
        return records

    def prepare(
        self,
        prepare_records: Callable[[list[EditRecord]], list[EditRecord]],
        lm: Callable[[], LM] | None = None,
        unfit: Callable[[list[EditRecord]], dict[str, str]] | None = None,
    ) -> None:
        """Lets the loaded model check and choose records, and draws their variants; a second call does nothing.

        Args:
            prepare_records: Takes records, returns those to edit in the same order (it may drop those the
                model does not know, or raise at a prompt longer than the context). Each record is judged
                by itself: with a limit it is called on portions until enough are kept.
            lm: Gives the unedited model; only asked for with `queries`.
            unfit: Says of which records a text does not fit into the model's context, by id, and why.

        Raises:
            KeditError: No record is left; with `queries`, a record names no subject (found before the model is asked).
        """
        if self._prepared:
            return
        if self.filter_known:
            pool = self._pool()
            need = len(pool) if self.limit is None else self.skip + self.limit
            kept, self.left_out["not_asked"] = enough_of(pool, need, lambda part: prepare_records(self._queried(part)))
            self.left_out["not_known"] = len(pool) - self.left_out["not_asked"] - len(kept)
            self._records = self._cut(kept)
        else:
            offered = self.records
            self._records = prepare_records(self._queried(offered))
            self.left_out["not_fit"] = len(offered) - len(self._records)
            if not self._records:
                raise KeditError(f"{self.name}: the model's checks leave no record to edit")
        if self.queries is not None:
            if lm is None:
                raise ValueError("queries need a model: give prepare() its lm")
            records = with_variants(lm(), self._records, self.queries)
            self._records = [dataclasses.replace(record, probes=self._keep(record.probes)) for record in records]
        if unfit is not None:
            self._records, self.unfit = those_that_fit(self._records, unfit(self._records), self.name)
            self.left_out["too_long"] = len(self.unfit)
        self._records = self.measurable(self._records)
        self._batches, self._prepared = None, True
        log.info("%s: %s", self.name, notice(self.source, self.in_file, self.left_out))

    def setup(self, stage: str | None = None) -> None:
        """Reads the records; the module that is trained may check and choose (`prepare_records`)."""
        module = None if self.trainer is None else self.trainer.lightning_module
        prepare_records = getattr(module, "prepare_records", None)
        self.regime = getattr(module, "regime", None)
        if prepare_records is not None:
            unfit = getattr(module, "unfit_records", None)
            self.prepare(prepare_records, lambda: module.lm, unfit)  # type: ignore[union-attr]
        log.debug("%s: %d edit batches", self.name, len(self.batches))  # and so a bad file stops here

    def train_dataloader(self) -> EpochSteps:
        """The current epoch's edit batch, once per optimiser step (`module.steps_per_batch` of them).

        Raises:
            KeditError: There are fewer edit batches than epochs.
        """
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError("train_dataloader needs a Trainer: it yields the batch of the trainer's epoch")
        epoch, batches = trainer.current_epoch, self.batches
        if epoch * self.width >= len(batches):
            raise KeditError(
                f"trainer.max_epochs: epoch {epoch} has nothing to edit; "
                f"{self.name} has {len(batches)} edit batches, {self.width} in an epoch"
            )
        index = self.index_of(epoch)
        steps: Any = trainer.lightning_module
        return EpochSteps(batches[index] if index < len(batches) else [], steps.steps_per_batch)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the batch alone: records hold text (and Lightning refuses frozen dataclasses)."""
        return batch

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the records to edit, with their probes, in order."""
        return fingerprint_of(self.records)

    def describe(self) -> dict[str, Any]:
        """What results keep of the data: its name, options, fingerprint and counts (JSON-able)."""
        probes = Counter(probe.kind for record in self.records for probe in record.probes)
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "records": len(self.records),
            "in_file": self.in_file,
            "left_out": {reason: n for reason, n in self.left_out.items() if n},
            "edit_batches": len(self.batches),
            "probes": dict(sorted(probes.items())),
            **{name: getattr(self, name) for name in ("limit", "skip", "shuffle_seed", "probe_kinds", "max_probes")},
            "batch_size": self._size,
            "known": self.known,
            "sort_by_length": self.sort_by_length,
            "joiner": self.joiner,
            "joints": dict(sorted(Counter(record.request.joint for record in self.records).items())),
            "queries": None if self.queries is None else dataclasses.asdict(self.queries),
        }

    def _pool(self) -> list[EditRecord]:
        """Records after the filters that need no model, shuffled, before skip and limit."""
        records = list(self.everything)
        if self.known == "recorded":
            records = marked_known(records, self.name)
            self.left_out["not_marked"] = len(self.everything) - len(records)
        if self.probe_kinds is not None or self.max_probes is not None:
            check_kinds_asked(records, self.probe_kinds or (), self.queries, self.name)
            records = [dataclasses.replace(record, probes=self._keep(record.probes)) for record in records]
        return records if self.shuffle_seed is None else self.shuffled(records, self.shuffle_seed)

    def _queried(self, records: list[EditRecord]) -> list[EditRecord]:
        """The same records, which must name their subjects if `queries` are to be drawn."""
        if self.queries is not None:
            for record in records:
                record.request.named("data.queries")
        return records

    def _keep(self, probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
        return chosen_probes(probes, self.probe_kinds, self.max_probes)

    def _cut(self, records: list[EditRecord]) -> list[EditRecord]:
        """Applies skip and limit."""
        chosen = records[self.skip : None if self.limit is None else self.skip + self.limit]
        self.left_out["skip"] = min(self.skip, len(records))
        self.left_out["limit"] = len(records) - self.left_out["skip"] - len(chosen)
        if not chosen and records:
            raise KeditError(f"data.skip: {self.skip} passes over all {len(records)} records of {self.name}")
        if not chosen:
            raise KeditError(f"data.known: {self.known} keeps no record of {self.name}; false keeps all")
        return chosen
