"""One pass over the text for all layers at once: `collect`, resumable, with its own convergence measured.

Sequences are packed (no padding, every token counts) and the forward pass ends at the deepest layer asked
for. What is cached and when this runs at all is decided in `kedit.covariance`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kedit.covariance import store
from kedit.covariance.corpus import Progress
from kedit.covariance.matrix import RIDGE, Covariance
from kedit.covariance.moments import SecondMoment, float32_products
from kedit.errors import KeditError
from kedit.forward.activations import reading
from kedit.forward.logits import frozen
from kedit.model.lm import LM
from kedit.runtime import distributed
from kedit.runtime.room import STATISTICS, in_parts

log = logging.getLogger(__name__)


class Pass:
    """The state of a pass: sums, how far it is, and the sums as they were when the text was half as long.

    Processes that share a pass have sums of their own; what is measured, and what `close` leaves, are those of all.

    Args:
        lm: The unedited model.
        layers: Layers whose keys are taken.
        dtype: Of products and sums.
    """

    def __init__(self, lm: LM, layers: Sequence[int], dtype: torch.dtype) -> None:
        self.lm, self.layers = lm, list(layers)
        self.moments: dict[int, SecondMoment] = {}
        for layer in self.layers:
            device = next(lm.arch.module(lm.model, "mlp_out", layer).parameters()).device
            self.moments[layer] = SecondMoment(store.key_width(lm, layer), dtype, device)
        self.before: dict[int, SecondMoment] = {}
        self.convergence: dict[int, list[dict[str, float | None]]] = {layer: [] for layer in self.layers}
        self.chunks = 0

    def advance(self, ids: Tensor) -> None:
        """Take one chunk `[n, T]`, in parts where memory is short."""
        added = dict.fromkeys(self.layers, 0)  # sequences of the chunk whose keys are in the sum: never twice

        def run(rows: Sequence[int]) -> None:
            part = ids[rows[0] : rows[-1] + 1].to(self.lm.device, non_blocking=True)
            with frozen(self.lm.model), float32_products("highest"), reading(self._taps(rows, added)):
                self.lm.model(input_ids=part, use_cache=False)

        in_parts(self.lm.room, STATISTICS, range(len(ids)), run)

    def _taps(self, rows: Sequence[int], added: dict[int, int]) -> dict[nn.Module, Callable[[Tensor], None]]:
        """What adds the keys of each layer to its sum as they pass."""

        def tap(layer: int) -> Callable[[Tensor], None]:
            def add(keys: Tensor) -> None:
                flat = keys.reshape(-1, keys.shape[-1])  # OPT's keys are flat already
                there = max(0, added[layer] - rows[0])  # a larger part was begun, and has come as far as this layer
                if there < len(rows):
                    self._add(layer, flat[there * (len(flat) // len(rows)) :])
                    added[layer] = rows[-1] + 1

            return add

        return {self.lm.arch.module(self.lm.model, "mlp_out", layer): tap(layer) for layer in sorted(self.layers)}

    def _add(self, layer: int, keys: Tensor) -> None:
        try:
            self.moments[layer].add(keys)
        except torch.OutOfMemoryError as error:  # a part of the sum may have them
            raise KeditError(f"out of memory: the sums of layer {layer}; use a smaller stats.batch_tokens") from error

    def go_on_from(self, chunks: int) -> None:
        """So many chunks have been read, by all processes together."""
        self.chunks = chunks

    def mark(self, last: bool) -> None:
        """Measure what changed since the last mark, and make this one the last."""
        for layer in self.layers:
            now = _of_all(self.moments[layer])
            self.convergence[layer].append(self._measure(layer, now, last))
            if last:
                self.moments[layer] = now
                self.before.pop(layer, None)
            else:
                self.before[layer] = now.copy()

    def _measure(self, layer: int, now: SecondMoment, last: bool) -> dict[str, float | None]:
        """Relative change of C since the last mark and, at the end, how unseen text looks under that C.

        `unseen` is the mean of k^T C_before^-1 k / d_in over the tokens since: 1 if C_before described them
        as well as its own text, larger if it does not, None if that C cannot be inverted.
        """
        before = self.before.get(layer)
        if not bool(now.strips[0].isfinite().all()):
            raise KeditError(f"layer {layer}: the model's keys hold NaN or infinity; try lm.dtype bfloat16 or float32")
        if before is None:
            return {"tokens": now.count}
        mean, old = now.mean(), before.mean().to(now.strips[0].device)
        found: dict[str, float | None] = {"tokens": now.count}
        found["change"] = float((mean - old).norm() / mean.norm())
        if last:
            fresh = (mean.double() * now.count - old.double() * before.count) / (now.count - before.count)
            found["unseen"] = None
            with suppress(KeditError):  # so few tokens that even the ridged C of before has no inverse
                inverse = torch.cholesky_inverse(Covariance(old, before.count, RIDGE).factor)
                found["unseen"] = float((inverse * fresh).sum()) / now.d_in  # tr(C_before^-1 C_since) / d_in
        return found

    def save(self, path: Path, key: dict[str, Any]) -> None:
        """Write everything that `resume` needs."""
        tensors: dict[str, Tensor] = {}
        for prefix, moments in (("now", self.moments), ("before", self.before)):
            for layer, moment in moments.items():
                tensors |= moment.state(f"{prefix}.{layer}.")
        counts = [next(iter(m.values())).count if m else 0 for m in (self.moments, self.before)]
        position = {"chunks": self.chunks, "counts": counts}
        trace = [self.convergence[layer] for layer in self.layers]
        store.write(path, tensors, {"kind": "partial", "key": key, "position": position, "convergence": trace})

    def resume(self, path: Path, key: dict[str, Any]) -> None:
        """Take over the state of a run that was stopped."""
        tensors, card = store.read(path)
        store.check(path, card["key"], key)
        try:
            self._take(tensors, card)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise KeditError(f"{path} is damaged ({why[:200]}); delete it, it will be made again") from error

    def _take(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        self.chunks = card["position"]["chunks"]
        now, before = card["position"]["counts"]
        if any(type(n) is not int or n < 0 for n in (self.chunks, now, before)):
            raise ValueError(f"position {card['position']}")
        self.convergence = dict(zip(self.layers, card["convergence"], strict=True))
        for layer, moment in self.moments.items():
            moment.load(tensors, now, f"now.{layer}.")
            if before:
                self.before[layer] = moment.empty().load(tensors, before, f"before.{layer}.")


def collect(
    lm: LM,
    layers: Sequence[int],
    ids: Tensor,
    sequence_length: int,
    batch_tokens: int | None = None,
    dtype: torch.dtype = torch.float32,
    partial: Path | None = None,
    key: dict[str, Any] | None = None,
    progress: Progress | None = None,
    save_seconds: float = 60.0,
) -> Pass:
    """Run the pass over `ids: [n]`, from where a stopped one left `partial`, if it did.

    A resumed run adds the same chunks in the same order and ends with the same bits. The processes of a run take turns
    at the chunks.

    Args:
        lm: The unedited model.
        layers: Layers whose keys are taken.
        ids: The text.
        sequence_length: Tokens of one packed sequence.
        batch_tokens: Tokens of one forward pass, at least one sequence; None: by device.
        dtype: Of products and sums.
        partial: File for the state of an unfinished pass, one for each process; None: not resumable.
        key: What that file must have been made from.
        progress: Called with what is being done, tokens so far and tokens after every chunk.
        save_seconds: Least time between two writes of `partial`, which get a tenth of the time at most.
    """
    if lm.device.type == "cuda":
        ids = ids.pin_memory()  # so that the host does not wait while a chunk is brought to the device
    chunks = list(_chunks(ids, sequence_length, batch_tokens or default_batch_tokens(lm.device)))
    ends = list(accumulate(chunk.numel() for chunk in chunks))
    marks = _marks(ends)
    state = Pass(lm, layers, dtype)
    if partial is not None and partial.exists():
        state.resume(partial, key or {})
    if len(set(distributed.gather(state.chunks))) > 1:  # killed while they were saving
        state = Pass(lm, layers, dtype)
    if state.chunks:
        log.info("resuming the statistics at %d of %d chunks (%s)", state.chunks, len(chunks), partial)
    due = time.monotonic() + save_seconds
    what = reading_text(layers)
    while state.chunks < len(chunks):
        own = state.chunks + distributed.rank()
        if own < len(chunks):
            state.advance(chunks[own])
        before = state.chunks
        state.go_on_from(min(before + distributed.world_size(), len(chunks)))
        if any(before < mark <= state.chunks for mark in marks):
            state.mark(last=state.chunks == len(chunks))
        if partial is not None and state.chunks < len(chunks) and distributed.all_true(time.monotonic() >= due):
            start = time.monotonic()
            state.save(partial, key or {})
            due = time.monotonic() + max(save_seconds, 9 * (time.monotonic() - start))
        if progress is not None:
            progress(what, ends[state.chunks - 1], len(ids))
    return state


def default_batch_tokens(device: torch.device) -> int:
    """Tokens of a forward pass that keep `device` busy."""
    return 4096 if device.type == "cpu" else 16_384


def reading_text(layers: Sequence[int]) -> str:
    """What a pass over the text is called on the terminal."""
    return f"statistics of {name_layers(layers)} (once per model)"


def name_layers(layers: Sequence[int]) -> str:
    """`layer 5`, `layers 4 to 8`, or each by its number; ascending."""
    numbers = sorted(layers)
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"layers {numbers[0]} to {numbers[-1]}"
    return f"layers {', '.join(map(str, numbers))}"


def _of_all(own: SecondMoment) -> SecondMoment:
    """The sums of all processes; of one alone, its own."""
    if distributed.world_size() == 1:
        return own
    whole = SecondMoment(own.d_in, own.dtype, own.strips[0].device)
    sums = {name: distributed.total(strip.clone()) for name, strip in own.state().items()}
    return whole.load(sums, sum(distributed.gather(own.count)))


def _chunks(ids: Tensor, length: int, batch_tokens: int) -> Iterator[Tensor]:
    """Batches `[n, length]` of whole sequences, then the rest of the text as one shorter sequence."""
    whole = len(ids) // length * length
    yield from ids[:whole].view(-1, length).split(max(1, batch_tokens // length)) if whole else ()
    if whole < len(ids):
        yield ids[whole:].unsqueeze(0)


def _marks(ends: Sequence[int]) -> set[int]:
    """After how many chunks to measure, by the tokens up to each: an eighth, a quarter, half of the text, and all."""
    near = {min(range(len(ends)), key=lambda i: abs(ends[i] * part - ends[-1])) + 1 for part in (2, 4, 8)}
    return near | {len(ends)}
