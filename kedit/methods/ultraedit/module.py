"""UltraEdit: training-, subject- and memory-free lifelong editing (Gu et al., 2025; baselines 1.17)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from kedit.data import read_facts
from kedit.delta.change import Change
from kedit.delta.delta import Delta
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.errors import KeditError, above_zero, at_least
from kedit.keyvalue.published import GPT_J, LLAMA_3, MISTRAL, QWEN_2, SMOLLM2, Published, fill_in, layer_at
from kedit.methods.base.edit_batch import EditBatch, Outcome
from kedit.methods.base.ffn_maps import FfnMap, ffn_path, has_gate
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.module import EditingModule
from kedit.methods.base.phase import EditProgram
from kedit.methods.locate_then_edit.base import required
from kedit.methods.ultraedit.normaliser import Normaliser
from kedit.methods.ultraedit.pairs import PairPhase, Which, all_finite, chunk_of
from kedit.methods.ultraedit.solve import dense_is_smaller, solve, wanted
from kedit.model.architecture import check_layers, weight
from kedit.model.lm import LM
from kedit.request import EditRequest

ROLES: tuple[FfnMap, ...] = ("gate", "up", "down")
FACTS = 100  # of a warm-up


def _by_depth(lm: LM) -> Mapping[str, Any]:
    """With a gate, the shares of Llama 3's depth; without one, those of GPT-J's."""
    if not has_gate(lm):
        first, last = layer_at(lm, 0.64), layer_at(lm, 0.93)
        return {"gate_layers": (), "up_layers": (), "down_layers": tuple(range(first, last + 1))}
    gate, up = ((layer_at(lm, a), layer_at(lm, b)) for a, b in ((0.34, 0.47), (0.56, 0.75)))
    return {
        "gate_layers": tuple(range(gate[0], gate[1] + 1)),
        "up_layers": tuple(range(up[0], up[1] + 1)),
        "down_layers": (),
    }


def _row(gate: range = range(0), up: range = range(0), down: range = range(0)) -> Mapping[str, Any]:
    return MappingProxyType({"gate_layers": tuple(gate), "up_layers": tuple(up), "down_layers": tuple(down)})


class UltraEdit(EditingModule):
    """A closed form from one backward pass: keys, output gradients, and running statistics of both.

    Args:
        gate_layers: Layers whose gate matrix is edited; null takes the model's published ones, or layers by its depth;
            []: none.
        up_layers: The same of the map beside the gate, which is the only one before the activation where there is no
            gate.
        down_layers: The same of the feed-forward output map.
        eta: The step; larger edits more and disturbs more; null: published value.
        chunk: Requests of an edit batch that share a forward and a backward pass, and a mean of the loss.
        tokens: Where keys and gradients are read. `answer`: the tokens whose logits predict the target. `all`: every
            token.
        target_eos: Let the end-of-text token be part of the target.
        warmup: Requests of kedit's own training facts that the normaliser sees before the first edit; null: 100 in the
            single regime and where `data.batch_size` is smaller than `chunk`, else none, as published.
    """

    card = MethodCard("Gu et al., 2025", "FFN matrices, a rank per target token", cost="low")

    usual_regime = "sequential"
    needs_subject = False

    published = Published(
        by_depth=_by_depth,
        usual={"eta": 1e-6},
        models={
            GPT_J: _row(down=range(18, 27)),
            LLAMA_3: _row(gate=range(11, 16), up=range(18, 25)),
            MISTRAL: _row(down=range(29, 31)),
            QWEN_2: _row(gate=range(18, 27), up=range(18, 27)),
            SMOLLM2: {**_row(down=range(19, 29)), "eta": 5e-4},  # our choice; 1e-6 changes no answer
        },
    )

    def __init__(
        self,
        gate_layers: list[int] | None = None,
        up_layers: list[int] | None = None,
        down_layers: list[int] | None = None,
        eta: float | None = None,
        chunk: int = 10,
        tokens: Which = "answer",
        target_eos: bool = False,
        warmup: int | None = None,
    ) -> None:
        super().__init__()
        above_zero("model.eta", eta)
        at_least("model.chunk", chunk, 1)
        at_least("model.warmup", warmup, 0)
        self.gate_layers, self.up_layers, self.down_layers = gate_layers, up_layers, down_layers
        self.eta, self.chunk, self.target_eos, self.warmup = eta, chunk, target_eos, warmup
        self.tokens: Which = tokens
        self.modules_edited: dict[str, nn.Module] = {}
        self.normaliser: Normaliser | None = None
        self._given: list[Mapping[str, Any]] | None = None

    def setup(self, stage: str) -> None:
        """Fills in the model's own values and checks the layers before anything is computed."""
        self.choose_modules()
        if self.warmup is None:
            self.warmup = FACTS if self.regime == "single" or self._data.batch_size < self.chunk else 0
        super().setup(stage)
        largest = max((len(batch) for batch in self.schedule.batches), default=1)
        self.steps_per_batch = 1 if self.regime == "single" else -(-largest // self.chunk)

    def choose_modules(self) -> None:
        """Fills in what the user left null, and looks the modules up.

        Raises:
            KeditError: There is no such layer or no gate, or no layer at all; names the option.
        """
        fill_in(self, self.published, self.lm)
        paths: list[str] = []
        for role in ROLES:
            layers, option = sorted(getattr(self, f"{role}_layers")), f"model.{role}_layers"
            setattr(self, f"{role}_layers", layers)
            if layers:
                check_layers(self.lm.arch, layers, option)
            paths += [ffn_path(self.lm, role, layer, option) for layer in layers]
        if not paths:
            raise KeditError("model.gate_layers, up_layers, down_layers: all are empty; name a layer in one of them")
        self.modules_edited = {path: self.lm.model.get_submodule(path) for path in paths}

    def start(self) -> None:
        """The normaliser: that of the checkpoint, or one that has seen the warm-up's facts."""
        self.normaliser = Normaliser(self.device)
        if self._given is not None:
            self.normaliser.load(self._given)
            return
        facts = [record.request for record in read_facts("train")[: self.warmup or 0]]
        for start in range(0, len(facts), self.chunk):
            phase = self._phase_of(facts[start : start + self.chunk])
            with torch.enable_grad():
                phase.loss().backward()
            self._take_up(self.normaliser, phase)

    # -- the algorithm ----------------------------------------------------------------------------------

    def edit(self, batch: EditBatch) -> EditProgram:
        """Keys and gradients chunk by chunk, statistics with them, then one closed form for each module."""
        assert self.normaliser is not None
        if self.regime == "single":
            return (yield from self._each(batch, self.normaliser))
        normaliser = self.normaliser if self.regime == "sequential" else self.normaliser.copy()
        found: list[PairPhase] = []
        for start in range(0, len(batch.records), self.chunk):
            outcomes = batch.outcomes[start : start + self.chunk]
            phase = self._phase_of([outcome.record.request for outcome in outcomes])
            yield phase
            if self._usable(phase, outcomes, 0, phase.finite):
                self._take_up(normaliser, phase)
                found.append(phase)
        edited = [outcome for outcome in batch.outcomes if outcome.error is None and outcome.info]
        if not found:
            return [None]
        pairs = {
            path: tuple(torch.cat([phase.pairs[path][side] for phase in found]) for side in (0, 1))
            for path in self.modules_edited
        }
        return [self._solved(normaliser, pairs, edited)]

    def _each(self, batch: EditBatch, start: Normaliser) -> EditProgram:
        """Every request by itself: one pass for all, a normaliser and a closed form for each."""
        phase = self._phase_of([record.request for record in batch.records], alone=True)
        yield phase
        deltas: list[Delta | None] = []
        for row, outcome in enumerate(batch.outcomes):
            at = (phase.chunk.token_rows == row).nonzero()[:, 0]
            own = {path: (keys[at], gradients[at]) for path, (keys, gradients) in phase.pairs.items()}
            if not self._usable(phase, [outcome], row, all_finite(own)):
                deltas.append(None)
                continue
            normaliser = start.copy()
            for pair in own.values():
                normaliser.update(*pair)
            deltas.append(self._solved(normaliser, own, [outcome]))
        return deltas

    def _phase_of(self, requests: list[EditRequest], alone: bool = False) -> PairPhase:
        chunk = chunk_of(self.lm, requests, self.tokens, self.target_eos, alone)
        return PairPhase(self.lm, self.modules_edited, chunk)

    def _take_up(self, normaliser: Normaliser, phase: PairPhase) -> None:
        for path in self.modules_edited:
            normaliser.update(*phase.pairs[path])

    def _usable(self, phase: PairPhase, outcomes: list[Outcome], first: int, finite: bool) -> bool:
        """Whether a phase was run and gave numbers; what is known of its rows from `first` on goes to outcomes."""
        if not phase.done or phase.losses is None:
            return False  # with fast_dev_run only the first was run
        for row, outcome in enumerate(outcomes, first):
            loss, tokens = float(phase.losses[row]), int((phase.chunk.token_rows == row).sum())
            outcome.report({"loss": loss if finite else None, "steps": 1, "tokens": tokens}, None)
            if not finite:
                outcome.fail("the loss or a gradient is not finite; load the model with lm.dtype: float32")
        return finite

    def _solved(
        self, normaliser: Normaliser, pairs: Mapping[str, tuple[Tensor, ...]], outcomes: list[Outcome]
    ) -> Delta | None:
        """The closed form of every module, from keys and gradients of all tokens."""
        if normaliser.tokens < 2:
            for outcome in outcomes:
                outcome.fail("one token alone has no spread to be measured by; use data.batch_size or model.warmup")
            return None
        changes: dict[str, Change] = {}
        for path, (keys, gradients) in pairs.items():
            gains = wanted(*normaliser.normalised(keys, gradients), required(self.eta))
            changes[path] = solve(keys.double(), gains)
        delta = Delta(changes)
        size = sum(float(weight(module).float().norm()) ** 2 for module in self.modules_edited.values()) ** 0.5
        for outcome in outcomes:
            outcome.note(delta_norm=delta.norm(), delta_over_weight=delta.norm() / size)
        return delta

    def finish(self, total: Delta) -> Delta | None:
        """Factors of so many edits that a matrix is smaller become one; None where there are none such."""
        factors = {p: f for p, f in total.of_kind(Factors).items() if dense_is_smaller(f.rank, *f.shape)}
        if not factors:
            return None
        kept: list[dict[str, Change]] = [
            {path: change} for path, own in total.items() for change in own if change is not factors.get(path)
        ]
        return Delta.concat([Delta(*kept), Delta({path: Dense(f.dense()) for path, f in factors.items()})])

    # -- state ------------------------------------------------------------------------------------------

    def method_state(self) -> dict[str, Any]:
        """The normaliser."""
        return {"normaliser": self.normaliser.state() if self.normaliser is not None else []}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes it back."""
        self._given = list(state["normaliser"])

    def describe(self) -> dict[str, Any]:
        """Provenance: every hyperparameter that was used, defaults filled in."""
        names = ("gate_layers", "up_layers", "down_layers", "eta", "chunk", "tokens", "target_eos", "warmup")
        eos = {"target_eos": self.target_eos or self.ends_targets}
        return super().describe() | {name: getattr(self, name) for name in names} | eos
