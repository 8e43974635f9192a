"""A delta as an ordinary Hugging Face folder: merged into the weights, or beside them where it is no weight.

What a merge rounds is measured, matrix by matrix, and so is what the rounding does to the edits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.parameters import parameter
from kedit.delta.serialization import save_delta
from kedit.errors import KeditError
from kedit.export.folder import check_free, new_folder
from kedit.export.loading import CARRIED, load_edited
from kedit.export.measure import chosen, efficacy_of, probabilities
from kedit.export.model_card import Exported, write_card
from kedit.export.requests import check_same_model, check_unedited, requests_of
from kedit.model.fingerprint import fingerprint
from kedit.model.lm import LM
from kedit.model.pretrained import quiet_transformers

DType = Literal["float32", "bfloat16", "float16"]
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rounding:
    """What writing a matrix in half precision left of its change.

    Attributes:
        parameter: Its name in the model.
        norm: Frobenius norm of the change.
        error: ||(rounded edited - rounded unedited) - change|| / ||change||; from about 1 on nothing is left of it.
    """

    parameter: str
    norm: float
    error: float


def export_hf(delta: Delta, lm: LM, folder: Path | str, card: Mapping[str, Any], dtype: DType | None = None) -> Path:
    """Write the edited model as a folder that `AutoModelForCausalLM.from_pretrained` loads.

    A delta that adds to parameters is merged. One of another kind (pathways, codebooks, texts before prompts) is put
    beside the unedited model, in the subfolder `kedit/`; `kedit.load_edited(folder)` loads both.

    Args:
        delta: What to write.
        lm: The model that it changes, unedited; it is so again afterwards, bit for bit.
        folder: Made here; must not exist, or be empty.
        card: The delta's card, as `save_delta` gets it: the model card says it, and its requests are asked.
        dtype: Of the written weights; None: the model's own.

    Returns:
        The folder.

    Raises:
        KeditError: The delta is of another model, the model carries an edit already, or there is no such type.
        CannotWrite: The folder cannot be written.
    """
    check_free(folder)
    check_same_model(card, lm)
    check_unedited(lm)
    if dtype not in (None, *DType.__args__):  # type: ignore[attr-defined]
        raise KeditError(f"dtype: {dtype!r} is none of {', '.join(DType.__args__)}")  # type: ignore[attr-defined]
    delta.modules(lm.model)
    efficacy = efficacy_of(lm, delta, card)
    target = lm.dtype if dtype is None else getattr(torch, dtype)
    merged = all(kind.in_weights for kind in delta.kinds)
    name = str(target).removeprefix("torch.")
    with new_folder(folder) as partial:
        rounding = _merge(delta, lm, partial, dtype and target) if merged else []
        if not merged:
            _beside(delta, lm, partial, card, dtype and target)
        if target in HALF:
            written = probabilities(load_edited(partial, device=lm.device), chosen(requests_of(card)))
            efficacy = [replace(line, written=p) for line, p in zip(efficacy, written, strict=True)]
        exported = Exported("merged" if merged else "beside", lm, delta, card, name, Path(folder), rounding, efficacy)
        write_card(partial, exported)
    return Path(folder)


def _merge(delta: Delta, lm: LM, folder: Path, dtype: torch.dtype | None) -> list[Rounding]:
    """Writes the edited weights; the change is added in the wider of both types, and rounded once."""
    model, wide = lm.model, None if dtype is None else torch.promote_types(dtype, lm.dtype)
    exact = _changes(delta)
    before = {key: _parameter(model, key).detach().clone() for key in exact}
    with in_dtype(model, wide), edited(model, delta), in_dtype(model, dtype):
        _save(lm, folder)
        after = {key: _parameter(model, key) for key in exact}
        return [_rounding(key, exact[key], before[key], after[key]) for key in exact if after[key].dtype in HALF]


def _beside(delta: Delta, lm: LM, folder: Path, card: Mapping[str, Any], dtype: torch.dtype | None) -> None:
    """Writes the unedited weights, and the delta for them."""
    with in_dtype(lm.model, dtype):
        _save(lm, folder)
        own = {"model_fingerprint": fingerprint(lm.model), "dtype": str(lm.model.dtype).removeprefix("torch.")}
    save_delta(folder / CARRIED, delta, {**card, **own})


def _save(lm: LM, folder: Path) -> None:
    """Model, configuration and tokenizer, as transformers writes them."""
    config, name = lm.model.config, lm.name
    was = config.dtype
    try:
        with quiet_transformers():
            lm.model.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)
    except (ValueError, RuntimeError) as error:  # e.g. a generation config that transformers itself refuses
        raise KeditError(f"{name}: transformers cannot save this model: {str(error).splitlines()[0]}") from None
    finally:
        config.dtype = was


@contextmanager
def in_dtype(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, all floating-point parameters are of `dtype`; afterwards they are the old ones, bit for bit.

    Tied ones stay tied. The old ones stay in memory meanwhile.
    """
    old = (
        [] if dtype is None else [(p, p.data) for p in model.parameters() if p.is_floating_point() and p.dtype != dtype]
    )
    try:
        for p, data in old:
            p.data = data.to(dtype)
        yield
    finally:
        for p, data in old:
            p.data = data


_Key = tuple[str, str]  # path of a module, name of its parameter


def _changes(delta: Delta) -> dict[_Key, Tensor]:
    """What is added to each parameter, in float32."""
    total: dict[_Key, Tensor] = {}
    for path, changes in delta.items():
        for change in changes:
            for name, tensor in change.parameters().items():
                total[path, name] = total[path, name] + tensor if (path, name) in total else tensor
    return total


def _parameter(model: nn.Module, key: _Key) -> Tensor:
    module = model.get_submodule(key[0])
    return parameter(module, key[1])(module)


def _rounding(key: _Key, change: Tensor, before: Tensor, after: Tensor) -> Rounding:
    change = change.double().to(after.device)
    norm = float(change.norm())
    left = after.double() - before.to(after.dtype).double() - change
    return Rounding(".".join(key), norm, float(left.norm()) / norm if norm else 0.0)
