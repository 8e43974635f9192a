"""LoRA editing: peft's adapters trained on the facts, delivered as low-rank changes (baselines 1.2)."""

from __future__ import annotations

from collections.abc import Generator
from importlib import import_module
from types import MappingProxyType
from typing import Any, Self

from torch import Tensor

from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.errors import KeditError, above_zero, at_least
from kedit.keyvalue.published import GPT2_XL, GPT_J, LLAMA_2, LLAMA_3, QWEN_2, SMOLLM2, Published, fill_in
from kedit.methods.base.edit_batch import EditBatch, Outcome, batch_seed
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.module import EditingModule
from kedit.methods.base.phase import EditProgram, Phase
from kedit.methods.fine_tuning.lora_adapter import Adapter, Kind, change_since, first_of
from kedit.methods.fine_tuning.lora_phase import LoraPhase, Steps
from kedit.methods.fine_tuning.lora_targets import query_and_value, target_paths
from kedit.methods.pac.labels import encode_request
from kedit.model.lm import LMConfig
from kedit.model.tokenization import Tokens
from kedit.request import EditRecord
from kedit.runtime import distributed

_ADALORA = MappingProxyType({"kind": "adalora", "r": 12})  # EasyEdit's files say 8, which peft's AdaLoRA does not read
_QUERY_VALUE = MappingProxyType({"target_modules": ["q_proj", "v_proj"]})


class LoRA(EditingModule):
    """LoRA: low-rank adapters of the attention, trained to say the new targets. Works without a subject.

    Args:
        kind: `lora`: B A. `adalora`: B diag(E) A with a term that keeps A and B near orthogonal, at full rank
            throughout. null: this model's published one.
        target_modules: Last parts of the paths of linear maps in a layer that get an adapter; null: this model's
            published ones, else the attention's query and value.
        layers: The layers that get adapters; null: all.
        r: Rank of every change; null: this model's published one.
        alpha: Changes are scaled by alpha / r (AdaLoRA likewise).
        dropout: Share of a map's inputs that is hidden from the adapter in a step.
        lr: Adam's learning rate.
        weight_decay: Adam's weight decay.
        steps: Passes over the edit batch; null: this model's published ones.
        mini_batch: Requests in an optimiser step; 0: the whole edit batch.
        stop_loss: Ends after a pass whose mean loss is below; null: never early, as published.
        target_eos: Whether the end-of-text token is trained too, after the target.
    """

    card = MethodCard("Hu et al., ICLR 2022", "attention matrices of all layers, low rank", cost="medium")
    published = Published(
        by_depth=lambda lm: {},
        usual={"kind": "lora", "r": 8, "steps": 60},
        models={
            GPT2_XL: _ADALORA | {"target_modules": ["c_attn"], "steps": 30},
            GPT_J: _ADALORA | {"target_modules": ["fc_in", "fc_out"], "steps": 50},
            LLAMA_2: _ADALORA | _QUERY_VALUE | {"steps": 70},
            LLAMA_3: _ADALORA | _QUERY_VALUE | {"steps": 70},
            QWEN_2: _QUERY_VALUE,
            SMOLLM2: _QUERY_VALUE | {"steps": 30},  # our choice: methods_tuning.yaml
        },
    )

    needs_subject = False
    merges_deltas = True
    takes_out_earlier = True

    def __init__(
        self,
        kind: Kind | None = None,
        target_modules: list[str] | None = None,
        layers: list[int] | None = None,
        r: int | None = None,
        alpha: float = 32.0,
        dropout: float = 0.1,
        lr: float = 5e-3,
        weight_decay: float = 0.0,
        steps: int | None = None,
        mini_batch: int = 1,
        stop_loss: float | None = None,
        target_eos: bool = False,
    ) -> None:
        super().__init__()
        for option, value, least in (
            ("r", r, 1),
            ("steps", steps, 1),
            ("mini_batch", mini_batch, 0),
            ("weight_decay", weight_decay, 0.0),
            ("dropout", dropout, 0.0),
            ("stop_loss", stop_loss, 0.0),
        ):
            at_least(f"model.{option}", value, least)
        above_zero("model.alpha", alpha)
        above_zero("model.lr", lr)
        if dropout >= 1:
            raise KeditError(f"model.dropout: {dropout:g} leaves the adapter nothing; give less than 1")
        self.kind: Kind | None = kind
        self.target_modules, self.layers, self.r = target_modules, layers, r
        self.alpha, self.dropout, self.lr, self.weight_decay = alpha, dropout, lr, weight_decay
        self.steps, self.mini_batch, self.stop_loss, self.target_eos = steps, mini_batch, stop_loss, target_eos
        self._kept: dict[str, dict[str, Tensor]] = {}  # the adapter that later edit batches go on with
        self._trained: dict[str, dict[str, Tensor]] = {}  # the same, of the edit batch under way

    def configure(self, lm: LMConfig | None = None, edit: EditConfig | None = None) -> Self:
        """As every method's; an adapter is trained by itself, so that there are no lanes."""
        if edit is not None and edit.lanes not in (0, 1):
            raise KeditError(f"edit.lanes: LoRA edits without lanes and cannot use {edit.lanes} of them; leave it out")
        return super().configure(lm, edit)

    def lane_count(self) -> int:
        """One: there are no lanes."""
        return 1

    def setup(self, stage: str) -> None:
        """Sizes the run, and finds the maps to adapt."""
        super().setup(stage)
        fill_in(self, self.published, self.lm)
        self.target_modules = list(query_and_value(self.lm) if self.target_modules is None else self.target_modules)
        self._paths = target_paths(self.lm, self.target_modules, self.layers)
        if self.target_eos and self.lm.end_id is None:
            raise KeditError(f"model.target_eos: {self.lm.name} has no end-of-text token; leave it out")
        how = self._how()
        self.steps_per_batch = how.passes * how.per_pass(1 if self.regime == "single" else self.schedule.size)

    def start(self) -> None:
        """Imports peft: no edit's time should be that of an import."""
        import_module("peft")

    def edit(self, batch: EditBatch) -> EditProgram:
        """Trains an adapter on the edit batch; in the single regime a new one on each request."""
        alone = self.regime == "single"
        groups = [[outcome] for outcome in batch.outcomes] if alone else [batch.outcomes]
        deltas: list[Delta | None] = []
        for number, group in enumerate(groups):
            delta = yield from self._train(group, batch_seed(self.seed, batch.index) + number)
            deltas.append(delta)
        return deltas

    def _train(self, outcomes: list[Outcome], seed: int) -> Generator[Phase, None, Delta | None]:
        """The change of some requests that are trained together; None where it failed."""
        assert self.kind is not None
        assert self.r is not None
        adapter = Adapter(self.lm, self._paths, self.kind, self.r, self.alpha, self.dropout, seed)
        earlier: dict[str, Factors] = {}
        if self._kept:
            adapter.load(self._kept)
            earlier = adapter.factors()
        phase = LoraPhase(
            self.lm, adapter, [self._text(outcome.record) for outcome in outcomes], self._how(), seed, earlier
        )
        yield phase
        try:
            if phase.error is not None:
                raise phase.error
            fared = phase.look()
        except KeditError as error:
            for outcome in outcomes:
                outcome.note(steps=phase.taken)
                outcome.fail(str(error))
            return None
        for outcome, loss, answered in zip(outcomes, *fared, strict=True):
            outcome.note(steps=phase.taken, loss=loss, answered=answered)
        self._trained = adapter.state()
        return change_since(earlier, adapter.factors())

    def _text(self, record: EditRecord) -> Tokens:
        text = encode_request(self.lm, record.request)
        own = self.target_eos and not self.ends_targets
        end = (self.lm.end_id,) if own and self.lm.end_id is not None else ()
        return Tokens(text.ids + end, text.n_prompt)

    def _how(self) -> Steps:
        assert self.steps is not None
        return Steps(self.steps, self.mini_batch, self.lr, self.weight_decay, self.stop_loss)

    def after_commit(self, batch: EditBatch) -> None:
        """The next edit batch goes on with this adapter."""
        if batch.edited:
            self._kept = distributed.from_first(lambda: self._trained)

    def merged(self, earlier: Delta, delta: Delta) -> Delta:
        """The adapter as it is now: every delta takes out what it was before."""
        assert self.r is not None
        return first_of(delta, self.r)

    def method_state(self) -> dict[str, Any]:
        """Where edits accumulate, the adapter."""
        return {"adapter": self._kept}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes it back."""
        self._kept = {path: dict(own) for path, own in state["adapter"].items()}

    def describe(self) -> dict[str, Any]:
        """Provenance: every option."""
        options = (
            "kind", "target_modules", "layers", "r", "alpha", "dropout", "lr", "weight_decay", "steps", "mini_batch",
            "stop_loss", "target_eos",
        )  # fmt: skip
        eos = {"target_eos": self.target_eos or self.ends_targets}
        return super().describe() | {name: getattr(self, name) for name in options} | eos
