"""The keys that an adapter is trained on, read from the model once per edit and layer (specs/rep.md 4.1 and 11)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kedit.delta.lanes import BatchedDeltas
from kedit.forward.activations import read
from kedit.methods.rep.config import AdapterConfig
from kedit.methods.rep.plan import FOREIGN, NEGATIVE, Row, plan
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.request import EditRecord

Claims = dict[int, dict[str, tuple[str, Tensor]]]
"""Layer -> case id -> the edit's subject and the keys of its prompt, `[T, D]` float32."""


@dataclass(frozen=True)
class AdapterTask:
    """What one adapter is trained on. Keys are native: as they are before any adapter moves them. All float32.

    Attributes:
        k_star: k*, the key that the editor edited, `[D]`.
        direction: u, along which the edit reads a key: r(k) = k.u / k*.u; `[D]`, unit norm.
        bare: k_o, the key of the bare prompt's last subject token, `[D]`.
        positives: Keys of the subject in contexts and of its variants that train, `[P, D]`.
        negatives: Keys at which the gate should stay shut, `[M, D]`.
        hard_negatives: The most tempting of them: pieces of the subject before its last one, which every other name
            that begins alike shares to the bit, the tokens of the answers, which are given after the prompt, and the
            prompts of other requests; `[K, D]`.
        held_positives: Keys of variants that only calibrate, `[Q, D]`.
        held_negatives: The same of negatives, `[R, D]`.
        later: Those of the negatives, of both kinds, that come after the name in the edit's own prompts, `[L, D]`.
        seed: Of the adapter's initial values and of what its steps draw.
    """

    k_star: Tensor
    direction: Tensor
    bare: Tensor
    positives: Tensor
    negatives: Tensor
    hard_negatives: Tensor
    held_positives: Tensor
    held_negatives: Tensor
    later: Tensor
    seed: int = 0


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
        claims: What edits have claimed before, in a run that is resumed (`claim`).
    """

    def __init__(
        self,
        lm: LM,
        config: AdapterConfig,
        contexts: Sequence[str],
        n_edit: int,
        subjects: Iterable[str],
        corpus: Tensor | None,
        claims: Claims | None = None,
    ) -> None:
        self.lm, self.config, self.n_edit = lm, config, n_edit
        self.contexts = list(contexts)
        self.subjects = list(dict.fromkeys(subjects))
        self._corpus = corpus
        self._shared: dict[int, Tensor] = {}
        self.claims: Claims = {} if claims is None else claims

    def claim(
        self, records: Sequence[EditRecord], layer: int, bank: BatchedDeltas | None, lanes: Sequence[int]
    ) -> None:
        """Keeps the keys of the records' own prompts: near negatives of every edit of another subject from now on.

        Without them a gate opens too often at like prompts; and the more edits act together, the more often one does.
        """
        module = self.lm.arch.module(self.lm.model, "mlp_out", layer)
        rows = [encode(self.lm, r.request.text, None, r.request.name).ids for r in records]
        kept = self.claims.setdefault(layer, {})
        for record, keys in zip(records, read_keys(self.lm, rows, module, bank, lanes), strict=True):
            kept[record.request.case_id] = (record.request.named("REP"), keys)

    def tasks(
        self,
        records: Sequence[EditRecord],
        layer: int,
        directions: Tensor,
        edit_key: Callable[[Tensor], Tensor],
        bank: BatchedDeltas | None,
        lanes: Sequence[int],
        raw: bool = False,
    ) -> list[AdapterTask]:
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
        plans = [self.plan(record) for record in records]
        rows = [row for own in plans for row in own]
        of_row = [lane for own, lane in zip(plans, lanes, strict=True) for _ in own]
        module = self.lm.arch.module(self.lm.model, "mlp_out", layer)
        keys = iter(read_keys(self.lm, [row.ids for row in rows], module, bank, of_row))
        shared = self._shared_keys(layer, module)
        found = []
        for record, own, direction in zip(records, plans, directions, strict=True):
            task = self._task(own, [next(keys) for _ in own], edit_key, shared)
            aim = task.k_star if raw else direction / direction.norm()
            seed = zlib.crc32(f"{record.request.case_id}/{layer}".encode())
            hard_negatives = torch.cat(
                [task.hard_negatives, *self._other_edits(record.request.named("REP"), layer, seed)]
            )
            found.append(replace(task, direction=aim.to(task.k_star), seed=seed, hard_negatives=hard_negatives))
        return found

    def _other_edits(self, subject: str, layer: int, seed: int) -> list[Tensor]:
        """Keys that other subjects' edits have claimed, `[n, D]`; a draw where there are too many. Empty if none."""
        others = [keys for name, keys in self.claims.get(layer, {}).values() if name.casefold() != subject.casefold()]
        if not others:
            return []
        keys = torch.cat(others)
        drawn = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))[: self.config.other_edits]
        return [keys[drawn.to(keys.device)]]

    def read_shared(self, layers: Iterable[int]) -> None:
        """Reads the keys of ordinary text now: a resumed run must, before it takes back the edits that it had made."""
        for layer in layers:
            self._shared_keys(layer, self.lm.arch.module(self.lm.model, "mlp_out", layer))

    def plan(self, record: EditRecord) -> list[Row]:
        """Which texts are run for a record."""
        return plan(self.lm, self.config, self.contexts, self.subjects, record)

    def _task(
        self,
        rows: list[Row],
        keys: list[Tensor],
        edit_key: Callable[[Tensor], Tensor],
        shared: Tensor,
    ) -> AdapterTask:
        read = list(zip(rows, keys, strict=True))
        last = [(row.role, k[row.subject_last]) for row, k in read if row.role not in NEGATIVE]
        original = torch.stack([k for role, k in last if role == "original"])
        train = [k for role, k in last if role != "held"][1:] or [original[0]]  # the bare prompt has its own loss
        held = [k for role, k in last if role == "held"]
        outside = [k[list(row.outside)] for row, k in read if row.outside]
        negatives = torch.cat([*outside, shared]) if outside else shared
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(negatives), generator=generator).to(negatives.device)
        cut = int(self.config.held_back * len(negatives))
        return AdapterTask(
            k_star=edit_key(original[: self.n_edit].double()).float(),
            direction=original[0],  # the caller knows it
            bare=original[0],
            positives=torch.stack(train),
            negatives=negatives[order[cut:]],
            hard_negatives=torch.cat([k[list(row.hard_negatives)] for row, k in read]),
            held_positives=torch.stack(held) if held else original[:0],
            held_negatives=negatives[order[:cut]],
            later=torch.cat([k[row.subject_last + 1 :] for row, k in read if row.role not in FOREIGN]),
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
    lm: LM, rows: Sequence[tuple[int, ...]], module: nn.Module, bank: BatchedDeltas | None, lanes: Sequence[int]
) -> list[Tensor]:
    """Native inputs of `module` at every token of every row: `[T_i, D]` float32 each, in the rows' order."""
    users: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for i, (row, lane) in enumerate(zip(rows, lanes, strict=True)):
        users.setdefault((lane, row), []).append(i)
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for part, keys in read(lm, users, module, bank=bank, native=True):
        for row, k in zip(part, keys.float(), strict=True):
            for i in users[row]:
                found[i] = k[: len(row[1])]
    return found


def _width(lm: LM, layer: int) -> int:
    return weight(lm.arch.module(lm.model, "mlp_out", layer)).shape[1]
