"""The structure of a model, tried when it is bound: what `kedit.model.architecture` says of it and what
`kedit.forward.replay` counts on.

A few short passes over three rows of different lengths. Each check compares what kedit computes with what the model's
own forward pass gives, and a difference beyond rounding refuses the model: it is never edited wrongly. Nothing of a
check stays behind: no hook, no cache, no number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kedit.errors import BROKEN, KeditError
from kedit.forward.logits import frozen
from kedit.forward.replay import Replay, Row, Site
from kedit.model.architecture import weight
from kedit.model.pretrained import quiet_transformers
from kedit.model.tokenization import pad_right

if TYPE_CHECKING:
    from kedit.model.lm import LM

_TEXT = "The capital of France is Paris, and the capital of Italy is Rome."
_ROWS = ((0, 5, 2), (4, 7, 1), (2, 6, 3))  # where a row begins and ends in the text, and its first suffix token
_AWAY = 0.01  # a vector as large as the residual stream changes the logits at least so much


def check_structure(lm: LM) -> None:
    """Refuse a model whose structure is not what `lm.arch` says, or that cannot be replayed.

    Args:
        lm: The model, with its weights. One on the meta device has none to try and passes.

    Raises:
        KeditError: Names the model, the check that failed and what it means.
    """
    if lm.device.type == "meta":
        return
    rows = _rows(lm)
    with frozen(lm.model), quiet_transformers():
        with _named(lm, "a pass over three short rows", "kedit cannot run it"):
            full = _Full(lm, rows)
        if not bool(full.logits.isfinite().all()):
            what = "its logits for an ordinary sentence are not finite"
            raise _refusal(lm, what, f"its weights are broken, or too large for {lm.dtype}")
        eps = _rounding(lm)
        _check_values(lm, full, eps)
        _check_logits(lm, full, eps)
        _check_replay(lm, full, rows, eps)


class _Full:
    """One pass of the whole model over all rows, and what went by in it.

    Attributes:
        last: What leaves the last layer, `[n_rows, T, d_model]`.
        logits: The model's own, `[n_rows, T, vocab]`.
        values: Layer -> input and output of its `mlp_out`, once for each time that it ran.
    """

    def __init__(self, lm: LM, rows: list[Row], add: Tensor | None = None, layer: int = 0) -> None:
        ids, _ = pad_right([row.ids for row in rows], lm.pad_id, lm.device)
        self.values: dict[int, list[tuple[Tensor, Tensor]]] = {i: [] for i in range(lm.arch.n_layers)}
        seen: list[Tensor] = []

        def tap(i: int) -> Any:
            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
                self.values[i].append((args[0].clone(), output.clone()))  # what follows may work in place
                if add is None or i != layer:
                    return None
                changed = output.clone()  # there is one row, so its tokens are all that can lie along the axes
                changed.view(-1, output.shape[-1])[rows[0].start] += add
                return changed

            return hook

        with ExitStack() as stack:
            for i in self.values:
                module = lm.arch.module(lm.model, "mlp_out", i)
                stack.callback(module.register_forward_hook(tap(i)).remove)
            top = lm.arch.layer(lm.model, lm.arch.n_layers - 1)
            stack.callback(top.register_forward_hook(lambda _, args, out: seen.append(_first(out))).remove)
            self.logits = lm.model(input_ids=ids, use_cache=False).logits
        self.last = seen[-1]


def _check_values(lm: LM, full: _Full, eps: float) -> None:
    """What leaves `mlp_out` is W k + b, once per layer and token."""
    tokens = full.logits.shape[0] * full.logits.shape[1]
    for layer, seen in full.values.items():
        path = lm.arch.path("mlp_out", layer)
        if len(seen) != 1:
            raise _refusal(lm, f"{path} runs {len(seen)} times in one pass", "an edit of it would act as often")
        key, value = seen[0]
        module: Any = lm.arch.module(lm.model, "mlp_out", layer)
        if value.shape[-1] != lm.d_model or value.numel() != tokens * lm.d_model:
            raise _refusal(lm, f"{path} gives {tuple(value.shape)} for {tokens} tokens", "not one value per token")
        with _named(lm, f"multiplying with the weight of {path}", "kedit cannot edit it"):
            w = weight(module)  # a model may have matrices of several types
            wanted = key.to(w.dtype) @ w.T
            wanted = wanted if module.bias is None else wanted + module.bias
        if not _equal(value, wanted, eps):
            raise _refusal(lm, f"the output of {path} is not W k + b", "an edit of W would not give the value wanted")


def _check_logits(lm: LM, full: _Full, eps: float) -> None:
    """`arch.logits` of what leaves the last layer are the model's own logits."""
    path = lm.arch.family.norm
    with _named(
        lm, f"logits from the last layer's output ({path}, {lm.arch.family.head})", "kedit cannot compute them"
    ):
        logits = lm.arch.logits(lm.model, full.last)
    if not _equal(logits, full.logits, eps):
        what = f"logits computed from the last layer's output ({path}, then {lm.arch.family.head}) are not the model's"
        raise _refusal(lm, what, "kedit would optimise another model's probabilities")


def _check_replay(lm: LM, full: _Full, rows: list[Row], eps: float) -> None:
    """Replay gives what a full pass gives: whole, for some rows, and with a vector added at `mlp_out`."""
    first = lm.arch.n_layers // 2
    site = Site("mlp", first)
    zero = torch.zeros(len(rows), lm.d_model, device=lm.device)
    what = "replay (only the upper layers and the tokens that an edit can change)"
    with _named(lm, what, "kedit cannot optimise a value on it"):
        replay = Replay(lm, rows, first)
        keys, values = replay.first_keys()
        whole = replay.run({site: zero})
        vector = replay.hidden[-1, 0].float()
        some = replay.select(torch.tensor([2, 0], device=lm.device))
        part = some.run({site: torch.stack([zero[0], vector])})
        moved = _Full(lm, rows[:1], vector.to(full.last.dtype), first)
    at = (torch.arange(len(rows)), torch.tensor([row.start for row in rows]))
    for found, wanted in zip((keys, values), full.values[first][0], strict=True):
        if not _equal(found, wanted.reshape(*full.logits.shape[:2], -1)[at], eps):
            raise _refusal(lm, f"{what} meets other keys or values than a full pass", "it would edit another value")
    pairs = [(whole[i], full.logits[i], row) for i, row in enumerate(rows)]
    pairs += [(part[0], full.logits[2], rows[2]), (part[1], moved.logits[0], rows[0])]
    path = lm.arch.path("mlp_out", first)
    how = ["", "", "", " of some of its rows", f" with a vector added at {path}"]
    for same, more in zip(_same_suffixes(lm, pairs, eps), how, strict=True):
        if not same:
            means = "kedit would optimise another model's probabilities"
            raise _refusal(lm, f"{what}{more} is not equal to a full pass", means)
    start, end = rows[0].start, len(rows[0].ids)
    if _distance(moved.logits[0, start:end], full.logits[0, start:end]) < _AWAY:
        raise _refusal(lm, f"its logits do not depend on {path}", "an edit would do nothing")


def _rows(lm: LM) -> list[Row]:
    """Three rows of different lengths and prefixes, of ids that the model has."""
    embed: Any = lm.arch.embed(lm.model)
    ids = [i for i in lm.encode(_TEXT) if i < len(embed.weight)] or [0]
    ids = (ids * 7)[:7]
    n = lm.context_length
    return [Row(tuple(ids[begin:end][:n]), max(0, min(start, n - 2))) for begin, end, start in _ROWS]


def _same_suffixes(lm: LM, pairs: list[tuple[Tensor, Tensor, Row]], eps: float) -> list[bool]:
    """Whether replayed rows `[S, d_model]` give the logits `[T, vocab]` of full passes where they have tokens."""
    lengths = [len(row.suffix) for _, _, row in pairs]
    found = lm.arch.logits(lm.model, torch.cat([hidden[:n] for (hidden, _, _), n in zip(pairs, lengths, strict=True)]))
    wanted = [logits[row.start : len(row.ids)] for _, logits, row in pairs]
    return [_equal(a, b, eps) for a, b in zip(found.split(lengths), wanted, strict=True)]


def _rounding(lm: LM) -> float:
    """Unit of rounding of the coarsest numbers that the model computes with."""
    dtypes = {parameter.dtype for parameter in lm.model.parameters()}
    eps = max(2**-23, *(torch.finfo(dtype).eps for dtype in dtypes))
    tf32 = lm.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return max(eps, 2**-10) if tf32 else eps


def _equal(found: Tensor, wanted: Tensor, eps: float) -> bool:
    """Equal but for rounding: half of the digits agree, all of them of a common offset."""
    if found.shape != wanted.shape:
        return False
    offset = float(wanted.float().norm()) / max(float(_varies(wanted).norm()), 1e-30)
    return _distance(found, wanted) <= math.sqrt(eps) + 2 * eps * offset


def _distance(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference, as a share of what varies in `wanted` along its last axis; NaN is far."""
    scale = max(float(_varies(wanted).norm()), 1e-30)
    distance = float(_varies(found.float() - wanted.float()).norm()) / scale
    return math.inf if math.isnan(distance) else distance


def _varies(logits: Tensor) -> Tensor:
    """Logits without what all have in common, which no probability depends on."""
    return logits.float() - logits.float().mean(-1, keepdim=True)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _named(lm: LM, what: str, means: str) -> Iterator[None]:
    """An error of the model's own code inside is the answer no."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeditError, *BROKEN) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _refusal(lm, f"{what} fails ({type(error).__name__}: {why[:120]})", means) from error


def _refusal(lm: LM, what: str, means: str) -> KeditError:
    kind = lm.model.config.model_type
    return KeditError(
        f"{lm.name}: kedit does not edit this model of type {kind!r}: {what}: {means}. See docs/models.md"
    )
