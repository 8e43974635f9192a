"""Peak memory of passes through a model, taken from the model itself on `meta`: whatever its family, all is counted.

What a pass allocates there is what it allocates elsewhere. `meta` has no fused kernel of attention; `kedit.plan.shape`
gives the model one that allocates as such a kernel does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kedit.forward.decoding import kv_width
from kedit.model.lm import LM
from kedit.plan.attention import masked
from kedit.runtime.live_peak import LivePeak


def live(lm: LM) -> LivePeak:
    """Counts what is allocated inside, but for the model."""
    return LivePeak([*lm.model.parameters(), *lm.model.buffers()])


@dataclass(frozen=True)
class RowGroup:
    """Rows of a step of v* that run together (`kedit.forward.replay_groups`).

    Attributes:
        rows: How many.
        suffix: Tokens of each that run anew, with padding.
        prefix: Tokens before them, with padding.
    """

    rows: int
    suffix: int
    prefix: int


def value_step(lm: LM, lanes: int, groups: Sequence[RowGroup], labels: int, first: int) -> int:
    """Bytes of a step of v*: what was captured, the graph of layers `first` and above, log-probabilities.

    Args:
        lm: The model.
        lanes: Requests side by side.
        groups: The rows of all lanes, their KL rows included.
        labels: Tokens of all targets, over the rows of all lanes, the KL rows not included.
        first: The lowest layer that runs.
    """

    def run(first: int) -> int:
        return _value_step(lm, lanes, groups, labels, first)

    peak = _by_layers(lm, run, first)
    config = lm.model.config.get_text_config()
    heads = config.num_attention_heads
    kv, own = kv_width(lm), getattr(config, "head_dim", None) or lm.d_model // heads
    seen = heads * own
    above = lm.arch.n_layers - first
    shared = heads * own != kv  # a step makes keys and values anew for the query heads that share them
    numbers = sum(g.rows * (kv * (g.prefix + g.suffix * shared) + seen * g.prefix * shared) for g in groups)
    return peak + 2 * above * lm.dtype.itemsize * numbers


def _value_step(lm: LM, lanes: int, groups: Sequence[RowGroup], labels: int, first: int) -> int:
    """Without the prefixes."""
    with live(lm) as found, _only_from(lm, first):
        captured = [torch.zeros(g.rows, g.suffix, lm.d_model, dtype=lm.dtype, device="meta") for g in groups]
        reference = torch.zeros(lanes, lm.vocab_size, device="meta")
        delta = torch.zeros(lanes, lm.d_model, device="meta", requires_grad=True)
        with torch.enable_grad(), masked():
            loss = _value_loss(lm, captured, delta, labels, reference)
        loss.backward()
    return found.peak


def _value_loss(lm: LM, captured: Sequence[Tensor], delta: Tensor, labels: int, reference: Tensor) -> Tensor:
    """Of the rows `captured`, to whose first tokens `delta` is added; what is not in the graph ends with it."""
    lanes, texts, read = len(delta), sum(map(len, captured)), []
    each = delta.repeat_interleave(-(-texts // lanes), 0)
    for hidden in captured:
        head = hidden[:, :1] + each[: len(hidden), None].to(hidden.dtype)
        final = _base(lm, inputs_embeds=torch.cat([head, hidden[:, 1:]], 1))
        read.append(final.flatten(0, 1)[_zeros(-(-(labels + lanes) * len(hidden) // texts))])
    of_labels, of_kl = _head(lm, torch.cat(read)[: labels + lanes]).split([labels, lanes])
    nll = nn.functional.nll_loss(of_labels.float().log_softmax(-1), _zeros(labels))
    return nll + nn.functional.kl_div(of_kl.float().log_softmax(-1), reference, reduction="sum", log_target=True)


def _by_layers(lm: LM, run: Callable[[int], int], first: int) -> int:
    """`run(first)` by what two and four layers at the top take: every further one takes as much as the last two."""
    top, layers = lm.arch.n_layers, lm.arch.n_layers - first
    if layers <= 4:
        return run(first)
    two, four = run(top - 2), run(top - 4)
    return four + (four - two) * (layers - 4) // 2


def reading(lm: LM, rows: int, tokens: int, positions: int) -> int:
    """Bytes of a forward pass without graph, whose head runs at some positions.

    Args:
        lm: The model.
        rows: Rows.
        tokens: Tokens of each.
        positions: Positions with logits; 0: the head does not run.
    """
    with live(lm) as found, torch.no_grad(), _only_from(lm, max(0, lm.arch.n_layers - 2)):  # a layer leaves nothing
        final = _base(lm, input_ids=torch.zeros(rows, tokens, dtype=torch.long, device="meta"))
        if positions:
            logits = _logits(lm, final, positions)
            logits.float().logsumexp(-1)
    return found.peak


def graph(lm: LM, rows: int, tokens: int, labels: int, first: int, most: int | None = None) -> int:
    """Bytes of a training step's forward and backward pass, what is trained and its gradients not counted.

    Args:
        lm: The model.
        rows: Texts.
        tokens: Tokens of each, with padding.
        labels: Tokens with a loss, of each.
        first: The lowest layer with something to train, in its feed-forward block: the graph begins at its output.
        most: Texts of one pass at most, of which the graph is made together; None: all.
    """
    parts = [min(most or rows, rows - start) for start in range(0, rows, most or rows)]

    def run(first: int) -> int:
        with live(lm) as found, _only_from(lm, first), torch.enable_grad():
            losses = [_text_loss(lm, part, tokens, part * labels) for part in parts]
            torch.stack(losses).sum().backward()
        return found.peak

    return _by_layers(lm, run, min(first + 1, lm.arch.n_layers - 1))


def _text_loss(lm: LM, rows: int, tokens: int, labels: int) -> Tensor:
    hidden = torch.zeros(rows, tokens, lm.d_model, dtype=lm.dtype, device="meta", requires_grad=True)
    logits = _logits(lm, _base(lm, inputs_embeds=hidden), labels)
    return nn.functional.cross_entropy(logits.float(), _zeros(labels))


def _base(lm: LM, **given: Any) -> Tensor:
    tokens = next(iter(given.values())).shape[1]
    mask = torch.zeros(1, 1, tokens, tokens, dtype=lm.dtype, device="meta")  # given, so that none is looked into
    return lm.model.base_model(**given, attention_mask=mask, use_cache=False)[0]


def _logits(lm: LM, final: Tensor, positions: int) -> Tensor:
    return _head(lm, final.reshape(-1, final.shape[-1])[_zeros(positions)])


def _head(lm: LM, states: Tensor) -> Tensor:
    head: nn.Module = lm.arch.head(lm.model)
    return head(states)


def _zeros(n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.long, device="meta")


@contextmanager
def _only_from(lm: LM, first: int) -> Iterator[None]:
    """The layers below `first` pass on what they are given."""
    with _passing(lm, range(first)):
        yield


@contextmanager
def _passing(lm: LM, layers: range) -> Iterator[None]:
    if not layers:
        yield
        return
    kinds: list[bool] = []
    handle = lm.arch.layer(lm.model, 0).register_forward_hook(lambda _, args, out: kinds.append(isinstance(out, tuple)))
    with torch.no_grad():
        _base(lm, input_ids=torch.zeros(1, 2, dtype=torch.long, device="meta"))
    handle.remove()

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if kinds[0] else hidden_states

    modules = [lm.arch.layer(lm.model, i) for i in layers]
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
