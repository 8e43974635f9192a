"""The keys that an adapter is trained on, read from the model once per edit and layer (specs/rep.md 4.1 and 11)."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kedit.arch import weight
from kedit.lanes import LaneBank
from kedit.lm import LM
from kedit.reading import Row, read
from kedit.rep.config import AdapterConfig
from kedit.requests import EditRecord
from kedit.tokens import Tokens, encode_subject


@dataclass(frozen=True)
class Task:
    """What one adapter is trained on. Keys are native: as they are before any adapter moves them. All float32.

    Attributes:
        anchor: k*, the key that the editor edited, `[D]`.
        direction: u, along which the edit reads a key: r(k) = k.u / k*.u; `[D]`, unit norm.
        bare: k_o, the key of the bare prompt's last subject token, `[D]`.
        positives: Keys of the subject in contexts and of its variants that train, `[P, D]`.
        negatives: Keys at which the gate should stay shut, `[M, D]`.
        near: The most tempting of them: pieces of the subject before its last one, which every other name that
            begins alike shares to the bit, and the tokens of the answers, which are given after the prompt; `[K, D]`.
        held_positives: Keys of variants that only calibrate, `[Q, D]`.
        held_negatives: The same of negatives, `[R, D]`.
        seed: Of the adapter's initial values and of what its steps draw.
    """

    anchor: Tensor
    direction: Tensor
    bare: Tensor
    positives: Tensor
    negatives: Tensor
    near: Tensor
    held_positives: Tensor
    held_negatives: Tensor
    seed: int = 0


@dataclass(frozen=True)
class _Row:
    """One text to run, and which of its tokens are what."""

    ids: tuple[int, ...]
    subject_last: int
    outside: tuple[int, ...]  # tokens that are negatives
    near: tuple[int, ...]  # tokens that are near negatives
    role: str  # original | answer | variant | held | long | other


class KeySource:
    """Reads the keys of edits.

    Args:
        lm: The model.
        config: What to read.
        contexts: Context templates, the bare `"{}"` first.
        n_edit: How many of them, from the first, the editor edited with.
        subjects: Subjects of other requests, from which negatives are drawn; those in a record's own probes are
            passed over.
        corpus: Token ids of ordinary text, `[n]`; its keys are negatives of every edit.
    """

    def __init__(
        self,
        lm: LM,
        config: AdapterConfig,
        contexts: Sequence[str],
        n_edit: int,
        subjects: Iterable[str],
        corpus: Tensor | None,
    ) -> None:
        self.lm, self.config, self.n_edit = lm, config, n_edit
        self.contexts = list(contexts)
        self.subjects = list(dict.fromkeys(subjects))
        self._corpus = corpus
        self._shared: dict[int, Tensor] = {}

    def tasks(
        self,
        records: Sequence[EditRecord],
        layer: int,
        directions: Tensor,
        edit_key: Callable[[Tensor], Tensor],
        bank: LaneBank | None,
        lanes: Sequence[int],
        raw: bool = False,
    ) -> list[Task]:
        """One task per record.

        Args:
            records: With their variants.
            layer: The edited layer.
            directions: u of each record, `[n, D]`, any scale.
            edit_key: From the keys of all contexts `[n_contexts, D]` to the key that the editor edited.
            bank: The edits (and the adapters of layers below) under which keys are read.
            lanes: Lane of each record in `bank`.
            raw: Take the edit key itself for u, neither whitened nor normalised.
        """
        plans = [self._plan(record) for record in records]
        rows = [row for plan in plans for row in plan]
        of_row = [lane for plan, lane in zip(plans, lanes, strict=True) for _ in plan]
        module = self.lm.arch.module(self.lm.model, "mlp_out", layer)
        keys = iter(read_keys(self.lm, [row.ids for row in rows], module, bank, of_row))
        shared = self._shared_keys(layer, module)
        found = []
        for record, plan, direction in zip(records, plans, directions, strict=True):
            task = self._task(plan, [next(keys) for _ in plan], edit_key, shared)
            aim = task.anchor if raw else direction / direction.norm()
            seed = zlib.crc32(f"{record.request.case_id}/{layer}".encode())
            found.append(replace(task, direction=aim.to(task.anchor), seed=seed))
        return found

    def read_shared(self, layers: Iterable[int]) -> None:
        """Reads the keys of ordinary text now: a resumed run must, before it takes back the edits that it had made."""
        for layer in layers:
            self._shared_keys(layer, self.lm.arch.module(self.lm.model, "mlp_out", layer))

    def _plan(self, record: EditRecord) -> list[_Row]:
        """Which texts to run for a record. Only the bare prompts are run to their end."""
        c, request, rng = self.config, record.request, random.Random(f"rep-{record.request.case_id}")

        def row(subject: str, context: str, role: str, answer: str | None = None) -> _Row:
            t = encode_subject(self.lm, request.prompt, subject, answer, context, f"record {request.case_id}")
            if context == "{}":
                near = range(t.subject_first, t.subject_last) if role == "original" else range(0)
                return _Row(t.ids, t.subject_last, _outside(t, role), (*near, *range(t.n_prompt, len(t.ids))), role)
            outside = sorted(rng.sample(range(t.subject_first), min(64, t.subject_first))) if role == "long" else ()
            return _Row(t.ids[: t.subject_last + 1], t.subject_last, tuple(outside), (), role)

        rows = [row(request.subject, context, "original") for context in self.contexts]
        if c.negatives:
            answers = [answer for answer in (request.target_new, request.target_true) if answer is not None]
            rows += [row(request.subject, "{}", "answer", answer) for answer in answers]
        variants = record.variants
        if variants is None:
            return rows
        names = [*variants.paraphrase_train, *variants.shuffle_train]
        held = set(rng.sample(names, int(c.held_back * len(names))))
        for name in names:
            more = len(self.contexts) - 1 if c.contexts < 0 else min(c.contexts, len(self.contexts) - 1)
            for context in ["{}", *rng.sample(self.contexts[1:], more)]:
                rows.append(row(name, context, "held" if name in held else "variant"))
        for text in variants.long_train[: c.long_contexts]:
            rows.append(row(request.subject, text + " {}", "long"))
        asked = " ".join(probe.text for probe in record.probes)
        others = [s for s in self.subjects if s not in asked and s != request.subject]
        for name in rng.sample(others, min(c.others, len(others))):
            rows.append(row(name, "{}", "other"))
        return rows

    def _task(
        self,
        plan: list[_Row],
        keys: list[Tensor],
        edit_key: Callable[[Tensor], Tensor],
        shared: Tensor,
    ) -> Task:
        last = [
            (row.role, k[row.subject_last])
            for row, k in zip(plan, keys, strict=True)
            if row.role not in ("other", "answer")
        ]
        original = torch.stack([k for role, k in last if role == "original"])
        train = [k for role, k in last if role != "held"][1:] or [original[0]]  # the bare prompt has its own loss
        held = [k for role, k in last if role == "held"]
        outside = [k[list(row.outside)] for row, k in zip(plan, keys, strict=True) if row.outside]
        negatives = torch.cat([*outside, shared]) if outside else shared
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(negatives), generator=generator).to(negatives.device)
        cut = int(self.config.held_back * len(negatives))
        return Task(
            anchor=edit_key(original[: self.n_edit].double()).float(),
            direction=original[0],  # the caller knows it
            bare=original[0],
            positives=torch.stack(train),
            negatives=negatives[order[cut:]],
            near=torch.cat([k[list(row.near)] for row, k in zip(plan, keys, strict=True)]),
            held_positives=torch.stack(held) if held else original[:0],
            held_negatives=negatives[order[:cut]],
        )

    def _shared_keys(self, layer: int, module: nn.Module) -> Tensor:
        """Keys of ordinary text on the model without the present edits, read once per layer."""
        if layer not in self._shared:
            ids = self._corpus
            if ids is None or not self.config.corpus_tokens:
                return next(iter(module.parameters())).new_zeros(0, _width(self.lm, layer)).float()
            rows = [tuple(chunk.tolist()) for chunk in ids[: self.config.corpus_tokens].split(128)]
            self._shared[layer] = torch.cat(read_keys(self.lm, rows, module, None, [-1] * len(rows)))
        return self._shared[layer]


def read_keys(
    lm: LM, rows: Sequence[tuple[int, ...]], module: nn.Module, bank: LaneBank | None, lanes: Sequence[int]
) -> list[Tensor]:
    """Native inputs of `module` at every token of every row: `[T_i, D]` float32 each, in the rows' order."""
    users: dict[Row, list[int]] = {}
    for i, (row, lane) in enumerate(zip(rows, lanes, strict=True)):
        users.setdefault((lane, row), []).append(i)
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for part, keys in read(lm, users, module, bank=bank, native=True):
        for row, k in zip(part, keys.float(), strict=True):
            for i in users[row]:
                found[i] = k[: len(row[1])]
    return found


def _outside(t: Tokens, role: str) -> tuple[int, ...]:
    """Tokens of a bare prompt that are not the subject's; all of them where the subject is another."""
    return tuple(i for i in range(t.n_prompt) if role == "other" or not t.subject_first <= i <= t.subject_last)


def _width(lm: LM, layer: int) -> int:
    return weight(lm.arch.module(lm.model, "mlp_out", layer)).shape[1]
