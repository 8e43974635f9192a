"""What enters or leaves a module, without running the model above it: for one forward pass, and for many rows.

A causal decoder's states at a token do not depend on what follows, so rows of any length share a batch, padded at
their right end. What is done with the states lives with the callers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from kedit.forward.logits import default_batch_tokens, frozen, lane_rows
from kedit.model.tokenization import pad_right
from kedit.runtime.room import KEYS, in_parts

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas
    from kedit.model.lm import LM

Side = Literal["input", "output"]
Row = tuple[int, tuple[int, ...]]
"""Lane (-1 for the shared weights) and tokens."""


class _Reached(Exception):
    """The last module that is read has been reached; the rest of the model need not run."""


@contextmanager
def reading(
    taps: Mapping[nn.Module, Callable[[Tensor], object]], side: Side = "input", native: bool = False
) -> Iterator[None]:
    """Inside, a forward pass gives its states to `taps` and ends, with the block, at the last of them.

    Args:
        taps: Modules in the order in which they run, and what is called with the state of each.
        side: Whether that is the module's first argument or its (first) output.
        native: Read the input as it is before any pathway at the module moves it.
    """
    *_, last = taps

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        taps[module](args[0] if side == "input" else output[0] if isinstance(output, tuple) else output)
        if module is last:
            raise _Reached

    with ExitStack() as stack:
        stack.enter_context(suppress(_Reached))
        for module in taps:
            if side == "input":
                handle = module.register_forward_pre_hook(hook, prepend=native)
            else:
                handle = module.register_forward_hook(hook)
            stack.callback(handle.remove)
        yield


def read(
    lm: LM,
    rows: Iterable[Row],
    module: nn.Module,
    side: Side = "input",
    bank: BatchedDeltas | None = None,
    batch_tokens: int | None = None,
    native: bool = False,
) -> Iterator[tuple[list[Row], Tensor]]:
    """States of `module` at every token of every row, batch by batch.

    Args:
        lm: The model, with the weights that it should have.
        rows: What to run. Equal rows run once, the longest first.
        module: What is read.
        side: As in `reading`.
        bank: Private deltas of the rows.
        batch_tokens: Padded tokens of one forward pass, at least one row; None: by device.
        native: As in `reading`.

    Yields:
        The rows of a batch, and `[len(rows), T, width]` in the model's dtype; what is right of a row is padding.
    """

    def run(part: Sequence[Row]) -> tuple[list[Row], Tensor]:
        ids, _ = pad_right([tokens for _, tokens in part], lm.pad_id, lm.device)
        seen: list[Tensor] = []
        lanes = lane_rows(bank, [lane for lane, _ in part])
        with frozen(lm.model), lanes, reading({module: seen.append}, side, native):
            lm.model.base_model(input_ids=ids, use_cache=False)
        state = seen.pop()
        return list(part), state.reshape(*ids.shape, state.shape[-1])  # OPT's MLP works on flattened rows

    order = sorted(dict.fromkeys(rows), key=lambda row: len(row[1]), reverse=True)
    budget, start = batch_tokens or default_batch_tokens(lm.device), 0
    while start < len(order):
        part = order[start : start + max(1, budget // len(order[start][1]))]
        yield from in_parts(lm.room, KEYS, part, run, lambda part: len(part) * len(part[0][1]))
        start += len(part)
