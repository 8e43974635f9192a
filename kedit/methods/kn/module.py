"""KN: knowledge neurons (Dai et al., ACL 2022; baselines 1.11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from kedit.delta.delta import Delta
from kedit.errors import KeditError, above_zero, at_least, within
from kedit.forward.greedy import greedy_ids
from kedit.keyvalue.contexts import ContextConfig, context_templates
from kedit.keyvalue.published import GPT2_XL, GPT_J, LLAMA_2, LLAMA_3, SMOLLM2, Published, fill_in
from kedit.methods.base.edit_batch import EditBatch, Outcome
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.module import EditingModule
from kedit.methods.base.phase import EditProgram
from kedit.methods.kn import (
    Attribution,
    AttributionPhase,
    Point,
    check_neurons,
    coarse,
    in_most_prompts,
    neuron_changes,
    points_at_once,
    points_of,
)
from kedit.methods.kn.neurons import written
from kedit.model.tokenization import Tokens, encode, in_context
from kedit.request import EditRecord, EditRequest
from kedit.runtime import distributed
from kedit.text.prompts import slots


class KN(EditingModule):
    """Finds the neurons that a fact hangs on by integrated gradients, and writes the new answer behind them.

    Args:
        steps: m, activations between none and their own at which gradients are taken; null: published value.
        adaptive_threshold: Share of the largest attribution that a neuron must exceed; null: published value.
        refine: Attribute behind every context too, and keep the neurons that pass at more than a share `p` of the
            prompts. False keeps all that pass at the bare prompt.
        p: That share.
        strength: How often the old answer's embedding is taken from a neuron's column, and the new one's added; of a
            new answer of several tokens each is added half as often. null: published value.
        contexts: Texts put before the prompt where `refine` is true.
    """

    card = MethodCard("Dai et al., ACL 2022", "columns of FFN matrices, one per neuron", ("true target",), "high")

    regimes = ("single", "sequential")
    needs_subject = False
    trains_target = False

    published = Published(
        by_depth=lambda lm: {},
        usual={"steps": 20, "adaptive_threshold": 0.2, "strength": 2.0},
        models={
            GPT2_XL: {},
            GPT_J: {"adaptive_threshold": 0.1},
            LLAMA_2: {},
            LLAMA_3: {},
            SMOLLM2: {"adaptive_threshold": 0.4, "strength": 1.0},
        },
    )

    def __init__(
        self,
        steps: int | None = None,
        adaptive_threshold: float | None = None,
        refine: bool = False,
        p: float = 0.4,
        strength: float | None = None,
        contexts: ContextConfig = ContextConfig(lengths=[[10, 5]]),
    ) -> None:
        super().__init__()
        at_least("model.steps", steps, 1)
        within("model.adaptive_threshold", adaptive_threshold, 0.0, 1.0)
        within("model.p", p, 0.0, 1.0)
        above_zero("model.strength", strength)
        self.steps, self.adaptive_threshold = steps, adaptive_threshold
        self.refine, self.p, self.strength = refine, p, strength
        self.context_config = contexts
        self.contexts: list[str] = []

    # -- Lightning --------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Fills in the published values, and sizes the run: a step for each layer and as many points as go together."""
        fill_in(self, self.published, self.lm)
        check_neurons(self.lm)
        super().setup(stage)
        if self.regime == "sequential" and self._data.batch_size != 1:
            raise KeditError(f"data.batch_size: KN edits one request at a time, not {self._data.batch_size}")
        texts = self.context_config.texts
        more = sum(count for _, count in self.context_config.lengths) if texts is None else len(texts)
        spare = 2 if self.refine else 0  # behind a context the answer may be cut into other tokens
        longest = max([1, *(len(_true(self.lm, record.request)) + spare for record in self.schedule.records)])
        points = self.schedule.size * longest * (1 + more if self.refine else 1)
        self.steps_per_batch = -(-points // self._at_once) * self.lm.arch.n_layers

    def start(self) -> None:
        """Contexts of the unedited model, where they are used."""
        if self.refine and not self.contexts:  # a resumed run has them
            self.contexts = distributed.from_first(lambda: context_templates(self.lm, self.context_config, self.seed))

    def check_fit(self, record: EditRecord) -> None:
        """The prompt behind every context, with either answer."""
        KN.start(self)
        request = record.request
        for context in self.contexts or ["{}"]:
            name = request.name if context == "{}" else f"{request.name}, behind a context of the edit"
            for answer in filter(None, (request.target_new, request.target_true)):
                encode(self.lm, in_context(self.lm, context, request.text), answer, name, request.joiner)

    # -- the algorithm ----------------------------------------------------------------------------------

    def edit(self, batch: EditBatch) -> EditProgram:
        """Attributions, then the neurons that pass, then what they write (Dai et al., sections 3 and 4)."""
        requests = [record.request for record in batch.records]
        prompts = [_prompt(self.lm, request, request.text) for request in requests]
        bare = [prompt.ids[: prompt.n_prompt] for prompt in prompts]
        old = [ids[0] for ids in greedy_ids(self.lm, bare, 1)]
        points = [point for i, request in enumerate(requests) for point in self._points(i, request, old[i])]
        points.sort(key=lambda point: len(point.ids))
        found: dict[tuple[int, int], tuple[Tensor, float]] = {}
        for start in range(0, len(points), self._at_once):
            attribution = Attribution(self.lm, points[start : start + self._at_once], int(self.steps or 1))
            yield AttributionPhase(attribution)
            for of, (scores, p) in attribution.by_prompt().items():
                before = found.get(of, (torch.zeros_like(scores), 0.0))
                found[of] = before[0] + scores, before[1] + p
        deltas: list[Delta | None] = []
        for i, outcome in enumerate(batch.outcomes):
            own = [value for (record, _), value in sorted(found.items(), key=lambda item: item[0]) if record == i]
            deltas.append(self._rewrite(outcome, own, old[i], prompts[i].target))
        if self.regime == "single":
            return deltas
        made = [delta for delta in deltas if delta is not None]
        return [Delta.concat(made) if made else None]

    def _points(self, i: int, request: EditRequest, old: int) -> list[Point]:
        """Those of a request's prompts, the bare one first: of its true answer, or of the model's own first token."""
        points: list[Point] = []
        texts = dict.fromkeys(in_context(self.lm, context, request.text) for context in self.contexts or ["{}"])
        for number, text in enumerate(texts):
            true = _true(self.lm, request, text)
            points += points_of((i, number), _prompt(self.lm, request, text), true or (old,))
        return points

    def _rewrite(
        self, outcome: Outcome, found: Sequence[tuple[Tensor, float]], old: int, new: tuple[int, ...]
    ) -> Delta | None:
        """The change of one request; None, with the reason in `outcome`, where no neuron passes.

        Args:
            outcome: Of the request.
            found: Attributions and p(true answer) at its prompts, the bare one first.
            old: The model's own first token.
            new: Tokens of the new answer.
        """
        passed = [coarse(scores, float(self.adaptive_threshold or 0)) for scores, _ in found]
        chosen = in_most_prompts(passed, self.p) if self.refine else passed[0]
        scores, p = found[0]
        outcome.note(steps=len(scores), p_true=p, prompts=len(found))
        outcome.note(coarse=int(passed[0].sum()), neurons=int(chosen.sum()))
        if not all(bool(scores.isfinite().all()) for scores, _ in found):
            outcome.fail("the neurons' attributions are not finite")
        elif not bool(chosen.any()):
            hint = "at more than p of its prompts; lower model.p" if self.refine else "with an attribution above 0"
            outcome.fail(f"no neuron passes {hint}")
        else:
            outcome.note(attribution=float(scores.max()), neuron_layers=chosen.any(1).nonzero()[:, 0].tolist())
            delta = Delta(neuron_changes(self.lm, chosen, written(self.lm, old, new, float(self.strength or 0))))
            outcome.note(delta_norm=delta.norm())
            return delta
        return None

    @property
    def _at_once(self) -> int:
        return points_at_once(int(self.steps or 1), self.lm.device)

    # -- state ------------------------------------------------------------------------------------------

    def method_state(self) -> dict[str, Any]:
        """The contexts, so that a resumed run attributes behind the same."""
        return {"contexts": self.contexts}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes the contexts back."""
        contexts = state["contexts"]
        if not isinstance(contexts, list) or not all(isinstance(c, str) and slots(c) == 1 for c in contexts):
            raise ValueError("its contexts are no list of texts with one {} each")
        self.contexts = contexts

    def describe(self) -> dict[str, Any]:
        """Provenance: every option, and the contexts that were drawn."""
        return super().describe() | {
            "steps": self.steps,
            "adaptive_threshold": self.adaptive_threshold,
            "refine": self.refine,
            "p": self.p,
            "strength": self.strength,
            "context_options": asdict(self.context_config) if self.refine else None,
            "contexts": self.contexts,
        }


def _prompt(lm: Any, request: EditRequest, text: str) -> Tokens:
    """One of a request's prompts with the new answer behind it."""
    return encode(lm, text, request.target_new, request.name, request.joiner)


def _true(lm: Any, request: EditRequest, text: str | None = None) -> tuple[int, ...]:
    """Tokens of the true answer behind a prompt, the bare one or another; none where the request does not say it."""
    if request.target_true is None:
        return ()
    text = request.text if text is None else text
    return encode(lm, text, request.target_true, request.name, request.joiner).target
