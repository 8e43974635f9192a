"""`ChosenRecords`: the records of a data set that are to be edited, chosen by options and by the model.

Nothing of Lightning in here: `EditData` is the same as a data module.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from kedit.data import choosing
from kedit.data.conditions import Conditions, with_met_conditions
from kedit.data.derived import Derived, check_names, kinds_of, with_derived
from kedit.data.robust_queries import QueryConfig, with_variants
from kedit.errors import KeditError, at_least
from kedit.model.chat import chat_frame
from kedit.request import EditRecord, with_joiner
from kedit.runtime.option_values import check_values
from kedit.text.prompts import Joiner

if TYPE_CHECKING:
    from kedit.model.lm import LM

log = logging.getLogger(__name__)


class ChosenRecords:
    """The records of a data set that are to be edited.

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
        derived: Probes made from each record's own fields (docs/data.md): `prefix_50`, `prefix_200` (the request behind
            unrelated text of so many tokens), `negated`, `neighborhood_prefixed`, `choice`. None when null.
        derived_corpus: Where the unrelated text comes from, as `corpus` of `queries`.
        derived_seed: Of its draws, and of those of `choice`.
        chat: Ask every prompt as a user of a chat, through the tokenizer's chat template; answers, new and old, are
            the assistant's (docs/chat.md).
        system: The chat's system message; the template's own, if it has one, when null.

    Attributes:
        name: What results call the data set, e.g. `"facts/test"`.
        filter_known: Whether `prepare` has to ask the model which records it knows.
        left_out: Numbers of records that are not edited, by reason (`kedit.data.choosing`).
        regime: That of the module that is trained; None before `setup`.
        unfit: Records that fail because a text of theirs does not fit into the model's context, by id, and why; known
            after `prepare`, which leaves them out of `records`.
        conditions: How many probes had conditions, and how many of them are asked; None where none had any, and before
            `prepare`.
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
        chat: bool = False,
        system: str | None = None,
        derived: list[Derived] | None = None,
        derived_corpus: str = "self",
        derived_seed: int = 0,
    ) -> None:
        super().__init__()
        check_values({"limit": limit, "skip": skip, "shuffle_seed": shuffle_seed, "batch_size": batch_size}, "data")
        check_values({"derived_corpus": derived_corpus, "derived_seed": derived_seed}, "data")
        check_names(derived or ())
        at_least("data.limit", limit, 1)
        at_least("data.skip", skip, 0)
        at_least("data.max_probes", max_probes, 1)
        at_least("data.batch_size", batch_size, 1)
        self.name = type(self).__name__.lower()
        self.limit, self.skip, self.shuffle_seed = limit, skip, shuffle_seed
        self.probe_kinds, self.max_probes = probe_kinds, max_probes
        self.batch_size, self.sort_by_length = batch_size, sort_by_length
        self.known, self.queries = known, queries
        self.derived = list(dict.fromkeys(derived or ()))
        self.derived_corpus, self.derived_seed = derived_corpus, derived_seed
        self.joiner: Joiner = joiner
        if system is not None and not chat:
            raise KeditError("data.system: only a chat has a system message; set data.chat: true")
        if chat and joiner != "auto":
            raise KeditError(f"data.joiner: in a chat the template says what stands before an answer, not {joiner!r}")
        self.chat, self.system = chat, system
        self.conditions: Conditions | None = None
        self.unfit: dict[str, tuple[EditRecord, str]] = {}
        self.filter_known = known is True
        self.regime: str | None = None
        self.left_out = Counter[str]()
        self._records: list[EditRecord] | None = None
        self._prepared = False

    def read(self) -> list[EditRecord]:
        """All records of the data set, as its reader gives them. The one method of a subclass."""
        raise NotImplementedError

    @cached_property
    def everything(self) -> list[EditRecord]:
        """All records of the data set, read once; `records` are chosen from them."""
        records = choosing.each_by_itself(self.read(), self.name)
        return records if self.joiner == "auto" else [with_joiner(record, self.joiner) for record in records]

    @property
    def title(self) -> str:
        """The data set with how it is asked, as tables and figures call it."""
        return f"{self.name} (chat)" if self.chat else self.name

    def asking(self, lm: LM) -> LM:
        """The model as it is asked these records' prompts.

        Raises:
            KeditError: In a chat, and its tokenizer has no template of use (`chat_frame`).
        """
        return lm.in_chat(chat_frame(lm, self.system)) if self.chat else lm

    @property
    def in_file(self) -> int:
        """Number of all records, with those that the reader left out."""
        return len(self.everything) + sum(self.left_out[reason] for reason in choosing.READING)

    @property
    def records(self) -> list[EditRecord]:
        """The records to edit, in file or shuffled order, read once.

        Before `prepare` (which Lightning's `setup` calls) no model has been asked: with `known=True` these
        are then the records before that filter, with `queries` and `derived` those without these probes.
        """
        if self._records is None:
            self._records = self._cut(self._pool())
        return self._records

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
            lm: Gives the unedited model; only asked for with `queries` or `derived`, and where probes have conditions.
            unfit: Says of which records a text does not fit into the model's context, by id, and why.

        Raises:
            KeditError: No record is left; with `queries`, a record names no subject (found before the model is asked).
        """
        if self._prepared:
            return

        def asked(records: list[EditRecord]) -> list[EditRecord]:
            return prepare_records(records if self.queries is None else choosing.with_subjects(records, "data.queries"))

        if self.filter_known:
            pool = self._pool()
            need = len(pool) if self.limit is None else self.skip + self.limit
            kept, self.left_out["not_asked"] = choosing.enough_of(pool, need, asked)
            self.left_out["not_known"] = len(pool) - self.left_out["not_asked"] - len(kept)
            self._records = self._cut(kept)
        else:
            offered = self.records
            self._records = asked(offered)
            self.left_out["not_fit"] = len(offered) - len(self._records)
            if not self._records:
                raise KeditError(f"{self.name}: the model's checks leave no record to edit")
        if self.queries is not None or self.derived:
            if lm is None:
                raise ValueError("queries need a model: give prepare() its lm; so do derived probes")
            records = self._records
            if self.queries is not None:
                records = with_variants(lm(), records, self.queries)
            if self.derived:
                more = (self.derived, self.derived_corpus, self.derived_seed)
                records = with_derived(lm(), records, self.everything, *more)
            self._records = choosing.with_chosen_probes(records, self.probe_kinds, self.max_probes)
        if any(probe.conditions for record in self._records for probe in record.probes):
            if lm is None:
                raise ValueError("probes with conditions need a model: give prepare() its lm")
            self._records, self.conditions = with_met_conditions(lm(), self._records)
            log.info("%s: %s", self.name, self.conditions.notice())
        if unfit is not None:
            self._records, self.unfit = choosing.those_that_fit(self._records, unfit(self._records), self.name)
            self.left_out["too_long"] = len(self.unfit)
        self._records = self.measurable(self._records)
        self._prepared = True
        log.info("%s: %s", self.name, choosing.notice(self.source, self.in_file, self.left_out))

    def _pool(self) -> list[EditRecord]:
        """Records after the filters that need no model, shuffled, before skip and limit."""
        records = list(self.everything)
        if self.known == "recorded":
            records = choosing.marked_known(records, self.name)
            self.left_out["not_marked"] = len(self.everything) - len(records)
        if self.probe_kinds is not None or self.max_probes is not None:
            asked, derived = self.probe_kinds or (), kinds_of(self.derived)
            choosing.check_kinds_asked(records, asked, self.queries, self.name, derived)
            records = choosing.with_chosen_probes(records, self.probe_kinds, self.max_probes)
        return records if self.shuffle_seed is None else self.shuffled(records, self.shuffle_seed)

    def _cut(self, records: list[EditRecord]) -> list[EditRecord]:
        """Applies skip and limit."""
        if not records:
            raise choosing.NoneKnown(f"data.known: {self.known} keeps no record of {self.name}; false keeps all")
        chosen, self.left_out["skip"], self.left_out["limit"] = choosing.cut(records, self.skip, self.limit)
        if not chosen:
            raise KeditError(f"data.skip: {self.skip} passes over all {len(records)} records of {self.name}")
        return chosen
