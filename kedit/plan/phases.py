"""The phases of a run and the memory that each takes, besides the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from kedit.covariance.collect import default_batch_tokens as statistics_tokens
from kedit.covariance.store import key_width
from kedit.forward import logits
from kedit.forward.decoding import CPU_TOKENS, bounded_tokens, kv_width, token_bytes
from kedit.forward.teacher_forcing import MAX_LOGITS
from kedit.keyvalue.contexts import ContextConfig
from kedit.methods import EditingModule
from kedit.methods.fine_tuning.module import FineTuning
from kedit.methods.locate_then_edit.alphaedit import AlphaEdit
from kedit.methods.locate_then_edit.base import LocateThenEdit
from kedit.methods.locate_then_edit.multi_layer import MultiLayerEditor
from kedit.methods.locate_then_edit.single_layer import SingleLayerEditor
from kedit.methods.pac import BATCH
from kedit.methods.pac.module import PAC
from kedit.methods.pac.tracing.sites import sites
from kedit.methods.rep.module import REP
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.plan import passes
from kedit.plan.adapters import adapter_bytes
from kedit.plan.lengths import Lengths
from kedit.plan.tracing import trace_bytes
from kedit.plan.value_rows import contexts_of, value_bytes

MEASURE = 32  # bytes times d_in^2 at the end of the statistics: both halves' C, a factor, an inverse, in float64
DIVERGENCE = 12  # bytes times positions and vocabulary: log-probabilities, probabilities, their product
SMALLEST = 24 * 2**30  # bytes of a GPU
SUMS = 2.25  # bytes times d_in^2 of a layer's sums


@dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        name: What it is called.
        peak: Bytes that it takes at most, besides the model and what is kept from earlier phases.
        kept: Bytes that stay until the end of the run.
        lane: Bytes of one more request side by side; 0 where there are no lanes.
        least: Bytes with the smallest batch, where kedit chooses smaller ones as memory asks for; None: it does not.
        note: What the numbers are of.
    """

    name: str
    peak: int
    kept: int = 0
    lane: int = 0
    least: int | None = None
    note: str = ""


def phases_of(
    method: EditingModule, lm: LM, lengths: Lengths, lanes: int, gpu: bool, scoring: ScoringPlan
) -> list[Phase]:
    """The phases of a run, in their order.

    Args:
        method: Configured, its hyperparameters filled in.
        lm: The shape of the model.
        lengths: Of the texts.
        lanes: Requests side by side.
        gpu: Whether it runs on a GPU, whose batches are larger.
        scoring: How probes are scored.
    """
    editor, found = innermost(method), []
    tokens = logits.default_batch_tokens(_device(gpu))
    if isinstance(editor, LocateThenEdit):
        found += _locate(editor, lm, lengths, lanes, tokens, gpu)
    elif isinstance(editor, FineTuning):
        found.append(_tuning(editor, lm, lengths, lanes, tokens))
    elif isinstance(editor, PAC):
        found += _pac(editor, lm, lengths)
    if isinstance(method, REP):
        found.append(_adapters(method, lm, lengths, lanes, tokens))
    return found + scoring.phases(lm, lengths, tokens, gpu)


def _device(gpu: bool) -> torch.device:
    return torch.device("cuda" if gpu else "cpu")


def shown_bytes(n: float) -> str:
    """A number of bytes to be read."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 / 10 else f"{n / 2**20:.1f} MiB"


def innermost(method: EditingModule) -> EditingModule:
    """The method that changes the weights, below those that add to it."""
    return method if method.editor is method else innermost(method.editor)


@dataclass(frozen=True)
class TextPlan:
    """Which text the perplexity is measured on.

    Attributes:
        tokens: Tokens that are read.
        window: Of these, those that are read together.
        kl: Positions whose distributions in the unedited model are kept.
    """

    tokens: int
    window: int
    kl: int = 0


@dataclass(frozen=True)
class ScoringPlan:
    """How probes are scored.

    Attributes:
        batch_tokens: Padded tokens of a batch; None: by device.
        generates: Whether there is free generation.
        new: Its tokens.
        text: What the perplexity is measured on; None: it is not.
    """

    batch_tokens: int | None = None
    generates: bool = True
    new: int = 16
    text: TextPlan | None = None

    def phases(self, lm: LM, lengths: Lengths, tokens: int, gpu: bool) -> list[Phase]:
        """Scoring, and generation where there is any: on a GPU, with the batch that kedit makes on the smallest one."""
        budget = self.batch_tokens or tokens
        rows = max(1, budget // lengths.text)
        most = max(1, MAX_LOGITS // lm.vocab_size)  # positions of a batch
        rows = min(rows, max(1, most // lengths.target), lengths.probes)
        peak = passes.reading(lm, rows, lengths.text, rows * lengths.target)
        found = [Phase("scoring", peak, least=peak // rows, note=f"{rows} rows of {lengths.text} tokens")]
        if self.generates:
            width = lengths.prefix + self.new
            left = max(0, SMALLEST - sum(p.nbytes for p in lm.model.parameters()))
            rows = (self.batch_tokens or (bounded_tokens(left, token_bytes(lm)) if gpu else CPU_TOKENS)) // width
            rows = min(max(1, rows), lengths.probes)
            cache = 2 * lm.arch.n_layers * rows * width * kv_width(lm) * lm.dtype.itemsize
            peak = passes.reading(lm, rows, lengths.prefix, rows) + cache
            found.append(Phase("generation", peak, least=peak // rows, note=f"{rows} rows, cache {shown_bytes(cache)}"))
        if self.text is not None:
            found.insert(0, self._perplexity(lm, self.text, budget, most))  # before the first edit, and after every one
        return found

    def _perplexity(self, lm: LM, text: TextPlan, budget: int, most: int) -> Phase:
        """All of its positions have logits; for the divergence those of a window are compared at a time."""
        window = min(text.window, text.tokens)
        rows = max(1, min(budget // window, most // window, text.tokens // window))
        peak, kept = passes.reading(lm, rows, window, rows * window), 0
        if text.kl:
            few, kept = min(rows, -(-text.kl // window)), 4 * text.kl * lm.vocab_size
            compared = DIVERGENCE * min(window, text.kl) * lm.vocab_size
            peak = kept + max(peak, passes.reading(lm, few, window, few * window) + compared)
        return Phase("perplexity", peak, kept, least=peak // rows, note=f"{rows} rows of {window} tokens")


def _locate(editor: LocateThenEdit, lm: LM, lengths: Lengths, lanes: int, tokens: int, gpu: bool) -> list[Phase]:
    layers, width = editor.edited_layers, key_width(lm, editor.edited_layers[-1])
    square, n, config = width**2, len(layers), editor.stats_config
    needs = isinstance(editor, SingleLayerEditor) and editor.mom2_adjustment
    needs |= isinstance(editor, MultiLayerEditor) and editor.needs_covariance
    found = []
    if needs:
        batch = config.batch_tokens or statistics_tokens(_device(gpu))
        rows = max(1, batch // config.sequence_length)
        read = passes.reading(lm, rows, config.sequence_length, 0)
        sums = int(SUMS * square * n) * (1 if gpu else 2)  # those of half the text are in the CPU's memory
        kept = (4 + 8) * square * n
        note = f"{config.tokens} tokens; {shown_bytes(2 * square * n)} on disk, once for the model"
        found.append(Phase("statistics", sums + max(read, MEASURE * square), kept, note=note))
        if isinstance(editor, AlphaEdit):
            found.append(Phase("null spaces", 32 * square, 16 * square * n, note="eigenvectors, float64"))
            if editor.regime == "sequential":
                found.append(Phase("past keys", 24 * square, 8 * square * n, note="an inverse of each layer at last"))
    single = isinstance(editor, SingleLayerEditor)
    _, longest = contexts_of(editor.context_config)
    first = layers[-1] if single else layers[-1] + 1

    found.append(_values(lm, lengths, lanes, editor.context_config, first, gpu))
    matrix = 4 * width * lm.d_model
    solving = matrix if single else max(
        passes.reading(lm, max(1, tokens // (lengths.prefix + longest)), lengths.prefix + longest, 0),
        matrix,
    )  # fmt: skip
    found.append(Phase("solving", solving))
    return found


def _values(lm: LM, lengths: Lengths, lanes: int, config: ContextConfig, first: int, gpu: bool) -> Phase:
    peak = value_bytes(lm, lengths, lanes, config, first, gpu)
    lane = (peak - value_bytes(lm, lengths, 1, config, first, gpu)) // (lanes - 1) if lanes > 1 else peak
    rows, longest = contexts_of(config)[0] + 1, lengths.largest(1)[0][0]
    return Phase("v*", peak, lane=lane, note=f"{lanes} x {rows} rows of up to {longest} tokens")


def _tuning(editor: FineTuning, lm: LM, lengths: Lengths, lanes: int, tokens: int) -> Phase:
    modules: list[nn.Module] = [lm.model.get_submodule(path) for path in editor.paths]
    alone = editor.regime == "single" and not editor.whole
    numbers = sum(weight(module).numel() for module in modules)
    if editor.whole:
        numbers, modules = sum(p.numel() for p in lm.model.parameters()), []
    first = 0 if editor.whole else min(editor.edited_layers)  # nothing below is part of the graph
    n = lanes if alone else 1
    rows = lanes if alone else editor.recipe().mini_batch
    largest = max((weight(module).numel() for module in modules), default=0)

    def bytes_of(n: int, rows: int) -> int:
        most = max(1, tokens // lengths.text)  # `TunePhase` makes passes of bounded length
        graph = passes.graph(lm, rows, lengths.text - 1, lengths.target, first, most)
        return tuning_bytes(numbers * n, largest, graph)

    lane = bytes_of(1, 1) if alone else 0
    kind = f"{numbers / 1e6:.1f} M numbers x {n}: change, gradient, Adam"
    return Phase("fine-tuning", bytes_of(n, rows), lane=lane, note=kind)


def tuning_bytes(numbers: int, largest: int, graph: int) -> int:
    """Bytes of fine-tuning: change, gradient and Adam's two moments of all numbers, and the graph of a step.

    The graph is gone when the gradient of the lowest layer is made; Adam works on the `largest` matrix twice over.
    """
    return max(12 * numbers + graph, 16 * numbers + 2 * 4 * largest)


def _pac(editor: PAC, lm: LM, lengths: Lengths) -> list[Phase]:
    trace, train = editor.trace_config, editor.train_config
    found = [s for s in sites(lm, trace.include_gate) if trace.layers is None or s.layer in trace.layers]
    dense = sum(4 * s.depth * s.width for s in found)
    rows = 1 if editor.scope == "edit" or editor.regime == "single" else min(BATCH, lengths.requests)
    tokens = lengths.text - 1
    peak, least = trace_bytes(lm, found, rows, tokens, lengths.target, trace.memory * dense)
    phases = [Phase("tracing", peak, least=least, note=f"{peak / dense:.1%} of dense gradients")]
    sides = 2 if editor.contrasts else 1
    numbers = sum(trace.nodes * s.depth for s in found) * sides
    first = min(trace.layers or [0])
    batch = min(train.mini_batch, rows)
    own = passes.graph(lm, batch, tokens, lengths.target, first)
    kind = f"{numbers / 1e6:.1f} M numbers: slices, gradients, Adam"
    return [*phases, Phase("training", 16 * numbers + own, note=kind)]


def _adapters(method: REP, lm: LM, lengths: Lengths, lanes: int, tokens: int) -> Phase:
    peak, lane = adapter_bytes(method.adapter, key_width(lm, method.editor.edited_layers[-1]), lanes)
    rows = max(1, tokens // (lengths.text + 10))
    read = passes.reading(lm, rows, lengths.text + 10, 0)
    return Phase("REP's adapters", max(read, peak), lane=lane, note=f"{lanes} x {shown_bytes(lane)}")
