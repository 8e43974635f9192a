"""The objective of v* for many requests at once: which rows, which labels, one loss per lane.

`ValueObjective` prepares a batch of requests (contexts, KL prompt, labels), captures what does not change,
and turns vectors `[n_lanes, d]` into losses `[n_lanes]`. The loop around it is in `kedit.keyvalue.optimization`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit.forward.replay import Row, Site
from kedit.forward.replay_groups import GroupedReplay
from kedit.keyvalue.terms import State, Term
from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject
from kedit.request import EditRequest

KL_PROMPT = "{} is a"


@dataclass(frozen=True)
class _Labels:
    """Where a target's token is predicted: row, suffix position, token id, lane, weight, ...; each `[n_labels]`."""

    row: Tensor
    position: Tensor
    token: Tensor
    lane: Tensor
    weight: Tensor
    first: Tensor  # whether it is its target's first token, bool

    def select(self, row_map: Tensor, lane_map: Tensor) -> _Labels:
        """Labels of the kept lanes, with rows and lanes renumbered (-1 in the maps means dropped)."""
        keep = lane_map[self.lane] >= 0
        return _Labels(
            row_map[self.row[keep]],
            self.position[keep],
            self.token[keep],
            lane_map[self.lane[keep]],
            self.weight[keep],
            self.first[keep],
        )

    def firsts(self, n_contexts: int) -> _Firsts:
        """Where the targets' first tokens are predicted."""
        row = self.row[self.first]
        return _Firsts(row, self.position[self.first], self.lane[self.first], row % (n_contexts + 1) == 0)


@dataclass(frozen=True)
class _Firsts:
    """Where a rewriting row's answer begins, `[n_rows]` each: row, suffix position, lane; is the prompt bare?"""

    row: Tensor
    position: Tensor
    lane: Tensor
    bare: Tensor


class ValueObjective:
    """Losses of value vectors, one lane per request (baselines 1.0, "Value optimisation").

    Args:
        lm: The model, with the weights that the edit starts from.
        requests: One lane each.
        contexts: Context templates, the bare `"{}"` first; the rewriting rows of every lane.
        sites: Where vectors are added at the subject's last token, each site a vector of its own: ROME's is
            `Site("mlp", layer)`, MEMIT's `Site("output", layer)`; PMET has two.
        terms: The terms of the loss.
        bare_weight: Share of the bare prompt in each lane's mean over contexts; None: all contexts alike, as
            published.

    Attributes:
        n_lanes: Number of requests.
        v_init: What the vectors are added to in the bare prompt, `[n_lanes, d]`, float32, d = n_sites * d_model: those
            of the sites end to end, as in everything here that is called a value or a delta (`split` takes it apart).

    Raises:
        KeditError: A prompt without room in the context, no subject, a subject no token covers; names the record.
    """

    def __init__(
        self,
        lm: LM,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        sites: Sequence[Site],
        terms: Sequence[Term],
        bare_weight: float | None = None,
    ) -> None:
        self.lm = lm
        self.sites = tuple(sites)
        self.terms = tuple(terms)
        self.n_lanes = len(requests)
        self.n_contexts = len(contexts)
        rows, labels = _rows(lm, requests, contexts, bare_weight)
        self.labels = labels
        self.reads = frozenset(layer for term in self.terms for layer in term.layers)
        self.replay = GroupedReplay(lm, rows, min(site.first for site in self.sites))
        self.lanes = torch.arange(self.n_lanes, device=lm.device)
        self._place()
        self.v_init = torch.cat([self.replay.first_output(site) for site in self.sites], 1)[:: self.n_contexts + 1]
        kl_rows = self.replay.select(self._kl_rows)
        first_tokens = kl_rows.places(self.lanes, torch.zeros_like(self.lanes))
        with torch.no_grad():
            nothing = dict(zip(self.sites, self.split(torch.zeros_like(self.v_init)), strict=True))
            final, _ = kl_rows.run(nothing, first_tokens)
            self.kl_reference = _logp(lm.arch.logits(lm.model, final))

    def _place(self) -> None:
        """Where the rows of the lanes are, and where losses are read in them."""
        stride = self.n_contexts + 1
        numbers = torch.arange(self.n_lanes, device=self.lanes.device)
        self.row_lane = numbers.repeat_interleave(stride)
        self._kl_rows = numbers * stride + self.n_contexts
        self.firsts = self.labels.firsts(self.n_contexts)
        row = torch.cat([self.labels.row, self._kl_rows])
        position = torch.cat([self.labels.position, torch.zeros_like(self._kl_rows)])
        self._read = self.replay.places(row, position)
        states = self.replay.places(self.firsts.row, self.firsts.position)
        self._states = dict.fromkeys(self.reads, states)

    def __call__(self, delta: Tensor) -> dict[str, Tensor]:
        """Every term's loss, `{name: [n_lanes]}`, for `delta: [n_lanes, d]` float32."""
        add = {site: own[self.row_lane] for site, own in zip(self.sites, self.split(delta), strict=True)}
        final, hidden = self.replay.run(add, self._read, self._states)
        n = len(self.labels.row)
        logits = self.lm.arch.logits(self.lm.model, final)
        of_labels, of_kl = logits.split([n, len(logits) - n])
        label_logp = _logp(of_labels)
        state = State(
            delta=delta,
            v_init=self.v_init,
            n_sites=len(self.sites),
            label_logp=label_logp,
            target_logp=-F.nll_loss(label_logp, self.labels.token, reduction="none"),
            label_lane=self.labels.lane,
            label_weight=self.labels.weight,
            kl_logp=_logp(of_kl),
            kl_reference=self.kl_reference,
            lanes=self.lanes,
            hidden={layer: state.float() for layer, state in hidden.items()},
            row_lane=self.firsts.lane,
            bare=self.firsts.bare,
        )
        return {term.name: term(state) for term in self.terms}

    def split(self, values: Tensor) -> list[Tensor]:
        """Values or deltas `[n, d]` of all sites as one `[n, d_model]` for each, in their order."""
        return list(values.chunk(len(self.sites), 1)) if len(self.sites) > 1 else [values]

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of `mlp_out` at the subject's last token, unedited, in the lowest layer that is replayed.

        That is the sites' own layer where they are "mlp" or "attn".

        Returns:
            `[n_lanes, n_contexts, d_in]` and `[n_lanes, n_contexts, d_model]`, float32; context 0 is the bare prompt.
        """
        keys, values = self.replay.first_keys()
        shape = (self.n_lanes, self.n_contexts + 1, -1)
        return keys.view(shape)[:, :-1], values.view(shape)[:, :-1]

    def select(self, lanes: Tensor) -> ValueObjective:
        """The same objective for some of its lanes, `lanes: [m]` int64 in ascending order."""
        part = copy(self)
        part.n_lanes, part.lanes = len(lanes), self.lanes[lanes]
        rows = (lanes[:, None] * (self.n_contexts + 1) + torch.arange(self.n_contexts + 1, device=lanes.device)).view(
            -1
        )
        part.replay = self.replay.select(rows)
        part.v_init, part.kl_reference = self.v_init[lanes], self.kl_reference[lanes]
        row_map = torch.full((self.replay.n_rows,), -1, device=lanes.device)
        row_map[rows] = torch.arange(len(rows), device=lanes.device)
        lane_map = torch.full((self.n_lanes,), -1, device=lanes.device)
        lane_map[lanes] = torch.arange(len(lanes), device=lanes.device)
        part.labels = self.labels.select(row_map, lane_map)
        part._place()
        return part


def _rows(
    lm: LM, requests: Sequence[EditRequest], contexts: Sequence[str], bare_weight: float | None
) -> tuple[list[Row], _Labels]:
    """Rows of all lanes (each lane: its contexts, then its KL prompt) and the labels in them."""
    rows: list[Row] = []
    n = len(contexts)
    shares = [1.0 / n] * n
    if bare_weight is not None and n > 1:
        shares = [bare_weight, *[(1.0 - bare_weight) / (n - 1)] * (n - 1)]
    found: list[tuple[int, int, int, int, float, bool]] = []
    for lane, request in enumerate(requests):
        name, subject = request.name, request.named()
        for context, share in zip(contexts, shares, strict=True):
            t = encode_subject(lm, request.prompt, subject, request.target_new, context, name, request.joiner, True)
            weight = share / len(t.target)
            for i, token in enumerate(t.target):
                found.append((len(rows), t.n_prompt - 1 + i - t.subject_last, token, lane, weight, i == 0))
            rows.append(Row(t.ids[:-1], t.subject_last))
        t = encode_subject(lm, KL_PROMPT, subject, name=name)
        rows.append(Row(t.ids[: t.subject_last + 1], t.subject_last))  # what follows the read position is not needed
    row, position, token, lane_of, weights, first = zip(*found, strict=True)

    def integers(x: Sequence[int]) -> Tensor:
        return torch.tensor(x, dtype=torch.long, device=lm.device)

    weight_of = torch.tensor(weights, dtype=torch.float32, device=lm.device)
    of_label = (integers(row), integers(position), integers(token), integers(lane_of), weight_of)
    return rows, _Labels(*of_label, torch.tensor(first, device=lm.device))


def _logp(logits: Tensor) -> Tensor:
    """Float32 log-probabilities `[n, vocab]` of logits."""
    return logits.float().log_softmax(-1)
